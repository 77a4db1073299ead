"""The forms that a text may have: their checks, and their patterns in JSON Schema.

A form describes the texts that the plugin accepts, by the plugin's own parser if it has one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from cni.ipam.dhcp.conf import parse_code
from cni.ipam.host_local.ranges import excluded
from cni.kernel import sysctl
from cni.kernel.link import parse_mac
from cni.plugins.wireguard.keys import parse as parse_key
from cni.plugins.wireguard.settings import parse_endpoint
from cni.protocol.address import Prefix, parse_ip
from cni.protocol.errors import CNIError
from cni.protocol.request import check_ifname, check_network_name


class Form(NamedTuple):
    """`check` raises ValueError or CNIError for a text that has not the form.

    `name` is for people; `example` is a valid text. `pattern` is a regular expression of JSON
    Schema that every text of the form matches.
    """

    name: str
    example: str
    check: Callable[[str], Any]
    pattern: str = ""


def _request(text: str) -> None:
    """An address, with or without a prefix length."""
    if "/" in text:
        Prefix.parse(text)
    else:
        parse_ip(text)


def _own_mac(text: str) -> None:
    """A MAC address that a link can have; the kernel refuses others (is_valid_ether_addr)."""
    packed = parse_mac(text)
    # The lowest bit of the first byte means a group.
    if packed[0] & 1 or not any(packed):
        raise ValueError(f"address {text}: it is of a group, or zero, and no link can have it")


def _path(text: str) -> None:
    if "\0" in text or not text.startswith("/"):
        raise ValueError("a path begins with /")


def _matches(pattern: str, words: str) -> Callable[[str], None]:
    # Compiled once; the function is called for each value.
    compiled = re.compile(pattern)

    def check(text: str) -> None:
        if not compiled.fullmatch(text):
            raise ValueError(words)

    return check


def _condition(text: str) -> None:
    if not text.isprintable() or ";" in text:
        raise ValueError("a condition cannot have a control character or semicolon")


_HEX = "[0-9A-Fa-f]"
# 28 characters are what iptables allows for the name of a chain.
_CHAIN = r"[A-Za-z][A-Za-z0-9_.\-/]{0,27}"
_LOG_FILE = r"journal|/var/log/cni/[^/\x00]+"
_PCI = rf"{_HEX}{{4,8}}:{_HEX}{{2}}:{_HEX}{{2}}\.[0-7]"

FORMS = {
    "address": Form("an IP address", "10.1.2.3", parse_ip, r"^[0-9A-Fa-f:.]+$"),
    "prefix": Form(
        "an address with its prefix length",
        "10.1.2.0/24",
        Prefix.parse,
        r"^[0-9A-Fa-f:.]+/[0-9]{1,3}$",
    ),
    "request": Form(
        "an address, with or without a prefix length",
        "10.1.2.3",
        _request,
        r"^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$",
    ),
    "span": Form(
        "an address, a prefix, or two addresses with a hyphen",
        "10.0.0.8-10.0.0.11",
        excluded,
        r"^[0-9A-Fa-f:./ -]+$",
    ),
    "mac": Form("a MAC address", "02:00:00:00:00:05", parse_mac, r"^[0-9A-Fa-f:. -]{12,17}$"),
    "ownmac": Form(
        "a MAC address of one link",
        "02:00:00:00:00:05",
        _own_mac,
        r"^[0-9A-Fa-f:. -]{12,17}$",
    ),
    "macprefix": Form(
        "two bytes in hexadecimal",
        "0E-2A",
        _matches(f"{_HEX}{{2}}-{_HEX}{{2}}", "it is of the form xx-xx"),
        f"^({_HEX}{{2}}-{_HEX}{{2}})?$",
    ),
    "interface": Form(
        "the name of an interface: at most 15 bytes",
        "eth0",
        check_ifname,
        r"^[^/:%\s]{0,15}$",
    ),
    "network": Form(
        "letters, digits, and _ . - but not first",
        "mynet",
        check_network_name,
        r"^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$",
    ),
    "path": Form("an absolute path", "/var/lib/cni", _path, r"^(/|$)"),
    "logfile": Form(
        "`journal`, or a file in /var/log/cni",
        "/var/log/cni/requests.log",
        _matches(_LOG_FILE, "it is neither `journal` nor a file in /var/log/cni"),
        f"^({_LOG_FILE})?$",
    ),
    "pci": Form(
        "a PCI address",
        "0000:3b:00.1",
        _matches(_PCI, "it is of the form domain:bus:device.function"),
        f"^({_PCI})?$",
    ),
    "chain": Form(
        "at most 28 letters, digits and _ . - /, a letter first",
        "MY-RULES",
        _matches(_CHAIN, "it is no name of a chain"),
        f"^({_CHAIN})?$",
    ),
    "wgkey": Form(
        "a key of 32 bytes in base64",
        "vIwzZjxbT6LDdNgFsV1uxBBZHP2QAvmrBfiDWeKIjS0=",
        lambda text: parse_key(text, "key"),
        "^([A-Za-z0-9+/]{43}=)?$",
    ),
    "endpoint": Form(
        "an address and a port",
        "192.0.2.11:51820",
        lambda text: parse_endpoint(text, "endpoint"),
        r"^[0-9A-Fa-f:.\[\]]*$",
    ),
    "condition": Form("words of a rule, without ;", "ip", _condition, r"^[^;]*$"),
    "option": Form("a DHCP option: its name, or a number up to 255", "121", parse_code),
    "protocol": Form(
        "tcp, udp or sctp",
        "tcp",
        _matches("(?i:tcp|udp|sctp)", "it is no protocol with ports"),
        "^([tT][cC][pP]|[uU][dD][pP]|[sS][cC][tT][pP])?$",
    ),
    "sysctl": Form(
        "a parameter below net, without `..`",
        "net.ipv4.conf.IFNAME.arp_filter",
        sysctl.parse,
        r"^net[./]",
    ),
}


def problem(form: str, text: str) -> str:
    """Why `text` does not have the form; "" if it does. The empty text has every form."""
    if not text:
        return ""
    try:
        FORMS[form].check(text)
    except CNIError as error:
        return f"{error.msg}: {error.details}" if error.details else error.msg
    except ValueError as error:
        return str(error)
    return ""
