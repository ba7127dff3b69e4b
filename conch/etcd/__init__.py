"""etcd behind a few calls: `store` has the protocol and the errors, the drivers implement it."""
