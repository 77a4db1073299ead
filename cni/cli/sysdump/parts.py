"""The parts of a dump: a Part for each object that may fail or hang separately."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from errno import EAGAIN, EPIPE
from typing import NamedTuple

from cni import files
from cni.netns import libc
from cni.protocol.result import encode_json

from .. import cache
from ..checkup.finding import Situation
from ..view import attachments, namespaces
from ..view.attached import Places
from . import kernel, ruleset, state, tools
from .collect import ABSENT, File, Part
from .mask import Mask

_FILE = 1 << 20  # bytes of a file of the node
_OUTPUT = 8 << 20  # bytes that a command writes
_NAMESPACE = 256 << 10  # bytes of what one namespace has
_MOST_NAMESPACES = 1000
_NAMESPACES = ("net", "mnt", "pid", "user", "cgroup")
_MOST_NETWORKS = 50
_CONFIGURATIONS = (".conflist", ".conf", ".json")
_KMSG = re.compile(
    r"link|veth|bridge|vlan|vxlan|netns|net_ns|unregister_netdevice|conntrack|nf_|nft|iptables"
    r"|promiscuous|IPv[46]|neighbour|\beth\d|\bport \d|tun:|netkit",
    re.IGNORECASE,
)
_NODE_FILES = (
    *("/etc/os-release", "/proc/version", "/proc/loadavg", "/proc/meminfo", "/proc/modules"),
    *("/proc/filesystems", "/proc/self/mountinfo", "/proc/self/status", "/proc/self/uid_map"),
    *("/proc/self/cgroup", "/proc/1/cgroup", "/proc/self/limits", "/proc/sys/kernel/tainted"),
    *("/proc/net/dev", "/proc/net/snmp", "/proc/net/netstat", "/proc/net/softnet_stat"),
    *("/proc/net/sockstat", "/proc/net/stat/nf_conntrack", "/proc/net/stat/arp_cache"),
    *("/proc/net/ip_tables_names", "/proc/net/ip6_tables_names", "/proc/net/netfilter/nf_log"),
)
_SYSCTLS = (
    *("net/ipv4/ip_forward", "net/ipv4/conf/*/forwarding", "net/ipv4/conf/*/rp_filter"),
    *("net/ipv4/conf/*/route_localnet", "net/ipv4/conf/*/arp_*", "net/ipv4/conf/*/proxy_arp"),
    *("net/ipv6/conf/*/forwarding", "net/ipv6/conf/*/disable_ipv6", "net/ipv6/conf/*/accept_*"),
    *("net/ipv6/conf/*/ndisc_notify", "net/ipv4/neigh/default/gc_thresh*"),
    *("net/ipv6/neigh/default/gc_thresh*", "net/bridge/*", "net/netfilter/nf_conntrack_*"),
    *("net/nf_conntrack_max", "net/core/somaxconn", "net/core/netdev_max_backlog"),
    *("net/ipv4/ip_local_port_range", "net/ipv4/ip_unprivileged_port_start", "net/ipv4/tcp_mtu*"),
    *("kernel/osrelease", "kernel/random/boot_id", "kernel/hung_task_timeout_secs"),
    *("kernel/pid_max", "kernel/threads-max", "user/max_net_namespaces", "fs/file-nr"),
)
_MOST_SYSCTLS = 20_000


class Sources(NamedTuple):
    """Where a dump looks."""

    situation: Situation
    places: Places


def all_parts(sources: Sources) -> list[Part]:
    """All parts in the order of collection: quick and important ones first."""
    return [
        Part("versions", lambda _: _versions()),
        Part("node", lambda _: _node_files()),
        Part("environment", lambda mask: _environment(mask, sources)),
        Part("sysctls", lambda _: _sysctls()),
        Part("network", lambda _: _network()),
        Part("nftables", lambda _: _nftables()),
        *(_directory(name, path, ends) for name, path, ends in directories(sources)),
        Part("server", lambda _: _server(sources.situation.socket)),
        *(_command(name, words) for name, words in _commands(sources)),
        Part("kernel-log", lambda _: _kernel_log()),
        Part("namespaces", lambda mask: _namespaces(mask, sources.places)),
        *tools.parts(),
    ]


def known_pods(places: Places) -> list[str]:
    """``<namespace>/<pod>`` of what is attached; empty if that cannot be read."""
    try:
        return sorted({each.pod for each in attachments.gather(places) if each.pod})
    except Exception:  # noqa: BLE001 the parts will say what is wrong
        return []


# --- the node ---


def _json(name: str, how: str, value: object) -> File:
    return File(f"{name}.json", how, encode_json(value) + b"\n")


def _versions() -> Iterator[File]:
    from .. import version

    uname = os.uname()
    facts = {
        **version.facts(),
        "kernel": {"release": uname.release, "version": uname.version, "host": uname.nodename},
        "user": {"uid": os.getuid(), "euid": os.geteuid()},
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "container": [
            mark
            for mark in ("/.dockerenv", "/run/.containerenv", "/run/systemd/container")
            if os.path.lexists(mark)
        ],
        "namespaces": {
            name: _link(f"/proc/self/ns/{name}") for name in ("net", "mnt", "pid", "user")
        },
        "root": _link("/proc/self/root"),
    }
    yield _json("versions", "cni --version, uname(2), /proc/self/ns", facts)


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError as error:
        return f"({(error.strerror or str(error)).lower()})"


def _environment(mask: Mask, sources: Sources) -> Iterator[File]:
    """Names of all variables; values of those that plugins and commands read."""
    shown = {}
    for name, value in sorted(os.environ.items()):
        ours = name in ("NETCONFPATH", "PATH", "LANG", "LC_ALL", "TERM") or (
            name.startswith("CNI_") and name != "CNI_ARGS"
        )
        # The environment of a shell often has tokens of other programs.
        shown[name] = value if ours or not mask.secrets else "(masked)"
    situation = sources.situation
    rooms: dict[str, dict[str, str | int]] = {}
    for path in dict.fromkeys([situation.cache_dir, situation.state_dir, situation.net_d]):
        try:
            found = os.statvfs(path)
        except OSError as error:
            rooms[path] = {"error": (error.strerror or "").lower()}
        else:
            rooms[path] = {
                "bytesFree": found.f_bavail * found.f_frsize,
                "bytes": found.f_blocks * found.f_frsize,
                "inodesFree": found.f_favail,
                "inodes": found.f_files,
            }
    facts: dict[str, object] = {
        "variables": shown,
        "arguments": sys.argv[1:],
        "directories": {
            "state": situation.state_dir,
            "cache": situation.cache_dir,
            "configurations": situation.net_d,
            "plugins": situation.path,
            "socket": situation.socket,
        },
        "room": rooms,
    }
    yield _json("environment", "the environment, statvfs(2)", facts)


def _node_files() -> Iterator[File]:
    for path in _NODE_FILES:
        name = "node/" + path.strip("/").replace("/", "-")
        try:
            yield _read(name, path, follow=True)
        except FileNotFoundError:
            yield File(name, f"read {path}", error=ABSENT)
        except OSError as error:
            yield File(name, f"read {path}", error=(error.strerror or str(error)).lower())


def _read(name: str, path: str, *, follow: bool = False) -> File:
    """The beginning of a file. Raises OSError."""
    fd = files.open_regular(path, follow=follow)
    try:
        data = b""
        while len(data) < _FILE and (more := os.read(fd, 1 << 16)):
            data += more
        cut = "cut: it is larger" if len(data) >= _FILE else ""
        return File(name, f"read {path}", data[:_FILE], cut)
    finally:
        os.close(fd)


def _sysctls() -> Iterator[File]:
    import glob

    lines: list[str] = []
    # Chosen ones: net/ also has secrets, such as stable_secret.
    for pattern in _SYSCTLS:
        for path in sorted(glob.glob(f"/proc/sys/{pattern}")):
            if len(lines) >= _MOST_SYSCTLS:
                break
            try:
                value = files.read(path, 4096).decode(errors="replace").strip()
            except OSError as error:
                value = f"({(error.strerror or str(error)).lower()})"
            if not os.path.isdir(path):
                lines.append(f"{path.removeprefix('/proc/sys/')} = {' '.join(value.split())}\n")
    yield File("node/sysctls", "read /proc/sys", "".join(lines).encode())


def _network() -> Iterator[File]:
    for title, text in kernel.sections():
        yield File(f"node/network/{title}", "netlink", text.encode("utf-8", "surrogateescape"))


def _nftables() -> Iterator[File]:
    text = ruleset.text().encode("utf-8", "surrogateescape")
    yield File("node/network/nftables", "netlink", text)


def _kernel_log() -> Iterator[File]:
    """Lines about links and the packet filter, without waiting for more."""
    lines = []
    fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while True:
            try:
                record = os.read(fd, 8192).decode(errors="replace")
            except OSError as error:
                if error.errno == EPIPE:  # overwritten while it was read
                    continue
                if error.errno != EAGAIN:
                    raise
                break
            head, _, text = record.partition(";")
            # Further lines of a record are its fields, such as the device.
            text = text.split("\n", 1)[0]
            if _KMSG.search(text):
                microseconds = head.split(",")[2]
                lines.append(f"[{int(microseconds) / 1e6:.6f}] {text}\n")
    finally:
        os.close(fd)
    yield File("node/kernel-log", "read /dev/kmsg", "".join(lines[-2000:]).encode())


# --- namespaces of attachments ---


def _namespaces(mask: Mask, places: Places) -> Iterator[File]:
    """The network of each namespace in which something is attached, once."""
    del mask
    live = namespaces.Live()
    seen: dict[tuple[int, int], str] = {}
    overview = []
    for each in attachments.gather(places):
        entry = {**each.as_dict(live), "file": ""}
        overview.append(entry)
        if each.is_dead(live):
            continue
        namespace = namespaces.opened(each.identity, each.netns)
        if namespace is None:
            continue
        with namespace:
            identity = namespace.identity
            # is_own: a container with the node's own network.
            if identity in seen or namespace.is_own or len(seen) >= _MOST_NAMESPACES:
                entry["file"] = seen.get(identity, "")
                continue
            name = f"attachments/{len(seen) + 1:04}-{each.container_id[:16]}"
            entry["file"] = seen[identity] = name
            # This process is there for nothing else, so it may go there itself.
            libc.setns(namespace.fd)
            text = kernel.text()
        raw = text.encode("utf-8", "surrogateescape")
        cut = f"cut: it has {len(raw)} bytes" if len(raw) > _NAMESPACE else ""
        yield File(name, f"netlink in the namespace at {each.netns}", raw[:_NAMESPACE], cut)
    yield _json("attachments/overview", "what the sources of `cni ps` say", overview)


# --- configuration and state ---


def directories(sources: Sources) -> list[tuple[str, str, tuple[str, ...]]]:
    """Name in the archive, path, and the ends of names of files whose content is wanted."""
    situation = sources.situation
    found = [
        ("state/run-cni", situation.state_dir, ()),
        ("state/results", os.path.join(situation.cache_dir, "results"), ()),
        ("configurations", situation.net_d, _CONFIGURATIONS),
    ]
    known = {path for _, path, _ in found}
    from ..view.state_dirs import named

    for kind, path in named(situation.networks, situation.state_dir):
        # Below a directory that is taken as a whole anyway.
        if path not in known and not any(path.startswith(f"{each}/") for each in known):
            known.add(path)
            count = sum(name.startswith(f"state/{kind}") for name, _, _ in found)
            found.append((f"state/{kind}{count + 1 if count else ''}", path, ()))
    return found


def _directory(name: str, path: str, ends: tuple[str, ...]) -> Part:
    def gather(_: Mask) -> Iterator[File]:
        try:
            for each in state.read(path, ends):
                what = f"{name}/{each.path}" if each.path else f"{name}.listing"
                yield File(what, f"read {path}/{each.path}", each.data, each.problem)
        except FileNotFoundError:
            yield File(f"{name}.listing", f"read {path}", error=ABSENT)

    return Part(name, gather)


# --- server, commands and tools ---


def _server(socket: str) -> Iterator[File]:
    from cni.server import status

    try:
        text = status.ask(socket, 5)
    except FileNotFoundError:
        yield File("server.json", f"ask {socket}", error=ABSENT)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        yield File("server.json", f"ask {socket}", error=f"no server answers: {reason}")
    else:
        yield File("server.json", f"ask {socket}", text.encode() + b"\n")


def _commands(sources: Sources) -> Iterator[tuple[str, list[str]]]:
    cached = ["--cache-dir", sources.situation.cache_dir]
    yield "doctor", ["doctor", *cached]
    yield "ls", ["ls", *cached]
    yield "ps", ["ps", *cached]
    yield "ports", ["ports", *cached]
    yield "rules", ["rules", *cached]
    yield "ipam", ["ipam", *cached]
    yield "ipam-list", ["ipam", "list", *cached]
    yield "plugins", ["plugins"]
    yield "validate", ["validate"]
    for network in sources.situation.networks[:_MOST_NETWORKS]:
        yield f"status-{network.name}"[:80], ["status", network.name, *cached]
    yield "migrate", ["migrate"]


def _command(name: str, words: list[str]) -> Part:
    def gather(_: Mask) -> Iterator[File]:
        from cni import cli

        # This child process has a stdout of its own.
        fd = os.memfd_create("output")
        os.dup2(fd, 1)
        code = cli.main([*words, "-o", "json"])
        os.lseek(fd, 0, os.SEEK_SET)
        data = files.read_open(fd, _OUTPUT)
        error = f"exit code {code}" if code else ""
        yield File(f"commands/{name}.json", f"cni {' '.join(words)} -o json", data, error)

    return Part(f"cni {words[0]}", gather)


def sources_of(situation: Situation, cache_dir: str) -> Sources:
    """Where to look, by the environment and the command line."""
    places = Places(cache.Cache(cache_dir), situation.state_dir, situation.net_d)
    return Sources(situation, places)
