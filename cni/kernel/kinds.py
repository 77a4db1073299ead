"""Which kinds of links the kernel can make, without making one."""

from __future__ import annotations

from errno import EACCES, EOPNOTSUPP, EPERM

from . import link
from .errors import NetlinkError
from .netlink import Netlink

# No link can have this name: the kernel refuses it, but only after it has looked for the kind
# (rtnl_newlink and dev_valid_name in net/core), and has loaded its module as for any other link.
_IMPOSSIBLE = "no/link"


def supported(sock: Netlink, kind: str) -> bool | None:
    """Can the kernel make links of this kind? None if it does not say (without CAP_NET_ADMIN).

    Only for kinds that make one link, not a pair.
    """
    try:
        link.create(sock, kind, _IMPOSSIBLE)
    except NetlinkError as error:
        if error.errno == EOPNOTSUPP:
            return False
        return None if error.errno in (EPERM, EACCES) else True
    return True
