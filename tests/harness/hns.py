"""An emulated HNS and HCN: hns.c is the border of the libraries, this is what is behind it.

    service = Hns(directory); service.network("net", "Overlay", "10.1.0.0/16", "10.1.0.1")

The libraries are loaded here by their paths; the code under test then finds them by their names,
as it does on Windows. Documents are validated strictly, and `failures` makes a function fail.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import uuid
from pathlib import Path
from typing import Any

Json = dict[str, Any]
SOURCE = Path(__file__).with_name("hns.c")
INVALID, NOT_FOUND = 0x803B000C, 0x80070490
NO_ENDPOINT, NO_SYSTEM = 0x803B0002, 0xC037010E

# Keys of the documents that may be sent, and their types.
V1_ENDPOINT = {
    "Name": str,
    "VirtualNetwork": str,
    "Policies": list,
    "MacAddress": str,
    "IPAddress": str,
    "DNSSuffix": str,
    "DNSServerList": str,
    "GatewayAddress": str,
}
V2_ENDPOINT = {
    "Name": str,
    "HostComputeNetwork": str,
    "Policies": list,
    "IpConfigurations": list,
    "Dns": dict,
    "Routes": list,
    "MacAddress": str,
    "SchemaVersion": dict,
}
V2_POLICY = {"Type": str, "Settings": dict}


class _Reply(ctypes.Structure):
    _fields_ = (
        ("text", ctypes.c_void_p),
        ("record", ctypes.c_void_p),
        ("handle", ctypes.c_void_p),
    )


_Backend = ctypes.CFUNCTYPE(
    ctypes.c_int32,
    ctypes.c_char_p,
    ctypes.c_void_p,
    *[ctypes.c_char_p] * 4,
    ctypes.POINTER(_Reply),
)


class Refused(Exception):
    """A function's failure: HRESULT and error record."""

    def __init__(self, hresult: int, record: str = "") -> None:
        super().__init__(hresult)
        self.hresult = hresult
        self.record = record


