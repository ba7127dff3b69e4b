"""A real etcd on this machine, for trying things out and for the tests."""

from conch.dev.cluster import Cluster
from conch.dev.member import EtcdFailed, Member, Tls, find_etcd, free_ports

__all__ = ["Cluster", "EtcdFailed", "Member", "Tls", "find_etcd", "free_ports"]
