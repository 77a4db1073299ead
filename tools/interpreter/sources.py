"""The sources of the embedded interpreter: where they come from, and their hashes.

Debian's source packages come through apt, with the machine's own configuration; msgspec comes
through pip. Both check signatures or hashes of their own; here each file is compared with
pins.toml, too. What has been fetched stays in .cache/interpreter/sources, where files may also be
put by hand.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# Resolved: a build that is kept names itself by path, and a release builds below a link.
CACHE = (ROOT / ".cache").resolve() / "interpreter"
PINS = tomllib.loads((HERE / "pins.toml").read_text())

# Debian's names
_PACKAGES = {"python": "python3.11", "zlib": "zlib", "musl": "musl", "openssl": "openssl"}
_RELEASE = "bookworm"
_ADVICE = (
    "if Debian has replaced it by a newer version, `make lock` pins that one; or put the files of "
    "pins.toml into {directory} by hand (docs/releasing.md, When Debian has replaced a package)"
)


class BuildError(Exception):
    """The build cannot go on; the text says why and what to do."""


def fetch(name: str) -> list[Path]:
    """The files of source `name`, a table of pins.toml. Raises BuildError."""
    directory = CACHE / "sources"
    wanted = {file["name"]: file["sha256"] for file in PINS[name]["files"]}
    if not all((directory / file).exists() for file in wanted):
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            _fetch(name, PINS[name]["version"], Path(scratch))
            for file in wanted:
                if not Path(scratch, file).exists():
                    raise BuildError(f"{name}: the download has no {file}: see pins.toml")
                shutil.move(Path(scratch, file), directory / file)
    for file, expected in wanted.items():
        # Each time, since files may be put there by hand.
        if hashlib.sha256((directory / file).read_bytes()).hexdigest() != expected:
            raise BuildError(f"{directory / file} has not the hash of pins.toml: remove the file")
    return [directory / file for file in wanted]


def _fetch(name: str, version: str, target: Path) -> None:
    """Fetch the pinned version into the directory `target`. Raises BuildError with advice."""
    try:
        if name in _PACKAGES:
            _fetch_debian(_PACKAGES[name], version, target)
        else:
            _fetch_sdist(name, version, target)
    except BuildError as error:
        advice = _ADVICE.format(directory=CACHE / "sources")
        raise BuildError(
            f"{name} {version} of pins.toml cannot be had: {error}\n{advice}"
        ) from None


def unpack(archive: Path, target: Path) -> None:
    """Unpack what is below the one directory of `archive` into the new directory `target`."""
    target.mkdir()
    command: list[str | Path] = ["tar", "--extract", "--file", archive, "--directory", target]
    run([*command, "--strip-components=1", "--no-same-owner"])


def run(command: list[str | Path], log: Path | None = None, **options: object) -> None:
    """Run a program; its output goes to the end of `log`. Raises BuildError with its last words."""
    text = [str(word) for word in command]
    before = os.times()
    done = subprocess.run(  # type: ignore[call-overload]
        text, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    if log is not None:
        with log.open("a") as file:
            file.write(f"$ {' '.join(text)}\n{done.stdout}# {spent(before)}\n")
    if done.returncode:
        words = "\n".join(line[:300] for line in done.stdout.strip().splitlines()[-12:])
        more = f" (all of it: {log})" if log else ""
        raise BuildError(f"{text[0]} ended with {done.returncode}{more}:\n{words}")


def spent(before: os.times_result) -> str:
    """How long it took since `before`, and the processor's time of the programs that were run."""
    now = os.times()
    user = now.children_user - before.children_user
    system = now.children_system - before.children_system
    return f"{now.elapsed - before.elapsed:.0f} s, processor {user + system:.0f} s"


def _fetch_debian(package: str, version: str, target: Path) -> None:
    """Have apt fetch a source package, from where this machine gets its binary packages.

    The newest one, if `version` is "".
    """
    (target / "lists/partial").mkdir(parents=True)
    (target / "sources.list").write_text("".join(_source_lines()))
    options = [
        f"Dir::Etc::SourceList={target}/sources.list",
        "Dir::Etc::SourceParts=/dev/null",
        f"Dir::State::Lists={target}/lists",
        f"Dir::Cache={target}",
        "APT::Sandbox::User=root",
    ]
    flags: list[str | Path] = [word for option in options for word in ("-o", option)]
    run(["apt-get", "--quiet=2", *flags, "update"])
    wanted = f"{package}={version}" if version else package
    command: list[str | Path] = ["apt-get", "--quiet=2", *flags, "source", "--download-only"]
    run([*command, "--only-source", wanted], cwd=target)


def _source_lines() -> list[str]:
    """deb-src lines for the release, made from apt's own list of what this machine uses."""
    query = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)"]
    query.append("Created-By: Packages")
    by_hand = f"put the files of pins.toml into {CACHE}/sources"
    try:
        done = subprocess.run(query, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"apt does not answer: {error}; {by_hand}") from error
    lines = {line for line in done.stdout.splitlines() if line.split()[-1:] == [_RELEASE]}
    if not lines:
        raise BuildError(f"this machine has no packages of Debian's {_RELEASE}: {by_hand}")
    return [f"deb-src {line} main\n" for line in sorted(lines)]


def _fetch_sdist(name: str, version: str, target: Path) -> None:
    (pin,) = PINS[name]["files"]
    requirement = target / "requirement"
    requirement.write_text(f"{name}=={version} --hash=sha256:{pin['sha256']}\n")
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
    pip += ["--quiet", "--no-deps", "--no-binary", name, "--require-hashes", "--dest", target]
    run([*pip, "--requirement", requirement])


# --- newer versions ------------------------------------------------------------------------------

_LINES = re.compile(
    r"^\[(?P<name>\w+)\]\nversion = \"(?P<version>[^\"]*)\"(?P<comment>[^\n]*)\n"
    r"files = \[\n.*?^\]\n",
    re.MULTILINE | re.DOTALL,
)
_VERSION = re.compile(r"^Version: (.*)$", re.MULTILINE)


def lock() -> None:
    """Write pins.toml anew, with Debian's newest versions. Raises BuildError.

    The same files of each package as before, which are named by their endings.
    """
    text = (HERE / "pins.toml").read_text()
    (HERE / "pins.toml").write_text(_LINES.sub(_newest, text))


def _newest(match: re.Match[str]) -> str:
    """The table of pins.toml for the newest version."""
    name = match["name"]
    if name not in _PACKAGES:
        return match[0]  # msgspec's version is that of tools/bundle.lock
    with tempfile.TemporaryDirectory() as scratch:
        _fetch_debian(_PACKAGES[name], "", Path(scratch))
        (description,) = Path(scratch).glob("*.dsc")
        version = _VERSION.search(description.read_text())
        assert version is not None, description
        lines = []
        for pinned in PINS[name]["files"]:
            (file,) = Path(scratch).glob("*" + re.sub(r"^.*?\.(?=orig|debian)", "", pinned["name"]))
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            lines.append(f'    {{ name = "{file.name}", sha256 = "{digest}" }},\n')
    head = f'[{name}]\nversion = "{version[1]}"{match["comment"]}\n'
    return f"{head}files = [\n{''.join(lines)}]\n"


if __name__ == "__main__":
    try:
        lock()
    except BuildError as error:
        sys.exit(f"sources: {error}")
