"""Starts and stops members of etcd on loopback, each by its own pid."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from conch.dev.data_folder import DataFolder
from conch.dev.member import EtcdFailed, Member, Tls, find_etcd, free_ports
from conch.etcd.store import Range, StoreError

_READY_S = 30.0
_STOP_S = 5.0
_PORT_TRIES = 5
_PAUSE_S = 0.02


class Cluster:
    """One, three or five members on free ports, in a temporary folder or in one that lasts.

    A guardian process watches over them: however this process ends, also by SIGKILL, they are stopped, and a temporary
    folder is removed.
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
        """Prepare a cluster; `check` is called while waiting for its start, and may raise to end that."""
        self._tls = tls
        self._binary = binary or find_etcd()
        self._arguments = tuple(arguments)
        self._check = check
        self._count = members
        self._lasting = folder
        self._folder: DataFolder | None = None  # while started
        self._guardian: subprocess.Popen[bytes] | None = None
        self._token = secrets.token_hex(4)
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

    # -- starting -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start all members and return when each answers a linearizable read; raises `EtcdFailed`."""
        try:
            folder = self._folder = self._open_folder()
            self._start_guardian(folder)
            for attempt in range(_PORT_TRIES):
                self._create_members(folder)
                for member in self.members:
                    self._start_member(member, new_log=True)
                try:
                    self.wait_ready()
                    folder.remember_ports(self.members)
                    return
                except EtcdFailed as error:
                    # another process may have taken one of the free ports before etcd did: try others
                    port_taken = "address already in use" in str(error)
                    if not port_taken or folder.ports is not None or attempt == _PORT_TRIES - 1:
                        raise
                    self._stop_members()
        except BaseException:
            self.stop()
            raise

    def _open_folder(self) -> DataFolder:
        if self._lasting is None:
            return DataFolder.temporary()
        return DataFolder.lasting(self._lasting, self._count)

    def _start_guardian(self, folder: DataFolder) -> None:
        command = [sys.executable, "-I", str(Path(__file__).with_name("guardian.py"))]
        if not folder.lasts:
            command.append(str(folder.path))
        try:
            self._guardian = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        except OSError as error:
            raise EtcdFailed(f"cannot start etcd: {error.strerror}") from None

    def _create_members(self, folder: DataFolder) -> None:
        ports = folder.ports or free_ports(2 * self._count)
        self.members = [
            Member(f"m{i}", folder.path / f"m{i}", self._binary, ports[2 * i], ports[2 * i + 1])
            for i in range(self._count)
        ]

    def _start_member(self, member: Member, *, state: str = "new", new_log: bool = False) -> None:
        members = ",".join(f"{other.name}={other.peer_url}" for other in self.members)
        cluster_arguments = (
            *("--initial-cluster", members, "--initial-cluster-token", self._token),
            *("--initial-cluster-state", state),
            *self._arguments,
        )
        self.guard(member.start(cluster_arguments, self._tls, new_log=new_log))

    def guard(self, pid: int) -> None:
        """Let the guardian kill this process too, should we die before it."""
        if self._guardian is not None and self._guardian.stdin is not None:
            self._guardian.stdin.write(f"{pid}\n".encode())
            self._guardian.stdin.flush()

    def wait_ready(self) -> None:
        """Return when every member answers a linearizable read; raises `EtcdFailed`."""
        until = time.monotonic() + _READY_S
        for member in self.members:
            while (error := self._read_from(member)) is not None:
                if time.monotonic() > until:
                    raise EtcdFailed(f"etcd did not get ready: {error}")
                time.sleep(_PAUSE_S)

    def _read_from(self, member: Member) -> StoreError | None:
        """Read once from a member and return why it did not answer; raises `EtcdFailed` if it has ended."""
        from conch.etcd.grpc_store import GrpcStore

        self._check()
        if not member.running():
            raise EtcdFailed(f"etcd did not start: {member.why_ended()}")
        store = GrpcStore(member.connection(self._tls))
        try:
            store.range(Range(b"conch-ready"), timeout_s=1.0)
        except StoreError as error:
            return error
        finally:
            store.close()
        return None

    # -- while it runs ------------------------------------------------------------------------------------

    def check_running(self) -> None:
        """Raise `EtcdFailed` if a member has ended by itself."""
        for member in self.members:
            if not member.running():
                raise EtcdFailed(f"etcd (member {member.name}) has ended: {member.why_ended()}")

    def restart(self, member: Member, *, binary: str | None = None) -> None:
        """Start a member again, killed first if it runs, with its data and ports; from now on with this binary."""
        self.kill(member)
        member.binary = binary or member.binary
        self._start_member(member)

    def replace(self, member: Member, name: str, ports: Sequence[int]) -> Member:
        """Stop a member and return a new one of this name, with a port for clients and one for peers, in its place.

        `join` starts the new one, once the cluster has been told of both.
        """
        self.kill(member, signal.SIGTERM)
        new = Member(name, member.folder.with_name(name), member.binary, *ports)
        self.members[self.members.index(member)] = new
        return new

    def join(self, member: Member) -> None:
        """Start a member that the cluster has been told to expect."""
        self._start_member(member, state="existing")

    def kill(self, member: Member, number: int = signal.SIGKILL) -> None:
        """End one member; `restart` brings it back."""
        member.kill(number)

    # -- stopping -----------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Stop every member by its own pid and remove a temporary folder. Can be called again."""
        folder, self._folder = self._folder, None
        if folder is not None and folder.lasts:
            self._stop_members()
        else:
            for member in self.members:
                self.kill(member)  # nobody will read their data, so they need no graceful end
        guardian, self._guardian = self._guardian, None
        if guardian is not None and guardian.stdin is not None:
            guardian.stdin.close()
            guardian.wait()
        if folder is not None:
            folder.close()

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
