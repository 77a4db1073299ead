"""What the command line does as a container runtime: docs/spec/protocol.md §7, §8.1, §8.2, §9.

The plugins here are stand-ins for somebody else's: a shell script that writes down what it was
given, and answers with what the test has put beside it.
"""

from __future__ import annotations

import base64
import json
import os
import platform
import signal
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cni.cli import cache, gojson, session, target
from cni.cli.cache import Attachment, Cache, outcome
from cni.cli.conflist import NetworkList, from_bytes
from cni.cli.runtime import Runtime
from cni.cli.signals import Interrupts
from cni.protocol.errors import CNIError
from tests.harness.wait import wait_for_line, wait_for_lock_waiters

ROOT = Path(__file__).resolve().parents[2]
NETNS = "/var/run/netns/testing"
CONTAINER = "cnitool-77383ca0a0715733ca6f"

FAKE = """#!/bin/sh
# Calls are numbered in a file that all plugins share.
log={log}
number=$(($(cat $log/count 2>/dev/null || echo 0) + 1))
echo $number >$log/count
cat >$log/$number.stdin
env >$log/$number.env
echo "$CNI_COMMAND ${{0##*/}}" >>$log/calls
answer={answers}/${{0##*/}}.$CNI_COMMAND
[ -f $answer.hold ] && while [ ! -f {answers}/go ]; do sleep 0.01; done
[ -f $answer.stderr ] && cat $answer.stderr >&2
[ -f $answer.error ] && cat $answer.error && exit 1
[ -f $answer ] && cat $answer
exit 0
"""

RESULT = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": NETNS}],
    "ips": [{"address": "10.22.0.2/24", "interface": 0, "gateway": "10.22.0.1"}],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.22.0.1"}],
    "dns": {"nameservers": ["10.22.0.1"]},
}


@dataclass
class World:
    """A directory with fake plugins, a configuration directory, a cache, and what was called."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("bin", "net.d", "log", "answers"):
            (self.root / name).mkdir()
        self.cache = Cache(str(self.root / "cache"))
        self.runtime = Runtime(
            [str(self.root / "bin")], self.cache, {"PATH": os.environ["PATH"]}, Interrupts()
        )
        for name in ("one", "two", "three"):
            self.plugin(name)

    def plugin(self, name: str) -> None:
        path = self.root / "bin" / name
        path.write_text(FAKE.format(log=self.root / "log", answers=self.root / "answers"))
        path.chmod(0o755)
        self.answer(name, "ADD", RESULT)

    def answer(self, name: str, verb: str, value: Any, kind: str = "") -> None:
        text = value if isinstance(value, str) else json.dumps(value)
        (self.root / "answers" / f"{name}.{verb}{kind}").write_text(text)

    def fail(
        self, name: str, verb: str, msg: str = "no", details: str = "", code: int = 17
    ) -> None:
        self.answer(name, verb, {"code": code, "msg": msg, "details": details}, ".error")

    def heal(self, name: str, verb: str) -> None:
        (self.root / "answers" / f"{name}.{verb}.error").unlink()

    def configure(self, *plugins: Any, **keys: Any) -> NetworkList:
        conf = {
            "cniVersion": "1.0.0",
            "name": "net",
            "plugins": [{"type": p} if isinstance(p, str) else p for p in plugins or ("one",)],
            **keys,
        }
        data = json.dumps({k: v for k, v in conf.items() if v is not None}).encode()
        (self.root / "net.d" / "10.conflist").write_bytes(data)
        return from_bytes(data)

    @property
    def calls(self) -> list[str]:
        path = self.root / "log" / "calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def lock(self) -> Path:
        return self.root / "cache" / ".lock"

    def let_go(self) -> None:
        """Let the calls return that an answer ".hold" holds back."""
        (self.root / "answers" / "go").touch()

    def stdin(self, number: int) -> dict[str, Any]:
        """What the call (-1: the last one) got on stdin."""
        return json.loads(self.stdin_text(number))

    def stdin_text(self, number: int) -> str:
        number = number if number > 0 else len(self.calls) + 1 + number
        return (self.root / "log" / f"{number}.stdin").read_text()

    def environ(self, number: int) -> dict[str, str]:
        number = number if number > 0 else len(self.calls) + 1 + number
        text = (self.root / "log" / f"{number}.env").read_text()
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    @property
    def files(self) -> list[str]:
        results = self.root / "cache" / "results"
        return sorted(os.listdir(results)) if results.exists() else []

    def record(self) -> dict[str, Any]:
        (name,) = self.files
        return json.loads((self.root / "cache" / "results" / name).read_text())

    def start(self, *argv: str, **kwargs: Any) -> subprocess.Popen[str]:
        env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "NETCONFPATH": str(self.root / "net.d"),
            "CNI_PATH": str(self.root / "bin"),
            **self.env,
        }
        if argv[0] in ("add", "check", "del", "gc", "status"):
            argv = (*argv, "--cache-dir", str(self.root / "cache"))
        return subprocess.Popen(
            [sys.executable, "-m", "cni", *argv],
            env=env,
            cwd=self.root,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **kwargs,
        )

    def cni(self, *argv: str) -> tuple[int, str, str]:
        """Run the command line: exit code, stdout, stderr."""
        child = self.start(*argv)
        out, err = child.communicate(timeout=60)
        return child.returncode, out, err


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def attachment(**keys: Any) -> Attachment:
    return Attachment(
        **{"container_id": "c1", "network": "net", "ifname": "eth0", "netns": "/n", **keys}
    )


LEVELS = 5000
DEEP = {
    "unfinished": "[" * LEVELS,
    "list": "[" * LEVELS + "]" * LEVELS,
    "in a plugin": '{"name": "net", "plugins": [{"type": "one", "x": %s}]}'
    % ("[" * LEVELS + "]" * LEVELS),
    "objects": '{"name": "net", "plugins": [{"type": "one", "x": %s}]}'
    % ('{"a":' * LEVELS + "1" + "}" * LEVELS),
}
READING = {
    "status": ["status", "net"],
    "add": ["add", "net", "/proc/self/ns/net"],
    "gc": ["gc", "net"],
    "ls": ["ls"],
    "validate": ["validate"],
    "doctor": ["doctor"],
    "plan": ["plan", "net"],
    "test": ["test", "net"],
}


@pytest.mark.parametrize("argv", READING.values(), ids=READING.keys())
@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP.keys())
def test_a_configuration_that_is_nested_deeply(world: World, text: str, argv: list[str]) -> None:
    """Words for an operator: which file, and what is wrong with it. Never Python's."""
    (world.root / "net.d" / "10.conflist").write_text(text)
    world.env["CNI_STATE_DIR"] = str(world.root / "state")
    _, out, err = world.cni(*argv)
    assert "recursion" not in out + err
    assert "Traceback" not in out + err
    if argv[0] in ("status", "add", "gc", "ls"):
        assert "nested too deeply" in err
        assert "net.d/10.conflist" in err


