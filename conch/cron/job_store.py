"""Reads and writes the definitions of jobs: the one path of add, set, apply, pause, resume and rm.

An edit is decided from what etcd has, and written only if that is still so; otherwise it is decided anew. Each written
value has an id of its own (`change_id`), so a write whose answer was lost is recognised, and never taken for the same
write by somebody else.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from conch.cron.job import Job, UnreadableJob, parse
from conch.cron.views import everything, pages
from conch.errors import BadInput, ConchError
from conch.etcd.store import Compare, Delete, KeyValue, ModRevisionIs, Operation, Put, Range, Store, StoreError, TooBig
from conch.keys import JobKey, Keys

# Removing a job takes two operations, and etcd accepts 128 at most; it accepts 1.5 MiB at most, too.
AT_ONCE = 60
_BYTES_AT_ONCE = 1_000_000
# How often to decide again when others change the same jobs in between.
_TRIES = 20


@dataclass(frozen=True, slots=True)
class Stored:
    """A job as etcd has it. If its value cannot be read, `job` is None and `problem` says why."""

    name: str
    value: bytes
    revision: int
    job: Job | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Edit:
    """What to write: a job, to be signed or not, or None to remove it."""

    job: Job | None
    sign: bool = False


# Returns the edit of a job, given what etcd has (None: no such job); None leaves it as it is. May raise `ConchError`.
Decide = Callable[[str, Stored | None], Edit | None]


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of a job: `after` is what is written, None for a removal, and `before` if nothing is written."""

    name: str
    before: Stored | None
    after: Job | None
    is_write: bool

    @property
    def size(self) -> int:
        """The bytes that it adds to a request, about."""
        return 200 + 2 * len(self.name) + (len(self.after.value) if self.is_write and self.after is not None else 0)


class JobStore:
    """The definitions of jobs in etcd. `signing_key` signs those whose edit asks for it."""

    def __init__(self, store: Store, keys: Keys, signing_key: bytes | None = None, *, timeout_s: float) -> None:
        self._store = store
        self._keys = keys
        self._signing_key = signing_key
        self._timeout_s = timeout_s

    # -- reading ----------------------------------------------------------------------------------------------

    def read(self, names: Iterable[str]) -> dict[str, Stored]:
        """Return those of these jobs that exist. Up to 60 are read at one revision."""
        found: dict[str, Stored] = {}
        for batch in _batches(names):
            reads = [Range(self._key(name)) for name in batch]
            answers = self._store.txn([], reads, timeout_s=self._timeout_s).ranges
            for name, answer in zip(batch, answers, strict=True):
                if answer.kvs:
                    found[name] = _stored(name, answer.kvs[0])
        return found

    def pages(self, odd: Callable[[str, str], None] = lambda _key, _why: None) -> Iterator[list[Stored]]:
        """Yield all jobs in pages, sorted by name; `odd` is called with each key that names no job, and why."""
        for found in pages(self._store, everything(self._keys.cron("job")), timeout_s=self._timeout_s):
            page = []
            for kv in found.kvs:
                key = self._keys.parse(kv.key)
                if isinstance(key, JobKey):
                    page.append(_stored(key.name, kv))
                else:
                    odd(kv.key.decode("utf-8", "replace"), "the key has no valid job name")
            yield page

    # -- writing ----------------------------------------------------------------------------------------------

    def plan(self, names: Iterable[str], decide: Decide, known: "dict[str, Stored] | None" = None) -> list[Change]:
        """Decide what becomes of these jobs; write nothing. `known` is what was read already of these jobs."""
        planned = []
        for batch in _batches(names):
            found = self.read(batch) if known is None else known
            planned += [self._change(name, found.get(name), decide) for name in batch]
        return planned

    def write(self, planned: Sequence[Change], decide: Decide) -> Iterator[list[Change]]:
        """Write what was planned in batches of at most 60 jobs, and yield what each batch did.

        A batch is one transaction, made or not made as a whole; `decide` is asked again if others changed its jobs.
        Only a batch that etcd finds too big is split. Raises `ConchError`, which says how far it came.
        """
        done = 0
        for batch in _fitting(planned):
            try:
                for changes in self._commit(batch, decide):
                    done += len(changes)
                    yield changes
            except ConchError as error:
                if len(planned) == 1:
                    raise
                raise _halted(error, done, len(batch), len(planned)) from None

    def change(self, names: Iterable[str], decide: Decide) -> list[Change]:
        """Plan and write; return what was done."""
        planned = self.plan(names, decide)
        return [change for batch in self.write(planned, decide) for change in batch]

    def _change(self, name: str, before: Stored | None, decide: Decide) -> Change:
        edit = decide(name, before)
        if edit is None:
            return Change(name, before, None if before is None else before.job, is_write=False)
        if edit.job is None:
            return Change(name, before, None, is_write=before is not None)
        job = edit.job.changed(change_id=os.urandom(8).hex())
        return Change(name, before, job.signed(self._signing_key) if edit.sign else job, is_write=True)

    def _commit(self, batch: Sequence[Change], decide: Decide) -> Iterator[list[Change]]:
        for _ in range(_TRIES):
            writes = [change for change in batch if change.is_write]
            try:
                if not writes or self._send(writes):
                    yield list(batch)
                    return
            except TooBig:
                if len(writes) == 1:
                    raise
                half = len(batch) // 2
                yield from self._commit(batch[:half], decide)
                yield from self._commit(batch[half:], decide)
                return
            found = self.read(change.name for change in batch)
            if _was_written(writes, found):
                yield list(batch)
                return
            batch = [self._change(change.name, found.get(change.name), decide) for change in batch]
        raise ConchError(f"cannot write job {writes[0].name}: others keep changing it")

    def _send(self, writes: Sequence[Change]) -> bool:
        """Write all of these if none has changed since it was read; return whether that was so."""
        compare: list[Compare] = []
        operations: list[Operation] = []
        for change in writes:
            key = self._key(change.name)
            compare.append(ModRevisionIs(key, 0 if change.before is None else change.before.revision))
            if change.after is None:
                operations += [Delete(key), Delete(self._keys.cron("floor", change.name).encode())]
            else:
                operations.append(Put(key, change.after.encode()))
        return self._store.txn(compare, operations, timeout_s=self._timeout_s).succeeded

    def _key(self, name: str) -> bytes:
        return self._keys.cron("job", name).encode()


