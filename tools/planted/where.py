"""Bugs in where jobs run: tags, every host, cordon."""

from tools.planted.bug import Bug

_FLEET = "tests/unit/cron/test_fleet.py"
_PLACEMENT = "tests/unit/cron/test_placement.py"
_CLAIM_STORE = "tests/unit/cron/test_claim_store.py"
_WHERE = "tests/system/test_conchd_where.py"

BUGS = (
    Bug(
        "a host without the tags claims",
        "cron/placement.py",
        "missing = [tag for tag in job.on if tag not in host.tags]",
        "missing: list[str] = []",
        (f"{_PLACEMENT}::test_why_a_host_may_not", f"{_WHERE}::test_job_runs_only_on_hosts_with_all_its_tags"),
    ),
    Bug(
        "hosts that may not run a job have a place in its line",
        "cron/fleet.py",
        "and not (host.draining or host.cordoned if job is None else why_not(job, host))",
        "and not (host.draining or host.cordoned)",
        (f"{_FLEET}::test_line_is_among_the_hosts_that_may_run_the_job",),
    ),
    Bug(
        "a tick of every host runs on one alone",
        "cron/planner.py",
        'host = self._host if job.each else ""',
        'host = ""',
        (f"{_WHERE}::test_each_runs_a_tick_once_on_every_host",),
    ),
    Bug(
        "a claim of another host ends our own run of the tick",
        "cron/inventory.py",
        """        if host not in self._our_places:
            return  # another host has its own run of this tick
""",
        "",
        (f"{_WHERE}::test_each_runs_a_tick_once_on_every_host",),
    ),
    Bug(
        "a cordoned host claims",
        "cron/placement.py",
        '    if host.cordoned:\n        return "it is cordoned"\n',
        "",
        (f"{_PLACEMENT}::test_why_a_host_may_not",),
    ),
    Bug(
        "a claim does not compare the cordon",
        "cron/claim_store.py",
        "        compare.append(self._not_cordoned)\n",
        "",
        (f"{_CLAIM_STORE}::test_every_claim_compares_all_that_may_stand_against_it",),
    ),
    Bug(
        "a tick runs under both definitions when --each is changed",
        "cron/claim_store.py",
        "            CreateRevisionIs(self._other_claim(pending), 0),\n",
        "",
        (f"{_CLAIM_STORE}::test_every_claim_compares_all_that_may_stand_against_it",),
    ),
    Bug(
        "ticks that no host may run are reported by nobody",
        "cron/fleet.py",
        "return Place.REPORT if is_first else Place.NONE",
        "return Place.NONE",
        (f"{_FLEET}::test_place_of_a_job",),
    ),
)
