"""Bugs in `conch/core`: the supervising process."""

from tools.planted.bug import Bug

_CRON_RUN = "tests/system/test_cron_run.py"
_DEFECT = "tests/system/test_defect.py"
_HOST = "tests/system/test_host.py"
_LOOP = "tests/unit/core/test_event_loop.py"
_NAMESAKES = "tests/system/test_namesakes.py"
_OUTPUT = "tests/unit/core/test_output_relay.py"
_PRINTED = "tests/system/test_conchd_output.py"
_PROCESS = "tests/system/test_process.py"
_PROCFS = "tests/unit/core/test_procfs.py"
_RUN = "tests/system/test_elect_run.py"
_SUPERVISOR = "tests/unit/core/test_supervisor.py"
_DAEMON = "tests/unit/core/test_daemon_supervisor.py"
_TERMINAL = "tests/system/test_terminal_shared.py"
_WAITING = "tests/system/test_waiting_child.py"

BUGS = (
    # -- the end of the command
    Bug(
        "supervisor ignores the deadline",
        "core/attempt.py",
        "return lost_from is not None and self._ports.now() >= lost_from",
        "return False",
        (f"{_SUPERVISOR}::test_deadline_that_is_not_renewed",),
    ),
    Bug(
        "no margin before the deadline",
        "core/deadline.py",
        "        return deadline - self.margin_s\n",
        "        return deadline\n",
        (f"{_SUPERVISOR}::test_deadline_that_is_not_renewed",),
    ),
    Bug(
        "renewal takes a termination back",
        "core/attempt.py",
        "        self._kill_at = kill_at\n",
        "        self._kill_at = None\n",
        (f"{_SUPERVISOR}::test_terminating_is_final",),
    ),
    Bug(
        "kill of the process, not of its group",
        "core/process_tree.py",
        "            os.killpg(self.pid, number)\n",
        "            os.kill(self.pid, number)\n",
        (f"{_RUN}::test_leftover_that_ignores_sigterm_is_killed_after_kill_after",),
    ),
    Bug(
        "processes that left the group are spared",
        "core/process_tree.py",
        "            self.signal_escaped(number, processes())\n",
        "            pass\n",
        (f"{_PROCESS}::test_tree_that_forks_faster_than_a_scan_is_not_taken_for_empty",),
    ),
    Bug(
        "release before the tree is empty",
        "core/attempt.py",
        "        if tree.empty():\n",
        "        if True:\n",
        (f"{_SUPERVISOR}::test_kill_is_repeated_until_the_tree_is_empty_and_only_then_released",),
    ),
    Bug(
        "zombies are taken for an empty tree",
        "core/process_tree.py",
        "            if not found:\n                return True\n",
        "            if all(entry.dead for entry in found):\n                return True\n",
        (f"{_PROCESS}::test_tree_that_forks_faster_than_a_scan_is_not_taken_for_empty",),
    ),
    Bug(
        "the kernel is asked for zombies, too",
        "core/process_tree.py",
        "os.WSTOPPED | os.WNOHANG | os.WNOWAIT | _WALL | _WNOTHREAD",
        "os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT | _WALL | _WNOTHREAD",
        (f"{_PROCESS}::test_emptiness_needs_no_scan_of_all_processes",),
    ),
    Bug(
        "another thread's children are taken for all",
        "core/process_tree.py",
        "    if get_native_id() != os.getpid():\n        return False\n",
        "",
        (f"{_PROCESS}::test_emptiness_needs_no_scan_of_all_processes",),
    ),
    Bug(
        "the main process's end is taken for the tree's",
        "core/process_tree.py",
        "if not nothing_lives() and (self._some_hidden or not self._scan_for_emptiness()):",
        "if False:",
        (
            f"{_PROCESS}::test_sibling_that_the_main_process_made_is_part_of_the_tree",
            f"{_PROCESS}::test_earlier_children_are_no_part_of_the_tree",
        ),
    ),
    Bug(
        "a main process that lives is no part of its tree",
        "core/process_tree.py",
        "        if self.exit_code() is None:\n            return False\n        try:",
        "        try:",
        (f"{_PROCESS}::test_nothing_runs_before_the_gate_is_open",),
    ),
    # -- the start of the command
    Bug(
        "late child does not look before exec",
        "core/spawn.py",
        "if start_by is not None and clock.now() > start_by:",
        "if False:",
        (f"{_PROCESS}::test_child_checks_the_time_right_before_exec",),
    ),
    Bug(
        "command does not wait behind its gate",
        "core/spawn.py",
        "start_by, more = marshal.loads(_wait_at(gate))",
        "start_by, more = None, {}",
        (f"{_PROCESS}::test_nothing_runs_before_the_gate_is_open",),
    ),
    Bug(
        "command that waited is not told how late it may start",
        "core/wrapper_loop.py",
        "        child.start_by = start_by\n",
        "",
        (f"{_WAITING}::test_it_checks_the_clock_itself",),
    ),
    Bug(
        "command that was killed while it waited is taken for one that ran",
        "core/wrapper_loop.py",
        "if self._next_child is not None and not self._next_child.untouched():",
        "if False:",
        (f"{_WAITING}::test_if_killed_just_before_its_turn_it_is_not_taken_for_the_command",),
    ),
    Bug(
        "next command that waits counts as left running",
        "core/wrapper_loop.py",
        "if entry.pid == self._loop.keeper or (self._next_child is not None and entry.pid == self._next_child.pid):",
        "if entry.pid == self._loop.keeper:",
        (f"{_RUN}::test_command_that_waits_is_no_leftover_of_a_hook",),
    ),
    Bug(
        "command does not die with conch",
        "core/spawn.py",
        "        os.setpgid(0, 0)\n    linux.die_with_parent(signal.SIGKILL)\n",
        "        os.setpgid(0, 0)\n",
        (f"{_PROCESS}::test_child_dies_with_its_parent",),
    ),
    # -- the host, signals and the terminal
    Bug(
        "/proc of another namespace is trusted",
        "core/host.py",
        "if shown != str(os.getpid()) or any(numbers != [shown] for numbers in known):",
        "if False:",
        (f"{_HOST}::test_host_without_what_conch_needs",),
    ),
    Bug(
        "what /proc hides is taken for gone",
        "core/process_tree.py",
        "(self._some_hidden or not self._scan_for_emptiness())",
        "not self._scan_for_emptiness()",
        (f"{_HOST}::test_hidden_leftover_of_another_user_keeps_the_hold",),
    ),
    Bug(
        "stops are asked of a main process that has ended",
        "core/process_tree.py",
        "        except ChildProcessError:\n            return None  # it has ended",
        "        except ZeroDivisionError:\n            return None  # it has ended",
        (f"{_TERMINAL}::test_leftovers_on_a_terminal_change_nothing",),
    ),
    Bug(
        "run goes on under a terminal that is gone",
        "core/wrapper_loop.py",
        "self._terminal.hung_up())",
        "False)",
        (f"{_TERMINAL}::test_restart_ends_with_the_terminal_of_a_command_that_outlives_it",),
    ),
    Bug(
        "signal sent twice is two",
        "core/states.py",
        "now - self._at < SAME_REQUEST_S",
        "False",
        ("tests/system/test_signals.py::test_signal_to_conch_and_to_its_group_counts_once",),
    ),
    Bug(
        "keeper that ends of a defect is taken for one that was killed",
        "core/acquisition.py",
        "code = EXIT_DEFECT if self._keeper_defect else EXIT_UNAVAILABLE",
        "code = EXIT_UNAVAILABLE",
        (f"{_DEFECT}::test_defect_of_a_keeper_in_the_queue",),
    ),
    Bug(
        "request that was made and claimed is made again",
        "cli/cron_request.py",
        "for key in (self._mark, self._request, fire, ended)]",
        "for key in (self._request, fire, ended)]",
        (f"{_CRON_RUN}::test_lost_answer_to_the_client_makes_no_second_run",),
    ),
    Bug(
        "runs of another boot are lost at once",
        "core/origin.py",
        "        if not self.same_boot(here):\n            return False\n",
        "",
        (f"{_NAMESAKES}::test_rebooted_host_waits_for_its_old_lease",),
    ),
    Bug(
        "a signature is good under every prefix",
        "cli/keyfile.py",
        'f"conch jobs {prefix}"',
        '"conch jobs"',
        ("tests/system/test_conchd_rules.py::test_signed_job_of_another_prefix_is_not_run",),
    ),
    # -- what runs print and get
    Bug(
        "a run that prints without end is read without end",
        "core/output_relay.py",
        "        while self._waiting and self._budget > 0:\n",
        "        while self._waiting:\n",
        (f"{_OUTPUT}::test_noisy_runs_share_a_budget",),
    ),
    Bug(
        "run has the terminal of conchd",
        "core/daemon_loop.py",
        "apart=True",
        "apart=False",
        (f"{_PRINTED}::test_run_has_neither_terminal_nor_session_of_conchd",),
    ),
    Bug(
        "signal before the session is made is lost",
        "core/process_tree.py",
        "                os.kill(self.pid, number)  # just forked",
        "                pass  # just forked",
        (f"{_PROCESS}::test_signal_to_a_child_apart_that_has_no_session_yet",),
    ),
    # -- many runs
    Bug(
        "conchd does not look for what its runs have left among its children",
        "core/daemon_loop.py",
        "self._scan = procfs.children(self._run_of_pid)",
        "self._scan = {}",
        (f"{_PRINTED}::test_leftovers_are_gone_before_the_result_is_written",),
    ),
    Bug(
        "only the first part of the kernel's list of children is read",
        "core/procfs.py",
        'data = b"".join(iter(lambda: os.read(fd, 65536), b""))',
        "data = os.read(fd, 65536)",
        (f"{_PROCFS}::test_all_children_are_listed_but_the_known_ones",),
    ),
    Bug(
        "run that was started is not woken for its deadline",
        "core/daemon_supervisor.py",
        "            task.start()\n            self._plan(task)\n",
        "            task.start()\n",
        (f"{_DAEMON}::test_deadline_that_is_not_renewed",),
    ),
    Bug(
        "run that was ended is not woken to be killed",
        "core/daemon_supervisor.py",
        "                self.tasks[run].end(reason)\n                self._plan(self.tasks[run])\n",
        "                self.tasks[run].end(reason)\n",
        (f"{_DAEMON}::test_kill_while_running",),
    ),
    Bug(
        "messages of a keeper that has died are dropped",
        "core/event_loop.py",
        "if channel.closed and channel is self._channel and not self._arrived:",
        "if channel.closed and channel is self._channel:",
        (f"{_LOOP}::test_many_messages_are_handled_in_slices",),
    ),
    Bug(
        "a renewal flushes the messages of another thread",
        "core/channel.py",
        "            self._outbox.append(packet)\n            self.flush()\n\n    def send_spec",
        "            self._outbox.append(packet)\n        self.flush()\n\n    def send_spec",
        ("tests/unit/core/test_channel.py::test_renewal_sends_nothing_but_itself",),
    ),
    Bug(
        "a loss waits behind the orders to start runs",
        "core/event_loop.py",
        "if isinstance(message, (Renewed, *at_once)):",
        "if isinstance(message, Renewed):",
        ("tests/unit/core/test_event_loop.py::test_loss_does_not_wait_behind_other_messages",),
    ),
)
