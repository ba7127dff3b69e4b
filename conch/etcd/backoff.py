"""How long to wait before the next try: longer each time, up to a limit."""

import os


class Backoff:
    """Pauses in seconds that double from `first_s` to `longest_s`."""

    def __init__(self, first_s: float, longest_s: float, *, jitter: bool = False) -> None:
        """With `jitter` a pause is shortened by up to half at random, so that many who failed together spread."""
        self._first_s = first_s
        self._longest_s = longest_s
        self._jitter = jitter
        self._pause_s = first_s

    def next_s(self) -> float:
        """Return how long to wait now."""
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, self._longest_s)
        return pause_s * (0.5 + os.urandom(1)[0] / 512) if self._jitter else pause_s

    def reset(self) -> None:
        """Begin with the shortest pause again."""
        self._pause_s = self._first_s
