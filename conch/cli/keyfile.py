"""Reads the key that jobs are signed with."""

import os
import stat

from conch.errors import BadInput
from conch.limits import cannot

_MIN_BYTES = 16


def read_key(path: str | None, prefix: str) -> bytes | None:
    """Return the key for jobs below a prefix, derived from the key in the file; None without a file.

    Each prefix has its own key, so that a signature is valid under no other prefix. White space around the key in the
    file is ignored. Raises `BadInput` for a file that cannot be read, is open to all users, or has too short a key.
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
    if len(key) < _MIN_BYTES:
        raise BadInput(f"--job-key-file: the key in {path} is shorter than {_MIN_BYTES} bytes")
    import hashlib  # late: most daemons have no key file
    import hmac

    return hmac.new(key, f"conch jobs {prefix}".encode(), hashlib.sha256).digest()