def test_an_argument_that_is_nested_deeply(world: World) -> None:
    world.configure()
    world.env["CAP_ARGS"] = "[" * LEVELS
    code, out, err = world.cni("add", "net", "/proc/self/ns/net")
    assert code == 1
    assert "recursion" not in out + err
    assert "CAP_ARGS: objects and lists are nested too deeply" in out + err


# -- ADD ------------------------------------------------------------------------------------------


def test_add_feeds_each_plugin_the_result_before(world: World) -> None:
    second = {"cniVersion": "1.0.0", "ips": [{"address": "10.22.0.9/24"}]}
    world.answer("two", "ADD", second)
    result = world.runtime.add(world.configure("one", "two"), attachment())
    assert world.calls == ["ADD one", "ADD two"]
    assert "prevResult" not in world.stdin(1)
    assert world.stdin(2)["prevResult"] == RESULT
    assert result.as_dict() == second
    assert world.record()["result"] == second


def test_stdin_is_the_plugins_object_with_name_and_version(world: World) -> None:
    plugin = {"type": "one", "name": "other", "cniVersion": "0.1.0", "zz": {"b": "<", "a": 1.0}}
    world.runtime.add(world.configure(plugin), attachment())
    assert world.stdin_text(1) == (
        '{"cniVersion":"1.0.0","name":"net","type":"one","zz":{"a":1,"b":"\\u003c"}}'
    )


def test_environment(world: World) -> None:
    world.runtime = Runtime(
        [str(world.root / "bin"), "/nowhere"],
        world.cache,
        {"PATH": os.environ["PATH"], "OTHER": "x", "CNI_COMMAND": "DEL", "CNI_IFNAME": "no"},
        Interrupts(),
    )
    args = (("A", "1"), ("B", "2"))
    world.runtime.add(world.configure(), attachment(args=args, ifname="net1"))
    env = world.environ(1)
    assert {k: v for k, v in env.items() if k.startswith("CNI_") or k == "OTHER"} == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/n",
        "CNI_IFNAME": "net1",
        "CNI_ARGS": "A=1;B=2",
        "CNI_PATH": f"{world.root}/bin:/nowhere",
        "OTHER": "x",
    }


@pytest.mark.parametrize(
    ("declared", "given", "wanted"),
    [
        ({"mac": True, "ips": True}, {"mac": "m", "dns": {}}, {"mac": "m"}),
        ({"mac": False}, {"mac": "m"}, None),
        (None, {"mac": "m"}, None),
        ({"mac": True}, None, None),
        ({"mac": True}, {}, None),
        (
            {"portMappings": True},
            {"portMappings": [{"hostPort": 1}]},
            {"portMappings": [{"hostPort": 1}]},
        ),
    ],
)
def test_runtime_config(world: World, declared: Any, given: Any, wanted: Any) -> None:
    plugin = {"type": "one", **({"capabilities": declared} if declared else {})}
    world.runtime.add(world.configure(plugin), attachment(capability_args=given))
    assert world.stdin(1).get("runtimeConfig") == wanted
    assert world.stdin(1).get("capabilities") == declared  # stays, as with libcni


def test_add_error(world: World) -> None:
    world.fail("two", "ADD", "range is full", "10.22.0.0/24", 11)
    with pytest.raises(CNIError) as caught:
        world.runtime.add(world.configure("one", "two"), attachment())
    assert caught.value.msg == 'plugin type="two" failed (add): range is full'
    assert (caught.value.details, caught.value.code) == ("10.22.0.0/24", 11)
    assert world.calls == ["ADD one", "ADD two"]
    assert world.files == []


def test_add_error_names_a_plugin_that_has_a_name(world: World) -> None:
    world.fail("one", "ADD")
    with pytest.raises(CNIError, match=r'^plugin type="one" name="own" failed \(add\): no$'):
        world.runtime.add(world.configure({"type": "one", "name": "own"}), attachment())


def test_a_missing_plugin_is_noticed_before_any_runs(world: World) -> None:
    with pytest.raises(CNIError) as caught:
        world.runtime.add(world.configure("one", "absent"), attachment())
    assert caught.value.msg == (
        f'plugin type="absent" failed (add): failed to find plugin "absent" in path '
        f"[{world.root}/bin]"
    )
    assert world.calls == []


@pytest.mark.parametrize(
    ("keys", "message", "code"),
    [
        ({"container_id": ""}, "missing containerID", 3),
        ({"container_id": "../x"}, "invalid characters in containerID; ../x", 4),
        ({"container_id": "x\n"}, "invalid characters in containerID", 4),
        ({"network": "a/b"}, "invalid characters found in network name; a/b", 7),
        ({"ifname": "a/b"}, "interface name contains / or : or whitespace characters", 4),
        ({"ifname": ".."}, "interface name is . or ..", 4),
        ({"ifname": "x" * 16}, "interface name is too long", 4),
    ],
)
def test_add_validates_names(world: World, keys: dict[str, str], message: str, code: int) -> None:
    with pytest.raises(CNIError) as caught:
        world.runtime.add(world.configure(), attachment(**keys))
    assert str(caught.value).startswith(f'plugin type="one" failed (add): {message}')
    assert caught.value.code == code
    assert world.calls == []


