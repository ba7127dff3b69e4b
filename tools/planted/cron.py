"""Bugs in `conch/cron`: conchd."""

from tools.planted.bug import Bug

_CLAIMS = "tests/system/test_claims.py"
_CLAIM_STORE = "tests/unit/cron/test_claim_store.py"
_CLOCK = "tests/system/test_cron_clock.py"
_CONTAINMENT = "tests/system/test_containment.py"
_CRON_RUN = "tests/system/test_cron_run.py"
_NAMESAKES = "tests/system/test_namesakes.py"
_RACES = "tests/system/test_conchd_races.py"
_REFUSALS = "tests/faults/cluster/test_refusals.py"
_RESULT_STORE = "tests/unit/cron/test_result_store.py"
_RUN_LOG = "tests/unit/cron/test_run_log.py"
_SCHEDULE = "tests/unit/cron/test_schedule.py"
_STATE_DIR = "tests/system/test_state_dir.py"
_STATUS = "tests/system/test_conchd_status.py"
_SWEEP = "tests/system/test_sweep.py"
_WAL = "tests/unit/cron/test_wal.py"
_WAL_DISK = "tests/unit/cron/test_wal_disk.py"
_WAL_DURABILITY = "tests/unit/cron/test_wal_durability.py"
_ZONES = "tests/system/test_conchd_zones.py"

