"""The module `socket` without its enumerations and files: they cost more at import than all that conch needs of it.

It is the part of it that is written in C.
"""

from conch.static_typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket as socket
else:
    try:
        import _socket as socket
    except ImportError:  # nobody promises this name
        import socket  # noqa: F401
