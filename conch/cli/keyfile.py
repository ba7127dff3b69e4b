"""The key that jobs are signed with."""

import hashlib
import hmac
import os
import stat

from conch.errors import BadInput
from conch.limits import cannot

_LEAST_BYTES = 16


def read_key(path: str | None, prefix: str) -> bytes | None:
    """The key for jobs below a prefix: one of its own for each prefix, so that a signature is good under no other.

    It is derived from the key in the file, without white space at its ends; raises `BadInput` for one that is no good.
    """
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            key = file.read(65536).strip()
    except (OSError, ValueError) as error:
        text = f"--job-key-file: cannot read {path}: {getattr(error, 'strerror', None) or error}"
        raise cannot(text, error) from None
    if stat.S_ISREG(mode) and mode & 0o007:
        raise BadInput(f"--job-key-file: {path} is open to all users (chmod 600)")
    if len(key) < _LEAST_BYTES:
        raise BadInput(f"--job-key-file: the key in {path} is shorter than {_LEAST_BYTES} bytes")
    return hmac.new(key, f"conch jobs {prefix}".encode(), hashlib.sha256).digest()
