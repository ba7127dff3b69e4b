"""The one clock of deadlines."""

import time


def now() -> float:
    """Return the seconds of CLOCK_BOOTTIME: never set back, runs on through suspend, the same in every process."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
