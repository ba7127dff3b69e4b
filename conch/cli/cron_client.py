"""What the subcommands of `conch cron` share: their connection to etcd, and the options that several of them have."""

from conch.cli.connection_options import settings
from conch.cli.spec import TEXT, Line, Option
from conch.errors import EXIT_NO, ConchError
from conch.log import Log
from conch.static_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conch.cron.job import Job
    from conch.cron.job_store import JobStore, Stored
    from conch.etcd.store import Store

JSON = Option(("--json",), "Print one JSON object per line.", name="as_json")
JOB_KEY_FILE = Option(
    ("--job-key-file",),
    "Sign the job with the key in this file.",
    TEXT,
    env=("CONCH_JOB_KEY_FILE",),
    metavar="FILE",
)


class CronClient:
    """The settings of one command line, and the store while it is entered."""

    def __init__(self, line: Line) -> None:
        """Check the line's common options; raise `BadInput`."""
        self.common = settings(line)
        self.log = Log(quiet=self.common.quiet, form=self.common.log_format)
        self.keys = self.common.keys
        connection = self.common.connection
        self.timeout_s = min(connection.dial_timeout_s, connection.command_timeout_s)

    def __enter__(self) -> "CronClient":
        from conch.cli.exit import guard_threads
        from conch.etcd.open import open_store

        guard_threads()
        self.store: Store = open_store(self.common.connection)
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    def read_job(self, name: str) -> "tuple[Job, int]":
        """Return the job and its mod-revision; exit 1 if there is none, 69 if its value is unreadable."""
        stored = self.jobs().read([name]).get(name)
        return self.readable(name, stored), 0 if stored is None else stored.revision

    def jobs(self, signing_key: bytes | None = None) -> "JobStore":
        """Return the jobs in etcd; with a key, to sign those that are written."""
        from conch.cron.job_store import JobStore

        return JobStore(self.store, self.keys, signing_key, timeout_s=self.timeout_s)

    def readable(self, name: str, stored: "Stored | None") -> "Job":
        """Return a job that was read; raises as `read_job`."""
        if stored is None:
            raise ConchError(f"there is no job {name}", code=EXIT_NO)
        if stored.job is None:
            raise ConchError(f"job {name} cannot be read ({self.keys.cron('job', name)}): {stored.problem}")
        return stored.job

    def log_unreadable(self, key: str, why: str | None = None) -> None:
        """Warn of a key in etcd whose value cannot be read."""
        self.log("warning", "unreadable", key=key, msg=why)
