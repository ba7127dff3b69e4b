"""A store that notes what a transaction compares and never sends it: etcd plays no part in the test."""

from collections.abc import Sequence
from typing import Any

from conch.etcd.store import Compare, Operation, TxnResult, Unreachable


class Unsent:
    """Notes the comparisons of the newest transaction, then fails as if no endpoint answered."""

    compare: Sequence[Compare] = ()

    def txn(
        self, compare: Sequence[Compare], success: Sequence[Operation], failure: Sequence[Operation], **how: Any
    ) -> TxnResult:
        self.compare = compare
        raise Unreachable("not sent")
