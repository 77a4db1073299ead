"""Policies for what may reach the node's own sockets (NETLINK_XFRM, linux/xfrm.h).

The kernel consults IPsec policies when it gives a packet to a socket, after all address
translation; a policy with the action `block` drops the packet. Flushing the packet filter does not
touch policies. `ip xfrm policy` shows them.
"""

from __future__ import annotations

import struct
from errno import EEXIST, ENOENT
from typing import NamedTuple

from ..protocol.address import Prefix
from .errors import NetlinkError
from .netlink import Netlink

NETLINK_XFRM = 6
XFRM_MSG_NEWPOLICY = 0x13
XFRM_MSG_DELPOLICY = 0x14
XFRM_POLICY_IN = 0
XFRM_POLICY_ALLOW = 0
XFRM_POLICY_BLOCK = 1

# struct xfrm_selector: addresses, ports and masks, family, prefix lengths, protocol, ifindex, user
_SELECTOR = struct.Struct("=16s16s8xHBBB3xiI")
# struct xfrm_lifetime_cfg (four limits, four times) and xfrm_lifetime_cur
_NO_LIMITS = b"\xff" * 32 + bytes(32) + bytes(32)
# struct xfrm_userpolicy_info, its end: priority, index, direction, action, flags, share
_POLICY = struct.Struct("=IIBBBB4x")
# struct xfrm_userpolicy_id, its end: index, direction
_ID = struct.Struct("=IB3x")


class Policy(NamedTuple):
    """A policy for packets from `src` to `dst`, of one family; a lower `priority` number wins."""

    src: Prefix
    dst: Prefix
    block: bool
    priority: int

    @property
    def _selector(self) -> bytes:
        addresses = self.dst.ip.ljust(16, b"\0"), self.src.ip.ljust(16, b"\0")
        return _SELECTOR.pack(
            *addresses, self.dst.family, self.dst.length, self.src.length, 0, 0, 0
        )

    def have(self, sock: Netlink) -> None:
        """Add the policy, unless there is one with these addresses. Raises NetlinkError."""
        action = XFRM_POLICY_BLOCK if self.block else XFRM_POLICY_ALLOW
        end = _POLICY.pack(self.priority, 0, XFRM_POLICY_IN, action, 0, 0)
        try:
            sock.request(XFRM_MSG_NEWPOLICY, self._selector + _NO_LIMITS + end)
        except NetlinkError as error:
            if error.errno != EEXIST:
                raise

    def delete(self, sock: Netlink) -> None:
        """Delete the policy with these addresses; if there is none, that is success.

        Raises NetlinkError.
        """
        try:
            sock.request(XFRM_MSG_DELPOLICY, self._selector + _ID.pack(0, XFRM_POLICY_IN))
        except NetlinkError as error:
            if error.errno != ENOENT:
                raise


def open_socket() -> Netlink:
    """A socket for policies of this namespace. Raises OSError without IPsec in the kernel."""
    return Netlink(NETLINK_XFRM)
