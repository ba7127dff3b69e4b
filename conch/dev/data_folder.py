"""The folder of a cluster's data: a temporary one, or one that lasts and knows the ports of its members."""

import fcntl
import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

from conch.dev.member import EtcdFailed, Member


class DataFolder:
    """A folder for the members' data, theirs alone while it is open.

    A folder that `lasts` keeps the ports by which its members know each other; `ports` is None until it has some.
    """

    def __init__(self, path: Path, lock: TextIO | None, ports: list[int] | None) -> None:
        self.path = path
        self.ports = ports
        self._lock = lock

    @classmethod
    def temporary(cls) -> "DataFolder":
        """Create a folder that the guardian is to remove."""
        return cls(Path(tempfile.mkdtemp(prefix="conch-etcd-")), None, None)

    @classmethod
    def lasting(cls, path: Path, members: int) -> "DataFolder":
        """Lock a folder for a cluster of so many members, and create it if necessary. Raises `EtcdFailed`."""
        with ExitStack() as on_failure:
            try:
                path.mkdir(parents=True, exist_ok=True)
                lock = on_failure.enter_context((path / "lock").open("w"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file = path / "ports.json"
                ports = _ports_of(file.read_text()) if file.exists() else None
            except BlockingIOError:
                raise EtcdFailed(f"--data-dir {path} is in use by another conch dev") from None
            except (OSError, ValueError) as error:
                raise EtcdFailed(f"cannot use --data-dir {path}: {error}") from None
            if ports is not None and len(ports) != 2 * members:
                count = len(ports) // 2
                raise EtcdFailed(
                    f"--data-dir {path} holds a cluster of {count}, not of {members}: use --members {count}"
                )
            on_failure.pop_all()
        return cls(path, lock, ports)

    @property
    def lasts(self) -> bool:
        """Whether the data is to be kept."""
        return self._lock is not None

    def remember_ports(self, members: Sequence[Member]) -> None:
        """Note the ports of members that have started, for the next start."""
        if self.lasts:
            ports = [port for member in members for port in (member.client_port, member.peer_port)]
            (self.path / "ports.json").write_text(json.dumps(ports))

    def close(self) -> None:
        """Unlock a lasting folder."""
        if self._lock is not None:
            self._lock.close()


def _ports_of(text: str) -> list[int]:
    ports = json.loads(text)
    if not isinstance(ports, list) or not all(isinstance(port, int) for port in ports):
        raise ValueError("ports.json is no list of ports")
    return ports
