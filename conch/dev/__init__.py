"""A real etcd on this machine, for trying things out and for the tests."""

from conch.dev.cluster import Cluster, EtcdFailed, Member, find_etcd

__all__ = ["Cluster", "EtcdFailed", "Member", "find_etcd"]
