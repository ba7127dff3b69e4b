"""Crontabs as TOML. The files in `tests/support/crontabs` have the forms that Debian's have."""

import re
import subprocess
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.cron.crontab import read_crontab, to_toml
from conch.cron.definition import build
from conch.cron.job_file import read_file
from conch.errors import BadInput

FOLDER = Path(__file__).parents[2] / "support" / "crontabs"
SYSTEM = sorted(path.name for path in FOLDER.iterdir() if path.name.startswith("debian"))


def imported(text: str | bytes, *, system: bool = False, zone: str | None = None) -> tuple[str, list[str]]:
    """Return the TOML of a crontab, and the warnings."""
    content = text.encode() if isinstance(text, str) else text
    crontab = read_crontab("tab", content, system=system, zone=zone)
    return "".join(to_toml(crontab, "tab")), crontab.warnings


def jobs_of(text: str | bytes, *, system: bool = False, zone: str | None = None) -> dict[str, dict[str, Any]]:
    """Return the jobs of a crontab by name, as the file has them; the file applies."""
    toml, _ = imported(text, system=system, zone=zone)
    for name, job in read_file("f", toml.encode()).jobs.items():
        build(name, job.fields)
    jobs: dict[str, dict[str, Any]] = tomllib.loads(toml).get("job", {})
    return jobs


@pytest.mark.parametrize("name", SYSTEM)
def test_every_line_of_debians_crontabs_is_a_job(name: str) -> None:
    """The user is a comment, not a part of the command."""
    content = (FOLDER / name).read_bytes()
    toml, warnings = imported(content, system=True, zone="Europe/Berlin")
    lines = [line for line in content.decode().splitlines() if re.match(r"[0-9*]", line)]
    jobs = jobs_of(content, system=True, zone="Europe/Berlin")
    assert len(jobs) == len(lines)
    assert warnings == []
    assert toml.count("# user: root\n") == len(lines)
    for job, line in zip(jobs.values(), lines, strict=True):
        assert line.endswith(job["cmd"][-1])
        assert (job["schedule"].split(), job["tz"]) == (line.split()[:5], "Europe/Berlin")
        assert job["cmd"][:2] == ["/bin/sh", "-c"]


def test_names_of_debians_jobs() -> None:
    """They say what is run."""
    names = [name for path in SYSTEM for name in jobs_of((FOLDER / path).read_bytes(), system=True)]
    assert names == [
        "invoke-rc.d-anacron",
        "e2scrub_all_cron",
        "e2scrub_all",
        "sessionclean",
        "run-parts-cron.hourly",
        "run-parts-cron.daily",
        "run-parts-cron.weekly",
        "run-parts-cron.monthly",
    ]


def test_user_crontab_with_all_that_people_write() -> None:
    """Blanks, carriage returns, quotes, zones, `%`, nicknames, and what conch does not do."""
    content = (FOLDER / "user").read_bytes()
    jobs = jobs_of(content)
    backup = jobs["backup.sh"]
    assert backup == {
        "schedule": "30 3 * * *",
        "tz": "Europe/Berlin",
        "cmd": ["/bin/bash", "-c", "/opt/backup.sh --full >> /var/log/backup.log 2>&1"],
        "run-ttl": "1d",
        "env": {"SHELL": "/bin/bash", "PATH": "/usr/bin:/bin", "DB_PASSWORD": "a b", "EMPTY": ""},
    }
    mails = [job for name, job in jobs.items() if name.startswith("mail-")]
    assert [job["tz"] for job in mails] == ["Europe/Berlin", "America/New_York"]
    assert mails[0]["cmd"][-2:] == ['mail -s "report of %d" boss', "\nDear boss,\nall is 100% well.\n"]
    assert mails[1]["cmd"][-2:] == ["mail -s hello you", "Hello\n"]
    assert jobs["daily.py"]["schedule"] == "@daily"
    assert jobs["daily.py"]["cmd"][-1] == "LANG=C /opt/daily.py"
    assert jobs["quiet"]["schedule"] == "5 4 * * *"
    assert jobs["spread"]["schedule"] == "H H(2-4) * * *"
    assert len([name for name in jobs if name.startswith("php-artisan-")]) == 3

    toml, warnings = imported(content)
    assert "# nightly backup\n" in toml
    assert "MAILTO=ops@example.com: conch does not do this" in toml
    assert "# not imported: @reboot /opt/start" in toml
    assert [re.split(": ", warning)[0] for warning in warnings] == ["tab:3", "tab:16", "tab:19", "tab:21"]
    assert ["MAILTO" in warnings[0], "@reboot" in warnings[1], "*/90" in warnings[2], "never" in warnings[3]] == [
        True
    ] * 4


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("cat%a%b", "a\nb\n"),
        ("cat; echo $0%x", "x\n{shell}\n"),
        ("echo 50\\%", "50%\n"),
        ('read a; read b; echo "$b-$a"%it\'s%"q" \\% $x', '"q" % $x-it\'s\n'),
        ("true%" + "y" * 20_000, ""),
    ],
)
def test_input_after_percent_signs_reaches_the_command(command: str, says: str, shell: str) -> None:
    """The job's command, run as it is, does what cron does; its exit code is the command's."""
    (job,) = jobs_of(f"SHELL={shell}\n* * * * * {command}\n").values()
    done = subprocess.run(job["cmd"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout, done.stderr) == (0, says.format(shell=shell), "")


def test_exit_code_is_that_of_a_command_with_input() -> None:
    (job,) = jobs_of("* * * * * cat; exit 3%x\n").values()
    assert subprocess.run(job["cmd"], check=False, stdout=subprocess.DEVNULL).returncode == 3


def test_names_are_stable_and_unique() -> None:
    """A line that comes, goes or moves changes no other name; namesakes are told apart by what they are."""
    lines = ["0 1 * * * /opt/a x", "0 2 * * * /opt/a y", "0 3 * * * /opt/b"]
    names = {job["cmd"][-1]: name for name, job in jobs_of("\n".join(lines)).items()}
    again = {job["cmd"][-1]: name for name, job in jobs_of("\n".join(["@daily c", *lines[::-1]])).items()}
    assert again == {**names, "c": "c"}
    assert len(set(names.values())) == 3
    assert names["/opt/b"] == "b"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("* * * * *", "tab:1: neither a variable"),
        ("\n\n* * * *  x", "tab:3: neither a variable"),
        ("@daily", "tab:1: neither"),
        ("hello", "tab:1: neither"),
        ("=x", "tab:1: neither"),
        (b"* * * * * caf\xe9", "tab:1: not UTF-8"),
        (b"* * * * * a\0b", "tab:1: a NUL"),
    ],
)
def test_line_that_is_none_is_refused(text: str | bytes, says: str) -> None:
    """With its number, as crontab(1) does."""
    with pytest.raises(BadInput, match=says):
        imported(text)


def test_system_crontab_without_a_command_is_refused() -> None:
    """A user alone is none."""
    with pytest.raises(BadInput, match="tab:1: no command after the user 'root'"):
        imported("* * * * * root", system=True)
    _, warnings = imported("* * * * * root x")
    assert "--system" in warnings[0]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80), st.booleans())
def test_any_text_is_refused_or_gives_a_file_that_applies(text: str, system: bool) -> None:
    with suppress(BadInput):
        jobs_of(text, system=system)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\0%\\"), min_size=1, max_size=60))
def test_any_command_gives_a_job_that_has_it(command: str) -> None:
    jobs = jobs_of(f"0 3 * * * x{command}y\n")
    assert [job["cmd"][-1] for job in jobs.values()] == [f"x{command}y"]
