"""What we ask of Linux, one module a subsystem, each usable alone in a REPL.

>>> from cni.kernel import link, netlink
>>> link.get(netlink.Netlink(), "lo").mtu
65536
"""
