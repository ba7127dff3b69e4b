"""The check that planted bugs still fit: it sees each way in which one can rot."""

from dataclasses import replace
from pathlib import Path

import pytest

from tools.planted.__main__ import BUGS, verdict
from tools.planted.bug import Bug, problems
from tools.planted.source_copy import ROOT

GOOD = Bug(
    "no wait", "door.py", "wait()", "pass", ("tests/test_door.py::test_it_waits", "tests/test_door.py::Test::test_too")
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tree with one module and its tests."""
    (tmp_path / "conch").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "conch/door.py").write_text("def enter():\n    wait()\n    go(1)  # go\n")
    (tmp_path / "tests/test_door.py").write_text("def test_it_waits(): ...\nclass Test:\n    def test_too(self): ...\n")
    return tmp_path


def test_bug_that_fits_has_no_problem(root: Path) -> None:
    assert list(problems(root, [GOOD])) == []


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (replace(GOOD, file="gate.py"), "conch/gate.py does not exist"),
        (replace(GOOD, old="sleep()"), "its text stands 0 times in conch/door.py: 'sleep()'"),
        (replace(GOOD, old="go"), "its text stands 2 times in conch/door.py: 'go'"),
        (replace(GOOD, new="if"), "conch/door.py is no Python with the bug in it: invalid syntax"),
        (replace(GOOD, old="# go", new="# went"), "it changes nothing in conch/door.py"),
        (replace(GOOD, tests=()), "no test is named"),
        (replace(GOOD, tests=("tests/test_gate.py::test_it",)), "tests/test_gate.py does not exist"),
        (replace(GOOD, tests=("tests/test_door.py::test_it",)), "tests/test_door.py has no test_it"),
    ],
)
def test_bug_that_does_not_fit_is_named(root: Path, bad: Bug, problem: str) -> None:
    assert list(problems(root, [bad])) == [f"no wait: {problem}"]


def test_two_bugs_of_one_name_are_named(root: Path) -> None:
    assert list(problems(root, [GOOD, GOOD])) == ["no wait: 2 bugs have this name"]


def test_all_bugs_fit() -> None:
    assert list(problems(ROOT, BUGS)) == []


@pytest.mark.parametrize(
    ("code", "output", "caught_by"),
    [
        (1, "FAILED tests/unit/test_door.py::test_it_waits - assert 0\n", "test_door.py::test_it_waits"),
        (1, "ERROR tests/unit/test_door.py::test_it_waits - OSError\n", "test_door.py::test_it_waits"),
        (2, "ERROR tests/unit/test_door.py - SyntaxError\n", None),
        (0, "1 passed", None),
        (None, "FAILED tests/unit/test_door.py::test_it_waits - assert 0\n", None),
    ],
)
def test_only_a_test_that_ran_and_failed_has_caught_a_bug(code: int | None, output: str, caught_by: str | None) -> None:
    assert verdict(code, output) == caught_by