@pytest.mark.parametrize("verb", ["check", "delete"])
def test_names_are_validated_before_they_become_a_file_name(world: World, verb: str) -> None:
    with pytest.raises(CNIError, match="invalid characters in containerID"):
        getattr(world.runtime, verb)(world.configure(), attachment(container_id="../../x"))
    assert world.calls == []


@pytest.mark.parametrize("own", [None, ""])
@pytest.mark.parametrize("version", ["0.2.0", "0.4.0", "1.1.0"])
def test_a_result_without_version_has_the_configurations(
    world: World, own: str | None, version: str
) -> None:
    answer: dict[str, Any] = {"ip4": {"ip": "10.0.0.1/8"}}
    if version != "0.2.0":
        answer = {"ips": [{"version": "4", "address": "10.0.0.1/8"}]}
    if own is not None:
        answer["cniVersion"] = own
    world.answer("one", "ADD", answer)
    result = world.runtime.add(world.configure(cniVersion=version), attachment())
    assert result.as_dict()["cniVersion"] == version


def test_a_result_keeps_the_version_it_was_printed_in(world: World) -> None:
    world.answer("one", "ADD", {"cniVersion": "0.4.0", "ips": []})
    result = world.runtime.add(world.configure(), attachment())
    assert result.as_dict() == {"cniVersion": "0.4.0", "dns": {}}


def test_no_version_at_all_is_the_first_one(world: World) -> None:
    world.answer("one", "ADD", "null")
    result = world.runtime.add(world.configure(cniVersion=None), attachment())
    assert result.as_dict() == {"cniVersion": "0.1.0", "dns": {}}
    assert world.stdin(1)["cniVersion"] == ""


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("", "failed to unmarshal raw result: unexpected end of JSON input"),
        ("{", "failed to unmarshal raw result: "),
        ("[]", "json: cannot unmarshal"),
        ('{"cniVersion": "9.9"}', 'unsupported CNI result version "9.9"'),
    ],
)
def test_an_unusable_result(world: World, output: str, message: str) -> None:
    world.answer("one", "ADD", output)
    with pytest.raises(CNIError) as caught:
        world.runtime.add(world.configure(), attachment())
    assert caught.value.msg.startswith(f'plugin type="one" failed (add): {message}')
    assert world.files == []


# -- the cache ------------------------------------------------------------------------------------


def test_cache_file_is_libcnis_byte_for_byte(world: World) -> None:
    world.configure("one")
    conf = from_bytes(b'{"name":"net","cniVersion":"1.0.0","plugins":[{"type":"one"}]}')
    what = attachment(args=(("K", "V"),), capability_args={"b": {"d": 1.0, "c": "<"}, "a": []})
    world.runtime.add(conf, what)
    path = world.root / "cache" / "results" / "net-c1-eth0"
    assert path.read_text() == (
        '{"kind":"cniCacheV1","containerId":"c1","config":'
        f'"{base64.b64encode(conf.data).decode()}",'
        '"ifName":"eth0","networkName":"net","netns":"/n","cniArgs":[["K","V"]],'
        '"capabilityArgs":{"a":[],"b":{"c":"\\u003c","d":1}},'
        '"result":{"cniVersion":"1.0.0","dns":{"nameservers":["10.22.0.1"]},'
        '"interfaces":[{"mac":"02:00:00:00:00:01","name":"eth0",'
        f'"sandbox":"{NETNS}"}}],'
        '"ips":[{"address":"10.22.0.2/24","gateway":"10.22.0.1","interface":0}],'
        '"routes":[{"dst":"0.0.0.0/0","gw":"10.22.0.1"}]}}'
    )


def test_cache_leaves_out_what_is_empty(world: World) -> None:
    world.runtime.add(world.configure(), attachment(netns="", capability_args={}))
    assert list(world.record()) == [
        *("kind", "containerId", "config", "ifName", "networkName", "result")
    ]


def test_cache_modes(world: World) -> None:
    before = os.umask(0)
    try:
        world.cache = Cache(str(world.root / "a" / "b"))
        world.runtime.cache = world.cache
        world.runtime.add(world.configure(), attachment())
    finally:
        os.umask(before)
    modes = {
        name: stat.S_IMODE((world.root / name).stat().st_mode)
        for name in ("a", "a/b", "a/b/results", "a/b/results/net-c1-eth0")
    }
    assert modes == {
        "a": 0o700,
        "a/b": 0o700,
        "a/b/results": 0o700,
        "a/b/results/net-c1-eth0": 0o600,
    }


def test_cache_is_replaced_whole(world: World) -> None:
    conf = world.configure()
    world.runtime.add(conf, attachment())
    path = world.root / "cache" / "results" / "net-c1-eth0"
    with path.open() as old:
        world.runtime.add(conf, attachment(netns="/other"))
        assert json.loads(old.read())["netns"] == "/n"  # the file that was there is untouched
    assert world.record()["netns"] == "/other"
    assert world.files == ["net-c1-eth0"]


def test_two_attachments_of_a_container(world: World) -> None:
    conf = world.configure()
    world.runtime.add(conf, attachment())
    world.runtime.add(conf, attachment(ifname="net1"))
    assert world.files == ["net-c1-eth0", "net-c1-net1"]
    world.runtime.delete(conf, attachment())
    assert world.files == ["net-c1-net1"]


def test_a_cache_that_cannot_be_written_is_noticed_before_any_plugin_runs(world: World) -> None:
    (world.root / "cache").write_text("a file")
    with pytest.raises(CNIError) as caught:
        world.runtime.add(world.configure(), attachment())
    assert caught.value.msg.startswith('failed to set network "net" cached result: ')
    assert "--cache-dir" in caught.value.details
    assert world.calls == []


def test_a_file_name_that_is_too_long(world: World) -> None:
    with pytest.raises(CNIError, match="file name too long"):
        world.runtime.add(world.configure(), attachment(container_id="x" * 250))
    assert world.calls == []


