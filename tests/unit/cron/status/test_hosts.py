"""Which names and addresses of this host a request may carry."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.cli.conchd import _host_name
from conch.cron.status import own_names
from conch.cron.status.hosts import Hosts, host_of
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
    """Its host comes without the port and in lower case; a malformed authority has none."""
    assert host_of(authority) == host


@given(st.text(max_size=40) | st.from_regex(r"\[?[0-9a-fA-F.:%\]]{0,20}(:[0-9]{0,5})?"))
def test_any_authority_has_a_host_or_is_malformed(authority: str) -> None:
    """Nothing raises, and an accepted host is an address or one of the names."""
    host = host_of(authority)
    if host is not None and host in Hosts(["web"]):
        assert host in ("web", "localhost") or re.fullmatch(r"[0-9.]+|[0-9A-Fa-f:.]*(%.*)?", host)


@pytest.mark.parametrize("host", ["localhost", "web", "web.example.org", "1.2.3.4", "::1", "fe80::1%eth0"])
def test_hosts_that_are_ours(host: str) -> None:
    """Addresses, localhost and the names are accepted, in any case and with a final dot."""
    assert host in Hosts(["WEB", "web.example.org."])


@pytest.mark.parametrize("host", ["", "evil", "web.evil", "1.2.3", "1.2.3.4.evil", "0x7f000001", "2130706433", None])
def test_hosts_that_are_not(host: str | None) -> None:
    """Names that a foreign name server could point here are refused."""
    assert host not in Hosts(["web", "", "."])


def test_own_names_are_full_and_short() -> None:
    """The list has the full name and its first part."""
    assert {"web-7.example.org", "web-7"} <= set(own_names("web-7.example.org"))


@pytest.mark.parametrize("name", ["", "a:80", "a b", "*.example.org", "http://a", "-a", "ä", "a/b", "a,b"])
def test_bad_host_names(name: str) -> None:
    """A bad `--status-host` is refused before anything starts."""
    with pytest.raises(BadInput):
        _host_name(name)
