"""Owners: every object that plugins make carries its owner, and has a name derived from the owner.

So DEL, CHECK and GC find an attachment's objects without prevResult and without its netns, even
after a kill at any instruction (docs/design.md, "Owners"). Names that the reference has, too:
docs/spec/common.md §2, §6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

try:  # hashlib would load OpenSSL: 5 ms
    from _sha2 import sha512  # type: ignore[import-not-found]  # Python 3.12 and later
except ImportError:
    from _sha512 import sha512  # type: ignore[import-not-found]

KEY_SIZE = 33  # bytes of an Owner.key, which is ASCII
ALIAS_KEY_SIZE = 4 + KEY_SIZE  # bytes of an Owner.alias_key
# The longest texts that the kernel and its tools take, in bytes.
ALIAS_MAX = 254  # IFALIASZ is 256, and a text of 255 bytes with its NUL is refused
COMMENT_MAX = 128  # NFTNL_UDATA_COMMENT_MAXLEN
IPTABLES_COMMENT_MAX = 255  # XT_MAX_COMMENT_LEN less the NUL
NAME_MAX = 255  # of a file (limits.h)
# the reference's; iptables takes names of less than XT_EXTENSION_MAXNAMELEN, 29
_CHAIN_MAX = 28


class Owner(NamedTuple):
    """One attachment: an interface of a container in a network."""

    network: str
    container_id: str
    ifname: str

    @property
    def alias(self) -> str:
        """The alias of this attachment's links, at most ALIAS_MAX bytes.

        ``cni:<H1>-<H2> <network>/<container id>/<ifname>``, cut; the hashes always fit.
        """
        return cut(f"{self.alias_key} {self.network}/{self.container_id}/{self.ifname}", ALIAS_MAX)

    @property
    def alias_key(self) -> str:
        """The part of the alias that identifies the attachment."""
        return f"cni:{self.key}"

    @property
    def key(self) -> str:
        """``<H1>-<H2>``: hashes of the network and of interface and container."""
        return f"{network_key(self.network)}-{_interface_key(self.container_id, self.ifname)}"

    @property
    def number(self) -> int:
        """A hash from 1 to 2^31-1, for objects that can only carry a number."""
        return int(digest(self.key)[:8], 16) >> 1 | 1

    @property
    def comment(self) -> str:
        """The comment of an nftables rule (docs/spec/common.md §6.2), at most COMMENT_MAX bytes.

        If it is cut, the intent of that key has the rest (cni.intent.find_by_key).
        """
        net, ifname, cid = (
            value.replace('"', "") for value in (self.network, self.ifname, self.container_id)
        )
        return cut(f"{self.key}, net: {net}, if: {ifname}, id: {cid}", COMMENT_MAX)

    @property
    def iptables_comment(self) -> str:
        """The comment of an iptables rule (docs/spec/common.md §2), at most 255 bytes."""
        return cut(f'name: "{self.network}" id: "{self.container_id}"', IPTABLES_COMMENT_MAX)

    def chain(self, prefix: str = "") -> str:
        """The name of an iptables chain, 28 characters."""
        return f"CNI-{prefix}{digest(self.network + self.container_id)}"[:_CHAIN_MAX]

    def veth(self, attempt: int = 0) -> str:
        """The name of the host's end of the attachment's veth pair; `attempt` after a collision."""
        seed = f"{self.network}\0{self.container_id}\0{self.ifname}\0{attempt}"
        return f"veth{digest(seed)[:8]}"


def _interface_key(container_id: str, ifname: str) -> str:
    """H2 of an Owner.key: the hash of interface and container."""
    return digest(f"{ifname}:{container_id}")[:16]


class _Known(Owner):
    """An owner whose key has been computed."""

    key = ""


def all_of(network: str, attachments: Iterable[tuple[str, str]]) -> list[Owner]:
    """The owners of (container id, ifname) in a network, each of which computes its key once.

    A GC gets every attachment of the network, and compares its key with many objects.
    """
    start = f"{network_key(network)}-"
    owners: list[Owner] = []
    for container_id, ifname in attachments:
        owner = _Known(network, container_id, ifname)
        owner.key = start + _interface_key(container_id, ifname)
        owners.append(owner)
    return owners


def named_in(comment: str) -> Owner | None:
    """The owner that an Owner.comment names; None if it was cut (its key is whole then)."""
    key, net, rest = comment.partition(", net: ")
    network, _, rest = rest.partition(", if: ")
    ifname, _, container_id = rest.partition(", id: ")
    owner = Owner(network, container_id, ifname)
    return owner if net and owner.key == key else None


def cut(text: str, size: int) -> str:
    """`text` as UTF-8 of at most `size` bytes, without half a character at the end."""
    raw = text.encode("utf-8", "surrogateescape")
    return text if len(raw) <= size else raw[:size].decode(errors="ignore")


def file_name(name: str, suffix: str = "") -> str:
    """`name` with `suffix` as the name of a file.

    A name longer than NAME_MAX has ``~`` and a hash in place of its end.
    """
    whole = f"{name}{suffix}"
    if len(whole.encode("utf-8", "surrogateescape")) <= NAME_MAX:
        return whole
    end = f"~{digest(name)[:32]}{suffix}"
    return cut(name, NAME_MAX - len(end.encode())) + end


def network_key(network: str) -> str:
    """The first half of every key of a network's attachments."""
    return digest(network)[:16]


def network_group(network: str) -> int:
    """The link group of new links of a network, until they have their alias.

    The request that makes a link can set a group, but no alias.
    """
    return int(digest(network)[:8], 16) | 1 << 31


def digest(text: str) -> str:
    """The hexadecimal SHA-512 of a text."""
    return str(sha512(text.encode("utf-8", "surrogateescape")).hexdigest())
