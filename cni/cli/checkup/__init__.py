"""What `cni doctor` looks at: each module has functions that yield what they found.

    node.py          kernel, modules, sysctls, connection tracking
    packet_filter.py variants of iptables, chains that drop, rules that were flushed
    state.py         disks, state directories, leftovers of dead containers
    software.py      installed plugins, server, versions of programs
    networks.py      each network of this node

Nothing is changed.
"""
