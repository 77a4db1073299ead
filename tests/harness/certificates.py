"""Certificates for tests, made by openssl: authorities, servers, clients; expired ones, too."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple


class Pair(NamedTuple):
    """Files with a certificate and its key, in PEM form."""

    cert: str
    key: str


class Authority:
    """Signs certificates in a directory of its own."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self.cert, self._key = str(directory / f"{name}.pem"), str(directory / f"{name}.key")
        subject = ["-subj", f"/CN={name}", "-days", "10", "-nodes"]
        _openssl("req", "-x509", *_NEW_KEY, *subject, "-keyout", self._key, "-out", self.cert)

    def issue(self, name: str, names: str = "", days: int = 10, subject: str = "") -> Pair:
        """For these names (``IP:10.0.0.1,DNS:etcd``); with negative `days` it has expired.

        The subject is ``/CN=<name>``, unless it is given.
        """
        pair = Pair(str(self._directory / f"{name}.pem"), str(self._directory / f"{name}.key"))
        request, extensions = self._directory / "request", self._directory / "extensions"
        extensions.write_text(
            "extendedKeyUsage=serverAuth,clientAuth\n"
            + (f"subjectAltName={names}\n" if names else "")
        )
        _openssl("req", *_NEW_KEY, "-nodes", "-subj", subject or f"/CN={name}",
                 "-keyout", pair.key, "-out", str(request))  # fmt: skip
        _openssl("x509", "-req", "-in", str(request), "-CA", self.cert, "-CAkey", self._key,
                 "-CAcreateserial", "-days", str(days), "-extfile", str(extensions),
                 "-out", pair.cert)  # fmt: skip
        return pair


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")


def _openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
