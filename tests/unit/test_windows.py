"""win-bridge and win-overlay against an emulated HNS (tests/harness/hns.py), on any machine.

What the plugins send crosses a real C border: pointers, UTF-16, GUIDs, handles, freeing.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni import delegate, dispatch
from cni.dispatch import answer
from cni.protocol.errors import CNIError
from cni.windows import dll, hcn, hns
from tests.harness.hns import NOT_FOUND, Hns, Json, build
from tests.unit.ipam_node import ALL_VERSIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

UNKNOWN_GUID = "00000000-1111-2222-3333-444444444444"
ENV = {"CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_ARGS": ""}


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc, to build the emulated libraries")
    return build(tmp_path_factory.mktemp("hns"))


@pytest.fixture
def host(libraries: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hns]:
    for name, plugin in dispatch.WINDOWS.items():
        monkeypatch.setitem(dispatch.TABLE, name, plugin)
    # The delegate runs in this process, as a launcher's twin does.
    monkeypatch.setattr(delegate, "is_ourselves", lambda _program: True)
    service = Hns(libraries)
    yield service
    service.verify_no_leaks()
    service.close()


class Node:
    """A Windows host with one network; `v2` chooses the API."""

    def __init__(self, host: Hns, directory: Path, plugin: str, v2: bool) -> None:
        self.host, self.plugin, self.v2 = host, plugin, v2
        kind = "Overlay" if plugin == "win-overlay" else "L2Bridge"
        self.network = host.network("net", kind, "10.1.0.0/16", "10.1.0.1")
        self.netns = host.namespace() if v2 else "none"
        host.containers["c1"] = []
        self.leases = directory / "networks" / "net"
        for name in ("host-local", "static"):
            (directory / name).write_text("")
        self.path = str(directory)
        ipam = {"type": "host-local", "subnet": "10.1.7.0/24", "dataDir": str(self.leases.parent)}
        self.conf: Json = {
            "cniVersion": "1.1.0",
            "name": "net",
            "type": plugin,
            "apiVersion": 2 if v2 else 1,
            "ipam": ipam,
        }

    def run(self, verb: str, env: dict[str, str] | None = None, **keys: Any) -> tuple[int, Json]:
        """Exit code and output. A key that is None is left out."""
        conf = {k: v for k, v in {**self.conf, **keys}.items() if v is not None}
        variables = {**ENV, "CNI_COMMAND": verb, "CNI_NETNS": self.netns, "CNI_PATH": self.path}
        stdin = json.dumps(conf).encode()
        code, output = answer(self.plugin, {**variables, **(env or {})}, lambda: stdin)
        return code, json.loads(output) if output else {}

    def ok(self, verb: str, env: dict[str, str] | None = None, **keys: Any) -> Json:
        code, output = self.run(verb, env, **keys)
        assert code == 0, output
        return output

    def refused(self, verb: str, env: dict[str, str] | None = None, **keys: Any) -> str:
        """The error's message; nothing is left of a failed ADD."""
        before = len(self.host.endpoints)
        code, output = self.run(verb, env, **keys)
        assert code == 1, output
        if verb == "ADD":
            assert len(self.host.endpoints) <= before
        return str(output["msg"])

    def addresses(self) -> list[str]:
        """What host-local has handed out and not been given back."""
        return sorted(p.name for p in self.leases.glob("10.*"))

    def document(self) -> Json:
        """The request document of the last endpoint that was made."""
        function = "HcnCreateEndpoint" if self.v2 else "HNSCall"
        found = [c[-1] for c in self.host.named(function) if self.v2 or c[0] == "POST"]
        found = [json.loads(text) for text in found if "Name" in text]
        return found[-1]  # type: ignore[no-any-return]

    @property
    def failing(self) -> tuple[str, str]:
        """Function that makes an endpoint, and the one that attaches it."""
        if self.v2:
            return "HcnCreateEndpoint", "HcnModifyNamespace"
        return "HNSCall POST /endpoints/", "HcsModifyComputeSystem"


