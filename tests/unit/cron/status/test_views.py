"""The parts of the status server that need no client: names of hosts, and answers that are shared."""

import asyncio
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.cli.conchd import _host_name
from conch.cron.status import own_names
from conch.cron.status.hosts import Hosts, host_of
from conch.cron.status.shared import Shared
from conch.errors import BadInput


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        ("localhost", "localhost"),
        ("LOCALHOST.:80", "localhost"),
        ("a.b:", "a.b"),
        ("", ""),
        (":80", ""),
        ("127.0.0.1:9400", "127.0.0.1"),
        ("[::1]", "::1"),
        ("[FE80::1%eth0]:1", "FE80::1%eth0"),
        ("a b", None),
        ("a@b", None),
        ("a/b", None),
        ("a:b", None),
        ("::1", None),
        ("[::1", None),
        ("[::1]x", None),
        ("ä", None),
        ("a\n", None),
        ("a,b", None),
        ("%41", None),
    ],
)
def test_host_of_an_authority(authority: str, host: str | None) -> None:
    """Without its port, in lower case, or none."""
    assert host_of(authority) == host


@given(st.text(max_size=40) | st.from_regex(r"\[?[0-9a-fA-F.:%\]]{0,20}(:[0-9]{0,5})?"))
def test_any_authority_has_a_host_or_is_malformed(authority: str) -> None:
    """Nothing raises, and what is let through is an address or one of the names."""
    host = host_of(authority)
    if host is not None and host in Hosts(["web"]):
        assert host in ("web", "localhost") or re.fullmatch(r"[0-9.]+|[0-9A-Fa-f:.]*(%.*)?", host)


@pytest.mark.parametrize("host", ["localhost", "web", "web.example.org", "1.2.3.4", "::1", "fe80::1%eth0"])
def test_hosts_that_are_ours(host: str) -> None:
    """Addresses, localhost and the names, however they are written there."""
    assert host in Hosts(["WEB", "web.example.org."])


@pytest.mark.parametrize("host", ["", "evil", "web.evil", "1.2.3", "1.2.3.4.evil", "0x7f000001", "2130706433", None])
def test_hosts_that_are_not(host: str | None) -> None:
    """Whatever a name server could be made to answer for."""
    assert host not in Hosts(["web", "", "."])


def test_own_names_are_full_and_short() -> None:
    """The host name, and what it is called in etcd."""
    assert {"web-7.example.org", "web-7"} <= set(own_names("web-7.example.org"))


@pytest.mark.parametrize("name", ["", "a:80", "a b", "*.example.org", "http://a", "-a", "ä", "a/b", "a,b"])
def test_bad_host_names(name: str) -> None:
    """Refused before anything starts."""
    with pytest.raises(BadInput):
        _host_name(name)


def test_those_who_ask_together_share_an_answer_made_after_they_asked() -> None:
    """Whoever comes while one is being made gets the next one, which is one for all of them."""
    made = 0
    release = asyncio.Event()

    async def make() -> int:
        nonlocal made
        made += 1
        number = made
        await release.wait()
        return number

    async def main() -> None:
        shared = Shared(make)
        first = [asyncio.create_task(shared.get(10, "late")) for _ in range(5)]
        while not made:
            await asyncio.sleep(0)
        later = [asyncio.create_task(shared.get(10, "late")) for _ in range(5)]
        await asyncio.sleep(0)
        release.set()
        assert await asyncio.gather(*first, *later) == [1] * 5 + [2] * 5
        assert await shared.get(10, "late") == 3

    asyncio.run(main())


def test_who_has_waited_for_long_enough_leaves_the_others_alone() -> None:
    """A time-out is the asker's own; an error in the making is everybody's, and the next try is a new one."""
    release = asyncio.Event()
    tries = 0

    async def make() -> str:
        nonlocal tries
        tries += 1
        await release.wait()
        if tries == 1:
            raise ValueError("odd")
        return "well"

    async def main() -> None:
        shared = Shared(make)
        patient = asyncio.create_task(shared.get(10, "late"))
        with pytest.raises(TimeoutError, match="late"):
            await shared.get(0.01, "late")
        release.set()
        with pytest.raises(ValueError, match="odd"):
            await patient
        assert await shared.get(10, "late") == "well"

    asyncio.run(main())
