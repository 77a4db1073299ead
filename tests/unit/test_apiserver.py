"""The emulated API server refuses what the documentation says that a real one refuses."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Iterator
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness import openapi
from tests.harness.admission import NODE_CLAIM, Policies, User
from tests.harness.apiobjects import Answer
from tests.harness.apiserver import ApiServer, Fault, serving

GROUP = "ipam.cni-plugins.internal"
BASE = f"/apis/{GROUP}/v1"
CLUSTER = Path(__file__).parents[2] / "deploy" / "cluster"
MANIFESTS = [CLUSTER / name for name in ("crds.yaml", "rbac.yaml", "policy.yaml")]
ACCOUNT = "system:serviceaccount:kube-system:cni-plugins"
Json = dict[str, Any]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with serving(tmp_path_factory.mktemp("api"), MANIFESTS) as api:
        yield api


@pytest.fixture
def api(served: ApiServer) -> ApiServer:
    served.cluster.objects = {
        k: v for k, v in served.cluster.objects.items() if k[0] == "namespaces"
    }
    served.faults.clear()
    served.gone_as_event = True
    served.tokens.clear()
    served.tokens["admin"] = User("admin", ("system:masters",))
    served.tokens["n1"] = User(ACCOUNT, extra={NODE_CLAIM: ["n1"]})
    served.tokens["n2"] = User(ACCOUNT, extra={NODE_CLAIM: ["n2"]})
    served.tokens["unbound"] = User(ACCOUNT)
    served.tokens["reconcile"] = User("system:serviceaccount:kube-system:cni-ipam-reconcile")
    return served


class Reply:
    def __init__(self, code: int, headers: Any, body: bytes) -> None:
        self.code = code
        self.headers = headers
        self.text = body.decode()

    @property
    def json(self) -> Json:
        value: Json = json.loads(self.text)
        return value

    @property
    def outcome(self) -> tuple[int, str]:
        return self.code, self.json.get("reason", "")


def connection(api: ApiServer) -> HTTPSConnection:
    host, _, port = api.url.removeprefix("https://").rpartition(":")
    context = ssl.create_default_context(cafile=str(api.ca))
    return HTTPSConnection(host, int(port), timeout=30, context=context)


def ask(
    api: ApiServer,
    method: str,
    path: str,
    body: Any = None,
    token: str = "admin",
    kind: str = "application/json",
) -> Reply:
    headers = {"Content-Type": kind}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    link = connection(api)
    try:
        data = None if body is None else json.dumps(body)
        link.request(method, path if path.startswith("/") else f"{BASE}/{path}", data, headers)
        response = link.getresponse()
        return Reply(response.status, response.headers, response.read())
    finally:
        link.close()


def block(name: str = "default--10.1.0.0-26", node: str = "n1", **spec: Any) -> Json:
    made = {"apiVersion": f"{GROUP}/v1", "kind": "IPBlock", "metadata": {"name": name}}
    made |= {"key": "blocks/default/10.1.0.0-26", "spec": {"node": node, **spec}}
    return {**made, "block": {"space": "default", "cidr": "10.1.0.0/26"}}


def record(key: str) -> Json:
    made = {"apiVersion": f"{GROUP}/v1", "kind": "IPRecord", "key": key, "spec": {}}
    return {**made, "metadata": {"name": key.replace("/", "--")}}


def pool(name: str = "storage", **spec: Any) -> Json:
    meta = {"name": name}
    return {"apiVersion": f"{GROUP}/v1", "kind": "IPPool", "metadata": meta, "spec": spec}


# --- one object ---


def test_creating_twice_is_already_exists(api: ApiServer) -> None:
    made = ask(api, "POST", "ipblocks", block())
    assert made.code == 201
    assert made.json["metadata"]["uid"]
    assert ask(api, "POST", "ipblocks", block()).outcome == (409, "AlreadyExists")


def test_an_update_needs_the_present_version(api: ApiServer) -> None:
    made = ask(api, "POST", "ipblocks", block()).json
    path = f"ipblocks/{made['metadata']['name']}"
    unversioned = {**made, "metadata": {"name": made["metadata"]["name"]}}
    assert ask(api, "PUT", path, unversioned).outcome == (422, "Invalid")
    newer = ask(api, "PUT", path, {**made, "spec": {**made["spec"], "seq": 2}})
    assert newer.code == 200
    assert newer.json["metadata"]["generation"] == 2
    assert ask(api, "PUT", path, {**made, "spec": {**made["spec"], "seq": 3}}).outcome == (
        409,
        "Conflict",
    )


@pytest.mark.parametrize("kind", ["merge", "json"])
def test_a_patch_with_a_version_is_conditional(api: ApiServer, kind: str) -> None:
    made = ask(api, "POST", "ipblocks", block()).json
    version = made["metadata"]["resourceVersion"]

    def change(seq: int, of: str) -> Any:
        if kind == "merge":
            return {"metadata": {"resourceVersion": of}, "spec": {"seq": seq}}
        return [
            {"op": "replace", "path": "/metadata/resourceVersion", "value": of},
            {"op": "add", "path": "/spec/seq", "value": seq},
        ]

    path = f"ipblocks/{made['metadata']['name']}"
    media = f"application/{kind}-patch+json"
    assert ask(api, "PATCH", path, change(5, version), kind=media).json["spec"]["seq"] == 5
    assert ask(api, "PATCH", path, change(6, version), kind=media).outcome == (409, "Conflict")
    strategic = "application/strategic-merge-patch+json"
    assert ask(api, "PATCH", path, {}, kind=strategic).code == 415


def test_deleting_with_preconditions(api: ApiServer) -> None:
    made = ask(api, "POST", "ipblocks", block()).json
    path = f"ipblocks/{made['metadata']['name']}"
    for wrong in ({"uid": "other"}, {"resourceVersion": "1"}):
        assert ask(api, "DELETE", path, {"preconditions": wrong}).outcome == (409, "Conflict")
    right = {k: made["metadata"][k] for k in ("uid", "resourceVersion")}
    assert ask(api, "DELETE", path, {"preconditions": right}).json["status"] == "Success"
    assert ask(api, "GET", path).outcome == (404, "NotFound")
    assert ask(api, "DELETE", path).outcome == (404, "NotFound")


def test_a_finalizer_keeps_an_object(api: ApiServer) -> None:
    kept = block()
    kept["metadata"]["finalizers"] = ["example.com/keep"]
    ask(api, "POST", "ipblocks", kept)
    path = "ipblocks/default--10.1.0.0-26"
    assert ask(api, "DELETE", path).json["metadata"]["deletionTimestamp"]
    assert ask(api, "POST", "ipblocks", kept).outcome == (409, "AlreadyExists")
    gone = [{"op": "remove", "path": "/metadata/finalizers"}]
    ask(api, "PATCH", path, gone, kind="application/json-patch+json")
    assert ask(api, "GET", path).code == 404


@pytest.mark.parametrize(
    "name", ["Default", "a_b", "-a", "a-", "a..b", "a/b", "x" * 254, "fd00::1"]
)
def test_names_are_rfc_1123_subdomains(api: ApiServer, name: str) -> None:
    assert ask(api, "POST", "ipblocks", block(name)).outcome == (422, "Invalid")


def test_an_object_of_another_kind_or_with_a_version_cannot_be_created(api: ApiServer) -> None:
    assert ask(api, "POST", "ippools", block()).outcome == (400, "BadRequest")
    versioned = block()
    versioned["metadata"]["resourceVersion"] = "7"
    assert ask(api, "POST", "ipblocks", versioned).code == 500
    assert ask(api, "POST", "ipblocks", block(), kind="text/plain").code == 415


# --- schemas ---


@pytest.mark.parametrize(
    "spec",
    [
        {"blockSize": 33},
        {"blockSize": "26"},
        {"subnet": "10.1.0.0"},
        {"ranges": [{"subnet": "10.1.0.0/16"}]},
        {"ranges": [[{"rangeStart": "10.1.0.1"}]]},
        {"exclude": [""]},
        {"dns": None},
    ],
)
def test_what_the_schema_does_not_allow_is_invalid(api: ApiServer, spec: Json) -> None:
    reply = ask(api, "POST", "ippools", pool(**spec))
    assert reply.outcome == (422, "Invalid")
    assert next(iter(spec)) in reply.json["details"]["causes"][0]["field"]


def test_unknown_fields_are_pruned_or_refused(api: ApiServer) -> None:
    pruned = ask(api, "POST", "ippools", pool(blocksize=26, subnet="10.1.0.0/16"))
    assert pruned.json["spec"] == {"subnet": "10.1.0.0/16"}
    assert 'unknown field "spec.blocksize"' in pruned.headers["Warning"]
    strict = ask(api, "POST", "ippools?fieldValidation=Strict", pool("b", blocksize=26))
    assert strict.outcome == (400, "BadRequest")
    kept = ask(api, "POST", "ipblocks?fieldValidation=Strict", block(later={"a": [1]}))
    assert kept.json["spec"]["later"] == {"a": [1]}


def test_a_block_keeps_its_addresses(api: ApiServer) -> None:
    made = ask(api, "POST", "ipblocks", block()).json
    moved = {**made, "block": {**made["block"], "cidr": "10.2.0.0/26"}}
    reply = ask(api, "PUT", f"ipblocks/{made['metadata']['name']}", moved)
    assert reply.outcome == (422, "Invalid")
    assert "a block keeps its addresses" in reply.json["message"]


# --- lists and watches ---


def test_pages_are_of_one_moment_until_history_is_compacted(api: ApiServer) -> None:
    names = [f"default--10.1.{n}.0-26" for n in range(5)]
    for name in names:
        ask(api, "POST", "ipblocks", block(name))
    first = ask(api, "GET", "ipblocks?limit=2").json
    ask(api, "DELETE", f"ipblocks/{names[4]}")
    token = first["metadata"]["continue"]
    assert ask(api, "GET", f"ipblocks?limit=2&continue={token}&resourceVersion=5").code == 400
    rest = ask(api, "GET", f"ipblocks?continue={token}").json
    assert rest["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    seen = [item["metadata"]["name"] for item in first["items"] + rest["items"]]
    assert seen == names
    again = ask(api, "GET", "ipblocks?limit=2").json["metadata"]["continue"]
    api.cluster.compact()
    assert ask(api, "GET", f"ipblocks?continue={again}").outcome == (410, "Expired")


def test_a_version_of_the_future_or_of_no_form(api: ApiServer) -> None:
    assert ask(api, "GET", "ipblocks?resourceVersion=99999999999").outcome == (504, "Timeout")
    assert ask(api, "GET", "ipblocks?resourceVersion=abc").outcome == (400, "BadRequest")


def watched(api: ApiServer, query: str, token: str = "admin") -> list[Json]:
    reply = ask(api, "GET", f"ipblocks?watch=1&{query}", token=token)
    return [json.loads(line) for line in reply.text.splitlines()]


def test_a_watch_tells_each_change_and_ends_in_time(api: ApiServer) -> None:
    start = ask(api, "GET", "ipblocks").json["metadata"]["resourceVersion"]
    made = ask(api, "POST", "ipblocks", block()).json
    late = threading.Timer(0.3, ask, (api, "DELETE", f"ipblocks/{made['metadata']['name']}"))
    late.start()
    events = watched(api, f"resourceVersion={start}&timeoutSeconds=2")
    late.join()
    assert [event["type"] for event in events] == ["ADDED", "DELETED"]
    versions = [event["object"]["metadata"]["resourceVersion"] for event in events]
    assert versions[0] == made["metadata"]["resourceVersion"] != versions[1]


def test_bookmarks_only_for_who_asks(api: ApiServer) -> None:
    start = ask(api, "GET", "ipblocks").json["metadata"]["resourceVersion"]
    api.cluster.bump()
    query = f"resourceVersion={start}&timeoutSeconds=1"
    assert watched(api, query) == []
    told = watched(api, f"{query}&allowWatchBookmarks=true")
    assert [event["type"] for event in told] == ["BOOKMARK"]
    assert told[0]["object"]["metadata"]["resourceVersion"] == str(api.cluster.version)


def test_a_watch_from_forgotten_history(api: ApiServer) -> None:
    start = ask(api, "GET", "ipblocks").json["metadata"]["resourceVersion"]
    api.cluster.compact()
    (event,) = watched(api, f"resourceVersion={start}&timeoutSeconds=1")
    assert (event["type"], event["object"]["code"]) == ("ERROR", 410)
    api.gone_as_event = False
    path = f"ipblocks?watch=1&resourceVersion={start}"
    assert ask(api, "GET", path).outcome == (410, "Expired")


# --- who ---


def test_tokens_and_roles(api: ApiServer) -> None:
    assert ask(api, "GET", "ipblocks", token="nobody").outcome == (401, "Unauthorized")
    assert ask(api, "GET", "ipblocks", token="").outcome == (403, "Forbidden")
    assert ask(api, "GET", "ipblocks", token="n1").code == 200
    assert ask(api, "POST", "ippools", pool(), token="n1").outcome == (403, "Forbidden")
    assert ask(api, "GET", "/api/v1/nodes", token="n1").outcome == (403, "Forbidden")
    assert ask(api, "GET", "/api/v1/namespaces/kube-system", token="n1").code == 200
    assert ask(api, "GET", "/api/v1/namespaces/default", token="n1").outcome == (403, "Forbidden")
    assert ask(api, "GET", "/api/v1/nodes", token="reconcile").code == 200


def test_a_certificate_names_a_user(api: ApiServer) -> None:
    crt, key = api.client_certificate("ada", "system:masters")
    link = connection(api)
    context = ssl.create_default_context(cafile=str(api.ca))
    context.load_cert_chain(crt, key)
    link = HTTPSConnection(link.host, link.port, timeout=30, context=context)
    link.request("GET", f"{BASE}/ipblocks")
    assert link.getresponse().status == 200
    link.close()


def test_a_node_changes_only_its_own_blocks(api: ApiServer) -> None:
    forbidden = (403, "Forbidden")
    assert ask(api, "POST", "ipblocks", block(node="n2"), token="n1").outcome == forbidden
    assert ask(api, "POST", "ipblocks", block(), token="unbound").outcome == forbidden
    made = ask(api, "POST", "ipblocks", block(), token="n1").json
    path = f"ipblocks/{made['metadata']['name']}"
    stolen = [{"op": "replace", "path": "/spec/node", "value": "n2"}]
    media = "application/json-patch+json"
    for token in ("n1", "n2"):
        reply = ask(api, "PATCH", path, stolen, token=token, kind=media)
        assert reply.outcome == forbidden
        assert "denied request" in reply.json["message"]
    assert ask(api, "DELETE", path, token="n2").outcome == forbidden
    assert ask(api, "DELETE", path, token="n1").code == 200
    ask(api, "POST", "ipblocks", block(), token="n1")
    assert ask(api, "DELETE", path, token="reconcile").code == 200


@pytest.mark.parametrize(
    ("key", "code"),
    [
        ("nodes/n1", 201),
        ("nodes/n2", 403),
        ("nodes/n1x", 403),
        ("wanted/default/n1", 201),
        ("wanted/default/n2", 403),
        ("spaces/default", 201),
        ("reconcile/lock", 403),
    ],
)
def test_a_node_writes_its_own_records(api: ApiServer, key: str, code: int) -> None:
    assert ask(api, "POST", "iprecords", record(key), token="n1").code == code


def test_an_expression_without_translation_cannot_be_loaded() -> None:
    for manifest in yaml.safe_load_all((CLUSTER / "policy.yaml").read_text()):
        if manifest["kind"] == "ValidatingAdmissionPolicy":
            manifest["spec"]["validations"][1]["expression"] += " || true"
            with pytest.raises(LookupError, match="no translation"):
                Policies().add(manifest)


# --- the core, and failures ---


def test_pods_of_a_node(api: ApiServer) -> None:
    api.cluster.pod("a", "n1", "10.1.0.2")
    api.cluster.pod("b", "n2", "10.1.0.3")
    found = ask(api, "GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1").json["items"]
    assert [item["metadata"]["name"] for item in found] == ["a"]
    wrong = "/api/v1/pods?fieldSelector=spec.hostname%3Dn1"
    assert ask(api, "GET", wrong).outcome == (400, "BadRequest")


def test_a_type_that_is_not_defined_is_plain_text(api: ApiServer) -> None:
    reply = ask(api, "GET", "ipnothings/x")
    assert (reply.code, reply.text) == (404, "404 page not found\n")


def test_faults(api: ApiServer) -> None:
    busy = Answer(429, "too many requests", retryAfterSeconds=1)
    api.faults.append(Fault(busy))
    assert ask(api, "GET", "ipblocks").headers["Retry-After"] == "1"
    api.faults.append(Fault("after", applies=lambda method, _: method == "POST"))
    with pytest.raises((OSError, Exception)):
        ask(api, "POST", "ipblocks", block())
    assert ask(api, "GET", "ipblocks/default--10.1.0.0-26").code == 200  # it has happened


# --- what may be in a schema ---


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"properties": {}}, "type must not be empty"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}}, "is not allowed"),
        ({"type": "array"}, "needs items"),
        (
            {"type": "object", "properties": {}, "additionalProperties": {"type": "string"}},
            "exclude",
        ),
        ({"type": "object", "additionalProperties": False}, "additionalProperties"),
        ({"type": "array", "uniqueItems": True, "items": {"type": "string"}}, "uniqueItems"),
        ({"type": "file"}, "is no type"),
    ],
)
def test_schemas_that_are_not_structural(schema: Json, why: str) -> None:
    assert any(why in fault for fault in openapi.structural_faults(schema))


def test_time_is_told(api: ApiServer) -> None:
    from email.utils import parsedate_to_datetime

    told = parsedate_to_datetime(ask(api, "GET", "/version").headers["Date"]).timestamp()
    assert abs(told - time.time()) < 600
