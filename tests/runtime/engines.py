"""podman and containerd on the node, behind one small interface."""

from __future__ import annotations

import io
import itertools
import json
import subprocess
import tarfile
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.harness import CommandError, JoinedNetns
from tests.harness.wait import last_seen, wait_until

from .networks import CONF_DIR
from .plugins import BIN_DIR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .networks import Network
    from .node import Node

BUSYBOX = Path("/bin/busybox")
IMAGE = "localhost/busybox:latest"
IMAGE_ARCHIVE = "/var/tmp/busybox-oci.tar"
ULIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000")
WEB_PORT = 80


def web_server(name: str) -> list[str]:
    """What containers run: a web server that tells the container's name."""
    serve = f"mkdir /www; echo {name} > /www/name; echo ready; exec httpd -f -p {WEB_PORT} -h /www"
    return ["sh", "-c", serve]


def rootfs() -> bytes:
    """The root file system of a container, as a tar archive: busybox and its names."""
    applets = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for directory in ("bin", "dev", "etc", "proc", "root", "sys", "tmp"):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        binary = BUSYBOX.read_bytes()
        entry = tarfile.TarInfo("bin/busybox")
        entry.size, entry.mode = len(binary), 0o755
        tar.addfile(entry, io.BytesIO(binary))
        for applet in sorted(set(applets.stdout.split()) - {"busybox"}):
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    return buffer.getvalue()


def make_image(node: Node) -> None:
    """Import the image into podman's storage, and write it for containerd to IMAGE_ARCHIVE."""
    node.path("/var/tmp/rootfs.tar").write_bytes(rootfs())
    node.run(["podman", "import", "--quiet", "/var/tmp/rootfs.tar", IMAGE])
    archive = ["--format", "oci-archive", "--output", IMAGE_ARCHIVE]
    node.run(["podman", "save", "--quiet", *archive, IMAGE])


@dataclass
class Container:
    """A container that a runtime has started."""

    engine: Engine
    name: str
    # As plugins get it in CNI_CONTAINERID.
    id: str
    process: subprocess.Popen[Any] | None = None

    def exec(self, *argv: str, check: bool = True) -> str:
        """Run a command inside; what it prints."""
        return self.engine.exec(self, argv, check=check)

    def addresses(self, ifname: str = "eth0") -> list[str]:
        """`address/prefix` of an interface, without link-local ones."""
        shown = [line.split() for line in self.exec("ip", "-o", "addr").splitlines()]
        return [
            words[3]
            for words in shown
            if words[1] == ifname and words[2] in ("inet", "inet6") and "link" not in words[4:6]
        ]

    def netns(self) -> JoinedNetns:
        """Its network namespace, to put servers and clients into; to be closed before it ends."""
        pid = self.engine.main_pid(self)
        return JoinedNetns(self.engine.node.path(f"/proc/{pid}/ns/net"), self.name)

    def mac(self, ifname: str = "eth0") -> str:
        return self.exec("cat", f"/sys/class/net/{ifname}/address").strip()

    def reaches(self, *addresses: str) -> bool:
        """Do all addresses answer pings, within a few seconds?"""
        pings = " && ".join(f"ping -c 1 -W 2 {address}" for address in addresses)
        command = f"{pings} && echo all answered"
        return bool(
            last_seen(
                lambda: "all answered" in self.exec("sh", "-c", command, check=False), timeout=5
            )
        )

    def fetch(self, address: str, port: int = WEB_PORT) -> str:
        """What a container's web server says, asked over TCP; "" if it cannot be reached."""
        return self._ask(address, port, "GET /name HTTP/1.0\\r\\n\\r\\n").rpartition("\n")[2]

    def seen_as(self, address: str, port: int) -> str:
        """What a `mirror` says our address is; "" if it cannot be reached."""
        return self._ask(address, port, "")

    def _ask(self, address: str, port: int, question: str) -> str:
        # busybox's wget would be at hand, but the static one of Debian 12 crashes.
        command = f"printf '{question}' | timeout 3 nc {address} {port}"
        return last_seen(lambda: self.exec("sh", "-c", command, check=False), timeout=5).strip()


