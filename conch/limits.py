"""Limits of the system: which errors mean that one was reached, and whether there is room for what is needed next."""

import os

from conch.errors import BadInput, ConchError, shortage


def is_short(error: BaseException | None) -> bool:
    """Return whether an error says that the system is short of something, so that what failed is not to blame."""
    return bool(shortage(error))


def cannot(text: str, error: BaseException) -> ConchError:
    """Return the error for something that the user named: a usage error, unless the system is short."""
    return ConchError(text) if is_short(error) else BadInput(text)


def lacking(*, threads: int = 0, descriptors: int = 0) -> str:
    """Return why so many are not available now, or nothing if they are. Finds out by taking them for a moment."""
    return _lacking_descriptors(descriptors) or _lacking_threads(threads)


def _lacking_descriptors(count: int) -> str:
    opened: list[int] = []
    try:
        for _ in range(count):
            opened.append(os.dup(2))
    except OSError as error:
        return f"no room for {count} more open files ({error.strerror})" if is_short(error) else ""
    finally:
        for fd in opened:
            os.close(fd)
    return ""


def _lacking_threads(count: int) -> str:
    import threading  # late: few ask for them

    end = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            started.append(thread)
    except (RuntimeError, MemoryError):
        return f"no room for {count} more threads (the limit of processes, ulimit -u, or of memory)"
    finally:
        end.set()
        for thread in started:
            thread.join()
    return ""
