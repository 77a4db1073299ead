"""`cni trace`: runs the plugins of a network, and measures each step.

The modules:

    command.py   the command
    watched.py   running plugins with CNI_DEBUG=steps (cni.stopwatch), and reading what they wrote
    steps.py     steps as a tree, and as a table
"""
