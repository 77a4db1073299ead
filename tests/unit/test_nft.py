"""The nft layer without a kernel: parsing what it says, and errors of the program nft."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni import files, process
from cni.kernel import netlink as nl
from cni.netfilter import compiler, iptables, nft
from cni.netfilter.table import Rule, parse_rule
from cni.netns.executor import Executor
from cni.owner import Owner
from cni.plugins.bridge import spoofcheck
from cni.plugins.shared.masquerade import backend_iptables as masquerade
from cni.protocol.address import Prefix


def message(table: str, chain: str, handle: int, userdata: bytes, *values: bytes) -> bytes:
    """A rule as the kernel dumps it, with comparisons of these values."""
    expressions = [
        nl.nest(1, nl.text(1, "cmp"), nl.nest(2, nl.u32(1, 1), nl.nest(3, nl.attr(1, value))))
        for value in values
    ]
    return (
        struct.pack("!BBH", 1, 0, 0)
        + nl.text(1, table)
        + nl.text(2, chain)
        + nl.attr(3, struct.pack("!Q", handle))
        + nl.nest(4, nl.nest(1, nl.text(1, "meta")), *expressions)
        + nl.attr(7, userdata)
    )


def comment(text: bytes) -> bytes:
    return bytes((0, len(text) + 1)) + text + b"\0"


def test_rule() -> None:
    data = message("t", "c", 2**33 + 5, b"\x01\x02ab" + comment(b"hello"), b"eth0\0\0", b"\x0a")
    rule = parse_rule(data, "t", "c")
    assert rule is not None
    assert (rule.handle, rule.comment, rule.compared) == (
        2**33 + 5,
        "hello",
        [b"eth0\0\0", b"\x0a"],
    )
    assert parse_rule(data, "t", "other") is None
    assert parse_rule(data, "other", "c") is None


@given(st.binary(max_size=200))
def test_any_bytes_are_survived(data: bytes) -> None:
    nft.comment_of(data)
    Rule(1, "", data).compared  # noqa: B018
    parse_rule(data, "t", "c")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("internal:0:0-0: Error: No such file or directory\n\n", "No such file or directory"),
        (
            "/dev/stdin:3:5-9: Error: syntax error\nadd tabel\n    ^^^^^\n",
            "syntax error; add tabel",
        ),
        ("", ""),
    ],
)
def test_error_text(text: str, clean: str) -> None:
    assert compiler.clean(text) == clean


def test_iptables_comment_is_quoted_as_iptables_save_does() -> None:
    owner = Owner("net1", "c1", "eth0")
    quoted = r'-m comment --comment "name: \"net1\" id: \"c1\""'
    assert iptables.comment(owner.iptables_comment) == quoted


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (r"-A POSTROUTING -s 10.0.0.1/32 {} -j {chain}", True),
        (r"-A {chain} ! -d 224.0.0.0/4 {} -j MASQUERADE", True),
        (r"-A POSTROUTING {} -j CNI-DN-abc", False),
        (r":{chain} - [0:0]", False),
        (r"-A POSTROUTING -j {chain}", False),
    ],
)
def test_chain_of_a_saved_rule(line: str, found: bool) -> None:
    owner = Owner("net1", "c1", "eth0")
    text = line.replace("{chain}", owner.chain())
    text = text.replace("{}", iptables.comment(owner.iptables_comment))
    assert masquerade._chain_of("net1", text) == (owner.chain() if found else None)
    assert masquerade._chain_of("net", text) is None
    assert masquerade._chain_of("net11", text) is None


@pytest.mark.parametrize(
    ("source", "of"),
    [("0a000005", True), ("0a0000", True), ("0a000006", False), ("0a0001", False), ("", False)],
)
def test_source_of_a_rule(source: str, of: bool) -> None:
    assert masquerade._is_from(bytes.fromhex(source), [Prefix.parse("10.0.0.5/24")]) is of


@given(st.text(min_size=1, max_size=300))
def test_spoofcheck_names_fit(ref: str) -> None:
    short = spoofcheck._short(ref)
    assert all(len(name.encode()) <= 127 for name in spoofcheck._chains(short))
    assert len(f"macspoofchk-{short}".encode()) <= 128
    assert spoofcheck._short(short) == short


# --- processes ------------------------------------------------------------------------------------


def test_run() -> None:
    script = "cat; echo err >&2; exit 3"
    done = process.run("/bin/sh", ["sh", "-c", script], b"in\n" * 100_000)
    assert done == (3, b"in\n" * 100_000, b"err\n")


def test_run_signal_and_environment() -> None:
    assert process.run("/bin/sh", ["sh", "-c", "kill -9 $$"]).code == -9
    done = process.run("/bin/sh", ["sh", "-c", "echo $A-$HOME"], env={"A": "b"})
    assert done.stdout == b"b-\n"


def child_statuses() -> set[Path]:
    """The files in /proc of this process's children, also of those that have ended."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if status.read_text().rpartition(") ")[2].split()[1] == str(os.getpid()):
                found.add(status)
    return found


def test_run_interrupted() -> None:
    """An exception out of a signal handler leaves no child behind."""

    class Timeout(Exception):
        pass

    def expire(number: int, frame: object) -> None:
        raise Timeout

    Executor.discard_idle()
    of_other_tests = child_statuses()
    before = signal.signal(signal.SIGALRM, expire)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Timeout):
            process.run("/bin/sleep", ["sleep", "60"])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert child_statuses() <= of_other_tests


def test_run_missing() -> None:
    with pytest.raises(FileNotFoundError):
        process.run("/nonexistent/program", ["x"])


@pytest.mark.parametrize("path", [None, "", "relative", "/nonexistent"])
def test_find_without_a_useful_path(monkeypatch: pytest.MonkeyPatch, path: str | None) -> None:
    monkeypatch.delenv("PATH") if path is None else monkeypatch.setenv("PATH", path)
    assert files.find_program("sh") == "/usr/bin/sh" or files.find_program("sh") == "/bin/sh"
    assert files.find_program("no-such-tool") is None
