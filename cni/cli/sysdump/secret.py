"""Finding secrets in a text: by their key, or by their own form.

    password=…  --token …  "apiKey": "…"  ["--psk", "…"]  {"name": "password", "value": "…"}
    Authorization: …  Cookie: …  Bearer …  Basic …  user:…@host  AKIA…  PEM blocks, JWTs

Texts are of any kind: JSON that is torn, or is in a string of JSON (quotes with backslashes), YAML,
command lines, lines of a log. In doubt a word is masked; but addresses, ids, names of
pods and paths of files are not secrets.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

MASKED = "(masked)"
# Words of a key, of which one makes its value a secret.
_WORDS_OF_SECRETS = frozenset(
    [
        "password",
        "passwd",
        "passphrase",
        "passcode",
        "pass",
        "pwd",
        "pw",
        "psk",
        "secret",
        "secrets",
        "token",
        "tokens",
        "key",
        "keys",
        "apikey",
        "privatekey",
        "accesskey",
        "credential",
        "credentials",
        "authorization",
        "auth",
        "certificate",
        "cookie",
        "cookies",
        "headers",
    ]
)
# The same within longer words: PGPASSWORD, dbpasswd.
_PARTS = ("password", "passwd", "passphrase", "passcode", "apikey", "privatekey", "accesskey")
# After a secret's word in a key without quotes. With others it is a name: token-service.
_SUFFIXES = frozenset(
    [
        "data",
        "value",
        "id",
        "hash",
        "string",
        "text",
        "base",
        "base64",
        "b64",
        "raw",
        "pem",
        "name",
    ]
)
# What such a key says, is where the secret is.
_PLACES = frozenset(
    [
        "file",
        "path",
        "dir",
        "directory",
        "location",
    ]
)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

_QUOTE = r"\\*[\"']"
_PEM = re.compile(r"-----BEGIN [^-\n]{1,60}-----.*?(?:-----END [^-\n]{1,60}-----|\Z)", re.DOTALL)
_HEADER = re.compile(
    rf"(?P<before>{_QUOTE})?\b(?:proxy-)?(?:authorization|(?:set-)?cookie)(?P<after>{_QUOTE})?"
    rf"\s*[:=,]\s*(?P<value>{_QUOTE})?",
    re.IGNORECASE,
)
_BEARER = re.compile(r"\b(bearer(?:\s+|%20))([\w.~+/=-]+)", re.IGNORECASE)
_BASIC = re.compile(r"\b(basic(?:\s+|%20))([A-Za-z0-9+/]{4,}={0,2})", re.IGNORECASE)
_URL = re.compile(r"((?:\b[A-Za-z][A-Za-z0-9+.-]{0,30}:)?//)[^/\s\"'?#@]{0,500}@")
# user:password@host; not address:port@link, MAC@link or image:tag@sha256:…
_USER = re.compile(
    r"(?<![^\s\"'=(,])([A-Za-z_][\w.-]{0,63}):([^\s:@/\"']{1,200})@(?!sha\d+:)(?=\w)"
)
_LOGIN = re.compile(r"(?<!\S)((?:-u|--(?:proxy-)?user)(?:\s+|=)[\"']?[^\s:\"']+:)([^\s\"']+)")
# Programs -> their short option with a password; with blanks before that, if the option may.
_SHORT_OPTIONS = (
    (r"mysql\w*|mariadb[\w-]*|mycli|xtrabackup", "-p", False),
    (r"sshpass|mongo\w*|docker\s+login|podman\s+login|nerdctl\s+login", "-p", True),
    (r"redis-cli|valkey-cli", "-a", True),
    (r"ldap(?:search|add|modify|delete|passwd|whoami|compare|modrdn)", "-w", True),
    (r"ipmitool|zip|unzip|sqlcmd", "-P", True),
)
_BETWEEN = rf"(?:{_QUOTE}\s*,\s*{_QUOTE}|\s+)"  # words of a command line, or of a list in JSON
_SHORT = [
    re.compile(
        rf"(\b(?:{programs})(?:{_BETWEEN}(?!{option})[^\s\"',|;&]+){{0,24}}?{_BETWEEN}{option}"
        + (rf"(?:{_BETWEEN})?)" if may_be_apart else ")")
        + r"(\"[^\"\n]+|'[^'\n]+|[^\s\"',\\]+)"
    )
    for programs, option, may_be_apart in _SHORT_OPTIONS
]
_PASSIN = re.compile(r"(?<!\S)(-pass(?:in|out)?(?:\s+|=)pass:)(\S+)")
_PERCENT = re.compile(r"(?<!\S)((?:-U|--user(?:name)?)(?:\s*|=)[\w.\\/-]+%)([^\s\"']+)")
_KNOWN = re.compile(
    r"\b(?:(?:AKIA|ASIA|ABIA|ACCA|AROA|AIDA|AGPA|ANPA)[A-Z0-9]{16}\b"
    r"|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abeoprs]-[\w-]{10,}"
    r"|AIza[\w-]{30,}|[sr]k_(?:live|test)_\w{16,}|npm_[A-Za-z0-9]{30,}|hv[sb]\.[\w-]{20,}"
    r"|eyJ[\w-]{8,}\.[\w-]+\.?[\w-]*)"
)
_IPSEC = re.compile(r"\b((?:auth|auth-trunc|enc|aead|comp)\s+[\w()-]+\s+)0x[0-9a-fA-F]+")
_OTLP = re.compile(rf"(\b[A-Z_]{{0,60}}HEADERS(?:{_QUOTE})?\s*[:=]\s*(?:{_QUOTE})?)([^\s\"'\\]+)")
_QUERY = re.compile(r"([?&](?:sig|signature|code)=)[^&\s\"'#]+", re.IGNORECASE)
# A key begins at the beginning of a word only, or a long word would be read from each letter.
_KEY = re.compile(r"(?<![\w.-])(?P<dashes>--?)?(?P<key>[A-Za-z_][\w.-]*)")
_SEPARATOR = re.compile(rf"(?P<close>{_QUOTE})?\s*(?:=|:(?!:))\s*")
_AFTER_OPTION = re.compile(rf"(?:{_QUOTE}\s*,\s*(?={_QUOTE})|[ \t]+)(?!-)")
# password "…", psk is x9…: without a separator only what cannot be a word of a sentence
_AFTER_WORD = re.compile(
    rf"[ \t]+(?:is[ \t]+)?(?={_QUOTE}\S|(?=[^\s\"']*\d)(?=[^\s\"']*[A-Za-z])[^\s\"']{{6}})"
)
_NAMED = re.compile(
    rf"{_QUOTE}(?:name|key){_QUOTE}\s*:\s*{_QUOTE}(?P<key>[\w.-]+){_QUOTE}\s*,\s*"
    rf"{_QUOTE}value{_QUOTE}\s*:\s*",
    re.IGNORECASE,
)
_OPENING = re.compile(_QUOTE)
_BRACKETED = re.compile(r"\[[^\]]*\]?|\{[^}]*\}?")
# Goes on behind a comma and the like, unless a blank or the next key follows.
_BARE = re.compile(r"(?:[^\s,;&}\]\"']|[,;&](?![\s\"'}\]]|[\w.-]+[=:]|\Z))+")
# Of YAML, the lines below; within a string of JSON, whose lines are \n, all of the string.
_BLOCK = re.compile(
    r"[|>][+-]?\d?[ \t]*"
    r"(?:\n(?P<indent>[ \t]+)[^\n]*(?:\n(?:(?P=indent)[^\n]*|(?=\n)))*|\\+n[^\"]*)"
)
_NOTHING = frozenset(("", "null", "true", "false", "none"))


def is_secret(key: str) -> bool:
    """Does a key, as of an object of JSON, say that its value is a secret?"""
    words = _words(key)
    if words and words[-1] in _PLACES:
        return False
    return not _WORDS_OF_SECRETS.isdisjoint(words) or _has_part(key)


def _is_key(text: str) -> bool:
    """The same of a word in a text, which may be a name, as token-service-0 is."""
    words = _words(text)
    while words and (words[-1] in _SUFFIXES or (words[-1].isdigit() and len(words[-1]) < 3)):
        words.pop()
    return bool(words) and (words[-1] in _WORDS_OF_SECRETS or _has_part(words[-1]))


def _words(key: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(key)]


def _has_part(key: str) -> bool:
    lower = key.lower()
    return any(part in lower for part in _PARTS) and not lower.endswith(tuple(_PLACES))


def named(value: dict[str, Any]) -> str:
    """The key of ``value``'s "value", if it is of the form {"name": KEY, "value": …}; else ""."""
    if not any(str(key).lower() == "value" for key in value):
        return ""
    names = [each for key, each in value.items() if key.lower() in ("name", "key")]
    return names[0] if len(names) == 1 and isinstance(names[0], str) else ""


