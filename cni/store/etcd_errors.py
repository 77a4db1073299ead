"""What etcd's errors mean, and what to do about them. The texts are those of etcd's rpctypes."""

from __future__ import annotations

import msgspec

from .etcd_messages import Failed
from .http import Response
from .interface import Refused, StoreError, Unavailable


class AuthNeeded(Refused):
    """The token is missing, has expired, or is older than the last change of users and roles."""


class Compacted(Unavailable):
    """A revision that is not kept any more."""


# Part of etcd's text -> class, what to do. Whatever is in none of them may succeed later.
_MEANINGS: tuple[tuple[str, type[StoreError], str], ...] = (
    ("invalid auth token", AuthNeeded, "set store.username and store.passwordFile"),
    ("revision in header is old", AuthNeeded, "try again"),
    ("user name is empty", AuthNeeded, "set store.username and store.passwordFile"),
    (
        "invalid user ID or password",
        Refused,
        "correct store.username, or the password in store.passwordFile",
    ),
    (
        "permission denied",
        Refused,
        "if store.username is not set, set it and store.passwordFile; else grant it: etcdctl role "
        "grant-permission ROLE --prefix=true readwrite PREFIX/, with store.prefix for PREFIX",
    ),
    # etcd with users says so to a client certificate with a common name: its gateway would not know
    # whether the request is of that user
    (
        "CommonName of client",
        Refused,
        "etcd has users, and its JSON gateway takes no client certificate with a common name (CN): "
        "issue store.certFile without one, for example for the subject /O=nodes",
    ),
    ("authentication is not enabled", Refused, "leave out store.username, or enable it in etcd"),
    (
        "database space exceeded",
        Unavailable,
        "etcd's quota is used up: compact, etcdctl defrag, then etcdctl alarm disarm; or a larger "
        "--quota-backend-bytes",
    ),
    ("request is too large", Refused, "let etcd take it (--max-request-bytes)"),
    ("required revision has been compacted", Compacted, "list again"),
    ("corrupt", Refused, "etcd has found that its members' data differ: see its log"),
    ("not capable", Refused, "use etcd 3.4 or later"),
    ("no leader", Unavailable, "look at etcd's members: most of them have to reach each other"),
    ("leader changed", Unavailable, "try again"),
    ("request timed out", Unavailable, "look at etcd's members, their network and their disks"),
    ("too many requests", Unavailable, "try again later"),
)


def explain(name: str, response: Response) -> StoreError:
    """The error of an answer that is none of success."""
    if response.status in (404, 405, 501):
        return Refused(
            f"{name}: {response.endpoint} has no JSON gateway, version 3 (HTTP {response.status})",
            "use etcd 3.4 or later with --enable-grpc-gateway; other servers of its protocol, such "
            "as kine, have none",
        )
    try:
        failed = msgspec.json.decode(response.body, type=Failed)
        text = failed.message or failed.error
    except msgspec.MsgspecError:
        text = response.body[:100].decode(errors="replace").strip()
    error = explain_text(name, response.endpoint, text or f"HTTP {response.status}")
    if isinstance(error, Unavailable):
        error.retry_after = response.retry_after
    return error


def explain_text(name: str, endpoint: str, text: str) -> StoreError:
    """The error for etcd's own words."""
    said = f"{name}: {endpoint} says: {text.removeprefix('etcdserver: ')}"
    for words, kind, remedy in _MEANINGS:
        if words in text:
            return kind(said, remedy)
    return Unavailable(said, "look into etcd's log")
