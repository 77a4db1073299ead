"""`cni status`: could a container be attached now?

libcni calls STATUS only if the network's version is 1.1.0 or later, and most networks are older.
This command also calls the plugins of this file for older networks. It judges the configuration,
checks the needs of an ADD on this node, and whether the rules of attached containers exist.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import click
import msgspec

from cni import dispatch, intent
from cni.describe import catalogue
from cni.describe.findings import Finding
from cni.protocol.errors import CNIError, LimitedConnectivity, NotAvailable

from . import asking, configurations, conflist, errors, formats, validate
from .runtime import Runtime
from .session import configured, interruptible, network_options, runtime

# Attachments of a plugin whose rules are checked: a flush removes those of all.
_SAMPLE = 3
_LISTED = 8  # the most missing things that are named


class Ready(NamedTuple):
    """An ADD should work. `unasked` lists plugins for which that is not known, and why."""

    unasked: list[str]
    warnings: list[Finding]


@click.command()
@network_options
def status(network: str, netns: str, cache_dir: str) -> None:
    """Say whether a container could be attached to the network now.

    Calls STATUS of the plugins, judges the configuration, and checks what an ADD would need on this
    node: plugins, links, kernel, addresses. Exit code 50: no container can be attached. Exit code
    51: attached containers may also be cut off, for example because their rules were flushed.

    \b
    Example:  cni status mynet
    See also: cni validate, cni plan, cni doctor
    """  # noqa: D301 - click wants the control character
    del netns  # cnitool takes one
    with interruptible() as interrupts:
        wanted = configured(network)
        ready = require_ready(wanted, runtime(cache_dir, interrupts))
        # Last, since it matters only where new containers could be attached: code 50 goes before
        # 51.
        _require_connected(wanted, cache_dir)
    value = {
        "network": network,
        "ready": True,
        "notAsked": ready.unasked,
        "warnings": [each.as_dict() for each in ready.warnings],
    }
    notes = [f"  not asked: {each}" for each in ready.unasked]
    notes += [f"  warning: {each.message} ({each.place})" for each in ready.warnings]
    formats.done(value, "\n".join([f"{network}: ready", *notes]), [network])


def _require_connected(network: conflist.NetworkList, cache_dir: str) -> None:
    """Raises LimitedConnectivity (51) if the node lacks what attached containers need."""
    if os.geteuid() != 0:
        return
    from .view import attachments, bridges, needs
    from .view.attached import Places
    from .view.namespaces import Live

    live = Live()
    known = attachments.gather(Places.of(cache_dir), network.name)
    found = list(bridges.cut_off(known, live))
    if found:
        names = ", ".join(each.attached.name for each in found[:_SAMPLE])
        more = ", …" if len(found) > _SAMPLE else ""
        raise LimitedConnectivity(
            "; ".join(bridges.in_words(found)), f"{bridges.MEND}: {names}{more}"
        )
    living = needs.of_living(known, live, [network])
    lacks = needs.links(living)
    try:
        lacks += needs.forwarding(living)
    except OSError:
        pass  # this process cannot see it, so it is not known
    if lacks:
        shown = lacks[:_LISTED]
        texts = [f"{each.in_words()} (`{each.mend}`)" for each in shown]
        texts += [f"and {len(lacks) - _LISTED} more"] if len(lacks) > _LISTED else []
        raise LimitedConnectivity(texts[0], "; ".join(texts[1:]))


def require_ready(
    network: conflist.NetworkList, asked: Runtime, *, with_rules: bool = True
) -> Ready:
    """Raises CNIError, NotAvailable (50) or LimitedConnectivity (51) unless an ADD should work.

    `with_rules`: also looks for the rules of attached containers.
    """
    try:
        unasked = asking.ask(network, asked)
    except CNIError as error:
        if os.geteuid() == 0:
            raise
        # The plugin has answered for a user who attaches nothing.
        advice = "plugins run as root: ask them as root"
        raise errors.NotPermitted(
            error.msg, f"{error.details}; {advice}" if error.details else advice
        ) from None
    found = _judged(network.name)
    wrong = [each for each in found if validate.stops_add(each)]
    if wrong:
        more = [f"{each.place}: {each.message}" for each in wrong[1:]]
        advice = f"{wrong[0].place}: {wrong[0].advice}".removesuffix(": ")
        raise NotAvailable(f"an ADD would fail: {wrong[0].message}", "; ".join([advice, *more]))
    missing = flushed(network) if with_rules else []
    if missing:
        raise LimitedConnectivity(
            "rules of the packet filter are gone: run `cni reload`", "; ".join(missing)
        )
    return Ready(unasked, [each for each in found if each not in wrong])


def _judged(name: str) -> list[Finding]:
    """Findings about the network's configuration, and about the node."""
    try:
        return validate.judge(configurations.files_of_network(name)).findings()
    except errors.CommandError:
        return []


def flushed(network: conflist.NetworkList) -> list[str]:
    """CHECK's messages about missing rules of some attachments; [] without root."""
    if os.geteuid() != 0:
        return []
    env = {"CNI_STATE_DIR": os.environ.get("CNI_STATE_DIR", intent.STATE_DIR)}
    missing = []
    for name in dict.fromkeys(filter(None, (catalogue.known_as(p.type) for p in network.plugins))):
        try:
            # Only plugins that make rules note intents; for the others there is nothing to check.
            kept = intent.all_of(name, env, network.name)
        except OSError:
            continue
        alive = [each for each in kept if each.namespace_exists()]
        for each in alive[-_SAMPLE:]:
            text = _checked(name, each)
            if text:
                owner = each.owner
                missing.append(f"{name}: {owner.container_id}/{owner.ifname}: {text}")
    return missing


def _checked(name: str, kept: intent.Intent) -> str:
    """CHECK's message about an attachment, if it is about rules; else ""."""
    if name not in dispatch.TABLE:
        return ""
    dropped = ("cniversion", "prevresult")
    conf = {key: value for key, value in kept.config.items() if key.lower() not in dropped}
    # The ADD's request in the version in which its result was noted.
    stdin = msgspec.json.encode({**conf, "cniVersion": intent.VERSION, "prevResult": kept.result})
    env = {"PATH": os.environ.get("PATH", os.defpath), **kept.env, "CNI_COMMAND": "CHECK"}
    code, answer = dispatch.answer(name, env, lambda: stdin)
    if not code:
        return ""
    error = msgspec.json.decode(answer)
    msg, details = str(error.get("msg", "")), str(error.get("details", ""))
    # CHECK names this command exactly where rules are missing.
    if "cni reload" not in f"{msg} {details}":
        return ""
    # CHECK names other differences first, such as an interface that the container has renamed.
    others = details.removeprefix("also: ")
    return others if "cni reload" not in msg and others != details else msg
