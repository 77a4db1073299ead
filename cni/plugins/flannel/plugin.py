"""flannel: calls another plugin with the subnet that flanneld gave this node
(docs/spec/flannel.md).

    flanneld ── writes ──▶ /run/flannel/subnet.env ──┐
    configuration: delegate, ipam, runtimeConfig ────┴──▶ bridge + host-local (or another delegate)

A note (notes.py) keeps the configuration with which an attachment's delegate was called: DEL and
CHECK call it with the same one, even if flanneld has written another file since.
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
from .notes import Note
from .subnet_env import SubnetEnv

Json = dict[str, Any]


class Conf(config.NetConf):
    """The keys that flannel reads; `delegate`, `ipam`, `runtimeConfig` are for the delegate."""

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
    """The delegate's configuration (docs/spec/flannel.md, ADD step 4). Raises CNIError."""
    out = _delegate_base(call)
    runtime = _object(call, "runtimeConfig")
    if runtime is not None:
        out["runtimeConfig"] = runtime
    out["name"] = call.network
    out.setdefault("type", "bridge")
    out.setdefault("ipMasq", not subnet.ip_masq)  # either the delegate or flanneld must masquerade
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
    """A copy of an object in the configuration, its keys spelled as there; None without it.

    Other plugins may read keys that flannel does not know, so nothing is decoded.
    """
    _ = call.conf  # raises CNIError if the value is no object
    value = config.lookup(call.raw, key)
    return None if value is None else dict(value)


def _encode(document: Json) -> bytes:
    return msgspec.json.encode(document, order="deterministic")


# --- ADD and DEL ----------------------------------------------------------------------------------


def add(call: Call[Conf]) -> Result:
    """Note the delegate's configuration, then call the delegate; its result is passed on."""
    document = _delegate_conf(call, _load_subnet(call.conf))
    name = document["type"]
    try:
        delegate.find(name, call.request.path)
    except CNIError as error:
        raise error.wrapped("failed to delegate add: ") from None
    stdin = _encode(document)
    note = Note(call.conf.data_dir, call.owner)
    # the note of an earlier ADD without DEL comes back: its delegate has something to remove, too
    call.undo.callback(_put_back, note, note.load())
    note.save(stdin)
    return call.delegate_add(name, stdin) or Result()


def _put_back(note: Note, before: bytes | None) -> None:
    """Restore the note of an earlier ADD; without one, remove the note."""
    if before is None:
        note.remove()
    else:
        note.save(before)


def delete(call: Call[Conf]) -> None:
    """Call the delegate's DEL with the configuration of its ADD; without a note do nothing."""
    note = Note(call.conf.data_dir, call.owner)
    data = note.load()
    if data is not None:
        document = _decode(data)
        if document is None:
            call.log(f"flannel: {note.path} or {note.shared} is not a JSON object: ignored")
            return
        if document.get("name", call.network) != call.network:
            return  # the reference's note for another network of the container
        call.delegate(str(document.get("type", "")), "DEL", data)
    note.remove()


def _decode(data: bytes) -> Json | None:
    try:
        return config.decode_object(data)
    except CNIError:
        return None


# --- the other verbs ------------------------------------------------------------------------------


def gc(call: Call[Conf], keep: frozenset[Attachment]) -> None:
    """Call the delegate's DEL for each attachment not in `keep`, then its GC; remove the notes."""
    steps = Steps()
    steps.run(_collect_notes, call, keep, steps)
    steps.run(notes.remove_begun, call.conf.data_dir, call.network, keep)
    steps.run(_collect_delegate, call)
    steps.finish()


def _collect_notes(call: Call[Conf], keep: frozenset[Attachment], steps: Steps) -> None:
    for attachment, path, data in notes.notes(call.conf.data_dir, keep):
        document = _decode(data)
        if document is None or document.get("name") != call.network:
            continue
        if attachment.ifname:
            steps.run(_delete_gone, call, attachment, document, data)
        else:
            # DEL needs an interface, which this note does not name: the delegate's GC must do.
            steps.run(notes.remove, path)


def _delete_gone(call: Call[Conf], attachment: Attachment, document: Json, data: bytes) -> None:
    call.delegate(str(document.get("type", "")), "DEL", data, attachment)
    owner = call.owner._replace(container_id=attachment.container_id, ifname=attachment.ifname)
    Note(call.conf.data_dir, owner).remove()


def _collect_delegate(call: Call[Conf]) -> None:
    document = _delegate_conf(call, _load_subnet(call.conf))
    for key in ("cni.dev/valid-attachments", "cni.dev/attachments"):
        value = config.lookup(call.raw, key)
        if value is not None:
            document[key] = value
    call.delegate(document["type"], "GC", _encode(document))


def status(call: Call[Conf]) -> None:
    """Ready when flanneld has written its file and the delegate is ready."""
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
    """Call the delegate's CHECK with the configuration of its ADD."""
    note = Note(call.conf.data_dir, call.owner)
    data = note.load()
    document = None if data is None else _decode(data)
    if document is None:
        raise CNIError(
            f"the note of this attachment is lost: {note.path}",
            "without it DEL cannot release the address: start the container anew, and see that "
            "nothing clears away dataDir",
        )
    document["cniVersion"] = call.conf.cni_version
    for key in ("prevResult", "runtimeConfig"):
        value = config.lookup(call.raw, key)
        if value is not None:
            document[key] = value
    call.delegate(str(document.get("type", "")), "CHECK", _encode(document))
