"""One file, many programs: the name it was called by decides which (cni.dispatch.find).

On the way to a plugin this module imports only the dispatch table (a test guards the list of
modules): each import makes every container start slower, once for each plugin and verb.
"""

from __future__ import annotations

import gc
import os
import sys
from _signal import (  # type: ignore[import-not-found]
    SIG_DFL,
    SIGINT,
    default_int_handler,
    getsignal,
    signal,
)


def main() -> int:
    """Run the plugin named by sys.argv[0], or the command line; returns the exit code.

    Failures to start end in the specification's error object, like those of a plugin.
    """
    try:
        return _main()
    except MemoryError:
        return _out_of_memory()


def _main() -> int:
    is_request = bool(os.environ.get("CNI_COMMAND")) and not sys.argv[1:]
    if is_request:
        _end_without_traceback()
    _prepare_archive()
    from cni import standins

    try:
        if is_request:
            _prepare_request()
        else:
            _prepare_command()
        from cni import dispatch
    except (Exception, standins.Insufficient) as error:
        if not isinstance(error, OSError) and standins.enabled:
            standins.restart()
        if is_request and isinstance(error, OSError):
            from cni.startup_error import refused

            return refused(error)
        if not isinstance(error, ImportError):
            raise
        return _cannot_start(error)
    name = _called()
    plugin = dispatch.find(name)
    # as in the reference, the plugin's file is the daemon's, too
    if plugin == "dhcp" and sys.argv[1:2] == ["daemon"]:
        from cni.ipam.dhcp.main import main as daemon

        return daemon(sys.argv[2:])
    if plugin is not None:
        _run_plugin(plugin)
    if is_request:
        return _unknown(name, sorted(dispatch.TABLE))
    from cni.cli import main as command_line

    return command_line(sys.argv[1:])


def _called() -> str:
    """The name by which this program was called."""
    if sys.platform == "win32":
        from cni.windows.launcher import plugin_name

        return plugin_name(sys.argv[0])
    return os.path.basename(sys.argv[0])


def _end_without_traceback() -> None:
    """Let SIGINT end this process without a traceback, until the request's handlers are set."""
    try:
        if getsignal(SIGINT) is default_int_handler:
            signal(SIGINT, SIG_DFL)
    except OSError:
        pass  # a policy refuses it; it will also refuse the request's handlers, which is an error


def _prepare_request() -> None:
    from cni import standins

    standins.enable()
    from cni import interrupts

    interrupts.install()


def _prepare_command() -> None:
    from cni.standins import click_

    click_.enable()


def _run_plugin(name: str) -> None:
    """Serve one CNI request and end the process.

    Collecting garbage and finalizing the interpreter would only delay the answer.
    """
    gc.disable()
    from cni import dispatch

    try:
        code = dispatch.main(name)
    except ImportError as error:
        code = _cannot_start(error)
    except MemoryError:
        code = _out_of_memory()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # None if the caller has closed the descriptor
                stream.flush()
        except OSError:  # the runtime has closed its end
            code = code or 1
    try:
        netfilter = sys.modules.get("cni.netfilter.nft")
        if netfilter is not None:
            netfilter.hand_over()
    finally:
        os._exit(code)


def _prepare_archive() -> None:
    loader = globals().get("__loader__")
    if hasattr(loader, "archive"):
        from cni.zip_extensions import enable

        enable(loader)


def _out_of_memory() -> int:
    from cni import OUT_OF_MEMORY

    if os.environ.get("CNI_COMMAND"):
        os.write(1, OUT_OF_MEMORY)
    else:
        os.write(2, b"cni: out of memory\n")
    return 1


def _cannot_start(error: ImportError) -> int:
    from cni import damage
    from cni._build import ABIS
    from cni.startup_error import complain, remedy

    damage.suspect()

    found = f"{sys.executable} is Python {sys.version_info[0]}.{sys.version_info[1]}"
    built = f"; this file has extension modules for {', '.join(ABIS)}" if ABIS else ""
    if sys.platform == "win32":
        advice = "install one of these from python.org, for 64 bits"
    else:
        advice = f"{remedy()}; Debian's python3-minimal is not enough"
    return complain(f"cannot start: {error}", f"{found}{built}; {advice}")


def _unknown(name: str, known: list[str]) -> int:
    from cni.startup_error import complain

    details = f"this file has: {', '.join(known)}"
    if sys.argv[0].startswith(("/dev/fd/", "/proc/")):
        details = f"it was executed by a descriptor, and argv[0] names no plugin; {details}"
    return complain(f'no plugin is called "{name}"', details)


if __name__ == "__main__":
    sys.exit(main())
