"""The alert rules and the dashboard in docs/monitoring: valid, firing when they should, of metrics that exist."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.conch import wait_for
from tests.support.cron import Fleet
from tests.system.test_conchd_status import get

MONITORING = Path(__file__).parents[2] / "docs" / "monitoring"
PROMTOOL = shutil.which("promtool") or "promtool"
# Of Prometheus itself.
FOREIGN = {"up"}


def promtool(*arguments: str, folder: Path = MONITORING) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([PROMTOOL, *arguments], cwd=folder, capture_output=True, text=True, timeout=60)


def rules() -> list[dict[str, str]]:
    """Return the rules' names and expressions, as promtool's own format has them one a line."""
    text = (MONITORING / "alerts.yml").read_text()
    found = re.findall(r"- alert: (\w+)\n\s+expr: (?:>-\n)?((?:.*\n)+?)\s+(?:for|labels):", text)
    return [{"alert": name, "expr": expr} for name, expr in found]


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
    return found


def named(expressions: list[str]) -> set[str]:
    """Return the names of the metrics in expressions."""
    return set(re.findall(r"\bconch_\w+", " ".join(expressions)))


def expressions() -> Iterator[str]:
    yield from (rule["expr"] for rule in rules())
    for panel in dashboard()["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (variable["query"] for variable in dashboard()["templating"]["list"] if variable["type"] == "query")


def test_rules_are_valid_and_fire_when_they_should() -> None:
    checked = promtool("check", "rules", "alerts.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tested = promtool("test", "rules", "alerts_test.yml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_each_rule_is_tested_firing_and_silent() -> None:
    text = (MONITORING / "alerts_test.yml").read_text()
    names = [rule["alert"] for rule in rules()]
    assert len(names) == (MONITORING / "alerts.yml").read_text().count("- alert:") >= 12
    for name in names:
        assert re.search(rf"alertname: {name}\n\s+exp_alerts", text), f"{name} is not seen to fire"
        assert re.search(rf"alertname: {name}}}", text), f"{name} is not seen silent"


@pytest.mark.parametrize(
    ("old", "new"), [("== 0\n        for: 2m", "== 1\n        for: 2m"), ("26 * 3600", "29 * 3600")]
)
def test_wrong_rule_is_seen(tmp_path: Path, old: str, new: str) -> None:
    """The negative control: promtool's test notices a rule that was broken."""
    for name in ("alerts.yml", "alerts_test.yml"):
        shutil.copy(MONITORING / name, tmp_path)
    path = tmp_path / "alerts.yml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    assert promtool("test", "rules", "alerts_test.yml", folder=tmp_path).returncode != 0


def test_every_metric_of_rules_and_dashboard_is_exported(fleet: Fleet) -> None:
    """By a conchd as it runs; and its answer follows Prometheus' conventions."""
    daemon = fleet.start("a", "--status-addr", "0")
    address = daemon.wait_event("status")["addr"]
    fleet.add("good", "@yearly")
    fleet.add("bad", "@yearly", command="exit 3")
    for name in ("good", "bad"):
        fleet.result(name, fleet.run_now(name))

    def exported() -> str:
        body = str(get(address, "/metrics")[1])
        return body if "last_success" in body and 'failure_timestamp_seconds{job="bad"}' in body else ""

    text = wait_for(exported, "the metrics of both jobs")
    series = set(re.findall(r"^(conch_\w+)[{ ]", text, re.MULTILINE))
    used = named(list(expressions()))
    assert len(used) >= 20
    assert used <= series, f"not exported: {sorted(used - series)}"
    linted = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60)
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_queries_of_the_dashboard_are_valid(tmp_path: Path) -> None:
    """As rules, so that promtool parses them."""
    queries = [target["expr"].replace("$instance", ".*") for p in dashboard()["panels"] for target in p["targets"]]
    lines = [f"  - {{record: 'a:b{number}', expr: {json.dumps(query)}}}" for number, query in enumerate(queries)]
    (tmp_path / "rules.yml").write_text("groups:\n- name: dashboard\n  rules:\n" + "\n".join(lines) + "\n")
    checked = promtool("check", "rules", "rules.yml", folder=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    places = [tuple(panel["gridPos"].values()) for panel in dashboard()["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(places)
