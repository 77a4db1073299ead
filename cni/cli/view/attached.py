"""An attachment with all facts about it; attachments.py collects them."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import msgspec

from cni import intent, stderr
from cni.intent import Intent
from cni.ipam.host_local import usage
from cni.netns.namespace import Identity
from cni.owner import Owner

from .. import cache, conflist
from .namespaces import ALIVE, EARLIER_BOOT, GONE, Live

DIRECT_PREFIX = "cnitool-"


class Places(NamedTuple):
    """The paths of the sources."""

    results: cache.Cache
    state_dir: str = intent.STATE_DIR
    net_d: str = conflist.DEFAULT_DIRECTORY

    @classmethod
    def of(cls, cache_dir: str = cache.DEFAULT_DIRECTORY) -> Places:
        """Those that the environment names, as for the plugins."""
        env = os.environ
        return cls(
            cache.Cache(os.path.abspath(cache_dir)),
            env.get("CNI_STATE_DIR") or intent.STATE_DIR,
            env.get("NETCONFPATH") or conflist.DEFAULT_DIRECTORY,
        )


class Found(NamedTuple):
    """A source that names an attachment: its kind, and the file or link."""

    kind: str
    where: str


class Reserved(NamedTuple):
    """An address that host-local has reserved, and its file."""

    address: str
    file: str


class Attached(msgspec.Struct):
    """One interface of one container in one network; shapes are those of cache.Attachment.

    `since` is in seconds since 1970, 0 if unknown. `result` is an ADD's result as JSON, `config`
    the bytes of the network's configuration at the ADD.
    """

    network: str
    container_id: str
    ifname: str
    netns: str = ""
    identity: Identity | None = None
    args: tuple[tuple[str, str], ...] = ()
    capability_args: dict[str, Any] | None = None
    since: float = 0
    result: dict[str, Any] | None = None
    config: bytes = b""
    reserved: list[Reserved] = []
    intents: list[Intent] = []
    links: list[str] = []
    nsids: list[int] = []  # of the other ends of `links`, as the node numbers namespaces
    found: list[Found] = []
    earlier_boot: bool = False

    @property
    def owner(self) -> Owner:
        """The key by which everything is marked."""
        return Owner(self.network, self.container_id, self.ifname)

    @property
    def name(self) -> str:
        """``<network>/<container id>/<interface>``."""
        return f"{self.network}/{self.container_id}/{self.ifname}"

    @property
    def is_direct(self) -> bool:
        """Was it made by a person (`cni add`, cnitool), not by a container runtime?"""
        return self.container_id.startswith(DIRECT_PREFIX)

    @property
    def pod(self) -> str:
        """``<namespace>/<pod>``, as Kubernetes' runtimes say it in CNI_ARGS; else ""."""
        args = dict(self.args)
        pod = args.get("K8S_POD_NAME", "")
        return f"{args.get('K8S_POD_NAMESPACE', '')}/{pod}".lstrip("/") if pod else ""

    @property
    def shown(self) -> str:
        """The pod, or else the container's id, on one line, for people.

        A runtime's user may have chosen them.
        """
        return stderr.printable(self.pod or self.container_id, keep="")

    @property
    def addresses(self) -> list[str]:
        """Addresses of the result, with their prefix length, or else the reserved ones."""
        found = [str(ip["address"]) for ip in self.entries("ips") if ip.get("address")]
        for version in ("ip4", "ip6"):  # results of 0.2.0 and earlier
            old = (self.result or {}).get(version)
            if isinstance(old, dict) and old.get("ip"):
                found.append(str(old["ip"]))
        # Without a result, as of a runtime that keeps none.
        return found or [each.address for each in self.reserved]

    def entries(self, key: str) -> list[dict[str, Any]]:
        """The objects of a list in the result, which may be malformed."""
        found = (self.result or {}).get(key)
        return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []

    def state(self, live: Live) -> str:
        """Of its namespace: alive, gone, unknown or of an earlier boot."""
        if self.earlier_boot:
            return EARLIER_BOOT
        state = live.state(self.identity, self.netns)
        # A pair whose other end is in a namespace goes with that namespace.
        return ALIVE if self.identity is None and self.nsids else state

    def is_dead(self, live: Live) -> bool:
        """Has its namespace certainly ceased to exist?"""
        return self.state(live) in (GONE, EARLIER_BOOT)

    def as_dict(self, live: Live) -> dict[str, Any]:
        """For programs."""
        return {
            "network": self.network,
            "containerID": self.container_id,
            "ifname": self.ifname,
            "pod": self.pod,
            "netns": self.netns,
            "netnsState": self.state(live),
            "addresses": self.addresses,
            "since": usage.when(self.since) if self.since else None,
            "found": [{"kind": each.kind, "where": each.where} for each in self.found],
        }

    def attachment(self) -> cache.Attachment:
        """What the runtime gave for it."""
        return cache.Attachment(
            self.container_id,
            self.network,
            self.ifname,
            self.netns,
            self.args,
            self.capability_args,
        )
