"""vlan: an 802.1Q or 802.1ad interface of a host link, in the container (docs/spec/vlan.md)."""

from __future__ import annotations

from ..call import Call
from ..kernel import link
from ..kernel.link import Link
from ..kernel.netlink import Netlink
from ..protocol.errors import CNIError, Terminated
from ..protocol.result import Interface, Result
from .shared import checks, sublink

PROTOCOLS = {"802.1Q": link.ETH_P_8021Q, "802.1ad": link.ETH_P_8021AD}


class Conf(sublink.Conf):
    vlan_id: int = 0
    protocol: str = "802.1Q"


def add(call: Call[Conf]) -> Result:
    """Make the interface; the result lists it alone."""
    conf = call.conf
    master_name = sublink.configured_master(conf)
    previous = None if master_name else call.prev_result()
    name = master_name or sublink.chained_master(call, previous)
    if not name:
        raise CNIError(
            '"master" field is required. It specifies the host interface name to create the '
            "VLAN for"
        )
    # 4095 is reserved (IEEE 802.1Q); the reference's text names it nevertheless
    if not 0 <= conf.vlan_id <= 4094:
        raise CNIError(f"invalid VLAN ID {conf.vlan_id} (must be between 0 and 4095 inclusive)")
    protocol = _protocol(conf)
    netns = call.open_netns()

    def make(sock: Netlink, master: Link) -> None:
        sublink.check_mtu(conf.mtu, master)
        link.create_vlan(
            sock,
            call.ifname,
            master.index,
            vid=conf.vlan_id,
            protocol=protocol,
            mtu=conf.mtu,
            netns=netns.fd,
        )

    made, entry, _ = sublink.create_on_master(call, netns, "vlan", name, make)
    ipam = sublink.addresses(call, previous, lambda: _allocate(call))
    result = Result(interfaces=[entry], ips=ipam.ips, routes=ipam.routes, dns=conf.dns)
    sublink.configure(call, netns, made, result)
    return result


def _protocol(conf: Conf) -> int:
    """The EtherType of the tag. Raises CNIError."""
    for name, number in PROTOCOLS.items():
        if name.lower() == conf.protocol.lower():
            return number
    raise CNIError(
        f'unknown VLAN protocol: "{conf.protocol}"', f"protocol is {' or '.join(PROTOCOLS)}"
    )


def _allocate(call: Call[Conf]) -> Result:
    try:
        return call.ipam_add(call.conf.ipam.type)
    except Terminated:
        raise
    except CNIError as error:
        if error.msg.startswith("IPAM plugin returned"):
            raise
        raise CNIError(f"failed to execute IPAM delegate: {error.msg}", error.details) from None


def delete(call: Call[Conf]) -> None:
    """Delete the interface, then release the address; every step runs."""
    sublink.delete(call, "vlan")


gc = sublink.gc


def status(call: Call[Conf]) -> None:
    """Ready if the IPAM plugin is ready."""
    call.delegate(call.conf.ipam.type)


def check(call: Call[Conf]) -> None:
    """Compare the interface with prevResult and configuration."""
    conf = call.conf
    protocol = _protocol(conf)
    sublink.check(
        call,
        "vlan",
        lambda device, entry: _differences(conf, protocol, device, entry),
        prefix="vlan: ",
        # without both, the addresses may be the previous plugin's
        ipam_required=bool(conf.master or conf.runtime_config.device_id),
    )


def _differences(conf: Conf, protocol: int, device: Link, entry: Interface) -> list[str]:
    problems = checks.mac_differs(entry, device, "vlan: Interface")
    if device.vlan_id != conf.vlan_id:
        problems.append(
            # the reference's text, although it is about the VLAN
            f"Error: Tuning link {entry.name} configured promisc is {conf.vlan_id}, current "
            f"value is {device.vlan_id}"
        )
    if device.vlan_protocol != protocol:
        names = {number: name for name, number in PROTOCOLS.items()}
        problems.append(
            f"vlan: {entry.name} has protocol "
            f"{names.get(device.vlan_protocol, hex(device.vlan_protocol))}, not {names[protocol]}"
        )
    if conf.mtu and device.mtu != conf.mtu:
        problems.append(
            f"Error: Tuning configured MTU of {entry.name} is {conf.mtu}, current value is "
            f"{device.mtu}"
        )
    return problems
