"""Calls etcdctl."""

import json
import os
import subprocess
import sys
from pathlib import Path

from conch.dev import Cluster, Member


def etcdctl(*arguments: str, timeout_s: float = 20, stdin: str = "") -> str:
    """Run etcdctl and return its stdout; fail if it does."""
    path = f"{os.environ['PATH']}:{Path(sys.executable).parent}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ETCDCTL_")}
    done = subprocess.run(
        ["etcdctl", *arguments],
        env={**environment, "PATH": path},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def leader(cluster: Cluster) -> Member | None:
    """Return the member that reports itself as leader."""
    for member in cluster.members:
        if not member.running():
            continue
        try:
            text = etcdctl(
                "--endpoints", member.endpoint, "--command-timeout", "2s", "endpoint", "status", "-w", "json"
            )
        except (AssertionError, subprocess.TimeoutExpired):
            continue
        for endpoint in json.loads(text):
            status = endpoint["Status"]
            # 3.7 omits zero values
            if status.get("leader") and status["leader"] == status["header"]["member_id"]:
                return member
    return None


def told(*arguments: str) -> bool:
    """Whether a call of etcdctl succeeded."""
    try:
        etcdctl(*arguments)
    except AssertionError:
        return False
    return True
