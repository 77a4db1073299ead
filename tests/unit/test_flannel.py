"""flannel: what its delegate is called with, and what it keeps. The delegate is a shell script."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cni.dispatch import answer
from cni.owner import network_key
from tests.unit.test_subnet_env import REST, V4, V6, env

Json = dict[str, Any]

RESULT = '{"cniVersion": "1.0.0", "ips": [{"address": "10.1.17.2/24"}]}'


class Node:
    """flanneld's file, a directory for notes, and plugins `bridge`, `other` and `busy`.

    Each call of a plugin is one file, with its environment and its stdin. `busy` fails.
    """

    def __init__(self, directory: Path) -> None:
        self.subnet_file = directory / "subnet.env"
        self.data_dir = directory / "flannel"
        self.bin = directory / "bin"
        self.calls = directory / "calls"
        for one in (self.bin, self.calls):
            one.mkdir()
        self.program("bridge", f"echo '{RESULT}'")
        self.program("other", f"echo '{RESULT}'")
        self.program("busy", 'echo \'{"code": 11, "msg": "busy", "details": "wait"}\'; exit 1')
        self.write({**V4, **REST})

    def program(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(
            f'#!/bin/sh\nfile=$(mktemp {self.calls}/XXXXXX)\necho "$CNI_COMMAND {name} '
            f'$CNI_CONTAINERID $CNI_IFNAME $CNI_NETNS." >$file\ncat >>$file\n{body}\n'
        )
        path.chmod(0o755)

    def write(self, values: dict[str, str]) -> None:
        self.subnet_file.write_text(env(values))

    def conf(self, **keys: Any) -> Json:
        where = {"subnetFile": str(self.subnet_file), "dataDir": str(self.data_dir)}
        return {"cniVersion": "1.1.0", "name": "net", "type": "flannel", **where, **keys}

    def call(self, verb: str, cid: str = "c1", ifname: str = "eth0", **keys: Any) -> Json:
        """The decoded output ({} without one) of the plugin; `error` in it when it failed."""
        variables = {
            "PATH": "/usr/bin:/bin",
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": cid,
            "CNI_IFNAME": ifname,
            "CNI_NETNS": "/run/netns/nosuch",
            "CNI_PATH": str(self.bin),
        }
        conf = {key: value for key, value in self.conf(**keys).items() if value is not ...}
        code, output = answer("flannel", variables, lambda: json.dumps(conf).encode())
        found = json.loads(output) if output else {}
        return {"error": found} if code else found

    def called(self) -> list[tuple[str, Json]]:
        """First line and configuration of each call since the last time."""
        found = []
        for path in sorted(self.calls.iterdir(), key=lambda path: path.stat().st_mtime_ns):
            line, _, document = path.read_text().partition("\n")
            found.append((line.removesuffix("."), json.loads(document)))
            path.unlink()
        return found

    def added(self, **keys: Any) -> Json:
        """What the delegate's ADD was given."""
        assert "error" not in self.call("ADD", **keys)
        ((_, document),) = self.called()
        return document

    def notes(self) -> list[str]:
        return sorted(one.name for one in self.data_dir.iterdir()) if self.data_dir.is_dir() else []

    def collect(self, *keep: tuple[str, str], **keys: Any) -> Json:
        entries = [{"containerID": cid, "ifname": ifname} for cid, ifname in keep]
        return self.call("GC", **{"cni.dev/valid-attachments": entries, **keys})


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def message(reply: Json) -> str:
    return str(reply["error"]["msg"])


# -- what the delegate is called with -------------------------------------------------------------


