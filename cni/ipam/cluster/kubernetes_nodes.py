"""Nodes and pods of a Kubernetes cluster: whether a node is gone, and which pod has an address.

A node that is NotReady may still run all of its containers; it is gone only without a Node object.
(kubernetes.io, "Nodes", and "API Concepts" on lists in pages.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from ...store.interface import Refused, Unavailable
from ...store.kubernetes_api import Api, message_of, object_of

_PAGE = 500  # objects
_RESTARTS = 5
_Objects = list[dict[str, Any]]  # defined here, because the class below has a method `list`


class NodeObject(NamedTuple):
    """A Node. `is_ready` is None while it is unknown (the kubelet does not report)."""

    name: str
    uid: str
    is_ready: bool | None


class Pod(NamedTuple):
    """A pod with addresses; a pod that has ended has none."""

    namespace: str
    name: str
    node: str
    addresses: tuple[str, ...]


_Pods = list[Pod]


class Nodes:
    """Asks an API server. Methods raise StoreError."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def find(self, name: str) -> NodeObject | None:
        """The Node at present; None only if the server answers that no such Node exists."""
        answer = self._api.request("GET", f"/api/v1/nodes/{quote(name, safe='')}")
        value = object_of(answer.body) or {}
        if answer.status == 404:
            details = value.get("details") or {}
            # any other 404, such as a proxy's, does not prove that the node is gone
            if value.get("reason") == "NotFound" and details.get("name") == name:
                return None
            raise Refused(
                f"{self._api.name} has no Nodes: {message_of(answer)}",
                "look whether it is a Kubernetes API",
            )
        if answer.status != 200:
            raise self._api.unexpected(answer)
        return _node(value)

    def all(self) -> dict[str, NodeObject]:
        """Every Node, by name."""
        nodes = map(_node, self.list("/api/v1/nodes"))
        return {node.name: node for node in nodes}

    def pods(self, node: str) -> _Pods:
        """The pods of a node that have addresses of their own, so without `hostNetwork` pods."""
        selector = f"spec.nodeName={node}"
        every = map(_pod, self.list("/api/v1/pods", fieldSelector=selector))
        return [pod for pod in every if pod is not None]

    def list(self, path: str, **query: str) -> _Objects:
        """Every object below a path, as of one moment."""
        for _ in range(_RESTARTS):
            objects: _Objects = []
            for page in self._pages(path, query):
                if page is None:
                    break
                objects += page
            else:
                return objects
        raise Unavailable(f"{self._api.name}: the list of {path} changes faster than it is read")

    def _pages(self, path: str, query: dict[str, str]) -> Iterator[_Objects | None]:
        """The pages of a list as of one moment; None when the server has forgotten that moment."""
        token = ""
        while True:
            words = {**query, "limit": str(_PAGE), **({"continue": token} if token else {})}
            answer = self._api.request("GET", f"{path}?{urlencode(words)}")
            value = object_of(answer.body) or {}
            if answer.status == 410:
                yield None
                return
            if answer.status != 200 or not isinstance(value.get("items"), list):
                raise self._api.unexpected(answer)
            yield value["items"]
            token = (value.get("metadata") or {}).get("continue") or ""
            if not token:
                return


def _node(value: dict[str, Any]) -> NodeObject:
    conditions = (value.get("status") or {}).get("conditions") or ()
    ready = next((each.get("status") for each in conditions if each.get("type") == "Ready"), "")
    known = {"True": True, "False": False}
    return NodeObject(value["metadata"]["name"], value["metadata"]["uid"], known.get(ready))


def _pod(value: dict[str, Any]) -> Pod | None:
    spec, status = value.get("spec") or {}, value.get("status") or {}
    addresses = tuple(each["ip"] for each in status.get("podIPs") or () if each.get("ip"))
    has_ended = status.get("phase") in ("Succeeded", "Failed")
    if not addresses or has_ended or spec.get("hostNetwork"):
        return None
    metadata = value["metadata"]
    return Pod(metadata["namespace"], metadata["name"], spec.get("nodeName", ""), addresses)