BUGS = (
    # -- cron: ticks
    Bug(
        "@every counts from the start",
        "cron/rules.py",
        "return (instant // self.seconds + 1) * self.seconds",
        "return instant + self.seconds",
        (f"{_SCHEDULE}::test_every_is_aligned_to_the_epoch",),
    ),
    Bug(
        "fixed time fires twice in the repeated hour",
        "cron/rules.py",
        "return (local - early,) if self.fixed else (local - early, local - late), local + 60",
        "return (local - early, local - late), local + 60",
        (f"{_SCHEDULE}::test_both_changes_of_the_clock",),
    ),
    Bug(
        "fixed time in the gap does not fire",
        "cron/rules.py",
        "return (change,) if self.fixed else (), max(",
        "return (), max(",
        (f"{_SCHEDULE}::test_both_changes_of_the_clock",),
    ),
    Bug(
        "clock that goes back by new rules repeats a fixed time",
        "cron/reload.py",
        "tracked.schedule.resume_after(before, tracked.past))",
        "tracked.past)",
        (f"{_ZONES}::test_changed_rules_repeat_no_fixed_time_and_count_skipped_ticks",),
    ),
    # -- cron: claims and results
    Bug(
        "claim is not created once",
        "cron/claim_store.py",
        '            CreateRevisionIs(self._key("fire", *pending.path), 0),\n',
        "",
        (f"{_CLAIM_STORE}::test_every_claim_compares_all_that_may_stand_against_it",),
    ),
    Bug(
        "claim is not tied to the job's revision",
        "cron/claim_store.py",
        '            ModRevisionIs(self._key("job", pending.job.name), pending.job_rev),\n',
        "",
        (f"{_CLAIMS}::test_what_prevents_a_claim",),
    ),
    Bug(
        "claim of a tick that was trimmed",
        "cron/claim_store.py",
        "            ValueBelow(floor, str(pending.tick).encode()) if has_floor else CreateRevisionIs(floor, 0),\n",
        "",
        (f"{_CLAIMS}::test_what_prevents_a_claim",),
    ),
    Bug(
        "claim without being registered",
        "cron/claim_store.py",
        "            CreateRevisionIs(self._node_key, node.rev),\n",
        "",
        (f"{_CLAIM_STORE}::test_every_claim_compares_all_that_may_stand_against_it",),
    ),
    Bug(
        "repeated claim does not recognise itself",
        "cron/claim_store.py",
        "            if not self.is_ours(claim, pending):\n",
        "            if True:\n",
        (f"{_CLAIMS}::test_claim_is_created_once_and_recognised_when_repeated",),
    ),
    Bug(
        "run under the run key of a lost registration",
        "cron/claim_store.py",
        "run.lease == node.lease and ",
        "",
        (f"{_CLAIMS}::test_run_key_of_a_lost_registration_starts_nothing",),
    ),
    Bug(
        "unclear claim takes its own run for another's",
        "cron/claimer.py",
        "if busy is not None and self._store.is_ours(busy, tick):",
        "if False:",
        (f"{_RACES}::test_unclear_claim_is_not_taken_for_anothers_run",),
    ),
    Bug(
        "claim that a full etcd has made counts as refused",
        "cron/claim_store.py",
        "            answer = await self._read_back(failure, error, sending)\n",
        "            raise\n            answer = await self._read_back(failure, error, sending)\n",
        (f"{_REFUSALS}::test_claim_that_etcd_makes_and_refuses_in_one_is_known_to_be_made",),
    ),
    Bug(
        "due tick of an edited job is dropped",
        "cron/claimer.py",
        "        tick.changes += 1\n",
        "        return False\n",
        ("tests/system/test_conchd_edits.py::test_due_tick_that_an_edit_removes_is_recorded_with_the_reason",),
    ),
    Bug(
        "run key is not compared: forbid overlaps",
        "cron/claim_store.py",
        "            compare += [CreateRevisionIs(key, 0) for key in (run, self._run_key(pending, other=True))]\n",
        "",
        (f"{_CLAIMS}::test_what_prevents_a_claim",),
    ),
    Bug(
        "result is written twice",
        "cron/result_store.py",
        "compare += [CreateRevisionIs(key, 0), above]",
        "compare += [above]",
        (f"{_RESULT_STORE}::test_every_result_is_created_once_and_above_the_floor",),
    ),
    Bug(
        "requests are taken by their numbers",
        "cron/requests.py",
        "key=lambda request: request.rev, default=None",
        "key=lambda request: request.number, default=None",
        (f"{_CRON_RUN}::test_ticks_are_in_the_order_of_the_requests",),
    ),
    Bug(
        "sweep takes the history of a job that came back",
        "cron/sweep.py",
        "[CreateRevisionIs(job, 0)], [Delete(key) for key in keys]",
        "[], [Delete(key) for key in keys]",
        (f"{_SWEEP}::test_job_that_comes_back_while_it_is_swept_keeps_its_history_and_floor",),
    ),
    Bug(
        "sweep ends at results that are too large together",
        "cron/sweep.py",
        "except TooBig:",
        "except ZeroDivisionError:",
        (f"{_SWEEP}::test_results_with_output_are_prolonged",),
    ),
    # -- cron: the journal
    Bug(
        "journal is not synced",
        "cron/wal.py",
        "            os.fdatasync(self._fd)\n        except BaseException:\n            self._roll_back()\n",
        "        except BaseException:\n            self._roll_back()\n",
        (f"{_WAL_DURABILITY}::test_power_loss_after_any_append_loses_nothing_that_was_promised",),
    ),
    Bug(
        "failed sync is made good by a later one",
        "cron/wal.py",
        "            self._roll_back()\n            raise\n",
        "            raise\n",
        (f"{_WAL_DISK}::test_failed_sync_is_never_made_good_by_a_later_one",),
    ),
    Bug(
        "truncation of one record too many",
        "cron/wal.py",
        "                self._mark = upto\n",
        "                self._mark = upto + 1\n",
        (f"{_WAL}::test_truncation_removes_up_to_and_with_the_number",),
    ),
    Bug(
        "truncation of a run that is not over",
        "cron/run_log.py",
        "self._wal.truncate(low - 1)",
        "self._wal.truncate(low)",
        (f"{_RUN_LOG}::test_runs_are_remembered_until_their_results_are_delivered",),
    ),
    # -- which host, and what time it is
    Bug(
        "a namesake of this state directory's id is taken for dead",
        "cron/registrar.py",
        "return made_by.proved_dead(self.origin)",
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
        "runs of another boot are lost while it is registered",
        "cron/fleet.py",
        "return [made_by for fields in self.nodes.values()",
        "return [made_by for fields in ({} for _ in ())",
        (f"{_NAMESAKES}::test_run_of_a_living_boot_under_another_name_is_not_lost",),
    ),
    Bug(
        "a clock that is off is gone by",
        "cron/fleet_clock.py",
        "return against > agreeing or",
        "return False and",
        (f"{_CLOCK}::test_etcd_decides_between_two_clocks",),
    ),
    Bug(
        "a newcomer does not wait for the others' clocks",
        "cron/clock_check.py",
        "(not self._unheard or clock.now() >= self._unheard_until)",
        "True",
        (f"{_CLOCK}::test_newcomer_claims_nothing_before_it_knows_the_time",),
    ),
    Bug(
        "links in the state directory are followed",
        "cron/state_dir.py",
        "if stat.S_ISLNK(status.st_mode) or",
        "if False and",
        (f"{_STATE_DIR}::test_files_that_others_may_have_planted_are_refused",),
    ),
    Bug(
        "what changes between two reads of a listing is missed",
        "cron/watcher.py",
        "RangeResult(found[0].header, kvs",
        "RangeResult(found[-1].header, kvs",
        ("tests/system/test_many_jobs.py::test_changes_between_two_reads_of_a_listing_come_as_events",),
    ),
    Bug(
        "schedule is shared across the rules of its zone",
        "cron/schedule.py",
        "return _parse(text, zone, local, name if",
        "return _parse(text, zone, load('UTC'), name if",
        ("tests/unit/cron/test_job.py::test_schedule_is_not_shared_across_rules_of_its_zone",),
    ),
    Bug(
        "schedule is shared across names that H is drawn by",
        "cron/schedule.py",
        'r"(?:^|[ \\t,])[Hh]"',
        'r"^[Hh]"',
        ("tests/unit/cron/test_job.py::test_jobs_that_are_due_alike_share_their_schedule",),
    ),
    Bug(
        "host that drains keeps its place in line",
        "cron/fleet.py",
        "return host.tags, host.can, host.draining, host.cordoned",
        "return host.tags, host.can, host.cordoned",
        ("tests/unit/cron/test_fleet.py::test_host_that_takes_no_ticks_is_not_waited_for",),
    ),
    Bug(
        "host that asks for the time right after an answer gets none",
        "cron/node.py",
        "            self._tasks.later(wait_s, self._answer_late)\n",
        "",
        ("tests/unit/cron/test_node.py::test_hosts_that_ask_together_are_answered_together",),
    ),
    # -- what others send and write
    Bug(
        "clients that send nothing keep their places",
        "cron/status/server.py",
        "                first.end()\n",
        "                await asyncio.sleep(_PAUSE_S)\n",
        (f"{_STATUS}::test_half_requests_do_not_starve_other_clients",),
    ),
    Bug(
        "the host of a request is not looked at",
        "cron/status/app.py",
        "if host not in self._hosts:",
        "if not host:",
        (f"{_STATUS}::test_requests_for_a_foreign_host_name_are_refused",),
    ),
    Bug(
        "a key is reported at each event",
        "cron/unreadable.py",
        "if mark in self._known or",
        "if",
        (f"{_STATUS}::test_keys_that_conch_did_not_make",),
    ),
    Bug(
        "what survived a dead conchd is not killed by its cgroup",
        "cron/daemon.py",
        "for run in lost] if cgroups else []",
        "for run in lost] if not cgroups else []",
        (f"{_CONTAINMENT}::test_survivors_of_both_processes_of_conchd_are_killed_by_their_cgroup",),
    ),
)