def test_the_example_of_the_contract(node: Node) -> None:
    """Without cniVersion, as the reference's own tests have it."""
    expected = {
        "ipMasq": False,
        "ipam": {
            "ranges": [[{"subnet": "10.1.17.0/24"}]],
            "routes": [{"dst": "10.1.0.0/16"}],
            "type": "host-local",
        },
        "isGateway": True,
        "mtu": 1472,
        "name": "net",
        "type": "bridge",
    }
    assert node.added(cniVersion=...) == expected
    text = (node.data_dir / "c1").read_text()
    assert text == json.dumps(expected, sort_keys=True, separators=(",", ":"))
    assert node.data_dir.stat().st_mode & 0o777 == 0o700
    assert (node.data_dir / "c1:eth0").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("values", "subnets", "networks"),
    [
        (V6, ["fd01:0:0:11::/64"], ["fd01::/48"]),
        ({**V6, **V4}, ["10.1.17.0/24", "fd01:0:0:11::/64"], ["10.1.0.0/16", "fd01::/48"]),
        (
            {**V4, "FLANNEL_NETWORK": "10.1.0.0/16,10.9.0.0/16"},
            ["10.1.17.0/24"],
            ["10.1.0.0/16", "10.9.0.0/16"],
        ),
    ],
    ids=["v6", "dual", "two-networks"],
)
def test_families(
    node: Node, values: dict[str, str], subnets: list[str], networks: list[str]
) -> None:
    node.write({**values, **REST})
    ipam = node.added()["ipam"]
    assert ipam["ranges"] == [[{"subnet": one}] for one in subnets]
    assert ipam["routes"] == [{"dst": one} for one in networks]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, {"type": "bridge", "isGateway": True, "cniVersion": "1.1.0", "name": "net"}),
        ({"delegate": None}, {"type": "bridge", "isGateway": True}),
        ({"delegate": {"isGateway": False}}, {"isGateway": False}),
        ({"delegate": {"type": "other"}}, {"type": "other", "isGateway": ...}),
        ({"delegate": {"ipMasq": True, "mtu": 9000}}, {"ipMasq": True, "mtu": 9000}),
        ({"delegate": {"ipMasq": None}}, {"ipMasq": None}),
        ({"delegate": {"cniVersion": "0.3.1"}}, {"cniVersion": "1.1.0"}),
        ({"delegate": {"hairpinMode": True, "x": {"Y": [1]}}}, {"x": {"Y": [1]}}),
        (
            {"delegate": {"runtimeConfig": {"a": 1}}, "runtimeConfig": {"mac": "m", "portMap": []}},
            {"runtimeConfig": {"mac": "m", "portMap": []}},
        ),
        ({"delegate": {"runtimeConfig": {"a": 1}}}, {"runtimeConfig": {"a": 1}}),
        ({"dns": {"domain": "x"}, "args": {"a": 1}}, {"dns": ..., "args": ...}),
        ({"capabilities": {"mac": True}}, {"capabilities": ...}),
        ({"prevResult": {"cniVersion": "1.1.0"}}, {"prevResult": ..., "subnetFile": ...}),
    ],
)
def test_merge(node: Node, keys: Json, expected: Json) -> None:
    document = node.added(**keys)
    assert {key: document.get(key, ...) for key in expected} == expected


def test_masquerading_is_done_by_one_of_the_two(node: Node) -> None:
    node.write({**V4, **REST, "FLANNEL_IPMASQ": "false"})
    assert node.added()["ipMasq"] is True


def test_ipam_is_kept_and_complemented(node: Node) -> None:
    base = {
        "type": "other-ipam",
        "id": "x",
        "dataDir": "/Some/Dir",
        "ranges": [[{"subnet": "192.0.2.0/24"}]],
        "routes": [{"dst": "192.0.2.0/24", "gw": "10.1.17.9", "mtu": 9, "unknown": 1}],
    }
    assert node.added(ipam=base)["ipam"] == {
        "type": "other-ipam",
        "id": "x",
        "dataDir": "/Some/Dir",
        "ranges": [[{"subnet": "10.1.17.0/24"}]],
        "routes": [
            {"dst": "192.0.2.0/24", "gw": "10.1.17.9", "mtu": 9},
            {"dst": "10.1.0.0/16"},
        ],
    }


def test_result_is_the_delegate_s(node: Node) -> None:
    reply = node.call("ADD")
    assert reply == {"cniVersion": "1.1.0", "ips": [{"address": "10.1.17.2/24"}]}
    node.program("bridge", f"echo '{RESULT.replace('1.0.0', '0.4.0')}'")
    assert node.call("ADD", cniVersion="0.3.1")["cniVersion"] == "0.3.1"


# -- errors that change nothing -------------------------------------------------------------------

