"""Starting a run: from the fork to the exec of its main process, which waits behind a gate in between."""

import errno
import marshal
import os

from conch.core import clock, linux
from conch.core.cgroup import Cgroup
from conch.core.child_environment import take_place, with_files
from conch.core.process_tree import UNCONTAINED, Process
from conch.core.procfs import RUN_ID_VARIABLE, Stat
from conch.errors import EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, ConchError, unexpected
from conch.plain_signal import signal
from conch.record import Record
from conch.static_typing import Callable, Collection, Mapping

LATE = "late"
# How much of a name the reason for a failed exec shows: it fits into a pipe, so writing it never blocks.
_NAME_CHARACTERS = 500
_ALL = frozenset(signal.valid_signals())

_found_user_descriptors: list[frozenset[int]] = []  # once they were looked for


def new_run_id() -> str:
    """Return a random id for one run."""
    return os.urandom(8).hex()


def find_command(name: str, path: str | None) -> str:
    """Return the file that a shell would run for this name; `FileNotFoundError` or `PermissionError` if none."""
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
    """The user whose rights a run gets, instead of ours."""

    name: str
    uid: int
    gid: int


class Spec(Record):
    """What to start: the command's file, its arguments (the name first), its environment.

    Without a file, the child itself searches for the command, in its own directory and with its own rights.
    `outputs` are the descriptors that become its stdout and stderr; by default it has ours. A command that stands
    `in_our_place` gets what a service manager meant for this process by its pid (sockets, a watchdog). One that is
    `apart` gets a session of its own, and so has no access to our terminal. `env_files` are read by the child, with its
    own rights; `job_environment` counts more than they do, `environment` less.
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
    env_files: tuple[str, ...] = ()
    job_environment: Mapping[str, str] | None = None


class Dispositions(Record):
    """How conch itself was started, for the child to inherit: signals to reset to their default, the signal mask.

    `descriptors` is the limit of open files, if conch has raised its own.
    """

    reset: tuple[int, ...]
    mask: frozenset[int]
    descriptors: tuple[int, int] | None = None


def start(
    spec: Spec,
    *,
    run_id: str,
    dispositions: Dispositions,
    exclude: Callable[[Stat], bool],
    cgroup: Cgroup | None = None,
    start_by: float | None = None,
    some_hidden: bool = False,
) -> Process:
    """Fork a run whose main process waits behind its gate in a group (or session) of its own; `OSError` if that fails.

    The main process dies with this process (PR_SET_PDEATHSIG). It is born in its cgroup, if it has one, or enters it
    before it waits at the gate; if it cannot, it ends if that is required, and else goes on without
    (`Process.uncontained`). Its last check before exec is whether `start_by` has passed (CLOCK_BOOTTIME;
    `Process.start_by` when the gate is opened).
    `some_hidden`: /proc does not show all processes of the run.
    """
    try:
        return _start(spec, run_id, dispositions, exclude, cgroup, start_by, some_hidden)
    except BaseException:
        if cgroup is not None:
            cgroup.remove()
        raise


def _start(
    spec: Spec,
    run_id: str,
    dispositions: Dispositions,
    exclude: Callable[[Stat], bool],
    cgroup: Cgroup | None,
    start_by: float | None,
    some_hidden: bool,
) -> Process:
    supervisor = os.getpid()
    environment = dict(spec.environment)
    _user_descriptors()  # found before the fork, for all runs
    outer_ids = environment.get(RUN_ID_VARIABLE)
    environment[RUN_ID_VARIABLE] = f"{outer_ids},{run_id}" if outer_ids else run_id
    gate_out, gate_in = os.pipe2(os.O_CLOEXEC)
    try:
        errors_out, errors_in = os.pipe2(os.O_CLOEXEC)
    except OSError:
        os.close(gate_out)
        os.close(gate_in)
        raise
    before = signal.pthread_sigmask(signal.SIG_SETMASK, _ALL)
    try:
        pid, unentered = _fork(spec, cgroup)
        if pid == 0:
            _become(spec, environment, supervisor, gate_out, errors_in, dispositions, unentered)
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
            os.setpgid(pid, pid)  # the child does the same; whichever is first, both can rely on it
    except OSError:
        pass  # it is dead already
    os.set_blocking(errors_out, False)
    return Process(pid, run_id, gate_in, errors_out, exclude, cgroup, start_by, some_hidden)


def _fork(spec: Spec, cgroup: Cgroup | None) -> tuple[int, Cgroup | None]:
    """Fork, into the cgroup if that can be; return the pid (0: the child's), and the cgroup that it is to enter."""
    if cgroup is not None and spec.user is None:
        try:
            return cgroup.fork(), None
        except OSError:
            pass  # the kernel or a filter of system calls does not have it, or entering will say the same
    return os.fork(), cgroup


def _become(
    spec: Spec,
    environment: dict[str, str],
    supervisor: int,
    gate: int,
    errors: int,
    dispositions: Dispositions,
    cgroup: Cgroup | None,
) -> None:
    """Turn the forked child into the command. Never returns, and runs no code of the parent's."""
    code = EXIT_NOT_EXECUTABLE
    try:
        _leave_parent(spec, supervisor, gate, errors, dispositions, cgroup)
        start_by, more = marshal.loads(_wait_at(gate))  # noqa: S302 - written by the process that forked us
        environment.update(more)
        if spec.in_our_place:
            take_place(environment, supervisor)
        if spec.no_input:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, dispositions.mask)
        if start_by is not None and clock.now() > start_by:
            os.write(errors, LATE.encode())
            os._exit(code)
        if spec.env_files:
            environment = with_files(environment, spec.env_files, spec.job_environment)
        if spec.directory is not None:
            _change_directory(spec.directory, errors)
        _exec(spec, environment)
    except OSError as error:
        code = EXIT_NOT_FOUND if error.errno in (errno.ENOENT, errno.ENOTDIR) else EXIT_NOT_EXECUTABLE
        _explain(errors, f"cannot run {_short(spec.arguments[0])}: {os.strerror(error.errno or 0)}")
    except ValueError as error:  # how exec reports a NUL in an argument
        _explain(errors, f"cannot run {_short(spec.arguments[0])!r}: {error}")
    except ConchError as error:
        _explain(errors, str(error))
    except BaseException as error:
        code = unexpected(error)
    finally:
        os._exit(code)


