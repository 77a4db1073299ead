"""The self-contained file's __main__.py: ``python3 FILE`` executes it, with its own interpreter."""

import os
import sys

try:
    os.execv(sys.argv[0], sys.argv)
except OSError as error:
    sys.exit(f"cni: {sys.argv[0]} cannot be executed: {error.strerror}")