@pytest.mark.parametrize(
    ("keys", "shown"),
    [
        ({"network": ""}, '("")|("c1")|("eth0")'),
        ({"container_id": ""}, '("net")|("")|("eth0")'),
        ({"ifname": ""}, '("net")|("c1")|("")'),
    ],
)
def test_incomplete_attachment(world: World, keys: dict[str, str], shown: str) -> None:
    network, container_id, ifname = shown.split("|")
    with pytest.raises(CNIError) as caught:
        world.cache.path(attachment(**keys))
    assert caught.value.msg == (
        f"cache file path requires network name {network}, container ID {container_id}, and "
        f"interface name {ifname}"
    )


def write_cache(world: World, content: Any, name: str = "net-c1-eth0") -> Path:
    path = world.root / "cache" / "results" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def record(result: Any, **keys: Any) -> dict[str, Any]:
    base = {
        "kind": "cniCacheV1",
        "containerId": "c1",
        "config": "e30=",
        "ifName": "eth0",
        "networkName": "net",
        "netns": "/n",
        "result": result,
    }
    return {**base, **keys}


def test_legacy_cache_is_the_result_itself(world: World) -> None:
    write_cache(world, RESULT)
    world.runtime.check(world.configure(), attachment())
    assert world.stdin(1)["prevResult"] == RESULT


@pytest.mark.parametrize(
    ("version", "cached", "wanted"),
    [
        (
            "1.0.0",
            {"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.0.0.1/8"}], "dns": {}},
            {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1/8"}]},
        ),
        (
            "0.4.0",
            RESULT,
            {
                **RESULT,
                "cniVersion": "0.4.0",
                "ips": [{**RESULT["ips"][0], "version": "4"}],  # type: ignore[index]
            },
        ),
        (
            "0.4.0",
            {"ip4": {"ip": "10.0.0.1/8"}, "dns": {}},
            {"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.0.0.1/8"}], "dns": {}},
        ),
        ("1.1.0", None, {"cniVersion": "1.1.0"}),
    ],
)
@pytest.mark.parametrize("verb", ["check", "delete"])
def test_cached_result_is_converted(
    world: World, verb: str, version: str, cached: Any, wanted: Any
) -> None:
    write_cache(world, record(cached))
    getattr(world.runtime, verb)(world.configure(cniVersion=version), attachment())
    assert world.stdin(1)["prevResult"] == wanted


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"kind":"cniCacheV1","result":{"cniVersion":"7"}}', '{"cniVersion":"7"}'],
)
def test_unusable_cache(world: World, content: str) -> None:
    path = write_cache(world, content)
    conf = world.configure("one", "two")
    with pytest.raises(CNIError, match=r'^failed to get network "net" cached result: '):
        world.runtime.check(conf, attachment())
    assert world.calls == []
    world.fail("two", "DEL")
    with pytest.raises(CNIError, match=r"failed \(delete\)"):
        world.runtime.delete(conf, attachment())
    assert not path.exists()  # deleted and ignored
    assert "prevResult" not in world.stdin(-1)


def test_cache_that_cannot_be_converted(world: World) -> None:
    write_cache(world, record(RESULT))
    with pytest.raises(CNIError) as caught:
        world.runtime.check(world.configure(cniVersion="1.2.3"), attachment())
    assert caught.value.msg == (
        'failed to get network "net" cached result: failed to convert cached result to config '
        'version "1.2.3": no converter for CNI result version 1.0.0 to 1.2.3'
    )


def test_keys_of_the_cache_in_another_case(world: World) -> None:
    write_cache(world, {k.upper(): v for k, v in record(RESULT).items()})
    world.runtime.check(world.configure(), attachment())
    assert world.stdin(1)["prevResult"] == RESULT
    assert [a.container_id for a in world.cache.attachments()] == ["c1"]


def test_attachments_are_sorted_and_foreign_files_left_out(world: World) -> None:
    for name, content in {
        "z": record(RESULT, containerId="z"),
        "b": record(RESULT, containerId="b", cniArgs=[["K", "V"]], capabilityArgs={"mac": "m"}),
        "kind": record(RESULT, kind="other"),
        "legacy": RESULT,
        "torn": '{"kind":"cniCacheV1"',
        "no-ifname": record(RESULT, ifName=""),
        "no-network": record(RESULT, networkName=None),
        "evil": record(RESULT, containerId="../../etc/passwd"),
        "not-text": record(RESULT, containerId=5),
        "not-base64": record(RESULT, config="%"),
        "bad-args": record(RESULT, cniArgs=[["K"]]),
        ".1-abc.tmp": record(RESULT, containerId="temporary"),
    }.items():
        write_cache(world, content, name)
    (world.root / "cache" / "results" / "directory").mkdir()
    found = world.cache.attachments()
    assert [a.container_id for a in found] == ["b", "z"]
    assert (found[0].args, found[0].capability_args) == ((("K", "V"),), {"mac": "m"})
    assert found[0].netns == "/n"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *(
                        "cniVersion",
                        "ips",
                        "address",
                        "interfaces",
                        "routes",
                        "dst",
                        "dns",
                        "ip4",
                        "ip",
                    ),
                    *("kind", "containerId", "ifName", "networkName", "netns", "cniArgs", "result"),
                    *("config", "capabilityArgs", "name", "mtu", "interface"),
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(JSON, st.sampled_from(["0.1.0", "0.4.0", "1.0.0", "1.1.0", ""]))
def test_any_result_is_read_or_refused(raw: Any, version: str) -> None:
    try:
        found = outcome(raw, version)
        gojson.encode_sorted(found.as_dict())
        found.as_dict("1.1.0")
    except CNIError:
        pass


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(JSON, st.booleans())
def test_any_cache_file_is_read_or_refused(tmp_path: Path, raw: Any, ours: bool) -> None:
    if ours and isinstance(raw, dict):
        raw = {**raw, "kind": "cniCacheV1"}
    found = Cache(str(tmp_path))
    path = Path(found.path(attachment()))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gojson.encode(raw))
    found.attachments()
    try:
        found.read(attachment())
    except CNIError:
        pass


def test_outcome_in_every_version() -> None:
    for version in ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"):
        assert outcome(RESULT, "").as_dict(version)["cniVersion"] == version


