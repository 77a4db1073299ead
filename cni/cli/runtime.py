"""The runtime's side of the protocol, as in libcni (spec §7, §8.1).

    Runtime(path, cache).add(network, attachment)      each plugin in order -> Outcome, kept
                        .check(network, attachment)    each with the kept result
                        .delete(network, attachment)   the last one first; then forgotten
                        .collect(network)              DEL for what is kept, then GC
                        .status(network)

Plugins are always executed, as a runtime does it. Error texts are libcni's; an error of a plugin
keeps its code and details.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from cni import delegate, dispatch
from cni.protocol import version as versions
from cni.protocol.errors import CNIError, IncompatibleVersion
from cni.protocol.request import (
    Request,
    check_container_id,
    check_ifname,
    check_network_name,
)

from . import gojson
from .cache import Attachment, Cache, Outcome, outcome
from .conflist import NetworkList, PluginConf
from .signals import Interrupts

# GC and STATUS are about a network, not about one container.
_NO_ATTACHMENT = Attachment("", "", "")


class Runtime:
    """Runs networks with the plugins found on `path`.

    Plugins inherit `env`, besides the CNI variables. `interrupts` ends the work between two
    plugins; `on_wait` is called if another process works on the same container, and `show_stderr`
    with the stderr of a plugin that has succeeded.
    """

    def __init__(
        self,
        path: list[str],
        cache: Cache,
        env: Mapping[str, str],
        interrupts: Interrupts,
        on_wait: Callable[[], None] = lambda: None,
        show_stderr: Callable[[bytes], None] = delegate.pass_on,
    ) -> None:
        self.path = path
        self.cache = cache
        self._env = dict(env)
        self._interrupts = interrupts
        self._on_wait = on_wait
        self._show_stderr = show_stderr

    def add(self, network: NetworkList, attachment: Attachment) -> Outcome:
        """ADD each plugin with the result of the one before; keep the last result.

        Checks everything possible before the first plugin runs. Raises CNIError
        ``plugin type="x" failed (add): …``; then nothing is kept.
        """
        for plugin in network.plugins:
            with _failing(plugin, "add"):
                delegate.find(plugin.type, self.path)
                check_container_id(attachment.container_id)
                check_network_name(attachment.network)
                check_ifname(attachment.ifname)
        # Before the first plugin: after the last one, a failure would leave an attachment
        # whose result is lost.
        self.cache.prepare(attachment)
        result: Outcome | None = None
        with self._locked(attachment.container_id):
            for plugin in network.plugins:
                conf = _request_conf(network, plugin, result, attachment)
                with _failing(plugin, "add"):
                    # If this fails, no DEL of the plugins before: it would also remove an
                    # attachment that was there already.
                    result = _parse(self._run("ADD", plugin, conf, attachment), network.version)
            if result is None:
                raise CNIError("no plugin configs found")
            self.cache.write(attachment, network.data, result.as_dict())
        return result

    def check(self, network: NetworkList, attachment: Attachment) -> None:
        """CHECK each plugin with the kept result; the first error ends it. Raises CNIError."""
        # An error, where DEL and STATUS pass over it: a person has asked for the comparison.
        if not versions.at_least(network.version, "0.4.0"):
            raise CNIError(
                f'configuration version "{network.version}" does not support the CHECK command',
                "CHECK came with cniVersion 0.4.0",
            )
        if network.disable_check:
            return
        with self._locked(attachment.container_id):
            try:
                result = self._kept(network, attachment)
            except CNIError as error:
                raise error.wrapped(
                    f'failed to get network "{network.name}" cached result: '
                ) from None
            for plugin in network.plugins:
                conf = _request_conf(network, plugin, result, attachment)
                self._run("CHECK", plugin, conf, attachment)

    def delete(
        self, network: NetworkList, attachment: Attachment, result: Outcome | None = None
    ) -> None:
        """DEL each plugin, the last one first, and forget the result.

        The plugins get `result` if none is kept. An unusable kept one is deleted and ignored. A
        plugin that does not know the version is skipped. Raises CNIError
        ``plugin type="x" failed (delete): …``; then a usable result stays.
        """
        self.cache.path(attachment)  # validates
        with self._locked(attachment.container_id):
            self._delete(network, attachment, result)

    def _delete(
        self, network: NetworkList, attachment: Attachment, given: Outcome | None = None
    ) -> None:
        result = None
        if versions.at_least(network.version, "0.4.0"):
            try:
                result = self._kept(network, attachment) or self._converted(network, given)
            except CNIError:
                self.cache.remove(attachment)
        # A later plugin may use what an earlier one made.
        for plugin in reversed(network.plugins):
            conf = _request_conf(network, plugin, result, attachment)
            try:
                with _failing(plugin, "delete"):
                    self._run("DEL", plugin, conf, attachment)
            except CNIError as error:
                if error.code != IncompatibleVersion.code:
                    raise
                # It has also refused every ADD, so it has made nothing.
                self._show_stderr(f"{error}; going on with the others\n".encode())
        self.cache.remove(attachment)

    def collect(
        self, network: NetworkList, valid: Collection[tuple[str, str]] | None = None
    ) -> list[Attachment]:
        """DEL every kept attachment of the network that is not `valid`, then GC each plugin.

        `valid` are pairs (container id, interface); None, as in cnitool, deletes all and passes no
        list to the plugins. Returns the deleted attachments. Raises CNIError with every failure, a
        line each, after everything was tried.
        """

        def stale() -> list[Attachment]:
            return [
                each
                for each in self.cache.attachments()
                if each.network == network.name
                and (each.container_id, each.ifname) not in (valid or ())
            ]

        return self.delete_stale(network, stale, lambda errors: self.gc(network, valid, errors))

    def delete_stale(
        self,
        network: NetworkList,
        stale: Callable[[], Iterable[Attachment]],
        then: Callable[[list[CNIError]], None] = lambda _: None,
    ) -> list[Attachment]:
        """DEL the attachments of `stale`, then call `then` with the list of errors, to add to it.

        Both are called while no other command works on any container. Does nothing if the network
        has disableGC. Returns the deleted attachments. Raises CNIError with every failure, a line
        each, after everything was tried.
        """
        if network.disable_gc:
            return []
        deleted: list[Attachment] = []
        errors: list[CNIError] = []
        with self._locked(None):
            # Under the lock of all containers, so no `write` is under way.
            self.cache.sweep()
            # Called under the lock: an attachment may have come or gone since the command began.
            for each in stale():
                what = f"failed to delete stale attachment {each.container_id} {each.ifname}: "
                if _tried(errors, what, partial(self._delete, network, each)):
                    deleted.append(each)
            then(errors)
        if errors:
            raise _joined(errors)
        return deleted

    def gc(
        self,
        network: NetworkList,
        valid: Collection[tuple[str, str]] | None,
        errors: list[CNIError],
    ) -> None:
        """GC each plugin, from version 1.1.0 on; failures are added to `errors`."""
        if _at_least(network.version, "1.1.0"):
            self._collect_plugins(network, valid, errors)

    def _collect_plugins(
        self,
        network: NetworkList,
        valid: Collection[tuple[str, str]] | None,
        errors: list[CNIError],
    ) -> None:
        extra: dict[str, Any] = {}
        if valid is not None:
            pairs = [{"containerID": cid, "ifname": ifname} for cid, ifname in sorted(valid)]
            # The second is the key's name in an earlier text of the specification.
            extra = {"cni.dev/valid-attachments": pairs, "cni.dev/attachments": pairs}
        for plugin in network.plugins:
            conf = _conf(network, plugin, extra)
            what = f"failed to GC plugin {plugin.type}: "
            _tried(errors, what, partial(self._run, "GC", plugin, conf, _NO_ATTACHMENT))

    def status(self, network: NetworkList) -> None:
        """STATUS of each plugin; raises the first error. Does nothing before 1.1.0."""
        if not _at_least(network.version, "1.1.0"):
            return
        for plugin in network.plugins:
            self._run("STATUS", plugin, _conf(network, plugin, {}), _NO_ATTACHMENT)

    @contextmanager
    def _locked(self, container_id: str | None) -> Iterator[None]:
        """Hold the container's lock (None: every container's); Ctrl-C ends the wait for it."""
        with ExitStack() as stack:
            with self._interrupts.at_once():
                # No plugin has begun, so the first Ctrl-C may already end the wait.
                stack.enter_context(self.cache.lock(container_id, self._on_wait))
            yield

    def _kept(self, network: NetworkList, attachment: Attachment) -> Outcome | None:
        """The kept result in the configuration's version. Raises CNIError."""
        return self._converted(network, self.cache.read(attachment))

    def _converted(self, network: NetworkList, result: Outcome | None) -> Outcome | None:
        """`result` in the configuration's version. Raises CNIError."""
        if result is None:
            return None
        wanted = network.version or versions.DEFAULT
        try:
            return outcome(result.as_dict(wanted), wanted)
        except CNIError as error:
            raise error.wrapped(
                f"failed to convert cached result to config version "
                f"{gojson.quote(network.version)}: "
            ) from None

    def _run(self, verb: str, plugin: PluginConf, stdin: bytes, attachment: Attachment) -> bytes:
        """Execute a plugin; return its output. Raises its error, or CNIError."""
        # After a signal no further plugin starts; the one before has finished or undone its work.
        self._interrupts.check()
        args = ";".join(f"{key}={value}" for key, value in attachment.args)
        env = {
            # Plugins need PATH and the like; CNI variables of the caller are overwritten below.
            **self._env,
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": attachment.container_id,
            "CNI_NETNS": attachment.netns,
            "CNI_ARGS": args,
            "CNI_IFNAME": attachment.ifname,
            "CNI_PATH": os.pathsep.join(self.path),
        }
        request = Request(
            command=verb,
            container_id=attachment.container_id,
            netns=attachment.netns,
            ifname=attachment.ifname,
            args=args,
            path=self.path,
            stdin=stdin,
            env=env,
        )
        program = delegate.find(plugin.type, self.path)
        # Not delegate.run: it drops the version in which the result was printed.
        return delegate.execute(program, request, self._show_stderr)


