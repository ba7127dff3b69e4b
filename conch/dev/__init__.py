"""A real etcd on this machine, for trying things out and for the tests."""

from conch.dev.cluster import Cluster, EtcdFailed, Member, Tls, find_etcd

__all__ = ["Cluster", "EtcdFailed", "Member", "Tls", "find_etcd"]
