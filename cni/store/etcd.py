"""A store in etcd, version 3.4 or later, by its JSON gateway: `/v3/kv`, `/v3/watch`, `/v3/auth`.

An item is a key below the prefix. Its version is etcd's revision of its last change, which never
comes again. Every change is a transaction that compares one revision; reads are linearizable. No
lease: nothing here goes away by time. Requests ask a member that has a leader, so a member that is
cut off from the others says so, and the next endpoint is asked.

`<prefix>/!identity` is a marker with a random number, which no key of an item can be. A restored
backup brings back the old marker, and often the old cluster id. So the highest revision that this
node has seen is kept in a file; a store that is behind it was restored, and its marker is made
anew, which every node sees by `identity`. What this cannot tell: a store that has had more changes
since it was restored than were lost, before any node that saw the lost ones asks. The caller
notices by its own items, which are gone or have other versions.

(etcd.io/docs/v3.4/dev-guide/api_grpc_gateway; int64 are strings there, keys and values base64.)
"""

from __future__ import annotations

import os
from binascii import crc32
from typing import TYPE_CHECKING, Any

import msgspec

from .. import files
from . import etcd_messages as messages
from .config import EtcdOptions, check_path, decode
from .etcd_errors import AuthNeeded, Compacted, explain, explain_text
from .http import Client, Response, http_date, is_host
from .interface import Change, Conflict, Exists, Expired, Item, Listing, Refused, Unavailable, Value
from .keys import check_key, check_prefix, encode
from .tls import Trust

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PAGE = 1000  # items a request
_LISTINGS = 3  # attempts at a listing that is compacted away while it is read
_MARKER = "!identity"
_LEADER = {"Content-Type": "application/json", "Grpc-Metadata-hasleader": "true"}
_LONGEST_PASSWORD = 4096


