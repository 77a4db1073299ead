"""From environment and stdin to exit code and stdout, whatever they hold. No kernel is touched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni import REFERENCE_VERSION, __version__, dispatch, interrupts
from cni.call import Call, Steps
from cni.dispatch import TABLE, about, answer
from cni.kernel.errors import LinkNotFound
from cni.protocol import version
from cni.protocol.config import NetConf
from cni.protocol.errors import CNIError, IOFailure, NotAvailable, TryAgainLater
from cni.protocol.request import Attachment
from cni.protocol.result import IPConfig, Result
from tests.harness.wait import wait_for_call

Json = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]

ENV = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/nosuch",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/nosuch",
}
CONF: Json = {"cniVersion": "1.1.0", "name": "net", "type": "probe"}


class Probe(ModuleType):
    """A plugin that does what the test says and remembers what it was asked."""

    class Conf(NetConf):
        number: int = 0

    def __init__(self) -> None:
        super().__init__("probe")
        self.calls: list[Any] = []
        self.action: Any = lambda _call: None

    def add(self, call: Call[Any]) -> Result:
        self.calls.append(("add", call))
        result = self.action(call)
        return Result() if result is None else result

    def delete(self, call: Call[Any]) -> None:
        self.calls.append(("delete", call))
        self.action(call)

    def check(self, call: Call[Any]) -> None:
        self.calls.append(("check", call))
        self.action(call)

    def gc(self, call: Call[Any], keep: frozenset[Attachment]) -> None:
        self.calls.append(("gc", keep))
        self.action(call)


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Probe:
    module = Probe()
    monkeypatch.setitem(TABLE, "probe", dispatch.Plugin("probe", "a test", conf_error="conf: "))
    monkeypatch.setitem(sys.modules, "probe", module)
    return module


def ask(
    command: str = "ADD", conf: Json | bytes = CONF, plugin: str = "probe", **env: str
) -> tuple[int, Json | None]:
    """Exit code, and the JSON on stdout (None when there is nothing)."""
    stdin = conf if isinstance(conf, bytes) else json.dumps(conf).encode()
    code, output = answer(plugin, {**ENV, "CNI_COMMAND": command, **env}, lambda: stdin)
    return code, json.loads(output) if output else None


def refused(*args: Any, **kwargs: Any) -> tuple[int, str]:
    """(code, msg) of the error object."""
    code, body = ask(*args, **kwargs)
    assert code == 1
    assert body is not None
    assert set(body) <= {"code", "msg", "details"}
    return body["code"], body["msg"]


# -- verbs ----------------------------------------------------------------------------------------


def test_add_prints_a_result(probe: Probe) -> None:
    probe.action = lambda _: Result(ips=[IPConfig(address="10.0.0.2/8")])
    assert ask() == (0, {"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.2/8"}]})
    old = {"name": "net", "type": "probe"}
    assert ask(conf=old) == (
        0,
        {"cniVersion": "0.1.0", "ip4": {"ip": "10.0.0.2/8"}, "dns": {}},
    )


@pytest.mark.parametrize("command", ["DEL", "CHECK", "GC", "STATUS"])
def test_other_verbs_print_nothing(probe: Probe, command: str) -> None:
    assert ask(command) == (0, None)


def test_a_verb_that_a_plugin_lacks_succeeds(probe: Probe) -> None:
    assert not hasattr(probe, "status")
    assert ask("STATUS") == (0, None)
    assert refused("STATUS", {**CONF, "cniVersion": "1.0.0"}) == (
        1,
        "config version does not allow STATUS",
    )


@pytest.mark.parametrize("plugin", sorted(TABLE))
def test_version(plugin: str) -> None:
    code, output = answer(plugin, {"CNI_COMMAND": "VERSION"}, lambda: b"{")
    assert code == 0
    wanted = {"cniVersion": "1.1.0", "supportedVersions": list(TABLE[plugin].versions)}
    assert json.loads(output) == wanted
    assert output == json.dumps(wanted, separators=(",", ":")).encode() + b"\n"


def test_unknown_command(probe: Probe) -> None:
    assert refused("NOSUCH") == (4, "unknown CNI_COMMAND: NOSUCH")
    assert refused("add") == (4, "unknown CNI_COMMAND: add")
    # the configuration is looked at first
    assert refused("NOSUCH", b"")[0] == 6
    assert refused("NOSUCH", {})[0] == 7
    assert not probe.calls


def test_order_of_the_checks(probe: Probe) -> None:
    """Environment, JSON, name, version; the plugin's own keys come last."""
    bad = {"name": "a/b", "cniVersion": 5, "number": "x"}
    assert refused("ADD", b"{", CNI_IFNAME="")[0] == 4
    assert refused("ADD", b"{")[0] == 6
    assert refused("ADD", bad) == (7, "invalid characters found in network name")
    bad["name"] = "n"
    assert refused("ADD", bad)[0] == 6
    bad["cniVersion"] = "9.9.9"
    assert refused("ADD", bad) == (1, "incompatible CNI versions")
    assert not probe.calls
    bad["cniVersion"] = "1.0.0"
    probe.action = lambda call: call.conf
    assert refused("ADD", bad) == (
        999,
        "conf: json: cannot unmarshal string into field number of type int",
    )


