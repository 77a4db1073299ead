"""The site (tools/site): made of the repository's pages, checked, and without other hosts."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".cache/env-docs/bin/python"
# Builds the site of a directory: argv is the root and the output.
BUILD = """
import sys
from pathlib import Path
sys.path.insert(0, "tools/site")
import build
sys.exit(build.build(Path(sys.argv[1]), Path(sys.argv[2])))
"""


def build(root: Path, output: Path) -> subprocess.CompletedProcess[str]:
    if not PYTHON.exists():
        pytest.skip("needs mkdocs: `make .cache/env-docs/.stamp`, as `make test-release` does")
    command = [str(PYTHON), "-c", BUILD, str(root), str(output)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("site")
    done = build(ROOT, output)
    assert done.returncode == 0, done.stdout + done.stderr
    return output


def test_every_page_is_there(site: Path) -> None:
    """README.md becomes index.html of its folder, as a web server looks for it."""
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "examples/README.md"]:
        name = page.relative_to(ROOT).with_suffix(".html")
        assert (site / name.with_name(name.name.replace("README", "index"))).exists(), page


def test_nothing_is_loaded_from_other_hosts(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text()
        loaded = re.findall(r'<(?:script|img|source)[^>]* src="(https?:[^"]*)', text)
        loaded += re.findall(r'<link[^>]* rel="stylesheet"[^>]* href="(https?:[^"]*)', text)
        assert loaded == []


def test_the_search_knows_symptoms(site: Path) -> None:
    index = json.loads((site / "search/search_index.json").read_text())
    found = {
        each["location"].partition("#")[0]
        for each in index["docs"]
        if "no IP addresses available in range set" in each["text"]
    }
    assert "docs/howto/troubleshooting.html" in found


def test_blocks_and_lists_are_as_on_a_forge(site: Path) -> None:
    """A quotation has the name of its file, and a list directly below a paragraph is one."""
    text = (site / "docs/writing-a-plugin.html").read_text()
    assert "```" not in text
    assert "cni/plugins/sample.py" in re.findall(r'<span class="filename">([^<]*)<', text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[x](nosuch.txt)", "nosuch.txt"),
        ("[x](#nosuch)", "#nosuch"),
        ("[x](docs)", "docs"),
        ("[x](#there)", ""),
    ],
)
def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path, text: str, said: str) -> None:
    root = tmp_path / "root"
    (root / "docs").mkdir(parents=True)
    (root / "README.md").write_text(f"# Title\n\n## There\n\n{text}\n")
    done = build(root, tmp_path / "site")
    assert (done.returncode != 0) is bool(said), done.stderr
    assert said in done.stderr
