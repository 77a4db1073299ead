"""The engine `kubernetes`: items are objects of the types in deploy/cluster/crds.yaml.

    create   POST, 409 AlreadyExists           read     GET
    update   JSON patch with resourceVersion   delete   DELETE with preconditions
    list     GET in pages of one moment        watch    GET ?watch=1, with bookmarks

Sources: kubernetes.io, "API Concepts" and "API Conventions". Each request carries the token as its
file has it then; after 401 it is read again, once. A server that answers 429 has done nothing, so
the request waits as it says and is sent again, within the time-out. A change whose answer is lost
is never sent again.

A revision is that of one list, or, of keys without a common first word, of one list for each type:
the server has no moment of several types. Which objects are items says kubernetes_names.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode

from ..environment import with_own
from . import kubeconfig
from .config import Options, check_path, decode
from .http import Response, http_date
from .interface import (
    Change,
    Conflict,
    Exists,
    Expired,
    Item,
    Listing,
    Refused,
    Unavailable,
    Value,
)
from .keys import check_key, check_prefix, encode
from .kubernetes_api import Api, message_of, object_of
from .kubernetes_names import (
    BLOCK,
    GROUP,
    POOL,
    VERSION,
    Type,
    block_of,
    key_of,
    name_of,
    type_of,
    types_of,
)
from .tls import Trust

_PAGE = 500  # objects
_TURN = 1.0  # seconds for one type of several that are watched
_RESTARTS = 5  # of a listing whose pages expire
_MANIFESTS = "deploy/cluster of a release has them: kubectl apply -f crds.yaml -f rbac.yaml"
_Items = list[Item]  # outside of a class that has a method `list`
_Texts = list[str]


class KubernetesOptions(Options):
    """Keys of the engine. `namespace` has no meaning: the objects belong to the cluster."""

    kubeconfig: str = ""
    namespace: str = ""
    server: str = ""
    ca_file: str = ""
    token_file: str = ""


def connect(options: Mapping[str, Any]) -> KubernetesStore:
    """The engine for the object `store` of a configuration. Raises Refused, which names the key.

    {"type": "kubernetes"}                                    in a pod: its service account
    {"type": "kubernetes", "kubeconfig": "/etc/cni/kubeconfig"}
    {"type": "kubernetes", "server": "https://10.0.0.1:6443", "caFile": …, "tokenFile": …}
    """
    given = decode(options, KubernetesOptions)
    for key, path in (
        ("kubeconfig", given.kubeconfig),
        ("caFile", given.ca_file),
        ("tokenFile", given.token_file),
    ):
        check_path(key, path)
    return KubernetesStore(_access(given), given.timeout)


def _access(given: KubernetesOptions) -> kubeconfig.Access:
    if given.kubeconfig:
        if given.server:
            raise Refused("store.server: there is a kubeconfig, too", "give one of them")
        return kubeconfig.read(given.kubeconfig)
    if not given.server:
        return kubeconfig.in_cluster(with_own(os.environ))
    if not given.token_file:
        raise Refused("store.tokenFile: not given", "store.server needs it; or give a kubeconfig")
    trust = Trust(ca_file=given.ca_file, fields=("caFile", "certFile", "keyFile"))
    return kubeconfig.Access(given.server, trust, token_file=given.token_file)


class KubernetesStore:
    """The engine (interface.Store). For one thread at a time."""

    def __init__(self, access: kubeconfig.Access, timeout: float = 10.0) -> None:
        self.api = Api(access, timeout)
        self.name = self.api.name
        self._date = ""

    def close(self) -> None:
        self.api.close()

    # --- one item ---

    def create(self, key: str, value: Value) -> Item:
        check_key(key)
        encode(key, value)
        of = type_of(key)
        made: dict[str, Any] = {"apiVersion": f"{GROUP}/{VERSION}", "kind": of.kind}
        made["metadata"] = {"name": name_of(key)}
        made["spec"] = value
        if of is not POOL:
            made["key"] = key
        block = block_of(key) if of is BLOCK else None
        if block:
            made["block"] = block
        answer = self.api.request("POST", f"{of.path}?fieldValidation=Strict", made)
        if answer.status == 409:
            raise Exists(f"{self.name} has {key} already")
        if answer.status not in (200, 201, 202):
            raise self._refused(of, key, answer)
        return self._item(of, key, answer)

    def read(self, key: str) -> Item | None:
        check_key(key)
        of = type_of(key)
        answer = self.api.request("GET", _path(of, key))
        if answer.status == 404:
            self._check_defined(of, answer)
            return None
        if answer.status != 200:
            raise self._refused(of, key, answer)
        return self._item(of, key, answer)

    def update(self, item: Item, value: Value) -> Item:
        check_key(item.key)
        encode(item.key, value)
        of = type_of(item.key)
        uid, _, version = item.version.partition(" ")
        # Labels and the like, which are somebody else's, stay as they are.
        # To "replace" uid and resourceVersion by the values that they had is a condition: the
        # server refuses a patch that would change them.
        change = [
            {"op": "replace", "path": "/metadata/uid", "value": uid},
            {"op": "replace", "path": "/metadata/resourceVersion", "value": version},
            {"op": "replace", "path": "/spec", "value": value},
        ]
        path = f"{_path(of, item.key)}?fieldValidation=Strict"
        answer = self.api.request("PATCH", path, change, "application/json-patch+json")
        if answer.status == 404:
            self._check_defined(of, answer)
        if answer.status in (404, 409) or _is_another(answer):
            raise Conflict(f"{self.name}: {item.key} has changed: {message_of(answer)}")
        if answer.status not in (200, 201):
            raise self._refused(of, item.key, answer)
        return self._item(of, item.key, answer)

    def delete(self, item: Item) -> None:
        check_key(item.key)
        of = type_of(item.key)
        uid, _, version = item.version.partition(" ")
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid, "resourceVersion": version},
        }
        answer = self.api.request("DELETE", _path(of, item.key), options)
        if answer.status == 404:
            self._check_defined(of, answer)
        if answer.status in (404, 409):
            raise Conflict(f"{self.name}: {item.key} has changed: {message_of(answer)}")
        if answer.status not in (200, 202):
            raise self._refused(of, item.key, answer)
        left = (object_of(answer.body) or {}).get("metadata", {}).get("finalizers")
        if left:
            raise Refused(
                f"{self.name}: {item.key} is kept by finalizers: {', '.join(left)}",
                f"kubectl edit {of.plural} {name_of(item.key)}",
            )

    # --- many ---

    def list(self, prefix: str) -> Listing:
        check_prefix(prefix)
        items: _Items = []
        revisions: _Texts = []
        for of in types_of(prefix):
            found, revision = self._list(of)
            items += found
            revisions.append(revision)
        chosen = sorted(item for item in items if item.key.startswith(prefix))
        return Listing(chosen, " ".join(revisions))

    def _list(self, of: Type) -> tuple[_Items, str]:
        """All items of a type, of one moment. Pages that expire are read again."""
        for _ in range(_RESTARTS):
            items: _Items = []
            token = ""
            while True:
                query = urlencode({"limit": _PAGE, **({"continue": token} if token else {})})
                answer = self.api.request("GET", f"{of.path}?{query}")
                if answer.status == 410:
                    break
                if answer.status != 200:
                    self._check_defined(of, answer)
                    raise self._refused(of, of.plural, answer)
                value = object_of(answer.body)
                if value is None or not isinstance(value.get("items"), list):
                    raise self.api.unexpected(answer)
                items += filter(None, (_item_of(of, each) for each in value["items"]))
                token = value["metadata"].get("continue") or ""
                if not token:
                    return items, value["metadata"]["resourceVersion"]
        raise Unavailable(f"{self.name}: the list of {of.plural} changes faster than it is read")

    def watch(self, prefix: str, revision: str, seconds: float) -> Iterator[Change]:
        check_prefix(prefix)
        types = types_of(prefix)
        revisions = revision.split(" ")
        if len(revisions) != len(types):
            raise Expired(f"{self.name}: the revision {revision!r} is not of such a listing")
        return self._watch(prefix, types, revisions, time.monotonic() + seconds)

    def _watch(
        self, prefix: str, types: tuple[Type, ...], revisions: _Texts, deadline: float
    ) -> Iterator[Change]:
        while True:
            for index, of in enumerate(types):
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                turn = min(left, _TURN) if len(types) > 1 else left
                for key, item, version in self._events(of, revisions[index], turn):
                    revisions[index] = version
                    if not key or key.startswith(prefix):
                        yield Change(key, item, " ".join(revisions))

    def _events(self, of: Type, revision: str, seconds: float) -> Iterator[Change]:
        """Changes of one type; a key that is not ours is a bookmark."""
        query = {
            "watch": "1",
            "resourceVersion": revision,
            "allowWatchBookmarks": "true",
            # Whole seconds only, and 0 would be none.
            "timeoutSeconds": str(int(seconds) + 1),
        }
        for event in self.api.stream(f"{of.path}?{urlencode(query)}", seconds):
            kind, value = event.get("type"), event.get("object")
            if not isinstance(value, dict):
                raise Unavailable(f"{self.name} sent an event without an object")
            if kind == "ERROR":
                message = str(value.get("message", ""))
                if value.get("code") == 410:
                    raise Expired(f"{self.name}: {message}")
                raise Unavailable(f"{self.name} ended the watch: {message}")
            version = str(value.get("metadata", {}).get("resourceVersion", ""))
            item = None if kind == "BOOKMARK" else _item_of(of, value)
            if item is None:
                yield Change("", None, version)
            else:
                yield Change(item.key, None if kind == "DELETED" else item, version)

    # --- the store itself ---

    def clock(self) -> float | None:
        """The server's Date, in whole seconds."""
        return http_date(self.api.request("GET", "/version").headers.get("date", ""))

    def identity(self) -> str:
        """The uid of the namespace kube-system, which no other cluster has.

        A cluster that was restored from a backup of its etcd has it, too; it is told by what nodes
        remember of their claims.
        """
        answer = self.api.request("GET", "/api/v1/namespaces/kube-system")
        uid = (object_of(answer.body) or {}).get("metadata", {}).get("uid")
        if answer.status != 200 or not isinstance(uid, str):
            raise self.api.unexpected(answer)
        return uid

    # --- answers ---

    def _item(self, of: Type, key: str, answer: Response) -> Item:
        item = _item_of(of, object_of(answer.body) or {})
        if item is None or item.key != key:
            raise self.api.unexpected(answer)
        return item

    def _check_defined(self, of: Type, answer: Response) -> None:
        """404 of a server that has not the type at all, rather than not this object."""
        status = object_of(answer.body) or {}
        if answer.status == 404 and not (status.get("details") or {}).get("name"):
            raise Refused(f"{self.name} has no type {of.plural}.{GROUP}", _MANIFESTS)

    def _refused(self, of: Type, key: str, answer: Response) -> Refused | Unavailable:
        self._check_defined(of, answer)
        if answer.status not in (400, 413, 422):
            return self.api.unexpected(answer)
        return Refused(
            f"{self.name} does not accept {key}: {message_of(answer)}",
            "look whether deploy/cluster/crds.yaml of this version is applied",
        )


def _path(of: Type, key: str) -> str:
    return f"{of.path}/{quote(name_of(key))}"


def _is_another(answer: Response) -> bool:
    """A patch that names another uid: the object was deleted and made anew."""
    causes = ((object_of(answer.body) or {}).get("details") or {}).get("causes") or ()
    return answer.status == 422 and any(cause.get("field") == "metadata.uid" for cause in causes)


def _item_of(of: Type, value: dict[str, Any]) -> Item | None:
    """The item that an object is; None for one that is none."""
    key = key_of(of, value)
    spec = value.get("spec")
    if key is None or not isinstance(spec, dict):
        return None
    metadata = value["metadata"]
    return Item(key, spec, f"{metadata['uid']} {metadata['resourceVersion']}")
