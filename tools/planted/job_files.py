"""Bugs in the edits of jobs: files, crontabs, secrets, answers that are lost."""

from tools.planted.bug import Bug

_STORE = "tests/system/test_job_store.py"
_FILES = "tests/system/test_cron_files.py"
_EDIT = "tests/system/test_cron_edit.py"
_APPLY = "tests/unit/cron/test_apply.py"
_CRONTAB = "tests/unit/cron/test_crontab.py"

BUGS = (
    Bug(
        "two writes of the same job are not told apart",
        "cron/job_store.py",
        "change_id=os.urandom(8).hex()",
        'change_id="0"',
        (f"{_STORE}::test_the_same_edit_by_others_is_not_taken_for_ours",),
    ),
    Bug(
        "lost answer of a write is not recognised",
        "cron/job_store.py",
        "            if _was_written(writes, found):\n",
        "            if not found and _was_written(writes, found):\n",
        (f"{_STORE}::test_lost_answer_is_recognised",),
    ),
    Bug(
        "edit overwrites one that came in between",
        "cron/job_store.py",
        "ModRevisionIs(key, 0 if change.before is None else change.before.revision)",
        'ModRevisionIs(self._key(""), 0)',
        (f"{_STORE}::test_batch_is_decided_anew_when_others_edit_one_of_its_jobs",),
    ),
    Bug(
        "batch has too many bytes for etcd",
        "cron/job_store.py",
        "_BYTES_AT_ONCE = 1_000_000",
        "_BYTES_AT_ONCE = 100_000_000",
        (f"{_STORE}::test_batches_have_at_most_60_jobs_and_a_megabyte",),
    ),
    Bug(
        "prune removes jobs of other sets",
        "cron/apply.py",
        "is_surplus = before is not None and set_of(before) in self._sets",
        "is_surplus = before is not None",
        (f"{_APPLY}::test_prune_removes_jobs_of_the_set_and_no_others",),
    ),
    Bug(
        "apply takes a job from another set",
        "cron/apply.py",
        'if other is not None and other != defined.fields.get("set"):',
        "if False:",
        (f"{_APPLY}::test_job_of_another_set_is_refused",),
    ),
    Bug(
        "apply resumes what a person paused",
        "cron/apply.py",
        'return {} if defined.fields.get("paused") is False else pause_of(before)',
        "return {}",
        (f"{_APPLY}::test_job_that_is_paused_stays_so_unless_the_file_says_otherwise",),
    ),
    Bug(
        "apply drops a signature",
        "cron/apply.py",
        "elif before.job.is_signed and self._signing_key is None:",
        "elif False:",
        (f"{_APPLY}::test_signed_job_needs_the_key",),
    ),
    Bug(
        "apply signs variables that others wrote",
        "cron/apply.py",
        "        if defined.keep:\n            check_signature",
        "        if defined.keep and self._signing_key is None:\n            check_signature",
        (f"{_APPLY}::test_nothing_that_others_wrote_is_kept_in_a_signed_job",),
    ),
    Bug(
        "export shows secrets",
        "cron/job_export.py",
        "secrets = [] if reveal else secrets_of(raw)",
        "secrets: list[str] = []",
        (f"{_APPLY}::test_secrets_are_left_out_and_kept",),
    ),
    Bug(
        "export loses the set",
        "cron/job_export.py",
        '(key == "set" and not with_set)',
        'key == "set"',
        (f"{_FILES}::test_apply_of_an_export_changes_nothing",),
    ),
    Bug(
        "set changes all variables",
        "cli/cron_edit.py",
        'env = {} if "" in fields["env"] else dict(job.env)',
        "env: dict[str, Any] = {}",
        (f"{_EDIT}::test_set_changes_what_is_named_and_nothing_else",),
    ),
    Bug(
        "add makes a pause endless",
        "cron/definition.py",
        "return {field: raw[field] for field in PAUSE if raw.get(field) is not None}",
        'return {"paused": True}',
        (f"{_EDIT}::test_add_keeps_a_pause_with_its_end",),
    ),
    Bug(
        "percent sign of a crontab is kept",
        "cron/crontab.py",
        'text = "\\n".join(parts[1:])',
        'text = "%".join(parts[1:])',
        (f"{_CRONTAB}::test_input_after_percent_signs_reaches_the_command",),
    ),
)
