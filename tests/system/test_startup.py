"""What a cold run loads, in both processes: each of these modules takes a part of the time of the whole run."""

import os
import subprocess
import sys

import pytest

from tests.support.conch import CONCH, TRANSPORT, Bench

# Each is slow by itself, or by what it imports in turn.
SLOW = """
asyncio base64 click collections contextlib croniter ctypes dataclasses datetime email encodings.idna enum functools
grpc heapq http.client importlib inspect json logging queue random re selectors shutil signal socket ssl string
struct subprocess tempfile threading traceback types typing urllib.parse uuid warnings weakref
"""
RUNS = {
    "elect": ("elect", "o", "--quiet", "--", "true"),
    "sema": ("sema", "s", "--max", "2", "--quiet", "--", "true"),
    "query": ("elect", "o", "--who"),
    "version": ("--version",),
    "help": ("--help",),
}


def loaded(arguments: list[str], environment: dict[str, str]) -> set[str]:
    """The modules that a fresh, isolated Python imports, with its forked processes."""
    # what measures coverage loads most of them
    environment = {name: value for name, value in environment.items() if not name.startswith(("COV", "COLUMNS"))}
    done = subprocess.run(
        [sys.executable, "-I", "-X", "importtime", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.skipif(TRANSPORT == "grpc", reason="gRPC loads most of them")
def test_nothing_slow_is_loaded(conch: Bench, name: str) -> None:
    """As etcd is found by default: by its name."""
    by_name = conch.endpoints.replace("127.0.0.1", "localhost")
    found = loaded([CONCH, *RUNS[name]], {**conch.environment, "CONCH_ENDPOINTS": by_name})
    assert "conch.cli.main" in found
    assert ("conch.keeper.watchdog" in found) == (name in ("elect", "sema"))
    assert ("conch.etcd.gateway_http" in found) == (name in ("elect", "sema", "query"))
    assert (found - loaded(["-c", "pass"], dict(os.environ))) & set(SLOW.split()) == set()
