"""Fixtures for the tests of the built file: real builds, real installs, no stand-ins."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.build import build_dist, once
from tests.harness.wait import wait_until

from .native import BUILD, Client, Server, compile_client, hello, reply
from .running import build_copy, install


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of dist/cni, so that a rebuild meanwhile does no harm."""
    return Path(shutil.copy(build_dist(), tmp_path_factory.mktemp("dist")))


@pytest.fixture(scope="session")
def other_dist(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another build, as the next version would be."""
    return once(tmp_path_factory, "other", lambda target: build_copy(target, "another build"))


@pytest.fixture(scope="session")
def third_dist(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A third build."""
    return once(tmp_path_factory, "third", lambda target: build_copy(target, "a third build"))


@pytest.fixture(scope="session")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with dist/cni installed, for tests that only run it."""
    directory = tmp_path_factory.mktemp("installed") / "bin"
    install(dist, directory)
    return directory


@pytest.fixture(scope="session")
def installed_script(script_dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the file that starts with the script."""
    directory = tmp_path_factory.mktemp("installed-script") / "bin"
    install(script_dist, directory)
    return directory


@pytest.fixture(scope="session")
def script_dist(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a machine without a C compiler builds: the file starts with the script."""
    return once(tmp_path_factory, "script", lambda target: build_copy(target, compiler="none"))


# --- the native client ----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client in its directory, installed for a Python that is the recorder."""
    place = tmp_path_factory.mktemp("client")
    compile_client(place, str(place / "recorder"))
    tree = place / f".cni-{BUILD}"
    tree.mkdir()
    (tree / "run.py").write_text("")
    return place


@pytest.fixture
def client(compiled: Path, tmp_path: Path) -> Client:
    record = tmp_path / "record"
    record.mkdir()
    return Client(compiled / "bridge", record, tmp_path / "s")


@pytest.fixture
def serve(client: Client) -> Iterator[Callable[..., Server]]:
    made: list[Server] = []

    def start(
        greeting: bytes | None = None, answer: bytes | None = reply(0), *, slow: bool = False
    ) -> Server:
        greeting = hello() if greeting is None else greeting
        made.append(Server(client.socket, greeting, answer, slow=slow))
        return made[-1]

    yield start
    for server in made:
        server.close()


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """The path of another network namespace."""
    child = subprocess.Popen(["unshare", "-n", "sleep", "600"])
    path = f"/proc/{child.pid}/ns/net"
    ours = os.stat("/proc/self/ns/net").st_ino
    wait_until(lambda: os.stat(path).st_ino != ours, "another namespace")
    yield path
    child.kill()
    child.wait()
