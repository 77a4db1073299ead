"""What portmap is asked for, and what each of its backends does with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from ...owner import Owner
from ...protocol.address import Prefix, format_ip
from ...protocol.errors import CNIError

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
# Those whose conntrack entries outlive what made them: nothing like TCP's RST ends them.
CONNECTIONLESS = ("udp", "sctp")


class Taken(CNIError):
    """Another container has published the host port. No other backend must be tried then."""


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
        """What two owners cannot both have."""
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
        """The ports to be published for an address: not those with a host IP of another family.

        Here an unspecified host IP is an empty one, and of several mappings of one host port only
        the first is left.
        """
        ports: dict[tuple[bytes, str, int], Port] = {}
        for port in plain(self.ports, len(address.ip)):
            ports.setdefault(port.key, port)
        return list(ports.values())

    def conditions_of(self, address: Prefix) -> list[str]:
        return self.conditions[0 if address.is_v4 else 1]


SAME, DEAD, ALIVE, UNKNOWN = "same container", "dead", "alive", "unknown"


class Holder(NamedTuple):
    """An owner that has something which is wanted, as far as known, and its fate: a word of these.

    UNKNOWN: nothing was noted of it on this node, as of containers that the Go plugin started.
    """

    owner: Owner | None
    fate: str


class Holders(Protocol):
    """Finds the holder of something, and judges it (holders.py)."""

    def by_key(self, key: str, named: Owner | None) -> Holder: ...

    def by_chain(self, chain: str, named: Owner | None) -> Holder: ...

    def stand_by(self, key: str) -> None: ...


class LoadHolders(Protocol):
    """Loads what judges holders; most ADDs meet none."""

    def __call__(self) -> Holders: ...


class Backend(Protocol):
    """One way to publish ports. All verbs act on the current network namespace.

    What fails raises CNIError or KernelError.
    """

    def setup(self, want: Want, holders: LoadHolders, earlier: Want | None) -> list[int]:
        """Publish the ports; what is there already is not made again.

        Ports of an owner who is dead go over to this one. For ports that another attachment of the
        container has, this one stands by. `earlier` is what an ADD of this owner published before,
        without a DEL in between: it is removed. Raises Taken if another living container has one of
        the ports; then no packet is treated otherwise than before. Returns the handles by which
        `teardown` finds rules faster, if the backend needs any.
        """

    def teardown(self, want: Want, *, noted: bool, handles: Sequence[int] = ()) -> list[Port]:
        """Remove what the owner published, also what the reference made; gives those ports.

        That there is nothing is no error. `want` may lack addresses and ports; if it has them, the
        rules of the container's other attachments stay. `noted`: an ADD of this owner was noted on
        the host, so there may be something. `handles` are what `setup` returned, as far as that is
        known.
        """

    def gc(self, network: str, keep: list[Owner]) -> list[Port]:
        """Remove what the network's owners published that are not in `keep`; gives those ports."""

    def check(self, want: Want, holders: LoadHolders) -> list[str]:
        """What is missing of that, a line each."""

    def status(self, *, conditions: bool) -> None:
        """Raises CNIError or KernelError if ports (with `conditions`) cannot be published here."""
