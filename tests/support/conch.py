"""Runs the installed `conch` and watches it from outside: /proc, etcd, its log lines, real signals."""

import atexit
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from conch.etcd import grpc_descriptors

grpc_descriptors.install()

import etcd3  # noqa: E402
import psutil  # noqa: E402

from conch.etcd.connection import Connection  # noqa: E402
from conch.etcd.endpoints import parse_endpoints  # noqa: E402
from conch.etcd.open import open_store  # noqa: E402
from conch.etcd.store import Store  # noqa: E402

_INSTALLED = Path(sys.executable).parent / "conch"
# A folder with the source to test, instead of what is installed.
_SOURCE = os.environ.get("CONCH_TESTS_SOURCE")
_DEVMODE = os.environ.get("CONCH_TESTS_DEVMODE") == "1"


def conch_that_runs(first: str, folder: Path) -> str:
    """Copy the installed command into a folder so that its Python runs `first`; no variable can make it do so."""
    path = f"import sys; sys.path.insert(0, {_SOURCE!r})\n" if _SOURCE else ""
    copy = folder / "conch"
    rest = _INSTALLED.read_text().partition("\n")[2]
    copy.write_text(f"#!{sys.executable} -I{'Xdev' if _DEVMODE else ''}\n{path}{first}\n{rest}")
    copy.chmod(0o755)
    return str(copy)


