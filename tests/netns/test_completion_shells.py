"""Tab in bash, zsh and fish themselves, on a terminal, with the script of `cni completion`."""

from __future__ import annotations

import os
import pty
import select
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.harness import Netns
from tests.harness.command_line import Node
from tests.harness.netns import PATH

CID = "5" * 64
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}
# What is typed before Tab -> the line that stands there then.
COMPLETED = {
    "cni insp": "cni inspect ",
    "cni network cr": "cni network create ",
    "cni graph -o s": "cni graph -o svg ",
    "cni del --for": "cni del --force ",
    "cni status sh": "cni status shop ",
    "cni inspect 55": f"cni inspect {CID} ",
    "cni inspect store/w": "cni inspect store/web-0 ",
    "cni del shop --id 5": f"cni del shop --id {CID} ",
    "cni del shop --id=5": f"cni del shop --id={CID} ",
    "cni gc shop --keep 5": f"cni gc shop --keep {CID}/eth0 ",
    "cni ports 80": "cni ports 8080/tcp ",
    "cni ports 5": "cni ports 53/udp ",
    "cni ipam release shop 10.81.0.2": "cni ipam release shop 10.81.0.2 ",
    "cni ipam release shop fd00:8": "cni ipam release shop fd00:81::2 ",
    "cni ipam release shop fd00:81:": "cni ipam release shop fd00:81::2 ",
    "cni ls -o wi": "cni ls -o wide ",
}


@pytest.fixture
def node(host: Netns, bin_dir: Path, tmp_path: Path, netns: Callable[..., Netns]) -> Node:
    """One network, and one pod that is attached to it, with ports and addresses."""
    if not (bin_dir / "cni").exists():
        pytest.skip("these are not our plugins")
    node = Node(host, bin_dir, tmp_path)
    ranges = [[{"subnet": "10.81.0.0/24"}], [{"subnet": "fd00:81::/64"}]]
    ipam = {"type": "host-local", "dataDir": str(node.data_dir), "ranges": ranges}
    bridge = {"type": "bridge", "bridge": "br-shop", "isGateway": True, "ipam": ipam}
    conf = node.write({"cniVersion": "1.0.0", "name": "shop", "plugins": [bridge, PORTMAP]})
    mappings = [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "10.81.0.1"},
    ]
    node.start(conf, netns("c"), "store/web-0", cid=CID, capabilities={"portMappings": mappings})
    # Tab asks the usual cache, which is the machine's: the pods are known from the intents, too.
    return node


class Shell:
    """An interactive shell on a terminal, whose line a key writes into a file."""

    def __init__(self, node: Node, kind: Kind, directory: Path) -> None:
        self._fd, terminal = pty.openpty()
        self._line = directory / "line"
        env = {
            **node.env,
            "PATH": f"{node.bin_dir}:{PATH}",
            "TERM": "dumb",
            "COLUMNS": "500",
            "HOME": str(directory),
            "LC_ALL": "C.UTF-8",
            "LINE": str(self._line),
        }
        self.child = node.host.popen(
            ["setsid", "--ctty", *kind.argv],
            env=env,
            cwd="/",
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
        )
        os.close(terminal)
        self._shown = ""
        self.send(f"{kind.setup}; echo loa''ded\n")
        self._read_until(lambda: "loaded\r" in self._shown)

    def send(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def completed(self, typed: str) -> str:
        """The line after this was typed, and Tab."""
        self._line.unlink(missing_ok=True)
        self.send(f"{typed}\t{_SHOW}")
        self._read_until(self._line.exists)
        self.send(_FORGET)
        return self._line.read_text().removesuffix("\n")

    def _read_until(self, condition: Callable[[], bool]) -> None:
        """Read what the terminal shows, for as long as the slowest machine takes."""
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline, self._shown
            if select.select([self._fd], [], [], 0.02)[0]:
                self._shown += os.read(self._fd, 65536).decode()

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        os.close(self._fd)


class Kind(NamedTuple):
    """How a shell is started, and what makes it complete and tell its line."""

    argv: list[str]
    setup: str


_SHOW, _FORGET = "\x02", "\x15"  # ^B writes the line into $LINE, ^U forgets it
_INTO_FILE = ">$LINE.new; mv $LINE.new $LINE"
KINDS = {
    "bash": Kind(
        ["bash", "--norc", "--noprofile", "-i"],
        "bind 'set bell-style none'; source <(cni completion bash); "
        f"""bind -x '"\\C-b": printf %s "$READLINE_LINE" {_INTO_FILE}'""",
    ),
    "zsh": Kind(
        ["zsh", "-f", "-i"],
        "autoload -U compinit; compinit -u -D; source <(cni completion zsh); "
        f'show() {{ print -rn -- "$BUFFER" {_INTO_FILE} }}; zle -N show; bindkey "^B" show',
    ),
    "fish": Kind(
        ["fish", "--no-config", "--interactive"],
        f"cni completion fish | source; bind \\cb 'commandline {_INTO_FILE}'",
    ),
}


@pytest.fixture(params=KINDS)
def shell(node: Node, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shell]:
    name = str(request.param)
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed (package {name})")
    running = Shell(node, KINDS[name], tmp_path)
    yield running
    running.close()


def test_tab(shell: Shell) -> None:
    lines = {typed: shell.completed(typed) for typed in COMPLETED}
    assert lines == COMPLETED
