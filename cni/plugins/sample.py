"""sample: the plugin that docs/writing-a-plugin.md walks through (docs/spec/sample.md).

A chained plugin that only passes on the result of the plugins before it. To write a plugin, copy
this file and change it.
"""

from __future__ import annotations

import msgspec

from ..call import Call
from ..protocol import config
from ..protocol.errors import CNIError
from ..protocol.result import Result


class Sample(config.Folded):
    """What a runtime hands over for the capability `sample`."""

    note: str = ""


class Runtime(config.Folded):
    sample: Sample | None = None


class Conf(config.NetConf):
    another_awesome_arg: str = ""
    my_awesome_flag: bool = False
    runtime_config: Runtime = msgspec.field(default_factory=Runtime)


def _validated(call: Call[Conf]) -> tuple[Conf, Result | None]:
    """The validated configuration and the prevResult, if any. Raises CNIError."""
    conf = call.conf
    previous = call.prev_result()
    if not conf.another_awesome_arg:
        raise CNIError("anotherAwesomeArg must be specified", "give it any text that is not empty")
    return conf, previous


def add(call: Call[Conf]) -> Result:
    """Pass on the prevResult, which must have an address."""
    _, previous = _validated(call)
    if previous is None:
        raise CNIError(
            "must be called as chained plugin", "put it behind another plugin in the list"
        )
    if not previous.ips:
        raise CNIError("got no container IPs", "the plugins before it made no address")
    return previous


def delete(_call: Call[Conf]) -> None:
    """Succeed, whatever the configuration says: ADD made nothing, so there is nothing to remove."""


def check(_call: Call[Conf]) -> None:
    """Compare the kernel with the result of ADD; the sample has nothing to compare."""
    raise CNIError("not implemented", "a plugin that has nothing to compare leaves `check` out")


def status(call: Call[Conf]) -> None:
    """Ready if the IPAM plugin is ready."""
    conf, _ = _validated(call)
    call.delegate(conf.ipam.type)