# -- CHECK ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "0.3.1", None])
def test_check_needs_a_newer_version(world: World, version: str | None) -> None:
    conf = world.configure(cniVersion=version, disableCheck=True)
    with pytest.raises(CNIError) as caught:
        world.runtime.check(conf, attachment())
    assert caught.value.msg == (
        f'configuration version "{version or ""}" does not support the CHECK command'
    )


def test_check_gives_every_plugin_the_final_result(world: World) -> None:
    conf = world.configure("one", "two")
    world.answer("two", "ADD", {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.7/8"}]})
    world.runtime.add(conf, attachment())
    world.runtime.check(conf, attachment())
    assert world.calls[2:] == ["CHECK one", "CHECK two"]
    for number in (3, 4):
        assert world.stdin(number)["prevResult"]["ips"] == [{"address": "10.0.0.7/8"}]


def test_check_stops_at_the_first_error(world: World) -> None:
    conf = world.configure("one", "two", "three")
    world.fail("two", "CHECK", "the address is gone", "want 10.0.0.7", 100)
    with pytest.raises(CNIError) as caught:
        world.runtime.check(conf, attachment())
    assert (caught.value.msg, caught.value.code) == ("the address is gone", 100)
    assert world.calls == ["CHECK one", "CHECK two"]


def test_check_without_cache(world: World) -> None:
    world.runtime.check(world.configure(), attachment())
    assert "prevResult" not in world.stdin(1)


@pytest.mark.parametrize("value", [True, "true"])
def test_disable_check(world: World, value: Any) -> None:
    world.runtime.check(world.configure(disableCheck=value), attachment())
    assert world.calls == []


# -- DEL ------------------------------------------------------------------------------------------


def test_delete_runs_backwards_and_forgets(world: World) -> None:
    conf = world.configure("one", "two", "three")
    world.runtime.add(conf, attachment())
    world.runtime.delete(conf, attachment())
    assert world.calls[3:] == ["DEL three", "DEL two", "DEL one"]
    assert all(world.stdin(n)["prevResult"] == RESULT for n in (4, 5, 6))
    assert world.files == []


@pytest.mark.parametrize("version", ["0.2.0", "0.3.1", None])
def test_delete_of_old_versions_gets_no_result(world: World, version: str | None) -> None:
    write_cache(world, record(RESULT))
    world.runtime.delete(world.configure(cniVersion=version), attachment())
    assert "prevResult" not in world.stdin(1)
    assert world.files == []


def test_delete_twice(world: World) -> None:
    conf = world.configure()
    world.runtime.add(conf, attachment())
    world.runtime.delete(conf, attachment())
    world.runtime.delete(conf, attachment())
    assert world.calls == ["ADD one", "DEL one", "DEL one"]
    assert "prevResult" not in world.stdin(3)


def test_a_failed_delete_keeps_the_result(world: World) -> None:
    conf = world.configure("one", "two")
    world.runtime.add(conf, attachment())
    world.fail("two", "DEL", "busy", "", 999)
    with pytest.raises(CNIError, match=r'^plugin type="two" failed \(delete\): busy$'):
        world.runtime.delete(conf, attachment())
    assert world.calls[2:] == ["DEL two"]
    assert world.files == ["net-c1-eth0"]
    world.heal("two", "DEL")
    world.runtime.delete(conf, attachment())
    assert world.files == []


def test_delete_passes_over_a_plugin_that_does_not_know_the_version(world: World) -> None:
    """It has refused the ADD, too; what the plugins before it made has to go."""
    world.configure("one", "two")
    world.fail("two", "ADD", "incompatible CNI versions", "old", 1)
    world.fail("two", "DEL", "incompatible CNI versions", "old", 1)
    assert world.cni("add", "net", NETNS)[0] == 1
    code, out, err = world.cni("del", "net", NETNS, "--force")
    assert (code, out) == (0, "")
    assert err.startswith(
        'plugin type="two" failed (delete): incompatible CNI versions; old; going'
    )
    assert world.calls == ["ADD one", "ADD two", "DEL two", "DEL one"]


def test_delete_passes_runtime_config(world: World) -> None:
    conf = world.configure({"type": "one", "capabilities": {"mac": True}})
    world.runtime.delete(conf, attachment(capability_args={"mac": "m"}))
    assert world.stdin(1)["runtimeConfig"] == {"mac": "m"}


# -- GC -------------------------------------------------------------------------------------------


def test_gc_deletes_everything_of_the_network_then_collects(world: World) -> None:
    conf = world.configure("one", "two", cniVersion="1.1.0")
    write_cache(world, record(RESULT, cniArgs=[["K", "V"]]), "net-c1-eth0")
    write_cache(world, record(RESULT, ifName="net1"), "net-c1-net1")
    write_cache(world, record(RESULT, networkName="other"), "other-c1-eth0")
    deleted = world.runtime.collect(conf)
    assert [(a.container_id, a.ifname) for a in deleted] == [("c1", "eth0"), ("c1", "net1")]
    assert world.calls == ["DEL two", "DEL one"] * 2 + ["GC one", "GC two"]
    assert world.environ(1)["CNI_ARGS"] == "K=V"
    assert world.environ(1)["CNI_NETNS"] == "/n"
    assert world.files == ["other-c1-eth0"]
    last = world.stdin(-1)
    assert last == {"cniVersion": "1.1.0", "name": "net", "type": "two"}  # and no list
    env = world.environ(-1)
    assert (env["CNI_CONTAINERID"], env["CNI_NETNS"], env["CNI_IFNAME"]) == ("", "", "")


def test_gc_keeps_what_is_valid(world: World) -> None:
    conf = world.configure(cniVersion="1.1.0")
    write_cache(world, record(RESULT), "net-c1-eth0")
    write_cache(world, record(RESULT, ifName="net1"), "net-c1-net1")
    world.runtime.collect(conf, [("c1", "net1"), ("c9", "eth0")])
    assert world.files == ["net-c1-net1"]
    pairs = [{"containerID": "c1", "ifname": "net1"}, {"containerID": "c9", "ifname": "eth0"}]
    for key in ("cni.dev/valid-attachments", "cni.dev/attachments"):
        assert world.stdin(-1)[key] == pairs


def test_gc_of_an_older_version_only_deletes(world: World) -> None:
    write_cache(world, record(RESULT))
    world.runtime.collect(world.configure())
    assert world.calls == ["DEL one"]


@pytest.mark.parametrize("value", [True, "true"])
def test_disable_gc(world: World, value: Any) -> None:
    write_cache(world, record(RESULT))
    assert world.runtime.collect(world.configure(cniVersion="1.1.0", disableGC=value)) == []
    assert world.calls == []
    assert world.files == ["net-c1-eth0"]


def test_gc_goes_on_after_errors_and_reports_all(world: World) -> None:
    conf = world.configure("one", "two", cniVersion="1.1.0")
    write_cache(world, record(RESULT), "net-c1-eth0")
    write_cache(world, record(RESULT, containerId="c2"), "net-c2-eth0")
    world.fail("two", "DEL", "busy", "wait", 11)
    world.fail("one", "GC", "no", "", 99)
    with pytest.raises(CNIError) as caught:
        world.runtime.collect(conf)
    assert str(caught.value).splitlines() == [
        'failed to delete stale attachment c1 eth0: plugin type="two" failed (delete): busy; wait',
        'failed to delete stale attachment c2 eth0: plugin type="two" failed (delete): busy; wait',
        "failed to GC plugin one: no",
    ]
    assert caught.value.code == 11
    assert world.calls == ["DEL two", "DEL two", "GC one", "GC two"]


def test_gc_sweeps_up_after_a_killed_write(world: World) -> None:
    write_cache(world, "half", ".17-abcd.tmp")
    world.runtime.collect(world.configure())
    assert world.files == []


def test_gc_without_cache(world: World) -> None:
    world.runtime.collect(world.configure(cniVersion="1.1.0"))
    assert world.calls == ["GC one"]


# -- STATUS ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", None, "nonsense"])
def test_status_of_old_versions_is_fine(world: World, version: str | None) -> None:
    world.runtime.status(world.configure(cniVersion=version))
    assert world.calls == []


def test_status_returns_the_first_error(world: World) -> None:
    world.fail("two", "STATUS", "range is full", "", 50)
    with pytest.raises(CNIError) as caught:
        world.runtime.status(world.configure("one", "two", "three", cniVersion="1.1.0"))
    assert (caught.value.msg, caught.value.code) == ("range is full", 50)
    assert world.calls == ["STATUS one", "STATUS two"]
    assert world.stdin(1) == {"cniVersion": "1.1.0", "name": "net", "type": "one"}


# -- the command line -----------------------------------------------------------------------------


def test_container_id() -> None:
    assert target.container_id(NETNS) == CONTAINER


@pytest.mark.parametrize(
    ("path", "wanted"),
    [("//a//b/../c/", "/a/c"), ("/a", "/a"), ("x", "{cwd}/x"), ("./x/.", "{cwd}/x")],
)
def test_absolute(path: str, wanted: str) -> None:
    assert target.absolute(path) == wanted.format(cwd=Path.cwd())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("", ()), ("A=1", (("A", "1"),)), ("A=1;B=2", (("A", "1"), ("B", "2")))],
)
def test_args(text: str, wanted: Any) -> None:
    assert session.parse_args(text) == wanted


