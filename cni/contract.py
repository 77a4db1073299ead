"""The contract of a plugin: the members of its module. The guide is docs/writing-a-plugin.md.

    class Conf(NetConf):
        my_key: str = ""

    def add(call: Call[Conf]) -> Result: ...

For readers and type checkers: nothing imports this module at run time. cni.call.Verbs looks up a
plugin's functions.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from .call import Call
from .protocol.config import PluginConf
from .protocol.request import Attachment
from .protocol.result import Result

C = TypeVar("C", bound=PluginConf)


class PluginModule(Protocol[C]):
    """The contract of a plugin: its module has `Conf`, and a function for each verb that it knows.

    A verb that the module lacks succeeds silently (docs/spec/protocol.md §1.3). Each raises
    CNIError. docs/writing-a-plugin.md is the guide.
    """

    @property
    def Conf(self) -> type[C]:  # noqa: N802 it is a class of the module
        """The form of the configuration: a Struct that derives from config.PluginConf."""

    def add(self, call: Call[C]) -> Result:
        """Validate everything, then change the kernel; push each reverse on `call.undo` before."""

    def delete(self, call: Call[C]) -> None:
        """Remove everything that ADD made. May be repeated; needs no namespace and no prevResult.

        Each step runs, even if others fail (`Steps`).
        """

    def check(self, call: Call[C]) -> None:
        """Compare the kernel with what ADD made; one error names every difference."""

    def gc(self, call: Call[C], keep: frozenset[Attachment]) -> None:
        """Remove objects of the network `call.network` whose attachment is not in `keep`."""

    def status(self, call: Call[C]) -> None:
        """Raise NotAvailable or LimitedConnectivity if an ADD could not work now."""

    def reload(self, call: Call[C]) -> None:
        """Make the packet filter's rules of an ADD again, whose result is the prevResult.

        A plugin that has this calls `call.remember` in its ADD.
        """
