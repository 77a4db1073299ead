"""CNI_DEBUG=steps: how long each step of a request takes, for `cni trace`.

CNI_STEPS_FILE names a file, to which a line of JSON is appended when the request has ended:

    {"plugin": "bridge", "verb": "ADD", "served": false, "steps": [[name, detail, begin, end], …]}

Times are seconds of CLOCK_MONOTONIC, the same in all processes; a step lies within another if its
times do. Steps are calls of the functions in STEPS: they are replaced by ones that note the time,
when they are loaded, and put back when the verb has ended: a worker serves other requests too.
Nothing of this is loaded otherwise, so the request path pays nothing for it.
"""

from __future__ import annotations

import builtins
import os
import sys
from collections.abc import Callable
from time import monotonic
from typing import Any

import msgspec

VARIABLE, FILE_VARIABLE, VALUE = "CNI_DEBUG", "CNI_STEPS_FILE", "steps"
_NETFILTER = 12  # NETLINK_NETFILTER
_MOST = 5000  # steps of a request

Detail = Callable[[tuple[Any, ...]], str]
Step = tuple[str, str, float, float]  # name, detail, begin, end


def _nothing(_arguments: tuple[Any, ...]) -> str:
    return ""


def _message(arguments: tuple[Any, ...]) -> str:
    """Of Netlink.request and the like: the message's name."""
    return _kind_of(arguments[0], arguments[1])


def _messages(arguments: tuple[Any, ...]) -> str:
    """Of Netlink.batch: the messages' names, each once."""
    sock, requests = arguments[:2]
    names = [_kind_of(sock, kind) for kind, _, _ in requests]
    return ", ".join(f"{names.count(each)} {each}" for each in dict.fromkeys(names))


def _changes(arguments: tuple[Any, ...]) -> str:
    """Of nft.transact."""
    names = [_name(_NETFILTER, kind) for kind, _, _ in arguments[0]]
    return ", ".join(f"{names.count(each)} {each}" for each in dict.fromkeys(names))


def _kind_of(sock: Any, kind: int) -> str:
    return _name(sock.sock.proto, kind)


def _name(protocol: int, kind: int) -> str:
    """The name of a message; looked up once, since that takes as long as a request."""
    key = protocol, kind
    if key not in _names:
        from .kernel import netlink_debug

        _names[key] = netlink_debug._kind(protocol, kind)[0]
    return _names[key]


_names: dict[tuple[int, int], str] = {}


def _function(at: int) -> Detail:
    def detail(arguments: tuple[Any, ...]) -> str:
        function = arguments[at]
        return f"{function.__module__.removeprefix('cni.')}.{function.__qualname__}"

    return detail


def _text(at: int) -> Detail:
    return lambda arguments: str(arguments[at])


def _verb(arguments: tuple[Any, ...]) -> str:
    call = arguments[0].call
    return f"{call.plugin} {call.request.command}"


# module:function -> name of the step, and what is said of a call
STEPS: dict[str, tuple[str, Detail]] = {
    "cni.dispatch:_run": ("verb", _verb),
    "cni.delegate:run_program": ("delegate", _text(0)),
    "cni.process:run": ("program", _text(0)),
    "cni.kernel.netlink:Netlink.request": ("netlink", _message),
    "cni.kernel.netlink:Netlink.batch": ("netlink", _messages),
    "cni.kernel.netlink:Netlink.get": ("netlink", _message),
    "cni.kernel.netlink:Netlink.get_each": ("netlink", _message),
    "cni.kernel.netlink:Netlink.dump": ("netlink dump", _message),
    "cni.netfilter.nft:transact": ("nftables transaction", _changes),
    "cni.netns.executor:Executor.__init__": ("fork an executor", _nothing),
    "cni.netns.executor:Executor.run": ("executor", _function(2)),
    "cni.netns.executor:Executor.open_socket": ("executor", lambda _: "open a socket"),
    "cni.netns.executor:Executor.finish": ("wait for the executor", _nothing),
    "cni.netns.executor:Executor.settle": ("wait for the executor", _nothing),
    "cni.netns.namespace:Namespace.run_until": ("executor", _function(3)),
    "cni.netns.namespace:Namespace.open": ("open the namespace", _nothing),
    "cni.netns.jobs:ClientJobs.answer": ("wait for the client", _nothing),
    "cni.kernel.sysctl:write": ("sysctl", _text(0)),
    "cni.kernel.sysctl:ensure": ("sysctl", _text(0)),
    "cni.kernel.address:settle": ("wait for addresses", _nothing),
    "cni.kernel.link:wait_operational": ("wait for the link", _nothing),
    "cni.lockfile:acquire": ("lock", _text(1)),
    "cni.files:replace": ("write a file", _text(0)),
    "cni.intent:save": ("note for reload", _nothing),
    "cni.intent:drop": ("note for reload", _nothing),
    "cni.ipam.host_local.allocation:Allocation.reserve": ("reserve addresses", _nothing),
    "cni.ipam.host_local.store:Store.release": ("release an address", _text(1)),
    "cni.netfilter.iptables:save": ("read rules", _text(1)),
    "cni.netfilter.iptables:restore": ("write rules", _text(1)),
    "cni.netfilter.compiler:run": ("compile rules with nft", _nothing),
    "cni.netfilter.conntrack:forget": ("forget connections", _nothing),
    "cni.netns.liveness:exists": ("look for a namespace", _nothing),
}


