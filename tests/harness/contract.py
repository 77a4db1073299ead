"""What every plugin promises that makes one interface in the container.

A test module subclasses `InterfaceContract` as `TestContract`, says which plugin it is and how its
master is made, and gets the tests. What is special to a plugin it tests itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from .kernel import addresses, has_route, kind, link, links, tree, unchanged
from .packets import ping
from .variants import (
    ALL_VERSIONS,
    CHECK_VERSIONS,
    DUAL,
    GC_VERSIONS,
    NEWEST,
    V4,
    Family,
    each_family,
    each_version,
    result_addresses,
    version_tuple,
)
from .wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from .netns import Netns
    from .runtime import Runtime

Json = dict[str, Any]

MASTER = "lan0"
PEER = "peer0"
PLACES = ("host", "container")


def plug(
    ns: Netns,
    outside: Netns,
    *,
    master: str = MASTER,
    peer: str = PEER,
    mtu: int = 1500,
    vlan: int | None = None,
    index: int = 1001,
    family: Family = DUAL,
) -> None:
    """Give `ns` a link `master`, up and without addresses, to a peer outside: the gateway."""
    other = f"peer name {peer} index {index + 1000} netns {outside.name} mtu {mtu}"
    ns.ip_batch(
        f"link add {master} index {index} mtu {mtu} type veth {other}",
        f"link set {master} addrgenmode none up",
    )
    lines = [f"link set {peer} addrgenmode none up"]
    if vlan is not None:
        lines += [
            f"link add {peer}.{vlan} link {peer} type vlan id {vlan}",
            f"link set {peer}.{vlan} up",
        ]
        peer = f"{peer}.{vlan}"
    for subnet, gateway in zip(family.subnets, family.gateways, strict=True):
        flags = " nodad" if ":" in gateway else ""
        lines.append(f"address add {gateway}/{subnet.rpartition('/')[2]} dev {peer}{flags}")
    outside.ip_batch("link set lo up", *lines)
    await_carrier(ns, master)


def await_carrier(ns: Netns, name: str) -> None:
    """Both ends are up; the kernel says so a moment later, which is not the plugin's doing."""
    wait_until(
        lambda: link(ns, name).get("operstate") == "UP",
        f"{name} comes up",
        tell=lambda: link(ns, name),
    )


def without_dad(*containers: Netns) -> None:
    """Links made here do without IPv6 duplicate address detection, which takes over a second."""
    for container in containers:
        container.set_sysctl("net/ipv6/conf/default/accept_dad", 0)


def without_ipv6(*namespaces: Netns) -> None:
    """Links made here have no IPv6, whose addresses come and go late."""
    for ns in namespaces:
        ns.set_sysctl("net/ipv6/conf/default/disable_ipv6", 1)


def hide(container: Netns, trick: str) -> None:
    """Rename eth0 to `hidden`; then, as `trick` says, remove its alias or give its name away."""
    container.ip_batch("link set eth0 down", "link set eth0 name hidden", "link set hidden up")
    if trick == "and no alias":
        container.ip("link", "set", "hidden", "alias", "")
    elif trick == "and a decoy":
        container.ip("link", "add", "eth0", "type", "veth", "peer", "name", "decoy")
    elif trick == "lo":
        container.ip_batch("link set lo down", "link set lo name eth0")


def leases(data_dir: Path, network: str = "net") -> dict[str, str]:
    """host-local's reservations: address -> container id and interface."""
    found = {}
    for name in tree(data_dir / network):
        if (name[0].isdigit() and "." in name) or ":" in name:
            text = (data_dir / network / name).read_bytes().decode()
            found[name] = " ".join(text.split())
    return found


class StandIn:
    """An IPAM plugin that answers ADD as a test wants, and writes down how it was called."""

    def __init__(self, directory: Path, reply: str, status: int = 0) -> None:
        directory.mkdir()
        self._log = directory / "log"
        (directory / "reply").write_text(reply)
        program = directory / "standin"
        program.write_text(
            f"#!/bin/sh\necho $CNI_COMMAND >>{self._log}\ncat >/dev/null\n"
            f'[ "$CNI_COMMAND" = ADD ] || exit 0\ncat {directory}/reply\nexit {status}\n'
        )
        program.chmod(0o755)
        self.directory = directory
        self.ipam = {"type": "standin"}

    @property
    def calls(self) -> list[str]:
        return self._log.read_text().split() if self._log.exists() else []

    def install(self, runtime: Runtime) -> StandIn:
        """Let the runtime's plugins find it."""
        runtime.cni_path = f"{runtime.bin_dir}:{self.directory}"
        return self


