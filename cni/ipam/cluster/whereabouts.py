"""The keys of the whereabouts plugin, read as a pool of `cluster`.

    {"type": "whereabouts", "range": "10.1.0.0/24", "exclude": ["10.1.0.0/28"],
     "kubernetes": {"kubeconfig": "/etc/cni/net.d/whereabouts.d/whereabouts.kubeconfig"}}
    → {"type": "cluster", "ranges": [[{"subnet": "10.1.0.0/24", "exclude": ["10.1.0.0/28"]}]],
       "store": {"type": "kubernetes", "kubeconfig": "…"}}

Keys of `cluster` may be given, too. Keys without a meaning here (there is no leader, no separate
reconciler, and no second record of an address) are accepted, and mentioned in `notes`.

Every node may need any address of a small LAN, so blocks are single addresses, and none is kept
ahead, unless `node_slice_size` or the keys of `cluster` say otherwise. Without `gateway` there is
none, and the first address of a range is handed out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ...protocol import config
from ...protocol.address import InvalidAddress, Prefix, parse_ip
from ...protocol.errors import CNIError
from ...store.settings import check_word

FLAT_FILES = (
    "/etc/kubernetes/cni/net.d/whereabouts.d/whereabouts.conf",
    "/etc/cni/net.d/whereabouts.d/whereabouts.conf",
    "/host/etc/cni/net.d/whereabouts.d/whereabouts.conf",
)
_OTHER = "set logFile and logLevel of the network (docs/observability.md)"
# Keys without a meaning here, and the reason.
_MEANINGLESS = {
    "leader_lease_duration": "there is no leader",
    "leader_renew_deadline": "there is no leader",
    "leader_retry_period": "there is no leader",
    "reconciler_cron_expression": "`cni ipam reconcile` and GC do that work",
    "sleep_for_race": "there is no race to test",
    "datastore": "`store` says where blocks are claimed",
    "etcd_host": "`store` says where blocks are claimed",
    "etcd_username": "`store` says where blocks are claimed",
    "etcd_password": "`store` says where blocks are claimed",
    "etcd_key_file": "`store` says where blocks are claimed",
    "etcd_cert_file": "`store` says where blocks are claimed",
    "etcd_ca_cert_file": "`store` says where blocks are claimed",
    "log_file": _OTHER,
    "log_level": _OTHER,
    "overlapping_ranges": "addresses of one space are unique, whatever the ranges",
}
_READ = (
    "type", "range", "range_start", "range_end", "exclude", "ipRanges", "gateway", "network_name",
    "enable_overlapping_ranges", "node_slice_size", "kubernetes", "configuration_path", "addresses",
)  # fmt: skip
_LIST = "is not a list"
_SINGLE = {"blockSize": 32, "blockSizeV6": 128, "reserve": 0}


class Converted(NamedTuple):
    """The `ipam` object of `cluster`, and notes for the operator, a line each."""

    ipam: dict[str, Any]
    notes: list[str]


def convert(ipam: Mapping[str, Any], flat: Mapping[str, Any] | None = None) -> Converted:
    """Read an `ipam` object; missing keys are taken from the flat file's object `flat`.

    Raises CNIError, which names the key.
    """
    given = _Keys(_merged(ipam, flat or {}))
    notes: list[str] = []
    made = given.others(notes)
    made["type"] = "cluster"
    ranges = _ranges(given, notes)
    if ranges:
        made["ranges"] = [[each] for each in ranges]
        _put_gateway(given, ranges, notes)
    name = given.text("network_name")
    if name:
        made["space"] = check_word(name, "network_name")
    if given.get("enable_overlapping_ranges") is False:
        notes.append(
            "enable_overlapping_ranges: addresses of one space are unique all the same; give the "
            "network a network_name of its own if they are to be handed out twice"
        )
    _put_block_size(given, made)
    if given.get("noGateway") is None:
        made["noGateway"] = True
    _put_store(given, made, notes)
    return Converted(made, notes)


def flat_file(
    ipam: Mapping[str, Any], read: Callable[[str], bytes | None]
) -> tuple[str, dict[str, Any]]:
    """The flat file that applies: its path and its object; ("", {}) without one.

    `read` returns None for a file that does not exist. Raises CNIError.
    """
    own = _Keys(ipam).text("configuration_path")
    for path in [own] if own else FLAT_FILES:
        data = read(path)
        if data is not None:
            try:
                document = config.decode_object(data)
            except CNIError as error:
                raise error.wrapped(f"{path}: ") from None
            # The file has the keys of `ipam` at its top level, or in an object `ipam`.
            inner = config.lookup(document, "ipam")
            return path, inner if isinstance(inner, dict) else document
    if own:
        raise CNIError(f"configuration_path {own} does not exist", "correct the key, or remove it")
    return "", {}


class _Keys:
    """Values by key, in any case, as Go reads JSON."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = {key.lower(): (key, value) for key, value in values.items()}

    def get(self, key: str) -> Any:
        return self.values.get(key.lower(), ("", None))[1]

    def text(self, key: str) -> str:
        value = self.get(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise CNIError(f"{key} is not a string", f"it is {value!r}")
        return value

    def others(self, notes: list[str]) -> dict[str, Any]:
        """The keys of `cluster`: those that are neither read here nor without a meaning."""
        read = {key.lower() for key in _READ}
        own_keys = {}
        for low, (key, value) in self.values.items():
            if low in _MEANINGLESS:
                notes.append(f"{key} has no meaning here: {_MEANINGLESS[low]}")
            elif low not in read:
                own_keys[key] = value
        return own_keys


def _merged(ipam: Mapping[str, Any], flat: Mapping[str, Any]) -> dict[str, Any]:
    known = {key.lower() for key in ipam}
    return {**{key: value for key, value in flat.items() if key.lower() not in known}, **ipam}


def _ranges(given: _Keys, notes: list[str]) -> list[dict[str, Any]]:
    """The ranges, each as a range set: a container gets an address of each."""
    ranges = []
    if given.text("range"):
        ranges.append(_range(given, "range"))
    else:
        for key in ("range_start", "range_end", "exclude"):
            if given.get(key):
                notes.append(f"{key} is not used: it belongs to `range`, which is not given")
    listed = given.get("ipRanges") or []
    if not isinstance(listed, list):
        raise CNIError(f"ipRanges {_LIST}", 'it is like [{"range": "10.1.0.0/24"}]')
    for index, each in enumerate(listed):
        if not isinstance(each, dict):
            raise CNIError(f"ipRanges[{index}] is not an object", 'it is like {"range": "…"}')
        ranges.append(_range(_Keys(each), f"ipRanges[{index}].range"))
    return ranges


def _range(given: _Keys, where: str) -> dict[str, Any]:
    text = given.text("range").strip()
    first, dash, rest = text.partition("-")
    try:
        subnet = Prefix.parse(rest if dash else text)
        if dash:
            parse_ip(first)
    except InvalidAddress as error:
        raise CNIError(
            f"{where}: {error.msg}", "a range is like 10.1.0.0/24 or 10.1.0.10-10.1.0.20/24"
        ) from None
    # whereabouts allows host bits here, and host-local's ranges do not
    made: dict[str, Any] = {"subnet": str(subnet.network)}
    start, end = given.text("range_start"), given.text("range_end")
    if dash:
        start, end = start or first.strip(), end or rest.partition("/")[0].strip()
    for key, name, value in (("range_start", "rangeStart", start), ("range_end", "rangeEnd", end)):
        if value:
            made[name] = _inside(subnet, value, f"{where} {key}")
    exclude = given.get("exclude") or []
    if not isinstance(exclude, list) or not all(isinstance(each, str) for each in exclude):
        raise CNIError(f"{where}: exclude {_LIST} of texts", 'it is like ["10.1.0.0/28"]')
    if exclude:
        made["exclude"] = list(exclude)
    return made


def _inside(subnet: Prefix, text: str, where: str) -> str:
    try:
        packed = parse_ip(text)
    except InvalidAddress as error:
        raise CNIError(f"{where}: {error.msg}", "it is an address of the range") from None
    if not subnet.contains(packed):
        raise CNIError(f"{where}: {text} is not in {subnet.network}", "give one of the range")
    return text


def _put_gateway(given: _Keys, ranges: list[dict[str, Any]], notes: list[str]) -> None:
    """Set `gateway` on its own range; whereabouts puts it on each address of either family."""
    gateway = given.text("gateway")
    if not gateway:
        return
    try:
        packed = parse_ip(gateway)
    except InvalidAddress as error:
        raise CNIError(f"gateway: {error.msg}", "it is like 10.1.0.1") from None
    fitting = [each for each in ranges if Prefix.parse(each["subnet"]).contains(packed)]
    for each in fitting:
        each["gateway"] = gateway
    if not fitting:
        notes.append(f"gateway {gateway} is in none of the ranges: it is not used")


def _put_block_size(given: _Keys, made: dict[str, Any]) -> None:
    text = given.text("node_slice_size")
    if not text:
        made.update((key, value) for key, value in _SINGLE.items() if given.get(key) is None)
        return
    digits = text.removeprefix("/")
    if not (digits.isascii() and digits.isdigit()) or not 1 <= int(digits) <= 128:
        raise CNIError(f"node_slice_size {text} is no prefix length", "it is like /26")
    size = int(digits)
    for each in made.get("ranges", ()):
        is_v4 = Prefix.parse(each[0]["subnet"]).is_v4
        if is_v4 and size > 32:
            raise CNIError(f"node_slice_size {text} is too long for IPv4", "it is like /26")
        made["blockSize" if is_v4 else "blockSizeV6"] = size


def _put_store(given: _Keys, made: dict[str, Any], notes: list[str]) -> None:
    own = given.get("kubernetes")
    if own is None or "store" in made:
        return
    if not isinstance(own, dict):
        raise CNIError("kubernetes is not an object", 'it is like {"kubeconfig": "/…"}')
    keys = _Keys(own)
    path = keys.text("kubeconfig")
    made["store"] = {"type": "kubernetes", **({"kubeconfig": path} if path else {})}
    if keys.text("k8s_api_root"):
        notes.append("kubernetes.k8s_api_root is not used: the kubeconfig names the server")
