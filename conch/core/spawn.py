"""Starting a run: its main process behind a gate, then its whole tree as its ancestor sees it."""

import errno
import marshal
import os
import signal
from _thread import get_native_id
from collections.abc import Callable, Collection, Mapping

from conch.core import clock, linux
from conch.core.procfs import RUN_ID_VARIABLE, Stat, descendants, processes, signal_exactly
from conch.errors import EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, unexpected
from conch.record import Record

LATE = "late"
# Of a name in the reason why it was not run: a pipe holds more, so that nobody waits for it to be read.
_NAME_CHARACTERS = 500
# How often to look again at a tree of which only zombies were seen.
_LOOKS = 50
_ALL = frozenset(signal.valid_signals())
# Children of every kind, and of the calling thread only; Python names neither.
_WALL, _WNOTHREAD = 0x40000000, 0x20000000


def new_run_id() -> str:
    """A random id for one run."""
    return os.urandom(8).hex()


def find_command(name: str, path: str | None) -> str:
    """The file that a shell would run for this name; `FileNotFoundError` or `PermissionError` if there is none."""
    if not name:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    candidates = (
        [name]
        if "/" in name
        else [os.path.join(folder or ".", name) for folder in (os.defpath if path is None else path).split(os.pathsep)]
    )
    denied = False
    for candidate in candidates:
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
        denied = denied or os.path.isfile(candidate) or ("/" in name and os.path.exists(candidate))
    if denied:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)


class User(Record):
    """Whose rights a run gets, instead of ours."""

    name: str
    uid: int
    gid: int


class Spec(Record):
    """What to start: the command's file, its arguments (the name first), its environment.

    Without a file the command is looked for by the child itself, in its own directory and with its own rights.
    `outputs` are the descriptors that become its stdout and stderr; by default it has ours. What a service manager
    meant for this process by its pid (sockets, a watchdog) is meant for one that stands `in_our_place`. One that is
    `apart` gets a session of its own, and with it no terminal of ours.
    """

    file: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    no_input: bool = False
    directory: str | None = None
    outputs: tuple[int, int] | None = None
    user: User | None = None
    in_our_place: bool = False
    apart: bool = False


class Dispositions(Record):
    """How conch itself was started, to be handed on: the signals that it must give back their default, its mask.

    `descriptors` is its limit of them, if conch has raised its own.
    """

    reset: tuple[signal.Signals, ...]
    mask: frozenset[int]
    descriptors: tuple[int, int] | None = None


