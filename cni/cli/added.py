"""What `cni add` prints: the result of the ADD."""

from __future__ import annotations

from cni.protocol.result import IPConfig, Result, encode_json

from . import output
from .cache import Attachment, Outcome
from .table import cell_width, padded


def present(outcome: Outcome, attachment: Attachment, form: str = "") -> None:
    """ADD's result: exactly the JSON object a plugin prints, or lines for a person."""
    if form == "yaml":
        output.document(outcome.as_dict(), form)
        return
    if form == "name":
        output.line(attachment.name)
        return
    if form == "json" or not output.is_terminal():
        output.write(encode_json(outcome.as_dict()))
        return
    output.done(f"{attachment.ifname} in {attachment.netns} is attached to {attachment.network}")
    rows = [*_summary(outcome.result), ("container", attachment.container_id)]
    output.paragraph(output.columns(rows))


def _summary(result: Result) -> list[tuple[str, str]]:
    rows = [("address", _address(ip, result)) for ip in result.ips]
    width = max((cell_width(link.name) for link in result.interfaces), default=0)
    for link in result.interfaces:
        facts = [
            padded(link.name, width, False),
            link.mac,
            f"mtu {link.mtu}" if link.mtu else "",
            link.sandbox or "host",
        ]
        rows.append(("interface", "  ".join(fact for fact in facts if fact)))
    for route in result.routes:
        rows.append(("route", f"{route.dst} via {route.gw}" if route.gw else route.dst))
    dns = result.dns
    for name, values in (
        ("nameserver", dns.nameservers),
        ("domain", [dns.domain] if dns.domain else None),
        ("search", dns.search),
        ("options", dns.options),
    ):
        if values:
            rows.append((name, " ".join(values)))
    return rows


def _address(ip: IPConfig, result: Result) -> str:
    text = ip.address
    if ip.interface is not None and 0 <= ip.interface < len(result.interfaces):
        text += f" on {result.interfaces[ip.interface].name}"
    return f"{text}, gateway {ip.gateway}" if ip.gateway else text
