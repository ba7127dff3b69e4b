"""What the system has no more of: which errors say so, and whether there is enough before something needs it."""

import os

from conch.errors import BadInput, ConchError, shortage


def is_short(error: BaseException | None) -> bool:
    """Whether an error says that the system has no more of something: what could not be done is not to blame."""
    return bool(shortage(error))


def cannot(text: str, error: BaseException) -> ConchError:
    """What to raise where something named by the user cannot be used: a usage error, unless the system is short."""
    return ConchError(text) if is_short(error) else BadInput(text)


def lacking(*, threads: int = 0, descriptors: int = 0) -> str:
    """Why so many cannot be had at present; empty if they can. They are had and given back to find out."""
    return _lacking_descriptors(descriptors) or _lacking_threads(threads)


def _lacking_descriptors(count: int) -> str:
    taken: list[int] = []
    try:
        for _ in range(count):
            taken.append(os.dup(2))
    except OSError as error:
        return f"no room for {count} more open files ({error.strerror})" if is_short(error) else ""
    finally:
        for fd in taken:
            os.close(fd)
    return ""


def _lacking_threads(count: int) -> str:
    import threading  # late: few ask for them

    end = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(count):
            one = threading.Thread(target=end.wait, daemon=True)
            one.start()
            started.append(one)
    except (RuntimeError, MemoryError):
        return f"no room for {count} more threads (the limit of processes, ulimit -u, or of memory)"
    finally:
        end.set()
        for one in started:
            one.join()
    return ""
