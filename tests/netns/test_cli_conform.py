"""cni conform: ours and Debian's Go plugins pass; a plugin that breaks a rule does not."""

from __future__ import annotations

import json
import os
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.harness import Runtime, unchanged
from tests.harness.combinations import every_day

GO = Path("/usr/lib/cni")
PTP = "ptp"

# A plugin around another one, which changes what that does: the environment and stdin are given.
WRAPPER = """#!{python} -IS
import json, os, subprocess, sys
verb = os.environ.get("CNI_COMMAND")
stdin = sys.stdin.buffer.read()
if {before}:
    sys.exit({code})
done = subprocess.run([{plugin!r}], input=stdin, stdout=subprocess.PIPE)
out = done.stdout
if {when}:
    value = json.loads(out)
    {change}
    out = json.dumps(value).encode()
sys.stdout.buffer.write(out)
sys.exit(done.returncode)
"""
NO = {"before": "False", "code": 0, "when": "False", "change": "pass"}
# What is wrong, and which case sees it.
FAULTS = {
    "life": {
        "when": "verb == 'ADD' and not done.returncode",
        "change": "value['cniVersion'] = 'x'",
    },
    "del-again": {"before": "verb == 'DEL' and b'prevResult' not in stdin", "code": 1},
    "check-notices": {"before": "verb == 'CHECK'", "code": 0},
    "not-json": {"when": "b'nonsense' in stdin", "change": "value['code'] = 7"},
    "missing-variables": {"before": "verb == 'ADD' and 'CNI_IFNAME' not in os.environ", "code": 0},
}


def conform(runtime: Runtime, *argv: str | Path, code: int) -> tuple[dict[str, object], str]:
    env = {"PATH": os.environ["PATH"], "CNI_PATH": str(runtime.bin_dir)}
    command = [str(runtime.bin_dir / "cni"), "conform", "-o", "json", *map(str, argv)]
    done = runtime.host.exec(command, check=False, env=env, cwd="/", timeout=500)
    assert done.returncode == code, done.stdout + done.stderr
    value: dict[str, object] = json.loads(done.stdout)
    return value, done.stdout


# The longer ones are not for every day.
CHAINS = [
    ["ptp"],
    ["bridge", "portmap"],
    *(
        pytest.param(chain, marks=pytest.mark.slow)
        for chain in (
            ["bridge", "firewall"],
            ["ptp", "tuning"],
            ["macvlan"],
        )
    ),
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("plugins", CHAINS, ids="-".join)
@pytest.mark.parametrize("whose", ["ours", "go"])
def test_plugins_conform(runtime: Runtime, tmp_path: Path, plugins: list[str], whose: str) -> None:
    """And nothing happens to the node on which the command runs."""
    directory = runtime.bin_dir if whose == "ours" else GO
    if not directory.joinpath(plugins[0]).exists():
        pytest.skip("Debian's Go plugins are missing: containernetworking-plugins")
    report = tmp_path / "report.xml"
    with unchanged(runtime.host):
        value, _ = conform(
            runtime, *(directory / name for name in plugins), "--junit", report, code=0
        )
    assert value["failed"] == 0
    suite = ET.parse(report).getroot()
    assert len(suite) == value["passed"]
    assert suite.get("failures") == "0"


@pytest.mark.timeout(600)
def test_loopback_conforms(runtime: Runtime) -> None:
    """Its interface is there before ADD and after DEL, so it is looked at whether `lo` is up.

    Debian's Go plugin does not pass: before 1.0.0 its addresses have no `version`.
    """
    value, _ = conform(runtime, runtime.bin_dir / "loopback", code=0)
    cases = value["cases"]
    assert isinstance(cases, list)
    assert {"life", "check-notices", "gc"} <= {each["case"] for each in cases}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", every_day(["life"], FAULTS))  # a run of all cases each
def test_faults_are_seen(runtime: Runtime, tmp_path: Path, case: str) -> None:
    """Each by its own case."""
    program = tmp_path / PTP
    values = {**NO, **FAULTS[case], "python": sys.executable}
    program.write_text(WRAPPER.format(plugin=str(runtime.bin_dir / PTP), **values))
    program.chmod(0o755)
    (tmp_path / "host-local").symlink_to(runtime.bin_dir / "host-local")
    value, _ = conform(runtime, program, code=1)
    cases = value["cases"]
    assert isinstance(cases, list)
    assert case in {each["case"] for each in cases if each["outcome"] == "failed"}


def test_what_cannot_be_run(runtime: Runtime, tmp_path: Path) -> None:
    config = tmp_path / "conf.json"
    config.write_text('{"plugins": []}')
    ours = runtime.bin_dir / "ptp"
    for argv, text in (
        ([tmp_path / "none"], "is no program"),
        ([ours, "--config", config], "it has 0 plugins, and 1 are to be run"),
    ):
        command = [str(runtime.bin_dir / "cni"), "conform", *map(str, argv)]
        done = runtime.host.exec(command, check=False, cwd="/")
        assert done.returncode == 2
        assert text in " ".join(done.stderr.split())