@pytest.mark.parametrize(
    ("text", "pair"), [("A", "A"), ("A=1;", ""), ("=1", "=1"), ("A=", "A="), ("A=1=2", "A=1=2")]
)
def test_malformed_args(text: str, pair: str) -> None:
    with pytest.raises(CNIError) as caught:
        session.parse_args(text)
    assert caught.value.msg == f'invalid CNI_ARGS pair "{pair}"'


def test_plugin_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "cni").touch()
    (tmp_path / "cni").symlink_to("real/cni")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "cni")])
    assert session.plugin_path("") == ["/opt/cni/bin", str(tmp_path / "real")]
    monkeypatch.setattr(sys, "argv", ["/opt/cni/bin/cni"])
    assert session.plugin_path("") == ["/opt/cni/bin"]
    assert session.plugin_path("/a:/b") == ["/a", "/b"]


def test_add_prints_exactly_the_result(world: World) -> None:
    world.configure()
    code, out, err = world.cni("add", "net", NETNS)
    assert (code, err) == (0, "")
    printed = {k: RESULT[k] for k in sorted(RESULT)}
    assert json.loads(out) == RESULT
    assert list(json.loads(out)) == list(printed)
    assert out.startswith('{\n    "cniVersion": "1.0.0",\n    "dns"')
    assert out.endswith("}")
    assert world.files == [f"net-{CONTAINER}-eth0"]
    env = world.environ(1)
    assert (env["CNI_CONTAINERID"], env["CNI_NETNS"]) == (CONTAINER, NETNS)


@pytest.mark.parametrize("verb", ["check", "del", "gc", "status"])
def test_other_verbs_print_nothing(world: World, verb: str) -> None:
    world.configure(cniVersion="1.1.0")
    world.cni("add", "net", NETNS)
    calls = {
        "check": ["CHECK one"],
        "del": ["DEL one"],
        "gc": ["DEL one"],
        "status": ["STATUS one"],
    }
    assert world.cni(verb, "net", NETNS) == (0, "", "")
    assert world.calls == ["ADD one", *calls[verb]]


@pytest.mark.parametrize("verb", ["gc", "status"])
def test_netns_may_be_left_out(world: World, verb: str) -> None:
    world.configure(cniVersion="1.1.0")
    assert world.cni(verb, "net") == (0, "", "")


@pytest.mark.parametrize("verb", ["add", "check", "del"])
def test_netns_is_needed(world: World, verb: str) -> None:
    world.configure()
    code, out, err = world.cni(verb, "net")
    assert (code, out) == (2, "")
    assert "NETNS" in err
    assert world.cni(verb, "net", "")[0] == 2
    assert world.calls == []


def test_interface_name(world: World) -> None:
    world.configure()
    world.cni("add", "net", NETNS)
    world.env["CNI_IFNAME"] = "env0"
    world.cni("add", "net", NETNS)
    world.cni("add", "-i", "flag0", "net", NETNS)
    world.cni("add", "net", NETNS, "--ifname", "flag1")
    world.env["CNI_IFNAME"] = ""
    world.cni("add", "net", NETNS)
    names = [world.environ(number)["CNI_IFNAME"] for number in range(1, 6)]
    assert names == ["eth0", "env0", "flag0", "flag1", "eth0"]