class Process:
    """A started run: the main process behind its gate, then its whole tree, seen from its ancestor.

    The main process stays unreaped, its pid and group therefore nobody else's, until `reap`.
    """

    def __init__(
        self,
        pid: int,
        run_id: str,
        gate: int,
        errors: int,
        exclude: Callable[[Stat], bool],
        start_by: float | None,
        some_hidden: bool,
    ) -> None:
        """`start_by`, and what `environment` adds to the one it was started with, count when the gate is opened."""
        self.start_by = start_by
        self.environment: dict[str, str] = {}
        self.pid = pid
        self.run_id = run_id
        self._gate = gate
        self._errors = errors
        self._exclude = exclude
        self._some_hidden = some_hidden
        self._refused: dict[int, bool] = {}  # what we may not kill, and whether that was told

    def open_gate(self) -> None:
        """Let it exec. Until then nothing of the command has run."""
        told = marshal.dumps((self.start_by, self.environment))
        ahead = len(told).to_bytes(4) + told
        try:
            while ahead:
                ahead = ahead[os.write(self._gate, ahead) :]
        except BrokenPipeError:
            pass  # it is dead already
        os.close(self._gate)

    def untouched(self) -> bool:
        """Whether it lives behind its gate as it was forked: no signal waits there to meet the command instead."""
        try:
            with open(f"/proc/{self.pid}/status", "rb", buffering=0) as file:
                lines = file.read(8192).split(b"\n")
        except OSError:
            return False
        pending = [line.split()[1] for line in lines if line.startswith((b"SigPnd:", b"ShdPnd:"))]
        return len(pending) == 2 and not any(int(mask, 16) for mask in pending) and self.exit_code() is None

    def discard(self) -> None:
        """Give it up behind its gate: nothing of the command will ever run."""
        os.close(self._gate)
        os.kill(self.pid, signal.SIGKILL)
        self.reap()

    def exit_code(self) -> int | None:
        """The main process's exit code as a shell shows it (128+n for signal n), None while it lives."""
        result = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if result is None:
            return None
        if result.si_code == os.CLD_EXITED:
            return result.si_status
        return 128 + result.si_status

    def died_of(self) -> int | None:
        """The signal that the main process died of, if it did."""
        result = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return None if result is None or result.si_code == os.CLD_EXITED else result.si_status

    def stopped_by(self) -> int | None:
        """The signal that stopped the main process since this was last asked, if one did."""
        try:
            result = os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG)
        except ChildProcessError:
            return None  # it has ended: asked for stops alone, the kernel knows no such child any more
        return None if result is None else result.si_status

    def exec_error(self) -> str | None:
        """Why the command was not run, once the main process has ended; None if it was."""
        text = os.read(self._errors, 4096).decode("utf-8", "replace")
        return text or None

    def below(self, among: Mapping[int, Stat]) -> list[Stat]:
        """What of the tree is among these processes, besides the main one."""
        return [entry for entry in descendants(os.getpid(), among, self._exclude) if entry.pid != self.pid]

    def empty(self) -> bool:
        """Whether nothing of the tree lives; its main process may still wait to be reaped."""
        if self.exit_code() is None:
            return False
        try:
            # what /proc hides from us, the kernel's own answer counts all the same
            return nothing_lives() or (not self._some_hidden and self._look_for_emptiness())
        except OSError:
            return False  # we cannot look now

    def _look_for_emptiness(self) -> bool:
        """Look at all processes, where others of ours live that are none of the tree.

        What lived when a look began is found alive, or as a zombie that only we can reap: so a look that found
        neither proves it, however fast they fork and end.
        """
        for _ in range(_LOOKS):
            found = self.below(processes())
            if not found:
                return True
            if not all(entry.dead for entry in found):
                return False
            for entry in found:
                try:
                    os.waitpid(entry.pid, os.WNOHANG)
                except ChildProcessError:
                    pass  # another's child
        return False

    def signal_group(self, number: int) -> None:
        """Signal the process group."""
        try:
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                os.kill(self.pid, number)  # just forked: it has not made its session yet, and is all there is of it
        except (ProcessLookupError, PermissionError):
            pass  # all of it has ended, or nothing of it is ours

    def signal_tree(self, number: int) -> None:
        """Signal the group, and every descendant that left it: by its new group, where all of that is ours."""
        self.signal_group(number)
        try:
            self.signal_escaped(number, processes())
        except OSError:
            return  # we cannot look now; a kill is repeated

    def signal_escaped(self, number: int, everyone: Mapping[int, Stat]) -> None:
        """Signal the descendants that left the group."""
        ours = [entry for entry in descendants(os.getpid(), everyone, self._exclude) if entry.group != self.pid]
        if number == signal.SIGKILL:
            self._note_refusals(everyone)
        inside = {entry.pid for entry in ours}
        foreign = {entry.group for entry in everyone.values() if entry.pid not in inside}
        for group in {entry.group for entry in ours} - foreign:
            try:
                os.killpg(group, number)  # reaches also what was forked since the look
            except (ProcessLookupError, PermissionError):
                pass  # it has ended, or nothing of it is ours
        for entry in ours:
            if entry.group in foreign and not entry.dead:
                signal_exactly(entry, number)

    def _note_refusals(self, everyone: Mapping[int, Stat]) -> None:
        for entry in descendants(os.getpid(), everyone, self._exclude):
            try:
                os.kill(entry.pid, 0)
            except ProcessLookupError:
                pass  # gone meanwhile
            except PermissionError:
                self._refused.setdefault(entry.pid, False)

    def refused(self) -> list[int]:
        """What belongs to the tree and may not be killed by us, as the latest SIGKILL showed; each is told once."""
        new = [pid for pid, told in self._refused.items() if not told]
        self._refused.update(dict.fromkeys(new, True))
        return new

    def reap(self) -> None:
        """Let the main process go; its pid may be another's from now on."""
        os.waitpid(self.pid, 0)
        os.close(self._errors)


