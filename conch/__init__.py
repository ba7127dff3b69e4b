"""conch runs a command while it holds a lease-backed key in etcd."""

__version__ = "0.1.0"
