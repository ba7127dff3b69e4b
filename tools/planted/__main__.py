"""Plant bugs one at a time in a copy of the source and see a test fail for each: `python -m tools.planted [NAME…]`.

Each bug takes out one mechanism that a guarantee rests on; only the tests that should catch it are run. It fails if a
bug was missed, if a text to be replaced is not in the source (once), or if the tests fail without any bug.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from tools.planted import core, cron, etcd, keeper
from tools.planted.bug import Bug

_ROOT = Path(__file__).parents[2]
_LIMIT_S = 120
# Python takes a compiled file for current by its source's second and size: each version of a file gets its own second.
_seconds = count(1_000_000_000)


BUGS = (*core.BUGS, *keeper.BUGS, *etcd.BUGS, *cron.BUGS)


class Copy:
    """The tracked files in a folder of their own, and the environment in which everything comes from there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=_ROOT, text=True)
        # a test that is being written is not tracked yet
        tests = {str(path.relative_to(_ROOT)) for path in (_ROOT / "tests").rglob("*.py")}
        for name in {*listed.split("\0"), *tests} - {""}:
            if (_ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(_ROOT / name, folder / name)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CONCH_", "ETCDCTL_"))}
        # for pytest, and for the command, which heeds no variable of Python
        self.environment = {**kept, "PYTHONPATH": str(folder), "CONCH_TESTS_SOURCE": str(folder)}

    def check_command(self) -> None:
        """What the tests' `conch` imports must be the copy, or no bug would be in it."""
        inside = "import runpy; runpy.run_path({script!r}); import conch; print(conch.__file__)"
        look = (
            "import subprocess, sys; from tests.support.conch import CONCH; "
            f"subprocess.run([sys.executable, '-I', '-c', {inside!r}.format(script=CONCH)], check=True)"
        )
        command = [sys.executable, "-c", look]
        found = subprocess.check_output(command, cwd=self.folder, env=self.environment, text=True).strip()
        print(f"conch imports {found}", flush=True)
        if not Path(found).is_relative_to(self.folder):
            raise SystemExit(f"planted: the tests' conch does not run the copy in {self.folder}")

    def read(self, bug: Bug) -> str:
        return (self.folder / "conch" / bug.file).read_text("utf-8")

    def write(self, bug: Bug, text: str) -> None:
        path, second = self.folder / "conch" / bug.file, next(_seconds)
        path.write_text(text, "utf-8")
        os.utime(path, (second, second))

    def test(self, tests: Sequence[str], *options: str, limit_s: float = _LIMIT_S) -> tuple[int | None, str]:
        """Pytest's exit code and what it said; None if it did not end in time."""
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line", *options, *tests]
        pytest = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            said, _ = pytest.communicate(timeout=limit_s)
            return pytest.returncode, said
        except subprocess.TimeoutExpired:
            pytest.send_signal(signal.SIGINT)  # it stops its etcd then
            try:
                said, _ = pytest.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(pytest.pid, signal.SIGKILL)
                said, _ = pytest.communicate()
            return None, said


def verdict(code: int | None, said: str) -> str | None:
    """Which test caught it; None if none did, or if it is not clear: an import that fails says nothing of a test."""
    found = re.search(r"^(?:FAILED|ERROR) \S*?(\w+\.py::\w+)", said, re.MULTILINE)
    return found[1] if code == 1 and found else None


def main(names: Sequence[str]) -> int:
    """Plant those named, or all; 0 if each was caught."""
    unknown = set(names) - {bug.name for bug in BUGS}
    if unknown:
        print(*(f"planted: no bug {name!r}" for name in sorted(unknown)), *(bug.name for bug in BUGS), sep="\n")
        return 1
    chosen = [bug for bug in BUGS if not names or bug.name in names]
    rows: list[tuple[str, str, str]] = []
    good = True
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        copy = Copy(Path(folder))
        copy.check_command()
        code, said = copy.test(sorted({test for bug in chosen for test in bug.tests}), limit_s=_LIMIT_S * len(chosen))
        if code != 0:
            print(said, "planted: these tests fail without any bug", sep="\n")
            return 1
        for bug in chosen:
            source = copy.read(bug)
            if source.count(bug.old) != 1:
                where, caught = f"conch/{bug.file}", f"NOT PLANTED: its text is there {source.count(bug.old)} times"
                good = False
            else:
                where = f"conch/{bug.file}:{source[: source.index(bug.old)].count(chr(10)) + 1}"
                copy.write(bug, source.replace(bug.old, bug.new))
                code, said = copy.test(bug.tests, "-x")
                copy.write(bug, source)
                test = verdict(code, said)
                caught = f"`{test}`" if test else f"MISSED (pytest: {'no end' if code is None else code})"
                if test is None:
                    good = False
                    print(said)
            rows.append((bug.name, f"`{where}`", caught))
            print(*rows[-1], sep=" | ", flush=True)
    print("\n| bug | where | caught by |\n| --- | --- | --- |")
    for row in rows:
        print("|", " | ".join(row), "|")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
