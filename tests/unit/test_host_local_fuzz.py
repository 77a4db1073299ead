"""Whatever the configuration, an IPAM plugin answers with a result or an error of its own."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .ipam_node import Ipam

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = st.one_of(
    st.sampled_from(
        [
            "", "/", "10.0.0.0/24", "10.0.0.0/30", "10.0.0.5", "10.0.0.255", "10.0.0.9/24",
            "fd00::/64", "fd00::9", "::/0", "0.0.0.0/0", "::ffff:10.0.0.0/120",
            "255.255.255.255", "x", "\0", "a\0b", "fd00::1%eth0", "10.0.0.0/-1",
            "१०.0.0.0/24", "../..", "🙂",
        ]
    ),
    st.text(max_size=8),
)  # fmt: skip
SCALARS = st.one_of(TEXTS, st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False))
RANGES = st.dictionaries(
    st.sampled_from(["subnet", "rangeStart", "rangeEnd", "gateway"]), st.one_of(TEXTS, SCALARS)
)
SETS = st.one_of(st.lists(st.one_of(st.lists(RANGES, max_size=3), SCALARS), max_size=3), SCALARS)
ROUTES = st.lists(
    st.dictionaries(st.sampled_from(["dst", "gw", "mtu", "table", "scope"]), SCALARS), max_size=2
)
ADDRESSES = st.lists(st.dictionaries(st.sampled_from(["address", "gateway"]), SCALARS), max_size=3)
IPAM = st.one_of(
    SCALARS,
    st.fixed_dictionaries(
        {},
        optional={
            "ranges": SETS,
            "subnet": SCALARS,
            "rangeStart": SCALARS,
            "routes": ROUTES,
            "addresses": ADDRESSES,
            "resolvConf": SCALARS,
            "dns": SCALARS,
        },
    ),
)
IPS = st.one_of(SCALARS, st.lists(SCALARS, max_size=3))
CONFIGS = st.fixed_dictionaries(
    {"ipam": IPAM},
    optional={
        "args": st.one_of(
            SCALARS, st.fixed_dictionaries({"cni": st.dictionaries(st.just("ips"), IPS)})
        ),
        "runtimeConfig": st.one_of(
            SCALARS, st.fixed_dictionaries({}, optional={"ips": IPS, "ipRanges": SETS})
        ),
        "prevResult": SCALARS,
        "cniVersion": st.sampled_from(["0.2.0", "0.4.0", "1.0.0", "1.1.0"]),
    },
)  # fmt: skip


@pytest.mark.parametrize("plugin", ["host-local", "static"])
@settings(
    max_examples=300,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    conf=CONFIGS,
    args=st.one_of(st.just(""), st.builds("IP={};GATEWAY={};IgnoreUnknown=1".format, TEXTS, TEXTS)),
)
def test_any_configuration(tmp_path: Path, plugin: str, conf: dict[str, Any], args: str) -> None:
    if isinstance(conf["ipam"], dict):
        conf = {**conf, "ipam": {**conf["ipam"], "dataDir": str(tmp_path / "data")}}
    ipam = Ipam(plugin, {"cniVersion": "1.1.0", "name": "net", **conf})
    for verb in ("ADD", "CHECK", "STATUS", "GC", "DEL"):
        code, output = ipam.raw(verb, env_args=args, **{"cni.dev/valid-attachments": []})
        if code:
            error = json.loads(output)
            assert "unexpected" not in error.get("details", ""), error
    directory = tmp_path / "data" / "net"
    left = set(os.listdir(directory)) if directory.exists() else set()
    assert not {name for name in left if name != "lock" and not name.startswith("last_")}


@pytest.mark.parametrize("data_dir", ["\0", "a\0b", "x" * 5000])
def test_data_dirs_that_cannot_be(data_dir: str) -> None:
    ipam = Ipam("host-local", {"cniVersion": "1.1.0", "name": "net"})
    ipam.conf["ipam"] = {"dataDir": data_dir, "subnet": "10.0.0.0/24"}
    for verb in ("ADD", "DEL"):
        code, output = ipam.raw(verb)
        assert code == 1
        assert "unexpected" not in json.loads(output)["details"]
