"""Sockets without the enumerations of `socket`."""

import socket
import subprocess
import sys

from conch import plain_socket


def test_numbers_are_those_of_socket() -> None:
    """Each that has such a name."""
    for name in ("AF_INET", "AF_INET6", "AF_UNIX", "SOCK_SEQPACKET", "SHUT_RDWR", "TCP_USER_TIMEOUT", "MSG_DONTWAIT"):
        assert getattr(plain_socket.socket, name) == getattr(socket, name)


def test_without_the_parts_in_c_the_modules_do() -> None:
    """Another Python may not have them under these names."""
    hidden = "('_signal', '_socket', '_queue', '_ctypes')"
    script = (
        "import signal, socket, queue, ctypes, sys\n"
        f"sys.modules.update(dict.fromkeys({hidden}))\n"
        "from conch import plain_signal, plain_socket, threads\n"
        "from conch.core import linux\n"
        "print(plain_signal.signal is signal, plain_socket.socket is socket)\n"
        "print(threads.SimpleQueue is queue.SimpleQueue)\n"
        "linux.become_subreaper(); linux.give_memory_back(); timer = linux.Timer(); timer.arm(1.0); timer.arm(None)\n"
        "print(plain_signal.name_of(15))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "True True\nTrue\nSIGTERM\n", done.stderr