@pytest.mark.parametrize("name", ["", None])
def test_network_name(probe: Probe, name: str | None) -> None:
    assert refused(conf={**CONF, "name": name}) == (7, "missing network name")
    assert refused(conf={**CONF, "name": "net\n"})[0] == 7


def test_a_stdin_that_cannot_be_read(probe: Probe) -> None:
    def stdin() -> bytes:
        raise IOFailure("error reading from stdin: broken")

    code, output = answer("probe", ENV, stdin)
    assert (code, json.loads(output)["code"]) == (1, 5)


def test_the_error_as_the_reference_prints_it(probe: Probe) -> None:
    def fail(_call: object) -> None:
        raise TryAgainLater("<no>", "a\nb")

    probe.action = fail
    stdin = json.dumps(CONF).encode()
    code, output = answer("probe", ENV, lambda: stdin)
    assert code == 1
    assert output == (
        b'{\n    "code": 11,\n    "msg": "\\u003cno\\u003e",\n    "details": "a\\nb"\n}'
    )


@pytest.mark.parametrize(
    "error",
    [
        ValueError("boom"),
        OSError(13, "denied"),
        RecursionError(),
        KeyboardInterrupt(),
        SystemExit(3),
        MemoryError(),
        AssertionError(),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        ValueError("\udcff surrogate"),
        CNIError("\udcff", "\ud800"),
    ],
    ids=repr,
)
def test_any_exception_is_an_error_object(probe: Probe, error: BaseException) -> None:
    def fail(_call: object) -> None:
        raise error

    probe.action = fail
    code, msg = refused()
    assert code == (11 if isinstance(error, MemoryError) else 999)
    assert msg


def test_a_link_that_is_gone_in_the_middle(probe: Probe) -> None:
    """As a DEL at the same time may cause: an error for the operator, not a traceback."""

    def fail(_call: object) -> None:
        raise LinkNotFound("Link not found")

    probe.action = fail
    code, error = ask()
    assert error is not None
    assert (code, error["code"], error["msg"]) == (1, 999, "Link not found")
    assert "DEL of the same attachment" in error["details"]


@pytest.mark.parametrize("code", [10**30, -(10**30), 2**63])
def test_a_code_that_is_out_of_range(probe: Probe, code: int) -> None:
    def fail(_call: object) -> None:
        error = CNIError("m")
        error.code = code
        raise error

    probe.action = fail
    assert refused()[1] == "m"


# -- undo -----------------------------------------------------------------------------------------


def test_a_failed_add_is_undone_last_change_first(probe: Probe) -> None:
    undone: list[str] = []

    def fail(call: Call[Any]) -> None:
        call.undo.callback(undone.append, "first")
        call.undo.callback(undone.append, "second")
        raise NotAvailable("no")

    probe.action = fail
    assert refused() == (50, "no")
    assert undone == ["second", "first"]


