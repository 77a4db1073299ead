"""Traffic control as tc shows it."""

from __future__ import annotations

import json
import re
from typing import Any

from .netns import Netns

Json = dict[str, Any]

# Counted, or numbered by the kernel.
_VOLATILE = frozenset({"refcnt", "direct_packets_stat", "index", "not_in_hw"})


def qdiscs(ns: Netns, dev: str | None = None) -> list[Json]:
    """An interface's qdiscs: the root first, those below it and that of received packets.

    Of all interfaces unless one is named.
    """
    return _show(ns, "qdisc", "show", *(["dev", dev] if dev else []))


def classes(ns: Netns, dev: str) -> list[str]:
    """The classes of an interface's root qdisc, a line each (tc knows no JSON for them)."""
    lines = ns.exec(["tc", "class", "show", "dev", dev]).stdout.splitlines()
    return sorted(re.sub(r"leaf \w+: ", "", line).strip() for line in lines)


def sent(ns: Netns, dev: str, classid: str) -> int:
    """How many bytes went through a class."""
    shown = ns.exec(["tc", "-s", "class", "show", "dev", dev]).stdout
    match = re.search(rf"^class \w+ {classid} [^\n]*\n\s*Sent (\d+) bytes", shown, re.MULTILINE)
    assert match, f"{dev} has no class {classid}:\n{shown}"
    return int(match[1])


def passed(ns: Netns, dev: str) -> int:
    """How many bytes went through an interface's root qdisc."""
    text = ns.exec(["tc", "-s", "-j", "qdisc", "show", "dev", dev, "root"]).stdout
    return int(json.loads(text)[0]["bytes"])


def filters(ns: Netns, dev: str, parent: str) -> list[Json]:
    """The filters at `1:` or `ffff:`, without the heads of their tables."""
    found = _show(ns, "filter", "show", "dev", dev, "parent", parent)
    return [one for one in found if one.get("options") and "ht_divisor" not in one["options"]]


def tbf(ns: Netns, dev: str) -> Json | None:
    """The root TBF's rate (B/s), burst (bytes) and lat (µs); None if the root is no TBF."""
    root = next((one for one in qdiscs(ns, dev) if one.get("root")), {})
    return root["options"] if root.get("kind") == "tbf" else None


def _show(ns: Netns, *args: str) -> list[Json]:
    text = ns.exec(["tc", "-j", *args]).stdout
    return [_stable(one) for one in json.loads(text or "[]")]


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _stable(one) for key, one in value.items() if key not in _VOLATILE}
    return [_stable(one) for one in value] if isinstance(value, list) else value
