"""tuning: changes sysctls, attributes and features of a chained interface (docs/spec/tuning.md).

ADD reads the values that it is going to change, writes them to the backup file, then changes them:
the link in one request to the kernel, the sysctls in one job in the container's namespace. DEL
restores the values of the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from errno import EINVAL, EISDIR, ENOENT, ENOTDIR, EROFS
from typing import Any

from ...call import Call, Steps
from ...kernel import link, sysctl
from ...kernel.errors import TRANSIENT, ExecutorDied, KernelError, NetlinkError
from ...kernel.link import Link
from ...netns import Namespace, identify
from ...protocol.errors import CNIError, NotAvailable, Terminated, TryAgainLater
from ...protocol.request import Attachment
from ...protocol.result import Result
from . import backup, settings, shared
from .backup import Backup
from .settings import Conf, Settings

_NO_PARAMETER = frozenset({ENOENT, ENOTDIR, EISDIR})

# --- ADD ------------------------------------------------------------------------------------------


def add(call: Call[Conf]) -> Result:
    """Set the configured values; the result is the prevResult, with the new MAC and MTU."""
    want = Settings(call)
    settings.require_allowed(want.keys)
    result = call.prev_result()
    if result is None:
        raise CNIError("Required prevResult missing", "tuning follows the plugin of an interface")
    netns = call.open_netns()
    if want.anything:
        present = _read_sysctls(netns, want)
        before = _look(call, netns, want, present)
        _keep(call, before)  # before the first change: after a kill DEL restores from it
        call.undo.callback(_undo, netns, call.ifname, before)
        if before.shared:
            _use_shared(call, netns, {name: present[name] for name in before.shared})
        _change(netns, call.ifname, want, before)
    for entry in result.interfaces:
        if entry.name == call.ifname:
            entry.mac = want.mac or entry.mac
            if entry.mtu and entry.sandbox == call.netns:
                entry.mtu = want.link.get("mtu", entry.mtu)
    return result


def _read_sysctls(netns: Namespace, want: Settings) -> dict[str, tuple[str, str]]:
    """The sysctls that are going to be set: name -> (value now, value to set). Raises CNIError.

    If some belong to the namespace, it is locked, since another attachment may be restoring them.
    """
    names = list(want.sysctl)
    if not names:
        return {}
    if any(map(shared.is_shared, names)):
        shared.lock(netns)
    present = {}
    for name, (value, errno) in zip(names, netns.sysctls(_reading(names)), strict=True):
        if errno in _NO_PARAMETER:
            raise _refused("open", name, errno)
        if value is not None:  # a sysctl that can only be written cannot be restored
            present[name] = (value, want.sysctl[name])
    return present


def _look(
    call: Call[Conf], netns: Namespace, want: Settings, present: dict[str, tuple[str, str]]
) -> Backup:
    """The backup of everything that is going to change; `present` are sysctls. Raises CNIError."""
    owner = call.owner
    holder = backup.Holder(owner.network, owner.container_id, owner.ifname, backup.identity(netns))
    before = Backup(owner=holder)
    for name, (value, wanted) in present.items():
        if shared.is_shared(name):
            before.shared.append(name)
        elif not sysctl.same(value, wanted):
            before.sysctl[name] = (value, wanted)
    device = link.find(netns.netlink(), call.ifname) if want.link else None
    if want.link:
        if device is None:
            raise CNIError(
                f'failed to get "{call.ifname}": Link not found',
                f"no such interface in {netns.path}",
            )
        attributes = _attributes(device)
        for key in want.link:
            setattr(before, key, attributes[key])
    if want.features:
        from . import features

        before.ethtool = features.look(netns, call.ifname, want.features)
    return before


def _reading(names: list[str]) -> list[sysctl.Step]:
    return [(sysctl.READ, name, "") for name in names]


def _attributes(device: Link) -> dict[str, Any]:
    """A link's attributes as keywords of link.change, but the MAC as text."""
    return {
        "mac": device.mac,
        "promisc": bool(device.flags & link.IFF_PROMISC),
        "mtu": device.mtu,
        "allmulti": bool(device.flags & link.IFF_ALLMULTI),
        "txqlen": device.txqlen,
    }


def _keep(call: Call[Conf], before: Backup) -> None:
    """Write the values that are going to change to the backup file. Raises CNIError."""
    file = backup.File(call.conf.data_dir, call.owner)
    kept = file.read()
    # Values of another namespace, which had no DEL, say nothing about this one.
    if kept is not None and kept.owner is not None and kept.owner != before.owner:
        kept = None
    merged = kept.over(before) if kept is not None else before
    if merged == kept or (kept is None and before.empty):
        return
    if kept is None:
        call.undo.callback(file.remove)
    else:
        call.undo.callback(file.write, kept)
    file.write(merged)


