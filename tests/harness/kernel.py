"""What the kernel holds: readers, and snapshots to show that nothing changed.

Everything is read by independent tools (iproute2, nft, iptables-save), never by the code under
test.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .netns import Netns
from .wait import last_seen

Json = dict[str, Any]


# -- links, addresses, routes ---------------------------------------------------------------------


def links(ns: Netns) -> dict[str, Json]:
    """All links by name, as `ip -j -d link` shows them."""
    return {link["ifname"]: link for link in ns.ip_json("link")}


def link(ns: Netns, name: str) -> Json:
    """One link; the test fails if there is none."""
    found = links(ns)
    assert name in found, f"no link {name} in {ns!r}, which has {', '.join(sorted(found))}"
    return found[name]


def kind(link: Json) -> str:
    """`veth`, `bridge`, `vlan`, … or "" for a device without a kind, such as lo."""
    return str(link.get("linkinfo", {}).get("info_kind", ""))


def port(link: Json) -> Json:
    """The bridge port attributes of a link (hairpin, isolated, …)."""
    return dict(link.get("linkinfo", {}).get("info_slave_data", {}))


def ports(ns: Netns, bridge: str) -> dict[str, Json]:
    """The links whose master is this bridge."""
    return {name: one for name, one in links(ns).items() if one.get("master") == bridge}


def addresses(ns: Netns, name: str, *, link_local: bool = False) -> list[str]:
    """`address/prefix` of an interface in the kernel's order, without IPv6 link-local ones."""
    found = []
    for one in ns.ip_json("address", "show", "dev", name):
        found += _addresses_of(one, link_local)
    return found


def _addresses_of(one: Json, link_local: bool) -> list[str]:
    return [
        f"{info['local']}/{info['prefixlen']}"
        for info in one.get("addr_info", [])
        if link_local or info["scope"] != "link"
    ]


def links_and_addresses(ns: Netns) -> tuple[dict[str, Json], dict[str, list[str]]]:
    """`links(ns)`, and of each what `addresses` returns, from one process."""
    found, with_addresses = ns.ip_json_each("link", "address")
    return (
        {one["ifname"]: one for one in found},
        {one["ifname"]: _addresses_of(one, False) for one in with_addresses},
    )


def address_info(ns: Netns, name: str, address: str) -> Json:
    """Everything about one address of an interface (`scope`, `broadcast`, `tentative`, …)."""
    for one in ns.ip_json("address", "show", "dev", name):
        for info in one.get("addr_info", []):
            if f"{info['local']}/{info['prefixlen']}" == address:
                return dict(info)
    raise AssertionError(f"{name} in {ns!r} has no address {address}: {addresses(ns, name)}")


def routes(
    ns: Netns, family: int | None = None, *, table: str = "main", dev: str | None = None
) -> list[Json]:
    """Routes of a table ("all" too) of one family or both, sorted, as `ip -j route` shows them.

    Link-local, multicast and (outside the local table) the kernel's own ff00::/8 entries are left
    out: they say that an interface is up, not what a plugin did.
    """
    found = []
    for version in (4, 6) if family is None else (family,):
        args = [f"-{version}", "route", "show", "table", table]
        if dev is not None:
            args += ["dev", dev]
        found += [{"family": version, **route} for route in ns.ip_json(*args)]
    return _chosen(found)


def _chosen(found: list[Json]) -> list[Json]:
    """Routes, sorted, without those that only say that an interface is up."""

    def is_chosen(route: Json) -> bool:
        if route["family"] == 6 and re.match(r"(fe80:|ff00:|multicast)", route["dst"]):
            return False
        return route.get("type") not in ("multicast", "anycast")

    return sorted(filter(is_chosen, found), key=_sort_key)


def has_route(
    ns: Netns,
    dst: str,
    *,
    via: str | None = None,
    dev: str | None = None,
    table: str = "main",
    **attributes: Any,
) -> bool:
    """Is there a route to `dst` (`default`, `0.0.0.0/0`, `10.0.0.0/8`) with these properties?"""
    return bool(find_routes(ns, dst, via=via, dev=dev, table=table, **attributes))


def find_routes(
    ns: Netns,
    dst: str,
    *,
    via: str | None = None,
    dev: str | None = None,
    table: str = "main",
    **attributes: Any,
) -> list[Json]:
    """The routes to `dst` with these properties; each hop of a multipath route counts."""
    if dst in ("0.0.0.0/0", "::/0"):
        family, wanted = (4 if dst[0] == "0" else 6), "default"
    elif dst == "default":
        family, wanted = None, dst
    else:
        network = ipaddress.ip_network(dst)
        family = network.version
        host = network.prefixlen == network.max_prefixlen
        wanted = str(network.network_address) if host else str(network)
    found = []
    for route in routes(ns, family, table=table):
        if route["dst"] != wanted:
            continue
        for hop in route.get("nexthops", [{}]):
            one = {**route, **hop}
            if via is not None and one.get("gateway") != via:
                continue
            if dev is not None and one.get("dev") != dev:
                continue
            if all(one.get(key) == value for key, value in attributes.items()):
                found.append(one)
    return found


