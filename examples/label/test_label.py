"""Tests of the example plugin `label`: they need root, `ip` and pytest, nothing of this repository.

`label` and the file `cni` are looked for in CNI_PATH (/opt/cni/bin):

    cp label /opt/cni/bin
    python3 -m pytest test_label.py
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PLUGIN = Path(os.environ.get("CNI_PATH", "/opt/cni/bin")) / "label"
NETNS = f"label-{os.getpid()}"
CONF = {"cniVersion": "1.1.0", "name": "net", "type": "label", "label": "blue"}


@pytest.fixture(autouse=True)
def netns() -> Iterator[None]:
    """A network namespace with a link eth0, as the plugin before `label` would have made it."""
    ip("netns", "add", NETNS)
    try:
        ip("-n", NETNS, "link", "add", "eth0", "type", "veth", "peer", "name", "peer0")
        yield
    finally:
        ip("netns", "delete", NETNS)


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def alias() -> str:
    """The alias of eth0, as `ip` sees it; empty without one."""
    found: str = json.loads(ip("-n", NETNS, "-json", "link", "show", "eth0"))[0].get("ifalias", "")
    return found


def call(verb: str, netns: str = NETNS, **changes: Any) -> tuple[int, Any]:
    """Execute the plugin as a runtime does: its exit code, and what it printed."""
    made = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "sandbox": f"/run/netns/{NETNS}"}],
    }
    conf = {**CONF, "prevResult": made, **changes}
    env = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": "example",
        "CNI_NETNS": f"/run/netns/{netns}",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(PLUGIN.parent),
    }
    done = subprocess.run(
        [PLUGIN], input=json.dumps(conf), env=env, capture_output=True, text=True, check=False
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else None


def test_add_sets_the_alias_and_passes_the_result_on() -> None:
    code, result = call("ADD")
    assert (code, result["interfaces"][0]["name"], alias()) == (0, "eth0", "blue")


def test_check_names_a_difference() -> None:
    call("ADD")
    assert call("CHECK")[0] == 0
    ip("-n", NETNS, "link", "set", "eth0", "alias", "red")
    code, error = call("CHECK")
    assert code == 1
    assert 'have "red"' in error["msg"]


def test_del_may_be_repeated_and_needs_no_namespace() -> None:
    call("ADD")
    for _ in range(2):
        assert call("DEL") == (0, None)
        assert alias() == ""
    assert call("DEL", netns="nosuch") == (0, None)


def test_a_wrong_label_changes_nothing() -> None:
    code, error = call("ADD", label="")
    assert (code, error["msg"], alias()) == (1, "invalid label", "")


def test_a_link_that_is_missing_is_named() -> None:
    ip("-n", NETNS, "link", "delete", "eth0")
    code, error = call("ADD")
    assert code == 1
    assert "cannot label eth0" in error["msg"]
