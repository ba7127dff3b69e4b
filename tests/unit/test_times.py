"""Durations as text: parsed, written, and fed with anything."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.errors import BadInput
from conch.times import LONGEST_S, format_duration, parse_duration
from tests.support.fuzz import ARGUMENT, DIGITS, check_message


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("300ms", 0.3), ("10s", 10), ("1m30s", 90), ("2h", 7200), ("5", 5), ("0.5", 0.5), ("0", 0), ("1.5h", 5400),
        (".5s", 0.5), ("1h1m1s1ms", 3661.001), ("007", 7), ("1d", 86400), ("2w", 1209600), ("1d12h", 129600),
    ],
)  # fmt: skip
def test_durations_as_people_write_them(text: str, seconds: float) -> None:
    """Units, sequences of units, and plain seconds."""
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "-1",
        "-1s",
        "nan",
        "inf",
        "1e3",
        "1y",
        "s",
        "1 s",
        "1s ",
        "+1",
        "1s5",
        "٣",
        "1_000",
        "0x1",
        "9" * 400,
        "1.2.3",
        "infinity",
        "1s-1s",
    ],
)
def test_bad_durations_are_refused(text: str) -> None:
    """The message quotes the text."""
    with pytest.raises(BadInput, match="duration|too long"):
        parse_duration(text)


@given(st.text())
def test_any_text_is_a_duration_or_bad_input(text: str) -> None:
    """The parser raises nothing else."""
    try:
        assert parse_duration(text) >= 0
    except BadInput:
        pass


@given(st.integers(0, 10**9))
def test_format_of_a_duration_parses_back(milliseconds: int) -> None:
    """Exact to the millisecond."""
    assert parse_duration(format_duration(milliseconds / 1000)) == pytest.approx(milliseconds / 1000, abs=0.0006)


@given(ARGUMENT | DIGITS)
def test_durations(text: str) -> None:
    """Any text is a finite number of seconds that is not negative, or bad input."""
    try:
        seconds = parse_duration(text)
    except BadInput as error:
        check_message(error)
    else:
        assert 0 <= seconds <= LONGEST_S
        assert text.isascii()
        assert not set(text) & set(" -+\n_e")