LOAD = "failed to load flannel netconf file: failed to load netconf: json: cannot unmarshal "
ROUTES = (
    "failed to assemble Delegate IPAM: failed to read IPAM routes: failed to parse ipam.routes: "
)
HAS = "'delegate' dictionary must not have '{}' field, it'll be set by flannel"


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (
            {"delegate": {"type": 7}},
            "'delegate' dictionary, if present, must have (string) 'type' field",
        ),
        (
            {"delegate": {"type": None}},
            "'delegate' dictionary, if present, must have (string) 'type' field",
        ),
        ({"delegate": {"name": "x"}}, HAS.format("name")),
        ({"delegate": {"ipam": {}}}, HAS.format("ipam")),
        ({"delegate": "bridge"}, LOAD + "string into field delegate of type object"),
        ({"runtimeConfig": []}, LOAD + "array into field runtimeConfig of type object"),
        ({"subnetFile": 1}, LOAD + "number into field subnetFile of type string"),
        ({"ipam": {"routes": [{"dst": "x"}]}}, ROUTES + "invalid CIDR address: x"),
        ({"ipam": {"routes": "x"}}, ROUTES + "json: cannot unmarshal string"),
        ({"delegate": {"type": "gone"}}, 'failed to delegate add: failed to find plugin "gone"'),
        ({"delegate": {"type": ""}}, "failed to delegate add: no plugin name provided"),
        ({"delegate": {"type": "../x"}}, "failed to delegate add: invalid plugin name: ../x"),
        ({"subnetFile": ""}, "failed to load flannel 'subnet.env' file: open : no such file"),
        ({"dataDir": "/proc/nosuch"}, "write /proc/nosuch/c1:eth0: "),
        ({"dataDir": "a\0b"}, "read a\0b/c1:eth0: "),
    ],
)
def test_bad_input_changes_nothing(node: Node, keys: Json, text: str) -> None:
    reply = node.call("ADD", **keys)
    assert message(reply).startswith(text)
    assert reply["error"]["code"] == 999
    assert node.called() == []
    assert not node.data_dir.exists()


@pytest.mark.parametrize(
    ("contents", "text"),
    [
        (None, "open {}: no such file or directory"),
        (env(V4), "{} is missing FLANNEL_MTU, FLANNEL_IPMASQ"),
        (env({**V4, **REST, "FLANNEL_MTU": "x"}), 'FLANNEL_MTU: parsing "x": invalid syntax'),
        ("FLANNEL_MTU\n", 'invalid line "FLANNEL_MTU": it has no "="'),
    ],
    ids=["missing", "incomplete", "invalid", "no-value"],
)
def test_unreadable_subnet_file(node: Node, contents: str | None, text: str) -> None:
    node.subnet_file.unlink()
    if contents is not None:
        node.subnet_file.write_text(contents)
    reply = node.call("ADD")
    reason = text.format(node.subnet_file)
    assert message(reply) == (
        f"failed to load flannel 'subnet.env' file: {reason}. "
        "Check the flannel pod log for this node."
    )
    assert f"flanneld writes {node.subnet_file}" in reply["error"]["details"]
    assert not node.data_dir.exists()
    status = node.call("STATUS")["error"]
    assert status["code"] == 50
    assert str(node.subnet_file) in status["msg"] + status["details"]
    assert "flannel" in status["details"]
    assert node.called() == []


def test_delegate_s_error_is_its_own(node: Node) -> None:
    """It has undone what it did, so there is nothing to keep for DEL."""
    reply = node.call("ADD", delegate={"type": "busy"})
    assert reply["error"] == {"code": 11, "msg": "busy", "details": "wait"}
    assert node.notes() == []


# -- DEL ------------------------------------------------------------------------------------------


def test_delete(node: Node) -> None:
    """With what ADD was given, whatever has become of flanneld's file and the configuration."""
    document = node.added(runtimeConfig={"mac": "m"})
    node.subnet_file.unlink()
    assert node.call("DEL", delegate={"type": "other"}) == {}
    assert node.called() == [("DEL bridge c1 eth0 /run/netns/nosuch", document)]
    assert node.notes() == []
    assert node.call("DEL") == {}
    assert node.called() == []


def test_delete_without_add(node: Node) -> None:
    node.subnet_file.unlink()
    assert node.call("DEL") == {}
    assert not node.data_dir.exists()
    assert node.call("DEL", dataDir="") == {}


def test_two_interfaces_of_one_container(node: Node) -> None:
    """Of two networks even, with different delegates, in one directory."""
    first = node.added()
    assert "error" not in node.call("ADD", ifname="net1", name="two", delegate={"type": "other"})
    ((_, second),) = node.called()
    assert node.notes() == ["c1", "c1:eth0", "c1:net1"]
    assert json.loads((node.data_dir / "c1").read_text()) == second
    for _ in range(2):
        assert node.call("DEL", ifname="net1", name="two") == {}
    assert node.called() == [("DEL other c1 net1 /run/netns/nosuch", second)]
    assert node.notes() == ["c1:eth0"]
    assert node.call("DEL") == {}
    assert node.called() == [("DEL bridge c1 eth0 /run/netns/nosuch", first)]
    assert node.notes() == []


