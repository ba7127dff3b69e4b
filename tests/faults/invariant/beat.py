"""What runs under a hold here: every 10 ms it says that it lives, by O_APPEND, on CLOCK_BOOTTIME, not through conch.

    beat.py LOG KIND NAME [ignore] [fork] [daemon] [SECONDS]

A line a record: `kind name rev pid what time`, what being start, beat or end. Forked ones write under the same rev.
"""

import os
import signal
import sys
import time


def beat(log: int, who: str, until: float) -> None:
    pid = os.getpid()

    def write(what: str) -> None:
        os.write(log, f"{who} {pid} {what} {time.clock_gettime(time.CLOCK_BOOTTIME):.6f}\n".encode())

    write("start")
    while time.clock_gettime(time.CLOCK_BOOTTIME) < until:
        time.sleep(0.01)
        write("beat")
    write("end")


def main() -> None:
    path, kind, name, *how = sys.argv[1:]
    who = f"{kind} {name} {os.environ['CONCH_REV' if kind != 'cron' else 'CONCH_TICK']}"
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    if "ignore" in how:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    seconds = [float(word) for word in how if word[0].isdigit()]
    until = time.clock_gettime(time.CLOCK_BOOTTIME) + (seconds[0] if seconds else 1000.0)
    if ("fork" in how or "daemon" in how) and os.fork() == 0:
        if "daemon" in how:
            os.setsid()
            if os.fork() != 0:
                os._exit(0)
        beat(log, who, until + 1000)
        os._exit(0)
    beat(log, who, until)


if __name__ == "__main__":
    main()
