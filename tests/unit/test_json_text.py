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
        return ascii(parse(data))
    except (ValueError, RecursionError) as error:
        return ascii(f"{type(error).__name__}: {error}")


@given(ANY | st.tuples(ANY) | st.dictionaries(st.integers() | st.none(), ANY, max_size=2))
def test_any_value_is_written_as_by_json(value: Any) -> None:
    """To the letter."""
    assert dumps(value) == json.dumps(value, ensure_ascii=False)


@given(st.binary(max_size=60) | ANY.map(dumped) | ANY.map(dumped).flatmap(torn))
def test_any_bytes_are_read_as_by_json(data: bytes) -> None:
    """The same values, and the same errors."""
    assert outcome(loads, data) == outcome(json.loads, data)


ODD = [
    *(b"", b" ", b" {} ", b"{}\n[]", b"\xef\xbb\xbf{}", "{}".encode("utf-16"), b"NaN", b"-Infinity", b"'a'", b"\x0b1"),
    *(b'"\xed\xa0\x80"', b"1" * 5000, b'{"a": 1, "a": 2}', b'"\\ud800"', b'"\x00"', b'"\\', b'"\\x"', b'"\\u12'),
    *(
        b"{",
        b"{ ",
        b"[",
        b"[1,",
        b"[1 2]",
        b'{"a"',
        b'{"a":',
        b'{"a": 1',
        b'{"a": 1,',
        b'{"a" 1}',
        b'{a": 1}',
        b'"',
        b"-",
    ),
    *(b"nul", b"junk", b"{} {}", b"\xff", b"[" * 100_000, b'{"a":' * 100_000),
]


@pytest.mark.parametrize("data", ODD, ids=lambda data: repr(data[:12]))
def test_odd_bytes_are_read_as_by_json(data: bytes) -> None:
    """Which may be errors."""
    assert outcome(loads, data) == outcome(json.loads, data)


def test_errors_are_the_same_where_json_was_not_loaded() -> None:
    """The scanner itself cannot raise them then."""
    script = f"""
import sys
from conch.json_text import loads
for data in {ODD[:-2]}:
    for name in [name for name in sys.modules if name.partition(".")[0] == "json"]:
        del sys.modules[name]
    try:
        print(ascii(loads(data)))
    except (ValueError, RecursionError) as error:
        print(ascii(f"{{type(error).__name__}}: {{error}}"))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [outcome(json.loads, data) for data in ODD[:-2]]


def test_without_the_scanner_json_does_it() -> None:
    """Another Python may not have it, or may want more of it."""
    script = "import sys; sys.modules['_json'] = None; from conch.json_text import loads; print(loads(b'[1, null]'))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[1, None]\n"
