"""What the emulated API server (apiserver.py) keeps, and what its verbs do with it.

Create, get, update, patch, delete and list as the documentation has them: kubernetes.io, "API
Concepts" (resource versions, chunks, field validation, patches), "Object Names and IDs",
"Finalizers"; git.k8s.io/community, "API Conventions" (Status, reasons, concurrency control).
Whatever a verb refuses is raised as an `Answer`. It is one subject, longer than other modules.
"""

from __future__ import annotations

import base64
import copy
import re
import secrets
import threading
import time
import uuid
from dataclasses import dataclass
from typing import Any

import yaml

from . import openapi
from .admission import Attempt, Policies, Roles, User

Json = dict[str, Any]
Key = tuple[str, str, str]  # resource, namespace or "", name

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
SUBDOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*")
REASONS = {
    400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound",
    405: "MethodNotAllowed", 406: "NotAcceptable", 409: "Conflict", 410: "Expired",
    415: "UnsupportedMediaType", 422: "Invalid", 429: "TooManyRequests", 500: "InternalError",
    503: "ServiceUnavailable", 504: "Timeout",
}  # fmt: skip
CORE_SCHEMA: Json = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
METADATA = frozenset(
    [
        "name",
        "generateName",
        "namespace",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "labels",
        "annotations",
        "finalizers",
        "ownerReferences",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "managedFields",
        "selfLink",
    ]
)


class Answer(Exception):
    """A Status object in the place of the one that was asked for."""

    def __init__(self, code: int, message: str, reason: str = "", **more: Any) -> None:
        super().__init__(message)
        self.code = code
        self.headers: dict[str, str] = {}
        self.status = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason or REASONS[code],
            "code": code,
        }
        if more:
            self.status["details"] = more
        if "retryAfterSeconds" in more:
            self.headers["Retry-After"] = str(more["retryAfterSeconds"])


