"""JSON as the standard library's module has it, which tells what is right."""

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.json_text import dumps, loads
from tests.support.fuzz import ANY, dumped, torn


def outcome(parse: Any, data: bytes) -> str:
    try:
        return repr(parse(data))
    except (ValueError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"


@given(ANY | st.tuples(ANY) | st.dictionaries(st.integers() | st.none(), ANY, max_size=2))
def test_any_value_is_written_as_by_json(value: Any) -> None:
    """To the letter."""
    assert dumps(value) == json.dumps(value, ensure_ascii=False)


@given(st.binary(max_size=60) | ANY.map(dumped) | ANY.map(dumped).flatmap(torn))
def test_any_bytes_are_read_as_by_json(data: bytes) -> None:
    """The same values, and the same errors."""
    assert outcome(loads, data) == outcome(json.loads, data)


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b" ", b" {} ", b"{}\n[]", b"\xef\xbb\xbf{}", "{}".encode("utf-16"), b"NaN", b"-Infinity"),
        *(
            b'"\xed\xa0\x80"',
            b"[" * 100_000,
            b"1" * 5000,
            b'{"a": 1, "a": 2}',
            b'"\\ud800"',
            b"'a'",
            b'"\x00"',
            b"\x0b1",
        ),
    ],
    ids=lambda data: repr(data[:12]),
)
def test_odd_bytes_are_read_as_by_json(data: bytes) -> None:
    """Which may be errors."""
    assert outcome(loads, data) == outcome(json.loads, data)


def test_without_the_scanner_json_does_it() -> None:
    """Another Python may not have it, or may want more of it."""
    script = "import sys; sys.modules['_json'] = None; from conch.json_text import loads; print(loads(b'[1, null]'))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[1, None]\n"
