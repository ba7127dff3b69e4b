"""Plant bugs, one at a time, in a copy of the source, and see a test fail for each.

Each bug removes one mechanism that a guarantee rests on; only the tests that should catch it are run. Exits 1 if a bug
was missed, does not fit the source, or if the tests fail without any bug.
"""

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools.planted import (
    bursts,
    containment,
    core,
    cron,
    etcd,
    failures,
    job_files,
    keeper,
    run_output,
    schedules,
    where,
)
from tools.planted.bug import Bug, problems
from tools.planted.source_copy import ROOT, Copy

AREAS = {
    "core": core.BUGS + containment.BUGS,
    "keeper": keeper.BUGS,
    "etcd": etcd.BUGS,
    "cron": cron.BUGS + bursts.BUGS + schedules.BUGS + failures.BUGS + job_files.BUGS + run_output.BUGS + where.BUGS,
}
BUGS = tuple(bug for bugs in AREAS.values() for bug in bugs)
_LIMIT_S = 120


def verdict(code: int | None, output: str) -> str | None:
    """Return the test that caught the bug; None if none did, or if it is unclear: a failed import proves nothing."""
    found = re.search(r"^(?:FAILED|ERROR) \S*?(\w+\.py::\w+)", output, re.MULTILINE)
    return found[1] if code == 1 and found else None


def check(bugs: Sequence[Bug]) -> int:
    """Print each bug that does not fit the source and the tests; 0 if all do."""
    found = list(problems(ROOT, bugs))
    print(*found, f"planted: {len(bugs)} bugs, {len(found)} problems", sep="\n")
    return 1 if found else 0


def plant(copy: Copy, bug: Bug) -> tuple[str, str | None]:
    """Plant one bug, run its tests and remove it; return where it stood and the test that caught it, if any."""
    source = copy.read(bug)
    where = f"conch/{bug.file}:{source[: source.index(bug.old)].count(chr(10)) + 1}"
    copy.write(bug, source.replace(bug.old, bug.new))
    code, output = copy.test(bug.tests, "-x", limit_s=_LIMIT_S)
    copy.write(bug, source)
    test = verdict(code, output)
    if test is None:
        print(output, f"planted: pytest's exit code was {'none: it did not end' if code is None else code}", sep="\n")
    return where, test


def run(bugs: Sequence[Bug]) -> int:
    """Plant these bugs one after the other and print a table; 0 if each was caught."""
    rows: list[str] = []
    missed = 0
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        copy = Copy(Path(folder))
        copy.check_command()
        code, output = copy.test(sorted({test for bug in bugs for test in bug.tests}), limit_s=_LIMIT_S * len(bugs))
        if code != 0:
            print(output, "planted: these tests fail without any bug", sep="\n")
            return 1
        for bug in bugs:
            where, test = plant(copy, bug)
            missed += test is None
            rows.append(f"| {bug.name} | `{where}` | {f'`{test}`' if test else 'MISSED'} |")
            print(rows[-1], flush=True)
    print("\n| bug | where | caught by |\n| --- | --- | --- |", *rows, sep="\n")
    return 1 if missed else 0


def main(arguments: Sequence[str]) -> int:
    """Choose bugs by name, by area, or all, and check or plant them."""
    parser = argparse.ArgumentParser(prog="python -m tools.planted", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="plant only the bugs of these names")
    parser.add_argument("--area", action="append", choices=AREAS, help="plant only the bugs of this package")
    parser.add_argument("--check", action="store_true", help="only check that the bugs fit the source and the tests")
    options = parser.parse_args(arguments)
    bugs = [bug for area in options.area or AREAS for bug in AREAS[area]]
    unknown = set(options.names) - {bug.name for bug in bugs}
    if unknown:
        print(*(f"planted: no bug {name!r}" for name in sorted(unknown)), *(bug.name for bug in bugs), sep="\n")
        return 1
    chosen = [bug for bug in bugs if not options.names or bug.name in options.names]
    return check(chosen) or (0 if options.check else run(chosen))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