def follows(one: Any) -> bool:
    """In a list: is what follows `one` a secret (``["--token", "…"]``, ``["password", "…"]``)?"""
    if not isinstance(one, str):
        return False
    name = one.lstrip("-")
    return (
        name.isascii()
        and " " not in name
        and "=" not in name
        and is_secret(name)
        and (name != one or _is_key(name))
    )


def without_secrets(text: str) -> str:
    """The text with MASKED in place of each secret."""
    text = _PEM.sub(MASKED, text)
    text = _URL.sub(rf"\1{MASKED}@", text)
    text = _headers(text)
    text = _KNOWN.sub(MASKED, text)
    text = _BEARER.sub(_bearer, text)
    text = _BASIC.sub(_basic, text)
    text = _USER.sub(_user, text)
    text = _LOGIN.sub(rf"\1{MASKED}", text)
    for form in (*_SHORT, _PASSIN, _PERCENT):
        text = form.sub(rf"\1{MASKED}", text)
    text = _IPSEC.sub(rf"\1{MASKED}", text)
    text = _OTLP.sub(rf"\1{MASKED}", text)
    text = _QUERY.sub(rf"\1{MASKED}", text)
    return pairs(text)


def pairs(text: str) -> str:
    """``key: value``, ``key=value``, ``--key value`` and the like, with the values masked."""
    pieces, end = [], 0
    for at, spaced in _values(text):
        if at < end:
            continue
        quote, stop = _value(text, at, spaced=spaced)
        value = text[at:stop].strip("\\\"'")
        if value.lower() in _NOTHING or value.startswith(MASKED):
            continue
        pieces += [text[end:at], quote, MASKED, quote]
        end = stop
    return "".join([*pieces, text[end:]])


