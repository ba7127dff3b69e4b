"""Summarises the reports of schedules: `python -m tests.faults.invariant.report FILE…` prints a table."""

import json
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def spread(seconds: Sequence[float]) -> str:
    """Show the smallest, median, 99th percentile and largest, in milliseconds."""
    if not seconds:
        return "-"
    found = sorted(seconds)
    at99 = found[min(len(found) - 1, int(len(found) * 0.99))]
    shown = (found[0], statistics.median(found), at99, found[-1])
    return " / ".join(f"{value * 1000:.0f}" for value in shown) + f" ms (n={len(found)})"


def main(paths: list[str]) -> None:
    """Print one row per kind of schedule, and the sums of all."""
    schedules: list[dict[str, Any]] = [
        json.loads(line) for path in paths for line in Path(path).read_text().splitlines()
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for schedule in schedules:
        groups.setdefault((schedule["of"], schedule["transport"]), []).append(schedule)
    print("| schedules | of | passed | holds, or ticks | faults | converged (smallest / median / p99 / largest) |")
    print("| --- | --- | --- | --- | --- | --- |")
    for (of, transport), group in sorted(groups.items()):
        passed = sum(not schedule["failure"] for schedule in group)
        holds = sum(schedule.get("holds", schedule.get("ticks", 0)) for schedule in group)
        faults = sum(len(schedule.get("faults", ())) for schedule in group)
        converged = spread([schedule["converged_s"] for schedule in group if "converged_s" in schedule])
        print(f"| {len(group)} | {of}, {transport} | {passed} | {holds} | {faults} | {converged} |")

    def everything(field: str) -> list[float]:
        return [value for schedule in schedules for value in schedule.get(field, ())]

    print(f"\n{len(schedules)} schedules, {sum(not schedule['failure'] for schedule in schedules)} passed")
    print(f"slack, last beat to deadline: {spread(everything('slack_s'))}")
    print(f"hand-over, last beat of one holder to first beat of the next: {spread(everything('hand_over_s'))}")
    forms = Counter(schedule.get("contain", "auto") for schedule in schedules)
    print("runs contained by:", ", ".join(f"{count} {form}" for form, count in forms.most_common()))
    counts = Counter(fault for schedule in schedules for fault in schedule.get("faults", ()))
    print("faults:", ", ".join(f"{count} {fault}" for fault, count in counts.most_common()))


if __name__ == "__main__":
    main(sys.argv[1:])
