"""What etcdctl says and does."""

import json
import os
import subprocess
import sys
from pathlib import Path

from conch.dev import Cluster, Member


def etcdctl(*arguments: str, timeout_s: float = 20, stdin: str = "") -> str:
    """Run etcdctl; its stdout."""
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
    """The member that says that it leads."""
    for member in cluster.members:
        if not member.running():
            continue
        try:
            text = etcdctl(
                "--endpoints", member.endpoint, "--command-timeout", "2s", "endpoint", "status", "-w", "json"
            )
        except (AssertionError, subprocess.TimeoutExpired):
            continue
        for one in json.loads(text):
            status = one["Status"]
            # 3.7 leaves out what is zero
            if status.get("leader") and status["leader"] == status["header"]["member_id"]:
                return member
    return None


def told(*arguments: str) -> bool:
    """Whether etcd did what etcdctl was to have it do."""
    try:
        etcdctl(*arguments)
    except AssertionError:
        return False
    return True
