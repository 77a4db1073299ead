"""A registry for images on the loopback: what engines need to push and pull.

https://github.com/opencontainers/distribution-spec/blob/main/spec.md, without listing, deleting and
mounting. It checks the digests of what it is given, as real ones do.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

_BLOB = re.compile(r"/v2/(.+)/blobs/(sha256:[0-9a-f]{64})")
_UPLOAD = re.compile(r"/v2/(.+)/blobs/uploads/(\d*)")
_MANIFEST = re.compile(r"/v2/(.+)/manifests/([^/]+)")


class Registry(ThreadingHTTPServer):
    """What has been pushed: `blobs` by digest; `manifests` by (repository, tag or digest)."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.blobs: dict[str, bytes] = {}
        self.uploads: dict[str, bytearray] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}

    @property
    def host(self) -> str:
        return f"localhost:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Registry
    protocol_version = "HTTP/1.1"

    def log_message(self, *_words: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = bytearray()
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return bytes(data)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if match := _MANIFEST.fullmatch(path):
            found = self.server.manifests.get((match[1], match[2]))
            if found:
                digest = f"sha256:{hashlib.sha256(found[1]).hexdigest()}"
                kind, data = found
                self.answer(200, data, Content_Type=kind, Docker_Content_Digest=digest)
                return
        elif match := _BLOB.fullmatch(path):
            if match[2] in self.server.blobs:
                self.answer(200, self.server.blobs[match[2]], Docker_Content_Digest=match[2])
                return
        elif path == "/v2/":
            self.answer(200, b"{}", Content_Type="application/json")
            return
        self.answer(404)

    do_HEAD = do_GET  # noqa: N815 - the name is the library's

    def do_POST(self) -> None:
        match = _UPLOAD.fullmatch(urlsplit(self.path).path)
        assert match is not None
        number = str(len(self.server.uploads) + 1)
        self.server.uploads[number] = bytearray(self.body())
        self.answer(202, Location=f"/v2/{match[1]}/blobs/uploads/{number}", Range="0-0")

    def do_PATCH(self) -> None:
        match = _UPLOAD.fullmatch(urlsplit(self.path).path)
        assert match is not None
        upload = self.server.uploads[match[2]]
        upload += self.body()
        self.answer(202, Location=urlsplit(self.path).path, Range=f"0-{max(len(upload) - 1, 0)}")

    def do_PUT(self) -> None:
        address = urlsplit(self.path)
        if match := _UPLOAD.fullmatch(address.path):
            data = bytes(self.server.uploads[match[2]] + self.body())
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            if parse_qs(address.query)["digest"] != [digest]:
                self.answer(400)
                return
            self.server.blobs[digest] = data
            self.answer(201, Docker_Content_Digest=digest)
            return
        match = _MANIFEST.fullmatch(address.path)
        assert match is not None
        data = self.body()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        for reference in (match[2], digest):
            kept = (self.headers["Content-Type"], data)
            self.server.manifests[match[1], reference] = kept
        self.answer(201, Docker_Content_Digest=digest)


@contextmanager
def running() -> Iterator[Registry]:
    """A registry on a free port."""
    with Registry() as registry:
        thread = threading.Thread(target=registry.serve_forever)
        thread.start()
        try:
            yield registry
        finally:
            registry.shutdown()
            thread.join()
