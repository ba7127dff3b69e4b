"""Outlives the process that started etcd, kills the members and removes their folder.

Reads one pid per line from standard input until it is closed, as it is when that process is killed, too.
"""

import os
import shutil
import signal
import sys


def main() -> None:
    """Wait until standard input is closed, then clean up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    members: list[int] = []
    for line in sys.stdin:
        try:
            members.append(os.pidfd_open(int(line)))
        except ProcessLookupError:
            pass  # it has ended already
    for member in members:
        try:
            signal.pidfd_send_signal(member, signal.SIGKILL)
        except ProcessLookupError:
            pass  # stopped properly
    for folder in sys.argv[1:]:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