def build(directory: Path) -> ctypes.CDLL:
    """Compile and load the libraries, each under its own name; the core has the counters."""
    core = directory / "libhnscore.so"
    flags = ["-shared", "-fPIC", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden"]
    subprocess.run(["gcc", *flags, "-DCORE", "-o", core, SOURCE], check=True)
    loaded = ctypes.CDLL(str(core), mode=ctypes.RTLD_GLOBAL)
    for name in ("vmcompute", "computenetwork", "ole32"):
        path = directory / f"{name}.dll"
        named = [f"-D{name.upper()}", f"-Wl,-soname,{path.name}", f"-Wl,-rpath,{directory}"]
        subprocess.run(["gcc", *flags, *named, "-o", path, SOURCE, core], check=True)
        ctypes.CDLL(str(path))  # from now on its name is enough
    loaded.emulated_string.restype = ctypes.c_void_p
    return loaded


def strict(text: str) -> Any:
    """JSON without NaN, duplicate keys or anything behind it."""

    def pairs(items: list[tuple[str, Any]]) -> Json:
        if len(dict(items)) != len(items):
            raise Refused(INVALID, '{"Error": "duplicate key"}')
        return dict(items)

    def constant(text: str) -> None:
        raise Refused(INVALID, json.dumps({"Error": text}))

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise Refused(INVALID, json.dumps({"Error": str(error)})) from None


def verify(document: Any, keys: dict[str, type]) -> None:
    """Only these keys, of these types, none of them empty."""
    if not isinstance(document, dict):
        raise Refused(INVALID, '{"Error": "not an object"}')
    for key, value in document.items():
        if key not in keys or not isinstance(value, keys[key]):
            raise Refused(INVALID, json.dumps({"Error": f"{key}: {value!r}"}))


class Hns:
    """The host's networks, endpoints, namespaces and containers; `calls` is what was asked."""

    def __init__(self, core: ctypes.CDLL) -> None:
        self._core = core
        self._backend = _Backend(self._answer)
        # C keeps no reference: the callback must live as long as this object.
        core.emulated_backend(self._backend)
        self.version = {"Major": 15, "Minor": 1}
        self.networks: list[Json] = []  # as v1 sees them
        self.endpoints: list[Json] = []
        self.namespaces: dict[str, list[str]] = {}
        self.containers: dict[str, list[str]] = {}
        self.calls: list[tuple[str, ...]] = []
        self.failures: dict[str, tuple[int, str]] = {}  # function, or "HNSCall METHOD /path"
        self.handles: dict[int, Any] = {}
        self.errors: list[BaseException] = []
        self._next = 1 << 40  # does not fit into an int

    # -- for tests --

    def network(self, name: str, kind: str, subnet: str = "", gateway: str = "") -> str:
        """Make a network; its ID."""
        subnets = [{"AddressPrefix": subnet, "GatewayAddress": gateway}] if subnet else []
        network = {"ID": str(uuid.uuid4()).upper(), "Name": name, "Type": kind, "Subnets": subnets}
        self.networks.append({**network, "ManagementIP": "192.168.0.7", "Policies": []})
        return str(network["ID"])

    def namespace(self) -> str:
        """Make a namespace; its GUID."""
        identity = str(uuid.uuid4())
        self.namespaces[identity] = []
        return identity

    def fail(self, function: str, hresult: int, record: str = "") -> None:
        """From now on the function fails."""
        self.failures[function] = hresult, record

    def named(self, function: str) -> list[tuple[str, ...]]:
        """The arguments of the calls of a function."""
        return [call[1:] for call in self.calls if call[0] == function]

    def verify_no_leaks(self) -> None:
        """Texts are freed, once; handles are closed; nothing went wrong in here."""
        assert not self.errors, self.errors
        assert self._core.emulated_live() == 0, "texts that were not freed"
        assert self._core.emulated_bad_frees() == 0, "something else was freed"
        assert not self.handles, "handles that were not closed"

    def close(self) -> None:
        self._core.emulated_backend(_Backend())

    # -- the border --

    def _answer(
        self, name: bytes, handle: int | None, guid: bytes, *rest: Any
    ) -> int:  # called from C
        *texts, reply = rest
        arguments = [text.decode() for text in texts if text is not None]
        function = name.decode()
        self.calls.append((function, *arguments))
        text: str | None = ""
        record, made, hresult = "", 0, 0
        try:
            self._fail_if_told(function, arguments)
            opened = self.handles[handle] if handle else None
            target = guid.decode() if guid else handle
            text, made = getattr(self, f"_{function}")(target, opened, *arguments)
        except Refused as error:
            hresult, record = error.hresult, error.record
        except BaseException as error:
            self.errors.append(error)
            hresult = 0x80004005
        if text:
            reply.contents.text = self._core.emulated_string(text.encode())
        if record:
            reply.contents.record = self._core.emulated_string(record.encode())
        reply.contents.handle = made or None
        return ctypes.c_int32(hresult).value

    def _fail_if_told(self, function: str, arguments: list[str]) -> None:
        for key in (function, " ".join([function, *arguments[:2]])):
            if key in self.failures:
                raise Refused(*self.failures[key])

    def _handle(self, thing: Any) -> int:
        self._next += 8
        self.handles[self._next] = thing
        return self._next

    # -- vmcompute.dll --

    def _HNSCall(  # noqa: N802
        self, _target: Any, _opened: Any, method: str, path: str, document: str
    ) -> tuple[str, int]:
        try:
            output = self._hns(method, path, strict(document) if document else None)
        except Refused as error:
            answer = {"Success": False, "Error": error.record or "not found"}
        else:
            answer = {"Success": True, "Output": output}
        return json.dumps(answer), 0

    def _hns(self, method: str, path: str, document: Any) -> Any:
        _, kind, identity, *rest = path.split("/")
        if (method, kind, identity) == ("GET", "globals", "version"):
            return self.version
        if (method, identity) == ("GET", ""):
            return {"networks": self.networks, "endpoints": self.endpoints}[kind]
        assert kind == "endpoints"
        if method == "POST" and not identity:
            verify(document, V1_ENDPOINT)
            made = {"IPAddress": "10.99.0.9", "MacAddress": "00-15-5D-00-00-01", **document}
            return self._add(made, document["VirtualNetwork"])
        endpoint = self._by_id(self.endpoints, identity)
        if method == "DELETE":
            self.endpoints.remove(endpoint)
            return None
        assert (method, rest) == ("POST", ["detach"])
        verify(document, {"ContainerId": str, "SystemType": str})
        assert document["SystemType"] == "Container"
        return {"Success": True}

    def _HcsOpenComputeSystem(  # noqa: N802
        self, _target: Any, _opened: Any, identity: str
    ) -> tuple[str, int]:
        if identity not in self.containers:
            raise Refused(NO_SYSTEM)
        return "", self._handle(self.containers[identity])

    def _HcsModifyComputeSystem(  # noqa: N802
        self, _target: Any, attached: list[str], text: str
    ) -> tuple[str, int]:
        document = strict(text)
        verify(document, {"ResourceType": str, "Settings": str, "RequestType": str})
        assert document["ResourceType"] == "Network"
        if document["RequestType"] == "Add":
            attached.append(document["Settings"])
        elif document["Settings"] in attached:
            attached.remove(document["Settings"])
        else:
            raise Refused(NOT_FOUND)
        return "", 0

    def _close(self, handle: int, _opened: Any) -> tuple[str, int]:
        del self.handles[handle]
        return "", 0

    _HcsCloseComputeSystem = _HcnCloseNetwork = _HcnCloseEndpoint = _HcnCloseNamespace = _close

    # -- computenetwork.dll --

    def _enumerate(self, things: list[Json], query: str) -> tuple[str, int]:
        document = strict(query)
        verify(document, {"SchemaVersion": dict, "Filter": str})
        wanted = strict(document.get("Filter", "{}"))
        found = [t["ID"] for t in things if all(t[key] == v for key, v in wanted.items())]
        return json.dumps(found), 0

    def _HcnEnumerateNetworks(self, _t: Any, _o: Any, query: str) -> tuple[str, int]:  # noqa: N802
        return self._enumerate(self.networks, query)

    def _HcnEnumerateEndpoints(self, _t: Any, _o: Any, query: str) -> tuple[str, int]:  # noqa: N802
        return self._enumerate(self.endpoints, query)

    def _HcnOpenNetwork(self, guid: str, _opened: Any) -> tuple[str, int]:  # noqa: N802
        return "", self._handle(self._by_id(self.networks, guid, 0x803B0001))

    def _HcnOpenEndpoint(self, guid: str, _opened: Any) -> tuple[str, int]:  # noqa: N802
        return "", self._handle(self._by_id(self.endpoints, guid, NO_ENDPOINT))

    def _HcnOpenNamespace(self, guid: str, _opened: Any) -> tuple[str, int]:  # noqa: N802
        if guid not in self.namespaces:
            raise Refused(NOT_FOUND, '{"Success": false, "Error": "Element not found."}')
        return "", self._handle(guid)

    def _HcnQueryNetworkProperties(  # noqa: N802
        self, _t: Any, network: Json, query: str
    ) -> tuple[str, int]:
        verify(strict(query), {"SchemaVersion": dict, "Filter": str})
        subnets = [{"IpAddressPrefix": s["AddressPrefix"]} for s in network["Subnets"]]
        keys = {key: network[key] for key in ("ID", "Name", "Type")}
        return json.dumps({**keys, "Ipams": [{"Type": "Static", "Subnets": subnets}]}), 0

    def _HcnQueryEndpointProperties(  # noqa: N802
        self, _t: Any, endpoint: Json, query: str
    ) -> tuple[str, int]:
        verify(strict(query), {"SchemaVersion": dict, "Filter": str})
        return json.dumps({k: v for k, v in endpoint.items() if k != "VirtualNetwork"}), 0

    def _HcnCreateEndpoint(  # noqa: N802
        self, guid: str, network: Json, text: str
    ) -> tuple[str, int]:
        assert guid == str(uuid.UUID(int=0))
        document = strict(text)
        verify(document, V2_ENDPOINT)
        assert document["SchemaVersion"] == {"Major": 2, "Minor": 0}
        for policy in document.get("Policies", []):
            verify(policy, V2_POLICY)
        chosen = {"IpConfigurations": [{"IpAddress": "10.99.0.9"}], "Routes": []}
        made = {**chosen, "MacAddress": "00-15-5D-00-00-01", **document}
        made["HostComputeNamespace"] = str(uuid.UUID(int=0))
        self._add(made, network["ID"])
        return "", self._handle(made)

    def _HcnDeleteEndpoint(self, guid: str, _opened: Any) -> tuple[str, int]:  # noqa: N802
        self.endpoints.remove(self._by_id(self.endpoints, guid, NO_ENDPOINT))
        return "", 0

    def _HcnModifyNamespace(self, _t: Any, guid: str, text: str) -> tuple[str, int]:  # noqa: N802
        document = strict(text)
        verify(document, {"ResourceType": str, "RequestType": str, "Settings": dict})
        assert document["ResourceType"] == "Endpoint"
        endpoint = self._by_id(self.endpoints, document["Settings"]["EndpointId"], NO_ENDPOINT)
        inside = self.namespaces[guid]
        if document["RequestType"] == "Add":
            if endpoint["ID"] in inside:
                raise Refused(0x803B002B)
            inside.append(endpoint["ID"])
            endpoint["HostComputeNamespace"] = guid
        elif endpoint["ID"] in inside:
            inside.remove(endpoint["ID"])
        else:
            raise Refused(NOT_FOUND)
        return "", 0

    # -- state --

    def _add(self, endpoint: Json, network_id: str) -> Json:
        self._by_id(self.networks, network_id, 0x803B0001)
        if any(other["Name"] == endpoint["Name"] for other in self.endpoints):
            raise Refused(INVALID, '{"Error": "name in use"}')
        endpoint.update(ID=str(uuid.uuid4()), VirtualNetwork=network_id)
        self.endpoints.append(endpoint)
        return endpoint

    def _by_id(self, things: list[Json], identity: str, otherwise: int = NOT_FOUND) -> Json:
        for thing in things:
            if thing["ID"].lower() == identity.lower():
                return thing
        raise Refused(otherwise)
