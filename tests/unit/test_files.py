"""Files that are whole or not there, and files of others that nobody waits for."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from cni import files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LIMIT = 4096


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file becomes larger than LIMIT bytes: a write takes a part, and the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_is_made_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data in (b"first", b"", b"x" * 100_000):
        files.replace(str(path), data)
        assert path.read_bytes() == data
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o755])
def test_the_mode_is_what_was_asked_for(tmp_path: Path, mode: int) -> None:
    before = os.umask(0o077)
    try:
        files.replace(str(tmp_path / "file"), b"x", mode, sync=True)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_relative_to_a_directory(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    files.replace("file", b"data", dir_fd=fd, temporary=".new", attributes={"user.cni": b"1"})
    assert files.read("file", 10, dir_fd=fd) == b"data"
    os.close(fd)
    assert os.getxattr(tmp_path / "file", "user.cni") == b"1"


def test_a_short_write_is_an_error_and_the_old_file_stays(tmp_path: Path, full_disk: None) -> None:
    path = tmp_path / "file"
    files.replace(str(path), b"old")
    with pytest.raises(OSError, match="File too large"):
        files.replace(str(path), b"x" * (LIMIT + 1))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_signal_in_between_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(BaseException):
        pass

    def stop(*_: object) -> None:
        raise Stopped

    def interrupted(fd: int, data: bytes) -> None:
        os.write(fd, data[:1])
        signal.raise_signal(signal.SIGUSR1)

    path = tmp_path / "file"
    files.replace(str(path), b"old")
    monkeypatch.setattr(files, "write_all", interrupted)
    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with pytest.raises(Stopped):
            files.replace(str(path), b"new")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("left", ["file", "link", "fifo"])
def test_what_a_killed_one_left_is_taken_over(tmp_path: Path, left: str) -> None:
    path, temporary = tmp_path / "file", tmp_path / "file~"
    other = tmp_path / "other"
    other.write_bytes(b"other")
    if left == "file":
        temporary.write_bytes(b"a longer text than the new one")
    elif left == "link":
        temporary.symlink_to(other)
    else:
        os.mkfifo(temporary)
    files.replace(str(path), b"new")
    assert path.read_bytes() == b"new"
    assert other.read_bytes() == b"other"
    assert sorted(os.listdir(tmp_path)) == ["file", "other"]


def test_a_directory_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError):
        files.replace(str(tmp_path / "file"), b"x")
    assert os.listdir(tmp_path) == ["file"]


def make_socket(path: Path) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.close()


UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "directory": (lambda path: path.mkdir(), "a directory"),
    "fifo": (os.mkfifo, "a FIFO"),
    "link": (lambda path: path.symlink_to("/etc/hostname"), "a symbolic link"),
    "loop": (lambda path: path.symlink_to(path), "a symbolic link"),
    "socket": (make_socket, "a socket"),
    "large": (lambda path: path.write_bytes(bytes(LIMIT + 1)), "larger than 4096 bytes"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_what_is_no_file_of_ours_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    make, text = UNUSABLE[kind]
    make(path)
    with pytest.raises(files.Unusable) as error:
        files.read(str(path), LIMIT)
    assert text in (error.value.strerror or "")
    assert error.value.filename == str(path)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/tty", "/dev/null"])
def test_devices_are_refused(path: str) -> None:
    with pytest.raises(OSError, match=r"character device|No such device"):
        files.read(path, LIMIT)


def test_a_link_is_followed_where_that_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    (tmp_path / "link").symlink_to("file")
    assert files.read(str(tmp_path / "link"), 10, follow=True) == b"data"
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "to-fifo").symlink_to("fifo")
    with pytest.raises(files.Unusable, match="a FIFO"):
        files.read(str(tmp_path / "to-fifo"), 10, follow=True)
    (tmp_path / "to-nothing").symlink_to("nothing")
    with pytest.raises(FileNotFoundError):
        files.read(str(tmp_path / "to-nothing"), 10, follow=True)


def test_the_limit_is_exact_and_size_is_what_comes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(LIMIT))
    assert len(files.read(str(tmp_path / "file"), LIMIT)) == LIMIT
    # A file of /proc says that it is empty.
    assert files.read("/proc/self/status", 1 << 20).startswith(b"Name:")


def test_none_is_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.read(str(tmp_path / "file"), LIMIT)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a file system")
def test_a_full_file_system(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "small", disk], check=True)
    try:
        files.replace(str(disk / "file"), b"old")
        with pytest.raises(OSError, match="No space left"):
            files.replace(str(disk / "file"), bytes(20_000))
        assert (disk / "file").read_bytes() == b"old"
        assert os.listdir(disk) == ["file"]
    finally:
        subprocess.run(["umount", disk], check=True)
