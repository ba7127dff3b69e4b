"""What is no schedule or time zone is refused with a message that names it."""

import subprocess
import sys

import croniter
import pytest

from conch.cron.schedule import LONGEST_EXPRESSION, parse_schedule
from conch.errors import BadInput


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "0 fields, not five"),
        (" \t ", "0 fields, not five"),
        ("*", "1 fields, not five"),
        ("* * * *", "4 fields, not five: minute hour day-of-month month day-of-week"),
        ("* * * * * *", "6 fields, not five"),
        ("* * * * * * 2030", "7 fields, not five"),
        ("60 * * * *", "bad minute '60': 60 is not between 0 and 59"),
        ("* 24 * * *", "bad hour '24'"),
        ("* * 0 * *", "bad day-of-month '0'"),
        ("* * 32 * *", "bad day-of-month '32'"),
        ("* * * 0 *", "bad month '0'"),
        ("* * * 13 *", "bad month '13'"),
        ("* * * * 8", "bad day-of-week '8': 8 is not between 0 and 7"),
        ("* * 0-5 * *", "0 is not between 1 and 31"),
        ("50-60 * * * *", "60 is not between"),
        ("61/2 * * * *", "61 is not between"),
        ("-1 * * * *", "bad minute '-1'"),
        ("1- * * * *", "bad minute '1-'"),
        ("1-2-3 * * * *", "bad minute '1-2-3'"),
        ("30-10 * * * *", "runs backwards"),
        ("0 22-2 * * *", "runs backwards"),
        ("0 0 * nov-feb *", "runs backwards"),
        ("0 0 * * fri-mon", "runs backwards"),
        ("*/0 * * * *", "a step is at least 1"),
        ("5-5/0 * * * *", "a step is at least 1"),
        ("H/0 * * * *", "a step is at least 1"),
        ("*/ * * * *", "bad minute"),
        ("*/-5 * * * *", "bad minute"),
        ("*/5/5 * * * *", "bad minute"),
        ("*/1.5 * * * *", "bad minute"),
        ("/5 * * * *", "bad minute"),
        ("*-5 * * * *", "bad minute"),
        ("** * * * *", "bad minute"),
        ("1,,2 * * * *", "bad minute ''"),
        (",1 * * * *", "bad minute ''"),
        ("1, * * * *", "bad minute ''"),
        ("jan * * * *", "'jan' is neither a number nor a name"),
        ("* * * monday *", "bad month"),
        ("* * * * monday", "'monday' is neither"),
        ("* * mon * *", "bad day-of-month"),
        ("0 0 * L *", "bad month 'L': write *, values"),
        ("L * * * *", "bad minute 'L'"),
        ("0 0 L-31 * *", "L-n goes from L-1 to L-30"),
        ("0 0 1-L * *", "or a day as L, L-3, LW, 15W"),
        ("0 0 L/2 * *", "bad day-of-month 'L/2'"),
        ("0 0 * * L", "bad day-of-week 'L': write *, values, ranges 1-5, steps */5, or H, or a day as 5L, fri#2"),
        ("0 0 W * *", "bad day-of-month"),
        ("0 0 0W * *", "nW goes from 1W to 31W"),
        ("0 0 32W * *", "nW goes from 1W to 31W"),
        ("0 0 WL * *", "bad day-of-month"),
        ("0 0 5L * *", "bad day-of-month"),
        ("0 0 1#2 * *", "bad day-of-month"),
        ("0 0 * * LW", "bad day-of-week"),
        ("0 0 * * 15W", "bad day-of-week"),
        ("0 0 * * L5", "bad day-of-week"),
        ("0 0 * * 8L", "bad day-of-week"),
        ("0 0 * * fry#2", "bad day-of-week"),
        ("0 0 * * 1#0", "#1 to #5"),
        ("0 0 * * 1#6", "#1 to #5"),
        ("0 0 * * 1-3#2", "bad day-of-week"),
        ("0 0 30W 2 *", "it will never fire"),
        ("0 0 L-29 2 *", "it will never fire"),
        ("0 0 ? * *", "bad day-of-month"),
        ("R * * * *", "bad minute 'R'"),
        ("R/5 * * * *", "bad minute 'R/5'"),
        ("R(0-5) * * * *", "bad minute"),
        ("H(0-60) * * * *", "60 is not between"),
        ("H(9-5) * * * *", "runs backwards"),
        ("H(5) * * * *", "bad minute"),
        ("H-5 * * * *", "bad minute"),
        ("H(0-29)/ * * * *", "bad minute"),
        ("H * * * * *", "6 fields"),
        ("1" * 400 + " * * * *", "bad minute"),
        ("*/" + "1" * 400 + " * * * *", "bad minute"),
        ("٣ * * * *", "printable ascii"),
        ("*\N{NO-BREAK SPACE}* * * *", "printable ascii"),
        ("* * * * *\n", "printable ascii"),
        ("*\n* * * *", "printable ascii"),
        ("* * * * *\r", "printable ascii"),
        ("* * * * \x00", "printable ascii"),
        ("\x1b[31m * * * *", "printable ascii"),
        ("* * * * \ud800", "printable ascii"),
        ("*" * (LONGEST_EXPRESSION + 1), "longer than 1000 characters"),
        ("@reboot", "@reboot is not supported"),
        ("@never", "write one of @hourly"),
        ("@", "write one of @hourly"),
        ("@daily *", "write one of @hourly"),
        ("@ daily", "write one of @hourly"),
        ("@everyday", "write one of @hourly"),
        ("@every", "needs one duration"),
        ("@every 1h 30m", "needs one duration"),
        ("@every5m", "write one of @hourly"),
        ("@every 0", "whole seconds, at least 1s"),
        ("@every 500ms", "whole seconds, at least 1s"),
        ("@every 1.5s", "whole seconds, at least 1s"),
        ("@every 1001ms", "whole seconds, at least 1s"),
        ("@every -5s", "is not a duration"),
        ("@every fortnight", "is not a duration"),
        ("@every 1000000h", "too long"),
    ],
)  # fmt: skip
def test_what_is_no_schedule_is_refused(expression: str, message: str) -> None:
    """With one printable line that names the expression and what is wrong with it."""
    with pytest.raises(BadInput) as caught:
        parse_schedule(expression, name="x")
    assert message in str(caught.value)
    assert str(caught.value).startswith("bad schedule")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("expression", ["H * * * *", "0 H/6 * * *", "0 0 * * 1,H(2-3)"])
