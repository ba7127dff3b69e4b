"""The etcd binaries that the tests can run on."""

import sys
from pathlib import Path


def newest_etcd() -> str:
    """The binary of the extra, which is newer than Debian's; it knows options that 3.4 does not."""
    return str(Path(sys.executable).parent / "etcd")
