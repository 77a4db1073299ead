"""flannel: calls another plugin with the subnet that flanneld gave this node
(docs/spec/flannel.md).

    flanneld ── writes ──▶ /run/flannel/subnet.env ──┐
    configuration: delegate, ipam, runtimeConfig ────┴──▶ bridge + host-local (or another delegate)

What the delegate was called with is noted for each attachment (_scratch.py): its DEL and CHECK get
the same, whatever flanneld has written since.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec

from ... import delegate
from ...call import Call, Steps
from ...protocol import config
from ...protocol.errors import CNIError, NotAvailable
from ...protocol.request import Attachment
from ...protocol.result import Result
from . import notes, subnet_env
from .notes import Scratch
from .subnet_env import SubnetEnv

Json = dict[str, Any]


class Conf(config.NetConf):
    """`delegate`, `ipam` and `runtimeConfig` are handed on as they are spelled: see _object()."""

    subnet_file: str = "/run/flannel/subnet.env"
    data_dir: str = "/var/lib/cni/flannel"
    delegate: Json = {}
    runtime_config: Json = {}


# --- the delegate's configuration -----------------------------------------------------------------


def _load_subnet(conf: Conf) -> SubnetEnv:
    try:
        return subnet_env.load(conf.subnet_file)
    except CNIError as error:
        raise CNIError(
            f"failed to load flannel 'subnet.env' file: {error.msg}. "
            "Check the flannel pod log for this node.",
            f"flanneld writes {conf.subnet_file} once it has a subnet for this node; "
            "containers can be attached from then on",
        ) from None


def _delegate_base(call: Call[Conf]) -> Json:
    """The configuration's `delegate`, validated. Raises CNIError."""
    base = _object(call, "delegate") or {}
    if not isinstance(base.get("type", ""), str):
        raise CNIError("'delegate' dictionary, if present, must have (string) 'type' field")
    for key in ("name", "ipam"):
        if key in base:
            raise CNIError(
                f"'delegate' dictionary must not have '{key}' field, it'll be set by flannel"
            )
    return base


def _delegate_conf(call: Call[Conf], subnet: SubnetEnv) -> Json:
    """What the delegate is called with (docs/spec/flannel.md, ADD step 4). Raises CNIError."""
    out = _delegate_base(call)
    runtime = _object(call, "runtimeConfig")
    if runtime is not None:
        out["runtimeConfig"] = runtime
    out["name"] = call.network
    out.setdefault("type", "bridge")
    out.setdefault("ipMasq", not subnet.ip_masq)  # one of the two has to
    out.setdefault("mtu", subnet.mtu)
    if out["type"] == "bridge":
        out.setdefault("isGateway", True)
    if call.conf.cni_version:
        out["cniVersion"] = call.conf.cni_version
    out["ipam"] = _delegate_ipam(call, subnet)
    return out


def _delegate_ipam(call: Call[Conf], subnet: SubnetEnv) -> Json:
    out = _object(call, "ipam") or {}
    out.setdefault("type", "host-local")
    out["ranges"] = [[{"subnet": str(one)}] for one in subnet.subnets]
    try:
        routes = config.convert(out, _Routes).routes
    except CNIError as error:
        raise error.wrapped(
            "failed to assemble Delegate IPAM: failed to read IPAM routes: "
            "failed to parse ipam.routes: "
        ) from None
    out["routes"] = [one.as_dict() for one in routes]
    out["routes"] += [{"dst": str(one)} for one in subnet.networks]
    return out


class _Routes(config.Folded):
    routes: list[config.Route] = []


def _object(call: Call[Conf], key: str) -> Json | None:
    """An object of the configuration, copied, with its keys as they are spelled."""
    _ = call.conf  # which has validated that it is one
    found = config.lookup(call.raw, key)
    return None if found is None else dict(found)


def _encode(document: Json) -> bytes:
    return msgspec.json.encode(document, order="deterministic")


# --- ADD and DEL ----------------------------------------------------------------------------------


