"""The command that runs under a hold: it records every 10 ms that it is alive, with O_APPEND, on CLOCK_BOOTTIME.

    beat.py LOG KIND NAME [ignore] [fork] [daemon] [SECONDS]

Each record is a line `kind name rev pid event time`, where the event is start, beat or end. Forked processes use the
same rev.
"""

import os
import signal
import sys
import time


def beat(log: int, who: str, until: float) -> None:
    pid = os.getpid()

    def write(event: str) -> None:
        os.write(log, f"{who} {pid} {event} {time.clock_gettime(time.CLOCK_BOOTTIME):.6f}\n".encode())

    write("start")
    while time.clock_gettime(time.CLOCK_BOOTTIME) < until:
        time.sleep(0.01)
        write("beat")
    write("end")


def main() -> None:
    path, kind, name, *options = sys.argv[1:]
    who = f"{kind} {name} {os.environ['CONCH_REV' if kind != 'cron' else 'CONCH_TICK']}"
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    if "ignore" in options:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    seconds = [float(option) for option in options if option[0].isdigit()]
    until = time.clock_gettime(time.CLOCK_BOOTTIME) + (seconds[0] if seconds else 1000.0)
    if ("fork" in options or "daemon" in options) and os.fork() == 0:
        if "daemon" in options:
            os.setsid()
            if os.fork() != 0:
                os._exit(0)
        beat(log, who, until + 1000)
        os._exit(0)
    beat(log, who, until)


if __name__ == "__main__":
    main()
