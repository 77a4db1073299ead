"""tuning's key `ethtool`: features (offloads) of the interface, as `ethtool -K` sets them."""

from __future__ import annotations

from _socket import AF_NETLINK, SOCK_RAW
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOENT

from ...kernel import ethtool
from ...kernel.errors import NetlinkError
from ...kernel.ethtool import Ethtool
from ...kernel.netlink import Netlink
from ...netns import Namespace
from ...protocol.errors import CNIError


def look(netns: Namespace, ifname: str, wanted: dict[str, bool]) -> dict[str, bool]:
    """The values to which DEL restores the features that are going to change. Raises CNIError.

    They are the last requested ones (ethtool's "wanted"), whether or not the driver could comply. A
    feature that is unknown, or fixed at the other value, is an error.
    """
    with _session(netns, ifname) as session:
        present = session.features(ifname)
    return {name: present[name].wanted for name in _different(present, wanted)}


def change(netns: Namespace, ifname: str, wanted: dict[str, bool]) -> None:
    """Set features. Raises CNIError, also when one of them did not change."""
    with _session(netns, ifname) as session:
        session.set_features(ifname, _different(session.features(ifname), wanted))
        left = _different(session.features(ifname), wanted)
    if left:
        raise CNIError(
            f'failed to set features of "{ifname}": {", ".join(left)}',
            "what it depends on is off, or the driver does not do it: see ethtool -k",
        )


def put_back(netns: Namespace, ifname: str, before: dict[str, bool]) -> list[str]:
    """Set features back to `before`; returns a sentence for each failure."""
    try:
        with _session(netns, ifname) as session:
            session.set_features(ifname, before)
    except CNIError as error:
        return [error.msg]
    return []


def differences(netns: Namespace, ifname: str, wanted: dict[str, bool]) -> list[str]:
    """For CHECK: compare features with the configuration, a sentence each."""
    try:
        with _session(netns, ifname) as session:
            left = _different(session.features(ifname), wanted)
    except CNIError as error:
        return [error.msg]
    return [
        f"Error: Tuning configured feature {name} of {ifname} is {_text(on)}, "
        f"current value is {_text(not on)}"
        for name, on in left.items()
    ]


def _different(present: dict[str, ethtool.Feature], wanted: dict[str, bool]) -> dict[str, bool]:
    """The features that differ from `wanted`, by the kernel's names. Raises CNIError."""
    todo: dict[str, bool] = {}
    for key, on in wanted.items():
        try:
            names = ethtool.select(present, key)
        except KeyError:
            raise CNIError(
                f"unknown feature {key}", "`ethtool` has names as ethtool -k shows them, or tso …"
            ) from None
        different = [name for name in names if present[name].active != on]
        fixed = [name for name in different if present[name].fixed]
        if fixed:
            raise CNIError(
                f"feature {key} cannot be turned {_text(on)}",
                f"{', '.join(fixed)} is fixed for this kind of link: see ethtool -k",
            )
        todo.update(dict.fromkeys(different, on))
    return todo


@contextmanager
def _session(netns: Namespace, ifname: str) -> Iterator[Ethtool]:
    sock = netns.socket(AF_NETLINK, SOCK_RAW, ethtool.NETLINK_GENERIC)
    try:
        with Netlink(sock=sock) as generic:
            yield Ethtool(generic)
    except NetlinkError as error:
        advice = "this kernel has no ethtool netlink" if error.errno == ENOENT else ""
        raise CNIError(f'failed to tune features of "{ifname}": {error}', advice) from None


def _text(on: bool) -> str:
    return "on" if on else "off"
