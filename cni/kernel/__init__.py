"""Requests to Linux, a module for each subsystem; each module can be used alone in a REPL.

>>> from cni.kernel import link, netlink
>>> link.get(netlink.Netlink(), "lo").mtu
65536
"""
