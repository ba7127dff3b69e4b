"""How late a command starts, and what its tick costs etcd, when few jobs are due at once."""

from tools.bench.daemons import new_fleet, proposals, start_daemons
from tools.bench.table import header, ms, row

SECONDS = 40


def delay(hosts: int) -> None:
    """Measure one job a second over several daemons."""
    with new_fleet() as fleet:
        endpoint = fleet.bench.endpoints
        start_daemons(fleet, hosts)
        fleet.add("j", "@every 1s", "--overlap", "allow", command="date +%s.%N >> log")
        fleet.results("j", 2)
        before, had = proposals(endpoint), len(fleet.ticks("result", "j"))
        fleet.results("j", had + SECONDS, timeout_s=2 * SECONDS)
        cost = (proposals(endpoint) - before) / (len(fleet.ticks("result", "j")) - had)
        delays = [float(line) % 1 for line in fleet.bench.file("log").read_text().split()]
        row(f"delay until the command's first output, {hosts} daemons", ms(delays), f"{cost:.2f} proposals a tick")


def main() -> None:
    """Measure fleets of two sizes."""
    header("cron", "delay", "cost")
    delay(3)
    delay(5)
