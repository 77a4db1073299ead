"""The first Python code of every run: checks the interpreter's version, then calls cni.__main__.

Three ways lead here, all with sys.argv[0] (after this module) being the path that was invoked:
installed, ``python -I -S .cni-<build>/run.py INVOKED ARGUMENT…``; from the archive, where the
launcher imports this module; and ``python cni ARGUMENT…``, through the archive's __main__.py.
Python 3.6 has to be able to read this file and cni/startup_error.py, to say that it is too old.
"""

import sys


def start():
    # type: () -> None
    """Run the plugin or command that sys.argv names; exits the process."""
    if sys.version_info < (3, 11):
        sys.dont_write_bytecode = True  # nothing of such a Python remains in the installed tree
        from cni.startup_error import too_old

        sys.exit(too_old())
    from cni.__main__ import main

    sys.exit(main())


if __name__ == "__main__":
    del sys.argv[0]
    sys.path.insert(0, __file__.rpartition("/")[0] or ".")
    start()
