"""Jobs and their parts, fed with anything."""

from hypothesis import given

from conch.cron.job import UnreadableJob, parse
from conch.cron.job_fields import parse_semaphore, parse_variable
from conch.cron.values import FIRST_TICK
from conch.errors import BadInput
from conch.keys import check_name
from tests.support.fuzz import ARGUMENT, JOB, anything, check_message


@given(ARGUMENT)
def test_semaphores_and_variables_of_jobs(text: str) -> None:
    """Any text is NAME:N or bad input, and K=V or bad input."""
    try:
        name, slots = parse_semaphore(text)
    except BadInput as error:
        check_message(error)
    else:
        assert check_name(name) == name
        assert slots >= 1
    try:
        variable, value = parse_variable(text)
    except BadInput as error:
        check_message(error)
    else:
        assert variable
        assert f"{variable}={value}" == text


@given(anything(JOB))
def test_jobs(value: bytes) -> None:
    """Any value is unreadable, or a job that can be planned and written again."""
    try:
        job = parse("j", value)
    except UnreadableJob as error:
        check_message(error)
        return
    assert parse("j", job.encode()) == job
    assert job.late_after_s(0, 60) > 0
    tick = job.ticks().next_after(FIRST_TICK)
    assert tick is None or tick > FIRST_TICK
