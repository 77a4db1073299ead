"""By which file names a plugin is found, and the version that others read from it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni import REFERENCE_VERSION, __version__, dispatch
from cni.protocol import config

ROOT = Path(__file__).resolve().parents[2]
# semver.org: three numbers without leading zeros, pre-release, build metadata.
SEMVER = re.compile(
    r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    r"(?:-((?:0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*)(?:\.(?:0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*))*))?"
    r"(?:\+([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?"
)
# What Nomad's servers want of each (semver >= 0.4.0), and nerdctl of firewall (>= 1.7.1).
NOMAD = ("bridge", "firewall", "host-local", "loopback", "portmap")


def numbers(version: str) -> tuple[int, int, int]:
    """The version's precedence; fails unless it is a release in SemVer, perhaps with a `v`."""
    match = SEMVER.fullmatch(version.removeprefix("v"))
    assert match, version
    assert match[4] is None, f"{version} is a pre-release, which comparers put below the release"
    return int(match[1]), int(match[2]), int(match[3])


def run_without_a_command(called: str) -> tuple[str, str]:
    """What a plugin prints that is executed without arguments: stdout, stderr."""
    code = f"import sys; sys.argv = ['/bin/{called}']; from cni.__main__ import main; main()"
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


# --- versions -------------------------------------------------------------------------------------


def test_our_version_and_the_reference_s_are_releases() -> None:
    assert numbers(__version__) >= (0, 2, 0)
    assert numbers(REFERENCE_VERSION) >= (1, 9, 1)


@pytest.mark.parametrize("plugin", NOMAD)
def test_nomad_finds_a_version_that_satisfies_it(plugin: str) -> None:
    """Nomad takes the first word of stdout and stderr together that looks like a version."""
    words = "".join(run_without_a_command(plugin)).split()
    looks = [word for word in words if re.match(r"v?[0-9]+(\.[0-9]+)*([-+]|$)", word)]
    assert looks[0] == f"v{REFERENCE_VERSION}+py.{__version__}"
    assert numbers(looks[0]) >= (0, 4, 0)


def test_nerdctl_finds_a_version_that_satisfies_it() -> None:
    """nerdctl takes what follows `CNI firewall plugin ` in a line of stderr, to the line's end."""
    out, err = run_without_a_command("firewall")
    assert out == ""
    lead = "CNI firewall plugin "
    found = [line[len(lead) :] for line in err.split("\n") if line.startswith(lead)]
    assert len(found) == 1
    assert numbers(found[0]) >= (1, 7, 1)


def test_the_line_has_the_plugin_s_own_name() -> None:
    _, err = run_without_a_command("buildkit-cni-firewall")
    assert err == dispatch.about("firewall")


# --- names ----------------------------------------------------------------------------------------

PREFIX = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=20)


@pytest.mark.parametrize("plugin", sorted(dispatch.TABLE))
@pytest.mark.parametrize("prefix", ["", "buildkit-cni-", "nerdctl-", "-", "a--", "not.a.word-"])
def test_a_prefix_is_ignored(plugin: str, prefix: str) -> None:
    assert dispatch.find(prefix + plugin) == plugin


@given(PREFIX, st.sampled_from(sorted(dispatch.TABLE)))
def test_any_prefix_is_ignored_unless_it_makes_a_longer_name(prefix: str, plugin: str) -> None:
    found = dispatch.find(f"{prefix}-{plugin}")
    if not f"{prefix}-{plugin}".endswith(tuple(f"-{name}" for name in dispatch.WINDOWS)):
        assert found == plugin or f"{prefix}-{plugin}" in dispatch.WINDOWS


@given(PREFIX)
def test_what_is_found_ends_the_name(name: str) -> None:
    found = dispatch.find(name)
    assert found is None or name == found or name.endswith(f"-{found}")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-",
        "cni",
        "cni-linux-x86_64",
        "buildkit-cni",
        "local",
        "device",
        "override",
        "win-bridge",
        "win-overlay",
        "x-win-bridge",
        "mybridge",
        "bridge-",
        "bridge.bak",
        "bridge-2",
        "Bridge",
    ],
)
def test_other_names_are_no_plugin(name: str) -> None:
    assert dispatch.find(name) is None


def test_the_longest_name_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dispatch.TABLE, "local", dispatch.TABLE["static"])
    monkeypatch.setitem(dispatch.TABLE, "win-bridge", dispatch.WINDOWS["win-bridge"])
    assert dispatch.find("x-host-local") == "host-local"
    assert dispatch.find("x-y-local") == "local"
    assert dispatch.find("x-win-bridge") == "win-bridge"


def test_types_in_configurations() -> None:
    assert config.means("dhcp", "dhcp")
    assert config.means("buildkit-cni-dhcp", "dhcp")
    assert not config.means("mydhcp", "dhcp")
    assert not config.means("dhcp-relay", "dhcp")
    assert not config.means("", "dhcp")
