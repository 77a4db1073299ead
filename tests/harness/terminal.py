"""Texts that must not reach a terminal as they are."""

from __future__ import annotations

# A title, a colour, a C1 control sequence, a change of direction, a bell, a line break, a byte that
# is no text, half of a pair.
BAD = [
    "\x1b]0;own\x07",
    "\x1b[31m",
    "\x9b31m",
    "\u202e",
    "\a",
    "\u2028",
    "\x7f",
    "\r",
    "\b",
    "\ud800",
]


def shown(text: str) -> bool:
    """Does a terminal show all of the text, lines and tabs as such?"""
    return all(line.isprintable() for line in text.replace("\t", " ").split("\n"))
