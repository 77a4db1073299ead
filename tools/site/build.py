"""The site: the repository's pages as HTML, with search, into DIR (dist/site).

    .cache/env-docs/bin/python tools/site/build.py [DIR]

There is no second text: README.md, docs/, examples/ … are copied with their places, so that links
between them stay as they are, and what pages link to is copied along. mkdocs then makes HTML of the
copy, and ends with an error if a link or an anchor leads nowhere.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
_LINK = re.compile(r"(?<!\\)\]\(([^)#\s:]+)(?:#[^)\s]*)?\)|(?:src|srcset)=\"([^\":]+)\"")
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


def stage(root: Path, target: Path) -> None:
    """Copy the sources, with their places, below `target`."""
    for path in sources(root):
        copy = target / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def main(arguments: list[str]) -> int:
    """Build the site: the exit code of mkdocs."""
    output = Path(arguments[0] if arguments else ROOT / "dist/site").resolve()
    with tempfile.TemporaryDirectory() as scratch:
        pages = Path(scratch, "pages")
        stage(ROOT, pages)
        config = Path(scratch, "mkdocs.yml")
        shutil.copyfile(HERE / "mkdocs.yml", config)
        shutil.copyfile(HERE / "hooks.py", Path(scratch, "hooks.py"))
        mkdocs = [sys.executable, "-m", "mkdocs", "build", "--strict", "--clean"]
        command = [*mkdocs, "--config-file", str(config), "--site-dir", str(output)]
        env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # advertisement on stderr
        code = subprocess.run(command, check=False, env=env).returncode
    if not code:
        print(f"site: {output}: {len(list(output.rglob('*.html')))} pages")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
