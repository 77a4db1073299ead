"""Tab in the shells themselves, with the script that `cni completion` prints.

bash does it on a terminal, as a person's; zsh and fish, where they are installed, at least take
their scripts.
"""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

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
    """An interactive bash on a terminal."""

    def __init__(self, node: Node, argv: list[str]) -> None:
        self._fd, terminal = pty.openpty()
        env = {
            **node.env,
            "PATH": f"{node.bin_dir}:{PATH}",
            "TERM": "dumb",
            "COLUMNS": "500",
            "PS1": "ready> ",
            "HOME": "/nosuch",
            "LC_ALL": "C.UTF-8",
        }
        self.child = node.host.popen(
            argv,
            env=env,
            cwd="/",
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)

    def send(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def until(self, form: str) -> str:
        """What the terminal shows until a pattern is there; a deadline that is long enough."""
        shown, deadline = "", time.monotonic() + 120
        while not re.search(form, shown):
            ready, _, _ = select.select([self._fd], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"waited for {form!r}: {shown!r}"
            shown += os.read(self._fd, 65536).decode()
        return shown

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        os.close(self._fd)


@pytest.fixture
def bash(node: Node) -> Iterator[Shell]:
    shell = Shell(node, ["bash", "--norc", "--noprofile", "-i"])
    shell.send("bind 'set bell-style none'; source <(cni completion bash); echo loa''ded\n")
    shell.until("loaded[^$]*ready> ")
    yield shell
    shell.close()


def test_tab(bash: Shell) -> None:
    wrong = {}
    for number, (typed, wanted) in enumerate(COMPLETED.items()):
        # A mark behind the cursor ends what Tab made; then the line is given up for another.
        bash.send(f"{typed}\t#")
        shown = bash.until("#")
        bash.send(f"\x15echo ne''xt{number}\n")
        bash.until(f"next{number}[^$]*ready> ")
        line = re.sub(r"[\x07\r]", "", shown).removesuffix("#")
        if line != wanted:
            wrong[typed] = line
    assert not wrong


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_a_script_that_a_shell_takes(node: Node, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed (package {shell})")
    script = node.host.exec([str(node.bin_dir / "cni"), "completion", shell], env=node.env).stdout
    load = "autoload -U compinit; compinit -u\n" if shell == "zsh" else ""
    done = node.host.exec([shell], stdin=f"{load}{script}\necho loaded\n", check=False)
    assert (done.returncode, done.stdout.split()[-1:], done.stderr) == (0, ["loaded"], "")