@pytest.fixture(params=[False, True], ids=["v1", "v2"])
def v2(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def bridge(host: Hns, tmp_path: Path, v2: bool) -> Node:
    return Node(host, tmp_path, "win-bridge", v2)


@pytest.fixture
def overlay(host: Hns, tmp_path: Path, v2: bool) -> Node:
    return Node(host, tmp_path, "win-overlay", v2)


@pytest.fixture(params=["win-bridge", "win-overlay"])
def node(request: pytest.FixtureRequest, host: Hns, tmp_path: Path, v2: bool) -> Node:
    return Node(host, tmp_path, request.param, v2)


# -- golden documents -----------------------------------------------------------------------------

SHARED: Json = {
    "dns": {"nameservers": ["10.96.0.10", "10.96.0.11"], "search": ["svc.local", "local"]},
    "loopbackDSR": True,
    "capabilities": {"portMappings": True, "dns": True},
}
ACL = {"Type": "ACL", "Settings": {"Action": "Block", "Direction": "Out"}}
SDN = {"Type": "SDNRoute", "Settings": {"DestinationPrefix": "10.9.0.0/16", "NeedEncap": True}}
V1_ROUTE = {"Type": "ROUTE", "DestinationPrefix": "10.9.0.0/16", "NeedEncap": True}


def listed(*policies: Json) -> list[Json]:
    return [{"name": "EndpointPolicy", "value": each} for each in policies]


def test_bridge_v1_document(host: Hns, tmp_path: Path) -> None:
    node = Node(host, tmp_path, "win-bridge", v2=False)
    mapping = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "1.2.3.4"}
    keys = {
        **SHARED,
        "policies": listed(V1_ROUTE),
        "ipMasqNetwork": "10.244.0.0/16",
        "runtimeConfig": {"portMappings": [mapping]},
    }
    assert node.ok("ADD", **keys) == {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "c1_net", "mac": "00-15-5D-00-00-01"}],
        "ips": [{"address": "10.1.7.2/16", "gateway": "10.1.7.2"}],
        "dns": SHARED["dns"],
    }
    assert node.document() == {
        "Name": "c1_net",
        "VirtualNetwork": node.network,
        "Policies": [
            V1_ROUTE,
            {"Type": "OutBoundNAT", "ExceptionList": ["10.244.0.0/16"]},
            {"Type": "NAT", "InternalPort": 80, "ExternalPort": 8080, "Protocol": "tcp"},
            {"Type": "OutBoundNAT", "Destinations": ["10.1.7.2"]},
        ],
        "IPAddress": "10.1.7.2",
        "GatewayAddress": "10.1.7.2",
        "DNSServerList": "10.96.0.10,10.96.0.11",
        "DNSSuffix": "svc.local,local",
    }
    assert host.containers["c1"] == [host.endpoints[0]["ID"]]


def test_bridge_v2_document(host: Hns, tmp_path: Path) -> None:
    node = Node(host, tmp_path, "win-bridge", v2=True)
    mapping = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "1.2.3.4"}
    keys = {
        **SHARED,
        "policies": listed(ACL, SDN),
        "ipMasqNetwork": "10.244.0.0/16",
        "runtimeConfig": {
            "portMappings": [mapping],
            "dns": {"servers": ["10.0.0.53"], "searches": []},
        },
    }
    result = node.ok("ADD", **keys)
    dns = {"nameservers": ["10.0.0.53"], "search": ["svc.local", "local"]}
    assert result["dns"] == dns
    assert result["ips"] == [{"address": "10.1.7.2/16", "gateway": "10.1.7.2"}]
    ports = {"InternalPort": 80, "ExternalPort": 8080, "Protocol": 6, "VIP": "1.2.3.4"}
    assert node.document() == {
        "Name": "c1_net",
        "HostComputeNetwork": node.network,
        "Policies": [
            ACL,
            SDN,
            {"Type": "OutBoundNAT", "Settings": {"Exceptions": ["10.244.0.0/16"]}},
            {"Type": "PortMapping", "Settings": ports},
            {"Type": "OutBoundNAT", "Settings": {"Destinations": ["10.1.7.2"]}},
        ],
        "IpConfigurations": [{"IpAddress": "10.1.7.2"}],
        "Dns": {"Search": ["svc.local", "local"], "ServerList": ["10.0.0.53"]},
        "Routes": [{"NextHop": "10.1.7.2", "DestinationPrefix": "0.0.0.0/0"}],
        "SchemaVersion": {"Major": 2, "Minor": 0},
    }
    assert host.namespaces[node.netns] == [host.endpoints[0]["ID"]]


