"""The names of offices, semaphores and jobs."""

import re

from conch.errors import BadInput

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:+-]{0,127}")


def is_name(text: str) -> bool:
    """Whether it may stand in a key of etcd."""
    return _NAME.fullmatch(text) is not None


def check_name(name: str) -> str:
    """Return the name unchanged if it may stand in a key of etcd, else raise `BadInput`."""
    if is_name(name):
        return name
    raise BadInput(f"bad name {name!r}: 1 to 128 of A-Z a-z 0-9 . _ @ : + - and a letter or digit first")
