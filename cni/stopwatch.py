"""The steps of a request: a table of functions, and the watchers that are told of their calls.

STEPS names the functions. While there is a watcher, each of them is replaced by a function that
calls it through the watchers: when its module is loaded, until no watcher is left, since a worker
also serves other requests. So a request without watcher takes no time for it, and plugins contain
no code for it. Watchers are the spans of cni.record.tracing, and the times for `cni trace`
(CNI_DEBUG=steps). The latter appends a line of JSON to the file in CNI_STEPS_FILE after the
request:

    {"plugin": "bridge", "verb": "ADD", "served": false, "steps": [[name, detail, begin, end], …]}

Times are seconds of CLOCK_MONOTONIC, the same in all processes; a step lies within another if its
times do.
"""

from __future__ import annotations

import builtins
import os
import sys
from collections.abc import Callable
from time import monotonic
from typing import Any, NamedTuple

import msgspec

VARIABLE, FILE_VARIABLE, VALUE = "CNI_DEBUG", "CNI_STEPS_FILE", "steps"
VERB, DELEGATE = "verb", "delegate"  # names of steps
_NETFILTER = 12  # NETLINK_NETFILTER
_MOST = 5000  # steps of a request

Label = Callable[..., str]  # the text for a call with these arguments


class Step(NamedTuple):
    """A function's step: its name, a text about a call, and the name of a call's span."""

    name: str
    detail: Label
    span: Label | None = None  # None: the step has no span


def _nothing(*_: Any) -> str:
    return ""


def _message(sock: Any, kind: int, *_: Any) -> str:
    """The label of Netlink.request and similar: the message's name."""
    return _kind_name(sock.sock.proto, kind)


def _span(sock: Any, kind: int, *_: Any) -> str:
    return f"netlink {_kind_name(sock.sock.proto, kind).removeprefix('RTM_')}"


def _messages(sock: Any, requests: Any) -> str:
    """The label of Netlink.batch: the messages' names, each once."""
    return _counted(sock.sock.proto, requests)


def _changes(changes: Any, *_: Any) -> str:
    """The label of nft.transact."""
    return _counted(_NETFILTER, changes)


def _counted(protocol: int, messages: Any) -> str:
    names = [_kind_name(protocol, kind) for kind, _, _ in messages]
    return ", ".join(f"{names.count(each)} {each}" for each in dict.fromkeys(names))


def _kind_name(protocol: int, kind: int) -> str:
    """The name of a message; cached, since the look-up takes as long as a request."""
    key = protocol, kind
    if key not in _names:
        from .kernel import netlink_debug

        _names[key] = netlink_debug._kind(protocol, kind)[0]
    return _names[key]


_names: dict[tuple[int, int], str] = {}


def _job(at: int) -> Label:
    return lambda *args: f"{args[at].__module__.removeprefix('cni.')}.{args[at].__qualname__}"


def _text(at: int) -> Label:
    return lambda *args: str(args[at])


def _in(form: str, label: Label) -> Label:
    return lambda *args: form.format(label(*args))


def _verb(decoded: Any, *_: Any) -> str:
    return f"{decoded.call.plugin} {decoded.call.request.command}"


