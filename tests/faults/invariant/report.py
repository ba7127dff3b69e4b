"""Summarises what `--report FILE` kept of schedules: `python -m tests.faults.invariant.report FILE…` prints a table."""

import json
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def spread(seconds: Sequence[float]) -> str:
    """Smallest, median, 99th percentile and largest, in milliseconds."""
    if not seconds:
        return "-"
    found = sorted(seconds)
    at99 = found[min(len(found) - 1, int(len(found) * 0.99))]
    shown = (found[0], statistics.median(found), at99, found[-1])
    return " / ".join(f"{one * 1000:.0f}" for one in shown) + f" ms (n={len(found)})"


def main(paths: list[str]) -> None:
    """Print what all schedules of these files saw."""
    schedules: list[dict[str, Any]] = [
        json.loads(line) for path in paths for line in Path(path).read_text().splitlines()
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in schedules:
        groups.setdefault((one["of"], one["transport"]), []).append(one)
    print("| schedules | of | passed | holds, or ticks | faults | converged (smallest / median / p99 / largest) |")
    print("| --- | --- | --- | --- | --- | --- |")
    for (of, transport), some in sorted(groups.items()):
        passed = sum(not one["failure"] for one in some)
        holds = sum(one.get("holds", one.get("ticks", 0)) for one in some)
        faults = sum(len(one.get("faults", ())) for one in some)
        converged = spread([one["converged_s"] for one in some if "converged_s" in one])
        print(f"| {len(some)} | {of}, {transport} | {passed} | {holds} | {faults} | {converged} |")

    def everything(field: str) -> list[float]:
        return [value for one in schedules for value in one.get(field, ())]

    print(f"\n{len(schedules)} schedules, {sum(not one['failure'] for one in schedules)} passed")
    print(f"slack, last beat to deadline: {spread(everything('slack_s'))}")
    print(f"hand-over, last beat of one to first word of the next: {spread(everything('hand_over_s'))}")
    what = Counter(fault for one in schedules for fault in one.get("faults", ()))
    print("faults:", ", ".join(f"{count} {fault}" for fault, count in what.most_common()))


if __name__ == "__main__":
    main(sys.argv[1:])
