"""`cni reload --watch`: stay, and make the rules again whenever firewalld has forgotten them.

`firewall-cmd --reload` drops what was added to the running firewall, and firewalld says so with a
signal on the system bus; so does the bus when firewalld starts or ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cni.plugins.firewall import dbus
from cni.plugins.firewall.backend_firewalld import SERVICE
from cni.protocol.errors import CNIError

_BUS = "org.freedesktop.DBus"
_RULES = (
    f"type='signal',sender='{SERVICE}',interface='{SERVICE}',member='Reloaded'",
    f"type='signal',sender='{_BUS}',interface='{_BUS}',member='NameOwnerChanged',arg0='{SERVICE}'",
)
_SETTLE = 0.1  # seconds in which further signals are answered by the same reload


def watch(changed: Callable[[str], None]) -> None:
    """Call `changed` with the reason, now and after each change, until the bus ends.

    Raises CNIError: there is no bus, or no more.
    """
    from jeepney.bus_messages import message_bus
    from jeepney.io.blocking import open_dbus_connection
    from jeepney.wrappers import DBusErrorResponse, unwrap_msg

    address = dbus.bus_address()
    try:
        bus = open_dbus_connection(address)
        for rule in _RULES:
            request = message_bus.AddMatch(rule)
            unwrap_msg(bus.send_and_get_reply(request, timeout=dbus.TIMEOUT))
        changed("started")  # what happened before we listened
        while True:
            reason = _reason(bus.receive())
            if reason:
                changed(_last_of_many(bus, reason))
    except (OSError, EOFError, RuntimeError, ValueError, DBusErrorResponse) as error:
        raise CNIError(
            f"cannot listen on the system bus {address}: {error or type(error).__name__}",
            "systemd starts the unit again; by hand, start `cni reload --watch` anew",
        ) from None


def _last_of_many(bus: Any, reason: str) -> str:
    while True:
        try:
            reason = _reason(bus.receive(timeout=_SETTLE)) or reason
        except TimeoutError:
            return reason


def _reason(message: Any) -> str:
    """Why rules may be gone; empty for any other message."""
    from jeepney import HeaderFields, MessageType

    if message.header.message_type is not MessageType.signal:
        return ""
    member = message.header.fields.get(HeaderFields.member)
    if member == "Reloaded":
        return "firewalld has reloaded"
    if member == "NameOwnerChanged" and message.body[0] == SERVICE:
        return "firewalld has started" if message.body[2] else "firewalld has ended"
    return ""
