"""conch with and without a cgroup for each run, in turn on one etcd: what the cgroup costs."""

from collections.abc import Sequence
from functools import partial
from itertools import count

from tests.support.conch import CONCH, Bench
from tools.bench.holds import crash_of_conch
from tools.bench.measure import background, hand_overs, in_turn, new_bench, spend
from tools.bench.table import header, ms, ratio, row

FORMS = ("cgroup", "tree")
ROUNDS = 100
CHAIN, CHAINS = 25, 4
CRASHES = 40


def compare(what: str, cgroup_s: Sequence[float], tree_s: Sequence[float]) -> None:
    row(what, ms(cgroup_s), ms(tree_s), ratio(cgroup_s, tree_s), "at most 1.10")


def cold(bench: Bench) -> None:
    """Processes from start to end."""
    commands = [(CONCH, "elect", "cold", "--contain", form, "--", "true") for form in FORMS]
    columns = in_turn(ROUNDS, *(partial(spend, command, bench.environment) for command in commands))
    compare("cold, `true`", *([spent.wall_s for spent in column] for column in columns))


def hand_over(bench: Bench) -> None:
    """From one command's end to the next one's start, queues of both forms in turn."""
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(CHAINS):
        for times, form in zip(found, FORMS, strict=True):
            start = partial(background, bench, CONCH, "elect", "chain", "--contain", form, "--", "sh")
            times += hand_overs(bench, start, CHAIN)
    compare(f"hand-over in a chain of {CHAIN}", *found)


def crash(bench: Bench) -> None:
    """From SIGKILL of the wrapper until the next one's child runs."""
    numbers = count()
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(CRASHES):
        for times, form in zip(found, FORMS, strict=True):
            times.append(crash_of_conch(bench, next(numbers), "--contain", form))
    compare("kill -9 to the next child", *found)


def main() -> None:
    """Measure what a cgroup for each run costs, where there can be one."""
    with new_bench("contain") as (bench, _):
        trial = bench.run("elect", "trial", "--contain", "cgroup", "--", "true")
        if trial.returncode:
            print(trial.stderr, end="")
            return
        header("what", "--contain cgroup", "--contain tree", "ratio", "wanted")
        for measure in (cold, hand_over, crash):
            measure(bench)
