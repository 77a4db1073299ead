"""`cni test`: attaches containers of its own, and sends packets between them.

The modules:

command.py     the command: makes all, calls the checks, removes all, and prints
situation.py    the objects of the checks: network, node, two containers, a host outside
containers.py  attaching and detaching as a runtime does; sweeping what a killed test left
outside.py     a throw-away host behind a link of the node: packets to it are forwarded
packets.py     ICMP, TCP and UDP over sockets that were made in a namespace
row.py         a row of the table
addresses.py, ports.py, lifecycle.py   the checks
causes.py      why packets did not arrive, and what mends it
"""