def rules(ns: Netns) -> list[Json]:
    """Policy routing rules of both families."""
    found = []
    for version in (4, 6):
        found += [{"family": version, **rule} for rule in ns.ip_json(f"-{version}", "rule")]
    return found


def routes_and_rules(ns: Netns, table: str) -> tuple[list[Json], list[Json]]:
    """`routes(ns, table=table)` and `rules(ns)`, in a third of the time."""
    all_routes: list[Json] = []
    all_rules: list[Json] = []
    for version in (4, 6):
        found = ns.ip_json_each(f"route show table {table}", "rule", family=version)
        all_routes += [{"family": version, **route} for route in found[0]]
        all_rules += [{"family": version, **rule} for rule in found[1]]
    return _chosen(all_routes), all_rules


def neighbours(ns: Netns, dev: str) -> dict[str, str]:
    """address -> MAC of the neighbour entries on an interface that have one."""
    entries = ns.ip_json("neighbour", "show", "dev", dev)
    return {entry["dst"]: entry["lladdr"] for entry in entries if "lladdr" in entry}


# -- bridge VLANs ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class PortVlan:
    """One VLAN of a bridge port."""

    vid: int
    pvid: bool = False
    untagged: bool = False


def vlans(ns: Netns, name: str) -> list[PortVlan]:
    """The VLANs of a bridge port (or of the bridge itself), sorted, ranges spelled out."""
    text = ns.exec(["bridge", "-j", "vlan", "show"]).stdout
    found = []
    for one in json.loads(text or "[]"):
        if one.get("ifname") != name:
            continue
        for vlan in one["vlans"]:
            flags = vlan.get("flags", [])
            vids = range(vlan["vlan"], vlan.get("vlanEnd", vlan["vlan"]) + 1)
            found += [PortVlan(v, "PVID" in flags, "Egress Untagged" in flags) for v in vids]
    return sorted(found, key=lambda vlan: vlan.vid)


# -- packet filters -------------------------------------------------------------------------------


def nft(ns: Netns, *args: str) -> list[Json]:
    """`nft -j list ARGS` (the ruleset) as a list of objects, without handles and counters.

    Something that does not exist is an empty list.
    """
    command = ["nft", "-j", "list", *(args or ("ruleset",))]
    done = ns.exec(command, check=False)
    if done.returncode != 0:
        assert "No such file" in done.stderr, done.stderr
        return []
    objects = json.loads(done.stdout)["nftables"] if done.stdout.strip() else []
    return [_stable_nft(item) for item in objects if "metainfo" not in item]


def nft_rules(ns: Netns, family: str, table: str, chain: str) -> list[Json]:
    """The rules of one chain."""
    return [item["rule"] for item in nft(ns, "chain", family, table, chain) if "rule" in item]


def nft_tables(ns: Netns) -> set[tuple[str, str]]:
    """(family, name) of all tables."""
    return {(i["table"]["family"], i["table"]["name"]) for i in nft(ns, "tables") if "table" in i}


def _stable_nft(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"counter"} and isinstance(value["counter"], dict):
            return {"counter": None}
        return {k: _stable_nft(v) for k, v in value.items() if k != "handle"}
    if isinstance(value, list):
        return [_stable_nft(item) for item in value]
    return value


def iptables_save(ns: Netns, version: int = 4) -> list[str]:
    """`iptables-save` or `ip6tables-save` without comments and counters.

    The tool comes from whichever backend the system prefers.
    """
    tool = "iptables-save" if version == 4 else "ip6tables-save"
    lines = ns.exec([tool]).stdout.splitlines()
    return [re.sub(r" \[\d+:\d+\]$", "", line) for line in lines if not line.startswith("#")]


# -- sysctls --------------------------------------------------------------------------------------


