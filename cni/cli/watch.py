"""`cni reload --watch`: stay, and make the rules again whenever firewalld has forgotten them.

`firewall-cmd --reload` drops what was added to the running firewall, and firewalld says so with a
signal on the system bus; so does the bus when firewalld starts or ends.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

from cni.plugins.firewall import dbus
from cni.plugins.firewall.backend_firewalld import SERVICE
from cni.protocol.errors import CNIError

_BUS, _BUS_PATH = "org.freedesktop.DBus", "/org/freedesktop/DBus"
_FIREWALLD_PATH = "/org/fedoraproject/FirewallD1"
_RULES = (
    f"type='signal',sender='{SERVICE}',interface='{SERVICE}',member='Reloaded'",
    f"type='signal',sender='{_BUS}',interface='{_BUS}',member='NameOwnerChanged',arg0='{SERVICE}'",
)
_SETTLE = 0.1  # seconds without a further signal after which rules are made again …
_LONGEST_SETTLE = 2.0  # … at the latest after these
_QUIET = 30.0  # seconds without a signal after which `idle` is called


def watch(changed: Callable[[str], None], idle: Callable[[], None] = lambda: None) -> None:
    """Call `changed` with the reason, now and after each change, until the bus ends.

    `idle` is called before each of them, and now and then between them. Raises CNIError: there is
    no bus, or no more.
    """
    from jeepney.io.blocking import open_dbus_connection
    from jeepney.wrappers import DBusErrorResponse

    address = dbus.bus_address()
    try:
        with open_dbus_connection(address) as bus:
            signals = _Signals(bus)
            changed("started")  # what happened before is not known
            while True:
                reason = signals.wait(_QUIET)
                # Before `changed`: a build that was installed meanwhile then makes the rules.
                idle()
                if reason:
                    changed(reason)
    except (OSError, EOFError, RuntimeError, ValueError, DBusErrorResponse) as error:
        raise CNIError(
            f"cannot listen on the system bus {address}: {error or type(error).__name__}",
            "systemd starts the unit again; by hand, start `cni reload --watch` anew",
        ) from None


class _Signals:
    """The signals of firewalld and of the bus about it, in a connection to the bus.

    Every user may send a message of any form to a connection, whatever it has asked for. So the
    sender, which the bus writes itself, has to be right, and the form as documented
    (dbus-specification, "org.freedesktop.DBus.NameOwnerChanged"; firewalld.dbus(5)).
    """

    def __init__(self, bus: Any) -> None:
        """Subscribe. Raises OSError, DBusErrorResponse."""
        self._bus = bus
        self._firewalld = ""  # its unique name on the bus
        for rule in _RULES:
            # Before the question who has the name: a start of firewalld in between is not missed.
            self._ask("AddMatch", rule)
        # GetNameOwner would be an error without firewalld, which need not run yet.
        if self._ask("NameHasOwner", SERVICE):
            self._firewalld = self._ask("GetNameOwner", SERVICE)

    def wait(self, seconds: float) -> str:
        """Wait until rules may be gone, and until it is quiet; the reason. "" after `seconds`."""
        reason, deadline = "", monotonic() + seconds
        while not reason:
            try:
                reason = self._reason(self._bus.receive(timeout=max(deadline - monotonic(), 0)))
            except TimeoutError:
                return ""
        # firewalld restarts with several signals in a row; each reload of rules takes a while.
        end = monotonic() + _LONGEST_SETTLE
        quiet = monotonic() + _SETTLE
        while (left := min(quiet, end) - monotonic()) > 0:
            try:
                more = self._reason(self._bus.receive(timeout=left))
            except TimeoutError:
                break
            if more:
                reason, quiet = more, monotonic() + _SETTLE
        return reason

    def _ask(self, method: str, argument: str) -> Any:
        """The bus's answer to one of its own methods."""
        from jeepney import DBusAddress, HeaderFields, new_method_call
        from jeepney.wrappers import unwrap_msg

        address = DBusAddress(_BUS_PATH, bus_name=_BUS, interface=_BUS)
        call = new_method_call(address, method, "s", (argument,))
        reply = self._bus.send_and_get_reply(call, timeout=dbus.TIMEOUT)
        # The bus writes the sender, so nobody can forge it.
        if reply.header.fields.get(HeaderFields.sender) != _BUS:
            raise ValueError("another sender answered for the bus")
        body = unwrap_msg(reply)
        return body[0] if body else None

    def _reason(self, message: Any) -> str:
        """Why rules may be gone; empty for any other message."""
        from jeepney import HeaderFields, MessageType

        if message.header.message_type is not MessageType.signal:
            return ""
        names = ("sender", "path", "interface", "member", "signature")
        fields = message.header.fields
        form = tuple(fields.get(HeaderFields[name]) or "" for name in names)
        if form == (_BUS, _BUS_PATH, _BUS, "NameOwnerChanged", "sss"):
            name, _, owner = message.body
            if name != SERVICE:
                return ""
            self._firewalld = owner
            return "firewalld has started" if owner else "firewalld has ended"
        expected = (self._firewalld, _FIREWALLD_PATH, SERVICE, "Reloaded", "")
        return "firewalld has reloaded" if self._firewalld and form == expected else ""
