"""The error tree of `kernel`, `netfilter` and `netns`: what the kernel, or a tool for it, refused.

    KernelError                 everything below; `msg` and `details` as in protocol/errors.py
    ├── NetlinkError            the kernel refused a request; also an OSError: `errno` says why
    │   ├── RouteError          … about a route, which it names (route.py)
    │   ├── Refused             … about nf_tables; it says which change it is about
    │   └── Unusable            … because it has no nf_tables, or none for us
    ├── LinkNotFound            there is no link of that name or index
    ├── DeviceError             there is no such device, or it has no link (sysfs)
    ├── DuplicateAddress        another node has the IPv6 address
    ├── NftError                nft(8), the program, failed
    │   └── NftMissing          … or is not installed
    ├── IptablesError           a tool of the iptables family failed
    │   ├── IptablesMissing     … or is not installed
    │   └── IptablesUnknown     the kernel could not be asked for what the tool has made
    ├── Unwritable              a rule that we cannot write as nf_tables expressions
    ├── NetnsError              a path is no network namespace, or cannot be opened
    │   ├── NetnsMissing        … because there is nothing
    │   └── NetnsUnknown        … because this process is short of something: there may be one
    └── ExecutorDied            a process working in a namespace was lost

    RemoteTraceback             the cause of an exception that comes from such a process

These layers know nothing of the CNI specification. A plugin translates where the reference has a
text of its own; what it lets pass becomes the JSON error 999 (`protocol.errors.from_exception`).
All of them can be pickled: the executor sends them from one process to the other.
"""

from __future__ import annotations

import os
from errno import EAGAIN, EINTR, EIO, EMFILE, ENFILE, ENOBUFS, ENOMEM
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..protocol.address import Prefix


# Errors of this process, of memory or of the disk. They say nothing about the object of a request:
# the same request may succeed when it is repeated.
TRANSIENT = frozenset({EAGAIN, EINTR, EIO, EMFILE, ENFILE, ENOBUFS, ENOMEM})


class KernelError(Exception):
    """`msg` says what failed, `details`, which may be empty, why and what to do next."""

    details = ""

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(msg, details)
        self.details = details

    @property
    def msg(self) -> str:
        return str(self.args[0])

    def __str__(self) -> str:
        return f"{self.msg}; {self.details}" if self.details else self.msg


class NetlinkError(KernelError, OSError):
    """The kernel refused a request: `errno` says why, `explanation` in the kernel's words or ""."""

    def __init__(self, errno: int, explanation: str = "") -> None:
        text = os.strerror(errno).lower() + (f" ({explanation})" if explanation else "")
        OSError.__init__(self, errno, text)
        self.explanation = explanation

    def __reduce__(self) -> tuple[type[NetlinkError], tuple[int | str, ...]]:
        return type(self), (self.errno or 0, self.explanation)

    @property
    def msg(self) -> str:
        return str(self.strerror)

    def __str__(self) -> str:
        return self.msg


class Refused(NetlinkError):
    """nf_tables refused a change: `explanation` says which one and why, `details` what to do."""

    def __init__(self, errno: int, explanation: str, details: str = "") -> None:
        super().__init__(errno, explanation)
        self.details = details

    def __reduce__(self) -> tuple[type[Refused], tuple[int | str, ...]]:
        return type(self), (self.errno or 0, self.explanation, self.details)


class Unusable(NetlinkError):
    """The kernel has no nf_tables for us: not built in, or not permitted."""


class LinkNotFound(KernelError):
    """No link of that name or index in this namespace. str() gives `msg` alone, for other texts."""

    def __init__(self, msg: str) -> None:
        Exception.__init__(self, msg)
        self.details = (
            "one that was there a moment ago: does a DEL of the same attachment run? Try again"
        )

    def __str__(self) -> str:
        return self.msg


class DeviceError(KernelError):
    """There is no such device, or it has no link."""


class DuplicateAddress(KernelError):
    """IPv6 duplicate address detection failed: another node has `prefix` (RFC 4862 §5.4)."""

    def __init__(self, prefix: Prefix) -> None:
        Exception.__init__(self, prefix)
        self.prefix = prefix


class NftError(KernelError):
    """nft(8), the program, failed; the message is its own."""


class NftMissing(NftError):
    """There is no program nft."""


class IptablesError(KernelError):
    """A tool of the iptables family failed; the message is its own."""


class IptablesMissing(IptablesError):
    """There is no such tool."""


class IptablesUnknown(IptablesError):
    """The kernel could not be asked what a tool has made; the tool itself may be well."""


class Unwritable(KernelError, ValueError):
    """A rule has a word that netfilter/iptables_rules.py cannot translate."""

    def __init__(self, msg: str = "", details: str = "") -> None:
        super().__init__(msg, details)


class NetnsError(KernelError):
    """The path is not a network namespace, or cannot be opened."""


class NetnsMissing(NetnsError):
    """The path does not exist: for DEL that is success."""


class NetnsUnknown(NetnsError):
    """Whether there is a namespace could not be found out (EMFILE, ENOMEM, EIO): try again."""


class ExecutorDied(KernelError):
    """The process was lost before it answered: whether the job was done is not known."""


class RemoteTraceback(Exception):
    """The cause of an exception from another process: the text of the traceback there."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'
