"""What a request may be: environment, names, versions, CNI_ARGS; codes and texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.protocol import args, version
from cni.protocol.errors import (
    BadEnvironment,
    CNIError,
    DecodeFailure,
    DelegateError,
    IncompatibleVersion,
    InvalidConfig,
    InvalidNetns,
    IOFailure,
    LimitedConnectivity,
    NotAvailable,
    TryAgainLater,
    UnknownContainer,
    UnsupportedField,
    join,
)
from cni.protocol.request import (
    Request,
    check_container_id,
    check_ifname,
    check_network_name,
    read,
)

if TYPE_CHECKING:
    from collections.abc import Callable

ENV = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/x",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/a:/b",
}


def refused(function: Callable[[], object]) -> tuple[int, str, str]:
    """(code, msg, details) of the error that a call raises."""
    with pytest.raises(CNIError) as caught:
        function()
    return caught.value.code, caught.value.msg, caught.value.details


# -- the error tree -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (CNIError, 999),
        (IncompatibleVersion, 1),
        (UnsupportedField, 2),
        (UnknownContainer, 3),
        (BadEnvironment, 4),
        (IOFailure, 5),
        (DecodeFailure, 6),
        (InvalidConfig, 7),
        (InvalidNetns, 8),
        (TryAgainLater, 11),
        (NotAvailable, 50),
        (LimitedConnectivity, 51),
    ],
)
def test_code_of_each_error(kind: type[CNIError], code: int) -> None:
    assert kind("m").code == code


def test_a_wrapped_error_keeps_code_and_details() -> None:
    error = DelegateError(11, "busy", "later").wrapped("ipam: ")
    assert (error.code, error.msg, error.details) == (11, "ipam: busy", "later")


def test_joining_errors() -> None:
    first, second = TryAgainLater("a", "x"), CNIError("b", "y")
    assert join([first]) is first
    both = join([first, CNIError("c"), second])
    assert (both.code, both.msg, both.details) == (11, "a; c; b", "x; y")


# -- the environment ------------------------------------------------------------------------------


def test_request() -> None:
    env = {**ENV, "CNI_ARGS": "K=V"}
    request = read(env, lambda: b"{}")
    assert request == Request("ADD", "c1", "/run/netns/x", "eth0", "K=V", ["/a", "/b"], b"{}", env)


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        ("ADD", "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH"),
        ("CHECK", "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH"),
        ("DEL", "CNI_CONTAINERID,CNI_IFNAME,CNI_PATH"),
        ("GC", "CNI_PATH"),
        ("STATUS", "CNI_PATH"),
        ("", "CNI_COMMAND"),
    ],
)
@pytest.mark.parametrize("how", ["unset", "empty"])
def test_missing_variables_are_named_together(command: str, wanted: str, how: str) -> None:
    env = dict.fromkeys(ENV, "") if how == "empty" else {}
    code, msg, _ = refused(lambda: read({**env, "CNI_COMMAND": command}, lambda: b""))
    assert (code, msg) == (4, f"required env variables [{wanted}] missing")


@pytest.mark.parametrize("command", ["VERSION", "NOSUCH"])
def test_other_commands_need_no_variable(command: str) -> None:
    assert read({"CNI_COMMAND": command}, lambda: b"x").command == command


def test_version_does_not_read_stdin() -> None:
    def stdin() -> bytes:
        raise AssertionError("stdin was read")

    assert read({"CNI_COMMAND": "VERSION"}, stdin).stdin == b""


def test_a_bad_value_wins_over_missing_ones() -> None:
    env = {"CNI_COMMAND": "ADD", "CNI_IFNAME": "a/b"}
    assert refused(lambda: read(env, lambda: b""))[1].startswith("interface name contains")


def test_of_two_bad_values_the_first_is_reported() -> None:
    env = {**ENV, "CNI_CONTAINERID": "-", "CNI_IFNAME": "."}
    assert refused(lambda: read(env, lambda: b""))[1] == "invalid characters in containerID"


def test_the_environment_is_checked_before_stdin_is_read() -> None:
    def stdin() -> bytes:
        raise IOFailure("error reading from stdin: broken")

    assert refused(lambda: read({"CNI_COMMAND": "ADD"}, stdin))[0] == 4
    assert refused(lambda: read(ENV, stdin))[0] == 5


@pytest.mark.parametrize(
    ("value", "wanted"),
    [("1", True), ("true", True), ("TRUE", True), ("True", True), ("0", False), ("yes", False)],
)
def test_netns_override(value: str, wanted: bool) -> None:
    assert read({**ENV, "CNI_NETNS_OVERRIDE": value}, lambda: b"").netns_override is wanted
    assert read(ENV, lambda: b"").netns_override is False


# -- names ----------------------------------------------------------------------------------------

GOOD_NAMES = ["a", "0", "a-b_c.d", "A" * 300, "1.", "a--"]
BAD_NAMES = ["-a", ".a", "_a", "a b", "a/b", "a\n", "\na", "é", "a\0", "..", "a:b", "٣", "aé"]


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_good_names(name: str) -> None:
    check_container_id(name)
    check_network_name(name)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names(name: str) -> None:
    assert refused(lambda: check_container_id(name)) == (
        4,
        "invalid characters in containerID",
        name,
    )
    assert refused(lambda: check_network_name(name)) == (
        7,
        "invalid characters found in network name",
        name,
    )


def test_empty_names() -> None:
    assert refused(lambda: check_container_id(""))[:2] == (3, "missing containerID")
    assert refused(lambda: check_network_name(""))[:2] == (7, "missing network name:")
    assert refused(lambda: check_ifname(""))[:2] == (4, "interface name is empty")


@pytest.mark.parametrize("name", ["eth0", "a" * 15, "ééééééé", "a.b", "...", "-", "eth0@x"])
def test_good_interface_names(name: str) -> None:
    check_ifname(name)


@pytest.mark.parametrize(
    ("name", "msg", "details"),
    [
        ("a" * 16, "is too long", "interface name should be less than 16 characters"),
        # bytes count, not characters
        ("é" * 8, "is too long", "interface name should be less than 16 characters"),
        (".", "is . or ..", ""),
        ("..", "is . or ..", ""),
        ("a/b", "contains / or : or whitespace characters", ""),
        ("a:b", "contains / or : or whitespace characters", ""),
        ("a b", "contains / or : or whitespace characters", ""),
        ("eth0\n", "contains / or : or whitespace characters", ""),
        ("a\tb", "contains / or : or whitespace characters", ""),
        ("a\u00a0b", "contains / or : or whitespace characters", ""),
        ("a\u3000b", "contains / or : or whitespace characters", ""),
        ("eth\udcff", "is not UTF-8", "no result could name it: it is JSON"),
        ("eth%d", "contains %", "the kernel makes a pattern of it: eth%d"),
    ],
)
def test_bad_interface_names(name: str, msg: str, details: str) -> None:
    assert refused(lambda: check_ifname(name)) == (4, f"interface name {msg}", details)


@given(st.text())
def test_any_name_is_good_or_refused(text: str) -> None:
    for check in (check_container_id, check_network_name):
        try:
            check(text)
        except CNIError:
            continue
        assert text.isascii()
        assert text[0].isalnum()
        assert not set(text) & set("/\n\0 :")
    try:
        check_ifname(text)
    except CNIError:
        return
    assert 1 <= len(text.encode("utf-8", "surrogateescape")) <= 15
    assert not set(text) & set("/: \n\t")


# -- versions -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", (0, 1, 0)),
        ("1", (1, 0, 0)),
        ("1.1", (1, 1, 0)),
        ("0.4.0", (0, 4, 0)),
        ("10.20.30", (10, 20, 30)),
    ],
)
def test_parsing_versions(text: str, wanted: tuple[int, int, int]) -> None:
    assert version.parse(text) == wanted


@pytest.mark.parametrize(
    "text", ["x", "1.", ".1", "1.2.3.4", "1.-1", "1. 0", "1.0\n", "٣", "1.0²", "v1.0.0", "+1"]
)
def test_what_is_no_version(text: str) -> None:
    assert refused(lambda: version.parse(text))[0] == 6


def test_comparing_versions() -> None:
    assert version.at_least("0.10.0", "0.9.0")
    assert version.at_least("1.0", "1.0.0")
    assert not version.at_least("0.3.1", "0.4.0")
    assert not version.at_least("", "0.2.0")


LIST = '["0.1.0" "0.2.0" "0.3.0" "0.3.1" "0.4.0" "1.0.0" "1.1.0"]'


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
@pytest.mark.parametrize("text", ["1.2.0", "0.5.0", "1.0", "1.1", "x", "1.0.0\n", " 1.0.0"])
def test_versions_match_exactly(verb: str, text: str) -> None:
    assert refused(lambda: version.gate(verb, text, version.ALL)) == (
        1,
        "incompatible CNI versions",
        f'config is "{text}", plugin supports {LIST}',
    )


GATES = [("ADD", 0), ("DEL", 0), ("CHECK", 4), ("GC", 6), ("STATUS", 6)]


@pytest.mark.parametrize(("verb", "first"), GATES)
def test_which_versions_have_a_verb(verb: str, first: int) -> None:
    for number, text in enumerate(version.ALL):
        if number >= first:
            version.gate(verb, text, version.ALL)
        else:
            code, msg, _ = refused(lambda text=text: version.gate(verb, text, version.ALL))
            assert (code, msg) == (1, f"config version does not allow {verb}")


@pytest.mark.parametrize("verb", ["CHECK", "GC", "STATUS"])
def test_a_plugin_too_old_for_a_verb(verb: str) -> None:
    code, msg, details = refused(lambda: version.gate(verb, "1.1.0", version.ALL[:-1]))
    assert (code, msg) == (1, f"plugin version does not allow {verb}")
    assert not details, "the reference has none"
    assert refused(lambda: version.gate(verb, "x", version.ALL))[0] == 6


# -- CNI_ARGS -------------------------------------------------------------------------------------

KNOWN = frozenset({"MAC", "IP"})


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", {}),
        ("MAC=a", {"MAC": "a"}),
        ("MAC=a;IP=", {"MAC": "a", "IP": ""}),
        ("IP=a;IP=b", {"IP": "b"}),
        ("IgnoreUnknown=1;K8S_POD_NAME=x;IP=b", {"IP": "b"}),
        ("K=x;IgnoreUnknown=True", {}),
        ("mac=a;IgnoreUnknown=TRUE", {}),
        ("IgnoreUnknown=0;MAC=a", {"MAC": "a"}),
    ],
)
def test_args(text: str, wanted: dict[str, str]) -> None:
    assert args.parse(text, KNOWN) == wanted


@pytest.mark.parametrize(
    ("text", "msg"),
    [
        ("MAC", 'ARGS: invalid pair "MAC"'),
        ("MAC=a;", 'ARGS: invalid pair ""'),
        ("MAC=a=b", 'ARGS: invalid pair "MAC=a=b"'),
        (";", 'ARGS: invalid pair ""'),
        ("A=1;B=2", 'ARGS: unknown args ["A=1" "B=2"]'),
        ("mac=1", 'ARGS: unknown args ["mac=1"]'),
        ("A=1;IgnoreUnknown=false", 'ARGS: unknown args ["A=1"]'),
        (
            "IgnoreUnknown=x",
            'ARGS: error parsing value of pair "IgnoreUnknown=x": boolean unmarshal error: '
            "invalid input x",
        ),
    ],
)
def test_bad_args(text: str, msg: str) -> None:
    assert refused(lambda: args.parse(text, KNOWN))[:2] == (999, msg)