def _command() -> str:
    """Return the installed command, or a copy that runs other source or Python's development mode."""
    if not _DEVMODE and not _SOURCE:
        return str(_INSTALLED)
    folder = tempfile.mkdtemp(prefix="conch-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return conch_that_runs("", Path(folder))


CONCH = _command()
MARK = "CONCH_TEST"
# The driver of this run.
TRANSPORT = os.environ.get("CONCH_TESTS_TRANSPORT", "auto")
# The variable with what contains the runs of this run's conchs (`--contain`).
CONTAIN = "CONCH_TESTS_CONTAIN"

_Result = TypeVar("_Result")


def new_store(endpoints: str, *, transport: str = TRANSPORT, **how: Any) -> Store:
    """Open a store on these endpoints with the driver of this run."""
    return open_store(Connection(parse_endpoints(endpoints), transport=transport, **how))


def wait_for(condition: Callable[[], _Result], what: str, timeout_s: float = 20.0) -> _Result:
    """Return the first truthy result of `condition`; fail after the deadline."""
    until = time.monotonic() + timeout_s
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > until:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(0.01)


def throughout(seconds: float, check: Callable[[], object]) -> None:
    """Call `check`, which asserts, again and again for as long as the fault itself lasts."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        check()
        time.sleep(0.02)


def as_other_user(*limits: str) -> list[str]:
    """Return the command that runs a program as a user without processes or a passwd entry, within `prlimit` limits.

    Root has no limit of processes. The user may still read and write all files.
    """
    caps = "-all,+dac_read_search,+dac_override"
    uid = 100_000 + os.getpid()
    ids = [f"--reuid={uid}", f"--regid={uid}", "--clear-groups", f"--inh-caps={caps}", f"--ambient-caps={caps}"]
    return [*(["setpriv", *ids] if os.geteuid() == 0 else []), *(["prlimit", *limits] if limits else [])]


def boottime() -> float:
    """Read the clock that conch's deadlines are on."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not run."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def children(pid: int) -> list[int]:
    """Return the living children of a process."""
    try:
        return [child.pid for child in psutil.Process(pid).children() if alive(child.pid)]
    except psutil.NoSuchProcess:
        return []


def marked(mark: str) -> list[int]:
    """Return the living processes with a test's mark in their environment: it started them, directly or not."""
    variable = f"{MARK}={mark}".encode()
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            # not with psutil, which takes three times as long: each test scans at least once
            variables = Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if variable in variables and alive(int(name)):
            found.append(int(name))
    return found


def log_lines(text: str) -> list[dict[str, str]]:
    """Parse the logfmt lines of conch's stderr and ignore all other lines."""
    found = []
    for line in text.splitlines():
        if line.startswith("ts="):
            try:
                found.append(dict(part.split("=", 1) for part in shlex.split(line)))
            except ValueError:
                continue
    return found


class Wrapper:
    """A conch in the background, its stdout and stderr in files."""

    def __init__(
        self, arguments: list[str], environment: dict[str, str], folder: Path, number: int, **how: Any
    ) -> None:
        self.out_path = folder / f"out{number}"
        self.err_path = folder / f"err{number}"
        how.setdefault("stdin", subprocess.DEVNULL)
        program = how.pop("program", [CONCH])  # the command line that runs conch
        with self.out_path.open("wb") as out, self.err_path.open("wb") as err:
            self.process = subprocess.Popen(
                [*program, *arguments], env=environment, stdout=out, stderr=err, cwd=folder, **how
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def out(self) -> str:
        return self.out_path.read_text("utf-8", "replace")

    @property
    def err(self) -> str:
        return self.err_path.read_text("utf-8", "replace")

    def events(self, *names: str) -> list[dict[str, str]]:
        """Return the log lines of these events."""
        return [line for line in log_lines(self.err) if line["event"] in names]

    def wait_event(self, name: str, count: int = 1, timeout_s: float = 20.0) -> dict[str, str]:
        """Wait for the count-th log line of an event and return it."""

        def find_line() -> dict[str, str] | None:
            found = self.events(name)
            return found[count - 1] if len(found) >= count else None

        try:
            line = wait_for(find_line, f"log line {name}", timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; the log is:\n{self.err}") from None
        assert line is not None
        return line

    def child(self, count: int = 1) -> int:
        """Return the pid of the count-th child that it started."""
        return int(self.wait_event("child-start", count)["pid"])

    def keeper(self) -> int:
        """Return the pid of the keeper: the oldest child of conch that has a session and still runs conch.

        conchd's runs have sessions too, and run conch until they exec, but the keeper is older than they are.
        """

        def find_keeper() -> int | None:
            try:
                conch = psutil.Process(self.pid)
                found = [p for p in conch.children() if p.cmdline() == conch.cmdline() and os.getsid(p.pid) == p.pid]
                return min(found, key=psutil.Process.create_time).pid if found else None
            except (ProcessLookupError, psutil.Error):
                return None  # a child ended during the scan

        pid = wait_for(find_keeper, "a keeper")
        assert pid is not None
        return pid

    def lease(self) -> int:
        """Return the lease that it holds."""
        return int(self.wait_event("acquired")["lease"], 16)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def signal_until_it_ends(self, number: int) -> None:
        """Send a signal again and again until conch ends."""

        def ended() -> bool:
            self.process.send_signal(number)
            return self.process.poll() is not None

        wait_for(ended, "the end of conch")

    def wait(self, timeout_s: float = 30.0) -> int:
        """Return the exit code, 128+n for a death by signal n."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"conch did not end; its log is:\n{self.err}") from None
        return code if code >= 0 else 128 - code

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Bench:
    """One test's conch, with a prefix and a mark of its own, on an etcd."""

    def __init__(self, endpoints: str, mark: str, folder: Path, kind: str = "elect") -> None:
        self.kind = kind
        self.endpoints = endpoints
        self.mark = mark
        self.folder = folder
        self.prefix = f"/t/{mark}"
        self.contain = os.environ.get(CONTAIN, "auto")
        self.wrappers: list[Wrapper] = []
        self.went_back = False  # whether this test set etcd's revision back
        self._etcd: Any = None

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("CONCH_", "ETCDCTL_", "GRPC_"))}
        return {
            **kept,
            MARK: self.mark,
            # etcdctl of the extra, where the system has none
            "PATH": f"{os.environ['PATH']}:{Path(sys.executable).parent}",
            "CONCH_ENDPOINTS": self.endpoints,
            "ETCDCTL_ENDPOINTS": self.endpoints,
            "CONCH_PREFIX": self.prefix,
            "CONCH_TRANSPORT": TRANSPORT,
            "CONCH_CONTAIN": self.contain,
        }

    def move(self, endpoints: str) -> None:
        """Use these endpoints from now on, for each conch that starts and for the test's own client."""
        self.close_client()
        self.endpoints = endpoints

    def close_client(self) -> None:
        """Close the test's own client; the next use opens another one."""
        if self._etcd is not None:
            self._etcd.close()
            self._etcd = None

    @property
    def etcd(self) -> Any:
        """An etcd3 client of the first endpoint."""
        if self._etcd is None:
            host, port = self.endpoints.split(",")[0].rsplit(":", 1)
            self._etcd = etcd3.client(host=host, port=int(port), timeout=5)
        return self._etcd

    def start(self, *arguments: str, env: dict[str, str] | None = None, **how: Any) -> Wrapper:
        """Start conch in the background."""
        wrapper = Wrapper(list(arguments), {**self.environment, **(env or {})}, self.folder, len(self.wrappers), **how)
        self.wrappers.append(wrapper)
        return wrapper

    def run(self, *arguments: str, env: dict[str, str] | None = None, **how: Any) -> "subprocess.CompletedProcess[str]":
        """Run conch and wait until it ends."""
        how.setdefault("timeout", 60)
        program = how.pop("program", [CONCH])  # the command line that runs conch
        if "input" not in how:
            how.setdefault("stdin", subprocess.DEVNULL)
        how.setdefault("stdout", subprocess.PIPE)
        how.setdefault("stderr", subprocess.PIPE)
        done = subprocess.run(
            [*program, *arguments],
            env={**self.environment, **(env or {})},
            text=True,
            cwd=self.folder,
            check=False,
            **how,
        )
        assert "Traceback" not in (done.stderr or ""), done.stderr
        if done.returncode < 0:  # killed by a signal: report it as a shell does
            done.returncode = 128 - done.returncode
        return done

    def holding(self, name: str) -> tuple[str, ...]:
        """Return the command line of this test's kind of hold, without flags."""
        return {"elect": ("elect", name), "sema": ("sema", name, "--max", "1")}[self.kind]

    def key(self, name: str, lease: int) -> str:
        """Return the key of a hold."""
        return {"elect": f"{self.prefix}/elect/{name}/{lease:x}", "sema": f"{self.prefix}/sema/{name}/1/{lease:x}"}[
            self.kind
        ]

    def hold(self, office: str, *flags: str, command: str = "exec sleep 1000", **how: Any) -> Wrapper:
        """Start a hold with a shell command and wait until its child runs."""
        wrapper = self.start(*self.holding(office), *flags, "--", "sh", "-c", command, **how)
        wrapper.child()
        return wrapper

    def queue(self, office: str, *flags: str, command: str = "exec sleep 1000", **how: Any) -> Wrapper:
        """Start a hold and wait until it is queued."""
        wrapper = self.start(*self.holding(office), *flags, "--", "sh", "-c", command, **how)
        wrapper.wait_event("queued")
        return wrapper

    def keys(self) -> list[str]:
        """Return all keys of this test."""
        return [meta.key.decode() for _, meta in self.etcd.get_prefix(self.prefix, keys_only=True)]

    def keys_below(self, path: str) -> list[str]:
        """Return the keys of this test below a path."""
        return [key for key in self.keys() if key.startswith(f"{self.prefix}/{path}")]

    def leases(self) -> list[int]:
        """Return the leases that the logs name and etcd still has."""
        named = {
            int(line["lease"], 16) for wrapper in self.wrappers for line in log_lines(wrapper.err) if line.get("lease")
        }
        return [lease for lease in named if self.etcd.get_lease_info(lease).TTL > 0]

    def file(self, name: str) -> Path:
        return self.folder / name

    def read(self, name: str, lines: int = 1, timeout_s: float = 20.0) -> str:
        """Wait until a child has written so many complete lines to a file, and return its text."""
        path = self.file(name)

        def complete_lines() -> str | None:
            try:
                text = path.read_text()
            except FileNotFoundError:
                return None
            return text if text.count("\n") >= lines else None

        text = wait_for(complete_lines, f"{lines} lines in {name}", timeout_s)
        assert text is not None
        return text

    def pids(self, name: str, count: int) -> list[int]:
        """Return the pids that children have written to a file, one per line."""
        return [int(line) for line in self.read(name, count).split()]

    def finish(self, *, leftovers_s: float = 20.0) -> None:
        """End every conch that still runs, then check that no process is left and no log has a defect."""
        self.close_client()
        for wrapper in self.wrappers:
            if wrapper.process.poll() is None:
                wrapper.process.send_signal(signal.SIGTERM)
                wrapper.process.send_signal(signal.SIGCONT)
        for wrapper in self.wrappers:
            try:
                wrapper.process.wait(20)
            except subprocess.TimeoutExpired:
                wrapper.kill()
        try:
            wait_for(lambda: not marked(self.mark), "no process left", leftovers_s)
        except AssertionError:
            left = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in marked(self.mark)}
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"processes left behind: {left}") from None
        for wrapper in self.wrappers:
            assert "Traceback" not in wrapper.err, wrapper.err
            assert self.went_back or "revision-went-back" not in wrapper.err, wrapper.err
            assert "Warning: " not in wrapper.err, wrapper.err  # from Python's development mode

    def check_etcd(self, *, leftovers_s: float = 20.0) -> None:
        """Check that no key and no lease of this test is left in etcd."""
        wait_for(lambda: not self.keys(), f"no key left below {self.prefix}", leftovers_s)
        wait_for(lambda: not self.leases(), "no lease left", leftovers_s)
        self.close_client()

    def jsons(self, text: str) -> Iterator[dict[str, Any]]:
        """The objects of JSON lines."""
        for line in text.splitlines():
            yield json.loads(line)
