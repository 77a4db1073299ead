"""The archive's __main__.py, for ``python3 cni``; sys.argv[0] is the file as it was named."""

from run import start

start()
