"""The error tree of the mechanism: one base, picklable, and as the JSON error says it."""

from __future__ import annotations

import errno
import pickle
from typing import TYPE_CHECKING

import pytest

from cni.kernel import errors
from cni.kernel.errors import KernelError
from cni.kernel.route import Route, RouteError
from cni.protocol.address import Prefix
from cni.protocol.errors import CNIError, InvalidConfig, from_exception

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = Prefix(b"\x0a\0\0\1", 24)
EXAMPLES: list[KernelError] = [
    KernelError("m", "d"),
    errors.NetlinkError(errno.EPERM, "not you"),
    RouteError(Route(PREFIX, 3), errno.EEXIST),
    errors.Refused(errno.EEXIST, "making chain c in table ip t", "look at it"),
    errors.Unusable(errno.EOPNOTSUPP),
    errors.LinkNotFound("Link not found"),
    errors.DeviceError("no net directory"),
    errors.DuplicateAddress(PREFIX),
    errors.NftError("No such file or directory"),
    errors.NftMissing("the program nft is not installed", "install the package nftables"),
    errors.IptablesError("iptables failed with 1"),
    errors.IptablesMissing("iptables not found", "install the package iptables"),
    errors.IptablesUnknown("cannot look for chain CNI-1 in table nat", "try again"),
    errors.Unwritable("-j X"),
    errors.NetnsError("no namespace"),
    errors.NetnsMissing("nothing there"),
    errors.NetnsUnknown("too many open files"),
    errors.ExecutorDied("lost"),
]


def classes(base: type[KernelError] = KernelError) -> Iterator[type[KernelError]]:
    yield base
    for each in base.__subclasses__():
        yield from classes(each)


def test_every_class_has_an_example_and_is_drawn() -> None:
    """Those below, and no other."""
    assert {type(example) for example in EXAMPLES} == set(classes())
    assert errors.__doc__ is not None
    for each in classes():
        if each.__module__ != "cni.kernel.errors":  # drawn with its file
            assert f"({each.__module__.rpartition('.')[2]}.py)" in errors.__doc__
        assert f"{each.__name__} " in errors.__doc__


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: type(e).__name__)
def test_it_survives_the_way_from_the_executor(error: KernelError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), copy.msg, copy.details) == (str(error), error.msg, error.details)
    assert copy.__dict__ == error.__dict__
    assert getattr(copy, "errno", None) == getattr(error, "errno", None)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: type(e).__name__)
def test_it_becomes_an_error_999(error: KernelError) -> None:
    told = from_exception(error)
    assert (type(told), told.code) == (CNIError, 999)
    assert (told.msg, told.details) == (error.msg, error.details)
    assert told.msg in str(error)


def test_other_exceptions() -> None:
    own = InvalidConfig("m", "d")
    assert from_exception(own) is own
    assert from_exception(OSError(errno.ENOENT, "Gone", "/x")).msg == "/x: gone"
    assert from_exception(OSError("text")).msg == "text"
    assert from_exception(ValueError()).msg == "ValueError"


@pytest.mark.parametrize(
    ("error", "msg", "advice"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "too many open files", "LimitNOFILE="),
        (OSError(errno.ENOSYS, "Function not implemented"), "function not implemented", "seccomp"),
        (OSError(errno.ENOENT, "No such file", "/proc/self/x"), "/proc/self/x: no such", "mounted"),
        (OSError(errno.EIO, "Input/output error", b"/x"), "/x: input/output error", ""),
    ],
)
def test_errors_of_the_system_say_what_helps(error: OSError, msg: str, advice: str) -> None:
    told = from_exception(error)
    assert msg in told.msg
    assert advice in told.details
    assert "Errno" not in told.msg


def test_what_the_kernel_refused_is_an_os_error() -> None:
    with pytest.raises(OSError, match=r"operation not permitted \(not you\)") as caught:
        raise errors.NetlinkError(errno.EPERM, "not you")
    assert caught.value.errno == errno.EPERM
