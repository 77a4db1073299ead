"""host-local against a simple oracle: any sequence of verbs, several containers, small ranges."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cni.ipam.host_local import reservation
from cni.ipam.host_local.directory import open_store

from .ipam_node import Failure, Ipam, environment
from .test_host_local_index import GO, make_coarse

Address = IPv4Address | IPv6Address

CONTAINERS = ("c1", "c2", "c3", "c4")
INTERFACES = ("eth0", "eth1")
OWNERS = st.tuples(st.sampled_from(CONTAINERS), st.sampled_from(INTERFACES))

# (subnet, rangeStart, rangeEnd, gateway) of each range of each set, and what they hand out.
LAYOUTS: dict[str, tuple[list[list[dict[str, Any]]], list[list[str]]]] = {
    "v4": (
        [[{"subnet": "10.0.0.0/29"}]],
        [["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]],
    ),
    "two ranges": (
        [
            [
                {"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.254", "gateway": "10.0.0.254"},
                {"subnet": "10.0.1.0/30"},
                {"subnet": "10.0.2.0/24", "rangeStart": "10.0.2.7", "rangeEnd": "10.0.2.9"},
            ]
        ],
        [["10.0.1.2", "10.0.2.7", "10.0.2.8", "10.0.2.9"]],
    ),
    "excluded": (
        [
            [
                {"subnet": "10.0.0.0/28", "exclude": ["10.0.0.4/30", "10.0.0.9-10.0.0.12"]},
                {"subnet": "10.0.1.0/29", "exclude": ["10.0.1.2", "10.0.1.2-10.0.1.3"]},
            ]
        ],
        [[f"10.0.{host}" for host in ("0.2", "0.3", "0.8", "0.13", "0.14", "1.4", "1.5", "1.6")]],
    ),
    "dual stack": (
        [
            [{"subnet": "10.0.0.0/24", "rangeEnd": "10.0.0.5", "gateway": "10.0.0.3"}],
            [{"subnet": "fd00::/64", "rangeStart": "fd00::ffff:fffe", "rangeEnd": "fd00::1:0:1"}],
        ],
        [
            ["10.0.0.1", "10.0.0.2", "10.0.0.4", "10.0.0.5"],
            ["fd00::ffff:fffe", "fd00::ffff:ffff", "fd00::1:0:0", "fd00::1:0:1"],
        ],
    ),
}


class Model(RuleBasedStateMachine):
    """`held` is the truth: address -> owner; `last` is what each set handed out last."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="cni-model-"))
        self.held: dict[Address, tuple[str, ...]] = {}
        self.last: list[Address | None] = []
        self.boot = 1
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(reservation, "_boot", lambda: (self.boot.to_bytes(16, "big"), True))
        make_coarse(self.patch)

    @initialize(layout=st.sampled_from(sorted(LAYOUTS)))
    def configure(self, layout: str) -> None:
        ranges, usable = LAYOUTS[layout]
        self.usable = [[ip_address(text) for text in each] for each in usable]
        self.last = [None] * len(ranges)
        self.ipam = Ipam(
            "host-local",
            {
                "cniVersion": "1.1.0",
                "name": "net",
                "ipam": {"type": "host-local", "dataDir": str(self.directory), "ranges": ranges},
            },
        )

    def teardown(self) -> None:
        self.patch.undo()
        shutil.rmtree(self.directory)

    # --- the oracle ---

    def _order(self, index: int) -> list[Address]:
        """A set's addresses in the order in which they are tried."""
        usable, last = self.usable[index], self.last[index]
        if last is None:
            return usable
        at = usable.index(last) + 1
        return usable[at:] + usable[:at]

    def _expected(self, owner: tuple[str, ...], wanted: list[Address]) -> list[Address] | None:
        """What an ADD must return; None if it must fail. Moves `last` as far as it gets."""
        got: list[Address] = []
        taken = dict(self.held)
        left = list(wanted)
        for index, usable in enumerate(self.usable):
            asked = next((ip for ip in left if ip in usable), None)
            if asked is not None:
                left.remove(asked)
                if asked in taken:
                    return None
            elif any(taken.get(ip) in (owner, owner[:1]) for ip in usable):
                return None
            else:
                asked = next((ip for ip in self._order(index) if ip not in taken), None)
                if asked is None:
                    return None
            taken[asked] = owner
            self.last[index] = asked
            got.append(asked)
        return None if left else got

    # --- what happens ---

    @rule(owner=OWNERS)
    def add(self, owner: tuple[str, str]) -> None:
        self._add(owner, [])

    @rule(owner=OWNERS, data=st.data())
    def add_requested(self, owner: tuple[str, str], data: Any) -> None:
        everything = [ip for each in self.usable for ip in each]
        self._add(owner, data.draw(st.lists(st.sampled_from(everything), max_size=2, unique=True)))

    def _add(self, owner: tuple[str, str], wanted: list[Address]) -> None:
        expected = self._expected(owner, wanted)
        runtime = {"runtimeConfig": {"ips": [str(ip) for ip in wanted]}}
        if expected is None:
            with pytest.raises(Failure) as caught:
                self.ipam.add(*owner, **runtime)
            assert caught.value.code == 999
            return
        got = [ip_address(text.partition("/")[0]) for text in self.ipam.add(*owner, **runtime)]
        assert got == expected
        self.held.update(dict.fromkeys(got, owner))

    @rule(owner=OWNERS)
    def delete(self, owner: tuple[str, str]) -> None:
        self.ipam.delete(*owner)
        self._forget(owner)

    def _forget(self, owner: tuple[str, str]) -> None:
        legacy = owner not in self.held.values()
        gone: tuple[str, ...] = owner[:1] if legacy else owner
        self.held = {ip: who for ip, who in self.held.items() if who != gone}

    @rule(owner=OWNERS)
    def check(self, owner: tuple[str, str]) -> None:
        if {owner, owner[:1]} & set(self.held.values()):
            self.ipam.check(*owner)
        else:
            with pytest.raises(Failure, match="Failed to find address"):
                self.ipam.check(*owner)

    @rule(keep=st.sets(OWNERS))
    def gc(self, keep: set[tuple[str, str]]) -> None:
        self.ipam.gc(*keep)
        valid = keep | {owner[:1] for owner in keep}
        self.held = {ip: who for ip, who in self.held.items() if who in valid}

    @rule()
    def status(self) -> None:
        full = any(all(ip in self.held for ip in usable) for usable in self.usable)
        code, _ = self.ipam.raw("STATUS")
        assert code == full

    @rule(data=st.data(), cid=st.sampled_from(CONTAINERS))
    def old_version_reserved(self, data: Any, cid: str) -> None:
        """The reference of years ago made a file with an ID only."""
        self._put(data, cid.encode())

    @rule(data=st.data())
    def torn(self, data: Any) -> None:
        """The reference was killed between making a file and writing it."""
        self._put(data, b"")

    def _put(self, data: Any, content: bytes) -> None:
        ip = data.draw(st.sampled_from([ip for each in self.usable for ip in each]))
        (self.directory / "net").mkdir(exist_ok=True)
        (self.directory / "net" / str(ip)).unlink(missing_ok=True)
        (self.directory / "net" / str(ip)).write_bytes(content)
        self.held.pop(ip, None)
        if content:
            self.held[ip] = (content.decode(),)

    @rule(data=st.data())
    def removed_by_hand(self, data: Any) -> None:
        if self.held:
            ip = data.draw(st.sampled_from(sorted(self.held, key=str)))
            (self.directory / "net" / str(ip)).unlink()
            del self.held[ip]

    @rule(owner=OWNERS)
    def deleted_by_the_reference(self, owner: tuple[str, str]) -> None:
        if GO.exists():
            subprocess.run(
                [GO],
                input=json.dumps({**self.ipam.conf, "cniVersion": "1.0.0"}).encode(),
                env=environment("DEL", *owner, ""),
                check=True,
            )
            for _ in self.usable:  # it releases once a range set
                self._forget(owner)

    @rule()
    def reboot(self) -> None:
        """All that we have seen are gone, as soon as one of us takes the lock."""
        self.ipam.delete("nobody")
        self.boot += 1
        self.ipam.delete("nobody")
        self.held = {}

    # --- what always holds ---

    @invariant()
    def the_directory_says_the_same(self) -> None:
        found = {}
        directory = self.directory / "net"
        for name in os.listdir(directory) if directory.exists() else ():
            if name != "lock" and not name.startswith("last_reserved_ip."):
                content = (directory / name).read_bytes().decode()
                if content:
                    found[ip_address(name)] = tuple(content.split("\r\n"))
        assert found == self.held
        if directory.exists():
            with open_store(str(self.directory), "net") as store:
                assert not store.index_differences()


TestModel = Model.TestCase
TestModel.settings = settings(
    max_examples=50,
    stateful_step_count=30,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
