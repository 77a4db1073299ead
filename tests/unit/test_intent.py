"""What is kept of an ADD for `cni reload`: files that are whole, found by owner, locked in use."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import threading
from pathlib import Path

import pytest

from cni import files, intent
from cni.owner import Owner
from cni.protocol.errors import CNIError
from cni.protocol.request import Request
from cni.protocol.result import Interface, Result
from tests.harness.wait import wait_for_open

C1 = Owner("net", "c1", "eth0")
C2 = Owner("net", "c2", "eth0")
OTHER = Owner("other", "c1", "eth0")
RESULT = Result(interfaces=[Interface(name="veth0", mac="02:00:00:00:00:01")])


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"CNI_STATE_DIR": str(tmp_path)}


def save(env: dict[str, str], owner: Owner, plugin: str = "bridge", **conf: object) -> None:
    variables = {**env, "CNI_CONTAINERID": owner.container_id, "CNI_IFNAME": owner.ifname, "A": "b"}
    stdin = json.dumps({"cniVersion": "0.2.0", "Name": owner.network, **conf}).encode()
    request = Request("ADD", owner.container_id, "/ns", owner.ifname, "", [], stdin, variables)
    intent.save(plugin, owner, request, RESULT)


def kept(env: dict[str, str]) -> list[tuple[str, Owner]]:
    found: list[tuple[str, Owner]] = []
    intent.for_each(env, lambda each: found.append((each.plugin, each.owner)))
    return sorted(found)


def test_what_is_kept_comes_back(env: dict[str, str]) -> None:
    save(env, C1, ipMasq=True)
    found = intent.find("bridge", C1, env)
    assert found is not None
    assert found.owner == C1
    assert found.config == {"cniVersion": "0.2.0", "Name": "net", "ipMasq": True}
    # All of the result, whatever version the runtime spoke; nothing of its other environment.
    assert found.result["interfaces"] == [{"name": "veth0", "mac": "02:00:00:00:00:01"}]
    assert set(found.env) == {"CNI_STATE_DIR", "CNI_CONTAINERID", "CNI_IFNAME"}
    assert intent.find("portmap", C1, env) is None


def test_only_root_reads_it(env: dict[str, str]) -> None:
    save(env, C1)
    where = intent.directory(env)
    assert [os.stat(f"{where}/{name}").st_mode & 0o777 for name in os.listdir(where)] == [0o600]


def test_one_is_dropped(env: dict[str, str]) -> None:
    for owner in (C1, C2, OTHER):
        save(env, owner)
    save(env, C1, "portmap")
    intent.drop("bridge", C1, env)
    intent.drop("bridge", C1, env)
    assert kept(env) == sorted([("bridge", C2), ("bridge", OTHER), ("portmap", C1)])


def test_gc_drops_what_its_network_does_not_keep(env: dict[str, str]) -> None:
    for owner in (C1, C2, OTHER):
        save(env, owner)
    save(env, C1, "portmap")
    intent.drop_others("bridge", "net", [C2], env)
    assert kept(env) == sorted([("bridge", C2), ("bridge", OTHER), ("portmap", C1)])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"plugin": 1}', '{"env": {}}', "\xff"])
def test_foreign_files_are_left_out(env: dict[str, str], content: str) -> None:
    save(env, C1)
    with open(f"{intent.directory(env)}/0-foreign.bridge", "w", encoding="latin-1") as file:
        file.write(content)
    assert kept(env) == [("bridge", C1)]


def test_nothing_kept_is_no_error(env: dict[str, str]) -> None:
    assert kept(env) == []
    intent.drop("bridge", C1, env)
    intent.drop_others("bridge", "net", [], env)


def test_del_waits_while_the_rules_are_made(env: dict[str, str]) -> None:
    save(env, C1)
    order: list[str] = []

    def delete() -> None:
        intent.drop("bridge", C1, env)
        order.append("dropped")

    thread = threading.Thread(target=delete)

    def work(_: intent.Intent) -> None:
        thread.start()
        (file,) = (path for path in Path(intent.directory(env)).iterdir() if path.is_file())
        wait_for_open(os.getpid(), file, 2)  # this thread has it open as well
        order.append("made")

    intent.for_each(env, work)
    thread.join()
    assert order == ["made", "dropped"]
    assert kept(env) == []


def test_what_was_replaced_meanwhile_is_done_again(env: dict[str, str]) -> None:
    save(env, C1, mtu=1)
    seen: list[object] = []

    def work(each: intent.Intent) -> None:
        seen.append(each.config["mtu"])
        if len(seen) == 1:
            save(env, C1, mtu=2)

    intent.for_each(env, work)
    assert seen == [1, 2]


def test_no_lock_stays(env: dict[str, str]) -> None:
    save(env, C1)
    assert kept(env)
    where = intent.directory(env)
    fd = os.open(f"{where}/{os.listdir(where)[0]}", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)


@pytest.mark.parametrize("verb", ["DEL", "GC"])
def test_what_a_killed_add_began_to_keep_goes_too(env: dict[str, str], verb: str) -> None:
    save(env, C1)
    where = intent.directory(env)
    (name,) = os.listdir(where)
    os.rename(f"{where}/{name}", f"{where}/{name}~")
    assert kept(env) == []
    dropped = remove(env, verb)
    assert dropped.intents == []
    dropped.finish()
    assert os.listdir(where) == []


@pytest.mark.parametrize("verb", ["DEL", "GC"])
def test_a_removal_that_did_not_finish_is_found_again(env: dict[str, str], verb: str) -> None:
    """Its rules may still be there; they are not made again."""
    save(env, C1)
    save(env, OTHER)
    for _ in range(2):
        dropped = remove(env, verb)
        assert [each.owner for each in dropped.intents] == [C1]
        assert kept(env) == [("bridge", OTHER)]
        assert [each.owner for each in intent.all_of("bridge", env)] == [OTHER]
    # It is added once more meanwhile.
    save(env, C1)
    dropped = remove(env, verb)
    assert [each.owner for each in dropped.intents] == [C1, C1]
    dropped.finish()
    assert remove(env, verb).intents == []
    assert len(os.listdir(intent.directory(env))) == 1


def remove(env: dict[str, str], verb: str) -> intent.Dropped:
    if verb == "DEL":
        return intent.drop("bridge", C1, env)
    return intent.drop_others("bridge", "net", [], env)


def test_those_of_one_plugin(env: dict[str, str]) -> None:
    for owner in (C1, C2, OTHER):
        save(env, owner)
    assert {each.owner for each in intent.all_of("bridge", env)} == {C1, C2, OTHER}
    assert intent.all_of("portmap", env) == []


class Disk:
    """Some files cannot be read, as with a broken disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broken = ""
        real = files.read_open

        def read(fd: int, limit: int, path: str = "", expected: int = 0) -> bytes:
            if self.broken and path.endswith(self.broken):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(fd, limit, path, expected)

        monkeypatch.setattr(files, "read_open", read)


