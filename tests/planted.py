"""Plant bugs one at a time in a copy of the source and see a test fail for each: `python -m tests.planted [NAME…]`.

Each bug takes out one mechanism that a guarantee rests on; only the tests that should catch it are run. It fails if a
bug was missed, if a text to be replaced is not in the source (once), or if the tests fail without any bug.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

_ROOT = Path(__file__).parent.parent
_LIMIT_S = 120
# Python takes a compiled file for current by its source's second and size: each version of a file gets its own second.
_seconds = count(1_000_000_000)


@dataclass(frozen=True)
class Bug:
    """In `file` of conch, `old` (which is there once) becomes `new`; one of the `tests` must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


_STORE, _CLAIMS = "tests/integration/test_store.py", "tests/integration/test_claims.py"
_RUN, _SEMA = "tests/integration/test_elect_run.py", "tests/integration/test_sema.py"
_WAITING = "tests/integration/test_waiting_child.py"
_PROCESS, _DEATH = "tests/integration/test_process.py", "tests/integration/test_death.py"
_SUPERVISOR, _WARDEN = "tests/unit/test_supervisor.py", "tests/unit/test_warden.py"
_SCHEDULE, _JOURNAL, _LEDGER = (f"tests/unit/test_{name}.py" for name in ("schedule", "journal", "ledger"))
_ANSWERS, _ODD = "tests/unit/test_answers.py", "tests/integration/test_odd_answers.py"
_DEFECT = "tests/integration/test_defect.py"
_SLOW, _REFUSALS = "tests/cluster/test_slow.py", "tests/cluster/test_refusals.py"
_ZONES, _RELOAD = "tests/integration/test_conchd_zones.py", "tests/cluster/test_reload_tls.py"
_HOST, _TERMINAL = "tests/integration/test_host.py", "tests/integration/test_terminal_shared.py"
_NAMESAKES, _CLOCK = "tests/integration/test_namesakes.py", "tests/integration/test_cron_clock.py"
_STATE_DIR = "tests/integration/test_state_dir.py"
_STATUS = "tests/integration/test_conchd_status.py"
_CRON_RUN, _SWEEP = "tests/integration/test_cron_run.py", "tests/integration/test_sweep.py"
_RACES, _GAPS = "tests/integration/test_conchd_races.py", "tests/unit/test_planted_gaps.py"
_RELEASES, _FAILOVER = "tests/cluster/test_releases_errors.py", "tests/unit/test_failover.py"
_PRINTED, _OUTPUT = "tests/integration/test_conchd_output.py", "tests/unit/test_output.py"

