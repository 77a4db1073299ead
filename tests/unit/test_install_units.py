"""The systemd units that `cni install --units` writes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cni import install_units
from cni.interpreter import InstallError

FIREWALLS = ("nftables.service", "iptables.service", "firewalld.service")


def test_they_run_the_installed_file(tmp_path: Path) -> None:
    written = install_units.write(tmp_path / "units", Path("/opt/100%/bin"))
    assert [Path(path).name for path in written] == list(install_units.NAMES)
    oneshot, watch = (Path(path).read_text() for path in written)
    assert oneshot.count("=/opt/100%%/bin/cni reload\n") == 2
    assert "ExecStart=/opt/100%%/bin/cni reload --watch\n" in watch
    for key in ("After=", "PartOf=", "ReloadPropagatedFrom=", "WantedBy="):
        line = next(line for line in oneshot.splitlines() if line.startswith(key))
        assert set(FIREWALLS) <= set(line.removeprefix(key).split())
    assert [os.stat(path).st_mode & 0o777 for path in written] == [0o644] * 2


def test_again_and_away(tmp_path: Path) -> None:
    first = install_units.write(tmp_path, Path("/opt/cni/bin"))
    assert install_units.write(tmp_path, Path("/usr/lib/cni")) == first
    assert "/usr/lib/cni/cni reload" in Path(first[0]).read_text()
    assert install_units.remove(tmp_path) == first
    assert install_units.remove(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    own = tmp_path / "cni-reload.service"
    own.write_text("[Unit]\n")
    with pytest.raises(InstallError, match="is not ours"):
        install_units.write(tmp_path, Path("/opt/cni/bin"))
    assert install_units.remove(tmp_path) == []
    assert own.read_text() == "[Unit]\n"


@pytest.mark.parametrize("path", ["/opt/a b", "/opt/'a", "/opt/$HOME", "/opt/a\nb", "/opt/a;b"])
def test_a_path_that_systemd_would_take_apart(tmp_path: Path, path: str) -> None:
    with pytest.raises(InstallError, match="systemd would not understand"):
        install_units.write(tmp_path, Path(path))
    assert list(tmp_path.iterdir()) == []


def test_systemd_finds_no_fault(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze (package systemd)")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/cni").symlink_to(shutil.which("true") or "/bin/true")
    written = install_units.write(tmp_path / "units", tmp_path / "bin")
    done = subprocess.run(["systemd-analyze", "verify", *written], capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if "cni-reload" in line]
    assert (done.returncode, ours) == (0, []), done.stderr
