"""Networks and endpoints in the form of the plugins, independent of the API."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from ..protocol.config import DNS
from ..protocol.errors import CNIError


class Network(NamedTuple):
    """A network of the host; `subnet` (a CIDR) and `gateway` are those of its first subnet."""

    id: str
    name: str
    type: str
    subnet: str = ""
    gateway: str = ""
    management_ip: str = ""


class Endpoint(NamedTuple):
    """An endpoint that exists; `namespace` is known with HCN only."""

    id: str
    name: str
    network_id: str
    mac: str
    address: str
    gateway: str
    dns: DNS
    namespace: str = ""


class Wanted(NamedTuple):
    """An endpoint to be made. Without address, gateway or MAC the service chooses."""

    name: str
    network_id: str
    policies: list[Any]
    dns: DNS
    address: str = ""
    gateway: str = ""
    mac: str = ""


def encode(document: dict[str, Any]) -> str:
    """A document as JSON, without empty texts and lists, as the reference sends it."""
    kept = {key: value for key, value in document.items() if value not in ("", None, [])}
    return msgspec.json.encode(kept).decode()


def decode(text: str, function: str) -> Any:
    """The JSON answer of a function, decoded. Raises CNIError."""
    try:
        return msgspec.json.decode(text)
    except msgspec.MsgspecError as error:
        raise CNIError(f"{function} did not answer with JSON: {error}", text[:200]) from None