@dataclass
class Resource:
    """A served type: its schema is that of the CRD, or anything."""

    plural: str
    kind: str
    group: str
    version: str
    namespaced: bool
    schema: Json

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def full(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def table(self) -> str:
        """The first word of its objects' keys. Groups may have types of the same name."""
        return self.full if self.group in OTHERS else self.plural


OTHERS = ("whereabouts.cni.cncf.io",)  # groups with a type that is called as one of ours

CORE = [
    Resource("namespaces", "Namespace", "", "v1", False, CORE_SCHEMA),
    Resource("nodes", "Node", "", "v1", False, CORE_SCHEMA),
    Resource("pods", "Pod", "", "v1", True, CORE_SCHEMA),
]


@dataclass
class Event:
    version: int
    type: str
    key: Key
    object: Json


@dataclass
class Snapshot:
    version: int
    objects: list[Json]


class Cluster:
    """What the API server keeps: objects, their history, and who may do what."""

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self.version = 48_613_005 + secrets.randbelow(1000)
        self.objects: dict[Key, Json] = {}
        self.events: list[Event] = []
        self.forgotten = self.version
        self.snapshots: dict[str, Snapshot] = {}
        self.resources = {(r.group, r.version, r.plural): r for r in CORE}
        self.roles = Roles()
        self.policies = Policies()
        self.put("namespaces", {"metadata": {"name": "kube-system"}})

    # --- what tests do ---

    def load(self, text: str) -> None:
        """Take the manifests of a YAML file that this emulator knows the meaning of."""
        for manifest in yaml.safe_load_all(text):
            kind = manifest["kind"] if manifest else ""
            if kind == "CustomResourceDefinition":
                self._define(manifest["spec"])
            elif kind.startswith("ValidatingAdmissionPolicy"):
                self.policies.add(manifest)
            elif kind in ("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"):
                self.roles.add(manifest)

    def _define(self, spec: Json) -> None:
        for version in spec["versions"]:
            schema = version["schema"]["openAPIV3Schema"]
            wrong = list(openapi.structural_faults(schema))
            if wrong:
                raise ValueError("; ".join(wrong))
            names, group = spec["names"], spec["group"]
            resource = Resource(
                names["plural"], names["kind"], group, version["name"],
                spec["scope"] == "Namespaced", schema,
            )  # fmt: skip
            if version["served"]:
                self.resources[group, version["name"], names["plural"]] = resource

    def undefine(self, plural: str) -> None:
        """As `kubectl delete crd` does: its objects go, too."""
        with self.lock:
            self.resources = {k: v for k, v in self.resources.items() if v.plural != plural}
            self.objects = {k: v for k, v in self.objects.items() if k[0] != plural}

    def put(self, plural: str, value: Json) -> Json:
        """Store an object of the core, or another version of it, past all checks."""
        resource = next(r for r in self.resources.values() if r.plural == plural)
        metadata = value["metadata"]
        key = (plural, metadata.get("namespace", ""), metadata["name"])
        with self.lock:
            old = self.objects.get(key)
            value = {"apiVersion": resource.api_version, "kind": resource.kind, **value}
            value["metadata"] = {**_system_fields(old), **metadata}
            return self.store(key, value, "MODIFIED" if old else "ADDED")

    def node(self, name: str, ready: str = "True") -> Json:
        """A Node whose condition Ready is True, False or Unknown."""
        conditions = [{"type": "MemoryPressure", "status": "False"}]
        conditions.append({"type": "Ready", "status": ready})
        return self.put("nodes", {"metadata": {"name": name}, "status": {"conditions": conditions}})

    def pod(self, name: str, node: str, *ips: str, phase: str = "Running") -> Json:
        spec = {"nodeName": node}
        status = {"phase": phase, "podIPs": [{"ip": ip} for ip in ips]}
        metadata = {"name": name, "namespace": "default"}
        return self.put("pods", {"metadata": metadata, "spec": spec, "status": status})

    def remove(self, plural: str, name: str, namespace: str = "") -> None:
        with self.lock:
            self.erase((plural, namespace, name))

    def compact(self) -> None:
        """Forget history and snapshots, as etcd does every five minutes."""
        with self.lock:
            self.advance()
            self.forgotten = self.version
            self.events.clear()
            self.snapshots.clear()
            self.lock.notify_all()

    # --- changes; the caller holds the lock ---

    def advance(self) -> int:
        # Gaps, since clients must not reckon with versions: they are opaque ("API Concepts").
        self.version += 1 + secrets.randbelow(3)
        return self.version

    def store(self, key: Key, value: Json, event: str) -> Json:
        value["metadata"]["resourceVersion"] = str(self.advance())
        self.objects[key] = copy.deepcopy(value)
        self._tell(event, key, value)
        return value

    def erase(self, key: Key) -> None:
        value = copy.deepcopy(self.objects.pop(key))
        value["metadata"]["resourceVersion"] = str(self.advance())
        self._tell("DELETED", key, value)

    def _tell(self, event: str, key: Key, value: Json) -> None:
        self.events.append(Event(self.version, event, key, copy.deepcopy(value)))
        self.lock.notify_all()

    def bump(self) -> None:
        """Something else in the cluster changes: the version goes on."""
        with self.lock:
            self.advance()
            self.lock.notify_all()


def _system_fields(old: Json | None) -> Json:
    if old is not None:
        return dict(old["metadata"])
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"uid": str(uuid.uuid4()), "creationTimestamp": now, "generation": 1}


@dataclass
class Target:
    """Whom a request is about."""

    resource: Resource
    namespace: str
    name: str

    @property
    def key(self) -> Key:
        return self.resource.table, self.namespace, self.name

    def details(self) -> Json:
        return {"name": self.name, "group": self.resource.group, "kind": self.resource.plural}

    def missing(self) -> Answer:
        return Answer(404, f'{self.resource.full} "{self.name}" not found', **self.details())

    def conflict(self, why: str) -> Answer:
        text = f'Operation cannot be fulfilled on {self.resource.full} "{self.name}": {why}'
        return Answer(409, text, **self.details())


STALE = (
    "the object has been modified; please apply your changes to the latest version and try again"
)


