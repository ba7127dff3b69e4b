"""Bugs to plant in how people are told of failures: commands, pings, metrics."""

from tools.planted.bug import Bug

_STATUS = "tests/system/test_conchd_status.py"

BUGS = (
    Bug(
        "run that failed is no error in the log",
        "cron/recorder.py",
        'self._log("error", "run-failed"',
        'self._log("info", "run-failed"',
        ("tests/unit/cron/test_recorder.py::test_run_that_failed_is_an_error_in_the_log",),
    ),
    Bug(
        "storm of failures starts all commands together",
        "cron/on_failure.py",
        "if len(self._under_way) < AT_A_TIME:",
        "if self._under_way is not None:",
        ("tests/unit/cron/test_on_failure.py::test_storm_of_failures",),
    ),
    Bug(
        "dropped commands are not counted",
        "cron/on_failure.py",
        '        self._counts[METRIC, "dropped"] += 1\n',
        "",
        ("tests/unit/cron/test_on_failure.py::test_storm_of_failures",),
    ),
    Bug(
        "last command is forgotten before the next is asked for",
        "cron/on_failure.py",
        "        self._under_way.discard(run)\n",
        "        self._under_way.discard(run)\n        self._watchdog.send(Recorded(run))\n",
        ("tests/unit/cron/test_on_failure.py::test_next_command_is_asked_for_before_the_last_is_forgotten",),
    ),
    Bug(
        "hook that comes too late delays the end of conchd",
        "core/daemon_supervisor.py",
        "if order.hook and self.state not in (DaemonState.RUNNING, DaemonState.DRAINING):",
        "if order.hook and self.state is DaemonState.DONE:",
        ("tests/unit/core/test_daemon_supervisor.py::test_hook_that_comes_too_late_delays_no_end",),
    ),
    Bug(
        "hook gets no time within the drain",
        "core/daemon_supervisor.py",
        "if self._requests.count and not order.hook:",
        "if self._requests.count:",
        ("tests/unit/core/test_daemon_supervisor.py::test_hook_has_its_time_within_the_drain",),
    ),
    Bug(
        "command of an earlier run need not be signed",
        "cron/notifier.py",
        "if tracked is None or (self._job_key is not None and not tracked.job.is_signed_by(self._job_key)):",
        "if tracked is None:",
        ("tests/unit/cron/test_notifier.py::test_command_of_an_earlier_run_must_be_signed",),
    ),
    Bug(
        "supervisor forgets a run before the command is asked for",
        "cron/notifier.py",
        "            self._tasks.spawn(self._run(notices, then))\n",
        "            then()\n            self._tasks.spawn(self._run(notices))\n",
        ("tests/unit/cron/test_notifier.py::test_commands_are_told_of_failures_alone",),
    ),
    Bug(
        "job's variables reach the host's command",
        "cron/notifier.py",
        "= [(self._host_command, {})]",
        "= [(self._host_command, job.env if job else {})]",
        ("tests/unit/cron/test_notifier.py::test_variables_of_the_job_are_for_its_own_command",),
    ),
    Bug(
        "files of a crash are left",
        "cron/output_files.py",
        "            if name not in live:\n",
        "            if name in live:\n",
        ("tests/unit/cron/test_output_files.py::test_what_a_crash_left_is_removed",),
    ),
    Bug(
        "another's directory of files is emptied",
        "cron/output_files.py",
        "if foreign or not os.path.basename(path).startswith(self._start):",
        "if foreign:",
        ("tests/unit/cron/test_output_files.py::test_directory_of_another_is_left_alone",),
    ),
    Bug(
        "end of a run is pinged before its begin",
        "cron/ping.py",
        "                if ping.run not in self._of_run:\n",
        "                if True:\n",
        ("tests/unit/cron/test_ping.py::test_pings_of_one_run_stay_in_order",),
    ),
    Bug(
        "server that sends byte by byte holds a ping for ever",
        "cron/ping_http.py",
        "    timer.start()\n",
        "",
        ("tests/unit/cron/test_ping_http.py::test_servers_of_all_kinds",),
    ),
    Bug(
        "TLS of pings is not verified",
        "cron/ping_http.py",
        "ssl_context=ssl.create_default_context()",
        "ssl_context=ssl._create_unverified_context()",
        ("tests/unit/cron/test_ping_http.py::test_tls_is_verified",),
    ),
    Bug(
        "metrics of a removed job stay",
        "cron/job_counts.py",
        "            del self._jobs[name]\n",
        "            pass\n",
        (f"{_STATUS}::test_metrics_of_jobs",),
    ),
    Bug(
        "what a command left running survives a crash of conchd",
        "cron/daemon.py",
        "_end_survivors(dead | (outputs.earlier() - supervised), daemon.cgroups, self._log)",
        "_end_survivors(dead, daemon.cgroups, self._log)",
        ("tests/system/test_conchd_failures.py::test_run_that_is_lost_in_a_crash",),
    ),
)
