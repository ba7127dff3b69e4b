"""Reads the certificate files of a connection as they are now."""

from conch.etcd.connection import Connection
from conch.static_typing import Any


def tls_context(connection: Connection) -> Any:
    """Return a context that verifies certificates and host names; raises `OSError` that names an unreadable file."""
    import ssl  # late: only https pays for it

    for path in (connection.cacert, connection.cert, connection.key):
        if path is not None:
            open(path, "rb").close()
    context = ssl.create_default_context(cafile=connection.cacert)
    if connection.cert is not None:
        context.load_cert_chain(connection.cert, connection.key, password=lambda: "")
    return context


def unusable_files(connection: Connection) -> str:
    """Say why connections could not be made with the files as they are now; empty if they could."""
    paths = [path for path in (connection.cacert, connection.cert, connection.key) if path is not None]
    try:
        tls_context(connection)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.filename:
            return f"cannot read {error.filename}: {error.strerror}"
        return f"no certificates and key that fit in {', '.join(paths)}: {getattr(error, 'strerror', None) or error}"
    return ""
