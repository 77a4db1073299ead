"""The dispatch table, and the one place that turns any exception into the JSON error object.

A plugin is a module with a `Conf` and the verbs it has as functions: add, delete, check, gc,
status. A verb it lacks is a silent success once the version gates are passed (docs/spec/protocol.md
§1.3).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from errno import EACCES, ENOENT, ENOTDIR, EPERM, EROFS
from typing import Any, NamedTuple

import msgspec

from . import __version__, standins
from .call import Call
from .kernel.errors import KernelError
from .netns import Executor, same_namespace
from .owner import Owner
from .protocol import config, version
from .protocol.errors import BadEnvironment, CNIError, InvalidNetns, Terminated, from_exception
from .protocol.request import (
    Attachment,
    Request,
    check_network_name,
    read,
    read_stdin,
    valid_attachments,
)
from .protocol.result import Result, encode_json

# What a state directory says in which nothing can be kept on this node.
_KEEPS_NOTHING = frozenset({EACCES, ENOENT, ENOTDIR, EPERM, EROFS})

Answer = tuple[int, bytes, bool]  # exit code, what belongs on stdout, is this process sound?


class Plugin(NamedTuple):
    """An entry of the table; `conf_error` begins the errors of decoding a configuration."""

    module: str
    about: str
    versions: tuple[str, ...] = version.ALL
    conf_error: str = "failed to load netconf: "


TABLE: dict[str, Plugin] = {
    "bandwidth": Plugin(
        "cni.plugins.bandwidth.plugin",
        "limits what a container sends and receives",
        versions=version.ALL[2:],
        conf_error="failed to parse network configuration: ",
    ),
    "bridge": Plugin("cni.plugins.bridge.plugin", "connects containers to a Linux bridge"),
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
        versions=version.ALL[4:],
    ),
    "flannel": Plugin(
        "cni.plugins.flannel.plugin",
        "calls another plugin with the subnet that flanneld gave the node",
        conf_error="failed to load flannel netconf file: failed to load netconf: ",
    ),
    "host-device": Plugin(
        "cni.plugins.host_device", "moves a device of the host into the container"
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
    "portmap": Plugin(
        "cni.plugins.portmap.plugin",
        "publishes a container's ports on the node",
        conf_error="failed to parse network configuration: ",
    ),
    "ptp": Plugin("cni.plugins.ptp", "routes between host and container over a veth pair"),
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
    "static": Plugin("cni.ipam.static", "hands out configured addresses", conf_error=""),
    "tap": Plugin("cni.plugins.tap", "makes a TAP device for a virtual machine"),
    "tuning": Plugin(
        "cni.plugins.tuning.plugin", "changes sysctls, attributes and features of a link"
    ),
    "vlan": Plugin("cni.plugins.vlan", "makes an 802.1Q interface of a host link"),
    "vrf": Plugin("cni.plugins.vrf", "puts the interface into a VRF of the container"),
}

# The plugins of Windows; those of IPAM are the same.
WINDOWS: dict[str, Plugin] = {
    "win-bridge": Plugin(
        "cni.plugins.win_bridge", "connects Windows containers to an L2Bridge or L2Tunnel network"
    ),
    "win-overlay": Plugin(
        "cni.plugins.win_overlay", "connects Windows containers to an overlay network"
    ),
}

_deaf, _missed = False, 0  # see `be_deaf`

_SIGNALS: dict[int, str] = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "SIGINT"}
if sys.platform == "win32":
    TABLE = {name: each for name, each in TABLE.items() if name in ("host-local", "static")}
    TABLE.update(WINDOWS)
else:
    _SIGNALS[signal.SIGHUP] = "SIGHUP"

_VERBS = {"ADD": "add", "DEL": "delete", "CHECK": "check", "GC": "gc", "STATUS": "status"}


def main(name: str) -> int:
    """Answer the request in environment and stdin as the plugin `name`; returns the exit code."""
    if not os.environ.get("CNI_COMMAND"):
        os.write(2, about(name).encode())
        return 0
    for number in _SIGNALS:
        signal.signal(number, terminate)
    received: list[bytes] = []

    def receive() -> bytes:
        received.append(read_stdin())
        return received[-1]

    code, output = answer(name, dict(os.environ), receive)
    Executor.discard_idle()
    if standins.doubt is not None:
        standins.restart(received[0] if received else None)
    try:
        _write(output)
    except OSError as error:
        os.write(2, f"cni: cannot write to stdout: {error.strerror}\n".encode())
        return 1
    return code


def about(name: str) -> str:
    """The two lines a plugin says of itself when run without CNI_COMMAND."""
    supported = ", ".join(TABLE[name].versions)
    return (
        f"CNI {name} plugin version {__version__}\nCNI protocol versions supported: {supported}\n"
    )


def answer(name: str, env: Mapping[str, str], stdin: Callable[[], bytes]) -> tuple[int, bytes]:
    """Run plugin `name` for a request: (exit code, what belongs on stdout). Never raises."""
    return begin(name, env, stdin)()[:2]


def begin(
    name: str, env: Mapping[str, str], stdin: Callable[[], bytes], *, ahead: bool = False
) -> Callable[[], Answer]:
    """Decode a request, which changes nothing; what is returned runs it. Neither ever raises.

    `ahead`: there is time for what would be converted later.
    """
    try:
        request = read(env, stdin)
        if request.command == "VERSION":
            reply = _version_reply(TABLE[name])
            return lambda: (0, reply, True)
        decoded = _decode(name, request)
        if ahead:
            decoded.call.look_ahead()
        return lambda: _finished(name, decoded)
    except BaseException as error:  # noqa: BLE001 the runtime gets JSON, whatever happens
        failed = _failed(error)
        return lambda: failed


def _finished(name: str, decoded: Decoded) -> Answer:
    worked = False
    try:
        _listen()
        result = _run(name, decoded)
        worked = True  # and nothing will undo it
        return 0, b"" if result is None else result.encode(decoded.call.version), True
    except BaseException as error:  # noqa: BLE001 as above
        return _failed(error, worked=worked)


def _failed(error: BaseException, *, worked: bool = False) -> Answer:
    if isinstance(error, CNIError | KernelError):
        known = not isinstance(error, Terminated | OSError)
        return 1, _encode_error(from_exception(error)), known
    if not worked:
        standins.suspect(error)
    return 1, _encode_error(_unexpected(error)), False


class Decoded(NamedTuple):
    """A request that passed the gates; `verb` is None if the plugin lacks it."""

    call: Call[Any]
    verb: Callable[..., Any] | None


def _decode(name: str, request: Request) -> Decoded:
    plugin = TABLE[name]
    raw = config.decode_object(request.stdin)
    check_network_name(config.require_name(raw))
    if request.command not in _VERBS:
        raise BadEnvironment(f"unknown CNI_COMMAND: {request.command}")
    wanted = config.version_of(raw)
    version.gate(request.command, wanted, plugin.versions)
    verb = getattr(_module(name), _VERBS[request.command], None)
    return Decoded(_new_call(name, request, raw, wanted), verb)


def _run(name: str, decoded: Decoded) -> Result | None:
    """Run one verb; ADD's result."""
    _guard_netns(decoded.call.request)
    return None if decoded.verb is None else _call(name, decoded.verb, decoded.call)


