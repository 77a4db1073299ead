"""firewalld over D-Bus: the containers' addresses become sources of a zone (docs/spec/firewall.md).

Only the running configuration is changed, so `firewall-cmd --reload` forgets it; `cni reload
--watch` puts it back. jeepney is imported when firewalld is known to run (dbus.py).
"""

from __future__ import annotations

from typing import Any

from ...owner import Owner
from ...protocol.address import Prefix
from ...protocol.errors import CNIError
from . import dbus
from .want import Want, gone

SERVICE = dbus.FIREWALLD
_PATH, _ZONE = "/org/fedoraproject/FirewallD1", "org.fedoraproject.FirewallD1.zone"
_ALREADY = "ZONE_ALREADY_SET"
TIMEOUT = 30.0  # seconds; firewalld takes one request after the other, and a reload takes long


class FirewalldError(CNIError):
    """firewalld refused a call (the message is firewalld's), or cannot be reached."""


class Connection:
    """A connection to firewalld; close it. Raises FirewalldError."""

    def __init__(self) -> None:
        from jeepney import DBusErrorResponse
        from jeepney.io.blocking import open_dbus_connection

        self._refusal = DBusErrorResponse
        try:
            self._bus: Any = open_dbus_connection(dbus.bus_address())
        except (OSError, RuntimeError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise FirewalldError(
                f"cannot reach the system bus {dbus.bus_address()}: {reason.lower()}",
                "start firewalld (and the system bus), or choose another `backend`",
            ) from None

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc: object) -> None:
        self._bus.close()

    def call(self, method: str, zone: str, address: Prefix) -> Any:
        """Call a method with a zone and a source; return its value."""
        from jeepney import DBusAddress, new_method_call
        from jeepney.wrappers import unwrap_msg

        where = DBusAddress(_PATH, bus_name=SERVICE, interface=_ZONE)
        message = new_method_call(where, method, "ss", (zone, str(address)))
        try:
            return unwrap_msg(self._bus.send_and_get_reply(message, timeout=TIMEOUT))[0]
        except self._refusal as error:
            raise FirewalldError(_text(error)) from None
        except TimeoutError:
            raise FirewalldError(f"firewalld did not answer in {TIMEOUT:.0f} seconds") from None
        except (OSError, EOFError) as error:
            raise FirewalldError(f"the system bus hung up: {error}") from None


def _text(error: Any) -> str:
    details = " ".join(str(item) for item in error.data)
    return details or str(error.name)


def setup(want: Want, *, accept: bool = True) -> None:
    """Add the addresses to the zone; those that are there already stay. Raises CNIError."""
    with Connection() as firewalld:
        for address in want.addresses if accept else ():
            try:
                firewalld.call("addSource", want.zone, address)
            except FirewalldError as error:
                # Older versions give this error also for a source of another zone.
                if _ALREADY in error.msg and firewalld.call("querySource", want.zone, address):
                    continue
                raise CNIError(
                    f"failed to add the address {address} to {want.zone} zone: {error.msg}",
                    f"see `firewall-cmd --get-zones`, `firewall-cmd --get-zone-of-source={address}`"
                    " and firewalld's log",
                ) from None


def teardown(owner: Owner, addresses: list[Prefix], zone: str) -> None:
    """Remove the addresses from the zone; a refusal of firewalld is no error."""
    _ = owner  # a source has no comment
    if not addresses or not dbus.firewalld_runs()[0]:
        return
    try:
        with Connection() as firewalld:
            for address in addresses:
                _try(firewalld, "removeSource", zone, address)
    except FirewalldError:
        return  # firewalld has just ended, and its sources are gone


def gc(network: str, keep: list[Owner], addresses: list[Prefix], zone: str) -> None:
    """As `teardown`."""
    _ = keep
    teardown(Owner(network, "", ""), addresses, zone)


def _try(firewalld: Connection, method: str, zone: str, address: Prefix) -> None:
    try:
        firewalld.call(method, zone, address)
    except FirewalldError:
        pass


def check(want: Want, *, accept: bool = True) -> list[str]:
    """The addresses that are not in the zone, a line each."""
    problems = []
    with Connection() as firewalld:
        for address in want.addresses if accept else ():
            text = f"failed to find the address {address} in {want.zone} zone"
            try:
                if not firewalld.call("querySource", want.zone, address):
                    problems.append(gone(text))
            except FirewalldError as error:
                problems.append(f"{text}: {error.msg}")
    return problems


def status() -> None:
    """Raises CNIError if firewalld does not run."""
    runs, why = dbus.firewalld_runs()
    if not runs:
        raise CNIError(why, "start firewalld, or leave `backend` out of the configuration")