def test_a_result_that_cannot_be_printed_leaves_the_link_to_del(probe: Probe) -> None:
    """As the reference, whose own tests look for it."""
    undone: list[str] = []
    probe.action = lambda call: call.undo.callback(undone.append, "x") and None
    assert refused(conf={"name": "net"}) == (999, "cannot convert: no valid IP addresses")
    assert undone == []


def test_success_undoes_nothing(probe: Probe) -> None:
    undone: list[str] = []
    probe.action = lambda call: call.undo.callback(undone.append, "x") and None
    assert ask()[0] == 0
    assert undone == []


def test_what_cannot_be_undone_does_not_hide_the_error(
    probe: Probe, capfd: pytest.CaptureFixture[str]
) -> None:
    undone: list[str] = []

    def broken() -> None:
        raise OSError(1, "cannot undo")

    def fail(call: Call[Any]) -> None:
        call.undo.callback(undone.append, "first")
        call.undo.callback(broken)
        raise NotAvailable("no")

    probe.action = fail
    assert refused() == (50, "no")
    assert undone == ["first"]
    assert "cannot undo" in capfd.readouterr().err


def test_what_cannot_be_undone_is_in_the_error(probe: Probe) -> None:
    def broken() -> None:
        raise OSError(1, "cannot undo")

    def fail(call: Call[Any]) -> None:
        call.undo.callback(broken)
        raise NotAvailable("no", "because")

    probe.action = fail
    _, body = ask()
    assert body is not None
    assert "run DEL" in body["details"]
    assert "because" in body["details"]
    assert "cannot undo" in body["details"]


# -- signals --------------------------------------------------------------------------------------


@pytest.fixture
def _signals() -> Iterator[None]:
    """The handlers of a request; afterwards those of the test process."""
    before = {number: signal.getsignal(number) for number in interrupts.SIGNALS}
    interrupts.install()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_waits_for_the_note_of_a_reverse(probe: Probe, number: signal.Signals) -> None:
    """It came between a change and its reverse: the change is undone all the same."""
    done: list[str] = []

    def act(call: Call[Any]) -> None:
        done.append("changed")
        signal.raise_signal(number)
        done.append("went on")
        call.undo.callback(done.append, "undone")
        done.append("too far")

    probe.action = act
    assert refused() == (999, f"interrupted by {number.name}")
    assert done == ["changed", "went on", "undone"]


@pytest.mark.usefixtures("_signals")
def test_a_signal_counts_until_the_verb_has_ended(probe: Probe) -> None:
    undone: list[str] = []

    def act(call: Call[Any]) -> None:
        call.undo.callback(undone.append, "undone")
        signal.raise_signal(signal.SIGTERM)

    probe.action = act
    assert refused() == (999, "interrupted by SIGTERM")
    assert undone == ["undone"]


@pytest.mark.usefixtures("_signals")
def test_a_signal_cannot_be_swallowed(probe: Probe) -> None:
    """Neither by a plugin that has another way, nor by one that fails because of it."""

    def act(call: Call[Any]) -> None:
        signal.raise_signal(signal.SIGTERM)
        try:
            call.undo.callback(list)
        except CNIError:
            raise CNIError("no other way") from None

    probe.action = act
    _, body = ask()
    assert body is not None
    assert body["msg"] == "interrupted by SIGTERM"
    assert body["details"].startswith("no other way; ")


@pytest.mark.usefixtures("_signals")
def test_a_signal_that_got_another_text_is_told_once(probe: Probe) -> None:
    def act(call: Call[Any]) -> None:
        signal.raise_signal(signal.SIGTERM)
        try:
            call.undo.callback(list)
        except CNIError as error:
            raise error.wrapped("cannot make rules: ") from None

    probe.action = act
    _, body = ask()
    assert body is not None
    assert body["msg"] == "interrupted by SIGTERM"
    assert body["details"] == (
        "cannot make rules: interrupted by SIGTERM; what an ADD had done was undone; try again"
    )


