"""Errors before the plugin can start, in the form that the caller expects.

Imports nothing that a damaged or old Python may lack. Python 3.6 has to be able to read this.
"""

import os
import sys

_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def complain(msg, details):
    # type: (str, str) -> int
    """Write the error and return the exit code, 1.

    A container runtime (CNI_COMMAND is set) gets the specification's error object on stdout, a
    person gets a line on stderr.
    """
    if os.environ.get("CNI_COMMAND"):
        text = '{{\n    "code": 999,\n    "msg": "{}",\n    "details": "{}"\n}}\n'
        _write(1, text.format(_quoted(msg), _quoted(details)))
    else:
        _write(2, "cni: {}: {}\n".format(_printable(msg), _printable(details)))
    return 1


def refused(error):
    # type: (OSError) -> int
    """Report that the kernel refuses the first steps of every plugin; return the exit code, 1."""
    details = "a security policy of this system (seccomp, SELinux) refuses a system call"
    return complain("cannot start: {}".format((error.strerror or str(error)).lower()), details)


# Commands that install a Python that is new enough. The cases are tried in this order, as a shell's
# patterns, on "ID VERSION_ID VARIANT_ID" of os-release(5). No command means that there is no
# package, or none for which this file has extension modules. The build writes the table into
# launcher/prefix.sh.
REMEDIES = (
    ("* coreos|rhcos *|flatcar *|bottlerocket *|talos *|cos *|opensuse-microos *|sl*-micro *", ""),
    ("alpine *", ""),
    ("debian [1-9] *|debian 1[01] *|raspbian 1[01] *", ""),
    ("ubuntu 1* *|ubuntu 20.* *|amzn 2 *|amzn 2018*|centos 7 *|rhel 7*", ""),
    ("ubuntu 22.* *", "apt-get install python3.11"),
    ("debian *|ubuntu *|raspbian *", "apt-get install python3"),
    ("rhel [89]*|centos [89]*|almalinux [89]*|rocky [89]*|ol [89]*", "dnf install python3.11"),
    ("amzn 2023*", "dnf install python3.11"),
    ("fedora *|rhel *|centos *|almalinux *|rocky *|ol *|amzn *", "dnf install python3"),
    ("mariner *|azurelinux [12].*", ""),
    ("azurelinux *", "tdnf install python3"),
    ("sles 15*|sled 15*|opensuse-leap 15*", "zypper install python311"),
    ("sles *|opensuse-*", "zypper install python3"),
    ("arch *", "pacman -S python"),
)
_OTHERWISE = "take the file cni-linux-{}, which carries its interpreter"


def remedy(root="", machine=""):
    # type: (str, str) -> str
    """How to install a new enough Python on the system with the root directory `root`."""
    otherwise = _OTHERWISE.format(machine or os.uname()[4])
    command = _command(_system(root))
    if command is None:
        return "install Python 3.11 or newer, or " + otherwise
    if not command:
        return "this system has no package that would do: " + otherwise
    return "install it ({}), or {}".format(command, otherwise)


def _system(root):
    # type: (str) -> str
    """``ID VERSION_ID VARIANT_ID``."""
    found = {}
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            with open(root + path, errors="replace") as file:
                lines = file.read(1 << 16).splitlines()
        except OSError:
            continue
        for line in lines:
            key, _, value = line.partition("=")
            found[key] = value.strip("\"'")
        break
    return " ".join(found.get(key, "") for key in ("ID", "VERSION_ID", "VARIANT_ID"))


def _command(system):
    # type: (str) -> object
    """The command of REMEDIES; None if the system is not in the table."""
    from fnmatch import fnmatchcase

    for patterns, command in REMEDIES:
        if any(fnmatchcase(system, pattern) for pattern in patterns.split("|")):
            return command
    return None


def too_old():
    # type: () -> int
    """Report that this interpreter is too old; returns the exit code."""
    found = ".".join(str(n) for n in sys.version_info[:3])
    return complain(
        "python3 (3.11 or newer) not found",
        "{} is Python {}; {}".format(sys.executable or "python3", found, remedy()),
    )


def _quoted(text):
    # type: (str) -> str
    return "".join(
        _ESCAPES.get(c) or (c if " " <= c <= "~" else "\\u%04x" % min(ord(c), 0xFFFD)) for c in text
    )


def _printable(text):
    # type: (str) -> str
    """Text for a terminal, which must not obey control characters in a file's name."""
    return "".join(c if c.isprintable() else "\\x%02x" % ord(c) for c in text)


def _write(fd, text):
    # type: (int, str) -> None
    data = text.encode("utf-8", "backslashreplace")
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        pass  # the exit code also reports the failure
