"""The names of offices, semaphores and jobs."""

import re

from conch.errors import BadInput

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:+-]{0,127}")


def check_name(name: str) -> str:
    """Return the name unchanged if it may stand in a key of etcd, else raise `BadInput`."""
    if _NAME.fullmatch(name):
        return name
    raise BadInput(f"bad name {name!r}: 1 to 128 of A-Z a-z 0-9 . _ @ : + - and a letter or digit first")
