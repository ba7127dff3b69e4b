"""Which hosts may run a job, and why the others may not."""

from typing import Any

import pytest

from conch.cron.features import CAN
from conch.cron.placement import Host, host_of, hosts_of, this_host, too_old, why_not, why_nowhere
from conch.etcd.store import KeyValue
from conch.keys import Keys
from tests.support.parts import job

EACH: dict[str, Any] = {"schedule": ["@every 1s"], "each": True}
ON: dict[str, Any] = {"schedule": ["@every 1s"], "on": ["gpu", "eu"]}


def host(name: str = "h", *, cordoned: bool = False, **fields: Any) -> Host:
    return host_of(name, {"can": sorted(CAN), **fields}, cordoned=cordoned)


@pytest.mark.parametrize(
    ("fields", "registered", "why"),
    [
        ({}, host(), ""),
        ({}, host(can=None), ""),  # an earlier release
        (ON, host(tags=["eu", "gpu", "x"]), ""),
        (ON, host(tags=["gpu"]), "it has not the tag eu"),
        (ON, host(tags="gpu eu"), "it has not the tags gpu, eu"),  # anyone may write anything
        (ON, host(tags=["gpu", 5, None, "eu"], can=["each"]), "it is too old for on"),
        ({**ON, "on": ["host=h"]}, host(), ""),
        ({**ON, "on": ["host=h"]}, host(tags=["host=x"]), ""),
        ({**ON, "on": ["host=g"]}, host(), "it has not the tag host=g"),
        (EACH, host(), ""),
        (EACH, host(can=None), "it is too old for each"),
        ({"needs": ["time-travel"]}, host(), "it is too old for time-travel"),
        ({}, host(cordoned=True), "it is cordoned"),
        ({}, host(can=None, cordoned=True), ""),  # it does not know what that is
        ({}, host(draining=True), "it is draining"),
        ({}, host(draining="yes"), ""),
    ],
)
def test_why_a_host_may_not(fields: dict[str, Any], registered: Host, why: str) -> None:
    """The first reason of several; nothing that is written wrongly counts."""
    assert why_not(job(**fields), registered) == why


MAY_NOT = "no conchd may run it: "


@pytest.mark.parametrize(
    ("fields", "hosts", "why"),
    [
        ({}, [], "no conchd is alive"),
        ({}, [host("a"), host("b", cordoned=True)], ""),
        (ON, [host("a"), host("b")], "no live conchd has the tags gpu, eu"),
        ({**ON, "on": ["gpu"]}, [host("a")], "no live conchd has the tag gpu"),
        (EACH, [host("a", can=None), host("b", can=None)], MAY_NOT + "hosts a, b are too old for each"),
        (
            EACH,
            [host("a", can=None), host("b", cordoned=True)],
            MAY_NOT + "host a is too old for each; host b is cordoned",
        ),
        ({}, [host("a", draining=True)], MAY_NOT + "host a is draining"),
        ({**ON, "on": ["gpu"]}, [host("a"), host("b", tags=["gpu"], draining=True)], MAY_NOT + "host b is draining"),
        (
            {},
            [host(f"h{n}", cordoned=True) for n in range(7)],
            MAY_NOT + "hosts h0, h1, h2, h3, h4 and 2 more are cordoned",
        ),
    ],
)
def test_why_no_host_may(fields: dict[str, Any], hosts: list[Host], why: str) -> None:
    """Hosts without the tags are not named: they are not meant."""
    assert why_nowhere(job(**fields), hosts) == why


def test_hosts_that_are_too_old() -> None:
    """Those with the tags alone; beside them others may run the job."""
    old, ours = host("a", can=None), host("b")
    assert too_old(job(**EACH), [old, ours]) == "host a is too old for each"
    assert too_old(job(), [old, ours]) == ""
    assert too_old(job(schedule=["@daily"], on=["host=b"]), [old, ours]) == ""


def test_hosts_are_read_from_their_keys() -> None:
    """Sorted by name; other keys do not count."""
    keys = Keys("/p")

    def kv(key: str, value: bytes = b"{}") -> KeyValue:
        return KeyValue(key.encode(), value, 1, 1, 1)

    nodes = [kv(keys.node("b"), b'{"can": ["on"], "tags": ["x"]}'), kv(keys.node("a"), b"[]"), kv("/p/node/a/b")]
    found = hosts_of(keys, nodes, [kv(keys.cron("cordon", "b"))])
    assert [(host.name, host.cordoned, sorted(host.tags)) for host in found] == [
        ("a", False, ["host=a"]),
        ("b", True, ["host=b", "x"]),
    ]
    assert this_host("c", ["x"], cordoned=False).can == CAN
