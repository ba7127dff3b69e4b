"""Files of variables, by the rules of systemd's EnvironmentFile=."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.core.env_file import BadEnvironmentFile, parse_env, read_env_files


@pytest.mark.parametrize(
    ("text", "variables"),
    [
        ("", {}),
        ("A=1\nB=2\n", {"A": "1", "B": "2"}),
        ("A=1\nA=2", {"A": "2"}),
        ("# A=1\n; B=2\n  # C=3\n\nD=4", {"D": "4"}),
        ("A = 1 ", {"A": "1"}),
        ("A=\nB", {"A": ""}),
        ("A='x y'\nB=\"x  y\"", {"A": "x y", "B": "x  y"}),
        ("A='it''s'", {"A": "its"}),
        ("A=x'y'\"z\"", {"A": "xyz"}),
        ("A=one \\\ntwo\nB=3", {"A": "one two", "B": "3"}),
        ("A='one\ntwo'\nB=3", {"A": "one\ntwo", "B": "3"}),
        ('A="a \\" \\$ \\n b"', {"A": 'a " $ \\n b'}),
        ("A='\\n'", {"A": "\\n"}),
        ("A=a\\ b", {"A": "a b"}),
        ("A=$B ${B} `id`", {"A": "$B ${B} `id`"}),
        ("A=x # no comment", {"A": "x # no comment"}),
        ("1A=x\nA-B=y\n=z\nÄ=1\n_a1=w", {"_a1": "w"}),
        ("A=x=y", {"A": "x=y"}),
        ("export A=1", {}),
        ("A=\\\\\nB=2", {"A": "\\", "B": "2"}),
    ],
)
def test_rules(text: str, variables: dict[str, str]) -> None:
    assert parse_env(text) == variables


@given(st.text(st.sampled_from("A=\\'\" \n#x;$")))
def test_any_text_is_read(text: str) -> None:
    """Names are names, and nothing fails."""
    assert all(name.isidentifier() for name in parse_env(text))


def test_later_files_count_more(tmp_path: Path) -> None:
    """One that begins with `-` may be missing."""
    for name, text in (("a", "A=1\nB=1"), ("b", "B=2")):
        (tmp_path / name).write_text(text)
    paths = [str(tmp_path / "a"), f"-{tmp_path}/none", f"-{tmp_path}/b"]
    assert read_env_files(paths) == {"A": "1", "B": "2"}


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    """A FIFO waits for nobody; a file has a limit; a NUL is none of a variable."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_text("x" * (2 << 20))
    (tmp_path / "nul").write_bytes(b"A=\0")
    for name, why in (
        ("none", "No such file"),
        ("fifo", "regular"),
        ("large", "bytes"),
        ("nul", "NUL"),
        (".", "regular"),
    ):
        with pytest.raises(BadEnvironmentFile, match=f"cannot read {tmp_path}/{name}: .*{why}"):
            read_env_files([f"{tmp_path}/{name}"])
