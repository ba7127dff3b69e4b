"""`conch help`: the help of a command, or a topic that concerns several."""

from conch.static_typing import Mapping, Sequence

_EXIT_CODES = """\
Exit codes of conch elect and conch sema:

  the command's  the command ran to its end while the hold was kept; 128+n if signal n killed it
  1              --who: vacant or empty; --assert: not held
  64             wrong usage; nothing was sent to etcd
  69             etcd did not answer, or refused our credentials
  70             the hold was lost, and the command was ended for it
  71             a defect of conch
  74             stdout cannot be written
  75             not acquired (--nonblock, --wait), or the on-acquire hook failed; -E N replaces it
  126, 127       the command is not executable, or was not found
  128+n          signal n ended conch before the command ran

conch cron exits with 1 for a job that is not there. conchd exits with 75 if its state directory is in use."""
_ENVIRONMENT = """\
Where an option has a variable, the flag wins, then CONCH_<OPTION>, then ETCDCTL_<OPTION> where etcdctl has it.

  CONCH_ENDPOINTS, ETCDCTL_ENDPOINTS  members of etcd, comma-separated
  CONCH_USER, CONCH_PASSWORD          the etcd user and its password
  CONCH_CACERT, CONCH_CERT, CONCH_KEY certificates
  CONCH_PREFIX                        prefix of all keys
  CONCH_HOST                          name of this host, instead of the system's
  CONCH_DEBUG=1                       the traceback of a defect

A command under a hold gets CONCH_NAME, CONCH_REV (the fencing token), CONCH_LEASE, CONCH_HOLD_KEY and CONCH_TREE; a run
of a job also CONCH_TICK (Unix seconds) and CONCH_ATTEMPT. Only the options that all commands share have variables, and
those of conchd."""
_SCHEDULES = """\
A schedule has five fields: minute, hour, day of month, month, day of week.

  30 2 * * *           at 02:30
  */10 8-18 * * mon-fri  every ten minutes from 8 to 18, Monday to Friday
  0 0 L * *            the last day of the month (also L-3, LW, 15W)
  0 9 * * fri#2        the second Friday (5L: the last Friday)
  H H * * *            once a day, at a time drawn from the job's name
  @hourly @daily @weekly @monthly @yearly
  @every 90s           the multiples of a duration since 1970

Times are in the job's zone (--tz, default UTC). To see the ticks: conch cron next '30 2 * * *' --tz Europe/Berlin
To read them in words, add --explain."""
_DURATIONS = """\
Durations: 300ms, 10s, 1m30s, 2h, 1d, 2w, or a number of seconds (5, 0.5)."""
_TOPICS: Mapping[str, str] = {
    "exit-codes": _EXIT_CODES,
    "environment": _ENVIRONMENT,
    "schedules": _SCHEDULES,
    "durations": _DURATIONS,
}


def topic(words: Sequence[str]) -> str | None:
    """Return the text of a topic; None if the words name none. Without words it is the list of topics."""
    if not words:
        names = ", ".join(_TOPICS)
        return f"conch help COMMAND shows the options of a command, conch help TOPIC a topic: {names}."
    return _TOPICS.get("-".join(words).lower())
