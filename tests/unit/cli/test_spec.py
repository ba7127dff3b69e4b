"""The kinds of values, the split at --, and groups."""

from typing import Any

import pytest

from conch.cli.elect import ELECT
from conch.cli.spec import PREFIX, TTL, Group, Kind, Option, choice, int_range, split_command
from conch.errors import BadInput


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ([], None)),
        (["a"], (["a"], None)),
        (["--"], ([], [])),
        (["a", "--", "b", "--", "c"], (["a"], ["b", "--", "c"])),
    ],
)
def test_command_line_is_split_at_the_first_dashes(
    words: list[str], expected: tuple[list[str], list[str] | None]
) -> None:
    """None says that there are none."""
    assert split_command(words) == expected


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (int_range(1, 9), "1", 1),
        (int_range(0, 2**63 - 1), str(2**63 - 1), 2**63 - 1),
        (choice("a", "b"), "b", "b"),
        (TTL, "1m", 60),
        (PREFIX, "/a/b/", "/a/b"),
    ],
)
def test_good_values(kind: Kind, text: str, value: Any) -> None:
    """They are parsed."""
    assert kind.parse(text) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *((int_range(1, 9), text) for text in ("", "0", "10", "-1", "+1", " 1", "1_0", "1.0", "²", "٣", "1" * 20)),
        (choice("a", "b"), "A"),
        (TTL, "1s"),
        (PREFIX, "/a/elect/b"),
    ],
)
def test_bad_values(kind: Kind, text: str) -> None:
    """They are refused."""
    with pytest.raises(BadInput, match="not"):
        kind.parse(text)


def test_keyword_of_an_option() -> None:
    """Its name, or else its last flag."""
    assert Option(("-n", "--dry-run"), "x").keyword == "dry_run"
    assert Option(("-n",), "x", name="limit").keyword == "limit"


def test_members_of_a_group() -> None:
    """A command is imported only when it is asked for."""
    inner = Group("inner", "", {})
    group = Group("outer", "", {"elect": "conch.cli.elect:ELECT", "inner": inner, "bad": "conch.no_such:X"})
    assert group.member("elect") is ELECT
    assert group.member("inner") is inner
    assert group.member("nosuch") is None
