"""Reads the counters of etcd."""

import re
import urllib.request


def requests(endpoint: str) -> dict[str, int]:
    """Return how many requests a member has handled, by method; for streams, how many messages it received."""
    with urllib.request.urlopen(f"http://{endpoint}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    found: dict[str, int] = {}
    for kind, method, count in re.findall(
        r'grpc_server_(started|msg_received)_total{.*?grpc_method="(\w+)".*?} ([0-9.e+]+)', text
    ):
        if (kind == "msg_received") == (method in ("Watch", "LeaseKeepAlive")):
            found[method] = found.get(method, 0) + int(float(count))
    return found


def difference(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """Return the counts that grew, and by how much."""
    return {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
