"""What code and docs refer to exists: pages, their sections, files, targets of make, anchors.

Read are all text files of the repository. A reference to a page may be followed by a section, which
the page must have: by number (`docs/spec/common.md §6.2`), by its heading in quotation marks
(`docs/design.md, "Owners"`), or by a numbered step of a verb (`docs/spec/bridge.md, ADD step 5`).
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from cni.dispatch import TABLE, WINDOWS

ROOT = Path(__file__).parents[2]
ROOMS = ("cni", "deploy", "docs", "examples", "launcher", "tests", "tools")
SUFFIXES = ("c", "json", "lock", "md", "py", "service", "sh", "socket", "svg", "toml", "yaml")
# Files that a test writes; below cni/plugins stands the file that the reader writes.
MADE = ("build/", "dist/", "cni/plugins/label.py")

PAGE = re.compile(r"(?<![\w./-])(docs/[\w./-]+\.md)([^\n]*)")
SPEC_PAGE = re.compile(r"(?<![\w./-])([\w-]+\.md)((?:,? §[\d.]+\d|,? §\d)+)")
BARE_PAGE = re.compile(r"(?<![\w./-])([\w-]+\.md)\b")
NUMBER = re.compile(r"§(\d+(?:\.\d+)*)")
STEP = re.compile(r"([A-Z]+) step (\d+)")
PATH = re.compile(
    rf"(?<![\w./~<>*{{}}$-])((?:{'|'.join(ROOMS)})/[\w./-]+\.(?:{'|'.join(SUFFIXES)}))\b"
)
# In a page: also what is below cni/ (`netns/jobs.py`) or beside the page.
SHORT = re.compile(rf"`([\w.-]+(?:/[\w.-]+)+\.(?:{'|'.join(SUFFIXES)}))`")
FOLDER = re.compile(rf"`((?:{'|'.join(ROOMS)})/[\w./-]*)`")
LINK = re.compile(r"(?<!\\)\[[^\]]*\]\(([^)\s]+)\)")
TARGET = re.compile(r"(?:`|^ {4})make ([a-z]+(?:-[a-z]+)*)\b", re.MULTILINE)
ELSEWHERE = re.compile(r"\bissues?\s+#?\d+|\b(?:the|what|this|an)\s+issue\b", re.IGNORECASE)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


class Page(NamedTuple):
    text: str
    headings: tuple[str, ...]

    @property
    def anchors(self) -> set[str]:
        """As forges make them of headings: lower case, no punctuation, hyphens for spaces."""
        return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in self.headings}

    def has_number(self, number: str) -> bool:
        return any(re.match(rf"{re.escape(number)}\.?\s", each) for each in self.headings)

    def has_step(self, verb: str, step: str) -> bool:
        """Is there an item of that number in a section whose heading begins with the verb?"""
        sections = re.split(r"^#+ ", self.text, flags=re.MULTILINE)
        own = [each for each in sections if each.startswith(verb)]
        return any(re.search(rf"(?:^|\s){step}\. ", each) for each in own)


@cache
def page(path: Path) -> Page:
    text = path.read_text()
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return Page(text, tuple(each.replace("`", "").strip() for each in headings))


def files() -> list[Path]:
    """The repository's text files, without what building and testing leave behind."""
    found = [each for each in ROOT.iterdir() if each.is_file()]
    found += [ROOT / ".ci" / "run"]
    for room in ROOMS:
        found += [each for each in (ROOT / room).rglob("*") if each.is_file()]
    this = Path(__file__).resolve()  # names pages that do not exist
    # other workers write bytecode at the same time
    found = [each for each in found if each.parent.name != "__pycache__" and each != this]
    return sorted(filter(_is_text, found))


def _is_text(path: Path) -> bool:
    try:
        path.read_text()
    except UnicodeDecodeError:
        return False
    return True


def joined(text: str) -> str:
    """A reference may go over a line's end, in a comment too: paragraphs as one line each."""
    return re.sub(r"(?<!\n)\n[ \t]*(?:#+|//|\*|--)?[ \t]*(?=[\w§\"(`])", " ", text)


