"""The site: the repository's pages as HTML, with search, into DIR (dist/site).

    .cache/env-docs/bin/python tools/site/build.py [DIR]

There is no second text: README.md, docs/, examples/ … are copied with their places, so that links
between them stay as they are, and what pages link to is copied along. mkdocs then makes HTML of the
copy, and ends with an error if a link or an anchor leads nowhere.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path, PurePath

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
_LINK = re.compile(r"(?<!\\)\]\(([^)#\s:]+)(?:#[^)\s]*)?\)|(?:src|srcset)=\"([^\":]+)\"")
# Sections of the site, and which pages they have: a page belongs to the first pattern that fits it.
SECTIONS = (
    ("Start", ("README.md", "docs/README.md", "examples/README.md", "docs/configuration.md")),
    ("How to", ("docs/howto/*.md", "docs/cluster-*.md", "docs/server.md", "docs/windows.md")),
    ("Command line", ("docs/cli.md", "docs/observability.md")),
    ("Plugins", ("docs/plugins/*.md",)),
    (
        "Reference",
        ("docs/reference.md", "docs/compatibility.md", "docs/security.md", "SECURITY.md"),
    ),
    ("Performance", ("docs/performance.md", "docs/scale.md", "docs/self-contained.md")),
    ("Develop", ("CONTRIBUTING.md", "docs/design.md", "docs/writing-a-plugin.md", "docs/*.md")),
    ("Specification", ("docs/spec/INDEX.md", "docs/spec/*.md")),
    ("Changelog", ("*.md",)),
)
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def sources(root: Path) -> list[Path]:
    """The pages, and every file of the repository that one of them links to."""
    pages = [
        path
        for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md")
        for path in sorted(root.glob(pattern))
    ]
    found = set(pages)
    for page in pages:
        for words in _LINK.findall(_FENCE.sub("", page.read_text())):
            target = (page.parent / "".join(words)).resolve()
            if target.is_dir():
                found.update(each for each in target.rglob("*") if each.is_file())
            elif target.is_relative_to(root) and target.is_file():
                found.add(target)
    return sorted(each for each in found if "__pycache__" not in each.parts)


def navigation(pages: list[str]) -> list[dict[str, list[str]]]:
    """The sections with their pages, in the form of mkdocs. Each page is in one of them."""
    left = list(pages)
    made = []
    for title, patterns in SECTIONS:
        inside = []
        for pattern in patterns:
            fitting = [each for each in left if _fits(each, pattern)]
            inside += fitting
            left = [each for each in left if each not in fitting]
        if inside:
            made.append({title: inside})
    assert not left, left
    return made


def _fits(page: str, pattern: str) -> bool:
    """Does the whole path fit? PurePath.match looks at the end of a path."""
    return PurePath(page).match(pattern) and page.count("/") == pattern.count("/")


def stage(root: Path, target: Path) -> None:
    """Copy the sources, with their places, below `target`."""
    for path in sources(root):
        copy = target / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def build(root: Path, output: Path) -> int:
    """Build the site of the repository at `root`: the exit code of mkdocs."""
    with tempfile.TemporaryDirectory() as scratch:
        pages = Path(scratch, "pages")
        stage(root, pages)
        shutil.copyfile(HERE / "site.css", pages / "site.css")
        config = Path(scratch, "mkdocs.yml")
        names = sorted(str(each.relative_to(pages)) for each in pages.rglob("*.md"))
        nav = json.dumps(navigation(names))  # JSON is YAML
        config.write_text(f"{(HERE / 'mkdocs.yml').read_text()}nav: {nav}\n")
        shutil.copyfile(HERE / "hooks.py", Path(scratch, "hooks.py"))
        mkdocs = [sys.executable, "-m", "mkdocs", "build", "--strict", "--clean"]
        command = [*mkdocs, "--config-file", str(config), "--site-dir", str(output)]
        env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # advertisement on stderr
        return subprocess.run(command, check=False, env=env).returncode


def main(arguments: list[str]) -> int:
    """Build the site into the directory that is named, or into dist/site: the exit code."""
    output = Path(arguments[0] if arguments else ROOT / "dist/site").resolve()
    code = build(ROOT, output)
    if not code:
        print(f"site: {output}: {len(list(output.rglob('*.html')))} pages")
        print(f"to read it: python3 -m http.server --bind 127.0.0.1 --directory {output}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