def sysctls(ns: Netns, prefix: str) -> dict[str, str]:
    """All readable sysctls below a directory, e.g. `net/ipv4/conf/eth0`."""

    # There are a thousand in a namespace with three links: pathlib would take three times as long.
    found: dict[str, str] = {}

    def read(path: str, parent: int | None = None, name: str = "") -> None:
        fd = os.open(name or f"/proc/sys/{path}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=parent)
        try:
            found[path] = os.read(fd, 65536).decode().rstrip("\n")
        except IsADirectoryError:
            for entry in os.listdir(fd):
                try:
                    read(f"{path}/{entry}", fd, entry)
                except OSError:
                    continue  # write-only, or has no value now (stable_secret)
        finally:
            os.close(fd)

    ns.run(read, prefix)
    return found


# -- snapshots ------------------------------------------------------------------------------------

# Attributes that change by themselves.
_VOLATILE = re.compile(
    r".*_timer$|.*_life_time$|expires$|age$|used$|cacheinfo$|stats.*$|num_.*_queues$"
    r"|topology_change.*$|tentative$|dadfailed$|refcnt$|(multi|fdb)_.*_learned$|fdb_n_learned$"
)


@dataclass(frozen=True)
class Snapshot:
    """The state of a namespace at one moment; compare two with `difference`."""

    state: Mapping[str, Any]
    # Not so: addresses are being looked for duplicates of, after which the kernel adds routes.
    settled: bool = True

    @classmethod
    def take(cls, ns: Netns, *, filters: bool = True) -> Snapshot:
        """Links, addresses, routes of all tables, rules and packet filters of a namespace."""
        # `ip address` alone does not show every attribute of a link.
        found_links, found_addresses = ns.ip_json_each("link", "address")
        state: dict[str, Any] = {
            "link": {one["ifname"]: _stable(one) for one in found_links},
            "address": {
                one["ifname"]: _keyed(_stable(one.get("addr_info", [])), "local", "prefixlen")
                for one in found_addresses
            },
        }
        all_rules = []
        for version in (4, 6):
            table, found_rules = ns.ip_json_each("route show table all", "rule", family=version)
            all_rules += [{"family": version, **_stable(rule)} for rule in found_rules]
            state[f"route{version}"] = _keyed(
                [_stable(route) for route in table],
                *("table", "type", "dst", "dev", "gateway", "metric"),
            )
            state[f"forwarding{version}"] = ns.sysctl(
                "net/ipv4/ip_forward" if version == 4 else "net/ipv6/conf/all/forwarding"
            )
            if filters:
                state[f"iptables{version}"] = iptables_save(ns, version)
        state["rule"] = _keyed(all_rules, "family", "priority", "table")
        if filters:
            state["nft"] = {str(number): item for number, item in enumerate(nft(ns))}
        return cls(state, not any(map(_is_settling, found_addresses)))


def _is_settling(link: Json) -> bool:
    """Has it addresses whose duplicates are looked for? Without a carrier that never ends."""
    tentative = any(info.get("tentative") for info in link.get("addr_info", []))
    return tentative and "LOWER_UP" in link["flags"]


def difference(before: Any, after: Any, where: str = "") -> list[str]:
    """What differs between two snapshots (or any two JSON-like values), one line each."""
    if isinstance(before, Snapshot) and isinstance(after, Snapshot):
        return difference(before.state, after.state)
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        found = []
        for key in sorted({*before, *after}, key=str):
            place = f"{where}.{key}" if where else str(key)
            if key not in before:
                found.append(f"{place}: new: {after[key]}")
            elif key not in after:
                found.append(f"{place}: gone: {before[key]}")
            else:
                found += difference(before[key], after[key], place)
        return found
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [line for n, (a, b) in pairs for line in difference(a, b, f"{where}[{n}]")]
    if before != after:
        return [f"{where}: {before} -> {after}"]
    return []


def tree(path: str | os.PathLike[str], *, contents: bool = True) -> dict[str, str]:
    """A directory tree: relative path -> type, mode and content, for comparison by `difference`.

    A path that does not exist is an empty tree. host-local's `.cni` is left out: what is in there
    is made from the other files, and may be missing.
    """
    base = Path(path)
    found: dict[str, str] = {}
    for directory, names, files in os.walk(base):
        if ".cni" in names:
            names.remove(".cni")
        for name in (*names, *files):
            entry = Path(directory, name)
            info = entry.lstat()
            line = stat.filemode(info.st_mode)
            if stat.S_ISLNK(info.st_mode):
                line += f" -> {os.readlink(entry)}"
            elif stat.S_ISREG(info.st_mode) and contents:
                line += f" {entry.read_bytes()!r}"
            found[str(entry.relative_to(base))] = line
    return found


@contextmanager
def unchanged(*things: Netns | str | os.PathLike[str]) -> Iterator[None]:
    """Assert that namespaces and directory trees are after the block as they were before it.

    It begins when the namespaces' IPv6 addresses have settled: until then the kernel adds routes.
    """

    def take(timeout: float) -> dict[str, Any]:
        def look(thing: Netns | str | os.PathLike[str]) -> Any:
            if not isinstance(thing, Netns):
                return tree(thing)
            return last_seen(
                lambda: Snapshot.take(thing), wanted=lambda seen: seen.settled, timeout=timeout
            )

        return {str(thing): look(thing) for thing in things}

    before = take(10)
    yield
    after = take(0)
    found = [line for key in before for line in difference(before[key], after[key], key)]
    assert not found, "something changed:\n" + "\n".join(found)


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _stable(v) for k, v in value.items() if not _VOLATILE.fullmatch(k)}
    if isinstance(value, list):
        return [_stable(item) for item in value]
    return value


def _keyed(items: Sequence[Json], *keys: str) -> dict[str, Json]:
    """A list as a mapping, so that a difference names the entry and order does not matter."""
    found: dict[str, Json] = {}
    for item in sorted(items, key=_sort_key):
        name = " ".join(str(item[key]) for key in keys if key in item)
        while name in found:
            name += "'"
        found[name] = item
    return found


def _sort_key(item: Json) -> str:
    return json.dumps(item, sort_keys=True)