@pytest.mark.usefixtures("_signals")
def test_a_signal_ends_a_wait(probe: Probe) -> None:
    def act(_call: Call[Any]) -> None:
        waits = threading.get_ident()  # a signal of the timer's thread would not end the wait
        threading.Timer(0.05, signal.pthread_kill, (waits, signal.SIGTERM)).start()
        with interrupts.waiting():
            threading.Event().wait(60)

    probe.action = act
    assert refused() == (999, "interrupted by SIGTERM")


@pytest.mark.usefixtures("_signals")
def test_a_signal_while_the_result_is_written_is_too_late(probe: Probe) -> None:
    undone: list[str] = []
    written: list[bytes] = []

    def deliver(data: bytes) -> None:
        signal.raise_signal(signal.SIGTERM)
        written.append(data)

    probe.action = lambda call: call.undo.callback(undone.append, "undone")
    run = dispatch.begin("probe", ENV, lambda: json.dumps(CONF).encode(), deliver=deliver)
    assert run() == (0, b"", True)
    assert json.loads(written[0]) == {"cniVersion": "1.1.0"}
    assert not undone


@pytest.mark.usefixtures("_signals")
def test_a_signal_while_an_add_is_undone_does_not_stop_that(probe: Probe) -> None:
    undone: list[str] = []

    def act(call: Call[Any]) -> None:
        call.undo.callback(undone.append, "undone")
        call.undo.callback(signal.raise_signal, signal.SIGTERM)
        raise NotAvailable("no")

    probe.action = act
    assert refused() == (50, "no")
    assert undone == ["undone"]


def test_a_result_that_cannot_be_written_is_undone(probe: Probe) -> None:
    undone: list[str] = []

    def deliver(_data: bytes) -> None:
        raise IOFailure("no reader")

    probe.action = lambda call: call.undo.callback(undone.append, "undone")
    run = dispatch.begin("probe", ENV, lambda: json.dumps(CONF).encode(), deliver=deliver)
    code, output, _ = run()
    assert (code, json.loads(output)["code"]) == (1, 5)
    assert undone == ["undone"]


# -- steps ----------------------------------------------------------------------------------------


def test_every_step_of_a_del_runs() -> None:
    steps, ran = Steps(), []

    def fail(error: Exception) -> None:
        ran.append(error)
        raise error

    steps.run(fail, TryAgainLater("one", "d"))
    steps.run(fail, OSError(1, "two"))
    assert steps.run(lambda: 5) == 5
    with pytest.raises(CNIError) as caught:
        steps.finish()
    assert len(ran) == 2
    assert (caught.value.code, caught.value.msg) == (11, "one; two")
    Steps().finish()


# -- GC -------------------------------------------------------------------------------------------

C1 = {"containerID": "c1", "ifname": "eth0"}


@pytest.mark.parametrize("key", ["cni.dev/valid-attachments", "cni.dev/attachments"])
@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ([], frozenset()),
        ([C1], frozenset({Attachment("c1", "eth0")})),
        ([C1, C1, {**C1, "x": 1}], frozenset({Attachment("c1", "eth0")})),
    ],
)
def test_valid_attachments(probe: Probe, key: str, value: Any, wanted: Any) -> None:
    assert ask("GC", {**CONF, key: value}) == (0, None)
    assert probe.calls == [("gc", wanted)]


@pytest.mark.parametrize("extra", [{}, {"cni.dev/valid-attachments": None}])
def test_without_a_list_nothing_is_collected(probe: Probe, extra: Json) -> None:
    assert ask("GC", {**CONF, **extra}) == (0, None)
    assert probe.calls == []


@pytest.mark.parametrize(
    "value",
    [
        5, "x", {}, False, ["x"], [None], [{}], [[]], [{"containerID": "c1"}], [{"ifname": "eth0"}],
        [C1, {"containerID": "", "ifname": "eth0"}], [C1, {"containerID": "c", "ifname": 5}],
    ],
)  # fmt: skip
def test_with_a_bad_list_nothing_is_collected(probe: Probe, value: object) -> None:
    code, msg = refused("GC", {**CONF, "cni.dev/valid-attachments": value})
    assert code == 999
    assert msg.startswith("cni.dev/valid-attachments ")
    assert probe.calls == []


