"""Instants on the command line of `conch cron`, fed with anything."""

from hypothesis import given
from hypothesis import strategies as st

from conch.cli.cron_next import INSTANT
from conch.errors import BadInput
from tests.support.fuzz import ARGUMENT, check_message


@given(ARGUMENT | st.text("0123456789-:.TZz+", max_size=30))
def test_instants(text: str) -> None:
    """Any text is seconds since the epoch, or bad input."""
    try:
        assert isinstance(INSTANT.parse(text), int)
    except BadInput as error:
        check_message(error)
