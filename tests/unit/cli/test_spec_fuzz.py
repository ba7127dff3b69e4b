"""TTLs and prefixes on the command line, fed with anything."""

from hypothesis import given
from hypothesis import strategies as st

from conch.cli.spec import PREFIX, TTL
from conch.errors import BadInput
from tests.support.fuzz import ARGUMENT, DIGITS, check_message


@given(ARGUMENT | DIGITS)
def test_ttls(text: str) -> None:
    """A TTL is an integer of at least two seconds, or bad input."""
    try:
        seconds = TTL.parse(text)
    except BadInput as error:
        check_message(error)
    else:
        assert isinstance(seconds, int)
        assert seconds >= 2


@given(ARGUMENT | st.text("/aé \n", max_size=10))
def test_prefixes(text: str) -> None:
    """A prefix is printable ASCII that begins with a slash and does not end with one."""
    try:
        prefix = PREFIX.parse(text)
    except BadInput as error:
        check_message(error)
    else:
        assert prefix.startswith("/")
        assert not prefix.endswith("/")
        assert prefix.isascii()
        assert prefix.isprintable()