def test_overlay_documents(overlay: Node) -> None:
    result = overlay.ok("ADD", **SHARED, ipMasq=True, runtimeConfig={"portMappings": [{}]})
    mac = "0E-2A-0a-01-07-02"
    assert result["interfaces"] == [{"name": "c1_net", "mac": mac}]
    assert result["ips"] == [{"address": "10.1.7.2/16", "gateway": "10.1.0.1"}]
    document = overlay.document()
    assert document["MacAddress"] == mac
    if overlay.v2:
        assert document["Routes"] == [
            {"NextHop": "10.1.0.1", "DestinationPrefix": "0.0.0.0/0"},
        ]
        assert document["Policies"] == [
            {"Type": "OutBoundNAT", "Settings": {"Destinations": ["10.1.7.2"]}},
            {"Type": "ProviderAddress", "Settings": {"ProviderAddress": "192.168.0.7"}},
            {"Type": "OutBoundNAT", "Settings": {"Exceptions": ["10.1.0.0/16"]}},
        ]
    else:
        assert document["GatewayAddress"] == "10.1.0.1"
        assert document["Policies"] == [
            {"Type": "PA", "PA": "192.168.0.7"},
            {"Type": "OutBoundNAT", "ExceptionList": ["10.1.0.0/16"]},
            {"Type": "OutBoundNAT", "Destinations": ["10.1.7.2"]},
        ]


@pytest.mark.parametrize(
    ("version", "supported"),
    [((9, 2), False), ((9, 3), True), ((9, 9), True), ((10, 0), False), ((10, 2), True)],
)
def test_hosts_with_and_without_dsr(
    bridge: Node, version: tuple[int, int], supported: bool
) -> None:
    bridge.host.version = {"Major": version[0], "Minor": version[1]}
    bridge.ok("ADD", loopbackDSR=True)
    assert ("Policies" in bridge.document()) == supported


def test_without_ipam_the_host_chooses(bridge: Node) -> None:
    result = bridge.ok("ADD", ipam=None)
    assert result["ips"] == [{"address": "10.99.0.9/16"}]
    assert not {"IPAddress", "IpConfigurations", "Routes"} & set(bridge.document())
    bridge.ok("DEL", ipam=None)
    assert bridge.host.endpoints == []


def test_ipv6(bridge: Node) -> None:
    """The bridge plugin's gateway is the subnet's address with 2 added, in either family."""
    bridge.host.networks[0]["Subnets"] = [{"AddressPrefix": "fd00::/64", "GatewayAddress": ""}]
    result = bridge.ok("ADD", ipam={**bridge.conf["ipam"], "subnet": "fd00:0:0:0::/64"})
    assert result["ips"][0]["gateway"] == "fd00::2"
    if bridge.v2:
        assert bridge.document()["Routes"][0]["DestinationPrefix"] == "::/0"


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_every_version(node: Node, version: str) -> None:
    result = node.ok("ADD", cniVersion=version)
    assert result["cniVersion"] == version
    node.ok("DEL", cniVersion=version)
    assert node.addresses() == []


def test_mac_prefix(overlay: Node) -> None:
    assert overlay.refused("ADD", endpointMacPrefix="0E2A") == (
        "endpointMacPrefix [0E2A] is invalid, value must be of the format xx-xx"
    )
    overlay.ok("ADD", endpointMacPrefix="0a-FF")
    assert overlay.document()["MacAddress"] == "0a-FF-0a-01-07-02"


# -- names and reuse ------------------------------------------------------------------------------


def test_add_is_idempotent_and_so_is_del(node: Node) -> None:
    first = node.ok("ADD")
    assert node.ok("ADD") == first
    assert len(node.host.endpoints) == 1
    assert node.addresses() == ["10.1.7.2"]
    node.ok("CHECK", prevResult=first)
    for _ in range(2):
        node.ok("DEL")
        assert node.host.endpoints == []
        assert node.addresses() == []
    if node.v2:
        assert node.host.namespaces[node.netns] == []


