"""The script to run after a deploy: what it reports of a good cluster and of a broken conch, and that it cleans up."""

import signal
import subprocess
from pathlib import Path

import pytest

from tests.faults.cluster.conftest import Three
from tests.support.conch import CONCH, Bench, marked, wait_for
from tests.support.cron import Fleet

SCRIPT = str(Path(__file__).parents[3] / "conch-smoke.sh")
CHECKS = 15


def smoke(bench: Bench, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["sh", SCRIPT],
        env={**bench.environment, "CONCH": CONCH, **environment},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def lasting(bench: Bench) -> list[str]:
    """Return the keys that do not expire by design."""
    found = bench.keys()
    return [key for key in found if "/fire/" not in key and "/result/" not in key]


def check_nothing_left(bench: Bench) -> None:
    """Check that nothing is left except claims and results, which expire; delete those."""
    wait_for(lambda: not marked(bench.mark), "no process left")
    wait_for(lambda: not lasting(bench), "no key left")
    bench.etcd.delete_prefix(bench.prefix)


def test_script_is_clean_shell() -> None:
    """shellcheck accepts it as POSIX sh."""
    subprocess.run(["shellcheck", "--shell", "sh", SCRIPT], check=True)


def test_good_cluster_passes(three: Three) -> None:
    """Every check passes; the script starts its own conchd where none runs."""
    done = smoke(three.bench)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASS") == CHECKS
    assert "FAIL" not in done.stdout
    check_nothing_left(three.bench)


def test_existing_fleet_is_used(fleet: Fleet) -> None:
    """The cluster's daemons run the schedule, under the cluster's prefix."""
    fleet.start("a")
    done = smoke(fleet.bench)
    assert done.returncode == 0, done.stdout + done.stderr
    found = fleet.bench.keys()
    assert [key for key in found if "/cron/result/smoke-" in key]


def test_broken_conch_fails_the_checks(conch: Bench, tmp_path: Path) -> None:
    """This conch does nothing and reports success."""
    liar = tmp_path / "conch"
    liar.write_text("#!/bin/sh\nexit 0\n")
    liar.chmod(0o755)
    done = smoke(conch, CONCH=str(liar))
    assert done.returncode == 1
    assert "FAIL a vacant office is vacant" in done.stdout


def test_conch_that_excludes_nobody_fails_checks(conch: Bench, tmp_path: Path) -> None:
    """This conch runs every command immediately, whoever holds."""
    naive = tmp_path / "conch"
    naive.write_text(
        f'#!/bin/sh\ncase "$*" in *"echo second"*|*nonblock*|*conchd*|*cron*) exec {CONCH} "$@";; *" -- "*) '
        'while [ "$1" != -- ]; do shift; done; shift; exec "$@";; esac\nexit 1\n'
    )
    naive.chmod(0o755)
    done = smoke(conch, CONCH=str(naive))
    assert done.returncode == 1
    assert "FAIL a taken office is not taken twice" in done.stdout
    assert "FAIL a third gets none" in done.stdout
    check_nothing_left(conch)


def test_unreachable_cluster_fails(conch: Bench) -> None:
    """The script says why and does not hang."""
    done = smoke(conch, CONCH_ENDPOINTS="127.0.0.1:1", CONCH_DIAL_TIMEOUT="0.2s")
    assert done.returncode == 1
    assert "no endpoint answered" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_script_cleans_up(conch: Bench, number: int) -> None:
    """It has commands in the background at that time."""
    script = subprocess.Popen(
        ["sh", SCRIPT],
        env={**conch.environment, "CONCH": CONCH},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert script.stdout is not None
    for line in script.stdout:
        if "two slots" in line:
            break
    script.send_signal(number)
    assert script.wait(30) == 128 + number
    script.stdout.close()
    check_nothing_left(conch)