class _Watch:
    """The steps of one request, and the functions that were replaced."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.steps: list[Step] = []
        self.plugin = self.verb = ""
        self._depth = 0  # of the verbs: a delegate's is part of the plugin's
        self._pending = dict(STEPS)
        # where it is, its name there, what was there, what is there now
        self._replaced: list[tuple[Any, str, Any, Any]] = []
        self._import = builtins.__import__
        self._importing = 0

    def begin(self) -> None:
        from .kernel import netlink_debug  # noqa: F401 now, so that no step's time has it

        self._replace_loaded()
        builtins.__import__ = self._watched_import

    def end(self) -> None:
        """Put back what was replaced; may be repeated."""
        builtins.__import__ = self._import
        for holder, name, original, ours in reversed(self._replaced):
            setattr(holder, name, original)
            if callable(original):
                _exchange(ours, original)
        self._replaced.clear()

    def note(self, name: str, detail: str, begin: float) -> None:
        if len(self.steps) < _MOST:
            self.steps.append((name, detail, begin, monotonic()))

    def _watched_import(self, *args: Any, **kwargs: Any) -> Any:
        """As the import statement; loading what was not there is a step."""
        before, begin = len(sys.modules), monotonic()
        self._importing += 1
        try:
            return self._import(*args, **kwargs)
        finally:
            self._importing -= 1
            if len(sys.modules) > before:
                self._replace_loaded()
                if not self._importing:
                    loaded = list(sys.modules)[before:]  # in the order of their loading
                    more = f" and {len(loaded) - 1} more" if len(loaded) > 1 else ""
                    name = args[0] if args[0] in loaded else loaded[0]
                    self.note("load modules", name + more, begin)

    def _replace_loaded(self) -> None:
        for place in list(self._pending):
            module_name, _, path = place.partition(":")
            module = sys.modules.get(module_name)
            holder, name = module, path
            if "." in path:
                kind, _, name = path.partition(".")
                holder = getattr(module, kind, None)
            original = vars(holder).get(name) if holder is not None else None
            if original is None:
                continue  # not loaded yet, or being loaded
            step, detail = self._pending.pop(place)
            self._replace(holder, name, original, step, detail)

    def _replace(self, holder: Any, name: str, original: Any, step: str, detail: Detail) -> None:
        function = original.__func__ if isinstance(original, classmethod) else original
        ours: Any = self._timed(function, step, detail)
        if isinstance(original, classmethod):
            ours = classmethod(ours)
        setattr(holder, name, ours)
        self._replaced.append((holder, name, original, ours))
        if not isinstance(original, classmethod):
            _exchange(original, ours)

    def _timed(self, function: Callable[..., Any], step: str, detail: Detail) -> Callable[..., Any]:
        is_verb = step == "verb"

        def timed(*args: Any, **kwargs: Any) -> Any:
            said = _said(detail, args)
            if is_verb:
                self._enter(args[0].call)
            begin = monotonic()
            try:
                return function(*args, **kwargs)
            finally:
                self.note(step, said, begin)
                if is_verb:
                    self._leave()

        # the executor is told functions by these names
        timed.__module__, timed.__qualname__ = function.__module__, function.__qualname__
        return timed

    def _enter(self, call: Any) -> None:
        if self._depth == 0:
            self.plugin, self.verb = call.plugin, call.request.command
        self._depth += 1

    def _leave(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.end()
            self.write()

    def write(self) -> None:
        """Append what was noted to the file; nothing is said if that is not possible."""
        steps, self.steps = self.steps, []
        served = "cni.server.worker" in sys.modules
        line = {"plugin": self.plugin, "verb": self.verb, "served": served, "steps": steps}
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except OSError:
            return
        try:
            os.write(fd, msgspec.json.encode(line) + b"\n")
        except OSError:
            pass
        finally:
            os.close(fd)


def _said(detail: Detail, args: tuple[Any, ...]) -> str:
    try:
        return detail(args)
    except Exception:  # noqa: BLE001 called in another way: the step counts, not what is said of it
        return ""


def _exchange(old: Any, new: Any) -> None:
    """Where our modules have the function under a name of their own, too."""
    for name, module in list(sys.modules.items()):
        if name.startswith("cni."):
            for key, value in list(vars(module).items()):
                if value is old:
                    setattr(module, key, new)


_watch: _Watch | None = None


def install(wanted: bool, path: str = "") -> None:
    """Note the steps of the request that begins, or no longer."""
    global _watch  # noqa: PLW0603 a fact of the process
    if _watch is not None:
        _watch.end()
        _watch = None
    if wanted and path:
        _watch = _Watch(path)
        _watch.begin()
