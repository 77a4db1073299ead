"""The attachment that a command line names, found in the node's own records, never only guessed.

    NETNS          a path: what is attached in the namespace that the path names
    --id ID        a container id, or the beginning of one
    NAMESPACE/POD  a pod, as a runtime named it in CNI_ARGS

cnitool derives a container id from the path. That id is used only if it is known, or if nothing
else is attached in the namespace: so a command about a runtime's pod never uses an id that the
runtime does not know.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cni.kernel import link
from cni.kernel.errors import KernelError
from cni.netns.namespace import Identity, Namespace, identify
from cni.protocol.errors import CNIError

from . import errors
from .view.attached import DIRECT_PREFIX, Attached
from .view.namespaces import ALIVE, Live, number_of

try:  # hashlib would load OpenSSL
    from _sha2 import sha512  # type: ignore[import-not-found]  # Python 3.12 and later
except ImportError:
    from _sha512 import sha512  # type: ignore[import-not-found]

DEFAULT_IFNAME = "eth0"
_LISTED = 8  # attachments in an error message


class Wanted(NamedTuple):
    """The command line's arguments: `where` is NETNS or NAMESPACE/POD; `ifname` may be ""."""

    network: str
    where: str = ""
    container: str = ""
    ifname: str = ""


class Target(NamedTuple):
    """The attachment, and whether it is known (else its id is derived from the path).

    `foreign` is a link of that name in the namespace whose owner is not known.
    """

    attached: Attached
    known: bool
    foreign: bool = False


def container_id(netns: str) -> str:
    """The container id that cnitool derives from a namespace's path."""
    # A path is bytes, which need not be UTF-8.
    digest = sha512(netns.encode("utf-8", "surrogateescape")).digest()
    return f"{DIRECT_PREFIX}{digest[:10].hex()}"


def absolute(path: str) -> str:
    """`path` made absolute and clean, as Go's filepath.Abs does it."""
    absolute_path = os.path.abspath(path)
    # POSIX lets two slashes at the beginning mean something, and Python keeps them.
    return absolute_path[1:] if absolute_path.startswith("//") else absolute_path


def find(wanted: Wanted, everything: Sequence[Attached], live: Live) -> Target:
    """The attachment of `wanted.network` that is named. `everything` are those of all networks.

    Raises NotFound, Ambiguous, or Refused if only a derived id is left, and others are attached.
    """
    if wanted.container:
        return Target(_by_container(wanted, everything, live), known=True)
    if _is_pod(wanted.where, everything):
        return Target(_by_pod(wanted, everything, live), known=True)
    return _by_namespace(wanted, everything, live)


def _by_container(wanted: Wanted, everything: Sequence[Attached], live: Live) -> Attached:
    fitting = [each for each in everything if each.container_id.startswith(wanted.container)]
    # A whole id wins, even if it is also the beginning of another one.
    exact = [each for each in fitting if each.container_id == wanted.container]
    inside = [each for each in exact or fitting if each.network == wanted.network]
    what = f"container {wanted.container}"
    if not inside:
        raise _not_attached(what, wanted.network, exact or fitting, live)
    _require_one_container(what, inside, live)
    return _by_ifname(inside, wanted, what, live)


def _is_pod(where: str, everything: Iterable[Attached]) -> bool:
    """Is NAMESPACE/POD meant? A path that is there is a path."""
    if where.startswith(("/", ".")) or where.count("/") != 1 or os.path.lexists(where):
        return False
    return any(each.pod == where for each in everything)


def _by_pod(wanted: Wanted, everything: Sequence[Attached], live: Live) -> Attached:
    of_pod = [each for each in everything if each.pod == wanted.where]
    inside = [each for each in of_pod if each.network == wanted.network]
    what = f"pod {wanted.where}"
    if not inside:
        raise _not_attached(what, wanted.network, of_pod, live)
    # Ended containers of a restarted pod may still be known.
    alive = [each for each in inside if each.state(live) == ALIVE]
    inside = alive or inside
    _require_one_container(what, inside, live)
    return _by_ifname(inside, wanted, what, live)