@pytest.mark.parametrize("length", [200, 231, 232, 249, 250, 251, 255, 256, 300])
def test_container_ids_of_any_length(node: Node, length: int) -> None:
    """Names of files end at 255 bytes; a note's, with what is before and behind an id, sooner."""
    long, other = "c" * (length - 1) + "1", "c" * (length - 1) + "2"
    for cid in (long, other):
        assert "error" not in node.call("ADD", cid=cid)
    assert len(node.notes()) == 4
    assert node.collect((long, "eth0")) == {}
    assert len(node.notes()) == 2
    node.called()
    assert node.call("DEL", cid=long) == {}
    (call,) = [line for line, _ in node.called()]
    assert call == f"DEL bridge {long} eth0 /run/netns/nosuch"
    assert node.notes() == []


def test_add_again(node: Node) -> None:
    """The newer configuration holds."""
    node.added()
    document = node.added(delegate={"mtu": 1300})
    node.call("DEL")
    assert [one for _, one in node.called()] == [document]
    assert node.notes() == []


def test_delete_that_fails_can_be_repeated(node: Node) -> None:
    node.added()
    shutil.copy(node.bin / "busy", node.bin / "bridge")
    assert node.call("DEL")["error"] == {"code": 11, "msg": "busy", "details": "wait"}
    assert node.notes() == ["c1", "c1:eth0"]
    (node.bin / "bridge").unlink()
    assert message(node.call("DEL")).startswith('failed to find plugin "bridge"')
    node.program("bridge", "exit 0")
    assert node.call("DEL") == {}
    assert node.notes() == []


@pytest.mark.parametrize("contents", ["", "{", "[]", '"x"'])
def test_a_note_that_is_none(node: Node, contents: str) -> None:
    """As in the reference: success, and the file stays."""
    node.data_dir.mkdir()
    (node.data_dir / "c1").write_text(contents)
    assert node.call("DEL") == {}
    assert node.notes() == ["c1"]
    assert node.called() == []
    assert "lost" in message(node.call("CHECK", prevResult={"cniVersion": "1.1.0"}))


def test_a_note_that_cannot_be_read(node: Node) -> None:
    (node.data_dir / "c1:eth0").mkdir(parents=True)
    assert message(node.call("DEL")) == f"read {node.data_dir}/c1:eth0: is a directory"


# -- what the reference has left ------------------------------------------------------------------


def reference_note(node: Node, name: str = "net") -> Json:
    document = {"name": name, "type": "other", "mtu": 1, "ipam": {"type": "host-local"}}
    node.data_dir.mkdir(exist_ok=True)
    (node.data_dir / "c1").write_text(json.dumps(document))
    return document


def test_a_container_of_the_reference(node: Node) -> None:
    document = reference_note(node)
    node.call("CHECK", prevResult={"cniVersion": "1.1.0"})
    assert [line for line, _ in node.called()] == ["CHECK other c1 eth0 /run/netns/nosuch"]
    assert node.call("DEL") == {}
    assert node.called() == [("DEL other c1 eth0 /run/netns/nosuch", document)]
    assert node.notes() == []


def test_a_container_of_the_reference_in_another_network(node: Node) -> None:
    reference_note(node, "two")
    assert node.call("DEL") == {}
    assert node.called() == []
    assert node.notes() == ["c1"]


def test_the_reference_s_note_beside_ours(node: Node) -> None:
    """It may be that of another interface: each DEL has its own."""
    document = reference_note(node)
    node.added(ifname="net1")
    node.call("DEL", ifname="net1")
    assert [line for line, _ in node.called()] == ["DEL bridge c1 net1 /run/netns/nosuch"]
    node.call("DEL")
    assert node.called() == [("DEL other c1 eth0 /run/netns/nosuch", document)]
    assert node.notes() == []


# -- the other verbs ------------------------------------------------------------------------------


def test_check(node: Node) -> None:
    """With the note, the prevResult and today's runtimeConfig."""
    document = node.added(cniVersion="1.0.0", runtimeConfig={"mac": "m"})
    node.subnet_file.unlink()
    previous = json.loads(RESULT)
    keys = {"cniVersion": "1.1.0", "prevResult": previous, "runtimeConfig": {"mac": "n"}}
    assert node.call("CHECK", **keys) == {}
    assert node.called() == [("CHECK bridge c1 eth0 /run/netns/nosuch", {**document, **keys})]
    shutil.copy(node.bin / "busy", node.bin / "bridge")
    assert message(node.call("CHECK", **keys)) == "busy"


