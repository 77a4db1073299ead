"""What a plugin's verb is given: the request, its typed configuration, how to undo and delegate.

    def add(call: Call[Conf]) -> Result: ...

Nothing here is process-global: a worker of the server runs one Call after another.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from . import delegate
from .kernel.errors import KernelError, NetnsError, NetnsMissing
from .netns import Namespace
from .owner import Owner
from .protocol import config
from .protocol.errors import CNIError, Terminated, from_exception, join
from .protocol.request import Attachment, Request
from .protocol.result import Result

if TYPE_CHECKING:
    from .intent import Dropped

C = TypeVar("C", bound=config.NetConf)


class Call(Generic[C]):
    """One request to one plugin.

    `undo` is an ExitStack: push what reverses each change; the dispatcher unwinds it if the verb or
    the printing of its result fails, and drops it on success. `forgotten` is, in DEL and GC, what
    had been kept of the attachments that go (see `remember`).
    """

    def __init__(
        self,
        request: Request,
        raw: dict[str, Any],
        version: str,
        conf_type: type[C],
        conf_prefix: str,
        in_process: delegate.InProcess,
        remember_now: Callable[[Call[Any], Result], None] | None = None,
    ) -> None:
        self.request = request
        self.raw = raw
        self.version = version
        self.undo = ExitStack()
        self.remembered = False
        self.forgotten: Dropped | None = None
        self._remember_now = remember_now
        self._conf_type = conf_type
        self._conf_prefix = conf_prefix
        self._conf: C | None = None
        self._owner: Owner | None = None
        self._previous: Result | None = None
        self._in_process = in_process
        self._namespaces: list[Namespace] = []

    # --- what was asked ---

    @property
    def conf(self) -> C:
        """The configuration, decoded when first asked for. Raises CNIError."""
        if self._conf is None:
            self._conf = config.convert(self.raw, self._conf_type, self._conf_prefix)
        return self._conf

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
        """CNI_ARGS, unparsed."""
        return self.request.args

    @property
    def owner(self) -> Owner:
        """This attachment."""
        if self._owner is None:
            self._owner = Owner(self.network, self.container_id, self.ifname)
        return self._owner

    def look_ahead(self) -> None:
        """Convert now what the verb will ask for; it changes nothing."""
        try:
            _ = self.conf
            self._previous = self.prev_result()
        except CNIError:
            pass  # who asks for it hears why

    def prev_result(self) -> Result | None:
        """The result of the plugins before this one; None without a prevResult. Raises CNIError."""
        if self._previous is not None:
            found, self._previous = self._previous, None  # who gets it may change it
            return found
        raw = config.lookup(self.raw, "prevResult")
        if raw is None:
            return None
        try:
            return Result.parse(raw, self.version)
        except CNIError as error:
            raise error.wrapped("could not parse prevResult: ") from None

    # --- the container's namespace ---

    def open_netns(self) -> Namespace:
        """The container's namespace, closed when the request ends.

        Raises CNIError ``failed to open netns "<path>": …``.
        """
        try:
            return self._keep(Namespace.open(self.netns))
        except NetnsError as error:
            raise CNIError(
                f'failed to open netns "{self.netns}": {error}',
                "CNI_NETNS is the path of the container's network namespace",
            ) from None

    def find_netns(self) -> Namespace | None:
        """For DEL: None when CNI_NETNS is empty or its path is gone. Raises CNIError otherwise."""
        if not self.netns:
            return None
        try:
            return self._keep(Namespace.open(self.netns))
        except NetnsMissing:
            return None
        except NetnsError as error:
            raise CNIError(f'failed to open netns "{self.netns}": {error}') from None

    def _keep(self, namespace: Namespace) -> Namespace:
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
        """Run another plugin with this request's environment; an ADD gives its Result.

        `verb` and `stdin` default to the request's own. GC may have one `attachment` deleted, of
        whose namespace nothing is known. Raises CNIError.
        """
        request = self.request._replace(
            command=verb or self.request.command,
            stdin=self.request.stdin if stdin is None else stdin,
        )
        if attachment is not None:
            request = request.of(attachment.container_id, attachment.ifname)
        return delegate.run(request, name, self._in_process)

    def ipam_add(self, name: str) -> Result:
        """Have the IPAM plugin allocate; released again if this ADD fails. Raises CNIError."""
        try:
            result = self.delegate(name, "ADD")
        except Terminated:
            # it may have allocated already; one that fails by itself keeps nothing
            self.undo.callback(self.delegate, name, "DEL")
            raise
        self.undo.callback(self.delegate, name, "DEL")
        if result is None or not result.ips:
            raise CNIError(
                "IPAM plugin returned missing IP config",
                f'the IPAM plugin "{name}" gave no address',
            )
        return result

    def collect_ipam(self, name: str, steps: Steps) -> None:
        """Forward GC to the IPAM plugin `name`, if there is one, as one of `steps`."""
        if name:
            steps.run(self.delegate, name)

    # --- the rest ---

    def owners(self, keep: frozenset[Attachment]) -> list[Owner]:
        """The attachments that GC keeps, as owners in this network."""
        return [Owner(self.network, a.container_id, a.ifname) for a in sorted(keep)]

    def remember(self, result: Result | None = None) -> None:
        """Keep this ADD until DEL or GC, for the plugin's `reload` (cni.intent).

        A plugin that knows its result before it makes its rules gives it here: then it is kept at
        once, and DEL and GC find in `forgotten` what a killed ADD had set out to do.
        """
        if result is None or self._remember_now is None:
            self.remembered = True
        else:
            self._remember_now(self, result)

    def log(self, text: str) -> None:
        """A line for the operator, on stderr."""
        os.write(2, f"{text}\n".encode(errors="replace"))

    def finish(self) -> None:
        """Close what the request opened."""
        while self._namespaces:
            self._namespaces.pop().close()


class Steps:
    """Runs every step of a DEL or GC, whatever fails, and raises all errors at the end."""

    def __init__(self) -> None:
        self._errors: list[CNIError] = []

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """The function's value, or None if it failed."""
        try:
            return function(*args)
        except (CNIError, KernelError, OSError) as error:
            self._errors.append(from_exception(error))
        return None

    def finish(self) -> None:
        """Raise what went wrong, if anything did."""
        if self._errors:
            raise join(self._errors)