def describe(plugin: PluginConf) -> str:
    """``type="x" name="y"``, the name only if it has one of its own."""
    name = f" name={gojson.quote(plugin.name)}" if plugin.name else ""
    return f"type={gojson.quote(plugin.type)}{name}"


@contextmanager
def _failing(plugin: PluginConf, verb: str) -> Iterator[None]:
    """Puts ``plugin type="x" failed (verb): `` before the message of a CNIError."""
    try:
        yield
    except CNIError as error:
        said = delegate.with_remedy(error, dispatch.TABLE)
        raise said.wrapped(f"plugin {describe(plugin)} failed ({verb}): ") from None


def _request_conf(
    network: NetworkList, plugin: PluginConf, result: Outcome | None, attachment: Attachment
) -> bytes:
    """The plugin's stdin for ADD, CHECK and DEL."""
    extra: dict[str, Any] = {}
    if result is not None:
        extra["prevResult"] = result.as_dict()
    given = attachment.capability_args or {}
    # As the specification demands: a plugin gets only what it declares.
    chosen = {key: given[key] for key in given if key in plugin.capabilities}
    if chosen:
        extra["runtimeConfig"] = chosen
    return _conf(network, plugin, extra)


def _conf(network: NetworkList, plugin: PluginConf, extra: Mapping[str, Any]) -> bytes:
    """The plugin's object with the network's name and version, and `extra`."""
    common = {"name": network.name, "cniVersion": network.version}
    return gojson.encode_sorted({**plugin.raw, **common, **extra})


def _parse(output: bytes, config_version: str) -> Outcome:
    try:
        raw = gojson.decode(output)
    except CNIError as error:
        raise error.wrapped("failed to unmarshal raw result: ") from None
    # Go takes null for an empty object.
    return outcome({} if raw is None else raw, config_version)


def _at_least(version: str, minimum: str) -> bool:
    """As versions.at_least; False for a version that cannot be parsed."""
    try:
        return versions.at_least(version, minimum)
    except CNIError:
        return False


def _tried(errors: list[CNIError], what: str, step: Callable[[], object]) -> bool:
    """Run `step`; keep its CNIError, with `what` before the message. Did it succeed?"""
    try:
        step()
    except CNIError as error:
        errors.append(error.wrapped(what))
        return False
    return True


def _joined(errors: list[CNIError]) -> CNIError:
    """All errors in one, a line each as in Go; the code is the first one's."""
    if len(errors) == 1:
        return errors[0]
    error = CNIError("\n".join(str(e) for e in errors))
    # Callers and scripts expect one code; texts of all are in the message.
    error.code = errors[0].code
    return error
