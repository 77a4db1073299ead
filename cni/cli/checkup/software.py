"""What is installed: plugins, server, programs that plugins use."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

from cni import __version__, artifact, delegate, dispatch, files
from cni.describe import catalogue
from cni.install.state import State, state_of
from cni.protocol.errors import CNIError
from cni.server import status as server_status

from .finding import ERROR, NOTE, OK, WARNING, Finding, Situation

AREA = "software"
_UNIT_DIRECTORIES = ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")


def plugins(situation: Situation) -> Iterator[Finding]:
    """Each plugin that a network names; and whether those of this project are of one build."""
    builds: dict[str, list[str]] = {}
    missing: list[str] = []
    for name in sorted(situation.types()):
        try:
            # "" for a program of another project: it belongs to none of this project's builds.
            build = _build_of(delegate.find(name, situation.path))
        except CNIError:
            missing.append(name)
            continue
        if build:
            builds.setdefault(build, []).append(name)
    directory = situation.path[0] if situation.path else "/opt/cni/bin"
    install = f"cni install --bin-dir {quote(directory)}"
    own = [name for name in missing if catalogue.known_as(name) is not None]
    for names, mend in ((own, install), ([n for n in missing if n not in own], "")):
        if names:
            text = f"missing in {' and '.join(situation.path)}: {', '.join(names)}"
            yield Finding(ERROR, AREA, text, mend)
    if len(builds) > 1:
        shown = "; ".join(f"{build}: {', '.join(names)}" for build, names in builds.items())
        yield Finding(WARNING, AREA, f"the plugins are of several builds ({shown})", install)
    yield from _own_build(builds)


def files_of(situation: Situation) -> Iterator[Finding]:
    """Whether the plugins' files are as installed: other projects copy theirs to that place."""
    for directory in situation.path:
        if not os.path.isdir(directory):
            continue
        found = state_of(Path(directory), dispatch.TABLE)
        if found is not None:
            yield from _judge_files(directory, found, situation.types())


def _judge_files(directory: str, found: State, used: set[str]) -> Iterator[Finding]:
    install = f"cni install --bin-dir {quote(directory)}"
    if found.broken:
        # `cni` of the release: the installed one cannot do it.
        text = f"{directory}/cni, which all plugins need: {found.broken}"
        yield Finding(ERROR, AREA, text, f"./{install}")
    if found.changed:
        text = f"{directory}/cni is not what was installed: {found.changed}"
        yield Finding(WARNING, AREA, text, install)
    for names, level in (
        ([name for name in found.foreign if name in used], WARNING),
        ([name for name in found.foreign if name not in used], NOTE),
    ):
        if names:
            text = f"another project's programs in {directory}: {', '.join(names)}"
            yield Finding(level, AREA, text, install)
    if found.links:
        text = (
            f"{directory}: {', '.join(found.links)}: links to cni, so a program that overwrites "
            "one of them, as by cp -f, overwrites all plugins"
        )
        yield Finding(NOTE, AREA, text, install)


def _build_of(program: str) -> str:
    try:
        return artifact.build_of(Path(os.path.realpath(program))) or ""
    except OSError:
        return ""


def _own_build(builds: dict[str, list[str]]) -> Iterator[Finding]:
    from cni._build import ID

    shown = f"cni {__version__}" + (f", build {ID}" if ID else "")
    others = [build for build in builds if ID and build != ID]
    if others:
        text = f"this is {shown}, and the plugins are of build {', '.join(others)}"
        yield Finding(NOTE, AREA, text)
    else:
        yield Finding(OK, AREA, shown)


def server(situation: Situation) -> Iterator[Finding]:
    """The server of the warm path, where there should be one."""
    try:
        # 3 seconds: a server that hangs must not stop the other checks.
        said = json.loads(server_status.ask(situation.socket, 3))
    except FileNotFoundError:
        said = None
    # Not root: `node.sight` reports that.
    except PermissionError:
        return
    except (OSError, ValueError) as error:
        text = f"the server's socket {situation.socket} exists, but no server answers: {error}"
        yield Finding(WARNING, AREA, text, "systemctl restart cni.socket cni.service")
        return
    if said is None:
        # A node may do without a server; if it has the unit, somebody wanted one.
        if any(os.path.exists(f"{place}/cni.socket") for place in _UNIT_DIRECTORIES):
            text = f"the server's unit is installed, but there is no {situation.socket}"
            yield Finding(WARNING, AREA, text, "systemctl enable --now cni.socket")
        return
    yield from _judge_server(said)


def _judge_server(said: dict[str, object]) -> Iterator[Finding]:
    from cni._build import ID

    if ID and said.get("build") != ID:
        text = f"the server is of build {said.get('build')}: plugins of another build start anew"
        yield Finding(WARNING, AREA, text, "systemctl restart cni.service")
    else:
        yield Finding(OK, AREA, f"a server runs, of build {said.get('build')}")


def programs(situation: Situation) -> Iterator[Finding]:
    """Programs that a configuration of this node needs."""
    needs = {"selinuxcontext": "ip"}
    for network in situation.networks:
        for plugin in network.plugins:
            for key, program in needs.items():
                wanted = any(name.lower() == key and value for name, value in plugin.raw.items())
                if wanted and files.find_program(program) is None:
                    text = f"{network.name}: {plugin.type} needs the program {program}"
                    yield Finding(ERROR, AREA, text)


def recording(_: Situation) -> Iterator[Finding]:
    """Settings of the request log and of traces that have no effect."""
    from cni.server import wrong_settings

    for each in wrong_settings.all_of(os.environ):
        yield Finding(WARNING, AREA, str(each))


CHECKS = (plugins, files_of, server, programs, recording)
