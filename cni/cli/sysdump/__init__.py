"""`cni sysdump`: what a bug report needs, in one file.

    command.py   the command: options, progress, what it prints
    archive.py   the .tar.gz, which appears whole or not at all
    collect.py   runs each part in a child process, bounded in time and size
    parts.py     what is collected
    tools.py     the output of other programs
    kernel.py    links, addresses, routes, rules, neighbours, queueing, over netlink
    ruleset.py   nftables, over netlink
    state.py     directories of state, never following a link out of them
    mask.py      secrets, and stand-ins for addresses and names
    anonymous.py stand-ins for addresses that keep the structure of subnets

Nothing of the node is changed. A part that fails, hangs or is too large costs that part alone, and
manifest.json says so.
"""
