"""Sockets of daemons: handed over, made, and never taken from somebody who listens."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cni import systemd

SHOW = """
import os, sys
from cni import systemd
handed = systemd.listen_fds()
print([each.name for each in handed], [os.get_inheritable(each.fd) for each in handed])
print(any(key.startswith("LISTEN_") for key in os.environ))
"""


def run(code: str, fds: int, **env: str) -> str:
    """What a Python program prints that has `fds` descriptors from number 3 on."""

    def prepare() -> None:
        null = os.open(os.devnull, os.O_RDWR)
        for number in range(3, 3 + fds):
            os.dup2(null, number)
            os.set_inheritable(number, True)

    program = [
        "sh",
        "-c",
        '[ "$LISTEN_PID" != self ] || export LISTEN_PID=$$; exec "$@"',
        "sh",
        sys.executable,
        "-c",
        code,
    ]
    done = subprocess.run(
        program,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.getcwd(), **env},
        capture_output=True,
        text=True,
        preexec_fn=prepare,
        close_fds=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("count", "names", "labels"),
    [
        ("1", "", "['']"),
        ("1", "one", "['one']"),
        ("2", "one:two", "['one', 'two']"),
        ("2", "one", "['one', '']"),
        ("0", "", "[]"),
        ("x", "", "[]"),
    ],
)
def test_descriptors_that_were_handed_over(count: str, names: str, labels: str) -> None:
    env = {"LISTEN_PID": "self", "LISTEN_FDS": count, "LISTEN_FDNAMES": names}
    output = run(SHOW, 2, **env)
    assert output.startswith(labels)
    assert "True" not in output, "inherited, or the variables are left"


def test_descriptors_of_another_process() -> None:
    assert run(SHOW, 1, LISTEN_PID="1", LISTEN_FDS="1") == "[] []\nFalse\n"


def test_a_socket_survives_exec(tmp_path: Path) -> None:
    code = f"""
import os, socket, sys
from cni import systemd
listener = systemd.listen_unix({str(tmp_path / "s")!r}, 8)
show = "from cni import systemd; import socket; (one,) = systemd.listen_fds(); "
show += "print(one.name, systemd.is_listening(socket.socket(fileno=one.fd)))"
with systemd.hand_on(listener.fileno(), "again") as variables:
    try:
        os.execve("/nowhere", ["nowhere"], {{**os.environ, **variables}})
    except FileNotFoundError:
        pass
assert systemd.is_listening(listener)
with systemd.hand_on(listener.fileno(), "again") as variables:
    env = {{**os.environ, **variables}}
    os.execve(sys.executable, [sys.executable, "-c", show], env)
"""
    assert run(code, 0) == "again True\n"


def test_only_the_owner_may_connect(tmp_path: Path) -> None:
    path = tmp_path / "new" / "s"
    with systemd.listen_unix(str(path), 8, directory_mode=0o700):
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert [each.name for each in path.parent.iterdir()] == ["s"]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


@pytest.mark.parametrize("size", [97, 101, 107])
def test_long_paths(tmp_path: Path, size: int) -> None:
    """Up to the kernel's limit, although the socket has another name first."""
    name = "s" * (size - len(str(tmp_path)) - 1)
    path = tmp_path / name
    assert len(str(path)) == size
    with systemd.listen_unix(str(path), 8), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    assert [each.name for each in tmp_path.iterdir()] == [name]
    with pytest.raises(OSError, match="longer than"):
        systemd.listen_unix(str(tmp_path / ("s" * 108)), 8)


def test_who_listens_keeps_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with systemd.listen_unix(str(path), 0) as first:
        before = systemd.identity(str(path))
        with socket.socket(socket.AF_UNIX) as queued:
            queued.connect(str(path))  # the queue is full now
            with pytest.raises(systemd.AddressInUse) as caught:
                systemd.listen_unix(str(path), 8)
        assert caught.value.errno == errno.EADDRINUSE
        assert systemd.identity(str(path)) == before
        assert systemd.is_listening(first)
    assert [each.name for each in tmp_path.iterdir()] == ["s"]


def test_a_dead_process_s_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    systemd.listen_unix(str(path), 8).close()
    with systemd.listen_unix(str(path), 8), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_what_is_no_socket_stays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s"
    if kind == "file":
        path.write_text("keep")
    elif kind == "link":
        path.symlink_to("nowhere")
    else:
        path.mkdir()
    with pytest.raises(systemd.AddressInUse):
        systemd.listen_unix(str(path), 8)
    assert [each.name for each in tmp_path.iterdir()] == ["s"]


def test_of_many_that_start_one_gets_it(tmp_path: Path) -> None:
    """Also when each of them finds the same dead socket."""
    path = tmp_path / "s"
    code = f"""
import sys
from cni import systemd
print("ready", flush=True)
sys.stdin.readline()
try:
    listener = systemd.listen_unix({str(path)!r}, 8)
    print("got", flush=True)
    sys.stdin.readline()
except OSError:
    print("lost", flush=True)
"""
    for _ in range(3):
        systemd.listen_unix(str(path), 8).close()
        children = [
            subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(4)
        ]
        try:
            for child in children:
                assert child.stdout is not None
                assert child.stdout.readline() == "ready\n"
            for child in children:
                assert child.stdin is not None
                child.stdin.write("\n")
                child.stdin.flush()
            answers = [child.stdout.readline().strip() for child in children if child.stdout]
            assert sorted(answers) == ["got", "lost", "lost", "lost"]
        finally:
            for child in children:
                child.communicate("\n")


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    address = f"@{tmp_path}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind("\0" + address[1:] if abstract else address)
        heard.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        systemd.notify("READY=1")
        assert heard.recv(100) == b"READY=1"
    systemd.notify("STOPPING=1")  # nobody is there any more
    monkeypatch.delenv("NOTIFY_SOCKET")
    systemd.notify("STOPPING=1")


def test_the_umask_stays(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        systemd.listen_unix(str(tmp_path / "a" / "s"), 1).close()
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
