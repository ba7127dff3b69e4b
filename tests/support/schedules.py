"""Helpers of the tests of schedules."""

from datetime import datetime
from zoneinfo import ZoneInfo

from conch.cron.schedule import parse_schedule

NEW_YORK, BERLIN, LORD_HOWE = "America/New_York", "Europe/Berlin", "Australia/Lord_Howe"


def unix(text: str, zone: str = "UTC") -> int:
    at = datetime.fromisoformat(text)
    return int((at if at.tzinfo else at.replace(tzinfo=ZoneInfo(zone))).timestamp())


def ticks(expression: str, after: str, *, zone: str = "UTC", count: int = 3, name: str | None = None) -> list[str]:
    """The ticks after a local time, as local times: with their offset where the zone is not UTC."""
    schedule = parse_schedule(expression, zone=zone, name=name)
    found, instant = [], unix(after, zone)
    for _ in range(count):
        following = schedule.next_after(instant)
        assert following is not None
        instant = following
        shown = datetime.fromtimestamp(instant, ZoneInfo(zone)).isoformat(" ")
        found.append(shown.removesuffix("+00:00").removesuffix(":00"))
    return found
