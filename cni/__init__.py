"""CNI plugins in Python: one file that is every plugin and the command line tool.

This module stays readable for Python 3.6, so that an old interpreter gets as far as the message
that names what is missing (launcher/run.py).
"""

__version__ = "0.2.0"
# The release of the reference plugins whose behaviour this is. Where others read our version,
# it stands in front: they compare it with what they need of the reference.
REFERENCE_VERSION = "1.9.1"
