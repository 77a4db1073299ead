"""The manual pages (tools/release/man.py): made of the built file, and silent in groff."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cni.cli import COMMANDS
from cni.describe import catalogue, tables
from cni.describe.model import Plugin
from tests.harness.build import ROOT, build_dist
from tools.release import man

PLUGINS = [each for each in catalogue.plugins() if each.system == "linux"]


def shown(text: str) -> str:
    """What a reader sees, without hyphenation and line ends. Fails if groff warns."""
    page = f".hy 0\n.ad l\n{text}"
    command = ["groff", "-ww", "-man", "-Tutf8", "-P-cbou", "-rLL=400n", "-rHY=0"]
    done = subprocess.run(command, input=page.encode(), capture_output=True)
    assert not done.stderr, done.stderr.decode()
    return re.sub(r"\s+", " ", done.stdout.decode().replace("‐", "-").replace("−", "-"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, made without any package of this environment."""
    target = tmp_path_factory.mktemp("man")
    script = ROOT / "tools/release/man.py"
    command = ["/usr/bin/python3", "-I", str(script), str(build_dist()), str(target)]
    subprocess.run(command, check=True)
    return target


def test_each_plugin_has_a_page(written: Path) -> None:
    made = {str(each.relative_to(written)) for each in written.rglob("*") if each.is_file()}
    plugins = {f"man8/cni-{each.name}.8" for each in PLUGINS}
    assert made == {"man1/cni.1", "man5/cni-conflist.5"} | plugins


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda each: each.name)
def test_a_plugin_s_page_has_all_keys(written: Path, plugin: Plugin) -> None:
    text = shown((written / f"man8/cni-{plugin.name}.8").read_text())
    for path, key in catalogue.entries(plugin):
        if tables.is_row(path, key):
            assert path in text
            meaning = re.sub(r"\s+", " ", key.text.replace("`", ""))
            assert meaning[1:] in text  # which begins with a capital letter
    for key in plugin.args:
        assert f"CNI_ARGS.{key.name}" in text


def test_the_command_s_page_has_all_commands(written: Path) -> None:
    text = shown((written / "man1/cni.1").read_text())
    for name in COMMANDS:
        assert f"cni {name}" in text
    assert "cni ipam release" in text
    assert "EXIT STATUS" in text


def test_the_list_s_page(written: Path) -> None:
    text = shown((written / "man5/cni-conflist.5").read_text())
    for word in (
        "disableCheck",
        "capabilities",
        "priority",
        "nameservers",
        "cni-route-override(8)",
    ):
        assert word in text


@pytest.mark.parametrize(
    "text", [".so /etc/passwd", "'br", "a\\nb", "–→é", '"quoted"', "C:\\cni", "--flag", "it's"]
)
def test_any_text_means_itself(text: str) -> None:
    head = '.TH X 1 "" "" ""\n.SH NAME\nx\n'
    assert text in shown(f"{head}.PP\n{man.prose(text)}\n")
    assert text in shown(head + man.verbatim([text]))


def test_compressed_pages_are_the_same_each_time() -> None:
    made = man.compressed({"man1/x.1": "text"})
    assert made == man.compressed({"man1/x.1": "text"})
    assert gzip.decompress(made["man1/x.1.gz"]) == b"text"


def test_wrong_usage() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/release/man.py"), "one"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (2, "man.py FILE DIR [--compressed]\n")
