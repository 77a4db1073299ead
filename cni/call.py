"""The argument of a plugin's verbs: request, configuration, undo stack, delegates.

    def add(call: Call[Conf]) -> Result: ...

The contract of a plugin is in cni/contract.py. Nothing here is process-global: a worker of the
server runs one Call after another.

Longer than most modules: every request needs all of it, and a second module would be one more file
for each to load.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EACCES, ENOENT, ENOTDIR, EPERM, EROFS
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast

from .interrupts import Undo
from .kernel.errors import KernelError, NetnsError, NetnsMissing, NetnsUnknown
from .netns import Namespace, same_namespace
from .owner import Owner, all_of
from .protocol import config
from .protocol.errors import CNIError, DelegateError, InvalidNetns, from_exception, join
from .protocol.request import Attachment, Request
from .protocol.result import Result

if TYPE_CHECKING:
    from types import ModuleType

    from .delegate import InProcess
    from .intent import Dropped

C = TypeVar("C", bound=config.PluginConf)
D = TypeVar("D", bound=config.PluginConf)

# Errors of a node without a place for state; an ADD works without it.
_NO_PLACE = frozenset({EACCES, ENOENT, ENOTDIR, EPERM, EROFS})


# Called with the kind and number of objects that a GC has removed; the server sets it, to count.
on_removed: Callable[[str, int], None] | None = None


class Verbs(NamedTuple):
    """The functions of a plugin's module (cni.contract); None for a verb that it lacks."""

    conf: type[config.PluginConf]
    add: Callable[[Call[Any]], Result] | None
    delete: Callable[[Call[Any]], None] | None
    check: Callable[[Call[Any]], None] | None
    gc: Callable[[Call[Any], frozenset[Attachment]], None] | None
    status: Callable[[Call[Any]], None] | None
    reload: Callable[[Call[Any]], None] | None

    @classmethod
    def of(cls, module: ModuleType) -> Verbs:
        """Look up a module's functions: the only place where that is done by name."""
        verbs = _verbs.get(module)
        if verbs is None:
            names = ("add", "delete", "check", "gc", "status", "reload")
            verbs = cls(module.Conf, *(getattr(module, name, None) for name in names))
            _verbs[module] = verbs
        return verbs


_verbs: dict[ModuleType, Verbs] = {}