def _call(name: str, verb: Callable[..., Any], call: Call[Any]) -> Result | None:
    """Run a verb; if it fails, undo what it did.

    A result without addresses that cannot be printed as 0.1.0 or 0.2.0 is an error whose link stays
    until DEL: the reference's own test suite looks for it
    (docs/spec/bridge.md, docs/spec/macvlan.md).
    """
    kept, command = hasattr(_module(name), "reload"), call.request.command
    try:
        if command != "GC":
            if kept and command == "DEL":
                _forget(name, call)  # first: rules that are going must not be made again
            result: Result | None = verb(call)
            if call.remembered and result is not None:
                _remember(name, call, result)
            call.undo.pop_all()
            _finish(call)
            return result
        keep = valid_attachments(call.raw)
        if keep is not None:
            if kept:
                _forget_others(name, call, keep)
            verb(call, keep)
            _finish(call)
        return None
    except BaseException:
        _undo(call)
        raise
    finally:
        call.finish()


def _module(name: str) -> Any:
    """The module of a plugin; importlib.import_module would import `warnings`."""
    module = TABLE[name].module
    if module not in sys.modules:
        __import__(module)
    return sys.modules[module]


def _new_call(name: str, request: Request, raw: dict[str, Any], wanted: str) -> Call[Any]:
    plugin = TABLE[name]
    conf_type = _module(name).Conf

    def remember_now(call: Call[Any], result: Result) -> None:
        _remember(name, call, result)

    return Call(request, raw, wanted, conf_type, plugin.conf_error, run_in_process, remember_now)


def _remember(name: str, call: Call[Any], result: Result) -> None:
    """Keep what an ADD wants of the packet filter; forgotten again if this ADD fails.

    Where nothing can ever be kept (a read-only /run), it is only said. A disk that is full or
    broken is an error: else what an earlier ADD wanted would stay. Raises CNIError.
    """
    from . import intent

    def forget() -> None:
        _forget(name, call)
        _finish(call)

    call.undo.callback(forget)
    try:
        intent.save(name, call.owner, call.request, result)
    except OSError as error:
        where = intent.directory(call.request.env)
        text = f"cannot keep the rules in {where} for `cni reload`: {error.strerror}"
        if error.errno not in _KEEPS_NOTHING:
            raise CNIError(text, "make room there, then try again") from None
        call.log(f"cni: {name}: {text}")


