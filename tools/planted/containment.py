"""Bugs in `conch/core`: the cgroup of a run."""

from tools.planted.bug import Bug

_CGROUP = "tests/unit/core/test_process_tree_cgroup.py"
_CONTAINMENT = "tests/system/test_containment.py"
_FOUND = "tests/unit/core/test_containment.py"
_KEEPER_PROCESS = "tests/system/test_keeper_process.py"
_ONE_CGROUP = "tests/unit/core/test_cgroup.py"
_PROCFS = "tests/unit/core/test_procfs.py"
_SUPERVISOR = "tests/unit/core/test_supervisor.py"
_TASK = "tests/unit/core/test_task.py"

# Another process does it, a second after the command has begun to run.
_ENTER_AFTER_EXEC = """\
        us = f"/proc/{os.getpid()}"
        before = open(f"{us}/cmdline").read()
        if os.fork() == 0:
            if os.fork() == 0:
                while open(f"{us}/cmdline").read() == before:
                    pass
                import time
                time.sleep(1)
                with open(f"{cgroup.path}/cgroup.procs", "w") as file:
                    file.write(us[6:])
            os._exit(0)
        os.wait()
"""

BUGS = (
    Bug(
        "command is not born in its cgroup",
        "core/spawn.py",
        "            return cgroup.fork(), None\n",
        "            return os.fork(), None\n",
        (f"{_CGROUP}::test_command_is_in_its_cgroup_from_its_first_instruction_on",),
    ),
    Bug(
        "thread that forks keepers asks for Python's lock while a child is born in a cgroup",
        "core/keeper_process.py",
        "        sys.setswitchinterval(_NEVER_S)\n",
        "",
        (f"{_KEEPER_PROCESS}::test_thread_that_forks_keepers_never_asks_for_pythons_lock",),
    ),
    Bug(
        "command that cannot be born in its cgroup is not put there",
        "core/spawn.py",
        "        cgroup.enter()\n",
        "        pass\n",
        (f"{_CGROUP}::test_command_enters_its_cgroup_where_none_can_be_born_there",),
    ),
    Bug(
        "command is put into its cgroup after exec",
        "core/spawn.py",
        "        cgroup.enter()\n",
        _ENTER_AFTER_EXEC,
        (f"{_CGROUP}::test_command_enters_its_cgroup_where_none_can_be_born_there",),
    ),
    Bug(
        "what lives in the cgroup does not keep a run from being over",
        "core/process_tree.py",
        "return self._cgroup is None or self._cgroup.wait_until_empty()",
        "return True",
        (f"{_CGROUP}::test_run_is_not_over_while_anything_lives_in_its_cgroup",),
    ),
    Bug(
        "release waits until the cgroup of the run is removed",
        "core/supervisor.py",
        """\
            self._on_attempt_over(attempt.over)
            # others wait for the release, nobody for this
            self._clear_away(attempt, attempt.over, about)
""",
        """\
            self._clear_away(attempt, attempt.over, about)
            self._on_attempt_over(attempt.over)
""",
        (f"{_SUPERVISOR}::test_release_does_not_wait_for_the_cgroup_of_the_run",),
    ),
    Bug(
        "cgroup of a run is not removed",
        "core/process_tree.py",
        "            self._cgroup.remove()\n        return Usage",
        "        return Usage",
        (f"{_CGROUP}::test_command_is_in_its_cgroup_from_its_first_instruction_on",),
    ),
    Bug(
        "cgroup of a run in the wrapper is not removed",
        "core/supervisor.py",
        "            self._clear_away(attempt, attempt.over, about)\n",
        "",
        (f"{_SUPERVISOR}::test_cgroup_of_a_run_is_removed_however_it_ends",),
    ),
    Bug(
        "result says nothing of what was used",
        "core/task.py",
        "            self._cpu_s = round(self._cpu_s + used.cpu_s, 3)\n",
        "",
        (f"{_TASK}::test_result_says_what_all_attempts_used",),
    ),
    Bug(
        "empty cgroup that is about to be entered is removed",
        "core/cgroup.py",
        "        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "        fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)\n",
        (f"{_CGROUP}::test_cgroup_that_is_about_to_be_entered_is_not_removed_as_left_behind",),
    ),
    Bug(
        "keeper does not kill what is in the cgroup",
        "core/procfs.py",
        "            Cgroup(target.cgroup).kill()\n",
        "            pass\n",
        (f"{_CGROUP}::test_process_that_hides_is_killed_from_outside",),
    ),
    Bug(
        "keeper does not ask whether the cgroup is empty",
        "core/procfs.py",
        "        return Cgroup(target.cgroup).populated()\n",
        "        return False\n",
        (f"{_PROCFS}::test_run_is_alive_as_long_as_the_kernel_says_that_its_cgroup_is",),
    ),
    Bug(
        "cgroup that was made anew is taken for the one that was left",
        "core/cgroup.py",
        "locked = os.path.samestat(os.fstat(folder), os.stat(path))",
        "locked = True",
        (f"{_ONE_CGROUP}::test_lock_on_one_that_was_made_anew_meanwhile_is_none",),
    ),
    Bug(
        "cgroup is not frozen while its processes are killed one by one",
        "core/cgroup.py",
        '            _write(f"{self.path}/cgroup.freeze", b"1")\n',
        "            pass\n",
        (f"{_ONE_CGROUP}::test_nothing_can_fork_while_it_is_killed_one_by_one",),
    ),
    Bug(
        "removal of a cgroup does not wait for what has just ended",
        "core/cgroup.py",
        "            self.wait_until_empty()\n            for",
        "            for",
        (f"{_ONE_CGROUP}::test_removal_waits_for_the_kernel_to_note_an_end",),
    ),
    Bug(
        "what lives in a cgroup that a dead conch left is killed",
        "core/cgroup.py",
        "        return not cgroup.populated() and cgroup.remove()",
        "        return cgroup.kill() or cgroup.remove()",
        (f"{_CONTAINMENT}::test_cgroup_in_which_something_lives_is_left_alone",),
    ),
    Bug(
        "directory is taken for our cgroup that another's name begins with",
        "core/containment.py",
        'own.startswith(f"{root}/")',
        "own.startswith(root)",
        (f"{_FOUND}::test_directories_of_our_cgroup",),
    ),
    Bug(
        "run that must have a cgroup starts without",
        "core/containment.py",
        "            if self._mode == CGROUP:\n                raise OSError",
        "            if self._mode == TREE:\n                raise OSError",
        (f"{_FOUND}::test_run_that_must_have_one_does_not_start_without",),
    ),
    Bug(
        "run of conchd is over while something lives in its cgroup",
        "core/daemon_loop.py",
        "child.exit_code() is None or child.populated() or child.members",
        "child.exit_code() is None or child.members",
        (f"{_CONTAINMENT}::test_what_escaped_from_a_run_of_conchd_is_dead_before_its_key_is_gone",),
    ),
    Bug(
        "what left the group gets no SIGTERM in its cgroup",
        "core/process_tree.py",
        "                self._cgroup.signal(number, except_group=self.pid)\n",
        "                pass\n",
        (f"{_CONTAINMENT}::test_all_of_the_run_gets_sigterm_before_sigkill",),
    ),
    Bug(
        "cgroup that lists no process is taken for empty",
        "cron/daemon.py",
        "for pid in cgroup.pids() or {0}]",
        "for pid in cgroup.pids()]",
        ("tests/unit/cron/test_daemon.py::test_run_survives_as_long_as_its_cgroup_is_populated",),
    ),
    Bug(
        "cgroup that cannot be read is asked again and again",
        "core/procfs.py",
        "            if not empty:\n",
        "            if not entry.cgroup:\n",
        (f"{_PROCFS}::test_wait_for_what_nothing_shows_takes_the_time",),
    ),
)
