"""The systemd units that `cni install --units` and `--service` write."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cni.artifact import InstallError
from cni.install import units as install_units
from cni.install.place import Place

FIREWALLS = ("nftables.service", "iptables.service", "firewalld.service")
NAMES = (*install_units.RULES, *install_units.SERVER, *install_units.DHCP)
HERE = Place(Path("/opt/cni/bin"))


def units(directory: Path) -> list[Path]:
    return [directory / name for name in NAMES]


def values(text: str, key: str) -> list[str]:
    """What a unit says for a key."""
    lines = (line.partition("=") for line in text.splitlines())
    return [value for found, _, value in lines if found == key]


def test_they_run_the_installed_file(tmp_path: Path) -> None:
    written = install_units.write(units(tmp_path / "units"), Place(Path("/opt/100%/bin")))
    assert [Path(path).name for path in written] == list(NAMES)
    oneshot, watch, socket, service, dhcp_socket, dhcp = (
        Path(path).read_text() for path in written
    )
    assert oneshot.count("=/opt/100%%/bin/cni reload\n") == 2
    assert "ExecStart=/opt/100%%/bin/cni reload --watch\n" in watch
    for key in ("After", "PartOf", "ReloadPropagatedFrom", "WantedBy"):
        assert set(FIREWALLS) <= set(values(oneshot, key)[0].split())
    assert values(service, "ExecStart")[0].startswith("/opt/100%%/bin/cni serve ")
    assert values(dhcp, "ExecStart") == ["/opt/100%%/bin/dhcp daemon"]
    assert "@" not in socket + service + dhcp_socket + dhcp
    assert [os.stat(path).st_mode & 0o777 for path in written] == [0o644] * len(NAMES)


def test_the_socket_is_where_clients_look(tmp_path: Path) -> None:
    from cni.cli.serve import SOCKET
    from tests.harness.build import ROOT

    install_units.write(units(tmp_path), HERE)
    socket = (tmp_path / "cni.socket").read_text()
    assert values(socket, "ListenStream") == [SOCKET]
    assert values(socket, "SocketMode") == ["0600"]
    assert f'#define CNI_SOCKET "{SOCKET}"' in (ROOT / "launcher/client.c").read_text()


def test_the_server_is_not_locked_in(tmp_path: Path) -> None:
    """Whatever makes a mount namespace, or forbids setns(2) or sysctls, breaks plugins."""
    install_units.write(units(tmp_path), HERE)
    text = (tmp_path / "cni.service").read_text()
    keys = {line.partition("=")[0] for line in text.splitlines() if not line.startswith("#")}
    locks = ("Private", "Protect", "Restrict", "ReadOnly", "SystemCall", "NoNew", "Capability")
    assert not [key for key in keys if key.startswith(locks)]
    assert values(text, "Type") == ["notify"]
    assert values(text, "KillMode") == ["mixed"]


def test_stopping_waits_for_requests(tmp_path: Path) -> None:
    from cni.server.supervisor import _DRAIN_SECONDS

    install_units.write(units(tmp_path), HERE)
    text = (tmp_path / "cni.service").read_text()
    assert float(values(text, "TimeoutStopSec")[0]) > _DRAIN_SECONDS


def test_again_and_away(tmp_path: Path) -> None:
    first = install_units.write(units(tmp_path), HERE)
    install_units.check(units(tmp_path), Place(Path("/usr/lib/cni")))
    assert install_units.write(units(tmp_path), Place(Path("/usr/lib/cni"))) == first
    assert "/usr/lib/cni/cni reload" in Path(first[0]).read_text()
    assert install_units.remove(units(tmp_path), HERE) == first
    assert install_units.remove(units(tmp_path), HERE) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_ours_stays(tmp_path: Path, name: str) -> None:
    own = tmp_path / name
    own.write_text("[Unit]\n")
    with pytest.raises(InstallError, match="is not ours"):
        install_units.check(units(tmp_path), HERE)
    assert install_units.remove(units(tmp_path), HERE) == []
    assert own.read_text() == "[Unit]\n"


@pytest.mark.parametrize("path", ["/opt/a b", "/opt/'a", "/opt/$HOME", "/opt/a\nb", "/opt/a;b"])
def test_a_path_that_systemd_would_take_apart(tmp_path: Path, path: str) -> None:
    with pytest.raises(InstallError, match="systemd would not understand"):
        install_units.check(units(tmp_path), Place(Path(path)))
    install_units.check([], Place(Path(path)))


DHCP_HINT = "where a network leases addresses with dhcp: {} cni-dhcp.socket"
ENABLE = "systemctl daemon-reload && systemctl enable --now"


@pytest.mark.parametrize(
    ("names", "enabled"),
    [
        ((), []),
        (install_units.SERVER, ["{} cni.socket"]),
        (install_units.RULES, ["{} cni-reload.service cni-reload-watch.service"]),
        (install_units.DHCP, [DHCP_HINT]),
        (NAMES, ["{} cni-reload.service cni-reload-watch.service cni.socket", DHCP_HINT]),
    ],
)
def test_the_hints(names: tuple[str, ...], enabled: list[str]) -> None:
    paths = [f"/etc/systemd/system/{name}" for name in names]
    assert list(install_units.hints(paths)) == [each.format(ENABLE) for each in enabled]
    offline = [each.format("systemctl --root /image enable") for each in enabled]
    assert list(install_units.hints(paths, Path("/image"))) == offline


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node where systemd runs; the file gets the arguments of each systemctl."""
    log = tmp_path / "log"
    program = tmp_path / "bin" / "systemctl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {log}\n[ "$1" != fail ]\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(install_units, "_RUNNING", tmp_path)
    monkeypatch.setattr(install_units, "DIRECTORY", tmp_path / "units")
    return log


def test_systemd_hears_of_a_removal(tmp_path: Path, systemctl: Path) -> None:
    install_units.write(units(tmp_path / "units"), HERE)
    install_units.disable(units(tmp_path / "units"), HERE)
    install_units.remove(units(tmp_path / "units"), HERE)
    install_units.disable(units(tmp_path / "units"), HERE)
    install_units.remove(units(tmp_path / "units"), HERE)
    disable = f"disable --now {' '.join(NAMES)}"
    assert systemctl.read_text().splitlines() == [disable, "daemon-reload"]


def test_units_elsewhere_are_not_systemd_s(tmp_path: Path, systemctl: Path) -> None:
    install_units.write(units(tmp_path / "image"), HERE)
    install_units.disable(units(tmp_path / "image"), HERE)
    install_units.remove(units(tmp_path / "image"), HERE)
    assert not systemctl.exists()


def test_systemd_finds_no_fault(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze (package systemd)")
    (tmp_path / "bin").mkdir()
    for name in ("cni", "dhcp"):
        (tmp_path / "bin" / name).symlink_to(shutil.which("true") or "/bin/true")
    written = install_units.write(units(tmp_path / "units"), Place(tmp_path / "bin"))
    done = subprocess.run(["systemd-analyze", "verify", *written], capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if any(name in line for name in NAMES)]
    assert (done.returncode, ours) == (0, []), done.stderr