def _forget(name: str, call: Call[Any]) -> None:
    from . import intent

    call.forgotten = intent.drop(name, call.owner, call.request.env)


def _forget_others(name: str, call: Call[Any], keep: frozenset[Attachment]) -> None:
    from . import intent

    owners = [Owner(call.network, a.container_id, a.ifname) for a in keep]
    call.forgotten = intent.drop_others(name, call.network, owners, call.request.env)


def _finish(call: Call[Any]) -> None:
    """Forget for good what has been removed."""
    if call.forgotten is not None:
        call.forgotten.finish()


def reload(name: str, env: Mapping[str, str], conf: dict[str, Any], result: dict[str, Any]) -> None:
    """Have a plugin make the rules of an earlier ADD again (cni.intent).

    `env` has the CNI_* variables of that ADD; prevResult becomes its result. Raises CNIError.
    """
    dropped = {key for key in conf if key.lower() in ("cniversion", "prevresult")}
    raw = {key: value for key, value in conf.items() if key not in dropped}
    raw["cniVersion"], raw["prevResult"] = result["cniVersion"], result
    stdin = msgspec.json.encode(raw)
    request = read({**env, "CNI_COMMAND": "CHECK"}, lambda: stdin)
    raw = config.decode_object(stdin)
    call = _new_call(name, request, raw, config.version_of(raw))
    try:
        _module(name).reload(call)
        call.undo.pop_all()
    except BaseException as error:
        _undo(call)
        if isinstance(error, KernelError | OSError):
            raise from_exception(error) from error
        raise
    finally:
        call.finish()


def _undo(call: Call[Any]) -> None:
    """Unwind what an ADD had done. What cannot be undone is said, and left to DEL."""
    for number in _SIGNALS:
        if signal.getsignal(number) is terminate:
            signal.signal(number, signal.SIG_IGN)
    try:
        call.undo.close()
    except Exception as error:  # noqa: BLE001 the first error is the one to report
        call.log(f"cni: undoing the failed ADD: {error}")


def run_in_process(name: str, program: str, request: Request) -> tuple[bool, Result | None]:
    """Run a delegate without a child if its file is ourselves (protocol.delegate.InProcess)."""
    if name not in TABLE or not _is_ourselves(program):
        return False, None
    decoded = _decode(name, request)
    try:
        result = _run(name, decoded)
    except (KernelError, OSError) as error:  # as the child's answer would be
        raise from_exception(error) from error
    return True, None if result is None else result.through(decoded.call.version)


def _is_ourselves(program: str) -> bool:
    try:
        if sys.platform == "win32":
            from .windows.launcher import is_twin

            return is_twin(program, sys.argv[0])
        return os.path.samestat(os.stat(program), os.stat(sys.argv[0]))
    except (OSError, ValueError):
        return False


def _guard_netns(request: Request) -> None:
    """Refuse to treat the node's own namespace as a container's (before anything is changed)."""
    concerned = request.command in ("ADD", "DEL") and request.netns and not request.netns_override
    if concerned and same_namespace(request.netns):
        raise InvalidNetns(
            "plugin's netns and netns from CNI_NETNS should not be the same",
            "set CNI_NETNS_OVERRIDE=1 if that is really meant",
        )


def _version_reply(plugin: Plugin) -> bytes:
    """One compact line; the request's own version does not matter."""
    reply = {"cniVersion": version.CURRENT, "supportedVersions": list(plugin.versions)}
    return msgspec.json.encode(reply) + b"\n"


def _encode_error(error: CNIError) -> bytes:
    body: dict[str, Any] = {"code": error.code, "msg": error.msg}
    if error.details:
        body["details"] = error.details
    return encode_json(body)


def _unexpected(error: BaseException) -> CNIError:
    """Any other exception as an error 999; a defect's traceback goes to stderr."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError | standins.Insufficient):
        return CNIError(text)
    import traceback

    os.write(2, "".join(traceback.format_exception(error)).encode(errors="replace"))
    return CNIError(text, f"unexpected {type(error).__name__}: see the plugin's stderr")


def terminate(number: int, _frame: object) -> None:
    """The signal handler of a running verb: what it did is undone."""
    global _missed  # noqa: PLW0603 a fact of the process
    if _deaf:
        _missed = number
        return
    raise Terminated(
        f"interrupted by {_SIGNALS[number]}", "what had been done was undone; try again"
    )


def be_deaf() -> None:
    """For a server's worker: what interrupts now interrupts the next verb, when it begins."""
    global _deaf, _missed
    _deaf, _missed = True, 0


def _listen() -> None:
    global _deaf  # noqa: PLW0603
    _deaf = False
    if _missed:
        terminate(_missed, None)


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]