def add(call: Call[Conf]) -> Result:
    """Note what the delegate is called with, and call it; its result is ours."""
    document = _delegate_conf(call, _load_subnet(call.conf))
    name = document["type"]
    try:
        delegate.find(name, call.request.path)
    except CNIError as error:
        raise error.wrapped("failed to delegate add: ") from None
    stdin = _encode(document)
    # stays when the delegate fails: the runtime's DEL then has it clear up
    Scratch(call.conf.data_dir, call.owner).save(stdin)
    return call.delegate(name, "ADD", stdin) or Result()


def delete(call: Call[Conf]) -> None:
    """Have the delegate delete, with what its ADD was given; without a note there is nothing."""
    scratch = Scratch(call.conf.data_dir, call.owner)
    data = scratch.load()
    if data is not None:
        note = _decode(data)
        if note is None:
            call.log(f"flannel: {scratch.path} or {scratch.shared} is not a JSON object: ignored")
            return
        if note.get("name", call.network) != call.network:
            return  # the reference's, of another network that the container is in
        call.delegate(str(note.get("type", "")), "DEL", data)
    scratch.remove()


def _decode(data: bytes) -> Json | None:
    try:
        return config.decode_object(data)
    except CNIError:
        return None


# --- the other verbs ------------------------------------------------------------------------------


def gc(call: Call[Conf], keep: frozenset[Attachment]) -> None:
    """Have the delegate delete what is not kept, and collect; remove the notes."""
    steps = Steps()
    steps.run(_collect_notes, call, keep, steps)
    steps.run(notes.remove_begun, call.conf.data_dir, call.network, keep)
    steps.run(_collect_delegate, call)
    steps.finish()


def _collect_notes(call: Call[Conf], keep: frozenset[Attachment], steps: Steps) -> None:
    containers = {one.container_id for one in keep}
    for whose, path, data in notes.notes(call.conf.data_dir):
        note = _decode(data)
        if note is None or note.get("name") != call.network:
            continue
        if whose.ifname and whose not in keep:
            steps.run(_delete_gone, call, whose, note, data)
        elif not whose.ifname and whose.container_id not in containers:
            steps.run(notes.remove, path)  # the reference's: the delegate's GC has to do


def _delete_gone(call: Call[Conf], whose: Attachment, note: Json, data: bytes) -> None:
    call.delegate(str(note.get("type", "")), "DEL", data, whose)
    owner = call.owner._replace(container_id=whose.container_id, ifname=whose.ifname)
    Scratch(call.conf.data_dir, owner).remove()


def _collect_delegate(call: Call[Conf]) -> None:
    document = _delegate_conf(call, _load_subnet(call.conf))
    for key in ("cni.dev/valid-attachments", "cni.dev/attachments"):
        found = config.lookup(call.raw, key)
        if found is not None:
            document[key] = found
    call.delegate(document["type"], "GC", _encode(document))


def status(call: Call[Conf]) -> None:
    """Ready when flanneld has written its file, and the delegate is."""
    conf = call.conf
    _delegate_base(call)
    if not os.path.exists(conf.subnet_file):
        raise NotAvailable(
            f"waiting for flanneld to write {conf.subnet_file}",
            "flanneld writes it once it has a subnet for this node: if that takes longer than a "
            "minute, look at the log of this node's flannel pod",
        )
    try:
        subnet = _load_subnet(conf)
    except CNIError as error:
        raise NotAvailable(error.msg, error.details) from None
    document = _delegate_conf(call, subnet)
    call.delegate(document["type"], "STATUS", _encode(document))


def check(call: Call[Conf]) -> None:
    """Have the delegate check, with what its ADD was given."""
    scratch = Scratch(call.conf.data_dir, call.owner)
    data = scratch.load()
    document = None if data is None else _decode(data)
    if document is None:
        raise CNIError(
            f"the note of this attachment is lost: {scratch.path}",
            "without it DEL cannot release the address: start the container anew, and see that "
            "nothing clears away dataDir",
        )
    document["cniVersion"] = call.conf.cni_version
    for key in ("prevResult", "runtimeConfig"):
        found = config.lookup(call.raw, key)
        if found is not None:
            document[key] = found
    call.delegate(str(document.get("type", "")), "CHECK", _encode(document))
