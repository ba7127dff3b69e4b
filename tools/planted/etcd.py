"""Bugs in `conch/etcd`: the drivers."""

from tools.planted.bug import Bug

_ANSWERS = "tests/unit/etcd/test_answers.py"
_AUTH = "tests/unit/etcd/test_auth.py"
_FAILOVER = "tests/unit/etcd/test_failover.py"
_ODD = "tests/system/test_odd_answers.py"
_RELEASES = "tests/faults/cluster/test_releases_errors.py"
_RELOAD = "tests/faults/cluster/test_reload_tls.py"
_SLOW = "tests/faults/cluster/test_slow.py"
_STORE = "tests/system/test_store.py"
_TRANSACTIONS = "tests/system/test_transactions.py"

BUGS = (
    Bug(
        "slow is away",
        "etcd/patience.py",
        "if left_s <= 0 or not error.accepted():",
        "if True:",
        (f"{_SLOW}::test_all_that_start_at_the_same_time_are_served",),
    ),
    Bug(
        "a last try without an answer hides what the endpoint answered",
        "etcd/failover.py",
        "if why != NO_ANSWER or endpoint not in self._answered:",
        "if True:",
        (f"{_FAILOVER}::test_last_try_without_an_answer_hides_no_earlier_answer",),
    ),
    Bug(
        "logins that are cut short are begun again with as little time",
        "etcd/auth.py",
        "self._least_s = min(self._least_s * _LONGER, _LONGEST_S)",
        "pass",
        (f"{_AUTH}::test_login_after_one_that_was_cut_short_may_take_longer",),
    ),
    Bug(
        "a connection that is closed under the login of a new password ends it",
        "etcd/failover.py",
        "if not problem or client is self._client or time.monotonic() > until:",
        "if True:",
        (f"{_FAILOVER}::test_password_is_renewed_although_another_call_closes_the_connection",),
    ),
    Bug(
        "watches over HTTP are asked for by a request that ends when the answer begins",
        "etcd/gateway_protocol.py",
        'CLOSE = b"Connection: close"',
        'CLOSE = b"Connection: keep-alive"',
        (f"{_STORE}::test_watch_of_many_keys_reports_each_however_slowly_it_was_requested",),
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
        "_check_known(operation, result, known, written_at=header.revision)",
        "pass",
        (f"{_ODD}::test_transaction_without_what_it_read_is_no_hold",),
    ),
    Bug(
        "new certificates are not proved before the old ones are left",
        "etcd/failover.py",
        "                member.range(replace(probe, limit=1, keys_only=True), timeout_s=timeout_s / len(members))\n",
        "                member.connected()\n",
        (f"{_RELOAD}::test_new_certificate_is_the_new_identity",),
    ),
    Bug(
        "refusal after a lost answer is clear",
        "etcd/failover.py",
        "self.unclear = self.unclear or (sent and not error.nothing_written)",
        "self.unclear = sent and not error.nothing_written",
        ("tests/unit/etcd/test_failover.py::test_refusal_after_a_lost_answer_is_unclear",),
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
        "DENIED.is_in(answer.cancel_reason) or USER_EMPTY.is_in(answer.cancel_reason)",
        "USER_EMPTY.is_in(answer.cancel_reason)",
        (f"{_RELEASES}::test_watch_that_is_refused",),
    ),
    Bug(
        "a watch without permission for a later range is opened for ever",
        "etcd/watch.py",
        "if len(current.index) == len(self._what):",
        "if True:",
        (
            "tests/unit/etcd/test_watch.py::test_watch_ends_when_a_later_range_is_refused_again",
            "tests/faults/cluster/test_users.py::test_watch_of_which_a_later_range_is_denied_ends",
        ),
    ),
    Bug(
        "what asks a silent stream takes the number of its first watch",
        "etcd/gateway_codec.py",
        ', "watch_id": str(_PROBE_ID)',
        "",
        ("tests/faults/cluster/test_users.py::test_watch_still_reports_changes_after_a_probe",),
    ),
    Bug(
        "a learner of 3.6 is no member to pass over",
        "etcd/error_codes.py",
        'EtcdError((UNAVAILABLE, FAILED_PRECONDITION), "etcdserver: rpc not supported for learner")',
        'EtcdError((UNAVAILABLE,), "etcdserver: rpc not supported for learner")',
        (f"{_FAILOVER}::test_what_a_member_cannot_do_another_may",),
    ),
    Bug(
        "the gateway's errors are read in the form of 3.5 alone",
        "etcd/gateway_codec.py",
        'fields.text(answer, "message") or fields.text(answer, "error")',
        'fields.text(answer, "error")',
        (f"{_ANSWERS}::test_error_is_read_in_the_form_of_every_release",),
    ),
    Bug(
        "what transactions made as one write is not shown to etcd",
        "etcd/failover.py",
        '        return [Put(key, b"") for part in parts for key in part.written()]',
        "        return []",
        (
            f"{_TRANSACTIONS}::test_one_that_our_role_may_not_make_refuses_all",
            f"{_TRANSACTIONS}::test_full_etcd_takes_none",
        ),
    ),
    Bug(
        "answer with other parts than asked for is believed",
        "etcd/answers.py",
        "if not succeeded or len(parts) != len(results):",
        "if False:",
        (f"{_ANSWERS}::test_answers_to_several_transactions_that_etcd_never_gives",),
    ),
)