BUGS = (
    # -- the deadline and its confirmation
    Bug(
        "deadline counts from the reply",
        "keeper/session.py",
        "self.deadline = tried.sent_at + self.ttl_s",
        "self.deadline = clock.now() + self.ttl_s",
        (f"{_STORE}::test_deadline_counts_from_before_the_renewal_was_sent",),
    ),
    Bug(
        "TTL 0 in a renewal's answer is ignored",
        "keeper/session.py",
        "if answer.ttl_s <= 0:",
        "if answer.ttl_s < 0:",
        (f"{_STORE}::test_ttl_of_zero_is_a_loss",),
    ),
    Bug(
        "renewal counts without the read",
        "keeper/session.py",
        "        key, rev = self._place\n",
        "        return None\n        key, rev = self._place\n",
        (f"{_STORE}::test_renewal_that_the_read_does_not_confirm_proves_nothing",),
    ),
    Bug(
        "renewal counts at another raft term",
        "keeper/session.py",
        "(read.head.member, read.head.term) != (answer.head.member, answer.head.term)",
        "read.head.member != answer.head.member",
        (f"{_STORE}::test_renewal_that_the_read_does_not_confirm_proves_nothing",),
    ),
    Bug(
        "renewals that are slow are given up",
        "keeper/hedge.py",
        "_PATIENT, _STAGGERED_S = 3, 1.0",
        "_PATIENT, _STAGGERED_S = 0, 1.0",
        (f"{_SLOW}::test_hold_is_kept_while_each_answer_takes_more_than_a_second",),
    ),
    Bug(
        "a silent member is waited for",
        "keeper/hedge.py",
        "            self._start((member,), share_s, after_s)\n",
        "            pass\n",
        (f"{_SLOW}::test_renewal_comes_through_beside_one_that_hangs",),
    ),
    Bug(
        "slow is away",
        "etcd/patience.py",
        "if left_s <= 0 or not error.accepted():",
        "if True:",
        (f"{_SLOW}::test_all_that_start_at_one_moment_are_served",),
    ),
    Bug(
        "our key with another's revision confirms",
        "keeper/session.py",
        "if not read.kvs or read.kvs[0].create_revision != rev:",
        "if not read.kvs:",
        (f"{_STORE}::test_read_that_does_not_show_our_key_is_a_loss",),
    ),
    # -- the end of the command
    Bug(
        "supervisor ignores the deadline",
        "core/supervisor.py",
        "if self._bound and now >= self._lost_from:",
        "if False:",
        (f"{_SUPERVISOR}::test_deadline_that_is_not_renewed",),
    ),
    Bug(
        "watchdog does not enforce",
        "keeper/watchdog.py",
        "due = [run for run, at in moments if at is not None and now >= at]",
        "due = []",
        (f"{_WARDEN}::test_tree_is_killed_at_the_last_moment_and_not_before",),
    ),
    Bug(
        "tree outlives a dead supervisor",
        "keeper/watchdog.py",
        "        self._end_trees()\n",
        "",
        (f"{_WARDEN}::test_dead_supervisor_means_kill_until_nothing_is_seen_alive",),
    ),
    Bug(
        "no margin before the deadline",
        "core/clock.py",
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
        "core/spawn.py",
        "            os.killpg(self.pid, number)\n",
        "            os.kill(self.pid, number)\n",
        (f"{_RUN}::test_leftover_that_ignores_sigterm_is_killed_after_kill_after",),
    ),
    Bug(
        "processes that left the group are spared",
        "core/spawn.py",
        "            self.signal_escaped(number, processes())\n",
        "            pass\n",
        (f"{_PROCESS}::test_tree_that_forks_faster_than_one_can_look_is_not_taken_for_empty",),
    ),
    Bug(
        "release before the tree is empty",
        "core/attempt.py",
        "        if self.tree.empty():\n",
        "        if True:\n",
        (f"{_SUPERVISOR}::test_kill_is_repeated_until_the_tree_is_empty_and_only_then_released",),
    ),
    Bug(
        "zombies are taken for an empty tree",
        "core/spawn.py",
        "            if not found:\n                return True\n",
        "            if all(entry.dead for entry in found):\n                return True\n",
        (f"{_PROCESS}::test_tree_that_forks_faster_than_one_can_look_is_not_taken_for_empty",),
    ),
    Bug(
        "the kernel is asked for zombies, too",
        "core/spawn.py",
        "os.WSTOPPED | os.WNOHANG | os.WNOWAIT | _WALL | _WNOTHREAD",
        "os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT | _WALL | _WNOTHREAD",
        (f"{_PROCESS}::test_emptiness_needs_no_look_at_all_processes",),
    ),
    Bug(
        "another thread's children are taken for all",
        "core/spawn.py",
        "    if get_native_id() != os.getpid():\n        return False\n",
        "",
        (f"{_PROCESS}::test_emptiness_needs_no_look_at_all_processes",),
    ),
    Bug(
        "the main process's end is taken for the tree's",
        "core/spawn.py",
        "return nothing_lives() or (not self._some_hidden and self._look_for_emptiness())",
        "return True",
        (
            f"{_PROCESS}::test_sibling_that_the_main_process_made_is_part_of_the_tree",
            f"{_PROCESS}::test_children_of_before_are_no_part_of_the_tree",
        ),
    ),
    Bug(
        "a main process that lives is no part of its tree",
        "core/spawn.py",
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
        (f"{_PROCESS}::test_command_looks_at_the_time_last_before_exec",),
    ),
    Bug(
        "command does not wait behind its gate",
        "core/spawn.py",
        "start_by, more = marshal.loads(_told(gate))",
        "start_by, more = None, {}",
        (f"{_PROCESS}::test_nothing_runs_before_the_gate_is_open",),
    ),
    Bug(
        "command that waited is not told how late it may start",
        "core/wrapper_loop.py",
        "        child.start_by = start_by\n",
        "",
        (f"{_WAITING}::test_it_looks_at_the_clock_itself",),
    ),
    Bug(
        "command that was killed while it waited is taken for one that ran",
        "core/wrapper_loop.py",
        "if self._ready is not None and not self._ready.untouched():",
        "if False:",
        (f"{_WAITING}::test_killed_just_before_its_turn_it_is_not_taken_for_the_command",),
    ),
    Bug(
        "next command that waits counts as left running",
        "core/wrapper_loop.py",
        "if entry.pid == self._parent.keeper or (self._ready is not None and entry.pid == self._ready.pid):",
        "if entry.pid == self._parent.keeper:",
        (f"{_RUN}::test_command_that_waits_is_not_left_running_by_a_hook",),
    ),
    Bug(
        "command does not die with conch",
        "core/spawn.py",
        "        os.setpgid(0, 0)\n        linux.die_with_parent(signal.SIGKILL)\n",
        "        os.setpgid(0, 0)\n",
        (f"{_PROCESS}::test_child_dies_with_its_parent",),
    ),
    # -- the queue
    Bug(
        "our own key is not checked at the promotion",
        "keeper/queue.py",
        "if not result.kvs or (result.kvs[0].key, result.kvs[0].create_revision) != (self.key.encode(), rev):",
        "if False:",
        (f"{_STORE}::test_entering_twice_keeps_the_first_place",),
    ),
    Bug(
        "promotion by an event, without looking",
        "keeper/acquirer.py",
        "                    place = self._look()\n",
        "                    place = Place(place.rev, (), place.seen_at)\n",
        (f"{_RUN}::test_a_waiter_in_the_middle_that_leaves_promotes_nobody",),
    ),
    Bug(
        "watches over HTTP are asked for by a request that ends when the answer begins",
        "etcd/gateway_http.py",
        '_CLOSE = b"Connection: close"',
        '_CLOSE = b"Connection: keep-alive"',
        (f"{_STORE}::test_watch_of_many_keys_hears_of_each_however_slowly_it_was_asked_for",),
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
        "core/spawn.py",
        "(not self._some_hidden and self._look_for_emptiness())",
        "self._look_for_emptiness()",
        (f"{_HOST}::test_hidden_leftover_of_another_user_keeps_the_hold",),
    ),
    Bug(
        "stops are asked of a main process that has ended",
        "core/spawn.py",
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
        "core/supervisor.py",
        "now - self._signalled_at < SAME_REQUEST_S",
        "False",
        ("tests/integration/test_signals.py::test_signal_to_conch_and_to_its_group_is_one",),
    ),
    Bug(
        "answer without its header counts",
        "etcd/answers.py",
        "if not (0 < revision <= _LARGEST and 0 < member < 2**64 and 0 < term < 2**64):",
        "if False:",
        (f"{_ANSWERS}::test_answer_that_etcd_never_gives", f"{_ANSWERS}::test_grpc_answers_that_etcd_never_gives"),
    ),
    Bug(
        "transaction is believed that does not show the key that it made",
        "etcd/answers.py",
        "_check_known(one, result, known, made_now=head.revision)",
        "pass",
        (f"{_ODD}::test_transaction_without_what_it_read_is_no_hold",),
    ),
    Bug(
        "keeper that ends of a defect is taken for one that was killed",
        "core/acquisition.py",
        "return EXIT_DEFECT if self._keeper_defect else EXIT_UNAVAILABLE",
        "return EXIT_UNAVAILABLE",
        (f"{_DEFECT}::test_defect_of_a_keeper_in_the_queue",),
    ),
    Bug(
        "waiter watches one key of N",
        "keeper/queue.py",
        "return Place(rev, tuple(kv.key for kv in ahead), seen_at",
        "return Place(rev, tuple(kv.key for kv in ahead[:1]), seen_at",
        (f"{_SEMA}::test_any_order_of_releases_promotes_exactly_the_next_in_line",),
    ),
    Bug(
        "one holder too many",
        "keeper/queue.py",
        "if len(ahead) < self.slots:",
        "if len(ahead) <= self.slots:",
        (f"{_STORE}::test_first_n_hold_and_each_watches_the_n_right_ahead",),
    ),
    Bug(
        "repeated acquisition makes its key anew",
        "keeper/queue.py",
        "            [CreateRevisionIs(key, 0)],\n",
        "            [],\n",
        (f"{_STORE}::test_entering_twice_keeps_the_first_place",),
    ),
    Bug(
        "loss by hand is not noticed by the watch",
        "keeper/acquirer.py",
        "            if key in self._own_keys():\n                raise PlaceLost\n            if key is None:\n",
        "            if key is None:\n",
        (f"{_DEATH}::test_loss_by_hand_is_noticed_at_once",),
    ),
    # -- cron: ticks
    Bug(
        "@every counts from the start",
        "cron/schedule.py",
        "return (instant // self.seconds + 1) * self.seconds",
        "return instant + self.seconds",
        (f"{_SCHEDULE}::test_every_is_aligned_to_the_epoch",),
    ),
    Bug(
        "fixed time fires twice in the repeated hour",
        "cron/schedule.py",
        "return (local - early,) if self.fixed else (local - early, local - late), local + 60",
        "return (local - early, local - late), local + 60",
        (f"{_SCHEDULE}::test_both_changes_of_the_clock",),
    ),
    Bug(
        "fixed time in the gap does not fire",
        "cron/schedule.py",
        "return (change,) if self.fixed else (), max(",
        "return (), max(",
        (f"{_SCHEDULE}::test_both_changes_of_the_clock",),
    ),
    Bug(
        "clock that goes back by new rules repeats a fixed time",
        "cron/planning.py",
        "self._plan(name, known, known.schedule.resume_after(before, known.past))",
        "self._plan(name, known, known.past)",
        (f"{_ZONES}::test_rules_that_change_repeat_no_fixed_time_and_count_what_they_skip",),
    ),
    Bug(
        "new certificates are not proved before the old ones are left",
        "etcd/failover.py",
        "                member.range(replace(probe, limit=1, keys_only=True), timeout_s=timeout_s / len(members))\n",
        "                member.connected()\n",
        (f"{_RELOAD}::test_new_certificate_is_who_we_are_from_then_on",),
    ),
    # -- cron: claims and results
    Bug(
        "claim is not created once",
        "cron/claim_store.py",
        '            CreateRevisionIs(self._key("fire", *due.id), 0),\n',
        "",
        (f"{_GAPS}::test_every_claim_compares_all_that_may_stand_against_it",),
    ),
    Bug(
        "claim is not tied to the job's revision",
        "cron/claim_store.py",
        '            ModRevisionIs(self._key("job", due.job.name), due.job_rev),\n',
        "",
        (f"{_CLAIMS}::test_what_stands_against_a_claim",),
    ),
    Bug(
        "claim of a tick that was trimmed",
        "cron/claim_store.py",
        "            ValueBelow(floor, str(due.tick).encode()) if has_floor else CreateRevisionIs(floor, 0),\n",
        "",
        (f"{_CLAIMS}::test_what_stands_against_a_claim",),
    ),
    Bug(
        "claim without being registered",
        "cron/claim_store.py",
        "            CreateRevisionIs(self._node_key(), node.rev),\n",
        "",
        (f"{_GAPS}::test_every_claim_compares_all_that_may_stand_against_it",),
    ),
    Bug(
        "repeated claim does not recognise itself",
        "cron/claim_store.py",
        "            if not self.is_ours(fire, due):\n",
        "            if True:\n",
        (f"{_CLAIMS}::test_claim_is_created_once_and_a_repeated_one_finds_itself",),
    ),
    Bug(
        "unclear claim takes its own run for another's",
        "cron/claiming.py",
        "if busy is not None and self._claims.is_ours(busy, due):",
        "if False:",
        (f"{_RACES}::test_unclear_claim_is_not_taken_for_anothers_run",),
    ),
    Bug(
        "claim that a full etcd has made counts as refused",
        "cron/claim_store.py",
        "            result = self._read_back(failure, error, timeout_s)\n",
        "            raise\n            result = self._read_back(failure, error, timeout_s)\n",
        (f"{_REFUSALS}::test_claim_that_etcd_makes_and_refuses_in_one_is_known_to_be_made",),
    ),
    Bug(
        "refusal after a lost answer is clear",
        "etcd/failover.py",
        "unclear = unclear or (sent_at is not None and not _refused(trouble))",
        "unclear = sent_at is not None and not _refused(trouble)",
        ("tests/unit/test_failover.py::test_refusal_after_a_lost_answer_is_unclear",),
    ),
    Bug(
        "due tick of an edited job is dropped",
        "cron/claiming.py",
        "        if due.changes < _CHANGES and heard:\n",
        "        if True:\n            self._drop(due)\n        elif due.changes < _CHANGES and heard:\n",
        ("tests/integration/test_conchd_edits.py::test_due_tick_that_an_edit_takes_away_has_a_row_that_says_so",),
    ),
    Bug(
        "run key is not compared: forbid overlaps",
        "cron/claim_store.py",
        "            compare.append(CreateRevisionIs(run, 0))\n",
        "",
        (f"{_CLAIMS}::test_what_stands_against_a_claim",),
    ),
    Bug(
        "result is written twice",
        "cron/claim_store.py",
        "[CreateRevisionIs(key, 0), above if",
        "[above if",
        (f"{_GAPS}::test_every_result_is_created_once_and_above_the_floor",),
    ),
    Bug(
        "request that was made and claimed is made again",
        "cli/ask_run.py",
        "for key in (self._mark, self._request, fire, ended)]",
        "for key in (self._request, fire, ended)]",
        (f"{_CRON_RUN}::test_lost_answer_to_whoever_asks_makes_no_second_run",),
    ),
    Bug(
        "requests are taken by their numbers",
        "cron/requests.py",
        "key=lambda one: one.rev, default=None",
        "key=lambda one: one.number, default=None",
        (f"{_CRON_RUN}::test_ticks_are_in_the_order_of_the_requests",),
    ),
    Bug(
        "sweep takes the history of a job that came back",
        "cron/sweep.py",
        "self._store.txn([CreateRevisionIs(job, 0)], [Delete(key)",
        "self._store.txn([], [Delete(key)",
        (f"{_SWEEP}::test_job_that_comes_back_while_it_is_swept_keeps_its_history_and_floor",),
    ),
    # -- cron: the journal
    Bug(
        "journal is not synced",
        "cron/wal.py",
        "            os.fdatasync(self._fd)\n        except BaseException:\n            self._roll_back()\n",
        "        except BaseException:\n            self._roll_back()\n",
        (f"{_JOURNAL}::test_power_loss_after_any_append_loses_nothing_that_was_promised",),
    ),
    Bug(
        "failed sync is made good by a later one",
        "cron/wal.py",
        "            self._roll_back()\n            raise\n",
        "            raise\n",
        (f"{_JOURNAL}::test_failed_sync_is_never_made_good_by_a_later_one",),
    ),
    Bug(
        "truncation of one record too many",
        "cron/wal.py",
        "                self._mark = upto\n",
        "                self._mark = upto + 1\n",
        (f"{_JOURNAL}::test_truncation_removes_up_to_and_with_the_number",),
    ),
    Bug(
        "truncation of a run that is not over",
        "cron/run_log.py",
        "self._journal.truncate(low - 1)",
        "self._journal.truncate(low)",
        (f"{_LEDGER}::test_runs_are_remembered_until_their_results_are_delivered",),
    ),
    # -- which host, and what time it is
    Bug(
        "a namesake of this state directory's id is taken for dead",
        "cron/fleet.py",
        "return made_by.proved_dead(self._here)",
        "return True",
        (f"{_NAMESAKES}::test_copy_of_a_living_host_takes_nothing_from_it",),
    ),
    Bug(
        "a copied state directory keeps its id and its runs",
        "cron/state_dir.py",
        "    if not why:\n",
        "    if True:\n",
        (f"{_NAMESAKES}::test_copy_of_a_living_host_takes_nothing_from_it",),
    ),
    Bug(
        "runs of another boot are lost at once",
        "core/origin.py",
        "        if not self.same_boot(here):\n            return False\n",
        "",
        (f"{_NAMESAKES}::test_rebooted_host_waits_for_its_old_lease",),
    ),
    Bug(
        "runs of another boot are lost while it is registered",
        "cron/scheduler.py",
        "return [made_by for fields in self._nodes.values()",
        "return [made_by for fields in ({} for _ in ())",
        (f"{_NAMESAKES}::test_run_of_a_living_boot_under_another_name_is_not_lost",),
    ),
    Bug(
        "a clock that is off is gone by",
        "cron/clock.py",
        "return against > agreeing or",
        "return False and",
        (f"{_CLOCK}::test_etcd_decides_between_two_clocks",),
    ),
    Bug(
        "a newcomer does not wait for the others' clocks",
        "cron/membership.py",
        "(not self._unheard or clock.now() >= self._unheard_until)",
        "True",
        (f"{_CLOCK}::test_newcomer_claims_nothing_before_it_knows_the_time",),
    ),
    Bug(
        "links in the state directory are followed",
        "cron/state_dir.py",
        "if stat.S_ISLNK(one.st_mode) or",
        "if False and",
        (f"{_STATE_DIR}::test_what_others_may_have_put_there_is_refused",),
    ),
    Bug(
        "a signature is good under every prefix",
        "cli/keyfile.py",
        'f"conch jobs {prefix}"',
        '"conch jobs"',
        ("tests/integration/test_conchd_rules.py::test_signed_job_of_another_prefix_is_not_run",),
    ),
    # -- what others send and write
    Bug(
        "clients that send nothing keep their places",
        "cron/status/server.py",
        "                first.end()\n",
        "                await asyncio.sleep(_PAUSE_S)\n",
        (f"{_STATUS}::test_half_requests_starve_nobody",),
    ),
    Bug(
        "the host of a request is not looked at",
        "cron/status/app.py",
        "if host not in self._hosts:",
        "if not host:",
        (f"{_STATUS}::test_requests_by_a_foreign_name_are_refused",),
    ),
    Bug(
        "a key is reported at each event",
        "cron/unreadable.py",
        "if mark in self._known or",
        "if",
        (f"{_STATUS}::test_keys_that_are_none_of_ours",),
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
        "core/spawn.py",
        "                os.kill(self.pid, number)  # just forked",
        "                pass  # just forked",
        (f"{_PROCESS}::test_signal_to_one_apart_that_has_no_session_yet",),
    ),
    # -- what the releases of etcd say
    Bug(
        "a renewal reads its key without the lease",
        "keeper/session.py",
        "store.range(Range(key.encode()), timeout_s",
        "store.range(Range(key.encode(), keys_only=True), timeout_s",
        (f"{_STORE}::test_session_renews_about_every_fifth_of_the_ttl",),
    ),
    Bug(
        "etcd's word for a lease that is gone is another",
        "etcd/error_codes.py",
        '"etcdserver: requested lease not found"',
        '"etcdserver: no such lease"',
        (f"{_RELEASES}::test_leases",),
    ),
    Bug(
        "a watch without permission is opened for ever",
        "etcd/watch.py",
        "(DENIED.told(answer.cancel_reason) or USER_EMPTY.told(answer.cancel_reason))",
        "USER_EMPTY.told(answer.cancel_reason)",
        (f"{_RELEASES}::test_watch_that_is_refused",),
    ),
    Bug(
        "what asks a silent stream takes the number of its first watch",
        "etcd/gateway_codec.py",
        ', "watch_id": str(_PROBE_ID)',
        "",
        ("tests/cluster/test_users.py::test_watch_is_not_deaf_once_it_was_asked_whether_it_lives",),
    ),
    Bug(
        "a learner of 3.6 is no member to pass over",
        "etcd/error_codes.py",
        'Words((UNAVAILABLE, FAILED_PRECONDITION), "etcdserver: rpc not supported for learner")',
        'Words((UNAVAILABLE,), "etcdserver: rpc not supported for learner")',
        (f"{_FAILOVER}::test_what_a_member_cannot_do_another_may",),
    ),
    Bug(
        "the gateway's errors are read in the form of 3.5 alone",
        "etcd/gateway_codec.py",
        '_words(answer, "message") or _words(answer, "error")',
        '_words(answer, "error")',
        (f"{_ANSWERS}::test_error_is_read_in_the_form_of_every_release",),
    ),
)