@dataclass
class Engine(ABC):
    """A container runtime on the node; keeps the containers it has started."""

    node: Node
    name: str = field(init=False)
    containers: dict[str, Container] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)

    def new_name(self) -> str:
        """A name no container had before."""
        return f"{self.name}-{next(self._numbers)}"

    def run(
        self, network: Network, *options: str, name: str | None = None, network_options: str = ""
    ) -> Container:
        """Start a container with a web server; it is on the network when this returns."""
        name = name or self.new_name()
        container = self.start(name, network, network_options, options)
        self.containers[name] = container
        return container

    def remove(self, container: Container) -> None:
        """Stop the container and remove it."""
        self.containers.pop(container.name, None)
        self.stop(container)

    def run_many(self, network: Network, count: int) -> list[Container]:
        """Start containers, all at the same time."""
        with ThreadPoolExecutor(count) as pool:
            started = [pool.submit(self.run, network) for _ in range(count)]
        return [one.result() for one in started]

    def remove_many(self, containers: Sequence[Container]) -> None:
        """Stop and remove containers, all at the same time."""
        with ThreadPoolExecutor(len(containers)) as pool:
            list(pool.map(self.remove, containers))

    @abstractmethod
    def start(
        self, name: str, network: Network, network_options: str, options: Sequence[str]
    ) -> Container:
        """Start the container and wait until the runtime has done with its network."""

    @abstractmethod
    def stop(self, container: Container) -> None:
        """Stop the container, and remove it and its network."""

    @abstractmethod
    def remove_dead(self, container: Container) -> None:
        """Remove a container whose main process has been killed."""

    @abstractmethod
    def exec(self, container: Container, argv: Sequence[str], *, check: bool) -> str:
        """Run a command inside a container."""

    @abstractmethod
    def main_pid(self, container: Container) -> int:
        """The PID of the container's main process, on the node."""

    @abstractmethod
    def remove_all(self) -> None:
        """Remove what a test has left, by force."""


class Podman(Engine):
    """podman with its CNI backend, runc, and storage that copies (vfs)."""

    name = "podman"

    def __post_init__(self) -> None:
        super().__post_init__()
        containers = self.node.path("/etc/containers")
        containers.mkdir(exist_ok=True)
        (containers / "containers.conf").write_text(
            "[network]\n"
            'network_backend = "cni"\n'
            f'cni_plugin_dirs = ["{BIN_DIR}"]\n'
            "[engine]\n"
            'cgroup_manager = "cgroupfs"\n'
            'runtime = "runc"\n'
            'events_logger = "none"\n'
        )
        (containers / "storage.conf").write_text(
            "[storage]\n"
            'driver = "vfs"\n'
            'graphroot = "/var/lib/containers/storage"\n'
            'runroot = "/run/containers/storage"\n'
        )

    def podman(self, *args: str, check: bool = True) -> str:
        """A podman command; what it prints."""
        return self.node.run(["podman", *args], check=check).stdout.strip()

    def start(
        self, name: str, network: Network, network_options: str, options: Sequence[str]
    ) -> Container:
        attach = f"{network.name}:{network_options}" if network_options else network.name
        container_id = self.podman(
            *("run", "--detach", "--name", name, "--network", attach, *ULIMITS),
            *("--cgroup-parent", f"/{self.node.tag}", "--stop-signal", "KILL"),
            *("--cap-add", "NET_RAW", *options),  # for ping
            *(IMAGE, *web_server(name)),
        )
        return Container(self, name, container_id)

    def stop(self, container: Container) -> None:
        self.podman("stop", container.name)
        self.podman("rm", container.name)

    def remove_dead(self, container: Container) -> None:
        self.podman("rm", "--force", "--time", "0", container.name)

    def exec(self, container: Container, argv: Sequence[str], *, check: bool) -> str:
        return self.podman("exec", container.name, *argv, check=check)

    def inspect(self, container: Container) -> dict[str, Any]:
        """`podman inspect`."""
        return dict(json.loads(self.podman("inspect", container.name))[0])

    def main_pid(self, container: Container) -> int:
        return int(self.inspect(container)["State"]["Pid"])

    def remove_all(self) -> None:
        self.podman("rm", "--all", "--force", "--time", "0", check=False)
        self.containers.clear()


