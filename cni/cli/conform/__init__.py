"""`cni conform`: a black-box run of plugins against the specification.

command.py  the command, and its reports
cases.py    the demands of the specification, a function for each
bench.py    a node and containers of its own, and how a plugin is called there
"""