class Copy:
    """The tracked files in a folder of their own, and the environment in which everything comes from there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=_ROOT, text=True)
        # a test that is being written is not tracked yet
        tests = {str(path.relative_to(_ROOT)) for path in (_ROOT / "tests").rglob("*.py")}
        for name in {*listed.split("\0"), *tests} - {""}:
            if (_ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(_ROOT / name, folder / name)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CONCH_", "ETCDCTL_"))}
        # for pytest, and for the command, which heeds no variable of Python
        self.environment = {**kept, "PYTHONPATH": str(folder), "CONCH_TESTS_SOURCE": str(folder)}

    def check_command(self) -> None:
        """What the tests' `conch` imports must be the copy, or no bug would be in it."""
        inside = "import runpy; runpy.run_path({script!r}); import conch; print(conch.__file__)"
        look = (
            "import subprocess, sys; from tests.support.conch import CONCH; "
            f"subprocess.run([sys.executable, '-I', '-c', {inside!r}.format(script=CONCH)], check=True)"
        )
        command = [sys.executable, "-c", look]
        found = subprocess.check_output(command, cwd=self.folder, env=self.environment, text=True).strip()
        print(f"conch imports {found}", flush=True)
        if not Path(found).is_relative_to(self.folder):
            raise SystemExit(f"planted: the tests' conch does not run the copy in {self.folder}")

    def read(self, bug: Bug) -> str:
        return (self.folder / "conch" / bug.file).read_text("utf-8")

    def write(self, bug: Bug, text: str) -> None:
        path, second = self.folder / "conch" / bug.file, next(_seconds)
        path.write_text(text, "utf-8")
        os.utime(path, (second, second))

    def test(self, tests: Sequence[str], *options: str, limit_s: float = _LIMIT_S) -> tuple[int | None, str]:
        """Pytest's exit code and what it said; None if it did not end in time."""
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line", *options, *tests]
        pytest = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            said, _ = pytest.communicate(timeout=limit_s)
            return pytest.returncode, said
        except subprocess.TimeoutExpired:
            pytest.send_signal(signal.SIGINT)  # it stops its etcd then
            try:
                said, _ = pytest.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(pytest.pid, signal.SIGKILL)
                said, _ = pytest.communicate()
            return None, said


