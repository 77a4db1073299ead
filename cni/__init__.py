"""CNI plugins in Python: one file that is every plugin and the command line tool.

This module stays readable for Python 3.6, so that an old interpreter gets as far as the message
that names what is missing (launcher/run.py).
"""

__version__ = "0.1.0"