class Call(Generic[C]):
    """One request to one plugin.

    `undo` gets the reverse of each change. In DEL and GC, `forgotten` has the intents of the
    attachments that are removed (see `remember`).
    """

    def __init__(
        self,
        plugin: str,
        request: Request,
        raw: dict[str, Any],
        version: str,
        conf_type: type[C],
        conf_prefix: str,
        in_process: InProcess,
    ) -> None:
        self.plugin = plugin
        self.request = request
        self.raw = raw
        self.version = version
        self.undo = Undo()
        self.remembered = False
        # handles of the rules that ADD made, kept in the intent; `guard` is that of `macspoofchk`
        self.handles: list[int] = []
        self.guard = 0
        self.netns_unknown = False  # find_netns could not look: keep what the next DEL needs
        self.problems: list[CNIError] = []
        self.forgotten: Dropped | None = None
        self._conf_type = conf_type
        self._conf_prefix = conf_prefix
        self._conf: C | None = None
        self._owner: Owner | None = None
        self._kept: tuple[frozenset[Attachment], list[Owner]] | None = None
        self._in_process = in_process
        self._namespaces: list[Namespace] = []

    def reread(self, raw: dict[str, Any], conf_type: type[D]) -> Call[D]:
        """The same request with another configuration, for a plugin that acts as another one.

        Both calls share the undo stack, the problems, and the objects to close.
        """
        other: Call[D] = object.__new__(Call)
        other.__dict__.update(self.__dict__, raw=raw, _conf_type=conf_type, _conf=None)
        return other

    # --- the request ---

    @property
    def conf(self) -> C:
        """The configuration, converted at the first access. Raises CNIError.

        Not in DEL and GC: there a key of the wrong type has its default. If the verb reads it, that
        becomes an error after every step has run (`problems`).
        """
        if self._conf is None:
            kind, prefix = self._conf_type, self._conf_prefix
            if self.lenient:
                parts = config.convert_parts(self.raw, kind, prefix, self.note_problem)
                self._conf = cast("C", parts)
            else:
                self._conf = config.convert(self.raw, kind, prefix)
        return self._conf

    @property
    def lenient(self) -> bool:
        """Is this a DEL or GC, which does everything that it can?"""
        return self.request.command in ("DEL", "GC")

    def note_problem(self, error: CNIError) -> None:
        """In DEL and GC: raise this error after all steps."""
        if error not in self.problems:
            self.problems.append(error)

    @property
    def network(self) -> str:
        """The network's name."""
        return str(config.lookup(self.raw, "name"))

    @property
    def container_id(self) -> str:
        return self.request.container_id

    @property
    def ifname(self) -> str:
        return self.request.ifname

    @property
    def netns(self) -> str:
        """CNI_NETNS, verbatim; may be empty for DEL."""
        return self.request.netns

    @property
    def args(self) -> str:
        """CNI_ARGS, unparsed; see `parse_args`."""
        return self.request.args

    def parse_args(self, known: frozenset[str]) -> dict[str, str]:
        """The pairs of CNI_ARGS with these keys (protocol.args.parse).

        Raises CNIError; but DEL and GC get {} for a text that cannot be parsed.
        """
        if not self.args:
            return {}
        from .protocol import args

        try:
            return args.parse(self.args, known)
        except CNIError:
            if self.lenient:
                return {}
            raise

    @property
    def owner(self) -> Owner:
        """This attachment."""
        if self._owner is None:
            self._owner = Owner(self.network, self.container_id, self.ifname)
        return self._owner

    def convert(self) -> None:
        """Convert the configuration ahead of the verb; changes nothing else."""
        try:
            _ = self.conf
        except CNIError:
            pass  # the verb will get the same error if it needs the configuration

    def prev_result(self) -> Result | None:
        """The result of the plugins before this one; None without a prevResult. Raises CNIError.

        Not in DEL: there its unreadable parts are left out.
        """
        try:
            raw = config.lookup(self.raw, "prevResult")
            return None if raw is None else Result.parse(raw, self.version).checked()
        except CNIError as error:
            if self.lenient:
                self.log(f"cni: {self.plugin}: not all of prevResult can be read: {error}")
                return Result.salvage(config.lookup(self.raw, "prevResult"), self.version)
            raise error.wrapped("could not parse prevResult: ") from None

    # --- the container's namespace ---

    def guard_netns(self) -> None:
        """Raise InvalidNetns if the container's is the node's own (docs/spec/protocol.md §1.3).

        ADD calls it before any change, DEL after its steps (`find_netns`).
        """
        request = self.request
        if request.netns and not request.netns_override and same_namespace(request.netns):
            raise InvalidNetns(
                "plugin's netns and netns from CNI_NETNS should not be the same",
                f"{request.netns} is the node's own network namespace, not a container's",
            )

    def open_netns(self) -> Namespace:
        """The container's namespace, closed when the request ends.

        Raises CNIError ``failed to open netns "<path>": …``.
        """
        try:
            return self.close_later(Namespace.open(self.netns))
        except NetnsError as error:
            raise CNIError(
                f'failed to open netns "{self.netns}": {error}',
                "CNI_NETNS is the path of the container's network namespace",
            ) from None

    def find_netns(self) -> Namespace | None:
        """For DEL: the container's namespace, or None; then every other step runs. Raises nothing.

        None if CNI_NETNS is empty, does not exist, or is no network namespace; and None for the
        node's own namespace, in which plugins never work. If this process could not look, that
        becomes an error after the other steps.
        """
        if not self.netns:
            return None
        try:
            namespace = self.close_later(Namespace.open(self.netns))
        except NetnsUnknown as error:
            self.netns_unknown = True
            text = f'failed to open netns "{self.netns}": {error}'
            self.note_problem(CNIError(text, "try again"))
            return None
        # the common case of a repeated DEL, and of one after a reboot: nothing is logged
        except NetnsMissing:
            return None
        except NetnsError as error:
            self.log(f"cni: the container's namespace is taken for gone: {error}")
            return None
        if namespace.is_own and not self.request.netns_override:
            return None  # the dispatcher raises the error at the end
        return namespace

    def close_later(self, namespace: Namespace) -> Namespace:
        """Close this namespace when the request ends; returns it."""
        self._namespaces.append(namespace)
        return namespace

    # --- other plugins ---

    def delegate(
        self,
        name: str,
        verb: str | None = None,
        stdin: bytes | None = None,
        attachment: Attachment | None = None,
    ) -> Result | None:
        """Run another plugin with this request's environment; return the Result of an ADD.

        `verb` and `stdin` default to the request's own. With `attachment` a GC deletes another
        attachment, whose namespace is not known. Raises CNIError.
        """
        from . import delegate

        request = self._request_for(verb or self.request.command, stdin)
        if attachment is not None:
            request = request.of(attachment.container_id, attachment.ifname)
        return delegate.run(request, name, self._in_process)

    def _request_for(self, verb: str, stdin: bytes | None) -> Request:
        own = self.request
        return own._replace(command=verb, stdin=own.stdin if stdin is None else stdin)

    def delegate_add(self, name: str, stdin: bytes | None = None) -> Result | None:
        """Run another plugin's ADD; its DEL runs if this ADD fails. Raises CNIError.

        A plugin that answers with an error has undone its changes. If it gives no answer, or an
        unintelligible one, it may have made them, so its DEL runs, too.
        """
        from . import delegate

        request = self._request_for("ADD", stdin)
        program = delegate.find(name, request.path)
        ours, result = delegate.run_in_process(self._in_process, name, program, request)
        # Only now: in this process a failed ADD of the delegate has undone itself. Another program
        # may be killed halfway, so its DEL is noted before it starts.
        self.undo.callback(self.delegate, name, "DEL", stdin)
        if not ours:
            try:
                result = delegate.run_program(program, request)
            except DelegateError:
                self.undo.withdraw()
                raise
        return result

    def ipam_add(self, name: str) -> Result:
        """Run the IPAM plugin's ADD; addresses are released if this ADD fails. Raises CNIError."""
        result = self.delegate_add(name)
        if result is None or not result.ips:
            raise CNIError(
                "IPAM plugin returned missing IP config",
                f'the IPAM plugin "{name}" gave no address',
            )
        return result

    def run(self, verb: Callable[..., None], *args: Any) -> None:
        """Run the function of a DEL or GC; if it raises no error, drop the intents put aside.

        Raises its error together with its problems.
        """
        errors: list[CNIError] = []
        Steps(errors).run(verb, self, *args)
        # after a failure they stay: a repeated DEL or GC reads in them what may be left
        if not errors:
            self.drop_set_aside()
        Steps(errors + self.problems).finish()

    def collect_ipam(self, name: str, steps: Steps) -> None:
        """Forward GC to the IPAM plugin `name`, if there is one, as one of `steps`."""
        if name:
            steps.run(self.delegate, name)

    def note_removed(self, kind: str, count: int) -> None:
        """In GC: note that `count` objects of this kind without attachment were removed."""
        if on_removed is not None and count and self.request.command == "GC":
            on_removed(kind, count)

    # --- the rest ---

    def owners(self, keep: frozenset[Attachment]) -> list[Owner]:
        """The attachments that GC keeps, as owners in this network; computed once in a request."""
        if self._kept is None or self._kept[0] is not keep:
            self._kept = keep, all_of(self.network, sorted(keep))
        return self._kept[1]

    def remember(self, result: Result | None = None) -> None:
        """Keep this ADD until DEL or GC, for the plugin's `reload` (cni.intent).

        A plugin that knows its result before it makes its rules passes it here: then the intent is
        written at once, and DEL and GC find in `forgotten` the plan of an ADD that was killed.
        Otherwise it is written after the verb. Raises CNIError, as `keep`.
        """
        if result is None:
            self.remembered = True
        else:
            self.keep(result)

    def keep(self, result: Result) -> None:
        """Write the intent: request and result (cni.intent). Raises CNIError if that fails.

        On a node without a place for state nothing is written, which is only logged: the rules will
        not survive a flush.
        """
        self.undo.callback(self._forget)
        self.keep_with_handles(result)

    def keep_with_handles(self, result: Result) -> None:
        """Write the intent of `keep` again, with the handles of rules that are known now."""
        from . import intent

        try:
            hints: dict[str, int | list[int]] = {"handles": self.handles, "guard": self.guard}
            intent.save(self.plugin, self.owner, self.request, result, **hints)
        except OSError as error:
            where = intent.directory(self.request.env)
            text = f"cannot keep the rules in {where} for `cni reload`: {error.strerror}"
            if error.errno not in _NO_PLACE:
                raise CNIError(text, "make room there, then try again") from None
            self.log(f"cni: {self.plugin}: {text}")

    def _forget(self) -> None:
        self.set_aside()
        self.drop_set_aside()

    def set_aside(self, keep: frozenset[Attachment] | None = None) -> None:
        """Hide intents from `cni reload`: this attachment's, or those not of `keep`."""
        from . import intent

        env = self.request.env
        if keep is None:
            self.forgotten = intent.drop(self.plugin, self.owner, env)
        else:
            owners = self.owners(keep)
            self.forgotten = intent.drop_others(self.plugin, self.network, owners, env)

    def drop_set_aside(self) -> None:
        """Remove the intents put aside: their rules are gone."""
        if self.forgotten is not None:
            self.forgotten.finish()
            self.note_removed("intent", len(self.forgotten.intents))

    def log(self, text: str) -> None:
        """Write a line for the operator to stderr."""
        from . import stderr

        stderr.line(text)

    def close(self) -> None:
        """Close what the request opened."""
        while self._namespaces:
            self._namespaces.pop().close()


class Steps:
    """Runs every step of a DEL or GC, even after failures, and raises all errors at the end."""

    def __init__(self, errors: list[CNIError] | None = None) -> None:
        self._errors: list[CNIError] = [] if errors is None else errors

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """The function's value, or None if it failed."""
        try:
            return function(*args)
        except (CNIError, KernelError, OSError) as error:
            self._errors.append(from_exception(error))
        return None

    def finish(self) -> None:
        """Raise the errors of the steps, if there are any."""
        if self._errors:
            raise join(self._errors)
