"""`cni ipam import whereabouts`, and `export` for the way back (docs/from-whereabouts.md)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from cni import files as own_files
from cni.ipam.cluster import adopt, takeover
from cni.ipam.cluster.claim import Claims
from cni.ipam.cluster.node import Node, Space
from cni.ipam.cluster.pool import DEFAULT_SPACE
from cni.ipam.host_local.reservation import is_address
from cni.protocol import config
from cni.protocol.address import Prefix, format_ip, parse_ip
from cni.protocol.errors import CNIError
from cni.store import kubeconfig_yaml

from . import cache, errors, formats, ipam_cluster, output

# Where libcni keeps results: of the runtime, and of Multus for the networks that it attaches.
_CACHES = (cache.DEFAULT_DIRECTORY, "/var/lib/cni/multus")
# bytes: the objects of a large cluster are many megabytes
_MOST = 1 << 30
_KUBECTL = (
    "kubectl get ippools.whereabouts.cni.cncf.io,overlappingrangeipreservations."
    "whereabouts.cni.cncf.io,nodeslicepools.whereabouts.cni.cncf.io,pods -A -o json"
)
_caches = click.option(
    "--cache-dir",
    "caches",
    multiple=True,
    default=_CACHES,
    show_default=True,
    type=click.Path(file_okay=False),
    help="Result caches, DIRECTORY/results, which tell the container of each address.",
)


@click.group("import")
def import_() -> None:
    """Take over the addresses that another IPAM plugin has given."""


@click.group("export")
def export() -> None:
    """Write what another IPAM plugin needs to go on."""


@import_.command("whereabouts", short_help="Take over what whereabouts has given.")
@ipam_cluster.options
@_caches
@click.option("--hold-only", is_flag=True, help="Only hold addresses in the store.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@click.argument(
    "files", metavar="[FILE]...", nargs=-1, type=click.Path(exists=True, dir_okay=False)
)
def import_whereabouts(
    network: str | None,
    caches: tuple[str, ...],
    hold_only: bool,
    dry_run: bool,
    files: tuple[str, ...],
) -> None:
    """Take over what whereabouts has given to containers, while they run.

    Every address of an existing pod is held in the store, so that no other node claims it. On this
    node, addresses of its pods get a reservation for their container. Run it on each node; you may
    repeat it. FILEs are the output of kubectl, as JSON or plain YAML; without FILE, the command
    reads the store's Kubernetes API.
    """
    objects = [each for name in files for each in of_file(Path(name))]
    with ipam_cluster.opened(network) as cluster:
        if not files:
            objects = _of_api(cluster)
        found = takeover.interpret(objects)
        if found.allocations and not found.pods:
            raise errors.Refused(
                "there are allocations, and no pods: which node has an address is not known",
                f"let the file have the pods, too: {_KUBECTL}",
            )
        node = Node(cluster.its.data_dir, cluster.its.node)
        claims = Claims(cluster.store, cluster.its, node, output.line)
        # First every address is held in the store, so that no node allocates one of them meanwhile.
        held = adopt.hold(claims, found, dry_run)
        taken = adopt.Taken([], [], [])
        # Holding is a change of the store only; reservations are files of this node.
        if not hold_only and _has_some(found, node.name):
            errors.require_root("take over addresses: it changes what ADDs allocate from")
            with node.claiming():
                taken = adopt.take_over(claims, found, _attachments(caches), dry_run)
    _present(held, taken, dry_run)


def _present(held: adopt.Held, taken: adopt.Taken, dry_run: bool) -> None:
    would = "would be " if dry_run else ""
    parts = (
        (f"{would}held", held.held),
        ("held or taken over before", held.already),
        (f"{would}let go, since the pod is gone", held.let_go),
        ("of another node than the pod's: look at them", held.others),
        ("left out, since the pod is gone", held.orphans),
        (f"{would}taken over by this node", taken.taken),
        ("taken over by this node before", taken.already),
        ("of this node, but no cached result names the container", taken.unknown),
    )
    lines = [f"{len(which)} {what}: {', '.join(which)}" for what, which in parts if which]
    value: dict[str, Any] = {**held._asdict(), "dryRun": dry_run}
    value["letGo"] = value.pop("let_go")
    value["node"] = taken._asdict()
    formats.present(value, lines=lines or ["there is nothing to take over"], names=taken.taken)


def _has_some(found: takeover.Found, node: str) -> bool:
    return any(each.node == node for each in found.allocations) or any(
        node in nodes.values() for nodes in found.slices.values()
    )


def _of_api(cluster: ipam_cluster.Cluster) -> list[dict[str, Any]]:
    api = getattr(cluster.store, "api", None)
    if api is None:
        raise errors.Refused(
            f"{cluster.store.name} has no objects of whereabouts",
            f"give a file of them: {_KUBECTL} > FILE",
        )
    return takeover.read_api(api)


def of_file(path: Path) -> list[dict[str, Any]]:
    """The objects of a file: one, a List, or YAML documents. Raises CNIError."""
    try:
        data = own_files.read(str(path), _MOST, follow=True)
    except OSError as error:
        raise errors.unreadable(str(path), error) from None
    if data.lstrip()[:1] == b"{":
        try:
            values: list[Any] = [config.decode_object(data)]
        except CNIError as error:
            raise error.wrapped(f"{path}: ") from None
    else:
        documents = data.decode("utf-8", "replace").removeprefix("---").split("\n---")
        try:
            # One document for each part, since this small decoder reads only one.
            values = [kubeconfig_yaml.decode(text) for text in documents if text.strip()]
        except ValueError as error:
            raise CNIError(f"{path}: {error}", f"write it as JSON: {_KUBECTL}") from None
    found: list[dict[str, Any]] = []
    for value in values:
        items = value.get("items") if isinstance(value, dict) else None
        found += items if isinstance(items, list) else [value]
    if not all(isinstance(each, dict) and "kind" in each for each in found):
        raise CNIError(f"{path} has no objects of Kubernetes", f"write it by: {_KUBECTL}")
    return found


def _attachments(caches: tuple[str, ...]) -> list[adopt.Attachment]:
    found = []
    for directory in caches:
        for kept in cache.Cache(os.path.abspath(directory)).kept():
            what = kept.attachment
            addresses = adopt.addresses_of(kept.result)
            found.append(
                adopt.Attachment(
                    what.container_id, what.network, what.ifname, what.netns, addresses
                )
            )
    return found


# --- the way back ---


@export.command("whereabouts", short_help="Write whereabouts' objects for this node's addresses.")
@ipam_cluster.options
@_caches
@click.option(
    "--namespace", default="kube-system", show_default=True, help="The objects' namespace."
)
def export_whereabouts(network: str | None, caches: tuple[str, ...], namespace: str) -> None:
    """Write objects of whereabouts for the addresses of this node, as a List in JSON.

    To merge the lists of all nodes, pass each to kubectl apply --server-side
    --field-manager=NODE -f -. Nothing is changed here.
    """
    with ipam_cluster.opened(network) as cluster:
        layouts = {
            item.key.removeprefix("spaces/"): item.value.get("layout") or {}
            for item in cluster.store.list("spaces/").items
        }
    pods = _pods(caches)
    node = Node(cluster.its.data_dir, cluster.its.node)
    objects: list[dict[str, Any]] = []
    unknown: dict[str, str] = {}  # container without a known pod -> one of its addresses
    for space, layout in sorted(layouts.items()):
        reserved = _reserved(Space(node, space))
        objects += exported(space, layout, reserved, pods, namespace)
        unknown |= {cid: format_ip(a) for a, (cid, _) in reserved.items() if cid not in pods}
    formats.present(
        {"apiVersion": "v1", "kind": "List", "items": objects},
        lines=[_json({"apiVersion": "v1", "kind": "List", "items": objects})],
        names=[each["metadata"]["name"] for each in objects],
    )
    for container_id, address in sorted(unknown.items()):
        output.line(
            f"cni: no cached result names the pod of container {container_id} ({address}), and "
            "whereabouts frees addresses without a pod: end the container, or write its pod into "
            "`podref`",
            err=True,
        )


def _json(value: Any) -> str:
    import json

    return json.dumps(value, indent=2)


def _reserved(space: Space) -> dict[bytes, tuple[str, str]]:
    """Address → container and interface, of this node."""
    path = space.location.path
    found = {}
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise errors.unreadable(path, error) from None
    for name in filter(is_address, names):
        try:
            data = own_files.read(os.path.join(path, name), 4096)
        except OSError:
            continue  # just released
        container_id, *rest = data.decode("utf-8", "surrogateescape").strip().split("\r\n")
        found[parse_ip(name)] = container_id, rest[0] if rest else ""
    return found


def _pods(caches: tuple[str, ...]) -> dict[str, str]:
    """Container → "namespace/name" of its pod."""
    found = {}
    for directory in caches:
        for kept in cache.Cache(os.path.abspath(directory)).kept():
            args = dict(kept.attachment.args)
            if args.get("K8S_POD_NAME"):
                name = f"{args.get('K8S_POD_NAMESPACE', 'default')}/{args['K8S_POD_NAME']}"
                found[kept.attachment.container_id] = name
    return found


def exported(
    space: str,
    layout: dict[str, int],
    reserved: dict[bytes, tuple[str, str]],
    pods: dict[str, str],
    namespace: str,
) -> list[dict[str, Any]]:
    """IPPool and OverlappingRangeIPReservation of the reserved addresses of a space."""
    before = "" if space == DEFAULT_SPACE else f"{space}-"
    version = f"{takeover.GROUP}/v1alpha1"
    made: list[dict[str, Any]] = []
    for text in sorted(layout):
        subnet = Prefix.parse(text)
        first = int.from_bytes(subnet.ip, "big")
        allocations = {
            # whereabouts' keys are offsets from the beginning of the range.
            str(int.from_bytes(packed, "big") - first): {
                "id": container_id,
                "podref": pods.get(container_id, ""),
                "ifname": ifname,
            }
            for packed, (container_id, ifname) in sorted(reserved.items())
            if subnet.contains(packed)
        }
        name = before + _word(text)
        spec = {"range": text, "allocations": allocations}
        metadata = {"name": name, "namespace": namespace}
        if allocations:
            made.append(
                {"apiVersion": version, "kind": "IPPool", "metadata": metadata, "spec": spec}
            )
    for packed, (container_id, ifname) in sorted(reserved.items()):
        made.append(
            {
                "apiVersion": version,
                "kind": "OverlappingRangeIPReservation",
                "metadata": {"name": before + _word(format_ip(packed)), "namespace": namespace},
                "spec": {
                    "containerid": container_id,
                    "podref": pods.get(container_id, ""),
                    "ifname": ifname,
                },
            }
        )
    return made


def _word(text: str) -> str:
    """A range or an address as whereabouts writes it in names."""
    # A name in Kubernetes must not end in "-", which a last colon would become.
    return (f"{text}0" if text.endswith(":") else text).replace(":", "-").replace("/", "-")


COMMANDS = (import_, export)
