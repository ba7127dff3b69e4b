"""Bugs in when jobs are due: pauses, expiry, unions, jitter, days that depend on the month."""

from tools.planted.bug import Bug

_PLANNER = "tests/unit/cron/test_planner.py"
_SPECIAL = "tests/unit/cron/test_special_days.py"
_JOB = "tests/unit/cron/test_job.py"
_ADVICE = "tests/unit/cron/test_schedule_advice.py"
_EXPLAIN = "tests/unit/cron/test_explain.py"

BUGS = (
    Bug(
        "pause has no end",
        "cron/job.py",
        "return self.paused and (self.paused_until is None or instant < self.paused_until)",
        "return self.paused",
        (f"{_JOB}::test_pause_with_an_end",),
    ),
    Bug(
        "tick at the end of a pause is left out",
        "cron/job.py",
        "after = max(after, self.paused_until - 1)",
        "after = max(after, self.paused_until)",
        (f"{_PLANNER}::test_paused_job_goes_on_when_its_pause_ends",),
    ),
    Bug(
        "expired job goes on",
        "cron/schedule.py",
        "end = END if self.until is None else min(END, self.until + 1)",
        "end = END",
        (f"{_PLANNER}::test_expired_job_has_no_ticks",),
    ),
    Bug(
        "tick of two schedules counts twice",
        "cron/schedule.py",
        "total += all(other.next_after(tick - 1) != tick for other in counted)",
        "total += 1",
        ("tests/unit/cron/test_schedule_properties.py::test_a_union_is_all_ticks_of_its_schedules",),
    ),
    Bug(
        "each host draws its own jitter",
        "cron/job.py",
        'f"jitter\\0{self.name}\\0{tick}".encode()',
        'f"jitter\\0{id(self)}\\0{tick}".encode()',
        (f"{_PLANNER}::test_jitter_puts_off_each_tick_by_an_offset_of_its_own",),
    ),
    Bug(
        "jitter overtakes the next tick",
        "cron/job.py",
        "limit_s = self.jitter_s if following is None else min(self.jitter_s, following - tick)",
        "limit_s = self.jitter_s",
        (f"{_PLANNER}::test_jitter_longer_than_the_interval_loses_no_tick",),
    ),
    Bug(
        "weekday nearest to the 1st lies in the month before",
        "cron/special_days.py",
        "return date - 1 if date > 1 else 3",
        "return date - 1",
        (f"{_SPECIAL}::test_they_are_the_days_that_they_say",),
    ),
    Bug(
        "job does not say that it needs days of the month",
        "cron/features.py",
        "    if any(map(stand_in, schedules)):\n        needs.add(_DAYS)\n",
        "",
        (f"{_SPECIAL}::test_a_daemon_must_know_them",),
    ),
    Bug(
        "job that needs a feature can be read by earlier daemons",
        "cron/job.py",
        'written["schedule"] = schedules[0] if not needs else list(schedules)',
        'written["schedule"] = schedules[0] if len(schedules) == 1 else list(schedules)',
        (f"{_JOB}::test_a_job_says_which_features_it_needs",),
    ),
    Bug(
        "step that is wider than its field is taken for what it is not",
        "cron/schedule_advice.py",
        "if match is not None and int(match[1]) > size:",
        "if match is not None and int(match[1]) > 2 * size:",
        (f"{_ADVICE}::test_wish_is_answered_with_what_to_write",),
    ),
    Bug(
        "explanation mixes up fixed times and others",
        "cron/explain.py",
        '("the first time" if rule.fixed else "both times")',
        '("both times" if rule.fixed else "the first time")',
        (f"{_EXPLAIN}::test_what_a_change_of_the_clock_does",),
    ),
)