def _values(text: str) -> list[tuple[int, bool]]:
    """Where values of secret keys begin, in order; whether only blanks are before them."""
    found = [(each.end(), False) for each in _NAMED.finditer(text) if is_secret(each["key"])]
    for each in _KEY.finditer(text):
        key, is_option = each["key"], each["dashes"] is not None
        if not is_secret(key):
            continue
        separator = _SEPARATOR.match(text, each.end())
        if separator is not None:
            if is_option or separator["close"] or _is_key(key):
                found.append((separator.end(), False))
            continue
        is_plain = _has_part(key) or _words(key)[-1] == "psk"
        blanks = _AFTER_OPTION if is_option else _AFTER_WORD if is_plain else None
        after = blanks.match(text, each.end()) if blanks else None
        if after is not None:
            found.append((after.end(), True))
    return sorted(found)


def _value(text: str, at: int, *, spaced: bool) -> tuple[str, int]:
    """What quotes the value that begins at `at` ("" for nothing), and where it ends."""
    opening = _OPENING.match(text, at)
    if opening is not None:
        return opening[0], _end_of_quoted(text, opening)
    bracketed = None if spaced else _BRACKETED.match(text, at) or _BLOCK.match(text, at)
    if bracketed is not None:
        return ('"' if text[at] in "[{" else ""), bracketed.end()
    bare = _BARE.match(text, at)
    return "", bare.end() if bare else at


def _end_of_quoted(text: str, opening: re.Match[str]) -> int:
    """Behind the mark that ends what `opening` has opened, or the end of the line or text."""
    mark = opening[0]
    if mark == "'":
        form = r"'|\n"
    elif mark == '"':
        form = r'(?<!\\)(?:\\\\)*"'
    else:  # within a string: as many backslashes as before the first one
        form = rf"(?<!\\){re.escape(mark)}|(?<!\\)(?={mark[-1]})"
    found = re.compile(form).search(text, opening.end())
    if found is None:
        return len(text)
    return found.start() if found[0] == "\n" else found.end()


def _headers(text: str) -> str:
    """Authorization and cookies: all of the header, which ends with its quotes or its line."""
    pieces, end = [], 0
    for found in _HEADER.finditer(text):
        if found.start() < end:
            continue
        mark = found["value"] or (found["before"] if not found["after"] else None)
        line = text.find("\n", found.end())
        stop = len(text) if line < 0 else line
        if mark:
            closing = re.compile(rf"(?<!\\){re.escape(mark)}").search(text, found.end())
            stop = min(stop, closing.start()) if closing else stop
        if text[found.end() : stop].strip():
            pieces += [text[end : found.end()], MASKED]
            end = stop
    return "".join([*pieces, text[end:]])


def _bearer(found: re.Match[str]) -> str:
    token = found[2]
    is_token = len(token) >= 8 or any(each.isdigit() for each in token)
    return f"{found[1]}{MASKED}" if is_token else found[0]


def _basic(found: re.Match[str]) -> str:
    """Only what is user:password in base64: `basic` is a word, too."""
    try:
        is_login = b":" in base64.b64decode(found[2], validate=True)
    except (binascii.Error, ValueError):
        is_login = False
    return f"{found[1]}{MASKED}" if is_login else found[0]


def _user(found: re.Match[str]) -> str:
    return found[0] if found[2].isdigit() else f"{found[1]}:{MASKED}@"