class EtcdStore:
    """The engine `etcd` (interface.Store). Not for several threads at a time."""

    def __init__(self, options: EtcdOptions, client: Client) -> None:
        self.name = f"etcd at {options.endpoints[0]}"
        if len(options.endpoints) > 1:
            self.name += f" and {len(options.endpoints) - 1} more"
        self._options = options
        self._client = client
        self._prefix = options.prefix.strip("/")
        self._prefix = f"/{self._prefix}/" if self._prefix else "/"
        self._token = ""
        self._memory = messages.Memory()
        self._memory_path = ""
        if options.state_dir:
            place = "\n".join([self._prefix, *sorted(options.endpoints)])
            self._memory_path = f"{options.state_dir}/etcd-{crc32(place.encode()):08x}.json"

    # --- one item ---

    def create(self, key: str, value: Value) -> Item:
        """Make an item. Raises Exists, StoreError."""
        check_key(key)
        # revision 0: there is no such key
        compare = {"key": self._key(key), "target": "CREATE", "create_revision": "0"}
        answer = self._change(compare, self._put(key, value))
        if answer is None:
            raise Exists(f"{key} is already in {self.name}")
        return Item(key, value, answer)

    def read(self, key: str) -> Item | None:
        """The item as it is now, or None. Raises StoreError."""
        check_key(key)
        answer = self._range({"key": self._key(key)})
        return self._item(answer.kvs[0]) if answer.kvs else None

    def update(self, item: Item, value: Value) -> Item:
        """Replace the value of `item`. Raises Conflict, StoreError."""
        check_key(item.key)
        answer = self._change(self._same(item), self._put(item.key, value))
        if answer is None:
            raise self._conflict(item)
        return Item(item.key, value, answer)

    def delete(self, item: Item) -> None:
        """Delete `item`. Raises Conflict, StoreError. Works when etcd's space is used up, too."""
        check_key(item.key)
        request = {"request_delete_range": {"key": self._key(item.key)}}
        if self._change(self._same(item), request) is None:
            raise self._conflict(item)

    # --- many ---

    def list(self, prefix: str) -> Listing:
        """The items below `prefix`, of one revision, a page at a time. Raises StoreError."""
        check_prefix(prefix)
        for _ in range(_LISTINGS):
            try:
                return self._list(prefix)
            except Compacted:
                continue  # that revision is gone; there is a later one
        raise Unavailable(
            f"{self.name}: its history is compacted faster than {prefix or 'everything'} is listed",
            "let etcd keep more of it (--auto-compaction-retention)",
        )

    def _list(self, prefix: str) -> Listing:
        start, end = self._bounds(prefix)
        items: list[Item] = []
        revision = "0"
        while True:
            request = {
                "key": messages.base64(start),
                "range_end": messages.base64(end),
                "limit": str(_PAGE),
            }
            # the first page tells the revision, and all others are of that revision
            answer = self._range({**request, "revision": revision})
            if revision == "0":
                revision = answer.header.revision
            items += map(self._item, answer.kvs)
            if not answer.more or not answer.kvs:
                return Listing(items, revision)
            start = messages.raw(answer.kvs[-1].key) + b"\0"  # the next possible key

    def watch(self, prefix: str, revision: str, seconds: float) -> Iterator[Change]:
        """Each change after `revision`, for so many seconds. Raises Expired, StoreError."""
        check_prefix(prefix)
        if not revision.isdecimal():
            raise Expired(f"{self.name} has no revision {revision!r}", "list again")
        start, end = self._bounds(prefix)
        request = {
            "create_request": {
                "key": messages.base64(start),
                "range_end": messages.base64(end),
                # etcd begins with this revision, and the caller knows that of `revision`
                "start_revision": str(int(revision) + 1),
                "progress_notify": True,
            }
        }
        try:
            yield from self._watch(request, int(revision), seconds)
        except AuthNeeded:  # at the beginning, before anything was told
            self._authenticate()
            yield from self._watch(request, int(revision), seconds)

    def _watch(self, request: dict[str, Any], revision: int, seconds: float) -> Iterator[Change]:
        body = msgspec.json.encode(request)
        stream = self._client.stream("POST", "/v3/watch", body, self._headers())
        try:
            if stream.status != 200:
                raise explain(self.name, stream.response())
            for line in stream.lines(seconds):
                answer = messages.watched(line)
                if answer is None:
                    text = line[:200].decode(errors="replace")
                    raise explain_text(self.name, stream.endpoint, text)
                yield from self._told(answer, revision, stream.endpoint)
        finally:
            stream.close()

    def _told(self, answer: messages.Watched, since: int, endpoint: str) -> Iterator[Change]:
        """The changes of a message. Raises Expired, StoreError."""
        if int(answer.compact_revision):
            raise Expired(f"{self.name} has compacted revision {since}", "list again")
        if answer.canceled:
            raise explain_text(self.name, endpoint, answer.cancel_reason or "watch canceled")
        if answer.created:
            if int(answer.header.revision) < since:
                raise Expired(
                    f"{self.name} was restored: it is behind revision {since}", "list again"
                )
            return
        for event in answer.events:
            item = None if event.type == "DELETE" else self._item(event.kv)
            yield Change(self._name(event.kv), item, event.kv.mod_revision)
        if not answer.events:
            yield Change("", None, answer.header.revision)

    # --- the store ---

    def clock(self) -> float | None:
        """The time of the member that answers, in whole seconds. Raises StoreError."""
        response = self._ask("/v3/kv/range", {"key": self._key(_MARKER)}, repeatable=True)
        return http_date(response.headers.get("date", ""))

    def identity(self) -> str:
        """Cluster id and marker: another cluster, or one that was restored, has others.

        Compares what this node has seen with where the store is (above). Raises StoreError.
        """
        # Before the question: another process of this node may see later changes meanwhile.
        before = self._load()
        answer = self._range({"key": self._key(_MARKER)}, look_back=True)
        if answer.kvs and not before.is_ahead_of(answer.header):
            marker = self._marker(answer.kvs[0])
            self._memory = before.after(answer.header)
        else:
            self._memory = messages.Memory()
            marker = self._renew_marker(answer)
        self._save()
        return f"{answer.header.cluster_id}-{marker}"

    def _renew_marker(self, answer: messages.Ranged) -> str:
        """Write a new marker, unless somebody else does so now; which one there is then."""
        key, marker = self._key(_MARKER), os.urandom(8).hex()
        compare: dict[str, str] = {"key": key, "target": "CREATE", "create_revision": "0"}
        if answer.kvs:
            compare = {"key": key, "target": "MOD", "mod_revision": answer.kvs[0].mod_revision}
        put = {"request_put": {"key": key, "value": messages.base64(marker.encode())}}
        if self._change(compare, put) is not None:
            return marker
        present = self._range({"key": key})
        if not present.kvs:
            raise Unavailable(f"{self.name}: the marker {_MARKER} was deleted", "try again")
        return self._marker(present.kvs[0])

    def _marker(self, kv: messages.KeyValue) -> str:
        return messages.raw(kv.value)[:64].decode("ascii", "replace")

    def close(self) -> None:
        """Close the connection, and note how far the store was."""
        self._client.close()
        if self._memory.revision:
            self._memory = self._load()
            self._save()

    # --- what this node has seen ---

    def _load(self) -> messages.Memory:
        """The furthest that this process, or another one of this node, has seen the store."""
        noted = messages.Memory()
        if self._memory_path:
            try:
                data = files.read(self._memory_path, 1000)
                noted = msgspec.json.decode(data, type=messages.Memory)
            except (OSError, msgspec.MsgspecError):
                pass  # nothing noted yet
        return self._memory.furthest(noted)

    def _save(self) -> None:
        if not self._memory_path:
            return
        path = self._memory_path
        try:
            os.makedirs(self._options.state_dir, mode=0o700, exist_ok=True)
            data = msgspec.json.encode(self._memory)
            files.replace(path, data, temporary=f"{path}.{os.getpid()}~")  # no lock is held
        except OSError:
            pass  # that the store was restored is then noticed by other nodes

    # --- requests ---

    def _key(self, key: str) -> str:
        return messages.base64(f"{self._prefix}{key}".encode())

    def _bounds(self, prefix: str) -> tuple[bytes, bytes]:
        """The first possible key below the prefix, and the first one that is not below it."""
        below = f"{self._prefix}{prefix}".encode()
        # `-` is the lowest character of a word (keys.py), and `0` follows on `/`
        return below + b"-", below[:-1] + b"0"

    def _put(self, key: str, value: Value) -> dict[str, Any]:
        return {
            "request_put": {"key": self._key(key), "value": messages.base64(encode(key, value))}
        }

    def _same(self, item: Item) -> dict[str, str]:
        if not item.version.isdecimal():
            raise self._conflict(item)
        return {"key": self._key(item.key), "target": "MOD", "mod_revision": item.version}

    def _conflict(self, item: Item) -> Conflict:
        return Conflict(f"{item.key} in {self.name} has been changed or deleted by somebody else")

    def _name(self, kv: messages.KeyValue) -> str:
        return messages.raw(kv.key).decode("utf-8", "replace").removeprefix(self._prefix)

    def _item(self, kv: messages.KeyValue) -> Item:
        name = self._name(kv)
        try:
            value = messages.decode_value(messages.raw(kv.value))
        except msgspec.MsgspecError:
            raise Refused(
                f"{self._prefix}{name} in {self.name} is no JSON object",
                "store.prefix is for this program alone: choose another one, or remove that key",
            ) from None
        return Item(name, value, kv.mod_revision)

    def _range(self, request: dict[str, str], *, look_back: bool = False) -> messages.Ranged:
        """`look_back`: the caller compares the header with what was seen before."""
        response = self._ask("/v3/kv/range", request, repeatable=True)
        answer = messages.decode(response, messages.Ranged, self.name)
        if not look_back:
            self._memory = self._memory.after(answer.header)
        return answer

    def _change(self, compare: dict[str, str], request: dict[str, Any]) -> str | None:
        """The revision that a change has made; None if the comparison failed."""
        message = {"compare": [{**compare, "result": "EQUAL"}], "success": [request]}
        response = self._ask("/v3/kv/txn", message, repeatable=False)
        answer = messages.decode(response, messages.Changed, self.name)
        self._memory = self._memory.after(answer.header)
        return answer.header.revision if answer.succeeded else None

    def _ask(self, path: str, message: dict[str, Any], *, repeatable: bool) -> Response:
        """The answer to a request that succeeded. Raises StoreError."""
        if self._options.username and not self._token:
            self._authenticate()
        try:
            return self._send(path, message, repeatable=repeatable)
        except AuthNeeded:
            if not self._options.username:
                raise
        self._authenticate()  # the request was declined, so it can be sent again
        return self._send(path, message, repeatable=repeatable)

    def _send(self, path: str, message: dict[str, Any], *, repeatable: bool) -> Response:
        response = self._client.request(
            "POST",
            path,
            msgspec.json.encode(message),
            self._headers(),
            repeatable=repeatable,
            accept=_is_of_a_working_member,
        )
        if response.status == 200:
            return response
        if not _is_of_a_working_member(response):
            self._client.avoid(response.endpoint)
        raise explain(self.name, response)

    def _headers(self) -> dict[str, str]:
        return {**_LEADER, "Authorization": self._token} if self._token else _LEADER

    def _authenticate(self) -> None:
        """Get a token, by the password as it is in its file now. Raises StoreError."""
        options = self._options
        self._token = ""
        if not options.username:
            return
        try:
            password = files.read(options.password_file, _LONGEST_PASSWORD, follow=True)
        except OSError as error:
            text = f"store.passwordFile {options.password_file}: {(error.strerror or '').lower()}"
            raise Refused(text, "put the password there, or correct store.passwordFile") from None
        text = password.decode("utf-8", "replace").rstrip("\r\n")
        try:
            response = self._send(
                "/v3/auth/authenticate",
                {"name": options.username, "password": text},
                repeatable=True,
            )
        except Refused as error:
            if "authentication is not enabled" in str(error):
                return
            raise
        self._token = messages.decode(response, messages.Token, self.name).token


