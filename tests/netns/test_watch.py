"""`cni reload --watch`: only firewalld and the bus are believed, and nobody can keep it waiting."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from cni.cli import watch as module
from cni.protocol.errors import CNIError
from tests.harness.build import install_dist
from tests.harness.firewalld import Bus
from tests.harness.netns import PATH as PROGRAMS
from tests.harness.netns import stop
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


def test_between_signals_there_is_something_to_look_at(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_QUIET", 0.01)
    looked = threading.Event()
    thread = threading.Thread(target=_watch_until_it_ends, args=(looked.set,), daemon=True)
    thread.start()
    assert looked.wait(20)
    bus.stop()
    thread.join(20)
    assert not thread.is_alive()


def _watch_until_it_ends(idle: Callable[[], None]) -> None:
    with contextlib.suppress(CNIError):
        module.watch(lambda _: None, idle)


@pytest.mark.parametrize("by", ["another build", "another project"])
def test_what_becomes_of_its_file(bus: Bus, tmp_path: Path, by: str) -> None:
    """The build that is installed meanwhile goes on; a file of others is named, once."""
    program = install_dist(tmp_path / "bin") / "cni"
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [program, "reload", "--watch"],
            env={"PATH": PROGRAMS, "CNI_STATE_DIR": str(tmp_path / "state"), **bus.env},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_for(log, "started: 0 of 0 restored", process)
        mark = "cni_build=ba9876543210\n" if by == "another build" else ""
        new = tmp_path / "new"
        new.write_text(f"#!/bin/sh\n{mark}echo executed: $*\nexec sleep 300\n")
        new.chmod(0o755)
        new.replace(program)
        expected = "is not of this project any more"
        if by == "another build":
            expected = "executed: reload --watch"

        def noticed() -> bool:
            """Each time the bus says something, it looks."""
            peer = Peer(bus)
            peer.own(SERVICE)
            peer.connection.close()
            return expected in log.read_text()

        wait_until(noticed, expected, process=process)
        if by == "another build":
            return
        peer = Peer(bus)
        peer.own(SERVICE)
        peer.signal("Reloaded")
        _wait_for(log, "firewalld has reloaded: 0 of 0 restored", process)
        assert log.read_text().count(expected) == 1
    finally:
        stop(process)


def _wait_for(log: Path, text: str, process: subprocess.Popen[bytes]) -> None:
    wait_until(lambda: text in log.read_text(), text, process=process)
