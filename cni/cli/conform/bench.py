"""A node and containers that nothing outlives, and calls of a chain of plugins there.

The node is a network namespace that this process moves into; containers are namespaces of child
processes (cni.netns.throwaway). Files are in a temporary directory.
"""

from __future__ import annotations

import json
import os
import threading
from typing import Any, NamedTuple

from cni import process
from cni.describe import catalogue
from cni.kernel import address, link, route, syscalls
from cni.kernel.netlink import Netlink
from cni.netns import libc
from cni.netns.throwaway import ThrowAway

Json = dict[str, Any]

_IFNAME, _LOOPBACK = "eth0", "lo"
# AF_INET and AF_INET6.
_FAMILIES = (2, 10)


class Answer(NamedTuple):
    """How a call of a plugin ended. `value` is its stdout as JSON, None if that is none."""

    plugin: str
    verb: str
    code: int
    stdout: bytes
    stderr: bytes

    @property
    def value(self) -> Any:
        try:
            return json.loads(self.stdout)
        except ValueError:
            return None

    @property
    def error(self) -> Json:
        """The error object; empty if there is none."""
        value = self.value
        return value if self.code and isinstance(value, dict) else {}

    def __str__(self) -> str:
        shown = (self.stdout or self.stderr).decode(errors="replace")
        return (
            f"{self.plugin} {self.verb}: exit status {self.code}: {' '.join(shown.split())[:300]}"
        )


class Container(NamedTuple):
    """A container: its namespace and its id."""

    space: ThrowAway
    name: str


class Bench:
    """Calls the plugins `binaries`, a chain, with the configurations `plugins` of one network."""

    def __init__(self, binaries: list[str], plugins: list[Json], directory: str) -> None:
        self.binaries, self.plugins, self.directory = binaries, plugins, directory
        self.is_loopback = catalogue.known_as(str(plugins[0].get("type"))) == "loopback"
        self.ifname = _LOOPBACK if self.is_loopback else _IFNAME  # as runtimes call it
        self._count = 0
        self._held: list[ThrowAway] = []

    def enter(self) -> None:
        """Move this process into a new node. Raises OSError."""
        # Only this process moves; the kernel removes the namespace when the command ends.
        syscalls.unshare(libc.CLONE_NEWNET)
        with Netlink() as host:
            link.change(host, link.get(host, "lo").index, up=True)
            # A master for macvlan, ipvlan and vlan. Its peer is up as well, so that it has a
            # carrier.
            link.create_veth(host, "conform0", "conform1")
            link.change(host, link.get(host, "conform0").index, up=True)
            link.change(host, link.get(host, "conform1").index, up=True)

    def container(self) -> Container:
        """A new container."""
        self._count += 1
        space = ThrowAway()
        self._held.append(space)
        return Container(space, f"conform-{self._count}")

    def close(self) -> None:
        for space in self._held:
            space.close()

    # --- calls ---

    def document(self, at: int, version: str, previous: Any = None) -> Json:
        """The configuration of the `at`-th plugin."""
        conf = {**self.plugins[at], "cniVersion": version, "name": "conform"}
        return conf if previous is None else {**conf, "prevResult": previous}

    def call(
        self,
        at: int,
        verb: str | None,
        stdin: bytes,
        container: Container | None = None,
        **env: str | None,
    ) -> Answer:
        """Call the `at`-th plugin; a variable that is None is left out. Raises OSError."""
        binary = self.binaries[at]
        variables = {
            "PATH": os.environ.get("PATH", ""),
            "CNI_PATH": os.pathsep.join(dict.fromkeys(map(os.path.dirname, self.binaries))),
            "CNI_STATE_DIR": f"{self.directory}/state",
            "CNI_COMMAND": verb,
        }
        if container is not None:
            variables |= {
                "CNI_CONTAINERID": container.name,
                "CNI_NETNS": container.space.path,
                "CNI_IFNAME": self.ifname,
            }
        variables |= env
        given = {key: value for key, value in variables.items() if value is not None}
        done = process.run(binary, [binary], stdin, given)
        return Answer(os.path.basename(binary), verb or "", *done)

    def add(self, container: Container, version: str) -> tuple[list[Answer], Any]:
        """ADD the chain, as a runtime does: the answers until one fails, and the last result."""
        answers: list[Answer] = []
        result = None
        for at in range(len(self.binaries)):
            stdin = json.dumps(self.document(at, version, result)).encode()
            answers.append(self.call(at, "ADD", stdin, container))
            if answers[-1].code:
                break
            result = answers[-1].value
        return answers, result

    def each(
        self, verb: str, container: Container, version: str, result: Any, **env: str | None
    ) -> list[Answer]:
        """CHECK or DEL of the chain, DEL backwards; all plugins are called."""
        order = range(len(self.binaries))
        return [
            self.call(
                at,
                verb,
                json.dumps(self.document(at, version, result)).encode(),
                container,
                **env,
            )
            # All of them, because a failure of one must not hide what the others leave.
            for at in (reversed(order) if verb == "DEL" else order)
        ]

    def at_once(self, calls: list[Any]) -> list[Any]:
        """The values of functions that run at the same time."""
        values: list[Any] = [None] * len(calls)

        def run(at: int) -> None:
            values[at] = calls[at]()

        # Threads suffice: each spends its time in waiting for a child process.
        threads = [threading.Thread(target=run, args=(at,)) for at in range(len(calls))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return values

    # --- what there is ---

    def node(self) -> set[str]:
        """What the node has: links but bridges, their addresses, routes."""
        with Netlink() as host:
            devices = {each.index: each for each in link.list_all(host)}
            # Plugins may leave a bridge: it belongs to the network, not to one container.
            kept = {i: d.name for i, d in devices.items() if d.kind != "bridge"}
            found = {f"link {name}" for name in kept.values()}
            for index, name in kept.items():
                found |= {f"address {e.prefix} on {name}" for e in address.show(host, index)}
                for family in _FAMILIES:
                    for entry in route.show(host, family, index):
                        found.add(f"route {entry} dev {name}")
        # The kernel makes link-local addresses and their routes when a link comes up.
        return {each for each in found if "fe80:" not in each and "ff00:" not in each}

    def link_inside(self, container: Container) -> link.Link | None:
        """The container's interface; None without one. `lo` is there if it is up."""
        device = link.find(container.space.namespace.netlink(), self.ifname)
        return None if device is not None and self.is_loopback and not device.up else device

    def addresses_inside(self, container: Container) -> set[str]:
        """The addresses of the container's interface."""
        device = self.link_inside(container)
        if device is None:
            return set()
        sock = container.space.namespace.netlink()
        return {str(each.prefix) for each in address.show(sock, device.index)}
