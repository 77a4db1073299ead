"""Kernel parameters of a process that keeps their directories open."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cni.kernel import sysctl
from cni.netns import Namespace
from tests.harness.server import serving
from tests.harness.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness import Netns, Runtime

FORWARDING = "net/ipv4/ip_forward"
PER_LINK = "net/ipv6/conf/lo/accept_ra"


@pytest.fixture
def keeping(host: Netns, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The directories of the host's namespace are kept; what is opened by its whole path."""
    by_path: list[str] = []
    real = os.open

    def opening(path: str, *args: object, **kwargs: object) -> int:
        if str(path).startswith(sysctl.ROOT):
            by_path.append(path)
        return real(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(sysctl, "_keeper", 0)
    monkeypatch.setattr(sysctl, "_kept", {})
    host.run(sysctl.keep_open)
    monkeypatch.setattr(os, "open", opening)
    yield by_path
    for fd in sysctl._kept.values():
        os.close(fd)


def test_parameters_are_those_of_the_process_s_namespace(host: Netns, keeping: list[str]) -> None:
    host.set_sysctl(FORWARDING, 1)
    host.set_sysctl(PER_LINK, 0)

    def inside() -> None:
        assert sysctl.read(FORWARDING) == "1"
        sysctl.write(PER_LINK, "2")
        with pytest.raises(FileNotFoundError):
            sysctl.read("net/ipv4/nosuch")

    host.run(inside)
    assert host.sysctl(PER_LINK) == "2"
    assert keeping == [f"{sysctl.ROOT}net/ipv4/nosuch"]


def test_parameters_of_another_family_are_opened_by_path(host: Netns, keeping: list[str]) -> None:
    assert host.run(sysctl.read, "net/core/somaxconn")
    assert keeping == [f"{sysctl.ROOT}net/core/somaxconn"]


@pytest.mark.usefixtures("keeping")
def test_another_process_opens_those_of_its_own_namespace(host: Netns, container: Netns) -> None:
    """An executor is a child of the process that keeps them."""
    host.set_sysctl(FORWARDING, 1)
    container.set_sysctl(FORWARDING, 0)
    with Namespace.open(container.path) as netns:
        assert netns.run(sysctl.read, FORWARDING) == "0"
        netns.run(sysctl.write, PER_LINK, "2")
    assert container.sysctl(PER_LINK) == "2"
    assert host.sysctl(PER_LINK) != "2"


def test_workers_keep_them_open(runtime: Runtime, tmp_path: Path) -> None:
    wanted = {f"{sysctl.ROOT}net/ipv4", f"{sysctl.ROOT}net/ipv6"}

    def is_keeping(worker: int) -> bool:
        fds = Path(f"/proc/{worker}/fd")
        return wanted <= {os.readlink(fds / name) for name in os.listdir(fds)}

    with serving(runtime, tmp_path / "s") as server:
        wait_until(lambda: all(map(is_keeping, server.workers())), "every worker keeps them")
