"""Waits for etcd's first answer: a slow etcd gets more time than an absent one."""

import time

from conch.etcd.connection import Connection
from conch.etcd.store import Unreachable
from conch.static_typing import Callable, TypeVar

_Answer = TypeVar("_Answer")


def first_answer(
    ask: Callable[[float], _Answer],
    connection: Connection,
    *,
    within_s: float,
    again: Callable[[Unreachable], None] = lambda _error: None,
) -> _Answer:
    """Call `ask(timeout_s)` until etcd answers; raises `Unreachable` when that takes too long.

    That is after the dial timeout if no endpoint accepts connections. If one does, or etcd itself says that it cannot
    serve now, it is after `within_s`, with the command timeout for each try; `again` is called between the tries, and
    may raise.
    """
    until = time.monotonic() + within_s
    limit_s = min(connection.dial_timeout_s, within_s)
    while True:
        try:
            return ask(limit_s)
        except Unreachable as error:
            left_s = until - time.monotonic()
            if left_s <= 0 or not error.accepted():
                raise
            again(error)
        limit_s = min(connection.command_timeout_s, max(0.1, left_s))