def _was_written(writes: Sequence[Change], found: "dict[str, Stored]") -> bool:
    """Return whether an earlier try, whose answer was lost, wrote all of this: it was one transaction.

    What others have changed since then stays as they changed it.
    """
    puts = [change for change in writes if change.after is not None]
    if puts:
        return any(
            change.name in found and change.after is not None and found[change.name].value == change.after.encode()
            for change in puts
        )
    return not any(change.name in found for change in writes)


def _halted(error: ConchError, done: int, batch: int, total: int) -> ConchError:
    """Say how far a write came; it cannot say more of the batch under way than etcd did."""
    unclear = isinstance(error, StoreError) and error.unclear
    under_way = f", {batch} may be" if unclear else ""
    rest = total - done - (batch if unclear else 0)
    return ConchError(f"{error}; of {total} jobs {done} are done{under_way}, {rest} are not", code=error.code)


def _stored(name: str, kv: KeyValue) -> Stored:
    try:
        return Stored(name, kv.value, kv.mod_revision, parse(name, kv.value))
    except (UnreadableJob, BadInput) as error:
        return Stored(name, kv.value, kv.mod_revision, None, str(error))


def _batches(names: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(names)
    while batch := list(islice(remaining, AT_ONCE)):
        yield batch


def _fitting(planned: Sequence[Change]) -> Iterator[list[Change]]:
    """Split the changes into batches that etcd accepts; jobs that are not written count for nothing."""
    batch: list[Change] = []
    writes = size = 0
    for change in planned:
        if writes and change.is_write and (writes == AT_ONCE or size + change.size > _BYTES_AT_ONCE):
            yield batch
            batch, writes, size = [], 0, 0
        batch.append(change)
        writes += change.is_write
        size += change.size * change.is_write
    if batch:
        yield batch