class Containerd(Engine):
    """containerd without its CRI plugin; containers are started by `ctr run --cni`.

    It is ctr itself that calls the plugins, and that removes the network when the container's main
    process has ended. It knows one network: the first file in /etc/cni/net.d.
    """

    name = "containerd"

    def __post_init__(self) -> None:
        super().__post_init__()
        config = self.node.path("/etc/containerd/config.toml")
        config.parent.mkdir(exist_ok=True)
        config.write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
        self.log = self.node.base / "containerd.log"
        with self.log.open("w") as log:
            self.daemon = self.node.popen(
                ["containerd", "--config", "/etc/containerd/config.toml"], stdout=log, stderr=log
            )
        wait_until(
            lambda: self.node.run(["ctr", "version"], check=False).returncode == 0,
            "containerd starts",
            process=self.daemon,
            tell=lambda: self.log.read_text()[-4000:],
        )
        self.node.daemons |= {
            pid for pid, line in self.node.processes().items() if line.startswith("containerd ")
        }
        self.ctr("image", "import", "--snapshotter", "native", IMAGE_ARCHIVE)

    def ctr(self, *args: str, check: bool = True) -> str:
        """A ctr command; what it prints."""
        return self.node.run(["ctr", *args], check=check).stdout.strip()

    def start(
        self, name: str, network: Network, network_options: str, options: Sequence[str]
    ) -> Container:
        assert not network_options, "ctr has no options for the network"
        first = min(self.node.path(CONF_DIR).glob("*.conflist"))
        assert first == self.node.path(network.file), f"ctr would take {first.name}"
        output = self.node.base / f"{name}.log"
        with output.open("w") as stream:
            process = self.node.popen(
                [
                    *("ctr", "run", "--cni", "--rm", "--snapshotter", "native", "--cgroup", ""),
                    *(*options, IMAGE, name, *web_server(name)),
                ],
                stdout=stream,
                stderr=stream,
            )
        wait_until(
            lambda: "ready" in output.read_text().splitlines(),
            f"ctr run {name}",
            process=process,
            tell=output.read_text,
        )
        return Container(self, name, f"default-{name}", process)

    def stop(self, container: Container) -> None:
        assert container.process is not None
        self.ctr("task", "kill", "--signal", "KILL", container.name)
        container.process.wait(30)

    def remove_dead(self, container: Container) -> None:
        assert container.process is not None
        container.process.wait(30)  # it notices by itself

    def exec(self, container: Container, argv: Sequence[str], *, check: bool) -> str:
        # On a busy machine ctr now and then loses what the command prints; then once more.
        command = ["sh", "-c", '"$@"; echo "exit status $?"', "sh", *argv]
        for _ in range(10):
            number = f"exec-{next(self._numbers)}"
            shown = self.ctr("task", "exec", "--exec-id", number, container.name, *command)
            output, end, status = shown.rpartition("exit status ")
            if not end:
                continue
            if check and status != "0":
                raise CommandError(f"{' '.join(argv)} in {container.name}: {shown}")
            return output.strip()
        raise CommandError(f"{' '.join(argv)} in {container.name}: ctr shows no output")

    def main_pid(self, container: Container) -> int:
        tasks = [line.split() for line in self.ctr("task", "ls").splitlines()]
        return next(int(pid) for name, pid, *_ in tasks if name == container.name)

    def remove_all(self) -> None:
        for name in self.ctr("task", "ls", "--quiet", check=False).split():
            self.ctr("task", "kill", "--signal", "KILL", name, check=False)
        for container in self.containers.values():
            if container.process is not None:
                container.process.wait(30)
        wait_until(self._delete_all, "all containers are deleted", tell=self._names)
        self.containers.clear()

    def _delete_all(self) -> bool:
        for name in self._names():
            self.ctr("task", "delete", "--force", name, check=False)
            self.ctr("container", "delete", name, check=False)
        return not self._names()

    def _names(self) -> list[str]:
        return self.ctr("container", "ls", "--quiet", check=False).split()
