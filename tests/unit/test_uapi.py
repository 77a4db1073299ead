"""Our numbers of the kernel are those of its headers."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cni.kernel import uapi as kernel
from cni.netfilter import uapi as netfilter

if TYPE_CHECKING:
    from types import ModuleType

HEADERS = {
    kernel: [
        "linux/if.h",
        "sys/socket.h",
        "linux/netlink.h",
        "linux/rtnetlink.h",
        "linux/if_link.h",
        "linux/snmp.h",
        "linux/veth.h",
        "linux/if_bridge.h",
        "linux/if_addr.h",
        "linux/fib_rules.h",
        "linux/pkt_sched.h",
        "linux/pkt_cls.h",
        "linux/tc_act/tc_mirred.h",
        "linux/if_ether.h",
        "linux/genetlink.h",
        "linux/ethtool_netlink.h",
        "linux/wireguard.h",
        "linux/if_tun.h",
        "sys/ioctl.h",
    ],
    netfilter: [
        "linux/netfilter.h",
        "linux/netfilter/nfnetlink.h",
        "linux/netfilter/nf_tables.h",
        "linux/netfilter/nf_tables_compat.h",
        "linux/netfilter/nf_conntrack_common.h",
        "linux/netfilter/nfnetlink_conntrack.h",
        "linux/rtnetlink.h",
        "linux/if.h",
    ],
}
# In no header that user space gets, or only in those of the latest kernels.
ELSEWHERE = re.compile(r"NFTNL_|CTA_FILTER_F_|NFT_BITWISE_BOOL|IFLA_NETKIT_|NETKIT_|IF_R[AS]_")
# Ours have the subsystem in the upper byte.
SUBSYSTEMS = {"NFT_MSG_": "NFNL_SUBSYS_NFTABLES", "IPCTNL_MSG_": "NFNL_SUBSYS_CTNETLINK"}


# A macro with an argument.
STATE_BIT = "NF_CT_STATE_BIT_"


def expression(name: str) -> str:
    if name.startswith(STATE_BIT):
        return f"NF_CT_STATE_BIT(IP_CT_{name.removeprefix(STATE_BIT)})"
    for prefix, subsystem in SUBSYSTEMS.items():
        if name.startswith(prefix):
            return f"{subsystem} << 8 | {name}"
    return name


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("module", HEADERS, ids=lambda module: module.__name__)
def test_numbers(module: ModuleType, tmp_path: Path) -> None:
    names = [name for name in vars(module) if name.isupper() and not name.startswith("_")]
    asked = [name for name in names if not ELSEWHERE.match(name)]
    assert len(asked) > 20
    lines = [f"#include <{header}>" for header in ("stdio.h", "arpa/inet.h", *HEADERS[module])]
    lines.append("int main(void) {")
    lines += [f'printf("{name} %lld\\n", (long long)({expression(name)}));' for name in asked]
    source, program = tmp_path / "numbers.c", tmp_path / "numbers"
    source.write_text("\n".join([*lines, "return 0; }"]))
    subprocess.run(["cc", "-o", program, source], check=True, timeout=60)
    told = subprocess.run([program], check=True, capture_output=True, text=True, timeout=60).stdout
    theirs = {name: int(value) for name, value in (line.split() for line in told.splitlines())}
    assert theirs == {name: getattr(module, name) for name in asked}


def test_each_number_is_on_a_line_of_its_own_and_used() -> None:
    for module in HEADERS:
        assert module.__file__ is not None
        path = Path(module.__file__)
        text = path.read_text()
        package = "".join(p.read_text() for p in path.parents[1].rglob("*.py"))
        counts = Counter(re.findall(r"\b[A-Z][A-Z0-9_]+\b", package))
        names = re.findall(r"^([A-Z][A-Z0-9_]*) =", text, re.MULTILINE)
        assert not [name for name in names if counts[name] < 2]
