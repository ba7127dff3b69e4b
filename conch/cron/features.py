"""Features of jobs that not every daemon of a fleet has: what a job needs, and what this release can do.

A fleet runs on in the middle of an upgrade: a daemon claims no tick of a job that needs what it cannot do. A job says
what it needs in its field `needs`, a daemon what it can do in its registration (`can`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from conch.cron.special_days import stand_in
from conch.errors import BadInput

# Fields that change how a job runs; a daemon that does not know one would run the job otherwise than it says.
_FIELDS = ("on", "each", "expires", "jitter", "keep_output", "on_failure", "ping", "env_file")
# More than one schedule.
_SCHEDULES = "schedules"
_DEFAULTS: tuple[object, ...] = (None, False, [], 0, 0.0, "failed")
# Days of a schedule that depend on the month.
_DAYS = "special_days"
CAN = frozenset({*_FIELDS, _SCHEDULES, _DAYS})


def derived_needs(fields: Mapping[str, Any], schedules: Sequence[str]) -> list[str]:
    """Return the features that a job with these fields needs, sorted: those that follow from them, and unknown ones.

    Raises `BadInput` if `needs` is no list of texts.
    """
    said = fields.get("needs")
    if said is not None and (not isinstance(said, list) or not all(isinstance(feature, str) for feature in said)):
        raise BadInput("needs: must be a list of texts")
    needs = {feature for feature in said or () if feature not in CAN}
    needs |= {field for field in _FIELDS if fields.get(field) not in _DEFAULTS}
    if len(schedules) > 1:
        needs.add(_SCHEDULES)
    if any(map(stand_in, schedules)):
        needs.add(_DAYS)
    return sorted(needs)
