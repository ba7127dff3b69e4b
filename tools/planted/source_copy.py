"""A copy of the source in which bugs are planted and tests run."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from tools.planted.bug import Bug

ROOT = Path(__file__).parents[2]
_STOP_S = 30
# Python takes a compiled file for current by its source's second and size: each version of a file gets its own second.
_seconds = count(1_000_000_000)


class Copy:
    """The tracked files in a folder of their own, and the environment in which everything comes from there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
        # a test that is being written is not tracked yet
        tests = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*.py")}
        for name in {*listed.split("\0"), *tests} - {""}:
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, folder / name)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CONCH_", "ETCDCTL_"))}
        # PYTHONPATH is for pytest; the command ignores Python's variables
        self.environment = {**kept, "PYTHONPATH": str(folder), "CONCH_TESTS_SOURCE": str(folder)}

    def check_command(self) -> None:
        """Exit unless the tests' `conch` imports the copy: no bug would be in anything else."""
        inside = "import runpy; runpy.run_path({script!r}); import conch; print(conch.__file__)"
        script = (
            "import subprocess, sys; from tests.support.conch import CONCH; "
            f"subprocess.run([sys.executable, '-I', '-c', {inside!r}.format(script=CONCH)], check=True)"
        )
        command = [sys.executable, "-c", script]
        found = subprocess.check_output(command, cwd=self.folder, env=self.environment, text=True).strip()
        print(f"conch imports {found}", flush=True)
        if not Path(found).is_relative_to(self.folder):
            raise SystemExit(f"planted: the tests' conch does not run the copy in {self.folder}")

    def read(self, bug: Bug) -> str:
        """Return the source of the bug's file."""
        return (self.folder / "conch" / bug.file).read_text("utf-8")

    def write(self, bug: Bug, text: str) -> None:
        """Replace the source of the bug's file."""
        path, second = self.folder / "conch" / bug.file, next(_seconds)
        path.write_text(text, "utf-8")
        os.utime(path, (second, second))

    def test(self, tests: Sequence[str], *options: str, limit_s: float) -> tuple[int | None, str]:
        """Return pytest's exit code and output; the code is None if it did not end within `limit_s`.

        Without cgroups, unless a test wants one: where a run has one, it makes up for a bug in what else ends the run.
        """
        base = ["-q", "-p", "no:cacheprovider", "--tb=line", "--contain=tree"]
        command = [sys.executable, "-m", "pytest", *base, *options, *tests]
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
            output, _ = pytest.communicate(timeout=limit_s)
            return pytest.returncode, output
        except subprocess.TimeoutExpired:
            return None, _stop(pytest)


def _stop(pytest: "subprocess.Popen[str]") -> str:
    """Interrupt pytest, so that it stops its etcd, and return its output; kill it if it does not end."""
    pytest.send_signal(signal.SIGINT)
    try:
        output, _ = pytest.communicate(timeout=_STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(pytest.pid, signal.SIGKILL)
        output, _ = pytest.communicate()
    return output
