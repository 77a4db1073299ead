"""What is inside the released files: names, versions, licences, and the sources' hashes."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from .source import ReleaseError, Source

# SPDX identifiers. pyroute2 is under GPL-2.0-or-later, too, and used under Apache-2.0.
LICENCES = {
    "cni-plugins": "Apache-2.0",
    "click": "BSD-3-Clause",
    "jeepney": "MIT",
    "msgspec": "BSD-3-Clause",
    "pyroute2": "Apache-2.0",
    "python": "PSF-2.0",
    "zlib": "Zlib",
    "openssl": "Apache-2.0",
    "musl": "MIT",
}
# The programs of the image and their libraries; each package's copyright file is in the image.
DEBIAN = {
    "gcc-12-base": "GPL-3.0-or-later WITH GCC-exception-3.1",
    "iptables": "GPL-2.0-or-later",
    "libbsd0": "BSD-3-Clause",
    "libc6": "LGPL-2.1-or-later",
    "libedit2": "BSD-3-Clause",
    "libgcc-s1": "GPL-3.0-or-later WITH GCC-exception-3.1",
    "libgmp10": "LGPL-3.0-or-later OR GPL-2.0-or-later",
    "libip4tc2": "GPL-2.0-or-later",
    "libip6tc2": "GPL-2.0-or-later",
    "libjansson4": "MIT",
    "libmd0": "BSD-3-Clause",
    "libmnl0": "LGPL-2.1-or-later",
    "libnetfilter-conntrack3": "GPL-2.0-or-later",
    "libnfnetlink0": "GPL-2.0-only",
    "libnftables1": "GPL-2.0-only",
    "libnftnl11": "GPL-2.0-or-later",
    "libtinfo6": "X11",
    "libxtables12": "GPL-2.0-or-later",
    "netbase": "GPL-2.0-only",
    "nftables": "GPL-2.0-only",
}
# The texts that no wheel brings along, in tools/release/licences.
TEXTS = ("python", "zlib", "musl", "openssl")
HERE = Path(__file__).parent

_LOCKED = re.compile(
    r"^([\w.-]+)==(\S+) \\\n((?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE
)
_HASH = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True)
class Component:
    """A part of released files. `sources` are names and SHA-256 of the files it is made from."""

    name: str
    version: str
    purl: str
    sources: tuple[tuple[str, str], ...] = ()

    @property
    def licence(self) -> str:
        """The SPDX expression."""
        return LICENCES.get(self.name) or DEBIAN[self.name]


def own(source: Source) -> Component:
    """The project itself."""
    return Component("cni-plugins", source.version, f"pkg:generic/cni-plugins@{source.version}")


def bundled(root: Path) -> list[Component]:
    """The Python packages in every file, from tools/bundle.lock. Raises ReleaseError."""
    found = []
    for name, version, hashes in _LOCKED.findall((root / "tools/bundle.lock").read_text()):
        wheels = tuple((f"{name}-{version} (wheel)", each) for each in _HASH.findall(hashes))
        found.append(Component(name, version, f"pkg:pypi/{name}@{version}", wheels))
    check_licences(found)
    return found


def interpreter(root: Path) -> list[Component]:
    """What self-contained files have beside these: the sources of the interpreter."""
    pins = root / "tools/interpreter/pins.toml"
    found = []
    for name, pin in tomllib.loads(pins.read_text()).items():
        kind = "pypi" if name == "msgspec" else "deb/debian"
        purl = f"pkg:{kind}/{name}@{pin['version'].replace(':', '%3A').replace('+', '%2B')}"
        sources = tuple((file["name"], file["sha256"]) for file in pin["files"])
        found.append(Component(name, pin["version"], purl, sources))
    check_licences(found)
    return found


def selfcontained(root: Path) -> list[Component]:
    """Everything foreign in a self-contained file; msgspec as a wheel and built from source."""
    # pyroute2 is for scripts of people, who import it from the zipapp
    wheels = {each.name: each for each in bundled(root) if each.name != "pyroute2"}
    for each in interpreter(root):
        before = wheels.get(each.name)
        sources = (*(before.sources if before else ()), *each.sources)
        wheels[each.name] = Component(each.name, each.version, each.purl, sources)
    return sorted(wheels.values(), key=lambda component: component.name)


def expression(components: list[Component]) -> str:
    """The SPDX expression of all of them."""
    return " AND ".join(sorted({each.licence for each in components} | {LICENCES["cni-plugins"]}))


def licence_texts(components: list[Component], zipped: dict[str, bytes]) -> str:
    """The texts of all licences. `zipped` are the zipapp's files. Raises ReleaseError."""
    parts = []
    for component in sorted(components, key=lambda each: each.name):
        if component.name in TEXTS:
            texts = [(HERE / f"licences/{component.name}.txt").read_text()]
        else:
            folder = re.compile(rf"{component.name}-[^/]+\.dist-info/(licenses/.+|LICEN[CS]E.*)")
            names = [name for name in sorted(zipped) if folder.fullmatch(name)]
            # pyroute2 may be used under either licence, and is under the other.
            texts = [zipped[name].decode() for name in names if "GPL" not in name]
        if not texts:
            raise ReleaseError(f"the zipapp has no licence text of {component.name}")
        head = f"{component.name} {component.version}: {component.licence}"
        parts += [f"{'=' * 79}\n{head}\n{'=' * 79}\n", *texts]
    return "\n".join(parts)


def check_licences(components: list[Component]) -> None:
    """Check that the licence of each is known. Raises ReleaseError."""
    known = LICENCES.keys() | DEBIAN
    unknown = [each.name for each in components if each.name not in known]
    if unknown:
        raise ReleaseError(
            f"the licence of {', '.join(unknown)} is not known: "
            "add it to tools/release/components.py, and to NOTICE"
        )
