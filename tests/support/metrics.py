"""Reads the counters of etcd."""

import re
import urllib.request


def requests(endpoint: str) -> dict[str, int]:
    """Return how many requests a member has handled, by method; for streams, how many messages it received."""
    found: dict[str, int] = {}
    for kind, method, count in re.findall(
        r'grpc_server_(started|msg_received)_total{.*?grpc_method="(\w+)".*?} ([0-9.e+]+)', _metrics(endpoint)
    ):
        if (kind == "msg_received") == (method in ("Watch", "LeaseKeepAlive")):
            found[method] = found.get(method, 0) + int(float(count))
    return found


def logins(endpoint: str) -> dict[str, int]:
    """Return how many logins a member has handled, by gRPC's name of the code; none while it is not there."""
    try:
        text = _metrics(endpoint)
    except OSError:
        return {}
    found = re.findall(r'grpc_server_handled_total{grpc_code="(\w+)",grpc_method="Authenticate".*?} ([0-9.e+]+)', text)
    return {code: int(float(count)) for code, count in found if count != "0"}


def _metrics(endpoint: str) -> str:
    with urllib.request.urlopen(f"http://{endpoint}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def difference(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """Return the counts that grew, and by how much."""
    return {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
