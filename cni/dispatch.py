"""The dispatch table, and the one place that turns any exception into the JSON error object.

cni/contract.py shows the members of a plugin's module. A verb that it lacks succeeds silently,
after the version gates (docs/spec/protocol.md §1.3).

Longer than most modules: the table is a fifth of it, and a second module would be one more file for
each request to load, even for one that fails because no file can be opened any more.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from errno import EPERM
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from . import OUT_OF_MEMORY, interrupts, standins
from .call import Call, Verbs
from .kernel.errors import KernelError
from .protocol import config
from .protocol.errors import BadEnvironment, CNIError, IOFailure, Terminated, from_exception
from .protocol.request import (
    Request,
    check_network_name,
    read,
    read_stdin,
    valid_attachments,
    write_some,
)
from .protocol.result import Result, encode_error

if TYPE_CHECKING:
    from types import ModuleType

    from .record.tracing import Trace

Answer = tuple[int, bytes, bool]  # exit code, output for stdout, may the process go on?
Deliver = Callable[[bytes], None]  # writes an ADD's result to the runtime; raises CNIError


class Plugin(NamedTuple):
    """An entry of the table; errors of decoding a configuration begin with `conf_error`."""

    module: str
    about: str
    versions: tuple[str, ...] = config.VERSIONS
    conf_error: str = "failed to load netconf: "


# `versions` and `conf_error` follow the reference, where it has the plugin (docs/spec/protocol.md
# §1.3): runtimes, and the reference's own tests, compare both.
TABLE: dict[str, Plugin] = {
    "bandwidth": Plugin(
        "cni.plugins.bandwidth.plugin",
        "limits what a container sends and receives",
        versions=config.VERSIONS[2:],
        conf_error="failed to parse network configuration: ",
    ),
    "bond": Plugin(
        "cni.plugins.bond.plugin",
        "joins several links to one that outlives the failure of some",
        conf_error="Failed to load configuration file, error = ",
    ),
    "bridge": Plugin("cni.plugins.bridge.plugin", "connects containers to a Linux bridge"),
    "cluster": Plugin(
        "cni.ipam.cluster.plugin",
        "allocates addresses that are unique in a cluster, from blocks that nodes claim",
        conf_error="",
    ),
    "dhcp": Plugin(
        "cni.ipam.dhcp.plugin", "leases addresses from DHCP servers, by a daemon", conf_error=""
    ),
    "dummy": Plugin(
        "cni.plugins.dummy",
        "makes an interface that only holds addresses",
        conf_error="failed to parse network config: ",
    ),
    "firewall": Plugin(
        "cni.plugins.firewall.plugin",
        "lets the containers' traffic through the node's firewall",
        versions=config.VERSIONS[4:],
    ),
    "flannel": Plugin(
        "cni.plugins.flannel.plugin",
        "calls another plugin with the subnet that flanneld gave the node",
        conf_error="failed to load flannel netconf file: failed to load netconf: ",
    ),
    "host-device": Plugin(
        "cni.plugins.host_device.plugin", "moves a device of the host into the container"
    ),
    "host-local": Plugin(
        "cni.ipam.host_local.plugin", "allocates addresses from ranges", conf_error=""
    ),
    "ipvlan": Plugin("cni.plugins.ipvlan", "makes an interface that shares a host link's MAC"),
    "loopback": Plugin(
        "cni.plugins.loopback",
        "sets the loopback link up",
        conf_error="failed to parse network config: ",
    ),
    "macvlan": Plugin(
        "cni.plugins.macvlan.plugin",
        "makes an interface with a MAC of its own on a host link",
        conf_error="failed to load netConf: ",
    ),
    "macvtap": Plugin(
        "cni.plugins.macvlan.macvtap",
        "makes a macvlan whose packets a virtual machine reads and writes",
    ),
    "portmap": Plugin(
        "cni.plugins.portmap.plugin",
        "publishes a container's ports on the node",
        conf_error="failed to parse network configuration: ",
    ),
    "ptp": Plugin("cni.plugins.ptp", "routes between host and container over a veth pair"),
    "route-override": Plugin(
        "cni.plugins.route_override", "changes the routes of the interface made before"
    ),
    "sample": Plugin(
        "cni.plugins.sample",
        "is the example of docs/writing-a-plugin.md: passes the result on",
        conf_error="failed to parse network configuration: ",
    ),
    "sbr": Plugin(
        "cni.plugins.sbr",
        "routes by source address: replies leave by the interface they came in",
        conf_error="failed to parse network configuration: ",
    ),
    "slaac": Plugin(
        "cni.ipam.slaac", "reports the addresses that routers advertise", conf_error=""
    ),
    "sriov": Plugin(
        "cni.plugins.sriov.plugin",
        "moves a virtual function of a network card into the container, with its settings",
        conf_error="failed to load netconf: ",
    ),
    "static": Plugin("cni.ipam.static", "hands out configured addresses", conf_error=""),
    "tap": Plugin("cni.plugins.tap", "makes a TAP device for a virtual machine"),
    "tc-redirect-tap": Plugin(
        "cni.plugins.tc_redirect_tap",
        "gives a virtual machine the place of the container, by a TAP device",
        versions=config.VERSIONS[2:],
    ),
    "tuning": Plugin(
        "cni.plugins.tuning.plugin", "changes sysctls, attributes and features of a link"
    ),
    "vlan": Plugin("cni.plugins.vlan", "makes an 802.1Q interface of a host link"),
    "vrf": Plugin("cni.plugins.vrf", "puts the interface into a VRF of the container"),
    "vxlan": Plugin(
        "cni.plugins.bridge.vxlan", "connects the containers of several nodes to one Ethernet"
    ),
    "whereabouts": Plugin(
        "cni.ipam.cluster.as_whereabouts",
        "is cluster, and takes the keys of the plugin of that name",
        conf_error="",
    ),
    "wireguard": Plugin(
        "cni.plugins.wireguard.plugin",
        "routes between the containers of several nodes, encrypted",
    ),
}

# The plugins of Windows; its IPAM plugins are those of Linux.
WINDOWS: dict[str, Plugin] = {
    "win-bridge": Plugin(
        "cni.plugins.win_bridge", "connects Windows containers to an L2Bridge or L2Tunnel network"
    ),
    "win-overlay": Plugin(
        "cni.plugins.win_overlay", "connects Windows containers to an overlay network"
    ),
}

if sys.platform == "win32":
    TABLE = {name: each for name, each in TABLE.items() if name in ("host-local", "static")}
    TABLE.update(WINDOWS)


def find(called: str) -> str | None:
    """The plugin for a file name `called`; None if this program has no such plugin.

    A prefix that ends in `-` is ignored (`buildkit-cni-bridge`), and the longest known name counts:
    `my-host-local` is host-local. The plugins of Windows are known everywhere, so that `win-bridge`
    is never taken for `bridge`.
    """
    name = called
    while name not in TABLE:
        _, dash, rest = name.partition("-")
        if not dash or name in WINDOWS:
            return None
        name = rest
    return name


# VERSION is not among them: it is answered before the configuration is read.
_VERBS = frozenset({"ADD", "DEL", "CHECK", "GC", "STATUS", "VALIDATE"})


def main(name: str) -> int:
    """Answer the request in environment and stdin as the plugin `name`; returns the exit code."""
    # called by hand; the reference, too, then says what it is
    if not os.environ.get("CNI_COMMAND"):
        _say(about(name))
        return 0
    began = monotonic()
    traced = _begin_trace()
    try:
        # a signal that arrived since cni.__main__ installed the handlers counts
        interrupts.install(forget=False)
        interrupts.unblock()
    except OSError as error:
        from .startup_error import refused

        return refused(error)
    received: list[bytes] = []
    written = 0

    def receive() -> bytes:
        with interrupts.waiting():
            received.append(read_stdin())
        return received[-1]

    def write(data: bytes) -> None:
        nonlocal written
        try:
            while written < len(data):
                written += write_some(memoryview(data)[written:])
        except OSError as error:
            text = f"cannot write to stdout: {(error.strerror or '').lower()}"
            raise IOFailure(text) from None

    code, output, _ = begin(name, dict(os.environ), receive, deliver=write)()
    _discard_executors()
    if standins.doubt is not None:
        # no harm in a second run: a failed ADD has been undone, and the other verbs can be repeated
        standins.restart(received[0] if received else None)
    try:
        if not (written and code):  # an error behind half a result would be no JSON
            written = 0
            write(output)
    except IOFailure as error:
        _say(f"cni: {error}\n")
        code, output = 1, encode_error(error)
    _record(name, b"".join(received), monotonic() - began, code, output, traced)
    return code


def _discard_executors() -> None:
    if "cni.netns.visit" in sys.modules:
        from .netns import visit

        visit.settle()
    if "cni.netns.executor" in sys.modules:
        from .netns.executor import Executor

        Executor.discard_idle()


def is_recorded(code: int, env: Mapping[str, str], stdin: bytes) -> bool:
    """May a request have to be recorded, judging by its own settings (cni.record)?"""
    return code != 0 or _LOG_VARIABLE in env or _LOG_KEY in stdin.lower()


_LOG_VARIABLE, _LOG_KEY = "CNI_LOG_LEVEL", b'"loglevel"'


def _record(
    name: str, stdin: bytes, seconds: float, code: int, output: bytes, traced: Trace | None
) -> None:
    """Record this process's request, if the settings say so. Raises nothing."""
    # One system call decides whether the file exists; only then, or if the request's own settings
    # say so, is cni.record loaded: a request that is not recorded pays for nothing else.
    node_file = os.environ.get("CNI_RECORD_CONF") or "/etc/cni/record.json"
    has_node_file = os.access(node_file, os.F_OK)
    if traced is None and not has_node_file and not is_recorded(code, os.environ, stdin):
        return
    try:
        from . import record

        record.by_exec(name, stdin, seconds, code, output, traced, has_node_file)
    except (Exception, standins.Insufficient):  # noqa: BLE001 S110 the answer is given already
        pass