def test_an_endpoint_of_another_network_is_replaced(node: Node) -> None:
    other = node.host.network("other", "L2Bridge", "10.2.0.0/16")
    node.ok("ADD")
    stale = node.host.endpoints[0]
    stale["VirtualNetwork"] = stale["HostComputeNetwork"] = other
    stale["HostComputeNamespace"] = UNKNOWN_GUID
    if node.v2:
        node.host.namespaces[node.netns].clear()
    node.ok("DEL", {"CNI_NETNS": ""} if not node.v2 else None)
    stale_ids = [e["ID"] for e in node.host.endpoints]
    node.ok("ADD")
    assert len(node.host.endpoints) == 1
    assert node.host.endpoints[0]["ID"] not in stale_ids


def test_containers_of_a_pod_share_its_endpoint(host: Hns, tmp_path: Path) -> None:
    node = Node(host, tmp_path, "win-bridge", v2=False)
    host.containers["work"] = []
    shared = {"CNI_CONTAINERID": "work", "CNI_NETNS": "container:c1"}
    assert node.refused("ADD", shared).startswith(
        "error while adding HNSEndpoint: failed to find HNSEndpoint c1_net: "
    )
    result = node.ok("ADD")
    assert node.ok("ADD", shared) == result
    assert host.containers["work"] == [host.endpoints[0]["ID"]]
    node.ok("DEL", shared)
    assert len(host.endpoints) == 1
    assert node.addresses() == ["10.1.7.2"]
    paths = [call[1] for call in host.named("HNSCall")]
    assert f"/endpoints/{host.endpoints[0]['ID']}/detach" in paths
    # One that is not running yet is no error where the endpoint exists.
    node.ok("ADD", {**shared, "CNI_CONTAINERID": "later"})
    node.ok("DEL")
    assert host.endpoints == []


def test_v1_del_without_netns_leaves_the_endpoint(host: Hns, tmp_path: Path) -> None:
    node = Node(host, tmp_path, "win-bridge", v2=False)
    node.ok("ADD")
    node.ok("DEL", {"CNI_NETNS": ""})
    assert len(host.endpoints) == 1


def test_v2_del_without_netns_or_namespace(host: Hns, tmp_path: Path) -> None:
    node = Node(host, tmp_path, "win-bridge", v2=True)
    node.ok("ADD")
    host.namespaces.clear()
    node.ok("DEL", {"CNI_NETNS": ""})
    assert host.endpoints == []


# -- failures -------------------------------------------------------------------------------------


def test_the_network_is_missing_or_of_another_type(node: Node) -> None:
    text = node.refused("ADD", name="nosuch")
    end = "not found" if (node.plugin, node.v2) == ("win-overlay", False) else "is not found"
    assert text == f"network nosuch {end}"
    node.host.networks[0]["Type"] = "NAT"
    article = "an " if node.plugin == "win-overlay" else ""
    assert node.refused("ADD") == f"network net is of {article}unexpected type: NAT"
    assert node.addresses() == []


def test_types_are_exact_in_v2_only(node: Node) -> None:
    node.host.networks[0]["Type"] = node.host.networks[0]["Type"].lower()
    if node.v2:
        node.refused("ADD")
    else:
        node.ok("ADD")


def test_what_failed_leaves_nothing(node: Node) -> None:
    making, attaching = node.failing
    for function in (making, attaching):
        node.host.failures.clear()
        node.host.fail(function, 0x80070005, '{"Error": "désolé 😀"}')
        code, error = node.run("ADD")
        assert code == 1
        assert f"{function.split()[0]}: access denied (0x80070005)" in error["msg"]
        if not function.startswith("HNSCall"):  # which has no error record
            assert error["details"] == '{"Error": "désolé 😀"}'
        assert node.host.endpoints == []
        assert node.addresses() == []
    if node.v2:
        assert (
            f"failed to add HostComputeEndpoint c1_net to HostComputeNamespace {node.netns}"
            in error["msg"]
        )
    else:
        assert "failed to attach container c1 to HNSEndpoint" in error["msg"]
    node.host.failures.clear()
    node.ok("ADD")


def test_v1_container_that_does_not_run(host: Hns, tmp_path: Path) -> None:
    node = Node(host, tmp_path, "win-overlay", v2=False)
    host.containers.clear()
    text = node.refused("ADD")
    assert text.startswith(f"error while AddHnsEndpoint(c1_net,{node.network},c1): ")
    assert text.endswith("The compute system does not exist")
    assert node.addresses() == []