def _use_shared(call: Call[Conf], netns: Namespace, values: dict[str, tuple[str, str]]) -> None:
    """Note this attachment as a user of sysctls of the namespace. Raises CNIError."""
    users = shared.File(backup.directory_of(call.conf.data_dir), backup.identity(netns))
    call.undo.callback(users.release, netns, call.owner)
    if users.add(call.owner, values, identify(call.netns)):
        call.undo.withdraw()  # an earlier ADD of this attachment stands


def _change(netns: Namespace, ifname: str, want: Settings, before: Backup) -> None:
    """Set the configured values, up to the first failure. Raises CNIError."""
    if want.sysctl:
        steps = [(sysctl.WRITE, name, value) for name, value in want.sysctl.items()]
        outcomes = netns.sysctls(steps, stop=True)
        errno = outcomes[-1][1]
        if errno:
            raise _refused("write", steps[len(outcomes) - 1][1], errno)
    if want.link:
        problems = _set_link(netns, ifname, want.link)
        if problems:
            raise CNIError(problems[0], "what had been changed was put back")
    if before.ethtool:
        from . import features

        features.change(netns, ifname, want.features)


def _refused(operation: str, name: str, errno: int) -> CNIError:
    advice = {
        ENOENT: "the kernel has no such parameter in this network namespace",
        EINVAL: "the kernel does not take the value",
        EROFS: "/proc/sys is mounted read-only here",
    }.get(errno, "see sysctl(8) and the kernel's Documentation/networking/ip-sysctl.rst")
    return CNIError(f"{operation} {sysctl.ROOT}{name}: {os.strerror(errno).lower()}", advice)


def _set_link(netns: Namespace, ifname: str, attributes: dict[str, Any]) -> list[str]:
    """Set attributes in one request, or one by one if that fails; a sentence for each failure."""
    sock = netns.netlink()
    try:
        link.change(sock, 0, name=ifname, **attributes)  # index 0: the link is found by its name
    except NetlinkError:
        pass
    else:
        return []
    problems = []
    # one by one, so that the error says which attribute the kernel refuses
    for key, value in attributes.items():
        try:
            link.change(sock, 0, name=ifname, **{key: value})
        except NetlinkError as error:
            text = link.format_mac(value) if key == "mac" else value
            problems.append(f'failed to set {key} of "{ifname}" to {text}: {error}')
    return problems


def _undo(netns: Namespace, ifname: str, before: Backup) -> None:
    problems = Problems()
    _put_back(netns, ifname, before, problems)
    if problems.all:
        raise CNIError("; ".join(problems.all))


class Problems:
    """Values that could not be restored: `refused` by the kernel, or for lack of memory (`short`).

    The latter may succeed when DEL is repeated.
    """

    def __init__(self) -> None:
        self.refused: list[str] = []
        self.short: list[str] = []

    @property
    def all(self) -> list[str]:
        return self.refused + self.short

    def run(self, step: Callable[..., list[str] | list[tuple[str, int]]], *args: Any) -> None:
        """Run a step, which returns the kernel's refusals.

        Each is a sentence, or the (name, errno) of a sysctl.
        """
        try:
            for problem in step(*args):
                self._add(problem)
        except (Terminated, TryAgainLater, shared.Unreadable):
            raise
        except ExecutorDied as error:
            self.short.append(str(error))
        except OSError as error:
            (self.short if error.errno in TRANSIENT else self.refused).append(str(error))
        except (CNIError, KernelError, ValueError) as error:
            self.refused.append(str(error))

    def _add(self, problem: str | tuple[str, int]) -> None:
        if isinstance(problem, str):
            self.refused.append(problem)
            return
        name, errno = problem
        texts = self.short if errno in TRANSIENT else self.refused
        texts.append(_refused("write", name, errno).msg)


def _put_back(netns: Namespace, ifname: str, before: Backup, problems: Problems) -> None:
    """Restore the values of a backup; every step runs. A missing link is no failure."""
    problems.run(_put_back_link, netns, ifname, before)
    if before.ethtool:
        problems.run(_put_back_features, netns, ifname, before)
    if before.sysctl:
        entries = [(name, old, ours) for name, (old, ours) in before.sysctl.items()]
        problems.run(sysctl.put_back, netns.sysctls, entries)


def _put_back_link(netns: Namespace, ifname: str, before: Backup) -> list[str]:
    device = link.find(netns.netlink(), ifname)
    if device is None:
        return []
    present = _attributes(device)
    todo = {key: value for key, value in before.link.items() if value != present[key]}
    if "mac" in todo:
        todo["mac"] = link.parse_mac(todo["mac"])
    return _set_link(netns, ifname, todo) if todo else []


def _put_back_features(netns: Namespace, ifname: str, before: Backup) -> list[str]:
    from . import features

    if link.find(netns.netlink(), ifname) is None:
        return []
    return features.put_back(netns, ifname, before.ethtool)


