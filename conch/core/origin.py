"""Identifying a process across machines, so that no conchd takes a living process for one of its own that died.

The host name, the state directory and the machine id are copied with a disk image; a boot id is not, and a pid with
a start time is valid within one boot. So only a process of this boot can be proved dead here.
"""

import os
from collections.abc import Mapping

from conch.core import procfs
from conch.record import Record
from conch.static_typing import Any

_MACHINE_IDS = ("/etc/machine-id", "/var/lib/dbus/machine-id")
_HARDWARE_ID = "/sys/class/dmi/id/product_uuid"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_NAMESPACE = "/proc/self/ns/pid"


class Origin(Record):
    """A process: machine and hardware (hashed ids, empty if unknown), boot, namespace of its pid, pid, start.

    `start` is in clock ticks since the boot, as /proc has it.
    """

    machine: str
    hardware: str
    boot: str
    namespace: str
    pid: int
    start: int

    def fields(self) -> dict[str, Any]:
        """Return the fields as they are stored in JSON."""
        return {name: getattr(self, name) for name in _FIELDS}

    def same_machine(self, other: "Origin") -> bool:
        """Whether nothing known about both machines distinguishes them: their hardware, or else their machine ids.

        A machine whose /etc cannot be written may get another machine id at each boot.
        """
        if self.hardware and other.hardware:
            return self.hardware == other.hardware
        return self.machine == other.machine or not self.machine or not other.machine

    def same_boot(self, other: "Origin") -> bool:
        """Whether both pids were given by the same kernel in the same namespace."""
        return (
            bool(self.boot)
            and self.same_machine(other)
            and (self.boot, self.namespace) == (other.boot, other.namespace)
        )

    def proved_dead(self, here: "Origin") -> bool:
        """Whether this process is known to have ended: it belongs to the boot of `here`, our own, and is gone.

        Nothing is proved about a process that cannot be checked (another machine or boot, no descriptor left).
        """
        if not self.same_boot(here):
            return False
        try:
            found = procfs.stat(self.pid)
        except OSError:
            return False
        return found is None or found.start != self.start or found.dead

    def __str__(self) -> str:
        """Return a short text that distinguishes machines, boots and processes."""
        parts = (("machine", self.machine[:8]), ("hardware", self.hardware[:8]), ("boot", self.boot[:8]))
        shown = [f"{name} {text}" for name, text in parts if text]
        return " ".join([*shown, f"pid {self.pid}"] if self.pid else shown)


_FIELDS = ("machine", "hardware", "boot", "namespace", "pid", "start")


def origin_of(fields: object) -> Origin | None:
    """Return the origin in a value that anyone may have written, None if it is not valid."""
    if not isinstance(fields, Mapping):
        return None
    texts = [fields.get(name) for name in _FIELDS[:4]]
    numbers = [fields.get(name) for name in _FIELDS[4:]]
    if not all(isinstance(text, str) for text in texts):
        return None
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        return None
    return Origin(*texts, *numbers)  # type: ignore[arg-type]


def origin(pid: int) -> Origin:
    """Return the origin of the process `pid` of this machine; `OSError` if it cannot be read."""
    found = procfs.stat(pid)
    if found is None:
        raise ProcessLookupError(f"there is no process {pid}")
    machine = next((text for path in _MACHINE_IDS if (text := _read(path))), "")
    return Origin(
        _hashed(machine),
        _hashed(_read(_HARDWARE_ID)),
        _read(_BOOT_ID).replace("-", ""),
        os.readlink(_NAMESPACE),
        pid,
        found.start,
    )


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(100).strip()
    except OSError:
        return ""  # missing, or we may not read it


def _hashed(text: str) -> str:
    """Hash a machine id: it is confidential (machine-id(5)), so only a value specific to conch leaves the machine."""
    import hashlib  # late: the supervisor needs none

    return hashlib.sha256(f"conch origin {text}".encode()).hexdigest()[:16] if text else ""