def test_hashed_fields_need_a_name(expression: str) -> None:
    """`cron next` has none without --job."""
    with pytest.raises(BadInput, match="needs a job name"):
        parse_schedule(expression)


@pytest.mark.parametrize(
    "zone",
    [
        "", " ", "UTC ", "UTC\n", "utc", "Europe/Nowhere", "Europe", "Europe/", "/Europe/Berlin", "Europe//Berlin",
        "..", "../zoneinfo/UTC", "Europe/../UTC", "/etc/localtime", "localtime", "posixrules", "Factory", "posix/UTC",
        "right/UTC", "zone.tab", "tzdata.zi", "leapseconds", "Ä", "UTC\0", "a" * 300, "a/" * 3000 + "a", "\ud800",
        "CET-1CEST", "+01:00", ":UTC", "UTC+1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("expression", ["@daily", "@every 5s"])
def test_what_is_no_time_zone_is_refused(zone: str, expression: str) -> None:
    """A path, what the host calls its own zone, and POSIX rules are none: other hosts would read something else."""
    with pytest.raises(BadInput, match="unknown time zone") as caught:
        parse_schedule(expression, zone=zone)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "zone", ["UTC", "Etc/GMT-14", "GMT0", "EST5EDT", "America/Argentina/Buenos_Aires", "Asia/Ust-Nera", "NZ-CHAT"]
)  # fmt: skip
def test_keys_of_the_iana_database_are_zones(zone: str) -> None:
    """With their digits, signs and levels."""
    assert parse_schedule("@daily", zone=zone).zone == zone


def test_zones_come_from_the_package_where_the_host_has_none() -> None:
    """A minimal container has no /usr/share/zoneinfo."""
    code = "from conch.cron.schedule import *; print(parse_schedule('30 2 * * *', zone='Europe/Berlin').next_after(0))"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={"PYTHONTZPATH": "", "TZ": "America/New_York"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout == "5400\n"


def test_every_needs_no_croniter() -> None:
    """It is slow to import."""
    code = (
        "import sys; from conch.cron.schedule import parse_schedule as p\n"
        "p('@every 5s'); assert 'croniter' not in sys.modules; p('@daily'); assert 'croniter' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_croniter_refuses_is_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should another release of it be stricter than we are."""

    def refuse(*args: object) -> None:
        raise croniter.CroniterBadCronError("not today")

    monkeypatch.setattr(croniter.croniter, "expand", refuse)
    with pytest.raises(BadInput, match="not today"):
        parse_schedule("17 3 5 11 1-6/5")
