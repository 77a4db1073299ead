"""Calling functions of Windows' libraries: UTF-16 in and out, HRESULTs as exceptions.

Every text that a function returns is CoTaskMem (by its documentation, for results and error
records), and is freed whether the call has succeeded or not. Nothing uses the C compiler's wchar_t,
which has 16 bits on Windows only.
"""

from __future__ import annotations

import ctypes
from typing import Any

from ..protocol.errors import CNIError

# Only the system's own directory: never a library beside this program or in the working directory.
_SEARCH_SYSTEM32 = 0x800
_PAGE = 4096
_MAX_TEXT = 64 << 20  # bytes; a bound for what is not terminated

# Arguments of `call` that are outputs.
TEXT, HANDLE = object(), object()

# HRESULTs (winerror.h), by their meaning for callers.
NOT_FOUND = frozenset({0x80070490, 0x803B0001, 0x803B0002})  # element, network, endpoint
NO_SUCH_SYSTEM = frozenset({0x8037010E, 0xC037010E, 0x80070490})
_MEANINGS = {
    0x80004005: "unspecified failure",
    0x80070005: "access denied",
    0x80070057: "a parameter is wrong",
    0x80070422: "the service is disabled",
    0x80070490: "not found",
    0x8037010E: "no such compute system",
    0xC037010E: "no such compute system",
    0x803B0001: "the network was not found",
    0x803B0002: "the endpoint was not found",
    0x803B000A: "the network's configuration is invalid",
    0x803B000C: "the endpoint's configuration is invalid",
    0x803B000D: "a policy's configuration is invalid",
    0x803B000E: "invalid policy type",
    0x803B002B: "the endpoint is in a namespace already",
}


class HResultError(CNIError):
    """A function failed; `hresult` is unsigned."""

    def __init__(self, function: str, hresult: int, record: str = "") -> None:
        meaning = _MEANINGS.get(hresult, "failure")
        super().__init__(f"{function}: {meaning} (0x{hresult:08x})", record)
        self.hresult = hresult


class Library:
    """A library found by its name, loaded when first called."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._dll: Any = None

    def function(self, name: str) -> Any:
        """The exported function. Raises CNIError."""
        try:
            if self._dll is None:
                self._dll = ctypes.CDLL(self.name, winmode=_SEARCH_SYSTEM32)
            return getattr(self._dll, name)
        except (OSError, AttributeError) as error:
            raise CNIError(
                f"cannot use {name} of {self.name}: {error}",
                "Windows' networking for containers is missing: enable the feature Containers "
                "(and for apiVersion 2 use Windows Server 2019 or newer)",
            ) from None

    def call(self, name: str, *arguments: object, record: bool = True) -> list[Any]:
        """Call a function that returns an HRESULT; return the values of its outputs, in order.

        An argument is a str (a UTF-16 text), 16 bytes (a GUID), an int (a handle), or TEXT or
        HANDLE for an output. With `record` the error record, an output that most functions have
        behind all others, is added; a success leaves none. Raises HResultError.
        """
        function = self.function(name)
        function.restype = ctypes.c_int32
        outputs: list[tuple[object, Any]] = []
        wanted = (*arguments, TEXT) if record else arguments
        passed = [_passed(argument, outputs) for argument in wanted]
        hresult = function(*passed)
        # Take all of them before raising anything: each is read once, and freed.
        values = [_taken(cell) if kind is TEXT else cell.value for kind, cell in outputs]
        said = values.pop() if record else ""
        # As the macro FAILED; some functions return success and only leave a record.
        if hresult < 0 or said:
            raise HResultError(name, hresult & 0xFFFFFFFF, said)
        return values

    def close(self, name: str, handle: int) -> None:
        """Close a handle; ignores failures, which do not matter to callers."""
        function = self.function(name)
        function.restype = ctypes.c_int32
        function(ctypes.c_void_p(handle))


_ole = Library("ole32.dll")


def _passed(argument: object, outputs: list[tuple[object, Any]]) -> Any:
    """The argument in the form that C takes."""
    if isinstance(argument, str):
        return wide(argument)
    if isinstance(argument, bytes):
        return ctypes.c_char_p(argument)  # a GUID: read, never kept
    if isinstance(argument, int):
        return ctypes.c_void_p(argument)
    cell = ctypes.c_void_p()
    outputs.append((argument, cell))
    return ctypes.byref(cell)


def wide(text: str) -> Any:
    """A NUL-terminated UTF-16 buffer. Raises CNIError for a text with a NUL in it."""
    if "\0" in text:
        raise CNIError("a text for Windows contains a NUL", repr(text))
    data = text.encode("utf-16-le", "surrogatepass") + b"\0\0"
    return (ctypes.c_uint16 * (len(data) // 2)).from_buffer_copy(data)


def _taken(cell: Any) -> str:
    """The text at a pointer that a function has returned; frees it; "" for no text."""
    if not cell.value:
        return ""
    try:
        return _text_at(cell.value)
    finally:
        free = _ole.function("CoTaskMemFree")
        free.restype = None
        free(cell)


def _text_at(address: int) -> str:
    """The UTF-16 text at an address; never looks at a page beyond its end."""
    data = b""
    while len(data) < _MAX_TEXT:
        chunk = ctypes.string_at(address + len(data), _PAGE - (address + len(data)) % _PAGE)
        for at in range(0, len(chunk), 2):
            if chunk[at : at + 2] == b"\0\0":
                return (data + chunk[:at]).decode("utf-16-le", "replace")
        data += chunk
    raise CNIError("Windows answered with a text without end", f"more than {_MAX_TEXT} bytes")


def guid(text: str) -> bytes:
    """``9b1f3c52-…`` as the 16 bytes of a GUID structure. Raises CNIError."""
    digits = text.strip("{}").replace("-", "")
    try:
        if len(text.strip("{}")) != 36 or len(digits) != 32:
            raise ValueError(text)
        data = bytes.fromhex(digits)
    except ValueError:
        raise CNIError(
            f'"{text}" is not a GUID', "it looks like 6b29fc40-ca47-1067-b31d-00dd010662da"
        ) from None
    # The first three fields of the structure are little-endian integers.
    return data[3::-1] + data[5:3:-1] + data[7:5:-1] + data[8:]
