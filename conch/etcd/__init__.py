"""Access to etcd: `store` has the protocol and the errors, two drivers implement it."""
