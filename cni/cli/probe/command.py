"""`cni test`: does a network work? Attaches containers of its own, and sends packets."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import click

from cni.kernel import link
from cni.kernel.errors import KernelError
from cni.kernel.netlink import Netlink
from cni.protocol.address import InvalidAddress, parse_ip
from cni.protocol.errors import CNIError
from cni.protocol.request import check_ifname

from .. import errors, formats, output, session
from ..completion import Network
from ..conflist import NetworkList
from ..runtime import Runtime
from ..session import CACHE_DIR
from ..view import attachments
from ..view.attached import Places
from . import addresses, containers, lifecycle, outside, ports, row
from .before import Before
from .containers import Container
from .row import FAILED, Row, failed, skipped
from .signals import Signals
from .situation import Check, Situation, main_of, one_only

_CONTAINER_PORT = 8080
# What CAP_ARGS and CNI_ARGS give to the first container only: no two can have the same.
_OF_ONE = frozenset({"portMappings", "ips", "mac", "infinibandGUID", "deviceID"})
_ARGS_OF_ONE = frozenset({"IP", "MAC"})
_CHECKS: tuple[tuple[str, Check], ...] = (
    ("loopback", addresses.loopback),
    ("gateway", addresses.gateway),
    ("neighbour", addresses.neighbour),
    ("from node", addresses.node),
    ("uplink", addresses.uplink),
    ("way out", addresses.way_out),
    ("port", ports.published),
    ("--to", addresses.asked_for),
    ("MTU", addresses.mtu),
    ("DNS", addresses.dns),
)


class Options(NamedTuple):
    """What the command line says."""

    ifname: str
    beyond: tuple[str, ...]
    force: bool


@click.command("test")
@click.argument("network", type=Network())
@click.option(
    "--to",
    "beyond",
    metavar="ADDRESS",
    multiple=True,
    help="Also send echo requests to this address, and DNS requests if it is a DNS server of the "
    "network. May be repeated.",
)
@click.option("-i", "--ifname", default="eth0", show_default=True, help="The interface's name.")
@click.option(
    "--conf-dir",
    metavar="DIR",
    type=click.Path(file_okay=False),
    help="Directory with network configurations, instead of NETCONFPATH.",
)
@click.option("--force", is_flag=True, help="Also take a device that the node uses.")
@CACHE_DIR
@formats.options
def test(
    network: str,
    beyond: tuple[str, ...],
    ifname: str,
    conf_dir: str | None,
    force: bool,
    cache_dir: str,
) -> None:
    """Attach two containers to the network, send packets, and say what works.

    Tests the gateway, the neighbour, the way out, a published port, the MTU, DNS, an address that
    is used again, and what DEL leaves. The containers are namespaces that end with the command.
    Packets leave this node only for the addresses of --to. Exit code 1 if a test fails.

    \b
    Examples: cni test mynet
              cni test mynet --to 192.0.2.1
    See also: cni trace, cni status, cni doctor
    """  # noqa: D301 - click wants the control character
    errors.require_root("make network namespaces")
    options = Options(_valid_ifname(ifname), _valid_addresses(beyond), force)
    if conf_dir:
        # Every module that looks for configurations reads this variable.
        os.environ["NETCONFPATH"] = os.path.abspath(conf_dir)
    signals = Signals()
    rows: list[Row] = []
    facts: list[dict[str, Any]] = []
    try:
        with signals, output.activity() as say:
            network_list = session.configured(network)
            _require_harmless(network_list, force)
            run = Run(network_list, options, cache_dir, signals, say)
            try:
                rows.extend(run.rows())
                facts = run.facts
            finally:
                # Also after Ctrl-C, and after a defect.
                run.clean_up()
    except KeyboardInterrupt:
        output.line("interrupted; what was made is removed", err=True)
        click.get_current_context().exit(signals.exit_code)
    wrong = [each for each in rows if each.state == FAILED]
    formats.present(
        {
            "network": network,
            "ok": not wrong,
            "containers": facts,
            "checks": [each.as_dict() for each in rows],
        },
        lines=() if formats.current() == "wide" else [*_lines(rows), _summary(network, rows)],
        rows=row.table(rows) if formats.current() == "wide" else None,
        names=[each.name for each in wrong],
    )
    if wrong:
        raise SystemExit(1)


def _lines(rows: list[Row]) -> Iterator[str]:
    for each in rows:
        yield from row.lines(each)


def _summary(network: str, rows: list[Row]) -> str:
    counts = {state: sum(each.state == state for each in rows) for state in row.MARKS}
    return (
        f"{network}: {counts[row.OK]} passed, {counts[FAILED]} failed, "
        f"{counts[row.SKIPPED]} not tested"
    )


def _valid_ifname(ifname: str) -> str:
    try:
        check_ifname(ifname)
    except CNIError as error:
        raise click.BadParameter(f"{error}", param_hint="-i") from None
    return ifname


def _valid_addresses(given: tuple[str, ...]) -> tuple[str, ...]:
    for each in given:
        try:
            parse_ip(each)
        except InvalidAddress as error:
            raise click.BadParameter(f"{error}", param_hint="--to") from None
    return given


def _require_harmless(network: NetworkList, force: bool) -> None:
    """Raises Refused if the test would take a device away that the node uses."""
    from cni.kernel import address
    from cni.kernel.route import show as routes_of

    with Netlink() as node:
        device = _device_of(network, node)
        if device is None or force:
            return
        used = [
            str(each.prefix)
            for each in address.show(node, device.index)
            if each.scope == address.SCOPE_UNIVERSE
        ]
        # AF_INET: routes of IPv6 go with their addresses, which were listed above.
        used += [f"the route to {each.dst}" for each in routes_of(node, 2, device.index)]
        if device.master:
            used.append(f"a port of {link.get(node, device.master).name}")
    if used:
        raise errors.Refused(
            f"the test would take {device.name} away from the node, which uses it",
            f"it has {', '.join(dict.fromkeys(used))}, and would come back without; "
            "--force takes it all the same",
        )


def _device_of(network: NetworkList, node: Netlink) -> link.Link | None:
    """The device of the node that host-device would take; None if it is not there."""
    from cni.plugins.host_device import selector
    from cni.protocol import config

    main = main_of(network)
    if containers.plugin_of(main.type) != "host-device":
        return None
    try:
        return selector.Selector(config.convert(main.raw, selector.Conf)).find(node)
    except (CNIError, KernelError):
        return None  # the ADD says why


class Run:
    """One test: what it has made is removed by `clean_up`."""

    def __init__(
        self,
        network: NetworkList,
        options: Options,
        cache_dir: str,
        signals: Signals,
        say: Callable[[str], None],
    ) -> None:
        self.network, self.options = network, options
        self.signals, self.say = signals, say
        self.runtime: Runtime = session.runtime(cache_dir, signals)
        self.places = Places.of(cache_dir)
        self.facts: list[dict[str, Any]] = []
        self._made: list[Container] = []
        self._stack = ExitStack()
        self._args = session.parse_args(os.environ.get("CNI_ARGS", "")) or (("IgnoreUnknown", "1"),)

    def rows(self) -> Iterator[Row]:
        """The table. Raises CNIError, KernelError where nothing can be tested at all."""
        self.say("removing what a killed test has left")
        try:
            containers.sweep(self.network, self.places, self.runtime)
        except CNIError as error:
            self.signals.check()
            text = f"of a test that was killed: {error.msg}"
            yield failed("detach", 0, text, f"put that right, then: cni gc {self.network.name}")
        node = self._stack.enter_context(Netlink())
        device = _device_of(self.network, node)
        if device is not None and device.up:
            self._stack.callback(_set_up, node, device.name)  # DEL gives it back down
        # Before the first ADD, which may mend what this looks for.
        before = Before(self.network, self.places, node)
        try:
            situation = self._situation(node)
        except CNIError as error:
            self.signals.check()
            yield failed("attach", 0, error.msg, error.details or "cni status says more")
            yield from _tried("before", before.rows)
            yield from self._detached(node)
            return
        yield from self._attached(situation)
        yield from _tried("before", before.rows)
        checks = _CHECKS[:1] if situation.kind == "loopback" else _CHECKS
        for name, check in checks:
            self.say(name)
            for each in _tried(name, lambda check=check: check(situation)):  # type: ignore[misc]
                if each.state == FAILED:
                    situation.wrong.add((each.check, each.family))
                yield each
            self.signals.check()
        if situation.kind != "loopback":
            self.say("an address that is used again")
            yield from self._reused(situation)
        self.say("detaching")
        yield from lifecycle.detached(situation, self._made)

    def _situation(self, node: Netlink) -> Situation:
        """Attach the first container. Raises CNIError."""
        given = session.capability_args() or {}
        situation = Situation(
            self.network,
            node,
            self.runtime,
            self.places,
            self._new(),
            beyond=self.options.beyond,
            capabilities={key: given[key] for key in given if key not in _OF_ONE},
            waiting=self.signals.at_once,
        )
        if containers.declared(self.network, "portMappings") and "portMappings" not in given:
            situation.port = containers.free_port(attachments.gather(self.places))
            situation.target = _CONTAINER_PORT
            given = {**given, **containers.mappings(situation.port, situation.target)}
        self.say("attaching")
        situation.uplink = outside.uplink_of(node)
        self._attach(situation.first, self.network, given)
        return situation

    def _attached(self, situation: Situation) -> Iterator[Row]:
        """Attach the second container, and make the host outside."""
        problem = None
        situation.alone = one_only(self.network)
        if not situation.alone:
            second = self._new()
            try:
                self._attach(second, self.network, situation.capabilities)
                situation.second = second
            except CNIError as error:
                self.signals.check()
                problem, situation.alone = error, "no second container could be attached"
        yield lifecycle.attached(situation)
        if problem is not None:
            text = f"a second container: {problem.msg}"
            yield failed("attach", 0, text, problem.details or "cni status says more")
        if not situation.beside_the_node:
            mtu = situation.uplink.mtu if situation.uplink is not None else situation.first.mtu()
            try:
                situation.outside = self._stack.enter_context(outside.made(situation.node, mtu))
            except (KernelError, OSError):
                pass  # the rows say that there is none

    def _new(self) -> Container:
        args = self._args
        if self._made:
            args = tuple(pair for pair in args if pair[0] not in _ARGS_OF_ONE)
        container = Container(self.network.name, self.options.ifname, args)
        self._made.append(container)
        return container

    def _attach(
        self, container: Container, network: NetworkList, capabilities: dict[str, Any]
    ) -> None:
        container.attach(self.runtime, network, capabilities)
        self.facts.append(
            {
                "containerID": container.attachment.container_id,
                "addresses": container.known().addresses,
            }
        )

    def _reused(self, situation: Situation) -> Iterator[Row]:
        def attach(network: NetworkList) -> Container:
            third = self._new()
            self._attach(third, network, situation.capabilities)
            return third

        try:
            yield from lifecycle.reused(situation, attach)
        except CNIError as error:
            self.signals.check()
            yield failed("reuse", 0, error.msg, error.details or "cni status says more")

    def _detached(self, node: Netlink) -> Iterator[Row]:
        """After an ADD that failed: a runtime calls DEL."""
        situation = Situation(self.network, node, self.runtime, self.places, self._made[0])
        yield from lifecycle.detached(situation, self._made)

    def clean_up(self) -> None:
        """Remove everything. Raises CNIError if a DEL fails, after all were tried."""
        # From here on a second Ctrl-C would only leave something on the node.
        interrupted = self.signals.ignore()
        problems = []
        for each in self._made:
            try:
                each.detach(self.runtime, self.network)
            except CNIError as error:
                problems.append(error)
            each.close()
        self._stack.close()
        if interrupted:
            # So that the command ends as interrupted, with the signal's exit code.
            self.signals.pending = True
        if problems and interrupted:
            output.line(f"not all is removed: {problems[0]}: cni gc {self.network.name}", err=True)


def _set_up(node: Netlink, name: str) -> None:
    device = link.find(node, name)
    if device is not None:
        link.change(node, device.index, up=True)


def _tried(name: str, check: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    """The rows of a check; one that cannot look says so, and the others go on."""
    try:
        yield from check()
    except (CNIError, KernelError, OSError) as error:
        yield skipped(name, 0, f"could not be tested: {error}")
