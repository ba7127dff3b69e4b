"""Bugs in what is kept of runs, and in how they are ended on request."""

from tools.planted.bug import Bug

_OUTPUT = "tests/system/test_run_output.py"
_TAIL = "tests/unit/core/test_output_tail.py"
_TASK = "tests/unit/core/test_task.py"

BUGS = (
    Bug(
        "kept output is cut within a character",
        "core/output_tail.py",
        "while begin < min(3, len(data)) and data[begin] & 0xC0 == 0x80:",
        "while begin < 0:",
        (f"{_TAIL}::test_what_is_kept",),
    ),
    Bug(
        "output of good runs is kept",
        "core/task.py",
        'is_kept = self.order.keep_output == "always" or',
        'is_kept = self.order.keep_output != "never" or',
        (f"{_TASK}::test_output_is_reported_as_the_order_says",),
    ),
    Bug(
        "host cannot forbid that output is kept",
        "core/daemon_loop.py",
        'if self._keep_output and order.keep_output != "never" and not order.hook:',
        'if order.keep_output != "never" and not order.hook:',
        (f"{_OUTPUT}::test_host_may_forbid_it",),
    ),
    Bug(
        "unsigned variables get into signed runs",
        "cron/requests.py",
        "if request.wishes.env and self._ports.signed_only:",
        "if False:",
        (f"{_OUTPUT}::test_variables_do_not_get_into_signed_runs",),
    ),
    Bug(
        "file of variables counts more than the job",
        "core/child_environment.py",
        "return {**environment, **read, **(job_environment or {}), **ours}",
        "return {**environment, **(job_environment or {}), **read, **ours}",
        (f"{_OUTPUT}::test_env_file_is_read_on_the_host",),
    ),
    Bug(
        "file of variables is waited for",
        "core/env_file.py",
        "os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK",
        "os.O_RDONLY | os.O_CLOEXEC",
        ("tests/unit/core/test_env_file.py::test_what_cannot_be_used_is_named",),
    ),
    Bug(
        "run needs to read conch's own code",
        "core/daemon_loop.py",
        "import conch.core.env_file  #",
        "#",
        (f"{_OUTPUT}::test_env_file_of_a_user_who_cannot_read_conch",),
    ),
)