def _by_namespace(wanted: Wanted, everything: Sequence[Attached], live: Live) -> Target:
    path = absolute(wanted.where)
    now = identify(path)
    number = number_of(path) if now is not None else None
    inside = [each for each in everything if _is_in(each, path, now, number)]
    fitting = [each for each in inside if each.network == wanted.network]
    what = f"namespace {path}"
    if fitting:
        known = _with_ifname(fitting, wanted)
        if known is None and not wanted.ifname:
            _by_ifname(fitting, wanted, what, live)  # several, none of them eth0
        if known is not None:
            same = [each for each in fitting if each.ifname == known.ifname]
            _require_one_container(what, same, live)
            return Target(known, known=True)
    return _guessed(wanted, path, now, everything, inside)


def _guessed(
    wanted: Wanted,
    path: str,
    now: Identity | None,
    everything: Sequence[Attached],
    inside: Sequence[Attached],
) -> Target:
    """By the id that cnitool would use. Raises NotFound, Refused."""
    guessed = container_id(path)
    ifname = wanted.ifname or DEFAULT_IFNAME
    for each in everything:
        if (each.network, each.container_id, each.ifname) == (wanted.network, guessed, ifname):
            return Target(each, known=True)
    if now is None:
        raise _no_namespace(wanted, path, everything)
    others = [each for each in inside if each.container_id != guessed]
    if others:
        raise errors.Refused(
            f"nothing that is known is attached to {wanted.network} as {ifname} in {path}",
            f"there are {listed(others)}; name one with --id or -i",
        )
    attached = Attached(wanted.network, guessed, ifname, netns=path)
    owned = any(each.ifname == ifname for each in inside)
    # A link that nobody has noted may be another program's, for example docker's.
    return Target(attached, known=False, foreign=not owned and _has_link(path, ifname))


def _is_in(each: Attached, path: str, now: Identity | None, number: int | None) -> bool:
    """Is it attached in the namespace that the path names now, to which the node gives `number`?

    A path without a namespace means the attachments that were made under it.
    """
    if now is None:
        return bool(each.netns) and _same_path(each.netns, path)
    # The kernel numbers namespaces anew at each boot: an old identity may equal a new one.
    if each.earlier_boot:
        return False
    # The path that was noted decides nothing: by now it may lead to another namespace.
    if each.identity is not None:
        return not now.differs(each.identity)
    if each.nsids:
        return number in each.nsids
    there = identify(each.netns) if each.netns else None
    return there is not None and not now.differs(there)


def _same_path(one: str, other: str) -> bool:
    return one == other or _real(one) == _real(other)


def _real(path: str) -> str:
    """The path without symbolic links; as it is, if they cannot be read."""
    try:
        return os.path.realpath(path)
    except OSError:  # as /proc/PID/ns/net of a process that we may not look into
        return path


def is_same_place(netns: str, where: str) -> bool:
    """Do two paths name the same namespace, or are they the same path?"""
    path = absolute(where)
    now, there = identify(path), identify(netns)
    if now is not None and there is not None:
        return not now.differs(there)
    return _same_path(netns, path)


def path_for_plugins(what: Attached) -> str:
    """CNI_NETNS for an attachment: its path, unless that names another namespace by now."""
    # DEL needs no CNI_NETNS, and must not touch a namespace that another container has.
    now = identify(what.netns) if what.netns else None
    if now is None or what.identity is None or not now.differs(what.identity):
        return what.netns
    return ""


def _by_ifname(fitting: Sequence[Attached], wanted: Wanted, what: str, live: Live) -> Attached:
    """As _with_ifname. Raises NotFound, Ambiguous."""
    found = _with_ifname(fitting, wanted)
    if found is not None:
        return found
    if wanted.ifname:
        raise _not_attached(f"{wanted.ifname} of {what}", wanted.network, fitting, live)
    raise errors.Ambiguous(
        f"{what} has several interfaces in network {wanted.network}",
        f"name one with -i: {listed(fitting)}",
    )


