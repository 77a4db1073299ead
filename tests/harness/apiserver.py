"""An emulated Kubernetes API server: custom resources, Nodes and Pods, over HTTPS.

    with serving(tmp_path, MANIFESTS) as api:
        api.tokens["t"] = User("system:serviceaccount:kube-system:cni-plugins", extra={...})
        urlopen(f"{api.url}/apis/{group}/v1/ipblocks")

It is not one: no installation of a real one is possible where these tests run. It is made from
the public documentation, and stricter than that where the documentation leaves a choice:

- resource versions have gaps and are no small numbers; objects come back as they were stored,
  pruned and with defaults, never as they were sent.
- "API Concepts", Resource versions: `resourceVersion` of create must be empty, of an update is a
  precondition (409 Conflict); "the server": a version from the future is 504, reason Timeout.
- Watch: 410 as a status or as an ERROR event (`gone_as_event`), bookmarks only with
  allowWatchBookmarks, an end after timeoutSeconds.
- "Retrieving large results sets in chunks": `limit`, `continue` (a snapshot; 410 reason Expired
  once it was compacted, 400 together with resourceVersion).
- "Field validation": unknown fields are pruned with a warning; fieldValidation=Strict: 400.
- Preconditions (uid, resourceVersion) of DeleteOptions: 409; finalizers keep an object.
- "Authenticating": bearer tokens and client certificates; an unknown token is 401, nobody is
  system:anonymous; RBAC: 403. "Object Names and IDs": RFC 1123 subdomains, 422.
- A resource that is not defined is the plain text of a server without that path, 404.

Not emulated: server-side apply, strategic merge patch, status subresources, conversion, admission
webhooks, aggregation, protobuf. CEL: see admission.py. `faults` make requests fail: `Fault`.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from .admission import User
from .apiobjects import Answer, Cluster, Json, Target, Verbs

NOT_FOUND = "404 page not found\n"  # what a server without such a path says, as plain text


def _always(_method: str, _path: str) -> bool:
    return True


@dataclass
class Fault:
    """What happens to the next `times` requests that `applies` holds for (method, path).

    `answer` is sent instead of doing anything; "before" and "after" cut the connection then,
    so that the client does not know whether the change happened.
    """

    answer: Answer | str
    times: int = 1
    applies: Callable[[str, str], bool] = _always


@dataclass
class ApiServer:
    """A server that listens. `requests` has method and path of each request, in order."""

    cluster: Cluster
    url: str
    ca: Path
    directory: Path
    tokens: dict[str, User] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)
    gone_as_event: bool = True
    bookmark_interval: float = 0.2
    skew: float = 0.0  # seconds, of the Date header

    def reset(self) -> None:
        """As it began: no objects, no users, no faults."""
        with self.cluster.lock:
            kept = {key: v for key, v in self.cluster.objects.items() if key[0] == "namespaces"}
            self.cluster.objects = kept
        self.cluster.compact()
        self.tokens.clear()
        self.faults.clear()
        self.requests.clear()
        self.authorizations.clear()
        self.gone_as_event = True
        self.skew = 0.0

    def fault(self, method: str, path: str) -> Answer | str | None:
        for fault in self.faults:
            if fault.applies(method, path):
                fault.times -= 1
                if fault.times <= 0:
                    self.faults.remove(fault)
                return fault.answer
        return None

    def client_certificate(self, name: str, *groups: str) -> tuple[Path, Path]:
        """Certificate and key of a user, signed by the server's CA."""
        subject = "".join(f"/O={group}" for group in groups) + f"/CN={name}"
        return _certificate(self.directory, "client", subject, "extendedKeyUsage=clientAuth")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: ApiServer  # set by a subclass of each server
    # Head and body are two writes: the second would wait for the client's delayed ACK of the first.
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string((timestamp or time.time()) + self.api.skew)

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        self.api.requests.append((self.command, self.path))
        self.api.authorizations.append(self.headers.get("Authorization", ""))
        fault = self.api.fault(self.command, self.path)
        self._after = fault == "after"
        try:
            if fault == "before":
                raise ConnectionAbortedError
            if isinstance(fault, Answer):
                raise fault
            self._handle(body)
        except Answer as answer:
            self._send(answer.code, answer.status, answer.headers)
        except ConnectionError:
            self._cut()

    def _cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _handle(self, body: bytes) -> None:
        user = self._user()
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        if url.path == "/version":
            self._send(200, {"major": "1", "minor": "33", "gitVersion": "v1.33.0-emulated"})
            return
        group, version, namespace, plural, name = _parsed(url.path)
        verb = self._verb(name, query)
        if not self.api.cluster.roles.allow(user, verb, group, plural, name):
            full = f"{plural}{'.' if group else ''}{group}" + (f' "{name}"' if name else "")
            raise Answer(
                403,
                f'{full} is forbidden: User "{user.name}" cannot {verb} resource "{plural}" in API '
                f'group "{group}" at the cluster scope',
                name=name, group=group, kind=plural,
            )  # fmt: skip
        resource = self.api.cluster.resources.get((group, version, plural))
        if resource is None or (namespace and not resource.namespaced):
            self._send_text(404, NOT_FOUND)
            return
        verbs = Verbs(self.api.cluster, user, Target(resource, namespace, name), query)
        if verb == "watch":
            self._watch(verbs)
            return
        result = self._run(verb, verbs, body)
        if self._after:
            raise ConnectionAbortedError
        headers = {f"Warning-{n}": text for n, text in enumerate(verbs.warnings)}
        self._send(201 if verb == "create" else 200, result, headers)

    def _run(self, verb: str, verbs: Verbs, body: bytes) -> Json:
        if verb in ("get", "list"):
            return verbs.get() if verb == "get" else verbs.list()
        if verb == "deletecollection":
            raise Answer(405, "deletecollection is not emulated")
        content = self.headers.get("Content-Type", "").partition(";")[0]
        if verb in ("create", "update") and content != "application/json":
            raise Answer(415, f"the body of the request was in an unknown format: {content!r}")
        try:
            value = json.loads(body) if body else {}
        except ValueError as error:
            raise Answer(400, f"invalid character: {error}") from None
        if verb == "patch":
            return verbs.patch(content, value)
        if verb == "delete" and value and value.get("kind", "DeleteOptions") != "DeleteOptions":
            raise Answer(400, f"{value['kind']} is not DeleteOptions")
        return {"create": verbs.create, "update": verbs.update, "delete": verbs.delete}[verb](value)

    def _verb(self, name: str, query: dict[str, str]) -> str:
        if self.command == "GET":
            if query.get("watch") in ("1", "true"):
                return "watch"
            return "get" if name else "list"
        if (self.command == "POST") == bool(name):
            if self.command == "DELETE":
                return "deletecollection"
            raise Answer(405, "the server does not allow this method on the requested resource")
        return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[
            self.command
        ]

    def _user(self) -> User:
        given = self.headers.get("Authorization", "")
        if given:
            user = self.api.tokens.get(given.removeprefix("Bearer "))
            if user is None:
                raise Answer(401, "Unauthorized")
            groups = ("system:serviceaccounts", "system:authenticated", *user.groups)
            return User(user.name, groups, user.extra)
        certificate = self.connection.getpeercert()  # type: ignore[attr-defined]
        if certificate:
            subject = [pair[0] for pair in certificate["subject"]]
            name = next(value for key, value in subject if key == "commonName")
            groups = tuple(value for key, value in subject if key == "organizationName")
            return User(name, (*groups, "system:authenticated"))
        return User("system:anonymous", ("system:unauthenticated",))

    # --- watch ---

    def _watch(self, verbs: Verbs) -> None:
        cluster, query = self.api.cluster, verbs.query
        seconds = float(query.get("timeoutSeconds") or 1800)
        deadline = time.monotonic() + seconds
        version = query.get("resourceVersion", "")
        with cluster.lock:
            verbs.check_version(version)
            if version not in ("", "0"):
                seen = int(version)
                initial = []
                if seen < cluster.forgotten:
                    gone = Answer(410, f"too old resource version: {seen} ({cluster.forgotten})")
                    if not self.api.gone_as_event:
                        raise gone
                    self._begin_stream()
                    self._event("ERROR", gone.status)
                    self._chunk(b"")
                    return
            else:
                initial, seen = verbs.selected(), cluster.version
        self._begin_stream()
        for value in initial:
            self._event("ADDED", value)
        bookmarks = query.get("allowWatchBookmarks") in ("1", "true")
        self._follow(verbs, seen, deadline, bookmarks)
        self._chunk(b"")

    def _follow(self, verbs: Verbs, seen: int, deadline: float, bookmarks: bool) -> None:
        cluster = self.api.cluster
        resource, told = verbs.target.resource, seen
        while (left := deadline - time.monotonic()) > 0:
            with cluster.lock:
                new = [e for e in cluster.events if e.version > seen]
                if not new:
                    cluster.lock.wait(min(left, self.api.bookmark_interval))
                    new = [e for e in cluster.events if e.version > seen]
                seen = max(seen, cluster.version)
            for event in new:
                if event.key[0] == resource.table and verbs.selects(event.object):
                    self._event(event.type, event.object)
                    told = event.version
            if self._after:
                raise ConnectionAbortedError
            if bookmarks and seen > told:
                metadata = {"resourceVersion": str(seen), "creationTimestamp": None}
                bookmark = {"kind": resource.kind, "apiVersion": resource.api_version}
                self._event("BOOKMARK", {**bookmark, "metadata": metadata})
                told = seen

    def _begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _event(self, kind: str, value: Json) -> None:
        line = json.dumps({"type": kind, "object": value}).encode() + b"\n"
        middle = len(line) // 2  # a chunk is no line: clients must not take it for one
        self._chunk(line[:middle])
        self._chunk(line[middle:])

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _send(self, code: int, value: Json, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self._send_text(code, data.decode(), headers, "application/json")

    def _send_text(
        self,
        code: int,
        text: str,
        headers: dict[str, str] | None = None,
        kind: str = "text/plain; charset=utf-8",
    ) -> None:
        data = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            # A mapping has each name once, but an answer may have several Warning headers.
            if name.startswith("Warning-"):
                name, value = "Warning", f'299 - "{value}"'  # noqa: PLW2901
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def _parsed(path: str) -> tuple[str, str, str, str, str]:
    """Group, version, namespace, resource and name of a path; 404 if it is none of these."""
    parts = path.strip("/").split("/")
    if parts[0] == "api":
        group, rest = "", parts[1:]
    elif parts[0] == "apis" and len(parts) > 2:
        group, rest = parts[1], parts[2:]
    else:
        raise Answer(404, "the server could not find the requested resource")
    version, *rest = rest
    namespace = ""
    if len(rest) > 2 and rest[0] == "namespaces":
        _, namespace, *rest = rest
    if len(rest) not in (1, 2):
        raise Answer(404, "the server could not find the requested resource")
    return group, version, namespace, rest[0], rest[1] if len(rest) == 2 else ""


# --- certificates ---


def _openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


def _authority(directory: Path) -> Path:
    ca = directory / "ca.crt"
    _openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-keyout", directory / "ca.key", "-out", ca, "-days", "2", "-subj", "/CN=kubernetes",
        "-addext", "keyUsage=critical,keyCertSign", "-addext", "basicConstraints=critical,CA:TRUE",
    )  # fmt: skip
    return ca


