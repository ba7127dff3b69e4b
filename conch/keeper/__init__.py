"""What runs in the keeper, the only process that talks to etcd while something is held."""
