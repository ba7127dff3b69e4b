"""The one line of etcd's log that says why it ended, as each release writes it."""

import json

import pytest

from conch.dev.cause import cause

PLAIN = "2026-11-26 21:39:40.944732"
NOISE = json.dumps({"level": "info", "ts": "2026-11-26T21:40:18.672Z", "caller": "embed/etcd.go:424", "msg": "closed"})


def entry(level: str, msg: str, **fields: str) -> str:
    """A line of etcd 3.5 and later."""
    start = {"level": level, "ts": "2026-11-26T21:40:18.548Z", "caller": "etcdmain/etcd.go:203", "msg": msg}
    return json.dumps({**start, **fields, "stacktrace": "main.main\n\t/x/main.go:32"})


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("", ""),
        ("\n \n", ""),
        ("no way\n\n", "no way"),
        # 3.4
        (f"{PLAIN} C | etcdmain: listen tcp: in use\n{PLAIN} I | raft: bye", "etcdmain: listen tcp: in use"),
        (f"{PLAIN} W | auth: odd", "auth: odd"),
        # 3.5 to 3.7
        (f"{entry('fatal', 'discovery failed', error='listen tcp: in use')}\n{NOISE}", "listen tcp: in use"),
        (entry("fatal", "listener failed", error="open /x: no such file"), "listener failed: open /x: no such file"),
        (entry("fatal", "invalid downgrade", current="3.5.1"), "invalid downgrade (current=3.5.1)"),
        (entry("fatal", "x" * 400), "x" * 300),
        (NOISE, "closed"),
        # a panic is logged first, then printed by Go with its stack
        (
            f"{entry('panic', 'execute job failed', job='j', panic='cannot parse')}\npanic: execute job failed\n\n"
            "goroutine 1 [running]:\n\tx.go:1",
            "execute job failed: cannot parse",
        ),
        ("panic: removed all voters\n\ngoroutine 1 [running]:\n\tx.go:1", "panic: removed all voters"),
        # an option that it does not know, and a page of help
        (
            "flag provided but not defined: -v2\nUsage:\n\n  etcd [flags]\n\n    Run.\n",
            "flag provided but not defined: -v2",
        ),
        ('{"level":"fatal"', '{"level":"fatal"'),
        ("[1]", "[1]"),
    ],
)
def test_what_it_said_last_of_its_end(log: str, said: str) -> None:
    """Without what surrounds the words, and not what follows them."""
    assert cause(log) == said
