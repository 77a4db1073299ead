"""What the specification (1.1.0 and earlier) asks of a plugin, a function for each demand.

A case raises Failed, which says what was expected and what came; Skipped, which says why it does
not apply. Sections are those of the specification's text.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from cni.kernel import link
from cni.protocol.address import Prefix, parse_ip
from cni.protocol.config import VERSIONS, is_at_least
from cni.protocol.errors import CNIError

from .bench import Answer, Bench, Container

AT_ONCE = 4
_PATIENCE = 15  # seconds


class Failed(Exception):
    """The plugin does not do what the specification asks for."""


class Skipped(Exception):
    """The case does not apply to this plugin."""


class Case(NamedTuple):
    """A demand; `run` is given a version if it depends on it."""

    name: str
    about: str
    run: Callable[[Bench, str], None]
    least: str = ""  # the first version that it is for; "": it is run once


def require(condition: Any, text: str) -> None:
    """Raises Failed."""
    if not condition:
        raise Failed(text)


def succeeded(answers: list[Answer]) -> None:
    """Raises Failed for the first that has not."""
    for answer in answers:
        require(answer.code == 0, f"expected success, got {answer}")


def _error(answer: Answer, code: int | None = None) -> None:
    require(answer.code != 0, f"expected an error, got {answer}")
    value = answer.error
    require(value, f"expected an error object on stdout, got {answer}")
    require(isinstance(value.get("code"), int), f"the error's `code` is no number: {answer}")
    require(isinstance(value.get("msg"), str) and value["msg"], f"no `msg`: {answer}")
    if code is not None:
        require(value["code"] == code, f"expected the error code {code}, got {answer}")


def supported(bench: Bench, at: int = 0) -> list[str]:
    """The versions that a plugin says it speaks. Raises Failed."""
    answer = bench.call(at, "VERSION", b'{"cniVersion": "1.0.0"}')
    succeeded([answer])
    value = answer.value
    require(isinstance(value, dict), f"VERSION prints no object: {answer}")
    versions = value.get("supportedVersions")
    require(isinstance(versions, list) and versions, f"no `supportedVersions`: {answer}")
    return [each for each in VERSIONS if each in versions]


def common_versions(bench: Bench) -> list[str]:
    """The versions that all plugins of the chain speak. Raises Failed."""
    lists = [supported(bench, at) for at in range(len(bench.binaries))]
    return [each for each in lists[0] if all(each in other for other in lists)]


# --- the protocol ---------------------------------------------------------------------------------


def version(bench: Bench, _version: str) -> None:
    for at in range(len(bench.binaries)):
        supported(bench, at)
        value = bench.call(at, "VERSION", b'{"cniVersion": "1.0.0"}').value
        require(isinstance(value.get("cniVersion"), str), "VERSION has no `cniVersion`")


def unknown_command(bench: Bench, newest: str) -> None:
    stdin = json.dumps(bench.document(0, newest)).encode()
    _error(bench.call(0, "MULTIPLY", stdin, bench.container()), 4)


def missing_variables(bench: Bench, newest: str) -> None:
    stdin = json.dumps(bench.document(0, newest)).encode()
    for name in ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"):
        variables: dict[str, str | None] = {name: None}
        answer = bench.call(0, "ADD", stdin, bench.container(), **variables)
        _error(answer, 4)


def wrong_variables(bench: Bench, newest: str) -> None:
    stdin = json.dumps(bench.document(0, newest)).encode()
    for name, value in (
        ("CNI_CONTAINERID", "../x"),
        ("CNI_IFNAME", "a/b"),
        ("CNI_IFNAME", "x" * 16),
    ):
        variables: dict[str, str | None] = {name: value}
        _error(bench.call(0, "ADD", stdin, bench.container(), **variables))


def not_json(bench: Bench, _newest: str) -> None:
    _error(bench.call(0, "ADD", b"{nonsense", bench.container()), 6)


def unknown_version(bench: Bench, _newest: str) -> None:
    conf = bench.document(0, "9.9.9")
    _error(bench.call(0, "ADD", json.dumps(conf).encode(), bench.container()), 1)


def no_namespace(bench: Bench, newest: str) -> None:
    before = bench.node()
    stdin = json.dumps(bench.document(0, newest)).encode()
    where: dict[str, str | None] = {"CNI_NETNS": f"{bench.directory}/none"}
    _error(bench.call(0, "ADD", stdin, bench.container(), **where))
    _require_same(bench, before, "after an ADD that failed")


def _require_same(bench: Bench, before: set[str], when: str) -> None:
    """Require that the node has no more than `before`. Raises Failed.

    Waits up to _PATIENCE seconds: the kernel deletes the links of a dead namespace with a delay.
    """
    end = time.monotonic() + _PATIENCE
    while (more := sorted(bench.node() - before)) and time.monotonic() < end:
        time.sleep(0.05)
    require(not more, f"left on the node {when}: {', '.join(more)}")


# --- a container's life ---------------------------------------------------------------------------


def life(bench: Bench, version: str) -> None:
    """ADD, CHECK and DEL, and what is left."""
    # The first container of a network may leave things on the node that belong to the network, as a
    # sysctl. So what the second one leaves is measured.
    first = bench.container()
    _added(bench, first, version)
    _deleted(bench, first, version, None)
    before = bench.node()
    container = bench.container()
    result = _added(bench, container, version)
    _check_result(bench, container, version, result)
    if is_at_least(version, "0.4.0"):
        succeeded(bench.each("CHECK", container, version, result))
    _deleted(bench, container, version, result)
    require(bench.link_inside(container) is None, f"{bench.ifname} is there after DEL")
    _require_same(bench, before, "after DEL")


def _added(bench: Bench, container: Container, version: str) -> Any:
    answers, result = bench.add(container, version)
    succeeded(answers)
    require(isinstance(result, dict), f"ADD prints no object: {answers[-1]}")
    return result


def _deleted(bench: Bench, container: Container, version: str, result: Any) -> None:
    answers = bench.each("DEL", container, version, result)
    succeeded(answers)
    for answer in answers:
        require(not answer.stdout.strip(), f"DEL prints something: {answer}")


def _check_result(bench: Bench, container: Container, version: str, result: Any) -> None:
    require(
        result.get("cniVersion") == version,
        f"the result's cniVersion is {result.get('cniVersion')}, the configuration's {version}",
    )
    device = bench.link_inside(container)
    require(device is not None, f"no {bench.ifname} in the container after ADD")
    if not is_at_least(version, "0.3.0"):
        require("ip4" in result or "ip6" in result, "a result of this version has ip4 or ip6")
        return
    links = result.get("interfaces", [])
    name = bench.ifname
    ours = [each for each in links if each.get("name") == name and each.get("sandbox")]
    require(len(ours) == 1, f"`interfaces` does not have {name} with a sandbox once: {links}")
    require(
        ours[0]["sandbox"] == container.space.path,
        f"the sandbox is {ours[0]['sandbox']}, CNI_NETNS {container.space.path}",
    )
    if device is not None and ours[0].get("mac"):
        require(ours[0]["mac"] == device.mac, f"MAC {ours[0]['mac']}, but it is {device.mac}")
    have = bench.addresses_inside(container)
    for ip in result.get("ips", []):
        _check_address(bench, ip, version, links, have)
    for entry in result.get("routes", []):
        _parsed(Prefix.parse, entry.get("dst"), "route's dst")


def _check_address(bench: Bench, ip: Any, version: str, links: list[Any], have: set[str]) -> None:
    prefix = _parsed(Prefix.parse, ip.get("address"), "address")
    if ip.get("gateway"):
        _parsed(parse_ip, ip["gateway"], "gateway")
    index = ip.get("interface")
    if index is not None:
        require(0 <= index < len(links), f"an address is of interface {index}: there is none")
        if links[index].get("name") == bench.ifname:
            require(str(prefix) in have, f"{prefix} is not on {bench.ifname}: {sorted(have)}")
    if not is_at_least(version, "1.0.0"):
        want = "4" if prefix.is_v4 else "6"
        require(ip.get("version") == want, f"`version` of {prefix} is {ip.get('version')}")


def _parsed(parse: Callable[[str], Any], text: Any, what: str) -> Any:
    try:
        return parse(text)
    except (CNIError, TypeError, AttributeError) as error:
        raise Failed(f"the {what} {text!r} cannot be read: {error}") from None


def del_again(bench: Bench, version: str) -> None:
    container = bench.container()
    result = _added(bench, container, version)
    # None: a runtime that has lost its cache sends no prevResult.
    for given in (result, result, None):
        _deleted(bench, container, version, given)


def del_without_add(bench: Bench, version: str) -> None:
    _deleted(bench, bench.container(), version, None)


def del_without_namespace(bench: Bench, version: str) -> None:
    before = bench.node()
    for path in ("", f"{bench.directory}/none"):
        container = bench.container()
        result = _added(bench, container, version)
        # The last reference to the namespace: the kernel removes it.
        container.space.close()
        answers = bench.each("DEL", container, version, result, CNI_NETNS=path)
        succeeded(answers)
    _require_same(bench, before, "after DEL without a namespace")


def check_notices(bench: Bench, version: str) -> None:
    container = bench.container()
    result = _added(bench, container, version)
    sock = container.space.namespace.netlink()
    device = bench.link_inside(container)
    if device is None:
        raise Skipped("there is no interface that could be taken away")
    if bench.is_loopback:
        link.change(sock, device.index, up=False)  # the kernel deletes it never
    else:
        link.delete(sock, device.index)
    answers = bench.each("CHECK", container, version, result)
    bench.each("DEL", container, version, result)
    require(
        any(answer.code for answer in answers),
        f"CHECK succeeds although {bench.ifname} is gone from the container, or down",
    )
    for answer in answers:
        if answer.code:
            _error(answer)


def status(bench: Bench, version: str) -> None:
    for at in range(len(bench.binaries)):
        answer = bench.call(at, "STATUS", json.dumps(bench.document(at, version)).encode())
        if answer.code:
            _error(answer)
            require(answer.error["code"] in (50, 51), f"STATUS has a code of its own: {answer}")


def gc(bench: Bench, version: str) -> None:
    """GC leaves what is valid alone, and succeeds when nothing is."""
    container = bench.container()
    result = _added(bench, container, version)
    valid = [{"containerID": container.name, "ifname": bench.ifname}]
    # First GC must keep the container, then it may remove it; the DEL afterwards has to succeed.
    for attachments in (valid, []):
        for at in range(len(bench.binaries)):
            conf = {**bench.document(at, version), "cni.dev/valid-attachments": attachments}
            succeeded([bench.call(at, "GC", json.dumps(conf).encode())])
        if attachments:
            succeeded(bench.each("CHECK", container, version, result))
    _deleted(bench, container, version, result)


def concurrency(bench: Bench, version: str) -> None:
    before = bench.node()
    containers = [bench.container() for _ in range(AT_ONCE)]
    added = bench.at_once([lambda c=c: bench.add(c, version) for c in containers])
    for answers, _ in added:
        succeeded(answers)
    used = [ip["address"] for _, result in added for ip in (result or {}).get("ips", [])]
    # Every container's loopback has 127.0.0.1.
    require(bench.is_loopback or len(used) == len(set(used)), f"addresses were given twice: {used}")
    for container in containers:
        require(bench.link_inside(container), f"no {bench.ifname} in {container.name}")
    deleted = bench.at_once(
        [
            lambda c=c, r=r: bench.each("DEL", c, version, r)
            for c, (_, r) in zip(containers, added, strict=True)
        ]
    )
    for answers in deleted:
        succeeded(answers)
    _require_same(bench, before, f"after {AT_ONCE} containers at once")


CASES = (
    Case("version", "VERSION lists the versions that the plugin speaks", version),
    Case("unknown-command", "an unknown CNI_COMMAND is an error of code 4", unknown_command),
    Case("missing-variables", "a missing variable is an error of code 4", missing_variables),
    Case("wrong-variables", "a variable with a wrong value is an error", wrong_variables),
    Case("not-json", "a configuration that is no JSON is an error of code 6", not_json),
    Case("unknown-version", "an unknown cniVersion is an error of code 1", unknown_version),
    Case("no-namespace", "ADD without the namespace fails and leaves nothing", no_namespace),
    Case("life", "ADD, CHECK and DEL do what their results say", life, "0.1.0"),
    Case("del-again", "DEL may be repeated, and needs no prevResult", del_again, "0.1.0"),
    Case("del-without-add", "DEL succeeds without an ADD", del_without_add, "0.1.0"),
    Case(
        "del-without-namespace", "DEL succeeds when the namespace is gone",
        del_without_namespace, "0.3.1",
    ),
    Case("check-notices", "CHECK fails when the interface is gone", check_notices, "0.4.0"),
    Case("status", "STATUS succeeds, or fails with 50 or 51", status, "1.1.0"),
    Case("gc", "GC leaves valid attachments alone", gc, "1.1.0"),
    Case("concurrency", "several containers at once get addresses of their own", concurrency,
         "1.0.0"),
)  # fmt: skip
