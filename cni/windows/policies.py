"""Endpoint policies: those of the configuration, and those that plugins add
(docs/spec/win-bridge.md).

A policy is JSON for HNS or HCN, kept in the configuration's spelling. Policies are only added; one
whose value is in the list already is not added again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..protocol.config import lookup

_PROTOCOLS = {"icmpv4": 1, "igmp": 2, "tcp": 6, "udp": 17, "icmpv6": 58}
_HIGHEST_PROTOCOL = 1023


class PortMapping(NamedTuple):
    """One published port."""

    host_port: int
    container_port: int
    protocol: str
    host_ip: str = ""


class Policies:
    """The policies of an endpoint to be made; `v2` chooses HCN's spelling."""

    def __init__(self, configured: Any, v2: bool) -> None:
        """`configured` is the configuration's `policies`: a list of {name, value}."""
        self._v2 = v2
        entries = [entry for entry in configured or [] if isinstance(entry, dict)]
        self._values = [
            lookup(entry, "value")
            for entry in entries
            if str(lookup(entry, "name")).lower() == "endpointpolicy"
        ]

    def document(self) -> list[Any]:
        """The policies of the new endpoint; for HCN only those of the form {Type, Settings}."""
        if not self._v2:
            return [value for value in self._values if value is not None]
        return [shaped for value in self._values if (shaped := _typed(value)) is not None]

    def except_from_nat(self, cidr: str) -> None:
        """Do not translate packets to `cidr`."""
        self._list("ExceptionList", "Exceptions", cidr)

    def loop_back(self, address: str) -> None:
        """Let the endpoint reach itself through a service: direct server return."""
        self._list("Destinations", "Destinations", address)

    def provider_address(self, address: str) -> None:
        """Encapsulate with this address of the host."""
        if not address:
            return
        for value in self._values:
            kind, settings = self._split(value)
            known = ("PA", "ProviderAddress")
            if kind in known and any(settings.get(key) == address for key in known):
                return
        if self._v2:
            self._add("ProviderAddress", {"ProviderAddress": address})
        else:
            self._add("PA", {"PA": address})

    def publish(self, mapping: PortMapping) -> bool:
        """Publish a port; False if its protocol is unknown."""
        number = protocol_number(mapping.protocol)
        if number is None:
            return False
        ports = {"InternalPort": mapping.container_port, "ExternalPort": mapping.host_port}
        if self._v2:
            vip = {"VIP": mapping.host_ip} if mapping.host_ip else {}
            self._add("PortMapping", {**ports, "Protocol": number, **vip})
        else:
            self._add("NAT", {**ports, "Protocol": mapping.protocol})
        return True

    def _list(self, v1_key: str, v2_key: str, item: str) -> None:
        key = v2_key if self._v2 else v1_key
        if not item:
            return
        for value in self._values:
            kind, settings = self._split(value)
            listed = settings.get(key)
            if kind == "OutBoundNAT" and isinstance(listed, list) and item in listed:
                return
        self._add("OutBoundNAT", {key: [item]})

    def _add(self, kind: str, settings: dict[str, Any]) -> None:
        self._values.append({"Type": kind, **({"Settings": settings} if self._v2 else settings)})

    def _split(self, value: Any) -> tuple[Any, dict[str, Any]]:
        """A policy's type, and the object with its settings."""
        if not isinstance(value, dict):
            return None, {}
        settings = value.get("Settings") if self._v2 else value
        return value.get("Type"), settings if isinstance(settings, dict) else {}


def _typed(value: Any) -> dict[str, Any] | None:
    """{Type, Settings} of a policy, without other keys; None if it does not have that form."""
    if not isinstance(value, dict):
        return None
    kind, settings = lookup(value, "Type"), lookup(value, "Settings")
    if kind is not None and not isinstance(kind, str):
        return None
    shaped = {"Type": kind} if kind else {}
    return shaped if settings is None else {**shaped, "Settings": settings}


def protocol_number(text: str) -> int | None:
    """``tcp``, ``6``, ``0x6`` or ``06`` -> 6; None if it is no protocol."""
    known = _PROTOCOLS.get(text.lower())
    if known is not None:
        return known
    try:
        octal = len(text) > 1 and text[0] == "0" and text[1:].isdigit()
        number = int(text.encode("ascii"), 8 if octal else 0)
    except ValueError:
        return None
    return (
        number
        if text[0].isdigit() and number <= _HIGHEST_PROTOCOL and text == text.strip()
        else None
    )
