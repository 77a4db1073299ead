"""pytest's workers: how many, where they live, and what is said about the run.

A worker of pytest-xdist (`-n`) is in a machine of its own as far as tests can tell: worker.sh gives
it processes, mounts and /run, `pytest_sessionstart` a network. So workers share no lock, no path
below /run, no port and no name, and what a killed worker leaves ends with it.
"""

from __future__ import annotations

import gc
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import pytest

from .netns import leave_network

if TYPE_CHECKING:
    from collections.abc import Sequence

WORKER = Path(__file__).with_name("worker.sh")

# What `make test` leaves out, and who runs it.
LEFT_OUT = (
    ("slow", "kills at every step, load, rates; what others nearly show as well", "make test-all"),
    ("slow", "long ones, whose subject a shorter one has: harness/everyday.py", "make test-all"),
    ("slow", "combinations of parameters that are each in another test", "make test-all"),
    (
        "slow",
        "of long tests with many rows all but one or two: harness/everyday.py",
        "make test-all",
    ),
    ("lab", "the kernel must have vlan, ipvlan, vrf, …", "make test-lab"),
    ("debian", "the kernel must have SCTP or WireGuard", "make test-debian"),
    ("runtime", "podman and containerd start containers", "make test-runtime"),
)
_DURATION = "cni/seconds"
_LONGEST_KEY = 200


def is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def pytest_xdist_auto_num_workers() -> int:
    """Tests wait for the kernel and for packets half of the time."""
    return 2 * len(os.sched_getaffinity(0))


def pytest_configure(config: pytest.Config) -> None:
    # Every worker reads every test. What pytest makes of their assertions is kept, whatever the
    # environment says ($PYTHONDONTWRITEBYTECODE): making it takes twice as long as all the rest.
    sys.dont_write_bytecode = False
    gc.disable()  # until all tests are read: they stay, and looking at them takes half of that time
    # A shell ignores SIGINT for what it starts in the background, and nohup ignores SIGHUP. A
    # process that ignores a signal hands that down to all programs that it starts; it does not
    # hand down a handler.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _go_on)
    if os.geteuid() == 0 and getattr(config.option, "tx", None):
        python = shlex.join([str(WORKER), sys.executable])
        config.option.tx = [
            f"popen//python={python}" if spec == "popen" else spec for spec in config.option.tx
        ]


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    gc.enable()
    gc.freeze()  # what tests leave is looked at, but not the tests themselves each time


def _go_on(*_: object) -> None:
    """Outlive the terminal, as nohup asks."""


def pytest_sessionstart(session: pytest.Session) -> None:
    # Only now: plugins have connected to the process that started this worker.
    if is_worker(session.config) and os.geteuid() == 0:
        leave_network()
    session.config.stash[_BEGAN] = time.monotonic()


# -- what is said ---------------------------------------------------------------------------------

_BEGAN = pytest.StashKey[float]()
_DESELECTED = pytest.StashKey[int]()


def pytest_report_header(config: pytest.Config) -> list[str]:
    """What runs, how long that takes, and what does not run, and why."""
    if is_worker(config):
        return []
    said = []
    if workers := len(getattr(config.option, "tx", None) or ()):
        said.append(f"{workers} workers, each in a machine of its own")
    everyday = config.option.markexpr == "not slow"
    if everyday:
        said.append("about four minutes on two idle processors")
    if last := _last_duration(config):
        said.append(f"{last // 60} min {last % 60} s here last time")
    lines = [f"run: {'; '.join(said)}"] if said else []
    if everyday:
        lines += [f"left out: {name} ({why}): {who}" for name, why, who in LEFT_OUT]
    return lines


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    if items:
        stash = items[0].config.stash
        stash[_DESELECTED] = stash.get(_DESELECTED, 0) + len(items)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Every worker collects, and so deselects, the same tests."""
    node.config.stash[_DESELECTED] = getattr(node, "workeroutput", {}).get("deselected", 0)


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    if is_worker(config):
        config.workeroutput["deselected"] = config.stash.get(_DESELECTED, 0)  # type: ignore[attr-defined]
    elif (cache := getattr(config, "cache", None)) is not None and not session.shouldstop:
        cache.set(_key(config), round(time.monotonic() - config.stash[_BEGAN]))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if (count := config.stash.get(_DESELECTED, 0)) and getattr(config.option, "tx", None):
        by = [f"-{name} {value!r}" for name, value in _chosen_by(config) if value]
        if "CNI_HOST_FEATURES" in os.environ or "CNI_TEST_SERVER" in os.environ:
            by.append("what `make test-netns` shows as well")
        terminalreporter.write_line(f"{count} deselected by {' '.join(by)}")


def _chosen_by(config: pytest.Config) -> tuple[tuple[str, str], ...]:
    return ("m", config.option.markexpr), ("k", config.option.keyword)


def _last_duration(config: pytest.Config) -> int:
    cache = getattr(config, "cache", None)
    return int(cache.get(_key(config), 0)) if cache is not None else 0


def _key(config: pytest.Config) -> str:
    """Runs with the same arguments take the same time."""
    where = "+".join(Path(arg).name for arg in config.args)
    variables = [os.environ.get(f"CNI_TEST_{name}", "") for name in ("SERVER", "FILES")]
    key = f"{where} {_chosen_by(config)} {' '.join(variables)}".rstrip()
    key = key.replace("/", ".").replace(" ", "_")
    if len(key) > _LONGEST_KEY:  # it becomes a file's name
        key = f"{key[:_LONGEST_KEY]}-{crc32(key.encode()):08x}"
    return f"{_DURATION}/{key}"