def test_ipam_fails(node: Node) -> None:
    start = (
        "error while ipam.ExecAdd: "
        if (node.plugin, node.v2) == ("win-overlay", False)
        else "error while executing IPAM addition: "
    )
    without_ranges = {"type": "host-local", "dataDir": str(node.leases.parent)}
    assert start in node.refused("ADD", ipam=without_ranges)
    assert start in node.refused("ADD", ipam={"type": "nosuch"})
    assert "IPAM plugin return is missing IP config" in node.refused("ADD", ipam={"type": "static"})


def test_overlay_refuses_ipv6(overlay: Node) -> None:
    ipam = {**overlay.conf["ipam"], "subnet": "fd00::/64"}
    wanted = "IPAM plugin return is missing valid IP Address"
    assert (wanted if overlay.v2 else "doesn't support IPv6") in overlay.refused("ADD", ipam=ipam)
    assert list(overlay.leases.glob("fd*")) == []


def test_an_overlay_without_subnet(overlay: Node) -> None:
    overlay.host.networks[0]["Subnets"] = []
    assert overlay.refused("ADD") == "network net has no subnet"


def test_v2_needs_the_guid_of_a_namespace(host: Hns, tmp_path: Path) -> None:
    node = Node(host, tmp_path, "win-bridge", v2=True)
    for netns in ("none", "6b29fc40", UNKNOWN_GUID + "0", "g" * 36):
        assert f'"{netns}" is not a GUID' in node.refused("ADD", {"CNI_NETNS": netns})
    assert host.named("HcnCreateEndpoint") == []
    assert "not found" in node.refused("ADD", {"CNI_NETNS": UNKNOWN_GUID})
    assert node.addresses() == []


def test_del_goes_on_when_ipam_fails(node: Node) -> None:
    node.ok("ADD")
    text = node.refused("DEL", ipam={"type": "nosuch"})
    assert 'failed to find plugin "nosuch"' in text
    assert node.host.endpoints == []


def test_v2_del_failures(host: Hns, tmp_path: Path) -> None:
    node = Node(host, tmp_path, "win-bridge", v2=True)
    node.ok("ADD")
    host.fail("HcnModifyNamespace", 0x80070005)
    assert node.refused("DEL").startswith("error removing endpoint: c1_net from namespace: ")
    host.failures = {"HcnDeleteEndpoint": (0x80070005, "")}
    assert node.refused("DEL").startswith("failed to remove HostComputeEndpoint c1_net: ")
    host.failures = {"HcnDeleteEndpoint": (NOT_FOUND, "")}
    node.ok("DEL")


@pytest.mark.parametrize(
    "keys",
    [
        {"apiVersion": "2"},
        {"policies": {}},
        {"policies": [5]},
        {"loopbackDSR": 1},
        {"runtimeConfig": {"portMappings": [{"hostPort": "80"}]}},
        {"runtimeConfig": {"dns": {"servers": "10.0.0.1"}}},
    ],
)
def test_bad_configurations(node: Node, keys: Json) -> None:
    assert node.refused("ADD", **keys).startswith("failed to load netconf: json: cannot unmarshal")


def test_a_null_policy_is_none(bridge: Node) -> None:
    bridge.ok("ADD", policies=[None, *listed(ACL)])
    assert bridge.document()["Policies"] == [ACL]


# -- the other verbs ------------------------------------------------------------------------------


def test_check(node: Node) -> None:
    result = node.ok("ADD")
    endpoint = node.host.endpoints[0]
    other = {**result["interfaces"][0], "mac": "00-00-00-00-00-01"}
    assert "want MAC 00-00-00-00-00-01" in node.refused(
        "CHECK", prevResult={**result, "interfaces": [other]}
    )
    ips = [{"address": "10.1.7.9/16"}]
    assert "want 10.1.7.9/16, have 10.1.7.2" in node.refused(
        "CHECK", prevResult={**result, "ips": ips}
    )
    if node.v2:
        endpoint["HostComputeNamespace"] = UNKNOWN_GUID
        assert f"have {UNKNOWN_GUID}" in node.refused("CHECK", prevResult=result)
    node.host.endpoints.clear()
    assert node.refused("CHECK", prevResult=result) == "endpoint c1_net is gone"


