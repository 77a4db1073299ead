"""`cni reload --watch`: only firewalld and the bus are believed, and nobody can keep it waiting."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from cni.cli import watch as module
from tests.harness.firewalld import Bus
from tests.harness.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

jeepney = pytest.importorskip("jeepney")
blocking = pytest.importorskip("jeepney.io.blocking")

OPEN = blocking.open_dbus_connection
SERVICE = "org.fedoraproject.FirewallD1"
PATH = "/org/fedoraproject/FirewallD1"
BUS = "org.freedesktop.DBus"


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bus]:
    running = Bus(tmp_path)
    wait_until(lambda: accepts(running), "the bus takes connections")
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", running.env["DBUS_SYSTEM_BUS_ADDRESS"])
    yield running
    running.stop()
    while Watching.threads:
        Watching.threads.pop().join(20)
    while Peer.connections:
        Peer.connections.pop().close()


def accepts(bus: Bus) -> bool:
    try:
        Peer(bus)
    except OSError:  # its socket is there, and it does not listen yet
        return False
    return True


class Peer:
    """A program on the bus."""

    connections: list[Any] = []

    def __init__(self, bus: Bus) -> None:
        self.connection = OPEN(bus.env["DBUS_SYSTEM_BUS_ADDRESS"])
        self.connections.append(self.connection)

    def own(self, name: str) -> None:
        from jeepney.bus_messages import message_bus

        self.connection.send_and_get_reply(message_bus.RequestName(name))

    def signal(
        self,
        member: str,
        *,
        to: str | None = None,
        path: str = PATH,
        interface: str = SERVICE,
        signature: str | None = None,
        body: tuple[Any, ...] = (),
    ) -> None:
        emitter = jeepney.DBusAddress(path, interface=interface)
        message = jeepney.new_signal(emitter, member, signature, body)
        if to:
            message.header.fields[jeepney.HeaderFields.destination] = to
        self.connection.send_message(message)


class Watching:
    """watch() in a thread; `reasons` are what it has said."""

    threads: list[threading.Thread] = []

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.condition = threading.Condition()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        self.threads.append(self.thread)
        self.wait_for(lambda: self.reasons == ["started"])

    def _run(self) -> None:
        try:
            module.watch(self._changed)
        except Exception as error:
            self._changed(f"ended: {error}")

    def _changed(self, reason: str) -> None:
        with self.condition:
            self.reasons.append(reason)
            self.condition.notify_all()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self.condition:
            assert self.condition.wait_for(condition, 20), self.reasons


@pytest.fixture
def watcher_name(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The unique name of the watcher's connection, to which everybody may send."""
    names: list[str] = []
    real = blocking.open_dbus_connection

    def opened(address: str) -> Any:
        connection = real(address)
        names.append(connection.unique_name)
        return connection

    monkeypatch.setattr(blocking, "open_dbus_connection", opened)
    return names


def test_firewalld_is_believed(bus: Bus) -> None:
    """One that runs already, and one that comes."""
    first = Peer(bus)
    first.own(SERVICE)
    watching = Watching()
    first.signal("Reloaded")
    watching.wait_for(lambda: watching.reasons[1:] == ["firewalld has reloaded"])
    first.connection.close()
    watching.wait_for(lambda: watching.reasons[2:] == ["firewalld has ended"])
    second = Peer(bus)
    second.own(SERVICE)
    watching.wait_for(lambda: watching.reasons[3:] == ["firewalld has started"])
    second.signal("Reloaded")
    watching.wait_for(lambda: watching.reasons[4:] == ["firewalld has reloaded"])


FORGED = {
    "Reloaded": {"member": "Reloaded"},
    "NameOwnerChanged": {
        "member": "NameOwnerChanged",
        "path": "/org/freedesktop/DBus",
        "interface": BUS,
        "signature": "sss",
        "body": (SERVICE, "", ":1.99"),
    },
    "NameOwnerChanged without a body": {
        "member": "NameOwnerChanged",
        "path": "/org/freedesktop/DBus",
        "interface": BUS,
    },
    "NameOwnerChanged with a number": {
        "member": "NameOwnerChanged",
        "path": "/org/freedesktop/DBus",
        "interface": BUS,
        "signature": "u",
        "body": (7,),
    },
    "Reloaded of something else": {"member": "Reloaded", "interface": "org.example.Other"},
}


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
def test_others_are_not(
    bus: Bus, watcher_name: list[str], forged: dict[str, Any], running: bool
) -> None:
    """They may send whatever they like to the watcher itself."""
    real, other = Peer(bus), Peer(bus)
    if running:
        real.own(SERVICE)
    watching = Watching()
    for _ in range(5):
        other.signal(to=watcher_name[0], **forged)
    if not running:
        real.own(SERVICE)
        watching.wait_for(lambda: len(watching.reasons) > 1)
        assert watching.reasons.pop() == "firewalld has started"
    real.signal("Reloaded", signature="s", body=("more than documented",))
    real.signal("Reloaded", path="/somewhere/else")
    real.signal("Reloaded")
    watching.wait_for(lambda: len(watching.reasons) > 1)
    assert watching.reasons == ["started", "firewalld has reloaded"]


def test_who_floods_does_not_keep_it_from_reloading(
    bus: Bus, watcher_name: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither with signals of his own nor with firewalld's."""
    monkeypatch.setattr(module, "_LONGEST_SETTLE", 0.5)
    real, other = Peer(bus), Peer(bus)
    real.own(SERVICE)
    watching = Watching()
    end = threading.Event()

    def flood(peer: Peer, to: str | None) -> None:
        while not end.is_set():
            peer.signal("Reloaded", to=to)
            time.sleep(0.001)

    threads = [
        threading.Thread(target=flood, args=(peer, to))
        for peer, to in ((real, None), (other, watcher_name[0]))
    ]
    for thread in threads:
        thread.start()
    try:
        watching.wait_for(lambda: watching.reasons.count("firewalld has reloaded") >= 2)
    finally:
        end.set()
        for thread in threads:
            thread.join()


def test_the_end_of_the_bus_is_an_error(bus: Bus) -> None:
    watching = Watching()
    bus.stop()
    watching.wait_for(lambda: watching.reasons[-1].startswith("ended: cannot listen"))
