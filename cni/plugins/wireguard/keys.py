"""Keys in files: this node's private one, and those that it shares with peers.

    /var/lib/cni/wireguard/<network>.key        the private key, made by the network's first ADD
    /var/lib/cni/wireguard/<network>.key.pub    the public one, for the `peers` of other nodes

They have the form of wg(8): base64 and a newline. A private key is in no message, log or result.
"""

from __future__ import annotations

import os
from binascii import Error, a2b_base64, b2a_base64
from errno import ENOENT

from ... import files, lockfile
from ...kernel.wireguard import KEY_SIZE, clamped
from ...protocol.errors import CNIError

_MOST = 4096  # bytes of a file with a key
_WRITE = 0o022  # permission bits: others must not choose a key
_READ = 0o044


def parse(text: str, where: str) -> bytes:
    """The 32 bytes of a key in base64; `where` is for the message. Raises CNIError."""
    try:
        raw = a2b_base64(text.encode("ascii"), strict_mode=True)
    except (Error, ValueError):
        raw = b""
    if len(raw) != KEY_SIZE:
        raise CNIError(
            f"invalid {where}", "a key is 32 bytes in base64, as `wg pubkey` and `wg genpsk` write"
        )
    return raw


def text_of(key: bytes) -> str:
    """A key in base64."""
    return b2a_base64(key, newline=False).decode("ascii")


def private(path: str) -> bytes:
    """This node's private key in the file `path`, which is made if it is missing.

    Raises CNIError, TryAgainLater.
    """
    present = existing(path)
    if present:
        return present
    try:
        directory = os.path.dirname(path)
        os.makedirs(directory, 0o700, exist_ok=True)
        # one ADD makes the key; the others of this moment read it
        lock = lockfile.take(f"{path}.lock")
        try:
            if not os.path.exists(path):
                made = clamped(os.urandom(KEY_SIZE))
                files.replace(path, f"{text_of(made)}\n".encode(), 0o600, sync=True)
        finally:
            lockfile.release(lock)
        return _read(path, "privateKeyFile")
    except OSError as error:
        raise CNIError(
            f"failed to make this node's private key: {path}: {error.strerror}",
            "`privateKeyFile` names another file",
        ) from None


def existing(path: str) -> bytes:
    """The private key in the file `path`; empty if there is no file yet. Raises CNIError."""
    try:
        return _read(path, "privateKeyFile")
    except FileNotFoundError:
        return b""


def preshared(path: str) -> bytes:
    """The key in a `presharedKeyFile`. Raises CNIError."""
    try:
        return _read(path, "presharedKeyFile")
    except FileNotFoundError:
        raise CNIError(
            f"failed to read presharedKeyFile: {path}: {os.strerror(ENOENT).lower()}",
            "`wg genpsk` makes such a key, which both nodes need",
        ) from None


def _read(path: str, key: str) -> bytes:
    """Raises FileNotFoundError, CNIError."""
    try:
        fd, status = files.open_and_stat(path)
        try:
            if status.st_mode & (_WRITE | _READ):
                raise CNIError(f"{key} {path} can be read by others", f"`chmod 600 {path}`")
            raw = files.read_open(fd, _MOST, path)
        finally:
            os.close(fd)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CNIError(f"failed to read {key}: {path}: {error.strerror}") from None
    return parse(raw.decode("ascii", "replace").strip(), f"{key} {path}")


def note_public(path: str, key: bytes) -> None:
    """Write the public key beside the private one, for people. Raises nothing."""
    line = f"{text_of(key)}\n".encode()
    try:
        if files.read(f"{path}.pub", _MOST) == line:
            return
    except OSError:
        pass
    try:
        files.replace(f"{path}.pub", line, 0o644)
    except OSError:
        pass  # nothing needs it: `wg show` tells the key, too


def noted_public(path: str) -> bytes:
    """The public key that was written beside the private one; empty if that is not known."""
    try:
        return parse(files.read(f"{path}.pub", _MOST).decode("ascii").strip(), "public key")
    except (OSError, ValueError, CNIError):
        return b""