def _begin_trace() -> Trace | None:
    """Begin the trace of this process's request, if a server takes spans. Raises nothing."""
    if "TRACEPARENT" not in os.environ:
        return None
    try:
        from . import record

        return record.begin_by_exec(os.environ)
    except (Exception, standins.Insufficient):  # noqa: BLE001 the request does not depend on it
        return None


def _say(text: str) -> None:
    from . import stderr

    stderr.lines(text)


def about(name: str) -> str:
    """The two lines that a plugin prints when it is run without CNI_COMMAND."""
    supported = ", ".join(TABLE[name].versions)
    return f"CNI {name} plugin {full_version()}\nCNI protocol versions supported: {supported}\n"


def full_version() -> str:
    """The version of every plugin: the reference's, with ours as build metadata (semver.org, 10).

    Runtimes compare the version with the release of the reference that they need.
    """
    from . import REFERENCE_VERSION, __version__

    return f"v{REFERENCE_VERSION}+py.{__version__}"


def answer(name: str, env: Mapping[str, str], stdin: Callable[[], bytes]) -> tuple[int, bytes]:
    """Run plugin `name` for a request: (exit code, output for stdout). Never raises."""
    return begin(name, env, stdin)()[:2]


def begin(
    name: str,
    env: Mapping[str, str],
    stdin: Callable[[], bytes],
    *,
    deliver: Deliver | None = None,
    convert: bool = False,
) -> Callable[[], Answer]:
    """Decode a request, which changes nothing, and return a function that runs it. Neither raises.

    `deliver` is called with the result of an ADD; if it raises, the ADD is undone. Without
    `deliver` the result is part of the answer. `convert`: also convert the configuration now.
    """
    try:
        _debug(env.get("CNI_DEBUG"), env)
        request = read(env, stdin)
        # before the configuration is decoded: the runtime may send none with this verb
        if request.command == "VERSION":
            reply = _version_reply(TABLE[name])
            return lambda: (0, reply, True)
        decoded = _decode(name, request)
        if convert:
            decoded.call.convert()
        return lambda: _answer(decoded, deliver)
    except BaseException as error:  # noqa: BLE001 the runtime gets JSON, whatever happens
        failed = _failure(error)
        return lambda: failed


