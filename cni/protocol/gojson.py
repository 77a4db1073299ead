"""JSON as Go's encoding/json reads it, for documents that msgspec refuses or reads differently.

Loaded only for such documents: a runtime passes on what people wrote, and keys that no plugin reads
may hold anything. The differences from msgspec's decoder, which follows RFC 8259 strictly:

- In strings, bytes that are no UTF-8, and escapes of a lone surrogate, become U+FFFD.
- A number out of the range of a float is infinite. A key that wants an integer refuses it.
- An object that is given twice is merged with the first one, as Go does when it decodes into a
  struct; of other values the last one counts; null changes nothing, but empties a list.
- Nesting ends at 10,000 levels, as in Go. Values below DEPTH become null: no plugin's key lies
  there, and later code walks the value recursively.

Source: Go's encoding/json/decode.go and scanner.go.
"""

from __future__ import annotations

from typing import Any

DEPTH = 100
GO_DEPTH = 10_000
_SPACE = " \t\r\n"
_ESCAPES = {
    '"': '"',
    "\\": "\\",
    "/": "/",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
}
_LITERALS = (("true", True), ("false", False), ("null", None))
_DIGITS = "0123456789"
_HEX = "0123456789abcdefABCDEF"
_MOST_DIGITS = 4300  # of an integer; CPython and msgspec convert no longer ones


def decode(data: bytes) -> Any:
    """The document in `data`. Raises ValueError with Go's text if it is no JSON."""
    return Reader(data.decode("utf-8", "replace")).document()


def repeated(data: bytes) -> list[tuple[str, str]]:
    """Repeated keys of the objects one level below the document: (key of the object, repeated key).

    ``{"a": {"b": 1, "b": 2}}`` gives ``("a", "b")``. Raises ValueError, as decode.
    """
    reader = Reader(data.decode("utf-8", "replace"))
    reader.document()
    return reader.repeated


class Reader:
    """A document that is being read; `at` is the position in its text, `repeated` as in repeated().

    Each method that reads a token begins at `at`, moves it behind the token, and raises ValueError
    for what Go refuses. Other readers use these methods, too.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.repeated: list[tuple[str, str]] = []

    def document(self) -> Any:
        value = self._value()
        self.skip_space()
        if self.at < len(self.text):
            raise self.invalid("after top-level value")
        return value

    def _value(self) -> Any:
        """A value with everything below it; a stack holds the open objects and lists."""
        stack: list[_Open] = []
        while True:
            self.skip_space()
            opening = self.peek()
            if opening in ("{", "["):
                if len(stack) == GO_DEPTH:
                    raise ValueError("exceeded max depth")
                self.at += 1
                stack.append(_Open({} if opening == "{" else []))
                if self._closes(stack[-1]):
                    value = stack.pop().value
                else:
                    self._key(stack[-1])
                    continue
            else:
                value = self.scalar()
            while True:  # until the next value has to be read, or the document is complete
                if not stack:
                    return value
                opened = stack[-1]
                if len(stack) == 2 and opened.end == "}" and opened.key in opened.value:
                    self.repeated.append((stack[0].key, opened.key))
                opened.take(value if len(stack) <= DEPTH else None)
                if self._continues(stack[-1]):
                    break
                value = stack.pop().value

    def _closes(self, opened: _Open) -> bool:
        """Is the object or list empty? If so, its end has been read."""
        self.skip_space()
        if self.peek() != opened.end:
            return False
        self.at += 1
        return True

    def _continues(self, opened: _Open) -> bool:
        """Read the comma, and in an object the next key; or the end: then False."""
        self.skip_space()
        mark = self.peek()
        if mark not in (",", opened.end):
            what = "object key:value pair" if opened.end == "}" else "array element"
            raise self.invalid(f"after {what}")
        self.at += 1
        if mark == opened.end:
            return False
        self._key(opened)
        return True

    def _key(self, opened: _Open) -> None:
        if opened.end == "]":
            return
        self.skip_space()
        if self.peek() != '"':
            raise self.invalid("looking for beginning of object key string")
        opened.key = self.string()
        self.skip_space()
        if self.peek() != ":":
            raise self.invalid("after object key")
        self.at += 1

    def scalar(self) -> Any:
        first = self.peek()
        if first == '"':
            return self.string()
        if first == "-" or first in _DIGITS:
            return self._number()
        for text, value in _LITERALS:
            if self.text.startswith(text, self.at):
                self.at += len(text)
                return value
        raise self.invalid("looking for beginning of value")

    def _number(self) -> int | float:
        start = self.at
        if self.peek() == "-":
            self.at += 1
        if self.peek() == "0":
            self.at += 1
        else:
            self._digits()
        whole = self.at
        if self.text.startswith(".", self.at):
            self.at += 1
            self._digits()
        if self.at < len(self.text) and self.text[self.at] in "eE":
            self.at += 1
            if self.at < len(self.text) and self.text[self.at] in "+-":
                self.at += 1
            self._digits()
        text = self.text[start : self.at]
        if self.at == whole and len(text) <= _MOST_DIGITS:
            return int(text)
        return float(text)

    def _digits(self) -> None:
        start = self.at
        while self.at < len(self.text) and self.text[self.at] in _DIGITS:
            self.at += 1
        if self.at == start:
            raise self.invalid("in numeric literal")

    def string(self) -> str:
        self.at += 1
        parts: list[str] = []
        while True:
            start = self.at
            while self.at < len(self.text) and self.text[self.at] not in '"\\':
                if self.text[self.at] < " ":
                    raise self.invalid("in string literal")
                self.at += 1
            parts.append(self.text[start : self.at])
            mark = self.peek()
            self.at += 1
            if mark == '"':
                break
            parts.append(self._escape())
        return _without_surrogates("".join(parts))

    def _escape(self) -> str:
        mark = self.peek()
        if mark != "u":
            if mark not in _ESCAPES:
                raise self.invalid("in string escape code")
            self.at += 1
            return _ESCAPES[mark]
        code = self.text[self.at + 1 : self.at + 5]
        if len(code) < 4 or any(digit not in _HEX for digit in code):
            raise self.invalid("in \\u hexadecimal character escape")
        self.at += 5
        return chr(int(code, 16))

    def skip_space(self) -> None:
        while self.at < len(self.text) and self.text[self.at] in _SPACE:
            self.at += 1

    def peek(self) -> str:
        if self.at >= len(self.text):
            raise ValueError("unexpected end of JSON input")
        return self.text[self.at]

    def invalid(self, where: str) -> ValueError:
        if self.at >= len(self.text):
            return ValueError("unexpected end of JSON input")
        return ValueError(f"invalid character {self.text[self.at]!r} {where}")


class _Open:
    """An object or list whose end has not been read."""

    def __init__(self, value: dict[str, Any] | list[Any]) -> None:
        self.value = value
        self.end = "}" if isinstance(value, dict) else "]"
        self.key = ""

    def take(self, value: Any) -> None:
        """Add an element, or the value of `key`."""
        if isinstance(self.value, list):
            self.value.append(value)
        else:
            merge(self.value, self.key, value)


def merge(into: dict[str, Any], key: str, value: Any) -> None:
    """Set `key`, or merge with its old value, as Go does when it decodes into a field again."""
    old = into.get(key)
    if isinstance(old, dict) and isinstance(value, dict):
        for name, item in value.items():
            merge(old, name, item)
    elif value is not None or old is None or isinstance(old, list):
        into[key] = value


def _without_surrogates(text: str) -> str:
    """Pairs of surrogates as the character that they stand for, single ones as U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
