"""CNI plugins in Python: one file that is every plugin and the command line tool.

This module stays readable for Python 3.6, so that an old interpreter gets as far as the message
that names what is missing (launcher/run.py).
"""

__version__ = "0.2.0"
# The release of the reference plugins whose behaviour this is. Where others read our version,
# it stands in front: they compare it with what they need of the reference.
REFERENCE_VERSION = "1.9.1"

# An error that takes no memory to make, when there is none. The node may have some by the next try.
OUT_OF_MEMORY = b"""{
    "code": 11,
    "msg": "out of memory",
    "details": "there is not enough memory, or its limit is too low (ulimit -v, MemoryMax=)"
}
"""