@pytest.mark.parametrize("verb", ["DEL", "GC"])
@pytest.mark.parametrize("broken", [".bridge", ".bridge-"])
def test_what_cannot_be_read_is_not_none(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch, verb: str, broken: str
) -> None:
    save(env, C1)
    if broken == ".bridge-":
        remove(env, verb)  # one that did not finish
    disk = Disk(monkeypatch)
    disk.broken = broken
    for _ in range(2):
        dropped = remove(env, verb)
        assert dropped.intents == []
        with pytest.raises(CNIError, match=r"cannot read or remove .*input/output error"):
            dropped.finish()
        assert kept(env) == []  # reload does not see it
        disk.broken = ".bridge-"
    disk.broken = ""
    dropped = remove(env, verb)
    assert [each.owner for each in dropped.intents] == [C1]
    dropped.finish()
    assert os.listdir(intent.directory(env)) == []


def test_the_others_go_when_one_cannot_be_read(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(env, C1)
    save(env, C2)
    Disk(monkeypatch).broken = f"{C1.key}.bridge"
    dropped = intent.drop_others("bridge", "net", [], env)
    assert [each.owner for each in dropped.intents] == [C2]
    with pytest.raises(CNIError, match=C1.key):
        dropped.finish()
    assert os.listdir(intent.directory(env)) == [f"{C1.key}.bridge-"]


def test_without_descriptors_nothing_is_known(env: dict[str, str]) -> None:
    save(env, C1)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    errors: list[OSError] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        dropped = intent.drop("bridge", C1, env)
        with pytest.raises(OSError, match="Too many open files"):
            intent.find("bridge", C1, env)
        intent.for_each(env, lambda _: pytest.fail("read it"), errors.append)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert [error.errno for error in errors] == [errno.EMFILE]
    with pytest.raises(CNIError, match="too many open files"):
        dropped.finish()
    assert kept(env) == [("bridge", C1)]


@pytest.mark.parametrize("kind", ["fifo", "link", "directory", "large"])
def test_nobody_waits_for_what_is_no_file(
    env: dict[str, str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(env, C1)
    path = f"{intent.directory(env)}/{C1.key}.bridge"
    os.unlink(path)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        os.symlink("/etc/hostname", path)
    elif kind == "directory":
        os.mkdir(path)
    else:
        monkeypatch.setattr(intent, "_MAX_SIZE", 10)
        with open(path, "wb") as file:
            file.write(bytes(11))
    assert intent.find("bridge", C1, env) is None
    assert intent.all_of("bridge", env) == []
    errors: list[OSError] = []
    intent.for_each(env, lambda _: pytest.fail("read it"), errors.append)
    assert [error.filename for error in errors] == [path]
    dropped = intent.drop("bridge", C1, env)
    assert dropped.intents == []
    dropped.finish()
    assert not os.path.lexists(path)


def test_a_key_that_is_given_twice_is_kept_as_it_was_read(env: dict[str, str]) -> None:
    variables = {**env, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0"}
    stdin = b'{"name": "net", "runtimeConfig": {"portMappings": [1]}, "runtimeConfig": {"mac": ""}}'
    intent.save("bridge", C1, Request("ADD", "c1", "", "eth0", "", [], stdin, variables), RESULT)
    found = intent.find("bridge", C1, env)
    assert found is not None
    assert found.config["runtimeConfig"] == {"portMappings": [1], "mac": ""}


@pytest.mark.parametrize(
    "extra", [b'"note": "caf\xe9"', b'"note": "\\ud800"', b'"deep": ' + b"[" * 3000 + b"]" * 3000]
)
def test_what_only_go_reads_comes_back(env: dict[str, str], extra: bytes) -> None:
    variables = {**env, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_ARGS": "A=\udcff"}
    stdin = b'{"cniVersion": "1.0.0", "name": "net", "mtu": 1400, ' + extra + b"}"
    request = Request("ADD", "c1", "/ns", "eth0", "", [], stdin, variables)
    intent.save("bridge", C1, request, RESULT)
    found = intent.find("bridge", C1, env)
    assert found is not None
    assert found.owner == C1
    assert found.config["mtu"] == 1400
    assert intent.drop("bridge", C1, env).intents == [found]
