"""`cni conform`: a black-box run of plugins against the specification.

command.py  the command, and its reports
cases.py    what the specification asks for, a function for each demand
bench.py    a node and containers of its own, and how a plugin is called there
"""
