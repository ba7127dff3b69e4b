"""Bugs in `conch/keeper`: the process that talks to etcd."""

from tools.planted.bug import Bug

_CONTAINMENT = "tests/system/test_containment.py"
_DEATH = "tests/system/test_death.py"
_RUN = "tests/system/test_elect_run.py"
_SEMA = "tests/system/test_sema.py"
_SINCE = "tests/system/test_held_since.py"
_HELD_SINCE = "tests/unit/keeper/test_held_since.py"
_SLOW = "tests/faults/cluster/test_slow.py"
_STORE = "tests/system/test_store.py"
_WATCHDOG = "tests/unit/keeper/test_watchdog.py"

BUGS = (
    # -- the cgroup of a run
    Bug(
        "keeper does not know the cgroup when the deadline comes",
        "keeper/watchdog.py",
        "running.run_id, run.since, run.running.cgroup)",
        'running.run_id, run.since, "")',
        (f"{_CONTAINMENT}::test_what_escaped_is_dead_before_the_lease_can_expire",),
    ),
    # -- the time since when we hold
    Bug(
        "a hold that is over is still written about",
        "keeper/held_since.py",
        '        """We hold no more."""\n        self._due = None\n',
        '        """We hold no more."""\n',
        (f"{_HELD_SINCE}::test_hold_that_is_over_is_not_written_about",),
    ),
    Bug(
        "a short hold costs a thread",
        "keeper/held_since.py",
        "_AFTER_S = 0.2\n",
        "_AFTER_S = 0.0\n",
        (f"{_HELD_SINCE}::test_short_hold_costs_no_thread",),
    ),
    Bug(
        "the thread that talks to etcd wakes for what the watchdog alone handles",
        "keeper/acquirer.py",
        "        if isinstance(message, (Acquire, Release)):\n            self._inbox",
        "        if True:\n            self._inbox",
        ("tests/unit/keeper/test_acquirer.py::test_only_what_it_serves_wakes_it",),
    ),
    Bug(
        "a key that is gone is made again to say since when it is held",
        "keeper/queue.py",
        "self.store.txn([unchanged], [described]",
        "self.store.txn([], [described]",
        (f"{_SINCE}::test_key_that_is_gone_is_not_made_again",),
    ),
    Bug(
        "the time since when we hold takes our key from its lease",
        "keeper/queue.py",
        "Put(key, value, self.lease)\n        return",
        "Put(key, value)\n        return",
        (f"{_SINCE}::test_value_is_replaced_once_under_the_same_lease",),
    ),
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
        "        key, rev = self._own_key\n",
        "        return None\n        key, rev = self._own_key\n",
        (f"{_STORE}::test_renewal_that_the_read_does_not_confirm_proves_nothing",),
    ),
    Bug(
        "renewal counts at another raft term",
        "keeper/session.py",
        "(read.header.member, read.header.term) != (answer.header.member, answer.header.term)",
        "read.header.member != answer.header.member",
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
        (f"{_SLOW}::test_renewal_succeeds_beside_one_that_hangs",),
    ),
    Bug(
        "our key with another's revision confirms",
        "keeper/session.py",
        "if not read.kvs or read.kvs[0].create_revision != rev:",
        "if not read.kvs:",
        (f"{_STORE}::test_read_that_does_not_show_our_key_is_a_loss",),
    ),
    Bug(
        "watchdog does not enforce",
        "keeper/watchdog.py",
        "due = [run for run, at in times if at is not None and now >= at]",
        "due = []",
        (f"{_WATCHDOG}::test_tree_is_killed_at_the_last_moment_and_not_before",),
    ),
    Bug(
        "watchdog does not note that a loss makes the last moment earlier",
        "keeper/watchdog.py",
        "            hold.lost_at = clock.now()\n            self._may_be_earlier = True\n",
        "            hold.lost_at = clock.now()\n",
        (f"{_WATCHDOG}::test_loss_brings_the_last_moment_to_kill_after",),
    ),
    Bug(
        "watchdog does not note that the end of a run was ordered",
        "keeper/watchdog.py",
        "            known.ended_at = clock.now()\n            self._may_be_earlier = True\n",
        "            known.ended_at = clock.now()\n",
        (f"{_WATCHDOG}::test_end_of_one_run_is_ordered_and_enforced",),
    ),
    Bug(
        "tree outlives a dead supervisor",
        "keeper/watchdog.py",
        "        self._end_trees()\n",
        "",
        (f"{_WATCHDOG}::test_dead_supervisor_means_kill_until_nothing_is_seen_alive",),
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
        "                case KeyDeleted():\n                    place = self._read_places()\n",
        "                case KeyDeleted():\n                    place = Place(place.rev, (), place.seen_at)\n",
        (f"{_RUN}::test_a_waiter_in_the_middle_that_leaves_promotes_nobody",),
    ),
    Bug(
        "promotion by the event of the one key ahead, though ours went with it",
        "keeper/acquirer.py",
        "                case KeyDeleted():\n                    place = self._read_places()\n",
        "                case KeyDeleted() if len(place.ahead) == 1:\n"
        "                    place = Place(place.rev, (), place.seen_at)\n"
        "                case KeyDeleted():\n                    place = self._read_places()\n",
        (f"{_DEATH}::test_waiters_whose_keys_go_with_those_ahead_of_them_start_nothing_under_those",),
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
        "a key that an operator deletes is not noticed by the watch",
        "keeper/acquirer.py",
        "                    self._places.check_deleted(key)\n                case",
        "                    pass\n                case",
        (f"{_DEATH}::test_manual_loss_is_noticed_immediately",),
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
        "a loss that comes earlier than the next kill is not looked at",
        "keeper/watchdog.py",
        "            hold.lost_at = clock.now()\n            self._may_be_earlier = True\n",
        "            hold.lost_at = clock.now()\n",
        ("tests/system/test_death.py::test_lease_revoked_while_the_supervisor_is_stopped",),
    ),
)
