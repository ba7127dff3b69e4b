"""Bugs in `conch/cron`: many ticks at one moment, and transactions made together."""

from tools.planted.bug import Bug

_CLAIMER = "tests/unit/cron/test_claimer.py"
_CLAIMS = "tests/system/test_claims.py"
_TRANSACTIONS = "tests/unit/cron/test_transactions.py"
_TURNS = "tests/unit/cron/test_turns.py"

BUGS = (
    # -- cron: transactions made together
    Bug(
        "two transactions of one job go into one request",
        "cron/transactions.py",
        "if item.job in jobs or (taken and not fits):",
        "if taken and not fits:",
        (f"{_TRANSACTIONS}::test_request_has_one_transaction_of_a_job",),
    ),
    Bug(
        "transaction overtakes one of its job",
        "cron/transactions.py",
        "            jobs.add(item.job)  #",
        "            jobs |= {item.job} if item in taken else set()  #",
        (f"{_TRANSACTIONS}::test_transaction_does_not_overtake_one_of_its_job",),
    ),
    Bug(
        "answers go to the wrong transactions",
        "cron/transactions.py",
        "zip(to_send, answer.results, strict=True)",
        "zip(to_send, answer.results[::-1], strict=True)",
        (f"{_TRANSACTIONS}::test_those_that_come_during_a_request_share_the_next",),
    ),
    Bug(
        "lost reply makes only the first transaction of its request unclear",
        "cron/transactions.py",
        "                for item in to_send:\n                    item.fail(error)\n",
        "                for item in to_send:\n                    item.fail(error)\n"
        "                    error.unclear = False\n",
        (f"{_TRANSACTIONS}::test_lost_reply_makes_all_of_its_request_unclear",),
    ),
    Bug(
        "transactions share the error of their request",
        "cron/transactions.py",
        "own = copy(error)",
        "own = error",
        (f"{_TRANSACTIONS}::test_lost_reply_makes_all_of_its_request_unclear",),
    ),
    Bug(
        "refusal of a half forgets that the whole may have been made",
        "cron/transactions.py",
        "            if error.unclear:\n",
        "            if False:\n",
        (f"{_TRANSACTIONS}::test_refusal_after_an_unclear_try_is_unclear",),
    ),
    Bug(
        "transaction that may have been made counts as not sent",
        "cron/transactions.py",
        "        if self.lost is not None:\n            self.fail(self.lost)\n        elif not",
        "        if not",
        (f"{_TRANSACTIONS}::test_what_nobody_wants_any_more_between_two_halves",),
    ),
    Bug(
        "transaction is sent that nobody wants any more",
        "cron/transactions.py",
        "if item.is_wanted():",
        "if True:",
        (f"{_TRANSACTIONS}::test_what_nobody_wants_any_more_is_not_sent",),
    ),
    Bug(
        "half that fails hides the other",
        "cron/transactions.py",
        "for half in (to_send[:middle], to_send[middle:])]",
        "for half in (to_send[:middle],)]",
        (f"{_TRANSACTIONS}::test_two_that_are_refused_do_not_hide_each_other",),
    ),
    Bug(
        "request that a full etcd has refused is sent again",
        "cron/transactions.py",
        " and not isinstance(error, Full)",
        "",
        (f"{_TRANSACTIONS}::test_full_etcd_fails_all_of_them",),
    ),
    Bug(
        "claim that was not made is won",
        "cron/claim_store.py",
        "        if answer.succeeded:\n            has_run",
        "        if True:\n            has_run",
        (f"{_CLAIMS}::test_claim_is_created_once_and_recognised_when_repeated",),
    ),
    Bug(
        "claim that is won is not written to disk",
        "cron/claimer.py",
        "if isinstance(outcome, Won) and isinstance(decision, ClaimToRun):",
        "if False:",
        (f"{_CLAIMER}::test_won_claim_is_on_disk_before_it_is_answered",),
    ),
    Bug(
        "claim is sent while conchd stops",
        "cron/claimer.py",
        "not (tick.cancelled or self._ports.draining())",
        "not tick.cancelled",
        (f"{_CLAIMER}::test_claim_that_is_not_sent_when_the_daemon_ends_is_not_made",),
    ),
    Bug(
        "turn waits for a host that claims until the tick is lost",
        "cron/turns.py",
        "(tick.due + tick.deadline) / 2",
        "tick.deadline",
        (f"{_TURNS}::test_wait_is_at_most_half_of_the_time_in_which_it_can_be_claimed",),
    ),
    Bug(
        "a supervisor with many orders counts as stopped",
        "cron/supervisor_check.py",
        "max(oldest, self._took_at)",
        "oldest",
        ("tests/unit/cron/test_supervisor_check.py::test_supervisor_with_many_orders_takes_one_after_the_other",),
    ),
    Bug(
        "one transaction that is too large has all others sent alone",
        "cron/transactions.py",
        "if is_too_big and all(halves_fit):",
        "if is_too_big:",
        (f"{_TRANSACTIONS}::test_one_that_is_too_big_by_itself_says_nothing_about_the_others",),
    ),
    Bug(
        "a daemon claims all ticks however few it has started",
        "cron/readiness.py",
        "if self._ahead() >= _AHEAD_MOST:",
        "if False:",
        ("tests/unit/cron/test_parts.py::test_daemon_claims_a_hundred_ticks_ahead_of_their_starts",),
    ),
)
