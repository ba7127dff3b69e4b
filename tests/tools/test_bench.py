"""What the measurements conclude from what they saw; the measurements themselves take minutes and need an etcd."""

from collections import Counter
from pathlib import Path

import pytest

from tools.bench.__main__ import GROUPS
from tools.bench.daemons import sample
from tools.bench.flat import FIGURES, is_flat, thirds
from tools.bench.hour import Burst, fates, read_starts
from tools.bench.table import ms, percentile, ratio

MEMORY, DESCRIPTORS, THREADS = FIGURES


def test_percentiles() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile(values, 1.0)) == (51, 100, 100)


def test_ratio_is_that_of_the_medians() -> None:
    assert ratio([1.0, 3.0, 100.0], [2.0]) == "1.50"
    assert ratio([1.0], [0.0]) == "-"
    assert ms([0.001, 0.002, 0.003]) == "2.0 ms (p99 3.0, n=3)"


def test_starts_are_read_by_name(tmp_path: Path) -> None:
    (tmp_path / "starts").write_text("j0 100.5\nj1 100.75\nj0 101\n")
    assert read_starts(tmp_path, 100.0) == {"j0": [0.5, 1.0], "j1": [0.75]}


def test_metric_without_labels_is_found_among_others() -> None:
    assert sample('conch_a{job="b"} 1.0\nconch_ab 2.0\nconch_a 3e3\n', "conch_a") == 3000


@pytest.mark.parametrize(
    ("states", "starts", "became"),
    [
        ({"ok": 2}, {"j0": [0.1], "j1": [0.2]}, "2 ok, 0 without, 0 not started, 0 started twice"),
        ({"ok": 1, "lost": 1}, {"j0": [0.1]}, "1 ok, 1 lost, 0 without, 1 not started, 0 started twice"),
        ({"ok": 1}, {"j0": [0.1, 0.2]}, "1 ok, 1 without, 1 not started, 1 started twice"),
    ],
)
def test_every_tick_is_accounted_for(states: dict[str, int], starts: dict[str, list[float]], became: str) -> None:
    assert fates(Burst(starts, Counter(states), 0.0, 0.0, 0.0, 0.0), 2) == became


def test_warm_up_and_outliers_do_not_count() -> None:
    grown = [1.0] * 10 + [50.0] * 30 + [70.0] + [50.0] * 59
    assert thirds(grown) == (50, 50)
    assert is_flat(MEMORY, grown)


def test_slow_leak_is_not_flat() -> None:
    assert not is_flat(MEMORY, [30 + 0.06 * sample for sample in range(100)])
    assert is_flat(MEMORY, [30 + 0.04 * sample for sample in range(100)])
    assert not is_flat(DESCRIPTORS, [20.0 + sample // 10 for sample in range(100)])
    assert not is_flat(THREADS, [4.0] * 60 + [6.0] * 40)


def test_figures_that_fall_are_flat() -> None:
    assert all(is_flat(figure, [100.0 - sample for sample in range(100)]) for figure in FIGURES)


def test_docs_describe_every_group() -> None:
    text = (Path(__file__).parents[2] / "docs/performance.md").read_text()
    assert [group for group in GROUPS if f"`python -m tools.bench {group}`" not in text] == []
