"""The sacred part: a child runs only under a live deadline. It knows nothing of etcd, Click or the recipes."""