def _certificate(directory: Path, stem: str, subject: str, *extensions: str) -> tuple[Path, Path]:
    crt, key, request = (directory / f"{stem}.{end}" for end in ("crt", "key", "csr"))
    config = directory / f"{stem}.ext"
    config.write_text("\n".join(extensions))
    _openssl(
        "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-keyout", key, "-out", request, "-subj", subject,
    )  # fmt: skip
    _openssl(
        "x509", "-req", "-in", request, "-CA", directory / "ca.crt", "-CAkey", directory / "ca.key",
        "-CAcreateserial", "-out", crt, "-days", "2", "-extfile", config,
    )  # fmt: skip
    return crt, key


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, listener: socket.socket, handler: Any, context: ssl.SSLContext) -> None:
        super().__init__(("", 0), handler, bind_and_activate=False)
        # socketserver has made a socket here, while the listener may be in another namespace.
        self.socket.close()
        self.socket = listener
        self.context = context
        self.open: set[socket.socket] = set()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Greet in the thread of the connection: a client that says nothing stops no other."""
        request.settimeout(60)
        try:
            with self.context.wrap_socket(request, server_side=True) as wrapped:
                self.open.add(wrapped)
                try:
                    self.RequestHandlerClass(wrapped, client_address, self)
                finally:
                    self.open.discard(wrapped)
        except OSError:
            pass  # a client that does not trust us, or went away

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A broken connection is the client's matter."""