FILES = files()
PAGES = [each for each in FILES if each.suffix == ".md"]
PAGE_NAMES = {each.name for each in PAGES}
# Two names at most: a test of its own for each file would cost more than reading it.
FOLDERS = sorted({each.relative_to(ROOT).parent.parts[:2] for each in FILES})
PAGE_IDS = [str(each.relative_to(ROOT)) for each in PAGES]


def files_of(folder: tuple[str, ...]) -> list[Path]:
    return [each for each in FILES if each.relative_to(ROOT).parent.parts[:2] == folder]


def wrong_sections(name: str, where: Page, tail: str) -> list[str]:
    """Sections in what follows a page's name, up to the next name, that the page lacks."""
    tail = re.split(r"[\w/-]+\.(?:md|py)\b", tail)[0]
    wrong = []
    quoted = re.match(r'(?:, | \()("[^"]+"(?:(?:,| and) "[^"]+")*)', tail)
    if quoted:
        for each in re.findall(r'"([^"]+)"', quoted[1]):
            if not any(heading.startswith(each) for heading in where.headings):
                wrong.append(f'{name}, "{each}"')
    numbers = re.match(r"(?:,? (?:and )?§[\d.]*\d)+", tail)
    if numbers:
        wrong += [
            f"{name} §{each}" for each in NUMBER.findall(numbers[0]) if not where.has_number(each)
        ]
    step = re.match(rf"[,:]? {STEP.pattern}", tail)
    if step and not where.has_step(step[1], step[2]):
        wrong.append(f"{name}, {step[1]} step {step[2]}")
    return wrong


@pytest.mark.parametrize("folder", FOLDERS, ids="/".join)
def test_references(folder: tuple[str, ...]) -> None:
    wrong = {str(each): wrong_references(each) for each in files_of(folder)}
    assert {path: found for path, found in wrong.items() if found} == {}


def wrong_references(path: Path) -> list[str]:
    """Pages, sections and files that a file names and that do not exist."""
    text = joined(path.read_text())
    wrong = [
        each
        for each in PATH.findall(text)
        if not each.startswith(MADE) and not (ROOT / each).exists()
    ]
    wrong += [each for each in BARE_PAGE.findall(text) if each not in PAGE_NAMES]
    for found in PAGE.finditer(text):
        name, tail = found.groups()
        if (ROOT / name).exists():
            wrong += wrong_sections(name, page(ROOT / name), tail)
    return wrong


@pytest.mark.parametrize("path", PAGES, ids=PAGE_IDS)
def test_pages(path: Path) -> None:
    text = joined(path.read_text())
    places = (ROOT, ROOT / "cni", path.parent)
    wrong = [
        each
        for each in SHORT.findall(text)
        if not each.startswith(MADE) and not any((place / each).exists() for place in places)
    ]
    wrong += [each for each in FOLDER.findall(text) if not (ROOT / each).exists()]
    for name, numbers in SPEC_PAGE.findall(text):
        beside = path.parent / name
        wrong += wrong_sections(name, page(beside), numbers) if beside.exists() else [name]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    wrong += [f"make {each}" for each in TARGET.findall(path.read_text()) if each not in targets]
    assert not wrong


@pytest.mark.parametrize("path", PAGES, ids=PAGE_IDS)
def test_links(path: Path) -> None:
    wrong = []
    for link in LINK.findall(FENCE.sub("", path.read_text())):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in page(target).anchors):
            wrong.append(link)
    assert not wrong


@pytest.mark.parametrize("folder", FOLDERS, ids="/".join)
def test_speaks_of_the_project_alone(folder: tuple[str, ...]) -> None:
    """A text gives its reason itself: nobody can look up who once wanted something, and where."""
    wrong = {str(each): ELSEWHERE.findall(joined(each.read_text())) for each in files_of(folder)}
    assert {path: found for path, found in wrong.items() if found} == {}


