"""Endpoints as text: parsed, shown, and fed with anything."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.errors import BadInput
from conch.etcd.endpoints import Endpoint, parse_endpoints
from tests.support.fuzz import ARGUMENT, check_message


@pytest.mark.parametrize(
    ("text", "endpoints"),
    [
        ("a", [Endpoint("a", 2379)]),
        ("a:1,b:2", [Endpoint("a", 1), Endpoint("b", 2)]),
        (" a:1 , ,a:1,", [Endpoint("a", 1)]),
        ("http://a:1/", [Endpoint("a", 1)]),
        ("https://a,HTTPS://b:3", [Endpoint("a", 2379, True), Endpoint("b", 3, True)]),
        ("[::1]:5,[fe80::1%eth0]", [Endpoint("::1", 5), Endpoint("fe80::1%eth0", 2379)]),
    ],
)
def test_endpoints_as_people_write_them(text: str, endpoints: list[Endpoint]) -> None:
    """Blanks and duplicates are dropped."""
    assert list(parse_endpoints(text)) == endpoints


@pytest.mark.parametrize(
    "text",
    ["", " ", ",", "a:99999", "a:0", "a:", "a:x", "a b", "http://a/path", "ftp://a", "http://", "a,https://b", "::1",
     "[::1", "[::1]x:1", "[a]:1", "a:1:2", "user@a:1", "a:-1", "a:١", "http://a?x", "ä:1"],
)  # fmt: skip
def test_malformed_endpoints_are_named(text: str) -> None:
    """One line names the endpoint before anything is sent."""
    with pytest.raises(BadInput, match="endpoint"):
        parse_endpoints(text)


@given(st.text())
def test_any_text_is_endpoints_or_bad_input(text: str) -> None:
    """The parser raises nothing else."""
    try:
        assert parse_endpoints(text)
    except BadInput:
        pass


def test_endpoint_shows_itself_as_it_is_written() -> None:
    """IPv6 addresses get brackets."""
    assert [str(e) for e in parse_endpoints("a,[::1]:5")] == ["a:2379", "[::1]:5"]


HOSTS = st.text("abz019.-_:[]%@/?#,\t ٣é", max_size=12)
PORTS = st.text("0123456789٣-x", max_size=6)
SCHEMES = st.sampled_from(["", "http://", "https://", "HTTP://", "ftp://", "://", "http:", "https:///"])


@given(ARGUMENT | st.lists(st.builds("{}{}:{}".format, SCHEMES, HOSTS, PORTS), max_size=4).map(",".join))
def test_endpoints(text: str) -> None:
    """Any text is bad input, or hosts and ports, all with TLS or none, that parse again as they are shown."""
    try:
        found = parse_endpoints(text)
    except BadInput as error:
        check_message(error)
        return
    assert found
    assert len(set(found)) == len(found)
    assert len({endpoint.tls for endpoint in found}) == 1
    for endpoint in found:
        assert 1 <= endpoint.port <= 65535
        assert endpoint.host
        assert endpoint.host.isascii()
        assert not set(endpoint.host) & set("/@?#[], \t\n")
    scheme = "https://" if found[0].tls else ""
    assert parse_endpoints(",".join(f"{scheme}{endpoint}" for endpoint in found)) == found