def _answer(decoded: Decoded, deliver: Deliver | None) -> Answer:
    """Run the verb. An ADD's result is settled before it is printed; then it is not undone."""
    output, settled = b"", False

    def settle(result: Result | None) -> None:
        nonlocal output, settled
        # from here on no signal counts: the runtime may have read the
        # result, and would not learn of an undo
        interrupts.decide()
        if result is not None:
            output = _encode(decoded.call, result)
            if deliver is not None:
                deliver(output)
                output = b""
        settled = True

    try:
        _run(decoded, settle)
        return 0, output, True
    except BaseException as error:  # noqa: BLE001 as above
        if settled:  # the runtime has the result, which is valid
            from . import stderr

            stderr.line(f"cni: after the result: {error!r}")
            return 0, output, False
        return _failure(error)


def _encode(call: Call[Any], result: Result) -> bytes:
    """The result in the version of the request. Raises CNIError."""
    try:
        return result.encode(call.version)
    except CNIError:
        # There is no 0.2.0 without an address. The link then stays until DEL: the reference's own
        # tests look for it (docs/spec/bridge.md, docs/spec/macvlan.md).
        call.undo.forget()
        raise


def _failure(error: BaseException) -> Answer:
    if isinstance(error, MemoryError):
        return 1, OUT_OF_MEMORY, False
    if isinstance(error, CNIError | KernelError):
        # A worker serves no further request after a signal, or after an error of the system that
        # no code below has explained: it ends, and the supervisor starts another one.
        known = not isinstance(error, Terminated | OSError)
        said = from_exception(error)
        if "cni.delegate" in sys.modules:
            from .delegate import with_remedy

            said = with_remedy(said, TABLE)
        return 1, encode_error(_with_missing_powers(said)), known
    standins.suspect(error)
    return 1, encode_error(_with_missing_powers(_unexpected(error))), False


