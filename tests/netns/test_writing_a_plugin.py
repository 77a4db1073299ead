"""docs/writing-a-plugin.md is true: what it quotes is in the files, and what it shows works."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from cni.artifact import is_stub
from tests.harness import Netns, Runtime, link, unchanged
from tests.harness.build import ROOT, copy_installation

if TYPE_CHECKING:
    from pathlib import Path

PAGE = (ROOT / "docs" / "writing-a-plugin.md").read_text()
# (file that is quoted, or a name; code)
BLOCKS = re.findall(r"^```python (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
LABEL = ROOT / "examples/label/label"
ENTRY = '    "label": Plugin("cni.plugins.label", "gives the interface an alias"),\n'


def blocks(name: str) -> list[str]:
    return [code for where, code in BLOCKS if where == name]


def test_every_block_says_what_it_is() -> None:
    assert {where for where, _ in BLOCKS} == {
        "cni/plugins/sample.py",
        "cni/dispatch.py",
        "examples/label/label",
        "tests/netns/test_writing_a_plugin.py",
    }
    assert len(BLOCKS) == PAGE.count("```python")


@pytest.mark.parametrize("where", sorted({where for where, _ in BLOCKS}))
def test_quotations(where: str) -> None:
    text = (ROOT / where).read_text()
    for code in blocks(where):
        assert code in text, f"not in {where} (any more):\n{code}"


def test_the_sample_is_quoted_as_a_whole() -> None:
    text = (ROOT / "cni/plugins/sample.py").read_text()
    assert "\n\n\n".join(blocks("cni/plugins/sample.py")).replace("\n\n\n\n", "\n\n\n") == text


def test_the_example_is_quoted_as_a_whole() -> None:
    assert blocks("examples/label/label") == [LABEL.read_text()]


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
    for path in re.findall(r"`((?:cni|tests)/[a-z_/]+\.py)`", PAGE):
        assert (ROOT / path).exists(), path


# -- the plugin `label`, which the page quotes the test of ----------------------------------------


@pytest.fixture(scope="module", params=["in the file", "beside the installed file"])
def label_dir(
    request: pytest.FixtureRequest, module_bin_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A directory with `label`, shipped in one of the two ways."""
    scratch = tmp_path_factory.mktemp("label")
    target = scratch / "bin"
    if request.param == "in the file":
        run(build_with_label(scratch / "source"), "install", "--bin-dir", target)
        assert is_stub(target / "label")
    else:
        copy_installation(module_bin_dir, target)
        program = target / "label"
        shutil.copy(LABEL, program)
    return target


@pytest.fixture
def runtime(label_dir: Path, host: Netns) -> Runtime:
    return Runtime(label_dir, host)


def run(*command: Any) -> str:
    done = subprocess.run([str(one) for one in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_with_label(target: Path) -> Path:
    """Build with the plugin as the page says: a module, and a line in the table."""
    for name in ("cni", "launcher", "tools"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", target)
    (target / ".cache").symlink_to(ROOT / ".cache")
    _, _, body = LABEL.read_text().partition("from cni import dispatch\n")
    body, _, _ = body.partition('if __name__ == "__main__":')
    module = f"from __future__ import annotations\n\n{body}".replace("from cni.", "from ..")
    (target / "cni/plugins/label.py").write_text(module)
    table = target / "cni/dispatch.py"
    text = table.read_text()
    first = '    "loopback": Plugin(\n'
    assert first in text
    table.write_text(text.replace(first, ENTRY + first))
    run(sys.executable, target / "tools/build.py")
    return target / "dist" / "cni"


def test_label(runtime: Runtime, container: Netns) -> None:
    container.ip("link", "add", "eth0", "type", "veth", "peer", "name", "peer0")
    conf = {"cniVersion": "1.1.0", "name": "net", "label": "blue"}
    made = {"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": container.path}]}

    assert runtime.add("label", conf, container, prev_result=made).result == made
    assert link(container, "eth0")["ifalias"] == "blue"
    runtime.check("label", conf, container, prev_result=made).succeeded()
    container.ip("link", "set", "eth0", "alias", "red")
    runtime.check("label", conf, container, prev_result=made).failed(999, 'have "red"')
    for _ in range(2):
        runtime.delete("label", conf, container).succeeded()
        assert "ifalias" not in link(container, "eth0")
    runtime.delete("label", conf, "/run/netns/gone").succeeded()

    with unchanged(runtime.host, container):
        runtime.add("label", {**conf, "label": ""}, container).failed(999, "invalid label")
        runtime.add("label", conf, container).failed(999, "must be a chained plugin")


def test_label_is_served_like_the_others(runtime: Runtime, container: Netns) -> None:
    assert "1.1.0" in runtime.version("label").result["supportedVersions"]
    runtime.call("ADD", "label", "{", container).failed(6, "error unmarshall network config")
    conf = {"cniVersion": "1.1.0", "name": "net", "label": "blue"}
    made = {"cniVersion": "1.1.0", "interfaces": [{"name": "eth0"}]}
    reply = runtime.add("label", conf, container, prev_result=made)
    reply.failed(999, "cannot label eth0: Link not found")
    runtime.status("label", conf).succeeded()
