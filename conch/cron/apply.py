"""Makes the jobs in etcd those of files: what is added, changed, removed or left alone, and what is refused."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from conch.cron.changes import changes
from conch.cron.definition import build, check_signature, is_same, pause_of, set_of
from conch.cron.job_file import FileJob, JobFile
from conch.cron.job_store import Change, Edit, JobStore, Stored
from conch.cron.values import fields_of
from conch.errors import EXIT_NO, BadInput, ConchError


class Application:
    """The jobs of some files, to be written. `author` are the fields that say who writes them.

    A job that is paused stays so unless its file says `paused`. A job of another set, or one that is signed while there
    is no key, is refused.
    """

    def __init__(
        self, files: Sequence[JobFile], author: Mapping[str, str], signing_key: bytes | None, *, prune: bool
    ) -> None:
        """Raise `BadInput` if it is not clear what to prune."""
        self._jobs = {name: job for file in files for name, job in file.jobs.items()}
        self._author = author
        self._signing_key = signing_key
        self._prune = prune
        nameless = [file.label for file in files if file.set is None]
        if prune and nameless:
            raise BadInput(f'{nameless[0]}: --prune needs the name of a set at the top: set = "web-team"')
        self._sets = {file.set for file in files} if prune else set()

    def plan(self, jobs: JobStore) -> list[Change]:
        """Read the jobs and decide what becomes of each; write nothing. Raises `ConchError` if one is refused."""
        if not self._prune:
            return jobs.plan(self._jobs, self.decide)
        known = {stored.name: stored for page in jobs.pages() for stored in page}
        surplus = [name for name, stored in known.items() if name not in self._jobs and set_of(stored) in self._sets]
        return jobs.plan([*self._jobs, *surplus], self.decide, known)

    def decide(self, name: str, before: Stored | None) -> Edit | None:
        """Return the edit of a job; None if it is right already. Raises `ConchError`."""
        defined = self._jobs.get(name)
        if defined is None:
            is_surplus = before is not None and set_of(before) in self._sets
            return Edit(None) if is_surplus else None
        fields: dict[str, Any] = {**defined.fields, **self._author}
        if before is not None:
            self._check(defined, before)
            fields |= {field: value for field, value in _pause(defined, before).items() if field not in defined.fields}
        if defined.keep:
            _keep(defined, before, fields)
        job = build(name, fields)
        if before is not None and before.job is not None and is_same(before.job, job, self._signing_key):
            return None
        return Edit(job, sign=self._signing_key is not None)

    def _check(self, defined: FileJob, before: Stored) -> None:
        name, other = defined.name, set_of(before)
        if other is not None and other != defined.fields.get("set"):
            ours = f"the file's is {defined.fields['set']}" if "set" in defined.fields else "the file names no set"
            raise ConchError(
                f"job {name} is of the set {other}, and {ours}: conch cron set {name} --set '' frees it", code=EXIT_NO
            )
        if before.job is None:
            return
        if defined.keep:
            check_signature(before.job, self._signing_key)
            if self._signing_key is not None and not before.job.is_signed:
                raise ConchError(f"job {name} is not signed: nothing of it can be kept in a signed job", code=EXIT_NO)
        elif before.job.is_signed and self._signing_key is None:
            check_signature(before.job, None)


def _pause(defined: FileJob, before: Stored) -> dict[str, Any]:
    """Return what stays of the pause that the job is under."""
    return {} if defined.fields.get("paused") is False else pause_of(before)


def _keep(defined: FileJob, before: Stored | None, fields: dict[str, Any]) -> None:
    """Copy from etcd what the file leaves to it."""
    raw = {} if before is None else fields_of(before.value)
    for path in defined.keep:
        top, _, variable = path.partition(".")
        values = raw.get(top)
        if variable:
            values = values.get(variable) if isinstance(values, dict) else None
        if values is None:
            raise ConchError(
                f"job {defined.name} keeps {path}, which it does not have in etcd: write it into the file, or take it "
                "out of keep",
                code=EXIT_NO,
            )
        if variable:
            fields["env"] = {**(fields.get("env") or {}), variable: values}
        else:
            fields[top] = values


def diff_of(change: Change) -> Iterator[str]:
    """Yield the lines that show a change to people: what happened to which job, then each field that differs."""
    if change.is_write and change.after is None:
        yield f"- {change.name}"
    elif not change.is_write or change.after is None:
        yield f"= {change.name}"
    elif change.before is None:
        yield f"+ {change.name}"
    elif change.before.job is None:
        yield f"~ {change.name} (unreadable)"
        yield f"    it was unreadable: {change.before.problem}"
    else:
        differences = changes(change.before.job, change.after)
        fields = [line.partition(":")[0] for line in differences] or ["signature"]
        yield f"~ {change.name} ({', '.join(fields)})"
        yield from (f"    {line}" for line in differences)


def kind_of(change: Change) -> str:
    """Return `added`, `changed`, `removed` or `unchanged`."""
    if not change.is_write:
        return "unchanged"
    if change.after is None:
        return "removed"
    return "added" if change.before is None else "changed"