def test_gc(node: Node) -> None:
    other = node.host.network("other", "L2Bridge", "10.2.0.0/16")
    for container in ("c1", "c2"):
        node.host.containers[container] = []
        node.ok("ADD", {"CNI_CONTAINERID": container})
        if node.v2:
            node.netns = node.host.namespace()
    foreign = {"Name": "c9_net", "MacAddress": "", "HostComputeNamespace": "", "Policies": []}
    node.host._add({**foreign, "HostComputeNetwork": other}, other)
    node.host._add({**foreign, "Name": "else", "HostComputeNetwork": node.network}, node.network)
    keep = [{"containerID": "c2", "ifname": "eth0"}]
    node.ok("GC", **{"cni.dev/valid-attachments": keep})
    assert node.addresses() == ["10.1.7.3"]
    names = [endpoint["Name"] for endpoint in node.host.endpoints]
    assert names == [*([] if node.v2 else ["c1_net"]), "c2_net", "c9_net", "else"]


def test_status(node: Node) -> None:
    node.ok("STATUS")
    code, error = node.run("STATUS", name="nosuch")
    assert (code, error["code"]) == (1, 50)
    node.host.fail("HNSCall", 0x80070422)
    node.host.fail("HcnEnumerateNetworks", 0x80070422)
    code, error = node.run("STATUS")
    assert (code, error["code"]) == (1, 50)
    assert "the service is disabled (0x80070422)" in error["msg"]


# -- the border -----------------------------------------------------------------------------------


def test_texts_of_every_length_and_plane(host: Hns) -> None:
    """Their ends lie anywhere on a page, with characters of one and two units."""
    names = ["x" * length for length in range(0, 5000, 499)] + ["é" * 2047, "😀" * 3000]
    for name in names:
        host.networks.clear()
        identity = host.network(name, "L2Bridge", "10.0.0.0/8")
        for api in (hns, hcn):
            found = api.find_network(name)
            assert found is not None
            assert (found.id, found.subnet) == (identity, "10.0.0.0/8")


def test_a_text_with_nul_is_refused(host: Hns) -> None:
    with pytest.raises(CNIError, match="NUL"):
        hns.request("GET", "/networks/\0")
    assert host.calls == []


def test_unpaired_surrogates_do_not_crash(host: Hns) -> None:
    with pytest.raises(dll.HResultError) as caught:
        hns.request("GET", "/networks/\ud800")
    assert caught.value.hresult == 0x80070057


def test_a_guid_is_a_structure() -> None:
    assert dll.guid("00112233-4455-6677-8899-AABBCCDDEEFF").hex() == (
        "33221100554477668899aabbccddeeff"
    )


def test_endpoints_that_vanish_meanwhile_are_left_out(host: Hns) -> None:
    host.network("net", "L2Bridge")
    host.fail("HcnOpenNetwork", 0x803B0001, '{"Error": "gone"}')
    assert hcn.find_network("net") is None


@pytest.mark.parametrize("text", ["", "nonsense", '"text"', "[]", '{"Success": "x"}', "5"])
def test_an_answer_that_is_none(host: Hns, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_HNSCall", lambda *_: (text, 0))
    with pytest.raises(CNIError):
        hns.find_network("net")


def test_hns_says_no(host: Hns, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_ = '{"Success": false, "Error": "The parameter is incorrect. "}'
    monkeypatch.setattr(host, "_HNSCall", lambda *_: (answer_, 0))
    with pytest.raises(CNIError, match="HNS failed with error : The parameter is incorrect"):
        hns.find_network("net")


def test_a_host_without_the_library() -> None:
    with pytest.raises(CNIError, match=r"cannot use HNSCall of nosuch\.dll") as caught:
        dll.Library("nosuch.dll").call("HNSCall")
    assert "Containers" in caught.value.details


def test_every_text_is_freed_when_a_function_gives_two(host: Hns) -> None:
    """The properties and the error record at once; `host` counts."""
    host.network("net", "L2Bridge")
    host.fail("HcnEnumerateNetworks", 0x80004005, "{}")
    with pytest.raises(dll.HResultError) as caught:
        hcn.find_network("net")
    assert caught.value.details == "{}"