# --- the other verbs ------------------------------------------------------------------------------


def delete(call: Call[Conf]) -> None:
    """Restore the values of the backup file; every step runs.

    A refusal of the kernel is logged, not raised, as in the reference: mostly the interface is
    about to be deleted anyway. Raises CNIError if a file cannot be read or removed, and if this
    process lacked memory or descriptors: then DEL can be repeated. Of the configuration only
    `dataDir` is needed.
    """
    file = backup.File(call.conf.data_dir, call.owner)
    kept = file.read()
    problems = Problems()
    if kept is not None:
        _restore(call, kept, problems)
    for problem in problems.refused:
        call.log(f"tuning: {problem}")
    if problems.short:
        raise CNIError(f"cannot restore: {'; '.join(problems.short)}", "repeat the DEL")
    if not problems.refused and not call.netns_unknown:  # else a repeated DEL needs it
        file.remove()


def _restore(call: Call[Conf], kept: Backup, problems: Problems) -> None:
    netns = call.find_netns()
    if call.netns_unknown:
        return  # DEL fails at its end, and a repeated one finds the backup
    users = None
    if kept.shared and kept.owner is not None:
        users = shared.File(backup.directory_of(call.conf.data_dir), kept.owner.netns)
    if netns is None or not kept.is_of(netns):
        if users is not None:
            users.forget(call.owner)
        return
    _put_back(netns, call.ifname, kept, problems)
    if users is not None:
        shared.lock(netns)
        problems.run(users.release, netns, call.owner)


def gc(call: Call[Conf], keep: frozenset[Attachment]) -> None:
    """Remove the backup files of this network's attachments that are not in `keep`.

    As in DEL, a sysctl of an existing namespace is restored after its last attachment.
    """
    owners = call.owners(keep)
    directory = backup.directory_of(call.conf.data_dir)
    steps = Steps()
    steps.run(backup.collect, directory, call.network, owners)
    for problem in steps.run(shared.collect, directory, call.network, owners, steps) or []:
        call.log(f"tuning: cannot restore {problem}")
    steps.finish()


def status(call: Call[Conf]) -> None:
    """Ready if the node allows the sysctls and the backup file can be written."""
    want = Settings(call)
    try:
        settings.require_allowed(want.keys)
    except CNIError as error:
        raise NotAvailable(error.msg, error.details) from None
    directory = backup.directory_of(call.conf.data_dir)
    while not os.path.lexists(directory):  # ADD makes it
        directory = os.path.dirname(directory) or "."
    if not (os.path.isdir(directory) and os.access(directory, os.W_OK)):
        raise NotAvailable(
            f"cannot write to {directory}",
            "tuning keeps there (dataDir) what was before, so that DEL can put it back",
        )


def check(call: Call[Conf]) -> None:
    """Compare sysctls, link and features with the configuration."""
    from ..shared import checks

    want = Settings(call)
    if call.prev_result() is None:
        raise CNIError("Required prevResult missing", "tuning follows the plugin of an interface")
    netns = call.open_netns()
    problems = _check_sysctls(netns, want)
    if want.link or want.features:
        problems += _check_link(netns, call.ifname, want)
    checks.fail(problems)


def _check_sysctls(netns: Namespace, want: Settings) -> list[str]:
    if not want.sysctl:
        return []
    problems = []
    names = list(want.sysctl)
    for name, (value, errno) in zip(names, netns.sysctls(_reading(names)), strict=True):
        if errno in _NO_PARAMETER:
            problems.append(_refused("open", name, errno).msg)
        elif value is not None and not sysctl.same(value, want.sysctl[name]):
            problems.append(
                f"Error: Tuning configured value of {sysctl.ROOT}{name} is {want.sysctl[name]}, "
                f"current value is {value}"
            )
    return problems


# The reference's words for keywords of link.change, in its messages about differences.
_TITLES = {
    "mac": "configured Ethernet of {}",
    "promisc": "link {} configured promisc",
    "mtu": "configured MTU of {}",
    "allmulti": "configured all-multicast mode of {}",
    "txqlen": "configured Transmit Queue Length of {}",
}


def _check_link(netns: Namespace, ifname: str, want: Settings) -> list[str]:
    device = link.find(netns.netlink(), ifname)
    if device is None:
        return [f"Cannot find container link {ifname}"]
    present = _attributes(device)
    problems = []
    for key, value in want.link.items():
        wanted, current = want.mac if key == "mac" else value, present[key]
        if wanted != current:
            title = _TITLES[key].format(ifname)
            problems.append(
                f"Error: Tuning {title} is {_text(wanted)}, current value is {_text(current)}"
            )
    if want.features:
        from . import features

        problems += features.differences(netns, ifname, want.features)
    return problems


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