def test_check_without_a_note(node: Node) -> None:
    reply = node.call("CHECK", prevResult=json.loads(RESULT))
    assert message(reply) == f"the note of this attachment is lost: {node.data_dir}/c1:eth0"


def test_status(node: Node) -> None:
    assert node.call("STATUS", runtimeConfig={"mac": "m"}) == {}
    ((line, document),) = node.called()
    assert line.startswith("STATUS bridge")
    assert document["ipam"]["ranges"] == [[{"subnet": "10.1.17.0/24"}]]
    assert document["cniVersion"] == "1.1.0"
    assert node.call("STATUS", delegate={"type": "busy"})["error"]["code"] == 11
    assert not node.data_dir.exists()


def test_status_before_flanneld(node: Node) -> None:
    node.subnet_file.unlink()
    error = node.call("STATUS")["error"]
    assert error["code"] == 50
    assert error["msg"] == f"waiting for flanneld to write {node.subnet_file}"
    assert message(node.call("STATUS", delegate={"name": "x"})) == HAS.format("name")


def test_gc(node: Node) -> None:
    """What is gone is deleted with its note; then the delegate collects."""
    for cid, ifname in (("c1", "eth0"), ("c1", "net1"), ("c2", "eth0")):
        node.call("ADD", cid, ifname)
    node.call("ADD", "c3", name="two")
    gone = dict(node.called())["ADD bridge c1 net1 /run/netns/nosuch"]
    assert node.collect(("c1", "eth0"), ("c9", "eth0")) == {}
    *deleted, (line, document) = node.called()
    assert deleted == [("DEL bridge c1 net1 ", gone), ("DEL bridge c2 eth0 ", gone)]
    assert line.startswith("GC bridge")
    assert document["cni.dev/valid-attachments"] == [
        {"containerID": "c1", "ifname": "eth0"},
        {"containerID": "c9", "ifname": "eth0"},
    ]
    assert document["ipam"]["type"] == "host-local"
    assert node.notes() == ["c1:eth0", "c3", "c3:eth0"]
    node.collect(("c3", "eth0"), name="two")
    assert node.notes() == ["c1:eth0", "c3", "c3:eth0"]
    node.collect()
    node.collect(name="two")
    assert node.notes() == []


def test_gc_goes_on_after_an_error(node: Node) -> None:
    """And does what it can while flanneld's file is missing."""
    node.call("ADD", "c1")
    note = node.data_dir / "c1:eth0"
    note.write_text(json.dumps({**json.loads(note.read_text()), "type": "busy"}))
    node.call("ADD", "c2")
    node.called()
    node.subnet_file.unlink()
    reply = node.collect()
    assert message(reply).startswith("busy; failed to load flannel 'subnet.env' file: ")
    assert [line for line, _ in node.called()] == ["DEL busy c1 eth0 ", "DEL bridge c2 eth0 "]
    assert node.notes() == ["c1", "c1:eth0"]


def test_gc_of_what_the_reference_left(node: Node) -> None:
    reference_note(node)
    node.collect(("c1", "net1"))
    assert node.notes() == ["c1"]
    node.collect(name="two")
    assert node.notes() == ["c1"]
    node.collect()
    assert node.notes() == []


@pytest.mark.parametrize("clear", ["DEL", "GC"])
def test_what_a_kill_leaves(node: Node, clear: str) -> None:
    """A note that was begun is removed by DEL, and by GC if it is of that network and gone."""
    begun = f":{network_key('net')}:c1:eth0"
    node.data_dir.mkdir()
    (node.data_dir / begun).write_text('{"na')
    node.collect(name="two")
    node.collect(("c1", "eth0"))
    assert node.notes() == [begun]
    if clear == "DEL":
        node.call("DEL")
    else:
        node.collect()
    assert node.notes() == []


def test_a_note_that_cannot_be_written_leaves_nothing(node: Node) -> None:
    (node.data_dir / "c1:eth0").mkdir(parents=True)
    assert message(node.call("ADD")) == f"read {node.data_dir}/c1:eth0: is a directory"
    assert node.notes() == ["c1:eth0"]
    assert node.called() == []