def nothing_lives() -> bool:
    """Whether no child of the main thread lives: nothing that it forked, and nothing that was orphaned below.

    True is a proof: what is orphaned below a subreaper becomes a child of its first thread. One system call, true at
    one moment, however many processes there are. False is none: what lives may be another's.
    """
    if get_native_id() != os.getpid():
        return False
    try:
        # asked for stops alone, the kernel finds nothing to wait for in the dead (its exit.c, wait_consider_child)
        os.waitid(os.P_ALL, 0, os.WSTOPPED | os.WNOHANG | os.WNOWAIT | _WALL | _WNOTHREAD)
    except ChildProcessError:
        return True
    return False


def reap_orphans(kept: Collection[int | None]) -> None:
    """Reap what was orphaned below us and has ended; those kept have their own moments."""
    try:
        while True:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None or ended.si_pid in kept:
                return  # behind one of these others may wait; as zombies they do no harm
            os.waitpid(ended.si_pid, os.WNOHANG)
    except ChildProcessError:
        pass  # no children at all


def start(
    spec: Spec,
    *,
    run_id: str,
    dispositions: Dispositions,
    exclude: Callable[[Stat], bool],
    start_by: float | None = None,
    some_hidden: bool = False,
) -> Process:
    """Fork a run whose main process waits behind its gate in a group (or session) of its own; `OSError` if that fails.

    It dies with this process (PR_SET_PDEATHSIG), and looks last before exec whether it is still before
    `start_by` (CLOCK_BOOTTIME; what the process says of it when the gate is opened). `some_hidden`: /proc does not show
    all of its processes.
    """
    supervisor = os.getpid()
    environment = dict(spec.environment)
    above = environment.get(RUN_ID_VARIABLE)
    environment[RUN_ID_VARIABLE] = f"{above},{run_id}" if above else run_id
    gate_out, gate_in = os.pipe2(os.O_CLOEXEC)
    try:
        errors_out, errors_in = os.pipe2(os.O_CLOEXEC)
    except OSError:
        os.close(gate_out)
        os.close(gate_in)
        raise
    before = signal.pthread_sigmask(signal.SIG_SETMASK, _ALL)
    try:
        pid = os.fork()
        if pid == 0:
            _become(spec, environment, supervisor, gate_out, errors_in, dispositions)
    except OSError:
        for fd in (gate_in, errors_out):
            os.close(fd)
        raise
    finally:
        os.close(gate_out)
        os.close(errors_in)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        if not spec.apart:  # the leader of a group can make no session
            os.setpgid(pid, pid)  # the child does the same; whoever comes first, both can rely on it
    except OSError:
        pass  # it is dead already
    os.set_blocking(errors_out, False)
    return Process(pid, run_id, gate_in, errors_out, exclude, start_by, some_hidden)


