"""Requests to Windows' two networking services, HNS (`hns`, v1) and HCN (`hcn`, v2).

Both modules offer the same functions over the same types (`model`), so that a plugin is written
once. They work wherever libraries with those names and functions can be loaded: the tests bring
theirs (tests/harness/hns.c).
"""
