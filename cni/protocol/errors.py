"""The error tree: one class a code of the CNI specification.

    CNIError 999 (anything a plugin body raises)
    ├── IncompatibleVersion 1     ├── DecodeFailure 6     ├── NotAvailable 50
    ├── UnsupportedField 2        ├── InvalidConfig 7     ├── LimitedConnectivity 51
    ├── UnknownContainer 3        ├── InvalidNetns 8      └── DelegateError (a child's own code)
    ├── BadEnvironment 4          └── TryAgainLater 11
    └── IOFailure 5

``msg`` says what failed; ``details`` says why and what to do next. Codes and texts:
docs/spec/protocol.md §3.3 and the CNI specification, "Error".
"""

from __future__ import annotations

import errno


class CNIError(Exception):
    """A failure that ends in the JSON error object on stdout."""

    code = 999

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.msg = msg
        self.details = details

    def __str__(self) -> str:
        return f"{self.msg}; {self.details}" if self.details else self.msg

    def wrapped(self, prefix: str) -> CNIError:
        """This error with `prefix` before its message; code and details stay."""
        error = CNIError(f"{prefix}{self.msg}", self.details)
        error.code = self.code
        return error


class IncompatibleVersion(CNIError):
    code = 1


class UnsupportedField(CNIError):
    code = 2


class UnknownContainer(CNIError):
    code = 3


class BadEnvironment(CNIError):
    code = 4


class IOFailure(CNIError):
    code = 5


class DecodeFailure(CNIError):
    code = 6


class InvalidConfig(CNIError):
    code = 7


class InvalidNetns(CNIError):
    code = 8


class TryAgainLater(CNIError):
    code = 11


class NotAvailable(CNIError):
    code = 50


class LimitedConnectivity(CNIError):
    code = 51


class DelegateError(CNIError):
    """The error of a delegated plugin, unchanged (its own code, msg and details)."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg, details)
        self.code = code


class Terminated(CNIError):
    """A signal told this process to stop."""


def from_exception(error: Exception) -> CNIError:
    """`error` as a CNIError: itself, or one with code 999, its `msg` and its `details`.

    If an error has no text, the name of its class is the message.
    """
    if isinstance(error, CNIError):
        return error
    if isinstance(error, OSError) and error.strerror and not hasattr(error, "msg"):
        return _of_system(error)
    msg = getattr(error, "msg", "") or str(error) or type(error).__name__
    return CNIError(msg, getattr(error, "details", ""))


# In this module: a process that cannot open another file could not import a further one.
_ADVICE = {
    errno.EMFILE: "this process may open too few files: raise its limit (ulimit -n, LimitNOFILE=)",
    errno.ENFILE: "too many files are open on this node: raise the sysctl fs.file-max",
    errno.ENOMEM: "there is not enough memory, or its limit is too low",
    errno.ENOSPC: "make room on that file system, then try again",
    errno.ENOSYS: "the kernel is older than 4.18, or a filter (seccomp) forbids the call",
}


def advice_for(error: OSError) -> str:
    """What to do about an error that is not about a certain file; "" if nothing is known."""
    return _ADVICE.get(error.errno or 0, "")


def _of_system(error: OSError) -> CNIError:
    """An error of the operating system; `details` say what to do, if that is known."""
    text, path = (error.strerror or "").lower(), error.filename or ""
    name = path.decode("utf-8", "surrogateescape") if isinstance(path, bytes) else str(path)
    advice = advice_for(error)
    if error.errno == errno.ENOENT and name.startswith("/proc/self/"):
        advice = "is /proc mounted?"
    return CNIError(f"{name}: {text}" if name else text, advice)


def join(errors: list[CNIError]) -> CNIError:
    """One error for all of `errors` (at least one): what DEL and GC raise after every step ran.

    One error, even a repeated one, is returned as it is. Of several, the first one gives the code,
    and the messages are joined by ``; ``.
    """
    if len({(error.msg, error.details) for error in errors}) == 1:
        return errors[0]
    messages = dict.fromkeys(error.msg for error in errors)
    details = dict.fromkeys(error.details for error in errors if error.details)
    error = CNIError("; ".join(messages), "; ".join(details))
    error.code = errors[0].code
    return error