class Verbs:
    """Create, get, update, patch, delete and list of one request."""

    def __init__(self, cluster: Cluster, user: User, target: Target, query: dict[str, str]) -> None:
        self.cluster = cluster
        self.user = user
        self.target = target
        self.query = query
        self.warnings: list[str] = []

    def get(self) -> Json:
        with self.cluster.lock:
            return copy.deepcopy(self._present())

    def create(self, value: Json) -> Json:
        metadata = self._checked_head(value)
        if metadata.get("resourceVersion"):
            raise Answer(500, "resourceVersion should not be set on objects to be created")
        if not metadata.get("name"):
            raise self._invalid(
                [("metadata.name", "Required value: name or generateName is required")]
            )
        target = Target(self.target.resource, self.target.namespace, metadata["name"])
        self.target = target
        for name in ("uid", "generation", "creationTimestamp", "deletionTimestamp"):
            metadata.pop(name, None)
        self._check(value, None)
        with self.cluster.lock:
            self._admit("CREATE", value, None)
            if target.key in self.cluster.objects:
                text = f'{target.resource.full} "{target.name}" already exists'
                raise Answer(409, text, "AlreadyExists", **target.details())
            value["metadata"] = {**metadata, **_system_fields(None)}
            return copy.deepcopy(self.cluster.store(target.key, value, "ADDED"))

    def update(self, value: Json) -> Json:
        metadata = self._checked_head(value)
        if metadata.get("name") != self.target.name:
            raise Answer(400, "the name of the object does not match the name on the URL")
        if not metadata.get("resourceVersion"):
            raise self._invalid(
                [
                    (
                        "metadata.resourceVersion",
                        "Invalid value: 0x0: must be specified for an update",
                    )
                ]
            )
        with self.cluster.lock:
            return self._replace(self._present(), value)

    def patch(self, kind: str, change: Any) -> Json:
        with self.cluster.lock:
            present = copy.deepcopy(self._present())
            value = copy.deepcopy(present)
            if kind == "application/merge-patch+json":
                value = merged(value, change)
            elif kind == "application/json-patch+json":
                try:
                    patched(value, change)
                except (KeyError, IndexError, ValueError, TypeError) as error:
                    text = (
                        f"the server rejected our request due to an error in our request: {error}"
                    )
                    raise Answer(422, text, **self.target.details()) from None
            else:
                raise Answer(415, f"the body of the request was in an unknown format: {kind}")
            self._checked_head(value)
            if not value["metadata"].get("resourceVersion"):
                value["metadata"]["resourceVersion"] = present["metadata"]["resourceVersion"]
            return self._replace(present, value, is_patch=True)

    def _replace(self, present: Json, value: Json, is_patch: bool = False) -> Json:
        new, old = value["metadata"], present["metadata"]
        if new.get("uid", old["uid"]) != old["uid"]:
            if is_patch:  # a precondition of PUT only; here a field that cannot be changed
                raise self._invalid([("metadata.uid", "Invalid value: field is immutable")])
            raise self.target.conflict(
                f"Precondition failed: UID in precondition: {new['uid']}, "
                f"UID in object meta: {old['uid']}"
            )
        if new["resourceVersion"] != old["resourceVersion"]:
            raise self.target.conflict(STALE)
        for name in ("uid", "generation", "creationTimestamp", "deletionTimestamp", "name"):
            if name in old:
                new[name] = old[name]
        self._check(value, present)
        self._admit("UPDATE", value, present)
        if value == present:
            return copy.deepcopy(value)  # no write, the same version: as a real one
        if value.get("spec") != present.get("spec"):
            new["generation"] = old["generation"] + 1
        if "deletionTimestamp" in new and not new.get("finalizers"):
            self.cluster.erase(self.target.key)
            return value
        return copy.deepcopy(self.cluster.store(self.target.key, value, "MODIFIED"))

    def delete(self, options: Json) -> Json:
        with self.cluster.lock:
            present = self._present()
            metadata = present["metadata"]
            for name, called in (("uid", "UID"), ("resourceVersion", "ResourceVersion")):
                wanted = options.get("preconditions", {}).get(name)
                if wanted is not None and wanted != metadata[name]:
                    raise self.target.conflict(
                        f"Precondition failed: {called} in precondition: {wanted}, "
                        f"{called} in object meta: {metadata[name]}"
                    )
            self._admit("DELETE", None, present)
            if metadata.get("finalizers"):
                if "deletionTimestamp" not in metadata:
                    present = copy.deepcopy(present)
                    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                    present["metadata"]["deletionTimestamp"] = now
                    self.cluster.store(self.target.key, present, "MODIFIED")
                return copy.deepcopy(present)
            self.cluster.erase(self.target.key)
        details = {**self.target.details(), "uid": metadata["uid"]}
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                "details": details}  # fmt: skip

    def list(self) -> Json:
        limit = int(self.query.get("limit") or 0)
        token = self.query.get("continue", "")
        version = self.query.get("resourceVersion", "")
        if self.query.get("resourceVersionMatch") and not version:
            raise Answer(
                422, "resourceVersionMatch is forbidden unless resourceVersion is provided"
            )
        with self.cluster.lock:
            if token:
                if version not in ("", "0"):
                    raise Answer(
                        400, "specifying resource version is not allowed when using continue"
                    )
                snapshot = self.cluster.snapshots.pop(_token(token), None)
                if snapshot is None:
                    raise Answer(
                        410,
                        "The provided continue parameter is too old to display a consistent list "
                        "result. You can start a new list without the continue parameter.",
                    )
            else:
                self.check_version(version)
                snapshot = Snapshot(self.cluster.version, self.selected())
            page, rest = snapshot.objects, []
            if limit:
                page, rest = page[:limit], page[limit:]
            metadata: Json = {"resourceVersion": str(snapshot.version)}
            if rest:
                name = secrets.token_hex(8)
                self.cluster.snapshots[name] = Snapshot(snapshot.version, rest)
                metadata["continue"] = base64.urlsafe_b64encode(name.encode()).decode()
                metadata["remainingItemCount"] = len(rest)
        resource = self.target.resource
        return {
            "apiVersion": resource.api_version,
            "kind": f"{resource.kind}List",
            "metadata": metadata,
            "items": page,
        }

    def selected(self) -> list[Json]:
        keys = sorted(self.cluster.objects, key=lambda key: (key[1], key[2]))
        found = [
            copy.deepcopy(self.cluster.objects[key])
            for key in keys
            if key[0] == self.target.resource.table
            and self.target.namespace in ("", key[1])
            and self.selects(self.cluster.objects[key])
        ]
        if self.target.resource.group:
            return found
        # API Concepts: items of a list of the core have neither kind nor apiVersion.
        return [
            {k: v for k, v in each.items() if k not in ("kind", "apiVersion")} for each in found
        ]

    def selects(self, value: Json) -> bool:
        """Does the object match fieldSelector and labelSelector?"""
        known = {
            "metadata.name": ("metadata", "name"),
            "metadata.namespace": ("metadata", "namespace"),
        }
        if self.target.resource.plural == "pods":
            known |= {"spec.nodeName": ("spec", "nodeName"), "status.phase": ("status", "phase")}
        for term in filter(None, self.query.get("fieldSelector", "").split(",")):
            name, _, wanted = term.partition("=")
            negative = name.endswith("!")
            name, wanted = name.rstrip("!"), wanted.lstrip("=")
            if name not in known:
                raise Answer(400, f"field label not supported: {name}")
            first, second = known[name]
            if (value.get(first, {}).get(second, "") == wanted) is negative:
                return False
        labels = value["metadata"].get("labels", {})
        for term in filter(None, self.query.get("labelSelector", "").split(",")):
            name, is_equal, wanted = term.partition("=")
            if name not in labels or (is_equal and labels[name] != wanted.lstrip("=")):
                return False
        return True

    def check_version(self, version: str) -> None:
        if not version:
            return
        if not version.isdigit():
            raise Answer(400, f'Invalid value: "{version}": strconv.ParseUint: invalid syntax')
        if int(version) > self.cluster.version:
            text = (
                f"Timeout: Too large resource version: {version}, current: {self.cluster.version}"
            )
            causes = [
                {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
            ]
            raise Answer(504, text, causes=causes, retryAfterSeconds=1)

    def _present(self) -> Json:
        present = self.cluster.objects.get(self.target.key)
        if present is None:
            raise self.target.missing()
        return present

    def _checked_head(self, value: Any) -> Json:
        resource = self.target.resource
        if not isinstance(value, dict):
            raise Answer(400, "couldn't get version/kind; json parse error: not an object")
        if value.get("kind") != resource.kind or value.get("apiVersion") != resource.api_version:
            raise Answer(
                400,
                f"{value.get('kind')} in version {value.get('apiVersion')!r} cannot be handled as "
                f"a {resource.kind}: the API version in the data does not match the expected one",
            )
        metadata = value.setdefault("metadata", {})
        if not isinstance(metadata, dict):
            raise Answer(400, "json: cannot unmarshal into Go struct field .metadata")
        if not resource.namespaced and metadata.get("namespace"):
            raise Answer(400, "namespace is not allowed on this type")
        unknown = [f"metadata.{name}" for name in metadata if name not in METADATA]
        for name in unknown:
            del metadata[name.partition(".")[2]]
        unknown += openapi.prune(value, resource.schema)
        if unknown and self.query.get("fieldValidation") == "Strict":
            listed = ", ".join(f'unknown field "{name}"' for name in unknown)
            raise Answer(400, f"strict decoding error: {listed}")
        if self.query.get("fieldValidation", "Warn") == "Warn":
            self.warnings += [f'unknown field "{name}"' for name in unknown]
        openapi.set_defaults(value, resource.schema)
        return metadata

    def _check(self, value: Json, old: Json | None) -> None:
        wrong = []
        name = value["metadata"]["name"]
        if len(name) > 253 or not SUBDOMAIN.fullmatch(name):
            wrong.append(("metadata.name", f'Invalid value: "{name}": it is no RFC 1123 subdomain'))
        for key, label in value["metadata"].get("labels", {}).items():
            if not re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", label):
                wrong.append((f"metadata.labels.{key}", f'Invalid value: "{label}"'))
        wrong += openapi.faults(value, self.target.resource.schema, old)
        if wrong:
            raise self._invalid(wrong)

    def _invalid(self, wrong: list[tuple[str, str]]) -> Answer:
        resource = self.target.resource
        causes = [
            {"reason": "FieldValueInvalid", "message": text, "field": at} for at, text in wrong
        ]
        listed = ", ".join(f"{at}: {text}" for at, text in wrong)
        return Answer(
            422, f'{resource.kind}.{resource.group} "{self.target.name}" is invalid: {listed}',
            **{**self.target.details(), "kind": resource.kind, "causes": causes},
        )  # fmt: skip

    def _admit(self, operation: str, value: Json | None, old: Json | None) -> None:
        resource = self.target.resource
        attempt = Attempt(self.user, operation, self.target.name, value, old)
        refusal = self.cluster.policies.refusal(resource.group, resource.plural, attempt)
        if refusal:
            codes = {reason: code for code, reason in REASONS.items()}
            raise Answer(
                codes[refusal["reason"]],
                f'{resource.full} "{self.target.name}" is forbidden: ValidatingAdmissionPolicy '
                f"'{refusal['policy']}' with binding '{refusal['binding']}' denied request: "
                f"{refusal['message']}",
                **self.target.details(),
            )


def _token(text: str) -> str:
    try:
        return base64.urlsafe_b64decode(text).decode("ascii")
    except ValueError:
        raise Answer(400, "continue key is not valid") from None


def merged(value: Any, change: Any) -> Any:
    """RFC 7386."""
    if not isinstance(change, dict):
        return change
    value = dict(value) if isinstance(value, dict) else {}
    for key, item in change.items():
        if item is None:
            value.pop(key, None)
        else:
            value[key] = merged(value.get(key), item)
    return value


def patched(value: Any, operations: list[Json]) -> None:
    """RFC 6902, of objects, in place: add, replace, remove and test."""
    for operation in operations:
        *path, last = [
            part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]
        ]
        parent = value
        for part in path:
            parent = parent[part]
        kind = operation["op"]
        if kind in ("replace", "remove", "test") and last not in parent:
            raise KeyError(operation["path"])
        if kind == "test":
            if parent[last] != operation["value"]:
                raise ValueError(f"testing path {operation['path']} value failed")
        elif kind == "remove":
            del parent[last]
        elif kind in ("add", "replace"):
            parent[last] = operation["value"]
        else:
            raise ValueError(f"operation {kind} is not emulated")
