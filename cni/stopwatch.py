"""The steps of a request: which functions they are, and who is told when one is called.

STEPS names the functions. While somebody watches, others are in their place, which call them by way
of the watchers; they are put in place when their modules are loaded, and back when nobody watches
any more: a worker serves other requests, too. So a request that is not watched pays nothing, and no
code of plugins knows of this. Watchers are the spans of cni.record.tracing, and the times for
`cni trace` (CNI_DEBUG=steps). The latter appends a line of JSON to the file that CNI_STEPS_FILE
names when the request has ended:

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

Label = Callable[..., str]  # what is said of a call with these arguments


class Step(NamedTuple):
    """What a function is: the step's name, more about a call, and the name of a call's span."""

    name: str
    detail: Label
    span: Label | None = None  # without one there is no span


def _nothing(*_: Any) -> str:
    return ""


def _message(sock: Any, kind: int, *_: Any) -> str:
    """Of Netlink.request and the like: the message's name."""
    return _kind_name(sock.sock.proto, kind)


def _span(sock: Any, kind: int, *_: Any) -> str:
    return f"netlink {_kind_name(sock.sock.proto, kind).removeprefix('RTM_')}"


def _messages(sock: Any, requests: Any) -> str:
    """Of Netlink.batch: the messages' names, each once."""
    return _counted(sock.sock.proto, requests)


def _changes(changes: Any, *_: Any) -> str:
    """Of nft.transact."""
    return _counted(_NETFILTER, changes)


def _counted(protocol: int, messages: Any) -> str:
    names = [_kind_name(protocol, kind) for kind, _, _ in messages]
    return ", ".join(f"{names.count(each)} {each}" for each in dict.fromkeys(names))


def _kind_name(protocol: int, kind: int) -> str:
    """The name of a message; looked up once, since that takes as long as a request."""
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
    """Is told of steps and of what is loaded, as long as it watches."""

    def call(self, step: Step, function: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        """Call the function, which is that step; raises what it raises."""

    def loaded(self, name: str, more: int, begin: float) -> None:
        """The module has been loaded, and that many with it."""


class Functions:
    """The functions of STEPS, as far as they are loaded, and what takes their place."""

    def __init__(self) -> None:
        self.watchers: list[Watcher] = []
        self._seen: dict[str, Any] = {}  # our modules, as far as they were looked through
        # by id, of either: a function that was there, and ours
        self._pairs: dict[int, tuple[Any, Any]] = {}
        # by the holder's id and the name there: the holder and the pair
        self._places: dict[tuple[int, str], tuple[Any, tuple[Any, Any]]] = {}
        self._import = builtins.__import__
        self._importing = 0

    def watch(self, watcher: Watcher) -> None:
        """Tell the watcher, too; may be repeated."""
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
        """Tell the watcher no more; may be repeated."""
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
        self._look_through()  # what was loaded in another way than by an import statement
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
        """Find what has been loaded, and by which names our modules have it."""
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
        """A function that tells the watchers, and does what the original does."""
        is_bound = isinstance(original, classmethod)
        function = original.__func__ if is_bound else original

        def told(*args: Any, **kw: Any) -> Any:
            if not self.watchers:
                return function(*args, **kw)
            call = function
            for watcher in self.watchers[1:]:
                call = _by_way_of(watcher, step, call)
            return self.watchers[0].call(step, call, *args, **kw)

        # the executor is told functions by these names
        told.__module__, told.__qualname__ = function.__module__, function.__qualname__
        return classmethod(told) if is_bound else told


def _by_way_of(watcher: Watcher, step: Step, function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kw: watcher.call(step, function, *args, **kw)


def said(label: Label, args: tuple[Any, ...], otherwise: str = "") -> str:
    """What is said of a call; of one in another way than usual, that."""
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
        self._depth = 0  # of the verbs: a delegate's is part of the plugin's

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
        """Append what was noted to the file; nothing is said if that is not possible."""
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
    """Note the steps of the request that begins, or no longer."""
    for watcher in [*functions.watchers]:
        if isinstance(watcher, _Times):
            functions.unwatch(watcher)
    if wanted and path:
        functions.watch(_Times(path))
