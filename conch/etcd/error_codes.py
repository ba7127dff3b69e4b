"""The errors of etcd that conch distinguishes, with gRPC's code and etcd's text, in one table.

Each row was seen on 3.4.23, 3.5.1, 3.5.35, 3.6.16 and 3.7.3 unless it says otherwise. The codes of the first block
differ by release, so they are known by their texts.
"""

from conch.record import Record

# gRPC's status codes, which the JSON gateway answers too.
CANCELLED, UNKNOWN, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, PERMISSION_DENIED = 1, 2, 3, 4, 5, 7
RESOURCE_EXHAUSTED, FAILED_PRECONDITION, OUT_OF_RANGE = 8, 9, 11
INTERNAL, UNAVAILABLE, DATA_LOSS, UNAUTHENTICATED = 13, 14, 15, 16

# How etcd's own errors begin: whoever says this is etcd, and works.
OWN = "etcdserver:"


class EtcdError(Record):
    """An error: the codes that it comes with, and a part of its text."""

    codes: tuple[int, ...]
    text: str

    def matches(self, code: int | None, details: str) -> bool:
        """Return whether this error was answered."""
        return code in self.codes and self.text in details

    def is_in(self, text: str) -> bool:
        """Return whether a text without a code names this error, as the reason of a cancelled watch does."""
        return self.text in text


# -- the member that was asked cannot serve; another may. The code is 14 up to 3.5, 9 from 3.6 on
LEARNER = EtcdError((UNAVAILABLE, FAILED_PRECONDITION), "etcdserver: rpc not supported for learner")
NOT_CAPABLE = EtcdError(
    (UNAVAILABLE, FAILED_PRECONDITION), "etcdserver: not capable"
)  # as it starts; from etcd's source
NOT_LEADER = EtcdError((FAILED_PRECONDITION,), "etcdserver: not leader")  # (from source)
NO_LEADER = EtcdError((UNAVAILABLE,), "etcdserver: no leader")
TOO_MANY_REQUESTS = EtcdError((RESOURCE_EXHAUSTED,), "etcdserver: too many requests")  # (from source)

# -- logins and tokens
NOT_ENABLED = EtcdError((FAILED_PRECONDITION,), "etcdserver: authentication is not enabled")
WRONG_PASSWORD = EtcdError((INVALID_ARGUMENT,), "etcdserver: authentication failed, invalid user ID or password")
# no release translates this one
NO_PASSWORD = EtcdError((UNKNOWN,), "auth: authentication failed, password was given for no password user")
USER_EMPTY = EtcdError((INVALID_ARGUMENT,), "etcdserver: user name is empty")
DENIED = EtcdError((PERMISSION_DENIED,), "etcdserver: permission denied")
INVALID_TOKEN = EtcdError((UNAUTHENTICATED,), "etcdserver: invalid auth token")
OLD_REVISION = EtcdError((INVALID_ARGUMENT,), "etcdserver: revision of auth store is old")  # not on 3.5.1
# the same on 3.5.1, which does not translate it (code 2)
OLD_REVISION_RAW = EtcdError((UNKNOWN, INVALID_ARGUMENT), "revision in header is old")

# -- leases
LEASE_GONE = EtcdError((NOT_FOUND,), "etcdserver: requested lease not found")
LEASE_EXISTS = EtcdError((FAILED_PRECONDITION,), "etcdserver: lease already exists")

# -- writes
FULL = EtcdError((RESOURCE_EXHAUSTED,), "etcdserver: mvcc: database space exceeded")
TOO_LARGE = EtcdError((INVALID_ARGUMENT,), "etcdserver: request is too large")
TOO_MANY_OPERATIONS = EtcdError((INVALID_ARGUMENT,), "etcdserver: too many operations in txn request")

# gRPC's own limit of a message, which etcd sets a little above that of a request
MESSAGE_TOO_LARGE = EtcdError((RESOURCE_EXHAUSTED,), "received message larger than max")

TOO_BIG = (TOO_LARGE, TOO_MANY_OPERATIONS, MESSAGE_TOO_LARGE)
ELSEWHERE = (LEARNER, NOT_CAPABLE, NOT_LEADER, NO_LEADER, TOO_MANY_REQUESTS)
BAD_LOGIN = (WRONG_PASSWORD, NO_PASSWORD)
TOO_OLD = (OLD_REVISION, OLD_REVISION_RAW)

# In the plain text of a 400, etcd says so that it cannot know us by our certificate through the gateway.
BY_NAME = "CommonName of client"
