"""A whole list of plugins, as libcni runs it; one container, and many at a time."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import reduce

from tests.harness import Netns

from .cases import host_local
from .measure import (
    VERSION,
    Attachment,
    Json,
    Node,
    PluginFailedError,
    Row,
    Sample,
    Summary,
    alternate,
    summaries,
)

AT_A_TIME = 16
STATUS_VERSION = "1.1.0"


def conflist(node: Node, *, nftables: bool) -> list[Json]:
    """bridge with ipMasq, portmap, firewall, tuning.

    The same for all, or with nftables where there is a choice, which Debian's Go plugins have not.
    """
    choose = nftables and node.name != "go"
    bridge = {"type": "bridge", "bridge": "brlist", "isGateway": True, "ipMasq": True}
    portmap, firewall = {"type": "portmap"}, {"type": "firewall"}
    if choose:
        bridge["ipMasqBackend"] = portmap["backend"] = firewall["backend"] = "nftables"
    # host-local's default route needs a gateway, which the bridge is
    tuning = {
        "type": "tuning",
        "dataDir": str(node.run_dir / "tuning"),
        "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"},
    }
    return [{**bridge, "ipam": host_local(node)}, portmap, firewall, tuning]


def add(node: Node, plugins: Sequence[Json], where: Attachment, port: int) -> tuple[Sample, Json]:
    """The list's ADD, each plugin with the result of the one before; in the node's namespace."""
    samples, result = [], {}
    for plugin in plugins:
        sample, result = node.plugin_here("ADD", completed(plugin, port, result), where)
        samples.append(sample)
    return reduce(Sample.then, samples), result


def delete(
    node: Node, plugins: Sequence[Json], where: Attachment, port: int, result: Json
) -> Sample:
    """The list's DEL, backwards, each plugin with ADD's result."""
    confs = [completed(plugin, port, result) for plugin in reversed(plugins)]
    return reduce(Sample.then, [node.plugin_here("DEL", conf, where)[0] for conf in confs])


def completed(plugin: Json, port: int, result: Json) -> Json:
    """As libcni inserts: version, name, the result before, and what the plugin is capable of."""
    conf = {"cniVersion": VERSION, "name": "list", **plugin}
    if result:
        conf["prevResult"] = {"cniVersion": VERSION, **result}
    if plugin["type"] == "portmap":
        mapping = {"hostPort": port, "containerPort": 80, "protocol": "tcp"}
        conf["runtimeConfig"] = {"portMappings": [mapping]}
    return conf


def look(node: Node, confs: Sequence[Json], verb: str, where: Attachment) -> dict[str, Sample]:
    """CHECK or STATUS of each plugin, and of the list if all succeed."""
    samples = {}
    for conf in confs:
        try:
            samples[conf["type"]], _ = node.plugin_here(verb, conf, where)
        except PluginFailedError as error:  # portmap of Go 1.1.1 expects rules of both families
            _say_once(str(error).replace("\n", " "))
    if len(samples) == len(confs):
        samples[""] = reduce(Sample.then, list(samples.values()))
    return samples


_said: set[str] = set()


def _say_once(text: str) -> None:
    key = text[:40]  # of a longer one the container's names differ
    if key not in _said:
        print(f"  not measured: {text}", file=sys.stderr)
    _said.add(key)


def _status_confs(plugins: Sequence[Json]) -> list[Json]:
    """What libcni gives to STATUS, which is in no earlier version."""
    return [{"cniVersion": STATUS_VERSION, "name": "list", **plugin} for plugin in plugins]


def measure(nodes: list[Node], rounds: int, *, nftables: bool) -> list[Row]:
    """One container after the other; the list, and CHECK and STATUS of each plugin, too.

    Raises PluginFailedError.
    """
    name = "chain (nftables)" if nftables else "chain"
    rows: dict[tuple[str, str], dict[str, list[Sample]]] = {}
    with_status = {node.name for node in nodes if node.speaks("bridge", STATUS_VERSION)}
    for number, node in alternate(nodes, rounds + 1):
        plugins = conflist(node, nftables=nftables)
        where = Attachment("c1", node.container.path)
        run = node.host.run
        taken = {}
        taken[name, "ADD"], result = run(add, node, plugins, where, 8080)
        confs = {"CHECK": [completed(plugin, 8080, result) for plugin in plugins]}
        if node.name in with_status:
            confs["STATUS"] = _status_confs(plugins)
        for verb, each in confs.items():
            for plugin, sample in run(look, node, each, verb, where).items():
                taken[f"{name}: {plugin}".removesuffix(": "), verb] = sample
        taken[name, "DEL"] = run(delete, node, plugins, where, 8080, result)
        for key, sample in taken.items() if number else ():  # the first makes bridge and tables
            rows.setdefault(key, {}).setdefault(node.name, []).append(sample)
    return [Row(*key, summaries(each, nodes, set())) for key, each in rows.items()]


# --- many at a time -----------------------------------------------------------------------------


@dataclass
class Rates:
    """Pods a second, by implementation; and what one waits for its own (ms)."""

    verb: str
    pods: int
    a_second: dict[str, float] = field(default_factory=dict)
    latency: dict[str, Summary] = field(default_factory=dict)

    def ratio(self, name: str) -> float | None:
        """A node's to Go's; None where only one of them was measured."""
        if {name, "go"} <= self.a_second.keys():
            return self.a_second[name] / self.a_second["go"]
        return None


def measure_pods(nodes: list[Node], pods: int) -> list[Rates]:
    """That many pods set up, then taken down, 16 at a time, one implementation after the other."""
    up, down = Rates("up", pods), Rates("down", pods)
    for node in nodes:
        if node.name == "ours":
            continue
        try:
            with ExitStack() as stack:
                netns = [stack.enter_context(Netns(f"pod{n}")) for n in range(pods)]
                _many(node, [each.path for each in netns], up, down)
        except PluginFailedError as error:
            print(f"  pods: {error}", file=sys.stderr)
    return [up, down]


def _many(node: Node, paths: Sequence[str], up: Rates, down: Rates) -> None:
    plugins = conflist(node, nftables=False)
    wheres = [Attachment(f"pod{n}", path) for n, path in enumerate(paths)]

    def start(number: int) -> tuple[Sample, Json]:
        return add(node, plugins, wheres[number], 20000 + number)

    def end(number: int) -> Sample:
        return delete(node, plugins, wheres[number], 20000 + number, results[number])

    with ThreadPoolExecutor(AT_A_TIME, initializer=node.host.enter) as pool:
        began = time.perf_counter()
        started = list(pool.map(start, range(len(paths))))
        between = time.perf_counter()
        results = [result for _, result in started]
        ended = list(pool.map(end, range(len(paths))))
        up.a_second[node.name] = len(paths) / (between - began)
        down.a_second[node.name] = len(paths) / (time.perf_counter() - between)
    up.latency[node.name] = Summary.of([sample for sample, _ in started])
    down.latency[node.name] = Summary.of(ended)
