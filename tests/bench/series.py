"""The measurements: one case, with more and more that is there already, the bare starts."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from . import dhcp
from .cases import Case, portmap, ports, simple
from .measure import (
    VERSION,
    Json,
    Node,
    PluginFailedError,
    Row,
    Sample,
    Summary,
    alternate,
    summaries,
)

PYTHON = "/usr/bin/python3"
BARE_PYTHON = [PYTHON, "-I", "-S", "-c", "pass"]
# Reservations that are there already, in a /16; the nearly full one has a free address every 997.
FEW_LEASES: dict[str, Sequence[int]] = {
    "10 leases": range(2, 12),
    "1 000 leases": range(2, 1002),
}
LEASES = FEW_LEASES | {
    "60 000 leases": range(2, 60002),
    "nearly full /16": [n for n in range(2, 65535) if n % 997],
}
GROWTH_ROUNDS = 5  # Go takes half a second for some
PUBLISHED = (1, 1000)


def measure_case(case: Case, nodes: list[Node], rounds: int) -> list[Row]:
    """ADD and DEL, alternating between the nodes. A node on which it fails is left out."""
    samples: dict[str, dict[str, list[Sample]]] = {"ADD": {}, "DEL": {}}
    python: list[Sample] = []
    failed: set[str] = set()
    for number, node in alternate(nodes, rounds + 1):
        conf = case.conf(node)
        if node.name in failed or not _has_plugins(node, conf):
            continue
        try:
            with case.around(node):
                added, deleted = add_and_delete(node, conf)
        except PluginFailedError as error:
            print(f"  {case.name}: {error}", file=sys.stderr)
            failed.add(node.name)
            continue
        if node.name == "ours":
            python.append(node.command(BARE_PYTHON))
        if number:  # the first round fills the caches and makes the bridge
            samples["ADD"].setdefault(node.name, []).append(added)
            samples["DEL"].setdefault(node.name, []).append(deleted)
    bare = Summary.of(python) if python else None
    return [
        Row(case.name, verb, summaries(taken, nodes, failed), bare)
        for verb, taken in samples.items()
    ]


def _has_plugins(node: Node, conf: Json) -> bool:
    """Has this implementation the plugin, and the IPAM plugin that it calls?"""
    names = [conf["type"], conf.get("ipam", {}).get("type", conf["type"])]
    return all((node.bin_dir / name).exists() for name in names)


def measure_version(nodes: list[Node], rounds: int) -> list[Row]:
    """VERSION of loopback: what starting a plugin costs."""
    samples: dict[str, list[Sample]] = {}
    for number, node in alternate(nodes, rounds + 1):
        sample, _ = node.plugin("VERSION", simple("loopback")(node))
        if number:
            samples.setdefault(node.name, []).append(sample)
    return [Row("loopback", "VERSION", summaries(samples, nodes, set()))]


def add_and_delete(node: Node, conf: Json, container_id: str = "c1") -> tuple[Sample, Sample]:
    added, result = node.plugin("ADD", conf, container_id)
    result["cniVersion"] = VERSION
    deleted, _ = node.plugin("DEL", {**conf, "prevResult": result}, container_id)
    return added, deleted


def measure_growth(
    nodes: list[Node], rounds: int, leases: dict[str, Sequence[int]] = LEASES
) -> list[Row]:
    """host-local with that many addresses reserved already.

    Every round has all of them, so that they can be compared with each other, too.
    """
    samples: dict[str, dict[str, dict[str, list[Sample]]]] = {}
    for node in nodes:
        for label, taken in leases.items():
            _fill(node.data_dir / _network_of(label), taken)
    for number, node in alternate(nodes, min(rounds, GROWTH_ROUNDS) + 1):
        for label in leases:
            conf = {**simple("host-local")(node), "name": _network_of(label)}
            times = zip(("ADD", "DEL"), add_and_delete(node, conf), strict=True)
            for verb, sample in times if number else ():  # see measure_case
                of_case = samples.setdefault(label, {}).setdefault(verb, {})
                of_case.setdefault(node.name, []).append(sample)
    return [
        Row(f"host-local, {label}", verb, summaries(taken, nodes, set()))
        for label, verbs in samples.items()
        for verb, taken in verbs.items()
    ]


def _network_of(label: str) -> str:
    return "grow-" + "".join(filter(str.isalnum, label))


def _fill(directory: Path, taken: Sequence[int]) -> None:
    """Reservations as either implementation writes them."""
    directory.mkdir(parents=True)
    for number in taken:
        address = f"10.66.{number >> 8}.{number & 255}"
        (directory / address).write_text(f"old{number}\r\neth0")
    last = taken[-1]
    (directory / "last_reserved_ip.0").write_text(f"10.66.{last >> 8}.{last & 255}")


def growth(rows: list[Row]) -> dict[str, dict[str, float]]:
    """How many times as long as in the first row of the verb, by case and implementation."""
    found = {}
    for verb in ("ADD", "DEL"):
        fewest, *more = [row for row in rows if row.verb == verb]
        for row in more:
            found[f"{row.case} {verb}"] = {
                name: row.times[name].median / fewest.times[name].median
                for name in row.times
                if name in fewest.times
            }
    return found


def measure_published(nodes: list[Node], rounds: int) -> list[Row]:
    """One more port with ours, where one is published already, and where 1,000 are.

    Both in every round; the first one after the thousand, whose hash table the kernel is still
    enlarging, does not count. Go is not measured: it would take half a minute to publish them.
    """
    ours = [node for node in nodes if node.name != "go"]
    samples: dict[tuple[int, str], dict[str, list[Sample]]] = {}
    for number, node in alternate(ours, rounds + 1):
        for count in PUBLISHED:
            old = {**portmap(node), **ports(*range(10000, 10000 + count), address="10.66.1.1/16")}
            node.plugin("ADD", old, "old")
            times = [add_and_delete(node, portmap(node)) for _ in range(3)]
            node.plugin("DEL", old, "old")
            for added, deleted in times[1:] if number else ():
                for verb, sample in (("ADD", added), ("DEL", deleted)):
                    samples.setdefault((count, verb), {}).setdefault(node.name, []).append(sample)
    return [
        Row(f"portmap, {count} published", verb, summaries(taken, ours, set()))
        for (count, verb), taken in samples.items()
    ]


def measure_dhcp(nodes: list[Node], rounds: int, leases: int) -> tuple[list[Row], dict[str, float]]:
    """The plugin with its daemon, and KiB a lease of the daemon's memory."""
    if shutil.which("dnsmasq") is None:
        print("bench: no dnsmasq (package dnsmasq-base)", file=sys.stderr)
        return [], {}
    return dhcp.measure(nodes, rounds, VERSION, leases)


def measure_baseline(node: Node, rounds: int) -> list[Row]:
    """What no plugin can be faster than: the interpreter's start, and starting anything at all."""
    commands = {
        "python3 -I -S -c pass": BARE_PYTHON,
        "sh -c :": ["/bin/sh", "-c", ":"],
        "/bin/true (what measuring costs)": ["/bin/true"],
    }
    samples: dict[str, list[Sample]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, argv in commands.items():
            samples[name].append(node.command(argv))
    return [Row(name, "", {"ours": Summary.of(taken)}) for name, taken in samples.items()]
