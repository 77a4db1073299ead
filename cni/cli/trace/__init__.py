"""What `cni trace` does: runs the plugins of a network, and says how long each step took.

What is in which module:

    command.py   the command
    watched.py   running plugins with CNI_DEBUG=steps (cni.stopwatch), and reading what they wrote
    steps.py     steps as a tree, and as a table
"""
