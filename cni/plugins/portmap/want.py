"""The ports that portmap has to publish (Want), and the Protocol of its backends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from ...owner import Owner
from ...protocol.address import Prefix, format_ip
from ...protocol.errors import CNIError

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
# Protocols whose conntrack entries outlive a connection: nothing like TCP's RST ends them.
CONNECTIONLESS = ("udp", "sctp")


class Taken(CNIError):
    """Another container has published the host port; no other backend must be tried."""


class Port(NamedTuple):
    """A published port; `host_ip` is packed, empty for every address of the node.

    An unspecified one (0.0.0.0 or ::) stands for every address of its family.
    """

    host_ip: bytes
    protocol: str
    host_port: int
    container_port: int

    @property
    def key(self) -> tuple[bytes, str, int]:
        """The part that is unique among owners: two cannot both have it."""
        return self.host_ip, self.protocol, self.host_port

    def __str__(self) -> str:
        where = f"{format_ip(self.host_ip)} " if self.host_ip else ""
        return f"{where}{self.host_port}/{self.protocol}"


def plain(ports: Iterable[Port], size: int) -> Iterator[Port]:
    """The ports of the family whose addresses have that size; an unspecified host IP is dropped."""
    for port in ports:
        if len(port.host_ip) in (0, size):
            yield port if any(port.host_ip) else port._replace(host_ip=b"")


class Want(NamedTuple):
    """The container's first address of each family (with its subnet's prefix), and the ports.

    `ports` are those of both families; `mark` is the packet mark that asks for masquerading,
    `mark_chain` the administrator's iptables chain that sets it; `conditions` by family (IPv4,
    IPv6) are words in the language of the backend.
    """

    owner: Owner
    addresses: list[Prefix]
    ports: list[Port]
    snat: bool
    masq_all: bool
    mark: int
    mark_chain: str
    conditions: tuple[list[str], list[str]]

    def ports_of(self, address: Prefix) -> list[Port]:
        """The ports to publish for an address: those whose host IP is of its family, or of none.

        An unspecified host IP becomes b"". Of several mappings of one host port only the first is
        returned.
        """
        ports: dict[tuple[bytes, str, int], Port] = {}
        for port in plain(self.ports, len(address.ip)):
            ports.setdefault(port.key, port)
        return list(ports.values())

    def conditions_of(self, address: Prefix) -> list[str]:
        return self.conditions[0 if address.is_v4 else 1]


SAME, DEAD, ALIVE, UNKNOWN = "same container", "dead", "alive", "unknown"


class Holder(NamedTuple):
    """The owner of a wanted port or address, as far as known, and its state: one of these words.

    UNKNOWN: this node has no note about it, as for containers that the Go plugin started.
    """

    owner: Owner | None
    fate: str


class Holders(Protocol):
    """Finds the holder of a port or chain, and whether it lives (holders.py)."""

    def by_key(self, key: str, named: Owner | None) -> Holder: ...

    def by_chain(self, chain: str, named: Owner | None) -> Holder: ...

    def stand_by(self, key: str) -> None: ...


class LoadHolders(Protocol):
    """Loads the judge of holders, which most ADDs do not need."""

    def __call__(self) -> Holders: ...


class Backend(Protocol):
    """A packet filter that publishes ports, in the current network namespace.

    Methods raise CNIError or KernelError.
    """

    def setup(self, want: Want, holders: LoadHolders, earlier: Want | None) -> list[int]:
        """Publish the ports; what exists already is not made again.

        This owner takes over ports of dead owners. For ports of another attachment of the same
        container it stands by. `earlier` is what an ADD of this owner published that had no DEL: it
        is removed. Raises Taken if another living container has one of the ports; then packets are
        treated as before. Returns the handles by which `teardown` finds rules faster, if the
        backend needs any.
        """

    def teardown(self, want: Want, *, noted: bool, handles: Sequence[int] = ()) -> list[Port]:
        """Remove what the owner published, also the reference's rules; return those ports.

        Nothing to remove is no error. `want` may lack addresses and ports; if it has them, the
        rules of the container's other attachments stay. `noted`: the host has a note of an ADD of
        this owner, so there may be rules. `handles` are those that `setup` returned, as far as
        known.
        """

    def gc(self, network: str, keep: list[Owner]) -> list[Port]:
        """Remove what the network's owners not in `keep` published; return those ports."""

    def check(self, want: Want, holders: LoadHolders) -> list[str]:
        """The missing parts of `want`, a line each."""

    def status(self, *, conditions: bool) -> None:
        """Raise CNIError or KernelError if ports (with `conditions`) cannot be published here."""