FAILING = '{"code": 11, "msg": "the stand-in has no address"}'
NO_ADDRESS = '{"cniVersion": "1.0.0", "dns": {}}'
# The route's gateway cannot be reached.
BAD_ROUTE = [{"dst": "10.99.0.0/16", "gw": "192.0.2.1"}]


class InterfaceContract:
    """The tests; a subclass says what they are about."""

    plugin: ClassVar[str]
    kind: ClassVar[str]
    # Where the master may be; () for plugins without one.
    places: ClassVar[Sequence[str]] = PLACES
    # Does the plugin make the interface without IPAM?
    layer2: ClassVar[bool] = False
    # Does the link of two containers on one master get a MAC of its own?
    check_mac: ClassVar[str | None] = "doesn't match container Mac"
    check_kind: ClassVar[str | None] = "not of type"
    check_routes: ClassVar[bool] = True
    no_prev_result: ClassVar[str] = "Required prevResult missing"
    other_sandbox: ClassVar[str] = "Sandbox in prevResult"
    ipam_error: ClassVar[str] = "the stand-in has no address"
    ipam_code: ClassVar[int] = 11

    # -- for subclasses -----------------------------------------------------------------------

    def prepare(self, ns: Netns, outside: Netns) -> Json:
        """Make a master in `ns`; the keys of the configuration that name it."""
        if not self.places:
            return {}
        plug(ns, outside)
        return {"master": MASTER}

    def conf(self, keys: Json, ipam: Json | None = None, **more: Any) -> Json:
        document: Json = {"cniVersion": NEWEST, "name": "net", **keys, **more}
        if ipam is not None:
            document["ipam"] = ipam
        return document

    def place(self, where: str, host: Netns, container: Netns, outside: Netns) -> Json:
        """Make the master on the host or in the container; the configuration's keys."""
        if where == "host":
            return self.prepare(host, outside)
        return {**self.prepare(container, outside), "linkInContainer": True}

    @pytest.fixture
    def network(self, runtime: Runtime, outside: Netns, data_dir: Path) -> Json:
        """On a master of the node, with IPv4 addresses that host-local keeps in `data_dir`."""
        return self.conf(self.prepare(runtime.host, outside), V4.host_local(data_dir))

    # -- the tests ----------------------------------------------------------------------------

    @each_version()
    @pytest.mark.parametrize("where", PLACES)
    def test_versions(
        self,
        runtime: Runtime,
        container: Netns,
        outside: Netns,
        data_dir: Path,
        cni_version: str,
        where: str,
    ) -> None:
        if where not in (self.places or ("host",)):
            pytest.skip("this plugin has no master in the container")
        conf = self.conf(
            self.place(where, runtime.host, container, outside),
            V4.host_local(data_dir),
            cniVersion=cni_version,
        )
        if version_tuple(cni_version) >= (1, 1, 0):
            runtime.status(self.plugin, conf).succeeded()
        result = runtime.add(self.plugin, conf, container).result
        assert result["cniVersion"] == cni_version
        assert result_addresses(result) == list(V4.first)
        made = link(container, "eth0")
        assert kind(made) == self.kind
        assert "UP" in made["flags"]
        assert addresses(container, "eth0") == list(V4.first)
        if cni_version in ALL_VERSIONS[2:]:
            expected = {"name": "eth0", "mac": made["address"], "sandbox": container.path}
            assert result["interfaces"] == [expected]
            assert [ip["interface"] for ip in result["ips"]] == [0]
        assert has_route(container, "default", via="10.22.0.1", dev="eth0")
        check = runtime.check(self.plugin, conf, container, prev_result=result)
        if cni_version in CHECK_VERSIONS:
            check.succeeded()
        else:
            check.failed(1)
        for _ in range(2):
            runtime.delete(self.plugin, conf, container, prev_result=result).succeeded()
            assert "eth0" not in links(container)
            assert not leases(data_dir)

    @each_family()
    def test_addresses_and_routes(
        self, runtime: Runtime, container: Netns, outside: Netns, data_dir: Path, family: Family
    ) -> None:
        """With duplicate address detection, as in real life."""
        conf = self.conf(self.prepare(runtime.host, outside), family.host_local(data_dir))
        with unchanged(runtime.host, container):
            with runtime.attached(self.plugin, conf, container) as result:
                assert result_addresses(result) == list(family.first)
                assert addresses(container, "eth0") == list(family.first)
                for dst, gateway in zip(family.defaults, family.gateways, strict=True):
                    assert has_route(container, dst, via=gateway, dev="eth0")
                if self.places:
                    for gateway in family.gateways:
                        ping(container, gateway)
                runtime.check(self.plugin, conf, container, prev_result=result).succeeded()
            runtime.delete(self.plugin, conf, container).succeeded()
        assert not leases(data_dir)

    def test_delete_without_add(self, runtime: Runtime, container: Netns, network: Json) -> None:
        with unchanged(runtime.host, container):
            runtime.delete(self.plugin, network, container).succeeded()

    @pytest.mark.parametrize("gone", ["empty", "path"])
    def test_delete_without_a_namespace_releases_the_address(
        self, runtime: Runtime, container: Netns, network: Json, data_dir: Path, gone: str
    ) -> None:
        runtime.add(self.plugin, network, container).succeeded()
        assert leases(data_dir) == {"10.22.0.2": "c1 eth0"}
        path = container.path
        container.close()
        for _ in range(2):
            runtime.delete(self.plugin, network, None if gone == "empty" else path).succeeded()
            assert not leases(data_dir)

    @pytest.mark.parametrize("trick", ["renamed", "and no alias", "and a decoy", "lo"])
    def test_delete_takes_the_link_that_add_made(
        self, runtime: Runtime, container: Netns, outside: Netns, data_dir: Path, trick: str
    ) -> None:
        """Whatever the container has called it, and whatever has its name by now."""
        conf = self.conf(self.prepare(runtime.host, outside), V4.host_local(data_dir))
        runtime.add(self.plugin, conf, container).succeeded()
        hide(container, trick)
        runtime.delete(self.plugin, conf, container).succeeded()
        assert "hidden" not in links(container)
        assert ("eth0" in links(container)) == (trick in ("and a decoy", "lo"))
        assert not leases(data_dir)

    def test_delete_leaves_another_containers_link(
        self,
        runtime: Runtime,
        container: Netns,
        container2: Netns,
        outside: Netns,
        data_dir: Path,
    ) -> None:
        """The path of the namespace names another container's by now."""
        conf = self.conf(self.prepare(runtime.host, outside), V4.host_local(data_dir))
        runtime.add(self.plugin, conf, container).succeeded()
        other = {**conf, **self.second(runtime.host)}
        runtime.add(self.plugin, other, container2, container_id="c2").succeeded()
        with unchanged(container2):
            runtime.delete(self.plugin, conf, container2).succeeded()
        assert list(leases(data_dir).values()) == ["c2 eth0"]

    def test_delete_when_the_master_is_gone(
        self, runtime: Runtime, container: Netns, network: Json, data_dir: Path
    ) -> None:
        if not self.places:
            pytest.skip("this plugin has no master")
        runtime.add(self.plugin, network, container).succeeded()
        runtime.host.ip("link", "delete", MASTER)
        runtime.delete(self.plugin, network, container).succeeded()
        assert not leases(data_dir)

    @pytest.mark.parametrize(
        ("reply", "status", "text", "calls"),
        [
            (FAILING, 1, "", ["ADD"]),
            (NO_ADDRESS, 0, "IPAM plugin returned missing IP config", ["ADD", "DEL"]),
        ],
        ids=["error", "no-address"],
    )
    def test_ipam_failure_leaves_nothing(
        self,
        runtime: Runtime,
        container: Netns,
        outside: Netns,
        tmp_path: Path,
        reply: str,
        status: int,
        text: str,
        calls: list[str],
    ) -> None:
        ipam = StandIn(tmp_path / "ipam", reply, status).install(runtime)
        conf = self.conf(self.prepare(runtime.host, outside), ipam.ipam, cniVersion="1.0.0")
        with unchanged(runtime.host, container):
            code = 999 if text else self.ipam_code
            runtime.add(self.plugin, conf, container).failed(code, text or self.ipam_error)
        assert ipam.calls == calls

    def test_failed_configuration_leaves_nothing(
        self, runtime: Runtime, container: Netns, outside: Netns, data_dir: Path
    ) -> None:
        ipam = {**V4.host_local(data_dir), "routes": BAD_ROUTE}
        conf = self.conf(self.prepare(runtime.host, outside), ipam)
        with unchanged(runtime.host, container):
            runtime.add(self.plugin, conf, container).failed(999, "failed to add route")
        assert not leases(data_dir)

    def test_name_that_is_taken(
        self, runtime: Runtime, container: Netns, network: Json, data_dir: Path
    ) -> None:
        container.ip("link", "add", "eth0", "type", "veth", "peer", "name", "other0")
        with unchanged(runtime.host, container, data_dir):
            error = runtime.add(self.plugin, network, container).failed(999, "file exists")
        assert "eth0" in error["details"]

    def test_added_twice(
        self, runtime: Runtime, container: Netns, outside: Netns, data_dir: Path
    ) -> None:
        """The second ADD fails and takes nothing away from the first."""
        without_ipv6(container)
        keys = self.prepare(runtime.host, outside)
        conf = self.conf(keys, V4.host_local(data_dir))
        runtime.add(self.plugin, conf, container).succeeded()
        with unchanged(runtime.host, container, data_dir):
            runtime.add(self.plugin, conf, container).failed(999)

    def test_same_name_on_the_host(self, runtime: Runtime, container: Netns, network: Json) -> None:
        runtime.host.ip("link", "add", "eth0", "type", "veth", "peer", "name", "other0")
        with unchanged(runtime.host), runtime.attached(self.plugin, network, container):
            assert kind(link(container, "eth0")) == self.kind

    def test_no_such_namespace(
        self, runtime: Runtime, network: Json, data_dir: Path, tmp_path: Path
    ) -> None:
        with unchanged(runtime.host, data_dir):
            reply = runtime.add(self.plugin, network, tmp_path / "none")
            reply.failed(999, "failed to open netns")

    # -- CHECK --------------------------------------------------------------------------------

    @pytest.fixture
    def attached(
        self, runtime: Runtime, container: Netns, outside: Netns
    ) -> tuple[Callable[..., str], Json]:
        """`problem(**changes)`: what CHECK says now, "" if nothing; and the result of ADD."""
        without_dad(container)
        ipam = DUAL.static()
        ipam["routes"] = [*ipam["routes"], {"dst": "10.77.0.0/16", "gw": "10.22.0.9"}]
        conf = self.conf(self.prepare(runtime.host, outside), ipam)
        result = runtime.add(self.plugin, conf, container).result

        def problem(prev_result: Json | None = result, **changes: Any) -> str:
            changed = {**conf, **changes}
            reply = runtime.check(self.plugin, changed, container, prev_result=prev_result)
            return str(reply.error["msg"]) if reply.rc else ""

        assert problem() == ""
        return problem, result

    def test_check_wants_the_previous_result(
        self,
        attached: tuple[Callable[..., str], Json],
        runtime: Runtime,
        container: Netns,
        tmp_path: Path,
    ) -> None:
        problem, result = attached
        standin = StandIn(tmp_path / "ipam", "").install(runtime)  # host-local would say it too
        assert problem(None, ipam=standin.ipam) == self.no_prev_result
        other = [{**result["interfaces"][0], "sandbox": "/run/netns/other"}]
        assert problem({**result, "interfaces": other}) == (
            f"{self.other_sandbox} /run/netns/other doesn't match configured netns: "
            f"{container.path}"
        )

    def test_check_sees_a_missing_link(
        self, attached: tuple[Callable[..., str], Json], container: Netns
    ) -> None:
        container.ip("link", "delete", "eth0")
        assert attached[0]()

    def test_check_sees_another_kind_of_link(
        self, attached: tuple[Callable[..., str], Json], container: Netns
    ) -> None:
        if self.check_kind is None:
            pytest.skip("this plugin does not look at it")
        container.ip_batch("link delete eth0", "link add eth0 type veth peer name other0")
        assert self.check_kind in attached[0]()

    def test_check_sees_another_mac(
        self, attached: tuple[Callable[..., str], Json], container: Netns
    ) -> None:
        if self.check_mac is None:
            pytest.skip("this plugin does not look at it")
        problem, result = attached
        other = [{**result["interfaces"][0], "mac": "02:00:00:00:00:99"}]
        mac = link(container, "eth0")["address"]
        said = problem({**result, "interfaces": other})
        assert said.endswith(f"nterface eth0 Mac 02:00:00:00:00:99 {self.check_mac}: {mac}")

    @pytest.mark.parametrize("address", ["10.22.0.2/24", "fd00:22::2/64"])
    def test_check_sees_a_missing_address(
        self, attached: tuple[Callable[..., str], Json], container: Netns, address: str
    ) -> None:
        container.ip("address", "delete", address, "dev", "eth0")
        assert attached[0]() == f"Failed to match addr {address} on interface eth0"

    @pytest.mark.parametrize("dst", ["default", "10.77.0.0/16"])
    def test_check_sees_a_missing_route(
        self, attached: tuple[Callable[..., str], Json], container: Netns, dst: str
    ) -> None:
        container.ip("route", "delete", dst)
        said = attached[0]()
        assert ("not found in routing table" in said) if self.check_routes else said == ""

    def test_check_sees_a_missing_subnet(
        self, attached: tuple[Callable[..., str], Json], container: Netns
    ) -> None:
        container.ip("route", "delete", "10.22.0.0/24")
        assert attached[0]() == "Failed to find Gateway 10.22.0.1 for interface eth0"

    # -- GC -----------------------------------------------------------------------------------

    @each_version(GC_VERSIONS)
    def test_gc_releases_the_leases_of_others(
        self,
        runtime: Runtime,
        container: Netns,
        container2: Netns,
        outside: Netns,
        data_dir: Path,
        cni_version: str,
    ) -> None:
        keys = self.prepare(runtime.host, outside)
        conf = self.conf(keys, V4.host_local(data_dir), cniVersion=cni_version)
        runtime.add(self.plugin, conf, container).succeeded()
        second = {**conf, **self.second(runtime.host)}
        runtime.add(self.plugin, second, container2, container_id="c2").succeeded()
        runtime.gc(self.plugin, conf, None).succeeded()
        assert sorted(leases(data_dir)) == ["10.22.0.2", "10.22.0.3"]
        runtime.gc(self.plugin, conf, [("c2", "eth0")]).succeeded()
        assert leases(data_dir) == {"10.22.0.3": "c2 eth0"}
        assert addresses(container2, "eth0") == ["10.22.0.3/24"]
        runtime.gc(self.plugin, conf, []).succeeded()
        assert not leases(data_dir)

    def second(self, host: Netns) -> Json:  # noqa: ARG002 for subclasses
        """What a second container's configuration needs to be different."""
        return {}

    def test_status_and_gc_begin_with_version_1_1_0(self, runtime: Runtime, data_dir: Path) -> None:
        conf = self.conf({"master": MASTER}, V4.host_local(data_dir), cniVersion="1.0.0")
        runtime.status(self.plugin, conf).failed(1)
        runtime.gc(self.plugin, conf, []).failed(1)

    def test_status_is_that_of_ipam(self, runtime: Runtime, tmp_path: Path) -> None:
        directory = tmp_path / "ipam"
        StandIn(directory, "").install(runtime)
        (directory / "standin").write_text(
            '#!/bin/sh\ncat >/dev/null\necho \'{"code": 50, "msg": "not now"}\'\nexit 1\n'
        )
        conf = self.conf({"master": MASTER}, {"type": "standin"})
        runtime.status(self.plugin, conf).failed(50, "not now")
