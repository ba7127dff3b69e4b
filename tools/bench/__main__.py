"""Run the named groups of measurements, or all; or compare two versions."""

import argparse
import compileall
from collections.abc import Callable
from pathlib import Path

import conch
from tools.bench import boot, contain, cron, holds, hosts, hour, soak, steady, versions

GROUPS: dict[str, Callable[[argparse.Namespace], None]] = {
    "boot": lambda _: boot.main(),
    "holds": lambda _: holds.main(),
    "contain": lambda _: contain.main(),
    "cron": lambda _: cron.main(),
    "steady": lambda _: steady.main(),
    "hosts": lambda _: hosts.main(),
    "hour": lambda options: hour.main(options.jobs, options.many),
    "soak": lambda options: soak.main(options.minutes, options.changes),
}


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"one of {', '.join(GROUPS)}; all without one")
    parser.add_argument(
        "--against", type=Path, metavar="FOLDER", help="compare with the conch that FOLDER/.venv/bin/conch runs"
    )
    parser.add_argument("--jobs", type=int, default=1000, help="hour: how many jobs are due in one second (1000)")
    parser.add_argument(
        "--many", type=int, default=hour.MANY, help="hour: how many in the flood after that (5000; 0: none)"
    )
    parser.add_argument("--minutes", type=float, default=10, help="soak: how long it takes (10)")
    parser.add_argument("--changes", type=int, default=50, help="soak: how many changes of leaders in that time (50)")
    options = parser.parse_args()
    if unknown := set(options.groups) - set(GROUPS):
        parser.error(f"no group {', '.join(sorted(unknown))}")
    folders = [Path(conch.__file__).parent]
    if options.against:
        folders.append(options.against / "conch")
        if not (options.against / ".venv/bin/conch").is_file():
            parser.error(f"no {options.against}/.venv/bin/conch")
    # as pip leaves it: a source tree might be compiled anew at each start
    for folder in folders:
        compileall.compile_dir(folder, quiet=1)
    if options.against:
        versions.main(options.against)
    for group in options.groups or ([] if options.against else GROUPS):
        GROUPS[group](options)


if __name__ == "__main__":
    main()
