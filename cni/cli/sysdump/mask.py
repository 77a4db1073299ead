"""Masking of a dump: secrets, and (by stand-ins) addresses and names.

    secrets     what secret.py finds; CNI_ARGS but K8S_POD_*; annotations of pods
    addresses   IP addresses, MACs, names of hosts, domains, pods and their namespaces: the same
                original has the same stand-in in the whole dump

JSON is masked as data, in whatever form it is written. A text that cannot be decoded (a torn file)
is masked as text. The configuration in a file of the result cache, which is base64 there, is
written as the object that it is.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable
from typing import Any

from cni.protocol.errors import CNIError
from cni.protocol.result import encode_json

from .. import gojson
from . import secret
from .anonymous import Anonymiser
from .secret import MASKED

SECRETS, ADDRESSES, ALL = "secrets", "addresses", "all"
_POD_KEYS = ("K8S_POD_NAME", "K8S_POD_NAMESPACE")
_PLAIN_ARGS = ("K8S_POD_", "IgnoreUnknown")
# Names that every cluster has, or that words of tools are like.
_COMMON = frozenset(
    [
        "default",
        "kube-system",
        "kube-public",
        "kube-node-lease",
        "localhost",
        "localdomain",
        "node",
        "none",
        "unknown",
    ]
)
_ARGS = re.compile(r"(CNI_ARGS\\?[\"']?\s*[:=]\s*\\?[\"']?)([^\"'\s\\]+)", re.IGNORECASE)
_BASE64 = re.compile(r"(\"config\"\s*:\s*\")([A-Za-z0-9+/=]{16,})", re.IGNORECASE)
_MAC = re.compile(
    r"(?<![0-9A-Fa-f:])(?:[0-9A-Fa-f]{2}([:-]))(?:[0-9A-Fa-f]{2}\1){4,18}[0-9A-Fa-f]{2}(?![0-9A-Fa-f:])"
)
_V6 = re.compile(
    r"(?<![0-9A-Za-z:.])((?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?:(?:\.\d{1,3}){3})?)"
    r"(?:/(\d{1,3})(?!\d))?"
)
_V4 = re.compile(r"(?<![0-9.])((?:\d{1,3}\.){3}\d{1,3})(?!\.?\d)(?:/(\d{1,2})(?![\d.]))?")
_URL_HOST = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]{0,30}://)([A-Za-z0-9][\w.-]*)")
_POD = re.compile(r"(K8S_POD_(NAMESPACE|NAME)\b[\"'\\]*\s*[,:=]\s*[\"'\\]*)([\w.-]+)")
_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?")


class Mask:
    """Masks of one dump. `kinds` are SECRETS and ADDRESSES, or none; names are those known."""

    def __init__(
        self, kinds: Iterable[str], salt: bytes, hosts: Iterable[str] = (), pods: Iterable[str] = ()
    ) -> None:
        self.secrets = SECRETS in kinds
        self.addresses = ADDRESSES in kinds
        self._anonymous = Anonymiser(salt)
        self._names: dict[str, str] = {}
        for host in hosts:
            short, _, domain = host.partition(".")
            self._know("host", host)
            self._know("host", short)
            self._know("domain", domain)
        for pod in pods:
            namespace, _, name = pod.rpartition("/")
            self._know("pod", name)
            self._know("namespace", namespace)

    def _know(self, kind: str, name: str) -> None:
        if name and name not in _COMMON:
            self._names.setdefault(name, self._anonymous.name(kind, name))

    def content(self, data: bytes) -> bytes:
        """A file's content, masked; JSON without anything to mask stays as written."""
        if not (self.secrets or self.addresses):
            return data
        text = data.decode("utf-8", "surrogateescape")
        masked = self.text(text)
        if text.lstrip()[:1] in ("{", "["):
            try:
                value = gojson.decode(data)
            except CNIError:
                pass
            else:
                shown = self.value(value)
                if shown != value:
                    masked = encode_json(shown).decode() + "\n"
                    masked = secret.pairs(masked) if self.secrets else masked
        return masked.encode("utf-8", "surrogateescape")

    # --- data ---

    def value(self, value: Any, key: str = "") -> Any:
        """The same JSON value, masked; `key` is the one that it has."""
        if self.secrets:
            value = self._without_secret(value, key)
        # The network's configuration in libcni's cache, in base64: secrets in it would not be
        # found.
        if key == "config" and isinstance(value, str) and value != MASKED:
            return self._decoded(value)
        if isinstance(value, dict):
            return self._object(value)
        if isinstance(value, list):
            return self._list(value, key)
        return self._item(value, key)

    def _without_secret(self, value: Any, key: str) -> Any:
        """The value; masked if its key means a secret."""
        lower = key.lower()
        if (
            value not in (None, "", [], {})
            and not isinstance(value, bool)
            and secret.is_secret(key)
        ):
            return MASKED
        if lower == "cniargs" and isinstance(value, list):
            return [self._argument(each) for each in value]
        if lower == "cni_args" and isinstance(value, str):
            return self._arguments(value)
        return _leaves_masked(value) if "annotation" in lower else value

    def _object(self, value: dict[str, Any]) -> dict[str, Any]:
        """As {"name": "TOKEN", "value": "…"} it is a pair, too."""
        masked = {self.text(name): self.value(each, name) for name, each in value.items()}
        if self.secrets and secret.is_secret(secret.named(value)):
            hidden = {name for name, each in value.items() if name.lower() == "value" and each}
            masked |= dict.fromkeys(hidden, MASKED)
        return masked

    def _list(self, value: list[Any], key: str) -> list[Any]:
        if self.addresses and len(value) == 2 and str(value[0]) in _POD_KEYS:
            return [value[0], self._pod(value[0].removeprefix("K8S_POD_"), str(value[1]))]
        before: list[Any] = [None, *value]
        return [
            MASKED
            if self.secrets and each and isinstance(each, str) and secret.follows(last)
            else self.value(each)
            if isinstance(each, dict | list)
            else self._item(each, key)
            for last, each in zip(before, value, strict=False)
        ]

    def _item(self, value: Any, key: str) -> Any:
        if not isinstance(value, str):
            return value
        if self.addresses and value and key in ("domain", "search"):
            return self._anonymous.name("domain", value)
        return self._document(value) or self.text(value)

    def _document(self, text: str) -> str:
        """A string that is a JSON document, masked as such; "" if it is none."""
        if text[:1] not in ("{", "["):
            return ""
        try:
            value = gojson.decode(text.encode("utf-8", "surrogateescape"))
        except CNIError:
            return ""
        masked = self.value(value)
        return "" if masked == value else encode_json(masked).decode()

    def _argument(self, pair: Any) -> Any:
        """[key, value] of CNI_ARGS."""
        if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str):
            # Any other key may be a runtime's own, with any content.
            return pair if pair[0].startswith(_PLAIN_ARGS) else [pair[0], MASKED]
        return MASKED

    def _arguments(self, text: str) -> str:
        """``K=V;K=V``."""
        pieces = []
        for piece in text.split(";"):
            key, equals, value = piece.partition("=")
            shown = value if key.startswith(_PLAIN_ARGS) or value == MASKED else MASKED
            pieces.append(f"{key}={shown}" if equals else MASKED)
        return ";".join(pieces)

    def _decoded(self, text: str) -> Any:
        """What base64 stands for; a text that is none as it is."""
        try:
            value = gojson.decode(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError, CNIError):
            return self.text(text) if not self.secrets else MASKED
        return self.value(value)

    # --- text ---

    def text(self, text: str) -> str:
        """A text, masked."""
        if self.secrets:
            text = self._without_secrets(text)
        if self.addresses:
            text = self._without_addresses(text)
        return text

    def _without_secrets(self, text: str) -> str:
        text = _BASE64.sub(rf"\1{MASKED}", text)
        text = _ARGS.sub(lambda found: found[1] + self._arguments(found[2]), text)
        return secret.without_secrets(text)

    def _without_addresses(self, text: str) -> str:
        text = _MAC.sub(self._mac, text)
        text = _V6.sub(self._address, text)
        text = _V4.sub(self._address, text)
        text = _URL_HOST.sub(self._url, text)
        text = _POD.sub(lambda found: found[1] + self._pod(found[2], found[3]), text)
        return _NAME.sub(self._name, text) if self._names else text

    def _mac(self, found: re.Match[str]) -> str:
        raw = bytes.fromhex(found[0].replace(found[1], ""))
        return self._anonymous.mac(raw).hex(found[1])

    def _address(self, found: re.Match[str]) -> str:
        length = int(found[2]) if found[2] else None
        made = self._anonymous.text(found[1], length)
        if made is None:
            return found[0]
        return made if length is None else f"{made}/{length}"

    def _url(self, found: re.Match[str]) -> str:
        if self._anonymous.text(found[2]) is not None or found[2].startswith(("host-", "(")):
            return found[0]
        return found[1] + (
            found[2] if found[2] in _COMMON else self._anonymous.name("host", found[2])
        )

    def _pod(self, key: str, name: str) -> str:
        if name in _COMMON:
            return name
        return self._anonymous.name("pod" if key == "NAME" else "namespace", name)

    def _name(self, found: re.Match[str]) -> str:
        token = found[0]
        if token in self._names:
            return self._names[token]
        # Parts of a word with dashes are left alone: `web` in `web-server` may be no name.
        if "." not in token and "_" not in token:
            return token
        pieces = re.split(r"([._])", token)
        if self._names.keys().isdisjoint(pieces) or self._anonymous.text(token) is not None:
            return token  # an address is no name, although its parts may be
        return "".join(self._names.get(piece, piece) for piece in pieces)


def _leaves_masked(value: Any) -> Any:
    walk: Callable[[Any], Any] = _leaves_masked
    if isinstance(value, dict):
        return {key: walk(each) for key, each in value.items()}
    if isinstance(value, list):
        return [walk(each) for each in value]
    return MASKED if isinstance(value, str) and value else value
