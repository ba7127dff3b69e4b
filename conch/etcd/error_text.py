"""Describes in a few words why a call failed."""

from conch.etcd.error_codes import DEADLINE_EXCEEDED, LEARNER, NO_LEADER

NO_ANSWER = "no answer in time"
_MEANINGS = {
    "hostname verification": "its certificate is for another host name",
    "alert_bad_certificate": "it does not accept our certificate, or wants one (--cert, --key)",
    "alert_certificate_required": "it wants a client certificate (--cert, --key)",
    "alert_unknown_ca": "it does not accept our certificate",
    "wrong_version_number": "it does not speak TLS",
    "unwrap failed": "it ended the TLS connection; perhaps it wants a client certificate (--cert, --key)",
    "unexpected_eof_while_reading": "it closed the connection in the TLS handshake (does it speak TLS?)",
    "handshake read failed": "it closed the connection in the TLS handshake (does it speak TLS?)",
    "socket closed": "it closed the connection (does it want https?)",
    "connection refused": "connection refused",
    "name resolution": "name resolution failed",
    "dns resolution": "name resolution failed",
    "deadline exceeded": NO_ANSWER,
    NO_LEADER.text: "it has no leader",
    LEARNER.text: "it is a learner, which serves nothing until it is promoted",
    "failed parsing http/2": "it does not speak HTTP/2 (is it etcd?)",
    "connect an http1.x server": "it does not speak HTTP/2 (is it etcd?)",
}


def describe(code: int | None, details: str) -> str:
    """Describe a failure by its code in gRPC (None: it never got that far) and its text."""
    if "CERTIFICATE_VERIFY_FAILED" in details:
        import re  # late: only TLS fails like this, and has imported it

        why = re.search(r"CERTIFICATE_VERIFY_FAILED: ([a-zA-Z ]+)", details)
        return f"its certificate is not valid: {why[1] if why else 'verification failed'}"
    for sign, meaning in _MEANINGS.items():
        if sign in details.lower():
            return meaning
    if code == DEADLINE_EXCEEDED:
        return NO_ANSWER
    return details.splitlines()[0][:200] if details else f"code {code}"