# -- prevResult -----------------------------------------------------------------------------------


def test_prev_result(probe: Probe) -> None:
    probe.action = lambda call: call.prev_result()
    prev = {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/8"}]}
    assert ask(conf={**CONF, "prevResult": prev}) == (0, {**prev, "cniVersion": "1.1.0"})
    assert ask(conf={**CONF, "PREVRESULT": prev})[1] == {**prev, "cniVersion": "1.1.0"}
    assert ask(conf={**CONF, "prevResult": None}) == (0, {"cniVersion": "1.1.0"})
    assert refused(conf={**CONF, "prevResult": {**prev, "cniVersion": "0.4.0"}}) == (
        999,
        "could not parse prevResult: result type supports [1.0.0 1.1.0] but unmarshalled "
        'CNIVersion is "0.4.0"',
    )
    for bad in (5, [], "x", {"ips": [{"address": "x"}]}):
        code, msg = refused(conf={**CONF, "prevResult": bad})
        assert code == 999
        assert msg.startswith("could not parse prevResult: ")


# -- the same namespace ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/proc/self/ns/net", "/proc/thread-self/ns/net"])
@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_our_own_namespace_is_refused(probe: Probe, command: str, path: str) -> None:
    assert refused(command, CNI_NETNS=path) == (
        8,
        "plugin's netns and netns from CNI_NETNS should not be the same",
    )
    assert len(probe.calls) == (command == "DEL")  # its steps run, and nothing is done in there
    for value in ("1", "true", "TRUE"):
        assert ask(command, CNI_NETNS=path, CNI_NETNS_OVERRIDE=value)[0] == 0
    assert refused(command, CNI_NETNS=path, CNI_NETNS_OVERRIDE="0")[0] == 8


def test_check_is_not_guarded(probe: Probe) -> None:
    assert ask("CHECK", CNI_NETNS="/proc/self/ns/net") == (0, None)


# -- whatever it is asked -------------------------------------------------------------------------

BYTES = st.binary(max_size=30).map(os.fsdecode)  # as os.environ gives them
ENVS = st.fixed_dictionaries(
    {},
    optional={
        "CNI_COMMAND": st.sampled_from(["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"]) | BYTES,
        "CNI_CONTAINERID": st.just("c1") | BYTES,
        "CNI_NETNS": st.just("/run/netns/nosuch") | BYTES,
        "CNI_IFNAME": st.just("eth0") | BYTES,
        "CNI_PATH": st.just("/nosuch") | BYTES,
        "CNI_ARGS": st.just("IgnoreUnknown=1") | BYTES,
        "CNI_NETNS_OVERRIDE": st.just("1") | BYTES,
    },
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["type", "address", "ips", "dst", "cniVersion", "interfaces", "mac"]),
            inner,
        )
    ),
    max_leaves=5,
)
CONFS = st.fixed_dictionaries(
    {},
    optional={
        "cniVersion": st.sampled_from(version.ALL) | VALUES,
        "name": st.just("net") | VALUES,
        "type": VALUES,
        "ipam": VALUES,
        "dns": VALUES,
        "prevResult": VALUES,
        "args": VALUES,
        "runtimeConfig": VALUES,
        "mtu": VALUES,
        "vlanTrunk": VALUES,
        "cni.dev/valid-attachments": VALUES,
    },
).map(lambda value: json.dumps(value).encode())


@pytest.mark.parametrize("plugin", ["bridge", "ptp", "loopback", "static"])
@given(env=ENVS, stdin=CONFS | st.binary(max_size=40))
def test_the_answer_is_always_an_answer(plugin: str, env: dict[str, str], stdin: bytes) -> None:
    """The namespace never exists, so that no plugin gets as far as changing anything."""
    if Path(env.get("CNI_NETNS", "").replace("\0", "") or "/").exists():
        env = {**env, "CNI_NETNS": "/run/netns/nosuch"}
    if env.get("CNI_COMMAND") in ("DEL", "GC"):
        env = {**env, "CNI_COMMAND": "CHECK"}  # these would go on without a namespace
    code, output = answer(plugin, env, lambda: stdin)
    if code == 0:
        assert env["CNI_COMMAND"] in ("ADD", "STATUS", "VERSION")
        if output:
            assert isinstance(json.loads(output), dict)
        return
    assert code == 1
    body = json.loads(output)
    assert isinstance(body["code"], int)
    assert body["msg"]
    assert isinstance(body.get("details", ""), str)


