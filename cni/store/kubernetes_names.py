"""Keys of the store as names of Kubernetes objects, and back.

    pools/storage                 IPPool    storage
    blocks/default/10.64.3.0-26   IPBlock   default--10.64.3.0-26
    nodes/n1                      IPRecord  nodes--n1
    wanted/default/n1             IPRecord  wanted--default--n1
    endpoints/web/n1              IPRecord  endpoints--web--n1

A name is an RFC 1123 subdomain (kubernetes.io, "Object Names and IDs"): lower case letters, digits,
and `-` and `.` between them. `--` stands for a slash; any other character, and `-` or `.` where it
cannot be, is `zx` and its code in two hexadecimal digits. Names of Nodes stay as they are, so that
the policies in deploy/cluster can compare them. A name that would be too long is a hash.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from ..protocol.address import InvalidAddress, Prefix

GROUP = "ipam.cni-plugins.internal"
VERSION = "v1"
BASE = f"/apis/{GROUP}/{VERSION}"
LONGEST = 253  # characters of a name

_ESCAPE = re.compile(r"zx([0-9a-f]{2})")
_HASHED = "zx00"  # no key has that character
_DEPTH = {"wanted": 2, "endpoints": 2}  # slashes of a record's key that are `--`; of others one
_V6_GROUPS = 8


class Type(NamedTuple):
    """A type of object: `first` is the first word of the keys that are of it, if of one word."""

    kind: str
    plural: str
    first: str

    @property
    def path(self) -> str:
        return f"{BASE}/{self.plural}"


POOL = Type("IPPool", "ippools", "pools")
BLOCK = Type("IPBlock", "ipblocks", "blocks")
RECORD = Type("IPRecord", "iprecords", "")
TYPES = (BLOCK, POOL, RECORD)


def type_of(key: str) -> Type:
    """Of which type is the object of a key?"""
    first, slash, _ = key.partition("/")
    if slash:
        for each in (POOL, BLOCK):
            if first == each.first:
                return each
    return RECORD


def types_of(prefix: str) -> tuple[Type, ...]:
    """Of which types are the objects whose keys begin with `prefix`?"""
    return (type_of(prefix),) if prefix else TYPES


def name_of(key: str) -> str:
    """The name of a key's object."""
    of = type_of(key)
    rest = key.partition("/")[2] if of.first else key
    depth = _depth(of, rest)
    words = rest.split("/", depth)
    # Only where no further `--` is looked for, one may be a part of a word.
    name = "--".join(_encoded(word, "-" if n == depth else "") for n, word in enumerate(words))
    if len(name) > LONGEST:
        from hashlib import sha256  # long keys are rare, and this loads OpenSSL

        return _HASHED + sha256(key.encode()).hexdigest()
    return name


def key_of(of: Type, value: dict[str, Any]) -> str | None:
    """The key of an object; None if it is none of ours, such as one with a name of another form."""
    name = value.get("metadata", {}).get("name", "")
    if name.startswith(_HASHED):
        key = value.get("key", "")
    else:
        words = name.split("--", _depth(of, name.replace("--", "/")))
        key = "/".join([*([of.first] if of.first else []), *map(_decoded, words)])
    is_ours = isinstance(key, str) and key and type_of(key) is of and name_of(key) == name
    return key if is_ours else None


def _depth(of: Type, rest: str) -> int:
    if of.first:
        return 1 if of is BLOCK else 0
    return _DEPTH.get(rest.partition("/")[0], 1)


def _encoded(word: str, run: str) -> str:
    """A part of a name; with `run` a `-` may stand beside a `-`, as in names of nodes."""
    out: list[str] = []
    for index, char in enumerate(word):
        if char in "-.":
            before, after = word[:index], word[index + 1 :]
            if char == "-":
                before, after = before.rstrip(run or "/"), after.lstrip(run or "/")
            keep = before[-1:].isalnum() and after[:1].isalnum()
        else:
            keep = char.isdigit() or char.islower()
        out.append(char if keep else f"zx{ord(char):02x}")
    # From the end, since an escape is only what two hexadecimal digits follow.
    name = ""
    for part in reversed(out):
        name = part + name
        if part == "z" and _ESCAPE.match(name) and not _is_escape(part):
            name = f"zx{ord('z'):02x}" + name[1:]
    return name


def _is_escape(part: str) -> bool:
    return len(part) > 1


def _decoded(name: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), name)


def block_of(key: str) -> dict[str, str] | None:
    """Space and CIDR of a block's key, for people; None if it has another form."""
    parts = key.split("/")
    if len(parts) != 3:
        return None
    *groups, length = parts[2].split("-")
    text = ":".join(groups) if len(groups) == _V6_GROUPS else "".join(groups)
    try:
        return {"space": parts[1], "cidr": str(Prefix.parse(f"{text}/{length}"))}
    except InvalidAddress:
        return None
