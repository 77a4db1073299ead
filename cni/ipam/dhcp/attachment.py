"""One attachment: acquires its leases, keeps them alive, and lets them go (docs/spec/dhcp.md)."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from resource import RLIMIT_NOFILE, getrlimit
from typing import Protocol

from ...protocol.errors import CNIError
from ...protocol.result import Result
from ...stderr import line as log
from ...stderr import lines
from . import placement
from . import result as results
from .answers6 import Wish
from .binding4 import Binding4
from .binding6 import Binding6
from .exchange import Closer, Lease, NoAnswer, Refused, Settings, describe, jitter, now
from .interface import Gone, Interface
from .state import Directory, Record
from .waiting import pauses, sleep_until, together

# Seconds between two attempts to renew, to look at the interface, to get a lost address again.
_SHORTEST_PAUSE, _LONGEST_PAUSE = 1.0, 300.0

_ACQUIRING, _BOUND, _RENEWING, _REBINDING = "acquiring", "bound", "renewing", "rebinding"
_REBOOTING, _LOST = "rebooting", "lost"


class Binding(Protocol):
    """A client of one family: `Binding4` or `Binding6`."""

    family: str

    @property
    def lease(self) -> Lease | None: ...
    async def acquire(self, until: float) -> None: ...
    async def confirm(self, until: float) -> None: ...
    async def renew(self, until: float) -> None: ...
    async def rebind(self, until: float) -> None: ...
    async def release(self) -> None: ...


class Environment:
    """The daemon's settings and tools that all attachments share.

    `gate` limits the number of simultaneous exchanges, because each has open files.
    """

    def __init__(self, settings: Settings, directory: Directory) -> None:
        self.settings = settings
        self.directory = directory
        self.closer = Closer()
        self.gate = asyncio.Semaphore(getrlimit(RLIMIT_NOFILE)[0] // 2)


class Attachment:
    """The leases of one interface, and the task that maintains them.

    `ready` is done when the addresses are leased, or has the error of the attempt.
    """

    __slots__ = ("_env", "_four", "_six", "_task", "ready", "record", "states", "waiters")

    def __init__(self, env: Environment, record: Record) -> None:
        self.record = record
        self.waiters = 0
        self.states: dict[str, str] = {}
        self._env = env
        # an option has room for 255 bytes, and a type precedes this one (RFC 2132 §9.14)
        client_id = record.key.encode("utf-8", "surrogateescape")[:254]
        self._four: Binding4 | None = None
        self._six: Binding6 | None = None
        if record.ipv4:
            self._four = Binding4(
                record.interface, client_id, record.options, env.settings, env.closer
            )
            self._four.lease = record.lease4
        if record.ipv6 or record.delegation is not None:
            wish = Wish(record.ipv6, record.delegation)
            self._six = Binding6(record.interface, client_id, wish, env.settings, env.closer)
            self._six.lease = record.lease6
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None

    # --- from outside ---

    def start(self, ended: Callable[[Attachment], None], *, again: bool = False) -> None:
        """Begin the task: acquire leases, or with `again` resume those of the record.

        `ended` is called when the task ends.
        """
        if again:
            self.ready.set_result(None)
        self._task = asyncio.create_task(self._live(again))
        self._task.add_done_callback(lambda _: ended(self))

    async def stop(self, release: bool) -> None:
        """End the task; with `release` give the addresses back and forget them."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        self._fail(CNIError("the lease was released while it was acquired"))
        if release:
            await asyncio.gather(*(self._release(binding) for binding in self._bindings()))
            # last: if the daemon is killed before, the next one knows what a repeated DEL releases
            self._env.directory.remove(self.record.key)

    def forget(self) -> None:
        """Remove the file, and what the container has of a delegated prefix; release nothing."""
        self._env.directory.remove(self.record.key)
        for binding in self._bindings():
            placement.take_prefix(self.record.interface, binding.lease)

    def result(self) -> Result:
        """The leases as a result of the specification's version 1.1.0."""
        out = Result()
        for binding in self._bindings():
            self._add_to(out, binding)
        return out

    def _add_to(self, out: Result, binding: Binding) -> None:
        priority = self.record.priority
        if binding is self._four and self._four.lease is not None:
            results.add4(out, self._four.lease, priority)
        if binding is self._six and self._six.lease is not None:
            results.add6(out, self._six.lease, priority)

    def serves(self, interface: Interface) -> bool:
        """Can an ADD for this interface be answered with these leases?

        Not if they are lost, or for another interface: the container was recreated without a DEL.
        """
        lost = self.ready.done() and self.problems()
        return self.record.interface == interface and not lost

    def problems(self) -> list[str]:
        """Problems of the leases, for CHECK."""
        problems = [
            f"the {binding.family} lease is {self.states.get(binding.family)}"
            for binding in self._bindings()
            if self.states.get(binding.family) in (_LOST, _ACQUIRING)
        ]
        if not problems and self._six is not None:
            problems += self._six.problems()
        return problems

    def missing(self) -> list[str]:
        """What the container lacks, for CHECK."""
        leases = (binding.lease for binding in self._bindings())
        return [text for each in leases for text in placement.missing(self.record.interface, each)]

    def describe(self) -> list[dict[str, object]]:
        """A row for each family, for `cni dhcp leases`."""
        return [
            results.row(
                self.record,
                binding.family,
                self.states.get(binding.family, _ACQUIRING),
                binding.lease,
            )
            for binding in self._bindings()
        ]

    def _bindings(self) -> list[Binding]:
        return [binding for binding in (self._four, self._six) if binding is not None]

    # --- the task ---

    async def _live(self, again: bool) -> None:
        try:
            if not again:
                await self._acquire_all()
            await together([self._maintain(binding, again) for binding in self._bindings()])
        except CNIError as error:
            self._fail(error)
        except Gone as reason:
            log(f"{self.record.key}: {reason}; the lease is not maintained any more")
            self.forget()
        except Exception as error:  # noqa: BLE001 a defect costs one lease, not the daemon
            lines("".join(traceback.format_exception(error)))
            self._fail(CNIError(f"unexpected {type(error).__name__}: {error}", "see the log"))

    def _fail(self, error: CNIError) -> None:
        if not self.ready.done():
            self.ready.set_exception(error)
            self.ready.exception()  # mark it as seen: asyncio complains if no request waits for it

    async def _acquire_all(self) -> None:
        """Acquire a lease of each family, or none. Raises CNIError."""
        deadline = now() + self._env.settings.resend_timeout
        try:
            await together([self._acquire(b, deadline) for b in self._bindings()])
            # before anything is put into the container: a DEL takes it out after a kill, too
            self._save()
            for binding in self._bindings():
                placement.put_prefix(self.record.interface, binding.lease)
        except (CNIError, Gone) as error:
            for binding in self._bindings():
                await self._release(binding)
            self._env.directory.remove(self.record.key)
            if isinstance(error, CNIError):
                raise
            raise CNIError(
                f'error looking up "{self.record.ifname}": {error}',
                "the container ended while its address was acquired",
            ) from None
        self.ready.set_result(None)

    async def _acquire(self, binding: Binding, deadline: float) -> None:
        """Acquire a lease, in attempts with growing pauses.

        Raises CNIError at the deadline, Gone.
        """
        self._enter(binding, _ACQUIRING)
        log(f"{self.record.key}: acquiring lease")
        reasons: dict[str, None] = {}
        for pause in pauses(self._env.settings.resend_max):
            try:
                await self._exchange(binding.acquire, deadline)
                self._bound(binding)
                return
            except (NoAnswer, Refused, OSError) as error:
                reasons[str(error)] = None
            if now() + pause >= deadline:
                break
            await asyncio.sleep(pause)
        raise CNIError(
            "no more tries",
            f"{binding.family} on {self.record.ifname}: {'; '.join(reasons)}; is there a DHCP "
            "server on this network with a free address?",
        )

    async def _maintain(self, binding: Binding, again: bool) -> None:
        """Keep a lease as long as the interface exists. Raises Gone."""
        if again:
            await self._take_up(binding)
        while True:
            if binding.lease is None or now() >= binding.lease.times.expires:
                await self._regain(binding)
                continue
            # The pause limits the work if a server grants leases of a few seconds.
            await sleep_until(max(binding.lease.times.t1, now() + _SHORTEST_PAUSE))
            await self._look()
            try:
                await self._refresh(binding)
            except Refused as refused:
                self._lose(binding, str(refused))

    async def _take_up(self, binding: Binding) -> None:
        """After a restart, ask the server whether the lease is valid; keep it if none answers."""
        await self._look()
        if binding.lease is None:
            return
        if now() >= binding.lease.times.expires:
            self._lose(binding, "expired while no daemon ran")
            return
        self._enter(binding, _REBOOTING)
        try:
            until = now() + self._env.settings.patience
            before = binding.lease
            await self._exchange(binding.confirm, min(until, before.times.expires))
            self._extended(binding, before)
        except Refused as refused:
            self._lose(binding, str(refused))
        except (NoAnswer, OSError) as error:
            self._enter(binding, _BOUND)
            log(f"{self.record.key}: lease kept unconfirmed: {error}")

    async def _refresh(self, binding: Binding) -> None:
        """Renew until T2, then rebind until the lease expires. Raises Refused, Gone."""
        assert binding.lease is not None
        times = binding.lease.times
        steps = ((_RENEWING, binding.renew, times.t2), (_REBINDING, binding.rebind, times.expires))
        for state, step, end in steps:
            self._enter(binding, state)
            while now() < end:
                before = binding.lease
                try:
                    await self._exchange(step, min(end, now() + self._env.settings.patience))
                    self._extended(binding, before)
                    return
                except (NoAnswer, OSError) as error:
                    log(f"{self.record.key}: {state}: {error}")
                # RFC 2131 §4.4.5: after half of the time that is left
                pause = max((end - now()) / 2, _SHORTEST_PAUSE)
                await sleep_until(min(now() + pause, end))
                await self._look()
        self._lose(binding, "expired")

    def _extended(self, binding: Binding, before: Lease) -> None:
        """Note a renewed lease, and replace what has changed. Raises Gone."""
        self._bound(binding)
        after = binding.lease
        assert after is not None
        # A kill between two of these steps leaves nothing in the container that no file names.
        placement.leave(self.record.interface, before, after)
        self._save()
        placement.follow(self.record.interface, before, after)
        self._report_change(describe(before), after)

    def _report_change(self, before: str, lease: Lease) -> None:
        if before != describe(lease):
            log(
                f"{self.record.key}: address changed from {before} to {describe(lease)}: "
                "the runtime does not know; recreate the container"
            )

    def _lose(self, binding: Binding, reason: str) -> None:
        """Take a lost address off the link, and set the link down unless it has another."""
        log(f"{self.record.key}: lease lost: {reason}; interface {self.record.ifname} is set down")
        self._enter(binding, _LOST)
        lease = binding.lease
        if lease is None:
            return
        alone = not self._other_is_bound(binding)
        placement.take(self.record.interface, lease, set_down=alone)
        lease.end()
        self._save()

    def _other_is_bound(self, binding: Binding) -> bool:
        states = (s for family, s in self.states.items() if family != binding.family)
        return any(state not in (_LOST, _ACQUIRING) for state in states)

    async def _regain(self, binding: Binding) -> None:
        """Acquire a lease again, however long it takes, and put it on the link. Raises Gone."""
        before = describe(binding.lease)
        pause = _SHORTEST_PAUSE
        while True:
            await asyncio.sleep(jitter(pause, pause / 10))
            pause = min(pause * 2, _LONGEST_PAUSE)
            await self._look()
            try:
                await self._exchange(binding.acquire, now() + self._env.settings.resend_timeout)
                break
            except (NoAnswer, Refused, OSError, CNIError) as error:
                log(f"{self.record.key}: {error}")
            if not self._other_is_bound(binding):
                placement.set_link_down(self.record.interface)
        assert binding.lease is not None
        self._bound(binding)
        self._save()
        # with the routes that it lost when the link went down
        result = Result()
        self._add_to(result, binding)
        placement.put(self.record.interface, binding.lease, result)
        self._report_change(before, binding.lease)

    async def _release(self, binding: Binding) -> None:
        # the container stops using a prefix before the server may delegate it again
        placement.take_prefix(self.record.interface, binding.lease)
        if binding.lease is None or now() >= binding.lease.times.expires:
            return
        try:
            await self._exchange(lambda _: binding.release(), now())
            log(f"{self.record.key}: released {describe(binding.lease)}")
        except (Gone, NoAnswer, OSError) as error:
            log(f"{self.record.key}: could not send RELEASE: {error}")

    # --- small parts ---

    async def _exchange(self, step: Callable[[float], Awaitable[None]], until: float) -> None:
        async with self._env.gate:
            await step(until)

    async def _look(self) -> None:
        """Require that the interface still exists. Raises Gone.

        While the daemon cannot look, for lack of descriptors or memory, it tries again: a container
        that cannot be seen is not gone.
        """
        pause = _SHORTEST_PAUSE
        while True:
            try:
                with self.record.interface.visit():
                    return
            except OSError as error:
                log(f"{self.record.key}: cannot look at {self.record.ifname}: {error}")
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)

    def _enter(self, binding: Binding, state: str) -> None:
        self.states[binding.family] = state

    def _bound(self, binding: Binding) -> None:
        self._enter(binding, _BOUND)
        lease = binding.lease
        assert lease is not None
        left = lease.times.expires - now()
        end = "never" if left == float("inf") else f"in {left:.0f} s"
        log(f"{self.record.key}: lease acquired: {describe(lease)}, expiration is {end}")

    def _save(self) -> None:
        if self._four is not None:
            self.record.lease4 = self._four.lease
        if self._six is not None:
            self.record.lease6 = self._six.lease
        self._env.directory.save(self.record)
