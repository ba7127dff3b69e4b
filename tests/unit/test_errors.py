"""What the table of states allows, and what a system that is short of something says."""

import errno
from enum import Enum

import pytest

from conch.errors import IllegalTransition, checked, shortage


class Door(Enum):
    OPEN = "open"
    SHUT = "shut"
    WALLED = "walled up"


TABLE = {
    Door.OPEN: frozenset({Door.SHUT}),
    Door.SHUT: frozenset({Door.OPEN, Door.WALLED}),
    Door.WALLED: frozenset[Door](),
}


@pytest.mark.parametrize("state", Door)
@pytest.mark.parametrize("following", Door)
def test_only_what_the_table_allows_follows(state: Door, following: Door) -> None:
    """The error of anything else names what it is about and both states; staying is a transition like another."""
    if following in TABLE[state]:
        assert checked(TABLE, state, following) is following
    else:
        with pytest.raises(IllegalTransition, match=f"^Door cannot go from {state.value} to {following.value}$"):
            checked(TABLE, state, following)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "Cannot allocate memory"),
        (RuntimeError("can't start new thread"), "cannot start a thread"),
        (OSError(errno.EMFILE, "x"), "Too many open files"),
        (OSError(errno.ENOSPC, "x"), "No space left on device"),
        (OSError(errno.ENOENT, "x"), ""),
        (RuntimeError("anything else"), ""),
        (ValueError("can't start new thread"), ""),
        (None, ""),
    ],
)
def test_shortage_is_told_from_a_defect(error: BaseException | None, says: str) -> None:
    found = shortage(error)
    assert says in found
    assert bool(found) is bool(says)


def test_error_of_ssl_is_no_shortage() -> None:
    """Its numbers are its own: 24 of a TLS library is not EMFILE."""
    error = OSError(errno.EMFILE, "x")
    error.library = "SSL"  # type: ignore[attr-defined]
    assert shortage(error) == ""
