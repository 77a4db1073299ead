"""The node: a machine of its own for container runtimes, made of namespaces.

It has its own network (with an uplink to `outside`, which plays a host elsewhere), its own /etc,
/run, /opt and /var/lib, and its own processes. The paths are the ones a real node has, such as
/opt/cni/bin and /etc/cni/net.d; nothing written there is seen by the machine. `stop` ends every
process on it, whatever state the runtimes are in.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shutil
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.harness import CommandError, Netns, connect, iptables_save, kind, links, nft
from tests.harness.netns import PATH, stop
from tests.harness.wait import last_seen

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from .networks import Network

NODE_ADDRESSES = ("198.51.100.1", "2001:db8:ffff::1")
OUTSIDE_ADDRESSES = ("198.51.100.2", "2001:db8:ffff::2")
UPLINK = "uplink"
# Everything containers use here; `outside` knows the way back, so that packets which nobody
# masqueraded are answered and seen.
CONTAINER_NETWORKS = ("10.22.0.0/16", "fd00:22::/32")

PREFIX = "cni-node-"
CGROUPS = Path("/sys/fs/cgroup")


def matching(version: int, addresses: Sequence[str]) -> str:
    """The address of this IP version."""
    return next(one for one in addresses if ipaddress.ip_address(one).version == version)


class Node:
    """A running node, freshly booted, without any plugins or network configurations."""

    def __init__(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        self.tag = self.base.name
        self.env = {"PATH": PATH}
        # The processes that belong to the node itself: daemons, by their PID on the node.
        self.daemons: set[int] = set()
        self._started: list[subprocess.Popen[Any]] = []
        self.netns = Netns("node")
        self.outside = Netns("outside")
        try:
            self._connect()
            self._boot()
        except BaseException:
            self.stop()
            raise

    def _connect(self) -> None:
        connect(self.netns, self.outside, name=UPLINK)
        for version in (4, 6):
            name = "net/ipv4/ip_forward" if version == 4 else "net/ipv6/conf/all/forwarding"
            self.netns.set_sysctl(name, 0)
            beyond = matching(version, OUTSIDE_ADDRESSES)
            self.netns.ip(f"-{version}", "route", "add", "default", "via", beyond)
        for network in CONTAINER_NETWORKS:
            version = ipaddress.ip_network(network).version
            self.outside.ip("route", "add", network, "via", matching(version, NODE_ADDRESSES))

    def _boot(self) -> None:
        init = Path(__file__).with_name("node_init.py")
        self._init = self.netns.popen(
            [
                *("unshare", "--mount", "--pid", "--ipc", "--fork", "--kill-child"),
                *(sys.executable, "-I", init, self.base),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._init.stdout is not None
        if self._init.stdout.readline() != "ready\n":
            _, problem = self._init.communicate(timeout=10)
            raise CommandError(f"the node does not start:\n{problem}")
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children")
        self.pid = int(children.read_text())
        self.namespaces = {
            os.readlink(f"/proc/{self.pid}/ns/{kind}") for kind in ("mnt", "pid", "ipc", "net")
        } | {f"net:[{self.outside.inode}]"}

    def __repr__(self) -> str:
        return f"<Node {self.tag}>"

    def stop(self) -> None:
        """End everything on the node and take it away; again is no error."""
        init = getattr(self, "_init", None)
        if init is not None and init.poll() is None:
            assert init.stdin is not None
            init.stdin.close()
            try:
                init.wait(10)
            except subprocess.TimeoutExpired:
                init.kill()
                init.wait()
        for child in self._started:
            stop(child)
        self.netns.close()
        self.outside.close()
        last_seen(lambda: remove_cgroups(self.tag), timeout=5)
        shutil.rmtree(self.base, ignore_errors=True)

    # -- doing things on the node -------------------------------------------------------------

    def path(self, path: str) -> Path:
        """A path on the node, as the test process can open it."""
        return Path(f"/proc/{self.pid}/root", path.lstrip("/"))

    def _enter(self, argv: Sequence[str]) -> list[str]:
        options = ("--mount", "--pid", "--ipc", "--net")
        return ["nsenter", f"--target={self.pid}", *options, "--", *argv]

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the node and wait for it."""
        done = subprocess.run(
            self._enter(argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**self.env, **(env or {})},
        )
        if check and done.returncode != 0:
            raise CommandError(
                f"{' '.join(argv)}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def popen(self, argv: Sequence[str], **kwargs: Any) -> subprocess.Popen[Any]:
        """Start a command on the node; it is ended with the node at the latest."""
        kwargs = {"stdin": subprocess.DEVNULL, "env": self.env, **kwargs}
        child: subprocess.Popen[Any] = subprocess.Popen(self._enter(argv), **kwargs)
        self._started.append(child)
        return child

    def processes(self) -> dict[int, str]:
        """PID on the node -> command line, of everything but init, daemons and zombies."""
        found = {}
        for entry in self.path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) in {1, *self.daemons}:
                continue
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue  # gone in the meantime
            if command:
                found[int(entry.name)] = command.replace(b"\0", b" ").decode().strip()
        return found

    # -- what a container leaves --------------------------------------------------------------

    def traces(self, network: Network, *container_ids: str) -> dict[str, list[str]]:
        """What the node holds of any container of a network, by kind; without empty kinds."""
        found = {
            "link": sorted(
                name
                for name, link in links(self.netns).items()
                # Bridges stay: that is the reference's behaviour.
                if name not in {"lo", UPLINK} and kind(link) != "bridge"
            ),
            "lease": self.leases(network),
            "rule": self._rules(network, container_ids),
            "flow": self._flows(network),
            "file": self._files(container_ids),
            "netns": self._named_namespaces(),
            "process": [f"{pid} {command}" for pid, command in self.processes().items()],
        }
        return {kind: things for kind, things in found.items() if things}

    def nothing_left(self, network: Network, *container_ids: str, but: Sequence[str] = ()) -> None:
        """Assert that nothing is left of any container; `but` names kinds not to look at."""

        def look() -> dict[str, list[str]]:
            seen = self.traces(network, *container_ids)
            return {kind: things for kind, things in seen.items() if kind not in but}

        # A runtime's helpers (conmon, shims) end a moment after the command that stops a container.
        left = last_seen(look, wanted=lambda seen: not seen)
        assert not left, f"left behind: {json.dumps(left, indent=1)}"

    def leases(self, network: Network) -> list[str]:
        """The addresses reserved by host-local."""
        directory = self.path(f"{network.data_dir}/{network.name}")
        names = [entry.name for entry in directory.iterdir()] if directory.is_dir() else []
        return sorted(name for name in names if _is_address(name))

    def _files(self, container_ids: Sequence[str]) -> list[str]:
        """libcni's cached results, kept rules, and files of plugins named after a container."""
        state = [self.path("/var/lib/cni"), *self.path("/run").glob("cni*")]
        files = [file for top in state for file in top.rglob("*") if not file.is_dir()]
        return sorted(
            str(file.relative_to(self.path("/")))
            for file in files
            if file.parent.name in ("results", "intent")
            or any(one in file.name for one in container_ids)
        )

    def _flows(self, network: Network) -> list[str]:
        """UDP flows that still lead from a published port to an address of the network."""
        listed = [
            self.netns.exec(
                ["conntrack", "-L", "-f", family, "-p", "udp", "--dst-nat"], check=False
            ).stdout
            for family in ("ipv4", "ipv6")
        ]
        lines = [line for text in listed for line in text.splitlines()]
        return [line for line in lines if any(f"={one}" in line for one in _starts(network))]

    def _rules(self, network: Network, container_ids: Sequence[str]) -> list[str]:
        """Rules, chains and elements that are about a container or its addresses."""
        # The reference names its iptables chains by a hash, and shortens ids in comments.
        about = re.compile(
            "|".join(
                [r"CNI-[0-9a-f]{16}", "CNI-[DS]N-", *map(re.escape, _starts(network))]
                + [re.escape(one[:64]) for one in container_ids]
            )
        )
        texts = [json.dumps(thing) for thing in nft(self.netns)]
        # Where iptables is not built on nft, only it knows.
        texts += [*iptables_save(self.netns, 4), *iptables_save(self.netns, 6)]
        return [text for text in texts if about.search(text)]

    def _named_namespaces(self) -> list[str]:
        """Namespaces kept alive by a mount on the node."""
        mounts = self.path("/proc/1/mountinfo").read_text().splitlines()
        return [line.split()[4] for line in mounts if " - nsfs " in line]


