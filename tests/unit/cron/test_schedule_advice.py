"""Schedules that mean something else than their author wishes: refused with what to write, which is valid."""

import re

import pytest

from conch.cron.schedule import parse_schedule
from conch.cron.schedule_advice import check_written
from conch.errors import BadInput


@pytest.mark.parametrize(
    ("expression", "instead"),
    [
        ("*/90 * * * *", "write @every 90m"),
        ("5,*/61 * * * *", "write @every 61m"),
        ("0-30/75 * * * *", "write @every 75m"),
        ("0 */36 * * *", "write @every 36h"),
        ("0 0 */45 * *", "write @every 45d"),
        ("0 0 * * */14", "write @every 14d"),
        ("0 0 1 */18 *", "write the values"),
        ("* * * * * *", "write @every 10s"),
        ("0 0 12 * * MON", "no seconds"),
        ("@every 90m from 08:00", "--schedule '0 8,11,14,17,20,23 * * *' --schedule '30 9,12,15,18,21 * * *'"),
        ("@every 6h starting at 1:30", "--schedule '30 1,7,13,19 * * *'"),
        ("@Every 1d at 07:05", "--schedule '0 8-20/3 * * *'"),
        ("@every 7m from 00:00", "--schedule '0 8-20/3 * * *'"),
        ("@every 90m since yesterday", "--schedule '0 8-20/3 * * *'"),
        ("@every soon from 08:00", "as in @every 90s"),
        ("@every 5m 3", "as in @every 90s"),
    ],
)
def test_wish_is_answered_with_what_to_write(expression: str, instead: str) -> None:
    """One line, and what it proposes can be parsed."""
    with pytest.raises(BadInput) as refused:
        check_written(expression)
    message = str(refused.value)
    assert instead in message
    assert "\n" not in message
    for proposed in re.findall(r"--schedule '([^']+)'|write (@every \w+)", message):
        parse_schedule(proposed[0] or proposed[1])


@pytest.mark.parametrize(
    "expression",
    [
        "*/60 * * * *",
        "*/5 */24 */31 */12 */7",
        "@every 90m",
        "@daily",
        "0 0 L * fri#2",
        "H/15 * * * *",
        "",
        "junk",
        "a b",
    ],
)
def test_the_rest_is_left_to_the_parser(expression: str) -> None:
    """It refuses no valid schedule, and has no opinion on malformed ones."""
    assert check_written(expression) == expression