@contextlib.contextmanager
def serving(
    directory: Path, manifests: list[Path], listener: socket.socket | None = None, host: str = ""
) -> Iterator[ApiServer]:
    """A server on `listener` (for one in another namespace), else on `host` or 127.0.0.1."""
    # On a busy machine it takes longer than a request may.
    import jsonschema  # noqa: F401

    cluster = Cluster()
    for manifest in manifests:
        cluster.load(manifest.read_text())
    if listener is None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host or "127.0.0.1", 0), family=family)
    listener.listen(128)
    address, port = listener.getsockname()[:2]
    ca = _authority(directory)
    names = f"subjectAltName=DNS:kubernetes.default.svc,IP:127.0.0.1,IP:::1,IP:{address}"
    crt, key = _certificate(
        directory, "server", "/CN=kube-apiserver", names, "extendedKeyUsage=serverAuth"
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(crt, key)
    context.load_verify_locations(ca)
    # A client with a token has no certificate.
    context.verify_mode = ssl.CERT_OPTIONAL
    shown = f"[{address}]" if ":" in address else address
    api = ApiServer(cluster, f"https://{shown}:{port}", ca, directory)
    handler = type("Handler", (_Handler,), {"api": api})
    server = _Server(listener, handler, context)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        # A thread waits up to a minute for the next request of a connection that its client keeps.
        for connection in list(server.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        server.server_close()
        thread.join(10)