def _become(
    spec: Spec,
    environment: dict[str, str],
    supervisor: int,
    gate: int,
    errors: int,
    dispositions: Dispositions,
) -> None:
    """Turn the forked child into the command. Never returns, runs no code of the parent's."""
    code = EXIT_NOT_EXECUTABLE
    try:
        if spec.apart:
            os.setsid()
        else:
            os.setpgid(0, 0)
        linux.die_with_parent(signal.SIGKILL)
        if os.getppid() != supervisor:
            os._exit(code)  # it died before the kernel was asked to tell us
        if spec.outputs is not None:
            os.dup2(spec.outputs[0], 1)
            os.dup2(spec.outputs[1], 2)
        signal.set_wakeup_fd(-1)
        for number in _ALL - {signal.SIGKILL, signal.SIGSTOP}:
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        for number in dispositions.reset:
            signal.signal(number, signal.SIG_DFL)
        # The parent's end of the gate, and of everything else of the parent's, must not stay open here:
        # its death is told by the end of file. Descriptors of the user's own are inheritable and stay.
        for name in os.listdir("/proc/self/fd"):
            fd = int(name)
            if fd > 2 and fd not in (gate, errors):
                try:
                    if spec.user is not None or not os.get_inheritable(fd):
                        os.close(fd)  # another user gets none of ours
                except OSError:
                    pass  # the listing's own descriptor
        if spec.user is not None:
            _change_user(spec.user, supervisor)
        if dispositions.descriptors is not None:
            import resource  # conchd has it loaded

            resource.setrlimit(resource.RLIMIT_NOFILE, dispositions.descriptors)
        start_by, more = marshal.loads(_told(gate))  # noqa: S302 - of the process that we were a moment ago
        environment.update(more)
        if spec.in_our_place:
            _take_place(environment, supervisor)
        if spec.no_input:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, dispositions.mask)
        if start_by is not None and clock.now() > start_by:
            os.write(errors, LATE.encode())
            os._exit(code)
        if spec.directory is not None:
            _change_directory(spec.directory, errors)
        file = spec.file or find_command(spec.arguments[0], environment.get("PATH"))
        try:
            os.execve(file, spec.arguments, environment)
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            # a script without a first line that names its interpreter, as shells and execvp run it
            os.execve("/bin/sh", ["/bin/sh", file, *spec.arguments[1:]], environment)
    except OSError as error:
        code = EXIT_NOT_FOUND if error.errno in (errno.ENOENT, errno.ENOTDIR) else EXIT_NOT_EXECUTABLE
        _explain(errors, f"cannot run {_short(spec.arguments[0])}: {os.strerror(error.errno or 0)}")
    except ValueError as error:  # exec's own word for a NUL in an argument
        _explain(errors, f"cannot run {_short(spec.arguments[0])!r}: {error}")
    except BaseException as error:
        code = unexpected(error)
    finally:
        os._exit(code)


def _told(gate: int) -> bytes:
    """What is said as the gate is opened; ends this process if the other side is gone instead."""
    told = b""
    while len(told) < 4 or len(told) < 4 + int.from_bytes(told[:4]):
        more = os.read(gate, 65536)
        if not more:
            os._exit(EXIT_NOT_EXECUTABLE)
        told += more
    return told[4:]


def _take_place(environment: dict[str, str], supervisor: int) -> None:
    """Have systemd's variables that name the supervisor name this process (sd_listen_fds, sd_watchdog_enabled)."""
    for name in ("LISTEN_PID", "WATCHDOG_PID"):
        if environment.get(name) == str(supervisor):
            environment[name] = str(os.getpid())
            if name == "LISTEN_PID":
                environment.pop("LISTEN_PIDFDID", None)  # of the supervisor, too


def _change_user(user: User, supervisor: int) -> None:
    """Give up our rights for the user's; the kernel forgets the parent-death signal with that."""
    os.setgid(user.gid)
    os.initgroups(user.name, user.gid)
    os.setuid(user.uid)
    linux.die_with_parent(signal.SIGKILL)
    if os.getppid() != supervisor:
        os._exit(EXIT_NOT_EXECUTABLE)


def _change_directory(path: str, errors: int) -> None:
    try:
        os.chdir(path)
    except OSError as error:
        _explain(errors, f"cannot change to {_short(path)}: {os.strerror(error.errno or 0)}")
        os._exit(EXIT_NOT_EXECUTABLE)


def _short(name: str) -> str:
    return name if len(name) <= _NAME_CHARACTERS else name[:_NAME_CHARACTERS] + "…"


def _explain(errors: int, text: str) -> None:
    """Say why the command was not run."""
    os.write(errors, text.encode("utf-8", "backslashreplace"))
