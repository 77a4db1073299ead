"""Loading network configurations: every rule of docs/spec/protocol.md §8."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni.cli import conflist, gojson
from cni.protocol.errors import CNIError

if TYPE_CHECKING:
    from pathlib import Path

ONE = {"type": "one"}


def parse(**keys: Any) -> conflist.NetworkList:
    return conflist.from_bytes(json.dumps({"name": "net", "plugins": [ONE], **keys}).encode())


def put(directory: Path, name: str, value: Any) -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def network(name: str = "net", *types: str, **keys: Any) -> dict[str, Any]:
    plugins = [{"type": kind} for kind in types or ("one",)]
    return {"cniVersion": "1.0.0", "name": name, "plugins": plugins, **keys}


def types(found: conflist.NetworkList) -> list[str]:
    return [plugin.type for plugin in found.plugins]


# -- the search -----------------------------------------------------------------------------------


def test_conflist_comes_before_conf(tmp_path: Path) -> None:
    put(tmp_path, "00-net.conf", {"name": "net", "type": "single"})
    put(tmp_path, "99-net.conflist", network("net", "listed"))
    assert types(conflist.load(str(tmp_path), "net")) == ["listed"]


def test_first_file_with_the_name_wins(tmp_path: Path) -> None:
    put(tmp_path, "20.conflist", network("net", "second"))
    put(tmp_path, "10.conflist", network("net", "first"))
    put(tmp_path, "05.conflist", network("other"))
    assert types(conflist.load(str(tmp_path), "net")) == ["first"]


@pytest.mark.parametrize("extension", ["conf", "json"])
def test_single_configuration_becomes_a_list(tmp_path: Path, extension: str) -> None:
    conf = {"name": "net", "cniVersion": "0.4.0", "type": "one", "x": "<&>"}
    put(tmp_path, f"10.{extension}", conf)
    found = conflist.load(str(tmp_path), "net")
    assert (found.name, found.version, types(found)) == ("net", "0.4.0", ["one"])
    assert found.plugins[0].name == "net"
    # The bytes that go to the cache: sorted, compact, with Go's escapes.
    assert found.data == (
        b'{"cniVersion":"0.4.0","name":"net","plugins":[{"cniVersion":"0.4.0","name":"net",'
        b'"type":"one","x":"\\u003c\\u0026\\u003e"}]}'
    )


def test_single_configuration_without_version(tmp_path: Path) -> None:
    put(tmp_path, "10.conf", {"Name": "net", "TYPE": "one"})
    found = conflist.load(str(tmp_path), "net")
    assert (found.name, found.version) == ("net", "")


def test_a_single_configuration_takes_no_plugins_from_a_folder(tmp_path: Path) -> None:
    put(tmp_path, "10.conf", {"name": "net", "type": "one"})
    put(tmp_path, "net/extra.conf", {"type": "extra"})
    assert types(conflist.load(str(tmp_path), "net")) == ["one"]


def test_folders_and_other_extensions_are_left_out(tmp_path: Path) -> None:
    put(tmp_path, "below/10.conflist", network())
    put(tmp_path, "10.conflist.bak", "not JSON")
    put(tmp_path, "conflist", "not JSON")
    (tmp_path / "dir.conflist").mkdir()
    with pytest.raises(CNIError) as caught:
        conflist.load(str(tmp_path), "net")
    assert caught.value.msg == f"no net configurations found in {tmp_path}"


def test_a_file_that_is_only_an_extension(tmp_path: Path) -> None:
    put(tmp_path, ".conflist", network())
    assert conflist.load(str(tmp_path), "net").name == "net"


def test_a_symlink_to_a_file(tmp_path: Path) -> None:
    put(tmp_path, "real/net", network())
    (tmp_path / "10.conflist").symlink_to(tmp_path / "real/net")
    assert conflist.load(str(tmp_path), "net").name == "net"


def test_no_directory(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(conflist.NetworkNotFound) as caught:
        conflist.load(str(missing), "net")
    assert caught.value.msg == f"no net configurations found in {missing}"
    assert "NETCONFPATH" in caught.value.details


@pytest.mark.parametrize("name", ["10.conflist", "10.conf"])
def test_unknown_network_lists_those_there_are(tmp_path: Path, name: str) -> None:
    put(tmp_path, name, {**network("blue"), **ONE})
    put(tmp_path, "20.conflist", network("red"))
    with pytest.raises(conflist.NetworkNotFound) as caught:
        conflist.load(str(tmp_path), "net")
    assert caught.value.msg == f'no net configuration with name "net" in {tmp_path}'
    assert caught.value.details == "networks there: blue, red"


def test_a_malformed_file_aborts_the_search_and_is_named(tmp_path: Path) -> None:
    bad = put(tmp_path, "10.conflist", "{")
    put(tmp_path, "20.conflist", network())
    with pytest.raises(CNIError, match=r"^error parsing configuration list: ") as caught:
        conflist.load(str(tmp_path), "net")
    assert caught.value.details == f"line 1, column 2; in {bad}"


def test_a_malformed_file_behind_the_network_does_not_matter(tmp_path: Path) -> None:
    put(tmp_path, "10.conflist", network())
    put(tmp_path, "20.conflist", "{")
    assert conflist.load(str(tmp_path), "net").name == "net"
    assert conflist.known(str(tmp_path)) == ["net"]


def test_a_malformed_single_configuration(tmp_path: Path) -> None:
    bad = put(tmp_path, "10.conf", {"name": "net"})
    with pytest.raises(CNIError) as caught:
        conflist.load(str(tmp_path), "net")
    assert caught.value.msg == "error parsing configuration: missing 'type'"
    assert str(bad) in caught.value.details


def test_an_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "10.conflist"
    path.symlink_to(tmp_path / "gone")
    with pytest.raises(CNIError) as caught:
        conflist.load(str(tmp_path), "net")
    assert caught.value.msg == f"error reading {path}: open {path}: no such file or directory"


def test_a_directory_that_is_a_file(tmp_path: Path) -> None:
    path = put(tmp_path, "file", "")
    with pytest.raises(CNIError, match="not a directory"):
        conflist.load(str(path), "net")
    assert conflist.known(str(path)) == []


# -- the list -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "no name"),
        ("null", "no name"),
        ('{"Name": "net"}', "no name"),
        ('{"name": 5}', "invalid name type float64"),
        ('{"name": null}', "invalid name type <nil>"),
        ('{"name": "n", "cniVersion": 1}', "invalid cniVersion type float64"),
        ('{"name": "n", "plugins": {}}', "invalid 'plugins' type map[string]interface {}"),
        ('{"name": "n", "plugins": null}', "invalid 'plugins' type <nil>"),
        ('{"name": "n", "plugins": []}', "no plugins in list"),
        (
            "[]",
            "json: cannot unmarshal array into Go value of type map[string]interface {}",
        ),
        ("", "unexpected end of JSON input"),
    ],
)
def test_malformed_lists(text: str, message: str) -> None:
    with pytest.raises(CNIError) as caught:
        conflist.from_bytes(text.encode())
    assert caught.value.msg == f"error parsing configuration list: {message}"


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        ({}, "missing 'type'"),
        (None, "missing 'type'"),
        ({"type": ""}, "missing 'type'"),
        ({"type": 5}, "json: cannot unmarshal number into field type of type string"),
        ({"type": "x", "capabilities": {"mac": "yes"}}, "json: cannot unmarshal string"),
        (5, "json: cannot unmarshal number into Go value"),
    ],
)
def test_malformed_plugins(plugin: Any, message: str) -> None:
    with pytest.raises(CNIError) as caught:
        parse(plugins=[ONE, plugin])
    prefix = "failed to parse plugin config 1: error parsing configuration: "
    assert caught.value.msg.startswith(prefix + message)


def test_plugins_keep_their_keys_and_order() -> None:
    one = {"type": "one", "zeta": 1, "Alpha": {"b": [None]}}
    found = parse(plugins=[one, {"type": "two", "name": "own"}])
    assert found.plugins[0].raw == one
    assert [(p.type, p.name) for p in found.plugins] == [("one", ""), ("two", "own")]


def test_capabilities_that_are_declared_true() -> None:
    found = parse(plugins=[{"type": "x", "capabilities": {"mac": True, "ips": False, "dns": None}}])
    assert found.plugins[0].capabilities == {"mac"}


@pytest.mark.parametrize("key", ["disableCheck", "disableGC", "loadOnlyInlinedPlugins"])
@pytest.mark.parametrize(
    ("value", "wanted"),
    [(True, True), (False, False), ("true", True), ("FALSE", False), ("True", True)],
)
def test_switches(key: str, value: Any, wanted: bool) -> None:
    fields = {
        "disableCheck": "disable_check",
        "disableGC": "disable_gc",
        "loadOnlyInlinedPlugins": "only_inlined",
    }
    assert getattr(parse(**{key: value}), fields[key]) is wanted
    assert getattr(parse(), fields[key]) is False


@pytest.mark.parametrize("key", ["disableCheck", "disableGC", "loadOnlyInlinedPlugins"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("Yes", 'invalid value "yes" for {}'),
        ("", 'invalid value "" for {}'),
        (1, "invalid type float64 for {}"),
        (None, "invalid type <nil> for {}"),
        ([], "invalid type []interface {{}} for {}"),
    ],
)
def test_malformed_switches(key: str, value: Any, message: str) -> None:
    with pytest.raises(CNIError) as caught:
        parse(**{key: value})
    assert caught.value.msg == "error parsing configuration list: " + message.format(key)


@pytest.mark.parametrize(
    ("version", "several", "wanted"),
    [
        ("1.2.3", None, "1.2.3"),  # as it is, without cniVersions
        ("what", None, "what"),
        (None, None, ""),
        ("0.4.0", ["1.0.0", "0.3.1"], "1.0.0"),
        ("1.1.0", ["1.0.0"], "1.1.0"),
        (None, ["0.3.1", "1.1.0", "0.4.0"], "1.1.0"),
        ("0.4.0", ["1.2.0", "1.0.0", "2.0.0"], "1.0.0"),
        ("1.2.3", ["1.9.0"], "1.2.3"),  # all too new
        ("0.3.0", [], "0.3.0"),
        (None, [], ""),
        ("1.2.0", ["0.4.0"], "0.4.0"),
    ],
)
def test_version(version: str | None, several: list[str] | None, wanted: str) -> None:
    keys: dict[str, Any] = {"cniVersion": version, "cniVersions": several}
    assert parse(**{k: v for k, v in keys.items() if v is not None}).version == wanted


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"cniVersions": "1.0.0"}, "invalid type for cniVersions: string"),
        ({"cniVersions": ["1.0.0", 5]}, "invalid type for cniVersions index 1: float64"),
        ({"cniVersions": ["x"]}, "invalid cniVersions entry x at index 0: "),
        ({"cniVersions": ["1.0.0"], "cniVersion": "x"}, "invalid cniVersion x: "),
    ],
)
def test_malformed_versions(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(CNIError) as caught:
        parse(**keys)
    assert caught.value.msg.startswith("error parsing configuration list: " + message)


# -- plugins in files of their own ----------------------------------------------------------------


@pytest.mark.parametrize("switch", [None, False, "false", True, "true"])
@pytest.mark.parametrize("inlined", [True, False])
@pytest.mark.parametrize("files", [True, False])
def test_load_only_inlined_plugins(tmp_path: Path, switch: Any, inlined: bool, files: bool) -> None:
    conf = network()
    if not inlined:
        del conf["plugins"]
    if switch is not None:
        conf["loadOnlyInlinedPlugins"] = switch
    put(tmp_path, "10.conflist", conf)
    if files:
        put(tmp_path, "net/20.conf", {"type": "three"})
        put(tmp_path, "net/10.conf", {"type": "two"})
        put(tmp_path, "net/30.json", "not looked at")
    only = switch in (True, "true")
    if only and not inlined:
        message = (
            "error parsing configuration list: `loadOnlyInlinedPlugins` is true, and no "
            "'plugins' key"
        )
    elif not inlined and not files:
        message = "no plugin configs found"
    else:
        wanted = (["one"] if inlined else []) + (["two", "three"] if files and not only else [])
        assert types(conflist.load(str(tmp_path), "net")) == wanted
        return
    with pytest.raises(CNIError) as caught:
        conflist.load(str(tmp_path), "net")
    assert caught.value.msg == message


def test_a_malformed_plugin_file_is_named(tmp_path: Path) -> None:
    put(tmp_path, "10.conflist", network())
    bad = put(tmp_path, "net/10.conf", "{}")
    with pytest.raises(CNIError) as caught:
        conflist.load(str(tmp_path), "net")
    assert caught.value.msg == "error parsing configuration: missing 'type'"
    assert caught.value.details.startswith(f"in {bad}")


@pytest.mark.parametrize("name", ["../outside", ".", "..", "/", "a/b"])
def test_a_name_cannot_lead_out_of_the_directory(tmp_path: Path, name: str) -> None:
    put(tmp_path, "outside/10.conf", {"type": "outside"})
    put(tmp_path, "net.d/10.conflist", network(name))
    assert types(conflist.load(str(tmp_path / "net.d"), name)) == ["one"]


def test_the_cached_bytes_are_the_files(tmp_path: Path) -> None:
    text = '{ "name": "net",\n "plugins": [ {"type": "one"} ] }\n'
    put(tmp_path, "10.conflist", text)
    assert conflist.load(str(tmp_path), "net").data == text.encode()


def test_names_for_completion(tmp_path: Path) -> None:
    put(tmp_path, "a.conflist", network("red"))
    put(tmp_path, "b.conf", {"name": "blue", "type": "x"})
    put(tmp_path, "c.json", {"name": 5})
    put(tmp_path, "d.json", "[")
    put(tmp_path, "e.conflist", network("red"))
    assert conflist.known(str(tmp_path)) == ["blue", "red"]
    assert conflist.known(os.fspath(tmp_path / "missing")) == []


# -- JSON as Go writes it -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (
            {"b": 1, "a": {"d": 2, "c": [{"f": 1, "e": 2}]}},
            '{"b":1,"a":{"c":[{"e":2,"f":1}],"d":2}}',
        ),
        ({"a": "<b>&\u2028\u2029é/"}, '{"a":"\\u003cb\\u003e\\u0026\\u2028\\u2029é/"}'),
        (
            {"a": 1.0, "b": 1.5, "c": -0.0, "d": 2**60},
            '{"a":1,"b":1.5,"c":0,"d":1152921504606846976}',
        ),
        ({"a": None, "b": True, "c": []}, '{"a":null,"b":true,"c":[]}'),
    ],
)
def test_go_json(value: Any, wanted: str) -> None:
    assert gojson.encode(value).decode() == wanted


def test_go_json_sorted() -> None:
    assert gojson.encode_sorted({"b": 1, "a": {"d": 1, "c": 2}, "B": 3}) == (
        b'{"B":3,"a":{"c":2,"d":1},"b":1}'
    )


def test_deeply_nested_json_is_an_error() -> None:
    with pytest.raises(CNIError):
        conflist.from_bytes(b'{"name":' + b"[" * 100_000)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("cniVersion", "cniVersions", "name", "plugins", "type", "capabilities"),
                    *("disableCheck", "disableGC", "loadOnlyInlinedPlugins", "ipam", "dns", "TYPE"),
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(JSON)
def test_any_json_is_a_list_or_an_error(value: Any) -> None:
    try:
        found = conflist.from_bytes(gojson.encode(value))
    except CNIError as error:
        message = error.msg
    else:
        message = ""
        assert all(plugin.type for plugin in found.plugins)
    wanted = ("error parsing configuration list: ", "failed to parse plugin config ")
    assert not message or message.startswith(wanted)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_are_a_list_or_an_error(data: bytes) -> None:
    with contextlib.suppress(CNIError):
        conflist.from_bytes(data)
    with contextlib.suppress(CNIError):
        conflist.plugin_from_bytes(data)


def make_unusable(path: Path, kind: str) -> None:
    """What another user may leave there: reading it would not end."""
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(20 << 20)


@pytest.mark.parametrize("kind", ["fifo", "device", "huge"])
@pytest.mark.parametrize("extension", ["conflist", "conf"])
def test_a_file_that_cannot_be_read_is_not_waited_for(
    tmp_path: Path, kind: str, extension: str
) -> None:
    make_unusable(tmp_path / f"00.{extension}", kind)
    with pytest.raises(CNIError, match=f"error reading {tmp_path}/00.{extension}"):
        conflist.load(str(tmp_path), "net")
    put(tmp_path, "99-net.conflist", network("net", "listed"))
    assert conflist.known(str(tmp_path)) == ["net"]


@pytest.mark.parametrize("kind", ["fifo", "device", "huge"])
def test_a_cached_result_that_cannot_be_read_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    from cni.cli.cache import Attachment, Cache

    cache = Cache(str(tmp_path))
    attachment = Attachment("c", "net", "eth0")
    path = tmp_path / "results" / os.path.basename(cache.path(attachment))
    path.parent.mkdir()
    make_unusable(path, kind)
    with pytest.raises(CNIError, match="remove it"):
        cache.read(attachment)
    assert cache.attachments() == []
    cache.remove(attachment)
    assert cache.read(attachment) is None