def _leave_parent(
    spec: Spec, supervisor: int, gate: int, errors: int, dispositions: Dispositions, cgroup: Cgroup | None
) -> None:
    """Give the child a group, outputs, signals, descriptors and rights of its own; bind its life to the parent's."""
    if spec.apart:
        os.setsid()
    else:
        os.setpgid(0, 0)
    linux.die_with_parent(signal.SIGKILL)
    if os.getppid() != supervisor:
        os._exit(EXIT_NOT_EXECUTABLE)  # the parent died before the kernel was asked to kill us with it
    if cgroup is not None:
        # with the parent's rights, and before anything else: whoever kills it finds all
        _enter(cgroup, errors)
    if spec.outputs is not None:
        os.dup2(spec.outputs[0], 1)
        os.dup2(spec.outputs[1], 2)
    signal.set_wakeup_fd(-1)
    for number in _ALL - {signal.SIGKILL, signal.SIGSTOP}:
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    for ignored in dispositions.reset:
        signal.signal(ignored, signal.SIG_DFL)
    # a command that runs as another user gets none of our descriptors
    _close_inherited({gate, errors} if spec.user is not None else {gate, errors, *_user_descriptors()})
    if spec.user is not None:
        _change_user(spec.user, supervisor)
    if dispositions.descriptors is not None:
        import resource  # conchd has it loaded

        resource.setrlimit(resource.RLIMIT_NOFILE, dispositions.descriptors)


def _enter(cgroup: Cgroup, errors: int) -> None:
    try:
        cgroup.enter()
    except OSError as error:
        reason = f"{UNCONTAINED}: {os.strerror(error.errno or 0)}"
        _explain(errors, reason if cgroup.required else f"{reason}\n")
        if cgroup.required:
            os._exit(EXIT_NOT_EXECUTABLE)


def _close_inherited(kept: Collection[int]) -> None:
    """Close the parent's descriptors but these.

    The parent's end of the gate, and of all its other pipes and sockets, must not stay open here: whoever reads the
    other end recognises the parent's death by the end of file. conchd has thousands, so the kernel closes them.
    """
    first = 3
    try:
        for fd in sorted(kept):
            linux.close_range(first, fd - 1)
            first = fd + 1
        linux.close_range(first, linux.LAST_DESCRIPTOR)
    except OSError:  # before Linux 5.9, or a filter of system calls
        for fd in {int(name) for name in os.listdir("/proc/self/fd")} - {0, 1, 2, *kept}:
            try:
                os.close(fd)
            except OSError:
                pass  # the listing's own descriptor


def _user_descriptors() -> frozenset[int]:
    """Return the descriptors that the user passed to conch for its command: those that are inheritable.

    Found once: conch's own never are. `OSError` if they cannot be listed now.
    """
    if not _found_user_descriptors:
        found = set()
        for fd in map(int, os.listdir("/proc/self/fd")):
            try:
                if fd > 2 and os.get_inheritable(fd):
                    found.add(fd)
            except OSError:
                pass  # the listing's own descriptor
        _found_user_descriptors.append(frozenset(found))
    return _found_user_descriptors[0]


def _exec(spec: Spec, environment: dict[str, str]) -> None:
    file = spec.file or find_command(spec.arguments[0], environment.get("PATH"))
    try:
        os.execve(file, spec.arguments, environment)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        # a script whose first line names no interpreter: run it as shells and execvp do
        os.execve("/bin/sh", ["/bin/sh", file, *spec.arguments[1:]], environment)


def _wait_at(gate: int) -> bytes:
    """Wait for the gate to open and return what arrives through it; end this process if the parent is gone instead."""
    data = b""
    while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4]):
        more = os.read(gate, 65536)
        if not more:
            os._exit(EXIT_NOT_EXECUTABLE)
        data += more
    return data[4:]


def _change_user(user: User, supervisor: int) -> None:
    """Exchange our rights for the user's; the kernel clears the parent-death signal when the user changes."""
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
    """Report why the command was not run."""
    os.write(errors, text.encode("utf-8", "backslashreplace"))