def _with_missing_powers(error: CNIError) -> CNIError:
    """The error, with the missing capabilities if an operation was not permitted."""
    # by the text: the error may come from another program, or from texts that were joined
    if os.strerror(EPERM).lower() not in error.msg.lower():
        return error
    from .kernel import capability

    missing = capability.missing()
    if missing:
        text = f"this process lacks {' and '.join(missing)}: the plugins have to run as root"
        if text not in error.details:  # a delegate may have added it
            error.details = f"{error.details}; {text}" if error.details else text
    return error


class Decoded(NamedTuple):
    """A request that has passed the version gates, and its plugin's functions."""

    call: Call[Any]
    verbs: Verbs


def _decode(name: str, request: Request, known: dict[str, Any] | None = None) -> Decoded:
    """Decode the configuration, which is `known` already if another plugin was called with it."""
    plugin = TABLE[name]
    raw = config.decode_object(request.stdin) if known is None else known
    # in the reference's order (docs/spec/protocol.md §1.1): a bad
    # name is reported before a bad verb
    check_network_name(config.require_name(raw))
    if request.command not in _VERBS:
        near = request.command.upper()
        raise BadEnvironment(
            f"unknown CNI_COMMAND: {request.command}",
            f"write {near}: verbs are in upper case" if near in _VERBS else "",
        )
    wanted = config.version_of(raw)
    if wanted not in plugin.versions or request.command not in ("ADD", "DEL"):
        from .protocol import version  # the common case needs no comparison

        version.gate(request.command, wanted, plugin.versions)
    return _decoded(name, request, raw, wanted)


def _decoded(name: str, request: Request, raw: dict[str, Any], wanted: str) -> Decoded:
    verbs = Verbs.of(_module(name))
    prefix = TABLE[name].conf_error

    def in_process(delegate: str, program: str, asked: Request) -> tuple[bool, Result | None]:
        known = raw if asked.stdin is request.stdin else None
        return run_in_process(delegate, program, asked, known)

    return Decoded(Call(name, request, raw, wanted, verbs.conf, prefix, in_process), verbs)


def _module(name: str) -> ModuleType:
    return _load(TABLE[name].module)


def _load(module: str) -> ModuleType:
    if module not in sys.modules:
        __import__(module)  # importlib.import_module would import `warnings`
    return sys.modules[module]


def _run(decoded: Decoded, settle: Callable[[Result | None], None]) -> Result | None:
    """Run the verb and settle its result; a failure until then is undone. Returns ADD's result."""
    call = decoded.call
    try:
        interrupts.check()
        if call.request.command == "ADD":
            call.guard_netns()
        judges = call.request.command == "VALIDATE"
        result = _validate(decoded) if judges else _perform(decoded)
        settle(result)
        call.undo.forget()
        return result
    except BaseException as error:
        reported = _undone(call, error)
        if reported is error:
            raise
        raise reported from error
    finally:
        call.close()


def _perform(decoded: Decoded) -> Result | None:
    """Call the plugin's function for the verb, if it has one."""
    call, verbs = decoded
    command = call.request.command
    if command == "ADD":
        result = None if verbs.add is None else verbs.add(call)
        if call.remembered and result is not None:
            call.keep(result)
        return result
    if command == "DEL" and verbs.delete is not None:
        if verbs.reload is not None:
            call.set_aside()  # first, so that nobody makes rules again that are about to be removed
        call.run(verbs.delete)
        call.guard_netns()
    elif command == "CHECK" and verbs.check is not None:
        verbs.check(call)
    elif command == "STATUS" and verbs.status is not None:
        verbs.status(call)
    elif command == "GC" and verbs.gc is not None:
        # without the runtime's list every object would look like garbage, so nothing is removed
        keep = valid_attachments(call.raw)
        if keep is not None:
            if verbs.reload is not None:
                call.set_aside(keep)
            call.run(verbs.gc, keep)
    return None


