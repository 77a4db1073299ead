"""CNI plugins in Python: one file that is every plugin and the command line tool.

This module stays readable for Python 3.6, so that an old interpreter gets as far as the message
that names what is missing (launcher/run.py).
"""

__version__ = "0.2.0"
# The release of the reference plugins whose behaviour this package has. The version that others
# read begins with it, because they compare it with the release of the reference that they need.
REFERENCE_VERSION = "1.9.1"

# The error for a lack of memory, made ahead because making it would take memory. A later attempt
# may succeed.
OUT_OF_MEMORY = b"""{
    "code": 11,
    "msg": "out of memory",
    "details": "there is not enough memory, or its limit is too low (ulimit -v, MemoryMax=)"
}
"""