def test_environment_variables_of_cnitool(world: World) -> None:
    world.configure({"type": "one", "capabilities": {"mac": True}})
    world.env = {"CNI_ARGS": "K=V;L=W", "CAP_ARGS": '{"mac": "m", "ips": []}', "OTHER": "x"}
    assert world.cni("add", "net", "relative")[0] == 0
    assert world.stdin(1)["runtimeConfig"] == {"mac": "m"}
    env = world.environ(1)
    assert (env["CNI_ARGS"], env["OTHER"]) == ("K=V;L=W", "x")
    assert env["CNI_NETNS"] == str(world.root / "relative")
    kept = world.record()
    assert kept["cniArgs"] == [["K", "V"], ["L", "W"]]
    assert kept["capabilityArgs"] == {"ips": [], "mac": "m"}


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"CNI_ARGS": "K"}, 'invalid CNI_ARGS pair "K"'),
        ({"CAP_ARGS": "{"}, "CAP_ARGS: "),
        ({"CAP_ARGS": "[]"}, "CAP_ARGS is not a JSON object"),
        ({"NETCONFPATH": "/nowhere"}, "no net configurations found in /nowhere"),
        ({"CNI_PATH": "/nowhere"}, 'plugin type="one" failed (add): failed to find plugin "one"'),
        ({"CNI_IFNAME": "a b"}, 'plugin type="one" failed (add): interface name contains'),
    ],
)
def test_errors_are_on_stderr(world: World, env: dict[str, str], message: str) -> None:
    world.configure()
    world.env = env
    code, out, err = world.cni("add", "net", NETNS)
    assert (code, out) == (3 if "no net conf" in message else 1, "")
    assert err.startswith(message)
    assert "Traceback" not in err
    assert world.calls == []


def test_unknown_network(world: World) -> None:
    world.configure()
    code, out, err = world.cni("add", "blue", NETNS)
    assert (code, out) == (3, "")
    assert err == (
        f'no net configuration with name "blue" in {world.root}/net.d; networks there: net\n'
    )


def test_error_as_json(world: World) -> None:
    world.configure(cniVersion="1.1.0")
    world.fail("one", "STATUS", "full", "10.22.0.0/24", 50)
    code, out, err = world.cni("status", "net", "--json")
    assert code == 50
    assert json.loads(out) == {"code": 50, "msg": "full", "details": "10.22.0.0/24"}
    assert err == ""
    assert world.cni("status", "net") == (50, "", "full; 10.22.0.0/24\n")


def test_bytes_that_are_no_utf8(world: World) -> None:
    world.configure()
    world.env = {"CNI_ARGS": "K=\udcff"}
    netns = os.fsdecode(b"/n\xff")
    assert world.cni("add", "net", netns)[0] == 0
    assert world.record()["netns"] == "/n\ufffd"
    assert world.record()["cniArgs"] == [["K", "\ufffd"]]
    assert world.cni("del", "net", netns) == (0, "", "")
    code, _, err = world.cni("add", netns, netns, "--json")
    assert code == 3
    assert "Traceback" not in err


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_a_cache_of_somebody_else() -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        found = Cache(directory)
        found.write(attachment(), b"{}", RESULT)
        os.seteuid(65534)
        try:
            with pytest.raises(CNIError, match="permission denied"):
                found.read(attachment())
            assert found.attachments() == []
        finally:
            os.seteuid(0)


def test_plugins_stderr_is_passed_on(world: World) -> None:
    world.configure()
    world.answer("one", "ADD", "a warning\n", ".stderr")
    code, _, err = world.cni("add", "net", NETNS)
    assert (code, err) == (0, "a warning\n")


def test_single_configuration(world: World) -> None:
    conf = {"cniVersion": "0.4.0", "name": "single", "type": "one"}
    (world.root / "net.d" / "20.conf").write_text(json.dumps(conf))
    assert world.cni("add", "single", NETNS)[0] == 0
    assert world.stdin(1) == conf
    world.fail("one", "ADD")
    assert (
        world.cni("add", "single", NETNS)[2] == 'plugin type="one" name="single" failed (add): no\n'
    )


def test_gc_keep(world: World) -> None:
    world.configure(cniVersion="1.1.0")
    write_cache(world, record(RESULT), "net-c1-eth0")
    write_cache(world, record(RESULT, containerId="c2"), "net-c2-eth0")
    for keep, code in (("c9/eth0", 3), ("c1/eth1", 3), ("c/eth0", 4), ("c1", 2)):
        assert world.cni("gc", "net", "--keep", keep)[0] == code
    assert world.calls == []
    assert world.cni("gc", "net", "--keep", "c1/eth0") == (0, "", "")
    assert world.files == ["net-c1-eth0"]
    assert world.calls == ["DEL one"]


def test_concurrent_runs_on_one_container_take_turns(world: World) -> None:
    world.configure("one", "two")
    world.answer("one", "ADD", "", ".hold")
    children = [world.start("add", "net", NETNS, "-i", f"net{n}") for n in range(3)]
    wait_for_line(world.root / "log" / "calls")
    wait_for_lock_waiters(world.lock, 2)
    world.let_go()
    assert [child.wait(60) for child in children] == [0, 0, 0]
    for child in children:
        child.communicate()
    assert world.calls == ["ADD one", "ADD two"] * 3
    assert len(world.files) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_for_another_run(world: World, number: int) -> None:
    world.configure()
    world.cni("add", "net", NETNS)
    with Cache(str(world.root / "cache")).lock(None):
        child = world.start("check", "net", NETNS)
        wait_for_lock_waiters(world.lock)
        child.send_signal(number)
        _, err = child.communicate(timeout=60)
    assert child.returncode == 128 + number
    assert err.startswith("interrupted")
    assert world.calls == ["ADD one"]


