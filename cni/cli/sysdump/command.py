"""`cni sysdump`: everything that a bug report needs, in one file."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import click

from cni.protocol.result import encode_json

from .. import formats, output
from ..doctor import situation_of
from ..session import CACHE_DIR
from . import parts
from .archive import STDOUT, Archive
from .collect import ABSENT, File, Part, collect
from .mask import ADDRESSES, ALL, SECRETS, Mask

_MASKS = (SECRETS, ADDRESSES, ALL, "none")
_ENDS = (".tar.gz", ".tgz")
_TOTAL = 192 << 20  # bytes of all files
_NAMES = Part("names of pods", lambda _: iter(()))


class _Target(click.ParamType[str]):
    """A format, or where the archive goes."""

    name = "file"

    def convert(self, value: str, param: Any, ctx: Any) -> str:
        if value not in (*formats.FORMATS, STDOUT) and not value.endswith(_ENDS):
            self.fail(
                f"{value!r} is neither a file (FILE.tar.gz, or - for stdout) nor a format "
                f"({', '.join(formats.FORMATS)})",
                param,
                ctx,
            )
        return value

    def shell_complete(
        self, _ctx: click.Context, _param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        names = [each for each in formats.FORMATS if incomplete and each.startswith(incomplete)]
        items = [click.shell_completion.CompletionItem(each) for each in names]
        return items or [click.shell_completion.CompletionItem(incomplete, type="file")]


@click.command()
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option(
    "--mask",
    type=click.Choice(_MASKS),
    default=SECRETS,
    show_default=True,
    help="What is replaced: secrets; with addresses or all, also IP addresses, MACs, and names of "
    "hosts and pods; or nothing.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(1, 600),
    default=20,
    show_default=True,
    help="Seconds for each part.",
)
@CACHE_DIR
@formats.file_options(
    _Target(),
    "FILE.tar.gz, or - for stdout [cni-sysdump-HOST-TIME.tar.gz]; or the format of what is "
    "printed: json, yaml, name, wide. May be repeated.",
)
def sysdump(target: str, force: bool, mask: str, timeout: float, cache_dir: str) -> None:
    """Write all that a bug report needs to one file, and change nothing on the node.

    Contains versions, links, routes, rules, state files, configurations, logs, and the output of
    `cni doctor` and other commands. If a part fails or hangs, only that part is missing;
    manifest.json says why. Read the file before you give it away: --mask cannot recognise every
    secret.

    \b
    Examples: cni sysdump
              cni sysdump -o node1.tar.gz --mask all
    See also: cni doctor
    """  # noqa: D301 - click wants the control character
    if target == STDOUT:
        _require_room_for_stdout()
    path = target or _default_name(mask)
    sources = parts.sources_of(situation_of(cache_dir), os.path.abspath(cache_dir))
    # By default these signals would end the process without the clean-up of `with`.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)  # what is half written is removed
    with Archive(path, force=force) as archive:
        written = _fill(archive, sources, mask, timeout)
        archive.finish()
    # stdout has the archive, so nothing else can be printed there.
    if path == STDOUT:
        return
    failed = [
        each
        for each in written
        if each.error and each.error != ABSENT and not each.error.startswith("exit code ")
    ]
    missing = _missing()
    text = (
        f"{path}: {sum(each.error != ABSENT for each in written)} files, {_size(archive.size)}"
        + (f"; {len(failed)} failed or are cut: see manifest.json in it" if failed else "")
    )
    formats.present(
        {
            "file": os.path.abspath(path),
            "bytes": archive.size,
            "mask": mask,
            "files": len(written),
            "failed": [{"file": each.name, "error": each.error} for each in failed],
            "missing": missing,
        },
        lines=[text, *(f"· {each}" for each in missing)],
        names=[path],
    )


def _end(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _require_room_for_stdout() -> None:
    if formats.current():
        raise click.UsageError("with -o - the archive is what is printed: no format fits beside it")
    if output.is_terminal():
        raise click.UsageError("stdout is a terminal: send it to a file or program")


def _default_name(mask: str) -> str:
    host = "" if mask in (ADDRESSES, ALL) else f"{os.uname().nodename.partition('.')[0]}-"
    return f"cni-sysdump-{host}{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.tar.gz"


class _Written(NamedTuple):
    name: str
    error: str


def _fill(
    archive: Archive, sources: parts.Sources, mask_name: str, timeout: float
) -> list[_Written]:
    """Collect all parts into the archive, and the manifest behind them."""
    started = time.time()
    mask = _mask_for(sources, mask_name, timeout)
    entries: list[dict[str, Any]] = []
    # So that no part can take the name of the manifest.
    names: set[str] = {"manifest.json"}
    total = 0
    with output.progress(parts.all_parts(sources), "collecting") as steps:
        for part in steps:
            for file in _within(collect(part, mask, timeout), _TOTAL - total):
                total += len(file.data)
                entry: dict[str, Any] = {"file": _unique(_safe(file.name), names)}
                entry |= {"how": file.how, "seconds": file.seconds, "bytes": len(file.data)}
                entry |= {"error": file.error} if file.error else {}
                entries.append(entry)
                if file.data or not file.error:
                    archive.add(f"cni-sysdump/{entry['file']}", file.data, int(started))
                else:
                    entry["file"] = file.name
    manifest = {
        "taken": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started, 3),
        "mask": mask_name,
        "root": os.geteuid() == 0,
        "missing": _missing(),
        "files": entries,
    }
    archive.add("cni-sysdump/manifest.json", encode_json(manifest) + b"\n", int(started))
    return [_Written(each["file"], each.get("error", "")) for each in entries]


def _within(found: Iterator[File], room: int) -> Iterator[File]:
    """The files, without the content of those for which there is no room."""
    for file in found:
        if len(file.data) > room:
            yield file._replace(data=b"", error="left out: the dump is too large")
        else:
            room -= len(file.data)
            yield file


def _mask_for(sources: parts.Sources, name: str, timeout: float) -> Mask:
    # Stand-ins of two dumps cannot be compared, nor looked up in a table.
    salt = os.urandom(16)
    if name not in (ADDRESSES, ALL):
        return Mask({SECRETS} if name == SECRETS else set(), salt)

    def pods(_: Mask) -> Iterator[File]:
        for each in parts.known_pods(sources.places):
            yield File(each, "")

    # In a child with a time limit, like all parts: state directories may hang.
    gathered = collect(_NAMES._replace(gather=pods), Mask(set(), salt), timeout)
    known = [each.name for each in gathered if not each.error]
    return Mask({SECRETS, ADDRESSES}, salt, _hosts(), known)


def _hosts() -> list[str]:
    """The names of this node."""
    found = [os.uname().nodename]
    try:
        with open("/etc/hostname", encoding="utf-8", errors="replace") as file:
            found.append(file.read(256).strip())
    except OSError:
        pass
    return [each for each in dict.fromkeys(found) if each]


def _missing() -> list[str]:
    if os.geteuid() == 0:
        return []
    return ["not root: rules, namespaces of containers and files of root are missing"]


def _safe(name: str) -> str:
    """A name that leads nowhere else when the archive is unpacked, and is shown by a terminal."""
    pieces = [piece for piece in name.split("/") if piece not in ("", ".", "..")]
    return "/".join(output.printable(piece, keep="") for piece in pieces)[:900] or "unnamed"


def _unique(name: str, names: set[str]) -> str:
    chosen, number = name, 2
    while chosen in names:
        chosen, number = f"{name}.{number}", number + 1
    names.add(chosen)
    return chosen


def _size(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB" if count >= 1 << 20 else f"{count / 1024:.1f} KiB"