@pytest.mark.parametrize("path", PAGES, ids=PAGE_IDS)
def test_plain_words(path: Path) -> None:
    """A stranger knows neither "us" nor a word that stands for anybody."""
    text = re.sub(r"^\|.*``?\"\"\".*$", "", path.read_text(), flags=re.MULTILINE)  # bad examples
    text = re.sub(r"`[^`\n]+`", "", FENCE.sub("", text))  # what programs say
    assert not re.findall(r"\b(?:us|our|ours|we|whoever|whatsoever)\b", text, re.IGNORECASE)


def test_every_plugin_has_its_pages() -> None:
    for folder in ("plugins", "spec"):
        names = {each.stem for each in (ROOT / "docs" / folder).glob("*.md")}
        assert {*TABLE, *WINDOWS} <= names


def test_the_house_has_all_rooms() -> None:
    """The table in docs/design.md names whatever stands directly in cni/."""
    text = (ROOT / "docs" / "design.md").read_text()
    rooms = {
        f"`cni/{each.name}/`" if each.is_dir() else f"`cni/{each.name}`"
        for each in (ROOT / "cni").iterdir()
        if each.name not in ("__init__.py", "_build.py", "__pycache__") and not _is_left(each)
    }
    assert sorted(each for each in rooms if each not in text) == []


def _is_left(path: Path) -> bool:
    """A folder of which a move to another has left the bytecode."""
    return path.is_dir() and {each.name for each in path.iterdir()} <= {"__pycache__"}


def test_every_page_is_in_an_index() -> None:
    """docs/README.md leads to each page, docs/spec/INDEX.md to each page beside it."""
    linked = {
        (each.parent / link.partition("#")[0]).resolve()
        for each in (ROOT / "docs" / "README.md", ROOT / "docs" / "spec" / "INDEX.md")
        for link in LINK.findall(each.read_text())
    }
    pages = {each.resolve() for each in (ROOT / "docs").rglob("*.md")}
    assert pages - {ROOT / "docs" / "README.md"} <= linked


def test_figures_of_the_readme() -> None:
    """Each figure of the README's comparison is, rounded, on a page about how it was measured."""
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| .*`make bench` \|$", text, re.MULTILINE)
    figures = {int(each) for row in rows for each in re.findall(r"\d+", row.partition(" | ")[2])}
    measured = "".join(
        (ROOT / "docs" / each).read_text() for each in ("performance.md", "plugins/dhcp.md")
    )
    known = {round(float(each)) for each in re.findall(r"\d+\.\d+|\d+", measured)}
    assert len(rows) == 3
    assert figures <= known


# --- that these tests find what they are for --------------------------------------------------


@pytest.mark.parametrize(
    ("tail", "wrong"),
    [
        (" §6.2), at most 128", []),
        (" §2, §6.", []),
        (" §77).", ["x §77"]),
        (" §2, §77.", ["x §77"]),
        (', "Names").', []),
        (', "Names" and "Pairs".', ['x, "Pairs"']),
        (' ("Pairs") says', ['x, "Pairs"']),
        (", ADD step 2)", []),
        (", ADD step 7)", ["x, ADD step 7"]),
        (" and docs/spec/other.md §77", []),
    ],
)
def test_wrong_sections(tail: str, wrong: list[str]) -> None:
    where = Page("## ADD sequence\n\n1. a\n2. b\n", ("2. Names", "Names", "6. Rest", "6.2 nft"))
    assert wrong_sections("x", where, tail) == wrong


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("what issue 6 names", True),
        ("see Issue #12", True),
        ("as the issue asks", True),
        ("what does tissue 6 do", False),
        ("they issue 2 requests", True),  # say "make"
        ("issues a certificate", False),
    ],
)
def test_elsewhere(text: str, matches: bool) -> None:
    assert bool(ELSEWHERE.search(text)) is matches


def test_joined() -> None:
    assert joined("see docs/spec/common.md\n    # §6, too") == "see docs/spec/common.md §6, too"
    assert joined("one\n\ntwo") == "one\n\ntwo"