def test_gc_waits_for_everybody(world: World) -> None:
    world.configure("one", "two", cniVersion="1.1.0")
    world.answer("one", "ADD", "", ".hold")
    first = world.start("add", "net", NETNS)
    wait_for_line(world.root / "log" / "calls", first)
    second = world.start("gc", "net")
    wait_for_lock_waiters(world.lock)
    world.let_go()
    for child in (first, second):
        _, err = child.communicate(timeout=60)
        assert (child.returncode, err) == (0, "")
    assert world.calls == ["ADD one", "ADD two", "DEL two", "DEL one"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("answers", ["succeeds", "fails"])
def test_interrupt_lets_the_running_plugin_finish(world: World, answers: str, number: int) -> None:
    world.configure("one", "two")
    world.answer("one", "ADD", "", ".hold")
    if answers == "fails":
        world.fail("one", "ADD", "interrupted by SIGINT")
    child = world.start("add", "net", NETNS)
    wait_for_line(world.root / "log" / "calls", child)
    child.send_signal(number)
    world.let_go()
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (128 + number, "")
    assert err == f"interrupted; what is there is detached by `cni del net {NETNS}`\n"
    assert world.calls == ["ADD one"]
    assert world.files == []


def test_broken_pipe_is_quiet(world: World) -> None:
    world.configure()
    for argv in (["add", "net", NETNS], ["plugins"], ["plugins", "--json"], ["-h"]):
        child = world.start(*argv)
        assert child.stdout is not None
        child.stdout.close()
        assert child.stderr is not None
        assert child.stderr.read() == ""
        child.stderr.close()
        assert child.wait(60) in (0, 141)


def test_closed_standard_files(world: World) -> None:
    world.configure()
    command = f"{sys.executable} -m cni add net {NETNS} --cache-dir cache <&- >&- 2>&-"
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "NETCONFPATH": "net.d",
        "CNI_PATH": str(world.root / "bin"),
    }
    assert subprocess.run(["sh", "-c", command], env=env, cwd=world.root).returncode == 0
    assert world.record()["result"] == RESULT
    assert (world.root / "cache" / ".lock").read_bytes() == b""


def test_a_full_disk_is_an_error(world: World) -> None:
    world.configure()
    with open("/dev/full", "w") as full:
        child = subprocess.run(
            [sys.executable, "-m", "cni", "plugins"],
            env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert child.returncode == 1
    assert child.stderr == "cannot write to stdout: no space left on device\n"
    assert "Traceback" not in child.stderr


# -- what is in the file ---------------------------------------------------------------------------


def test_plugins(world: World) -> None:
    code, out, _ = world.cni("plugins")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["NAME", "KIND", "VERBS", "SPEC", "ABOUT"]
    assert any(line.split()[:4] == ["loopback", "main", "ADD", "DEL"] for line in lines)


def test_plugins_as_json(world: World) -> None:
    code, out, _ = world.cni("plugins", "--json")
    assert code == 0
    found = {entry["name"]: entry for entry in json.loads(out)}
    assert found["static"]["kind"] == "ipam"
    assert found["loopback"]["verbs"][:3] == ["ADD", "DEL", "CHECK"]
    assert found["bridge"]["cniVersions"][-1] == "1.1.0"


def test_version(world: World) -> None:
    from cni import REFERENCE_VERSION, __version__

    code, out, _ = world.cni("--version")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith(f"cni {__version__} (build ")
    assert lines[1] == f"plugins: v{REFERENCE_VERSION}+py.{__version__}"
    assert platform.python_version() in lines[2]
    assert sys.executable in lines[2]
    assert lines[3].endswith(platform.machine())


@pytest.mark.parametrize("argv", [["-h"], ["add", "-h"], ["gc", "--help"], ["install", "-h"]])
def test_help(world: World, argv: list[str]) -> None:
    code, out, err = world.cni(*argv)
    assert (code, err) == (0, "")
    assert out.startswith("Usage: cni ")


@pytest.mark.parametrize(
    "argv", [["nonsense"], ["add"], ["add", "--nonsense"], ["completion", "sh"]]
)
def test_wrong_usage(world: World, argv: list[str]) -> None:
    """A program gets one line; what a person gets is in tests/netns/golden."""
    code, out, err = world.cni(*argv)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert (argv[-1] if argv != ["add"] else "NETWORK") in err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(world: World, shell: str) -> None:
    code, out, err = world.cni("completion", shell)
    assert (code, err) == (0, "")
    assert "_CNI_COMPLETE" in out
    assert "cni" in out


@pytest.mark.parametrize(
    ("words", "number", "wanted"),
    [
        ("cni a", "1", "add"),
        ("cni add ", "2", "net"),
        ("cni add b", "2", "blue"),
        ("cni add net --c", "3", "--cache-dir"),
    ],
)
def test_completion(world: World, words: str, number: str, wanted: str) -> None:
    world.configure()
    conf = {"name": "blue", "type": "one"}
    (world.root / "net.d" / "20.conf").write_text(json.dumps(conf))
    world.env = {"_CNI_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": number}
    _, out, err = world.cni("--version")
    assert err == ""
    assert wanted in [line.partition(",")[2] for line in out.splitlines()]


def test_importing_the_package_does_not_load_click() -> None:
    code = "import sys, cni.cli; sys.exit('click' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_default_directories() -> None:
    assert cache.DEFAULT_DIRECTORY == "/var/lib/cni"
    assert gojson.quote('a"b') == '"a\\"b"'


@pytest.mark.parametrize(
    ("sink", "code", "said"),
    [
        (">/dev/full", 1, "cannot write to stdout: no space left on device\n"),
        ("1</dev/null", 1, "cannot write to stdout: bad file descriptor\n"),
        (">&-", 0, ""),
        ("| true", 141, ""),
        ("2>/dev/full", 0, ""),
    ],
)
@pytest.mark.parametrize("command", ["--help", "--version", "plugins", "ls --help"])
def test_a_stdout_of_no_use(command: str, sink: str, code: int, said: str) -> None:
    line = f"set -o pipefail; {sys.executable} -m cni {command} {sink}"
    done = subprocess.run(
        ["bash", "-c", line],
        env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert (done.returncode, done.stderr) == (code, said)
