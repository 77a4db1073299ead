"""Asking the bus who is there: addresses, and answers of a bus that misbehaves."""

from __future__ import annotations

import socket
import struct
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.plugins.firewall import dbus

if TYPE_CHECKING:
    from pathlib import Path

OK = b"OK 0123456789abcdef\r\n"


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("unix:path=/run/dbus/system_bus_socket", b"/run/dbus/system_bus_socket"),
        ("unix:path=/a,guid=00ff", b"/a"),
        ("unix:guid=00ff,path=/a%20b%3b", b"/a b;"),
        ("unix:abstract=/tmp/x", b"\0/tmp/x"),
        ("tcp:host=localhost,port=1;unix:path=/b", b"/b"),
    ],
)
def test_addresses(address: str, path: bytes) -> None:
    assert dbus._socket_path(address) == path


@pytest.mark.parametrize("address", ["", "tcp:host=x", "unix:", "unix:path=/%zz", "x"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(dbus.DBusError):
        dbus._socket_path(address)


@given(st.text())
def test_any_address(address: str) -> None:
    try:
        dbus._socket_path(address)
    except dbus.DBusError:
        pass


def reply(body: bytes, *, kind: int = 2, serial: int = 2) -> bytes:
    fields = bytes((5, 1)) + b"u\0" + struct.pack("<I", serial)
    head = struct.pack("<4BIII", ord("l"), kind, 1, 1, len(body), 7, len(fields)) + fields
    return head + b"\0" * (-len(head) % 8) + body


def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes) -> tuple[object, bytes]:
    """What name_has_owner says when the bus answers so, and what the bus was told."""
    path = tmp_path / "bus"
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={path}")
    heard = b""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            nonlocal heard
            connection, _ = listener.accept()
            with connection:
                heard = connection.recv(4096)
                connection.sendall(OK)
                heard += connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            return dbus.name_has_owner("org.example.Name"), heard
        except dbus.DBusError as error:
            return error, heard
        finally:
            thread.join()


@pytest.mark.parametrize("owned", [True, False])
def test_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owned: bool) -> None:
    noise = reply(b"\x05\0\0\0:1.23\0", serial=1) + reply(b"", kind=4, serial=9)
    said, heard = ask(tmp_path, monkeypatch, noise + reply(struct.pack("<I", owned)))
    assert said is owned
    assert heard.startswith(b"\0AUTH EXTERNAL ")
    assert b"NameHasOwner\0" in heard
    assert heard.endswith(b"\x10\0\0\0org.example.Name\0")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"l",
        reply(b"\0\0\0\0", kind=3),
        reply(b"x"),
        b"B" + reply(b"\1\0\0\0")[1:],
        b"\xff" * 64,
    ],
)
def test_a_bus_that_misbehaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    said, _ = ask(tmp_path, monkeypatch, answer)
    assert isinstance(said, dbus.DBusError)


def test_no_bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/none")
    with pytest.raises(dbus.DBusError, match=r"no bus at .*/none: No such file"):
        dbus.name_has_owner("org.example.Name")