def verdict(code: int | None, said: str) -> str | None:
    """Which test caught it; None if none did, or if it is not clear: an import that fails says nothing of a test."""
    found = re.search(r"^(?:FAILED|ERROR) \S*?(\w+\.py::\w+)", said, re.MULTILINE)
    return found[1] if code == 1 and found else None


def main(names: Sequence[str]) -> int:
    """Plant those named, or all; 0 if each was caught."""
    unknown = set(names) - {bug.name for bug in BUGS}
    if unknown:
        print(*(f"planted: no bug {name!r}" for name in sorted(unknown)), *(bug.name for bug in BUGS), sep="\n")
        return 1
    chosen = [bug for bug in BUGS if not names or bug.name in names]
    rows: list[tuple[str, str, str]] = []
    good = True
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        copy = Copy(Path(folder))
        copy.check_command()
        code, said = copy.test(sorted({test for bug in chosen for test in bug.tests}), limit_s=_LIMIT_S * len(chosen))
        if code != 0:
            print(said, "planted: these tests fail without any bug", sep="\n")
            return 1
        for bug in chosen:
            source = copy.read(bug)
            if source.count(bug.old) != 1:
                where, caught = f"conch/{bug.file}", f"NOT PLANTED: its text is there {source.count(bug.old)} times"
                good = False
            else:
                where = f"conch/{bug.file}:{source[: source.index(bug.old)].count(chr(10)) + 1}"
                copy.write(bug, source.replace(bug.old, bug.new))
                code, said = copy.test(bug.tests, "-x")
                copy.write(bug, source)
                test = verdict(code, said)
                caught = f"`{test}`" if test else f"MISSED (pytest: {'no end' if code is None else code})"
                if test is None:
                    good = False
                    print(said)
            rows.append((bug.name, f"`{where}`", caught))
            print(*rows[-1], sep=" | ", flush=True)
    print("\n| bug | where | caught by |\n| --- | --- | --- |")
    for row in rows:
        print("|", " | ".join(row), "|")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