def _validate(decoded: Decoded) -> Result | None:
    """Validate the configuration; there is no result. Raises CNIError."""
    _load("cni.describe.verb").validate(decoded.call)  # only this verb needs descriptions
    return None


def _undone(call: Call[Any], error: BaseException) -> BaseException:
    """Undo the changes of an ADD; return the error to report.

    A signal is reported as such, whatever failed because of it. Failures of the undo are reported,
    too, on stderr and in the error; a DEL removes the rest.
    """
    reported = error
    if interrupts.came() and not isinstance(error, Terminated):
        reported = interrupts.terminated(str(error))
    # a second signal must not end the undo halfway
    interrupts.ignore()
    problems = call.undo.unwind()
    if problems:
        text = "; ".join(problems)
        call.log(f"cni: undoing the failed ADD: {text}")
        if isinstance(reported, CNIError):
            known = "" if isinstance(reported, Terminated) else reported.details + "; "
            reported.details = f"{known}not all could be undone, run DEL: {text}".lstrip("; ")
    return reported


def reload(
    name: str,
    env: Mapping[str, str],
    conf: dict[str, Any],
    result: dict[str, Any],
    work: Callable[[Call[Any]], None] | None = None,
) -> None:
    """Let a plugin make the rules of an earlier ADD again (cni.intent), or do other `work`.

    `env` has the CNI_* variables of that ADD, `conf` its configuration; prevResult becomes
    `result`, in its own version. Raises CNIError.
    """
    # keys match regardless of case: another spelling of the two would be read as well
    dropped = {key for key in conf if key.lower() in ("cniversion", "prevresult")}
    raw = {key: value for key, value in conf.items() if key not in dropped}
    raw["cniVersion"], raw["prevResult"] = result["cniVersion"], result
    stdin = msgspec.json.encode(raw)
    # as CHECK, which has a prevResult, and in which (unlike in DEL)
    # a key of the wrong type is an error
    request = read({**env, "CNI_COMMAND": "CHECK"}, lambda: stdin)
    raw = config.decode_object(stdin)
    call, verbs = _decoded(name, request, raw, config.version_of(raw))
    try:
        work = work or verbs.reload
        if work is not None:
            work(call)
        call.undo.forget()
    except BaseException:
        for problem in call.undo.unwind():
            call.log(f"cni: undoing the failed reload: {problem}")
        raise
    finally:
        call.close()


def run_in_process(
    name: str, program: str, request: Request, known: dict[str, Any] | None
) -> tuple[bool, Result | None]:
    """Run a delegate without a child if its file is this program (cni.delegate.InProcess).

    `known` is its decoded configuration, if that is the caller's.
    """
    from . import delegate

    plugin = find(name)
    if plugin is None or not delegate.is_ourselves(program):
        return False, None
    decoded = _decode(plugin, request, known)
    # not decide(): the caller's ADD goes on, and a signal still has to end it
    result = _run(decoded, lambda _: interrupts.check())
    return True, None if result is None else result.through(decoded.call.version)


def _debug(wanted: str | None, env: Mapping[str, str]) -> None:
    """Show the request's netlink messages, or time its steps; otherwise switch that off: a worker
    serves many requests.
    """
    global _debugging  # noqa: PLW0603 a fact of the process
    if not (wanted or _debugging):
        return
    if "netlink" in (wanted, _debugging):
        from .kernel import netlink_debug

        netlink_debug.install(wanted == "netlink")
    if "steps" in (wanted, _debugging):
        from . import stopwatch

        stopwatch.install(wanted == "steps", env.get(stopwatch.FILE_VARIABLE, ""))
    _debugging = wanted


_debugging: str | None = None


def _version_reply(plugin: Plugin) -> bytes:
    """The VERSION reply, one compact line; it does not depend on the request's version."""
    reply = {"cniVersion": config.VERSIONS[-1], "supportedVersions": list(plugin.versions)}
    return msgspec.json.encode(reply) + b"\n"


def _unexpected(error: BaseException) -> CNIError:
    """Any other exception as an error 999; a defect's traceback goes to stderr."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError):
        return from_exception(error)
    if isinstance(error, standins.Insufficient):
        return CNIError(text)
    if standins.doubt is None:  # else the process starts again, without stand-ins, and may succeed
        import traceback

        from . import damage, stderr

        damage.suspect()
        stderr.lines("".join(traceback.format_exception(error)))
    return CNIError(text, f"unexpected {type(error).__name__}: see the plugin's stderr")