def _with_ifname(fitting: Sequence[Attached], wanted: Wanted) -> Attached | None:
    """The one with the interface that was named; else eth0, or the only one there is."""
    names = [each.ifname for each in fitting]
    ifname = wanted.ifname or (DEFAULT_IFNAME if DEFAULT_IFNAME in names else "")
    if not ifname and len(set(names)) == 1:
        ifname = names[0]
    return next((each for each in fitting if each.ifname == ifname), None)


def _require_one_container(what: str, fitting: Sequence[Attached], live: Live) -> None:
    ids = dict.fromkeys(each.container_id for each in fitting)
    if len(ids) > 1:
        raise errors.Ambiguous(
            f"{what} may be one of {len(ids)} containers",
            f"name one with --id: {listed(fitting, live)}",
        )


def _not_attached(
    what: str, network: str, elsewhere: Sequence[Attached], live: Live
) -> errors.NotFound:
    hint = "`cni ps` shows what is attached"
    if elsewhere:
        hint = f"attached are {listed(elsewhere, live)}"
    return errors.NotFound(f"{what} is not attached to {network}", hint)


def _no_namespace(wanted: Wanted, path: str, everything: Sequence[Attached]) -> CNIError:
    """The error for a path that names no namespace, and that nothing is known of."""
    named = f"/run/netns/{wanted.where}"
    if "/" not in wanted.where and identify(named) is not None:
        return errors.NotFound(
            f"{path} does not exist",
            f"{wanted.where} is taken for a path; is {named} meant?",
        )
    try:
        os.stat(path)
    except PermissionError as error:
        return errors.of_system(error)
    # ValueError: a path with a zero byte.
    except (OSError, ValueError):
        pass
    ids = {each.container_id for each in everything if each.container_id.startswith(wanted.where)}
    if len(ids) == 1 and not os.path.lexists(path):
        return errors.NotFound(
            f"{path} does not exist",
            f"{wanted.where} is taken for a path; the container is named by --id {ids.pop()}",
        )
    if not os.path.lexists(path):
        hint = "nothing that is known was attached there; `cni ps` shows what is attached"
        if wanted.where.count("/") == 1 and not wanted.where.startswith(("/", ".")):
            hint = f"there is no pod {wanted.where} either; `cni ps` shows what is attached"
        return errors.NotFound(f"{path} does not exist", hint)
    return errors.NotFound(
        f"{path} is not a network namespace",
        "nothing that is known was attached there; `cni ps` shows what is attached",
    )


def _has_link(path: str, ifname: str) -> bool:
    """Is there a link of that name in the namespace?"""
    try:
        with Namespace.open(path) as namespace:
            return link.find(namespace.netlink(), ifname) is not None
    except (KernelError, OSError):
        return False


def of_container(name: str, everything: Sequence[Attached]) -> list[Attached]:
    """The attachments of the container or pod that is named: by an id, its beginning, or a pod.

    Raises NotFound, Ambiguous.
    """
    if not name:
        raise errors.NotFound("the name of the container is empty", "`cni ps` shows them")
    # A pod may have several containers, one ended and one that runs: all of them are meant.
    exact = [each for each in everything if name in (each.container_id, each.pod)]
    found = exact or [each for each in everything if each.container_id.startswith(name)]
    if not found:
        raise errors.NotFound(f"nothing of {name} is attached", "`cni ps` shows what is attached")
    ids = dict.fromkeys(each.container_id for each in found)
    if len(ids) > 1 and not exact:
        raise errors.Ambiguous(
            f"{name} may be one of {len(ids)} containers", f"write more of it: {listed(found)}"
        )
    return found


def listed(attachments: Iterable[Attached], live: Live | None = None) -> str:
    """The attachments in words, at most _LISTED of them."""
    all_of_them = list(attachments)
    texts = []
    for each in all_of_them[:_LISTED]:
        text = f"{each.ifname} of {each.shown} in {each.network}"
        if each.pod:
            text += f" (container {each.container_id})"
        texts.append(f"{text}, {each.state(live)}" if live is not None else text)
    more = len(all_of_them) - len(texts)
    return "; ".join(texts) + (f"; and {more} more" if more > 0 else "")