class _Mirror(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6  # and IPv4
    daemon_threads = True

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            address = self.client_address[0].removeprefix("::ffff:")
            self.wfile.write(f"{address}\n".encode())


@contextmanager
def mirror(ns: Netns) -> Iterator[int]:
    """A TCP server that tells clients the address it sees them with, and closes; its port."""
    with ns.run(_Mirror, ("::", 0), _Mirror.Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def _starts(network: Network) -> list[str]:
    """What the addresses of a network begin with."""
    starts = [subnet.rpartition("/")[0].rstrip("0") for subnet in network.family.subnets]
    return [re.sub("::$", ":", start) for start in starts]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def cgroups(tag: str) -> list[Path]:
    """The control groups of a node's containers (v1 and v2), innermost first."""
    roots = [*CGROUPS.glob(tag), *CGROUPS.glob(f"*/{tag}")]
    return [Path(found) for root in roots for found, _, _ in os.walk(root, topdown=False)]


def remove_cgroups(tag: str) -> bool:
    """Remove them; false as long as the kernel is still ending the processes in them."""
    try:
        for directory in cgroups(tag):
            directory.rmdir()
    except OSError:
        return False
    return True


def remove_stale_nodes() -> None:
    """Remove what is left of the nodes of test runs that were killed: files and control groups."""
    places = [Path(tempfile.gettempdir()), CGROUPS, *CGROUPS.glob("*")]
    for entry in {found for place in places for found in place.glob(f"{PREFIX}*-*")}:
        pid = entry.name.removeprefix(PREFIX).partition("-")[0]
        if not Path("/proc", pid).exists():
            remove_cgroups(entry.name)
            shutil.rmtree(Path(tempfile.gettempdir(), entry.name), ignore_errors=True)


def processes_in(namespaces: Collection[str]) -> list[str]:
    """The processes of the machine that are in one of these namespaces ("net:[…]")."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        for which in ("mnt", "pid", "ipc", "net"):
            try:
                namespace = os.readlink(process / "ns" / which)
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue  # gone in the meantime
            if namespace in namespaces:
                found.append(f"process {process.name} in {namespace}: {command}")
    return found


def left_of(node: Node) -> list[str]:
    """What there is of a node on the machine; nothing when it has been stopped."""
    left = [f"file {node.base}"] if node.base.exists() else []
    left += [f"cgroup {directory}" for directory in cgroups(node.tag)]
    if node.tag in Path("/proc/self/mountinfo").read_text():
        left.append("a mount")
    return left + processes_in(node.namespaces)