STEPS: dict[str, Step] = {  # by module:function
    "cni.dispatch:_run": Step(VERB, _verb, _verb),
    "cni.delegate:execute": Step(
        DELEGATE, _text(0), lambda program, request, *_: f"call {program} {request.command}"
    ),
    "cni.process:run": Step("program", _text(0), _in("run {}", _text(0))),
    "cni.kernel.netlink:Netlink.request": Step("netlink", _message, _span),
    "cni.kernel.netlink:Netlink.batch": Step(
        "netlink", _messages, lambda _, requests: f"netlink batch of {len(requests)}"
    ),
    "cni.kernel.netlink:Netlink.get": Step("netlink", _message, _span),
    "cni.kernel.netlink:Netlink.get_each": Step("netlink", _message, _span),
    "cni.kernel.netlink:Netlink.dump": Step("netlink dump", _message, _in("{} dump", _span)),
    "cni.netfilter.nft:transact": Step("nftables transaction", _changes, lambda *_: "nftables"),
    "cni.netns.executor:Executor.__init__": Step("fork an executor", _nothing),
    "cni.netns.executor:Executor.run": Step("executor", _job(2), _in("executor cni.{}", _job(2))),
    "cni.netns.executor:Executor.begin": Step(
        "start a job", _job(2), _in("executor begins cni.{}", _job(2))
    ),
    "cni.netns.executor:Executor.open_socket": Step("executor", lambda *_: "open a socket"),
    "cni.netns.executor:Executor.finish": Step("wait for the executor", _nothing),
    "cni.netns.executor:Executor.settle": Step("wait for the executor", _nothing),
    "cni.netns.namespace:Namespace.run_until": Step("executor", _job(3)),
    "cni.netns.namespace:Namespace.open": Step("open the namespace", _nothing),
    "cni.netns.jobs:ClientJobs.answer": Step("wait for the client", _nothing),
    "cni.kernel.sysctl:write": Step("sysctl", _text(0)),
    "cni.kernel.sysctl:ensure": Step("sysctl", _text(0)),
    "cni.kernel.address:settle": Step("wait for addresses", _nothing),
    "cni.kernel.link:wait_operational": Step("wait for the link", _nothing),
    "cni.lockfile:acquire": Step("lock", _text(1)),
    "cni.files:replace": Step("write a file", _text(0)),
    "cni.intent:save": Step("note for reload", _nothing),
    "cni.intent:drop": Step("note for reload", _nothing),
    "cni.ipam.host_local.allocation:Allocation.reserve": Step("reserve addresses", _nothing),
    "cni.ipam.host_local.store:Store.release": Step("release an address", _text(1)),
    "cni.netfilter.iptables:save": Step("read rules", _text(1)),
    "cni.netfilter.iptables:restore": Step("write rules", _text(1)),
    "cni.netfilter.compiler:run": Step("compile rules with nft", _nothing),
    "cni.netfilter.conntrack:forget": Step("forget connections", _nothing),
    "cni.netns.liveness:exists": Step("look for a namespace", _nothing),
}