# -- the process ----------------------------------------------------------------------------------


def run_main(
    plugin: str, env: dict[str, str], stdout: int = subprocess.PIPE
) -> subprocess.Popen[bytes]:
    code = f"import sys; from cni.dispatch import main; sys.exit(main({plugin!r}))"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={"PATH": "/usr/bin:/bin", **env},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("env", [{}, {"CNI_COMMAND": ""}])
def test_without_a_command_a_plugin_says_what_it_is(env: dict[str, str]) -> None:
    child = run_main("loopback", env)
    out, err = child.communicate()
    assert (child.returncode, out) == (0, b"")
    assert (
        err.decode()
        == about("loopback")
        == (
            f"CNI loopback plugin v{REFERENCE_VERSION}+py.{__version__}\n"
            "CNI protocol versions supported: 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0\n"
        )
    )


def test_a_closed_stdin_is_an_io_failure() -> None:
    code = "import os, sys; os.close(0); from cni.dispatch import main; sys.exit(main('loopback'))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PATH": "/bin", **ENV}, cwd=ROOT, capture_output=True
    )
    assert done.returncode == 1
    body = json.loads(done.stdout)
    assert (body["code"], body["msg"]) == (5, "error reading from stdin: Bad file descriptor")


def test_a_closed_stdout_is_a_failure() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        child = run_main("loopback", {"CNI_COMMAND": "VERSION"}, writer)
        _, err = child.communicate()
    finally:
        os.close(writer)
    assert b"cannot write to stdout" in err
    assert child.returncode == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_stdin_is_read(number: signal.Signals) -> None:
    child = run_main("loopback", ENV)
    assert child.stdin is not None
    child.stdin.write(b"{")  # and the rest never comes
    child.stdin.flush()
    wait_for_call(child.pid, "read", 0)
    child.send_signal(number)
    out, _ = child.communicate()
    assert child.returncode == 1
    body = json.loads(out)
    assert (body["code"], body["msg"]) == (999, f"interrupted by {number.name}")


def test_a_stdin_without_end_is_refused() -> None:
    child = run_main("loopback", ENV)
    out, _ = child.communicate(b" " * ((16 << 20) + 1))
    assert child.returncode == 1
    assert json.loads(out)["code"] == 5


# -- prevResult -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a b", "a\nb", "a/b", "eth%d", ".."])
def test_interface_names_of_a_prev_result(probe: Probe, name: str) -> None:
    """What no interface can be called is refused; a DEL has to do without it."""
    seen: list[Any] = []
    probe.action = lambda call: seen.append(call.prev_result())
    interfaces = [{"name": name}, {"name": "eth0"}, {"name": "an-alternative-name-is-longer"}]
    conf = {**CONF, "prevResult": {"cniVersion": "1.1.0", "interfaces": interfaces}}
    code, msg = refused("ADD", conf)
    assert code == 999
    assert msg.startswith("could not parse prevResult: interface name ")
    assert repr(name) in msg
    assert ask("DEL", conf)[0] == 0
    assert [link.name for link in seen[0].interfaces] == ["", "eth0", interfaces[2]["name"]]


def test_a_del_reads_what_it_can(probe: Probe) -> None:
    """A key that DEL does not read may be anything; one that it reads is an error afterwards."""
    conf = {**CONF, "number": "x"}
    assert ask("DEL", conf) == (0, None)
    done: list[str] = []

    def act(call: Call[Any]) -> None:
        assert call.conf.number == 0
        done.append(call.conf.name)

    probe.action = act
    code, msg = refused("DEL", conf)
    assert (code, msg) == (
        999,
        "conf: json: cannot unmarshal string into field number of type int",
    )
    assert done == ["net"]
