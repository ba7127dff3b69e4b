"""conch runs a command while holding something in etcd."""

__version__ = "0.1.0"
