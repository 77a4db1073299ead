"""Requests to a Kubernetes API: who asks, how often, and what its refusals mean.

Sources: kubernetes.io, "API Concepts"; git.k8s.io/community, "API Conventions": Status objects.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from urllib import parse

import msgspec

from .http import Client, Response
from .interface import Expired, Refused, Unavailable
from .kubeconfig import Access

_JSON = "application/json"
_VERBS = {"GET": "get", "POST": "create", "PATCH": "patch", "DELETE": "delete"}

# A node's account changes what is the node's own; people use some commands with another account.
_DENIED = (
    "let nodeName be the name of this node's Node object; to change what is another node's, as "
    "`cni ipam cordon`, `forget` and `reconcile` do, use an administrator's account: "
    "CNI_CLUSTER_CONF names a file to read instead of /etc/cni/cluster.json, with that account's "
    "kubeconfig in `store`. The rules are those of deploy/cluster/policy.yaml"
)


class Api:
    """Requests to an API server. Raises Refused, Unavailable for what no caller has to know."""

    def __init__(self, access: Access, timeout: float) -> None:
        parts = parse.urlsplit(access.server)
        self.name = f"the Kubernetes API at {access.server}"
        self.timeout = timeout
        self._access = access
        self._path = parts.path.rstrip("/")
        self._client = Client(
            [f"{parts.scheme}://{parts.netloc}"],
            name=self.name,
            trust=access.trust,
            timeout=timeout,
            field="server",
        )

    def close(self) -> None:
        self._client.close()

    def request(self, method: str, path: str, body: Any = None, kind: str = _JSON) -> Response:
        """The answer, which is not 401, 403, 429 or 5xx."""
        data = b"" if body is None else msgspec.json.encode(body)
        deadline = time.monotonic() + self.timeout
        is_renewed = False
        while True:
            answer = self._client.request(
                method,
                self._path + path,
                data,
                self._headers(kind if data else ""),
                repeatable=method == "GET",
                timeout=max(deadline - time.monotonic(), 0.01),
            )
            if answer.status == 401 and not is_renewed:
                is_renewed = True  # the token may have been renewed since it was read
                continue
            if answer.status == 429:
                pause = answer.retry_after or 1.0
                if time.monotonic() + pause < deadline:
                    time.sleep(pause)
                    continue
            self._check(method, path, answer)
            return answer

    def stream(self, path: str, seconds: float) -> Iterator[dict[str, Any]]:
        """The events of a watch. Raises Expired, too."""
        stream = self._client.stream("GET", self._path + path, headers=self._headers(""))
        try:
            if stream.status != 200:
                answer = stream.response()
                # the version from which to watch is too old ("API Concepts", "410 Gone")
                if answer.status == 410:
                    raise Expired(f"{self.name}: {message_of(answer)}")
                self._check("GET", path, answer)
                raise self.unexpected(answer)
            for line in stream.lines(seconds):
                event = object_of(line)
                if event is None:
                    raise Unavailable(f"{self.name} sent an event that is no JSON object")
                yield event
        finally:
            stream.close()

    def _headers(self, kind: str) -> dict[str, str]:
        headers = {"Accept": _JSON, "User-Agent": "cni-plugins"}
        if kind:
            headers["Content-Type"] = kind
        token = self._access.bearer()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        return headers

    def _check(self, method: str, path: str, answer: Response) -> None:
        status = answer.status
        if status == 401:
            raise Refused(
                f"{self.name} does not accept the credentials",
                "the token has expired, or is of another cluster: look at "
                f"{self._access.token_file or 'the user of the kubeconfig'}",
            )
        if status == 403:
            raise self._forbidden(method, path, answer)
        if status == 429 or status >= 500:
            raise Unavailable(
                f"{self.name} is not able to answer: {status} {message_of(answer)}",
                "look at the API server; the request is repeated later",
                answer.retry_after,
            )

    def _forbidden(self, method: str, path: str, answer: Response) -> Refused:
        message = message_of(answer)
        # not for want of rights: an admission policy, which answers 403 as well
        if "denied request" in message:
            return Refused(f"{self.name} denied the change: {message}", _DENIED)
        # /api/VERSION/RESOURCE/NAME, /apis/GROUP/VERSION/RESOURCE/NAME
        words = path.partition("?")[0].split("/")
        resource, *name = words[3 if words[1] == "api" else 4 :]
        verb = _VERBS[method]
        if method == "GET" and not name:
            verb = "watch" if "watch=1" in path else "list"
        return Refused(
            f"{self.name} does not permit {verb} of {resource}: {message}",
            f"give the account a ClusterRole with the verb {verb} for {resource} "
            "(deploy/cluster/rbac.yaml)",
        )

    def unexpected(self, answer: Response) -> Unavailable:
        return Unavailable(
            f"{self.name} gave an answer of no sense: {answer.status} {message_of(answer)}"
        )


def object_of(data: bytes) -> dict[str, Any] | None:
    try:
        value = msgspec.json.decode(data)
    except msgspec.DecodeError:
        return None
    return value if isinstance(value, dict) else None


def message_of(answer: Response) -> str:
    """What a Status says, or the beginning of whatever was answered."""
    status = object_of(answer.body) or {}
    text = status.get("message") or answer.body[:200].decode("utf-8", "replace")
    return " ".join(str(text).split())
