"""Addresses on conchd's command line, fed with anything."""

from hypothesis import given
from hypothesis import strategies as st

from conch.cli.conchd import ADDRESS
from conch.errors import BadInput
from tests.support.fuzz import ARGUMENT, check_message


@given(ARGUMENT | st.text("0123456789:[].a", max_size=20))
def test_status_addresses(text: str) -> None:
    """Any text is a host and a port, or bad input."""
    try:
        host, port = ADDRESS.parse(text)
    except BadInput as error:
        check_message(error)
    else:
        assert isinstance(host, str)
        assert 0 <= port <= 65535