class Watcher:
    """Is called for steps and loaded modules, as long as it watches."""

    def call(self, step: Step, function: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        """Call the function, which is that step; raises what it raises."""

    def loaded(self, name: str, more: int, begin: float) -> None:
        """The module `name` was loaded, and `more` others with it."""


class Functions:
    """The loaded functions of STEPS, and the functions that replace them."""

    def __init__(self) -> None:
        self.watchers: list[Watcher] = []
        self._seen: dict[str, Any] = {}  # our modules that were searched already
        # by the id of either: the original function, and its replacement
        self._pairs: dict[int, tuple[Any, Any]] = {}
        # by the holder's id and the name there: the holder and the pair
        self._places: dict[tuple[int, str], tuple[Any, tuple[Any, Any]]] = {}
        self._import = builtins.__import__
        self._importing = 0

    def watch(self, watcher: Watcher) -> None:
        """Add a watcher; may be repeated."""
        if watcher in self.watchers:
            return
        self.watchers.append(watcher)
        if len(self.watchers) == 1:
            from .kernel import netlink_debug  # noqa: F401 now, so that no step's time has it

            if not self._seen and sys.platform != "win32":
                # an executor outlives the request, and works for others
                os.register_at_fork(after_in_child=self._forget)
            self._put_in_place()
            self._import, builtins.__import__ = builtins.__import__, self._watched_import

    def unwatch(self, watcher: Watcher) -> None:
        """Remove a watcher; may be repeated."""
        if watcher in self.watchers:
            self.watchers.remove(watcher)
            if not self.watchers:
                self._put_back()

    def _forget(self) -> None:
        """In a child that was forked."""
        if self.watchers:
            self.watchers.clear()
            self._put_back()

    def _put_back(self) -> None:
        builtins.__import__ = self._import
        self._look_through()  # for modules that were loaded without an import statement
        self._exchange(0)

    def _put_in_place(self) -> None:
        self._look_through()
        self._exchange(1)

    def _exchange(self, wanted: int) -> None:
        for (_, name), (holder, pair) in self._places.items():
            if vars(holder).get(name) is pair[1 - wanted]:
                setattr(holder, name, pair[wanted])

    def _watched_import(self, *args: Any, **kwargs: Any) -> Any:
        """As the import statement."""
        before, begin = len(sys.modules), monotonic()
        self._importing += 1
        try:
            return self._import(*args, **kwargs)
        finally:
            self._importing -= 1
            if len(sys.modules) > before and self.watchers and not self._importing:
                self._put_in_place()
                loaded = list(sys.modules)[before:]  # in the order of their loading
                name = args[0] if args[0] in loaded else loaded[0]
                for watcher in self.watchers:
                    watcher.loaded(name, len(loaded) - 1, begin)

    def _look_through(self) -> None:
        """Find loaded functions of STEPS, and the names under which our modules have them."""
        own = {name: each for name, each in [*sys.modules.items()] if name.startswith("cni.")}
        new = {name: each for name, each in own.items() if each is not self._seen.get(name)}
        self._seen |= new
        for place, step in STEPS.items():
            module, _, path = place.partition(":")
            kind, _, name = path.rpartition(".")
            holder = getattr(new.get(module), kind, None) if kind else new.get(module)
            original = None if holder is None else vars(holder).get(name)
            if original is not None:
                pair = original, self._told(original, step)
                self._places[id(holder), name] = holder, pair
                self._pairs |= {id(each): pair for each in pair}
        for module_ in new.values():
            for name, value in [*vars(module_).items()]:
                if id(value) in self._pairs:
                    self._places[id(module_), name] = module_, self._pairs[id(value)]

    def _told(self, original: Any, step: Step) -> Any:
        """A function that calls the original through the watchers."""
        is_bound = isinstance(original, classmethod)
        function = original.__func__ if is_bound else original

        def told(*args: Any, **kw: Any) -> Any:
            if not self.watchers:
                return function(*args, **kw)
            call = function
            for watcher in self.watchers[1:]:
                call = _by_way_of(watcher, step, call)
            return self.watchers[0].call(step, call, *args, **kw)

        # the executor gets functions by these names
        told.__module__, told.__qualname__ = function.__module__, function.__qualname__
        return classmethod(told) if is_bound else told


def _by_way_of(watcher: Watcher, step: Step, function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kw: watcher.call(step, function, *args, **kw)


def said(label: Label, args: tuple[Any, ...], otherwise: str = "") -> str:
    """The label of a call; `otherwise` if its arguments are unusual."""
    try:
        return label(*args)
    except Exception:  # noqa: BLE001 the step counts, not what is said of it
        return otherwise


functions = Functions()


# --- for `cni trace` ------------------------------------------------------------------------------


class _Times(Watcher):
    """The times of one request's steps."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._steps: list[tuple[str, str, float, float]] = []  # name, detail, begin, end
        self._depth = 0  # nesting of verbs: a delegate's is part of its caller's

    def call(self, step: Step, function: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        detail, is_verb = said(step.detail, args), step.name == VERB
        self._depth += is_verb
        begin = monotonic()
        try:
            return function(*args, **kw)
        finally:
            self._note(step.name, detail, begin)
            self._depth -= is_verb
            if is_verb and not self._depth:
                functions.unwatch(self)
                self._write(args[0].call)

    def loaded(self, name: str, more: int, begin: float) -> None:
        self._note("load modules", f"{name} and {more} more" if more else name, begin)

    def _note(self, name: str, detail: str, begin: float) -> None:
        if len(self._steps) < _MOST:
            self._steps.append((name, detail, begin, monotonic()))

    def _write(self, call: Any) -> None:
        """Append the noted steps to the file; ignores failures."""
        steps, self._steps = self._steps, []
        served = "cni.server.worker" in sys.modules
        verb = call.request.command
        line = {"plugin": call.plugin, "verb": verb, "served": served, "steps": steps}
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            try:
                os.write(fd, msgspec.json.encode(line) + b"\n")
            finally:
                os.close(fd)
        except OSError:
            pass


def install(wanted: bool, path: str = "") -> None:
    """Note the steps of the request that begins (`wanted`), or stop noting."""
    for watcher in [*functions.watchers]:
        if isinstance(watcher, _Times):
            functions.unwatch(watcher)
    if wanted and path:
        functions.watch(_Times(path))