def connect(options: Mapping[str, Any]) -> EtcdStore:
    """The engine for a configuration (config.py). Raises Refused, which names the wrong key."""
    decoded = decode(options, EtcdOptions)
    for key in ("caFile", "certFile", "keyFile", "passwordFile", "stateDir"):
        check_path(key, str(options.get(key, "")))
    if bool(decoded.username) != bool(decoded.password_file):
        missing = "passwordFile" if decoded.username else "username"
        raise Refused(f"store.{missing} is missing", "set both, or neither")
    if not decoded.prefix.startswith("/") or not decoded.prefix.isprintable():
        raise Refused(
            f"store.prefix: {decoded.prefix!r} does not begin with '/'", "such as /cni/v1"
        )
    if decoded.server_name and not is_host(decoded.server_name):
        raise Refused(
            f"store.serverName: {decoded.server_name!r} is no name", "such as etcd.example"
        )
    trust = Trust(
        decoded.ca_file,
        decoded.cert_file,
        decoded.key_file,
        decoded.server_name,
        fields=("store.caFile", "store.certFile", "store.keyFile"),
    )
    client = Client(
        decoded.endpoints,
        name="etcd",
        trust=trust,
        timeout=decoded.timeout,
        field="store.endpoints",
    )
    return EtcdStore(decoded, client)


def _is_of_a_working_member(response: Response) -> bool:
    """Is it an answer that every member would give? A 5xx is a problem of this one."""
    return response.status < 500
