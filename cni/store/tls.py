"""TLS to a store: certificates from files, read again when they change; errors for an operator.

`ssl` is imported when the first connection needs it. The self-contained file then unpacks its own.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from cni import authorities

from .interface import Refused
from .wire import NO_HANDSHAKE

if TYPE_CHECKING:
    import ssl

# X509_V_ERR_… of OpenSSL's x509_vfy.h
_NOT_YET_VALID, _EXPIRED = 9, 10
_UNKNOWN_ISSUER = (2, 18, 19, 20, 21, 24)
_OTHER_NAME = (62, 64)
_NO_TLS = ("wrong version number", "http request", "record layer failure")


class Trust(NamedTuple):
    """The authorities to trust, and our own certificate and key. Paths are of PEM files.

    Without `ca_file` and `ca_data` (PEM text) the system's authorities are trusted. `server_name`
    is the name in the server's certificate, where that is not the endpoint's host. `fields` are
    the names of the first three in the configuration.
    """

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    server_name: str = ""
    ca_data: str = ""
    verify: bool = True
    fields: tuple[str, str, str] = ("caFile", "certFile", "keyFile")


class Context:
    """The SSLContext of a Trust; made anew when one of its files was replaced."""

    def __init__(self, trust: Trust) -> None:
        self.trust = trust
        self._made: ssl.SSLContext | None = None
        self._seen: list[tuple[int, int, int]] = []

    def get(self) -> ssl.SSLContext:
        """Raises Refused, which names the file that is missing or wrong."""
        seen = [_identity(path) for path in self.trust[:3] if path]
        if self._made is None or seen != self._seen:
            self._made = _make(self.trust)
            self._seen = seen
        return self._made


def _identity(path: str) -> tuple[int, int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return (0, 0, 0)
    return (status.st_ino, status.st_mtime_ns, status.st_size)


def _make(trust: Trust) -> ssl.SSLContext:
    try:
        import ssl
    except ImportError as error:
        raise Refused(
            f"TLS cannot be used: Python's module ssl cannot be imported: {error}",
            "install it, if it is a package of its own on this node; or use the self-contained "
            "file, which has its own",
        ) from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # a server must not choose HTTP/2, which wire.py does not speak
    context.set_alpn_protocols(["http/1.1"])
    ca_field, cert_field, key_field = trust.fields
    try:
        if trust.ca_file:
            _readable(ca_field, trust.ca_file)
            context.load_verify_locations(trust.ca_file)
        elif trust.ca_data:
            context.load_verify_locations(cadata=trust.ca_data)
        elif trust.verify and not authorities.trust(context):
            raise Refused(
                "this node has no certificates of authorities (no ca-certificates)",
                f"install the package ca-certificates, or set {ca_field} to the certificate of "
                "the authority that signed the store's",
            )
    except OSError:
        raise Refused(
            f"{ca_field} {trust.ca_file} holds no certificate in PEM form",
            "put the certificate of the authority that signed the store's there",
        ) from None
    if trust.cert_file:
        _load_own(context, trust, cert_field, key_field)
    elif trust.key_file:
        raise Refused(f"{key_field} without {cert_field}", f"set {cert_field}, too")
    if not trust.verify:
        # first: `ssl` refuses CERT_NONE while names are checked
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _load_own(context: ssl.SSLContext, trust: Trust, cert_field: str, key_field: str) -> None:
    # errors of `ssl` do not name the file
    _readable(cert_field, trust.cert_file)
    if trust.key_file:
        _readable(key_field, trust.key_file)
    try:
        # A key with a passphrase would ask for it on the terminal.
        context.load_cert_chain(trust.cert_file, trust.key_file or None, password=lambda: "")
    except OSError as error:
        if "MISMATCH" in str(error):
            text = f"{key_field} {trust.key_file} is not the key of {cert_field} {trust.cert_file}"
        else:
            text = f"{cert_field} {trust.cert_file} or {key_field} {trust.key_file} is not PEM"
        raise Refused(text, "both are PEM files, and the key has no passphrase") from None


def _readable(field: str, path: str) -> None:
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise Refused(
            f"{field} {path}: {reason}", f"put the file there, or correct {field}"
        ) from None


class Why(NamedTuple):
    """What was wrong with a TLS connection; `is_final`: trying again is no use."""

    text: str
    remedy: str
    is_final: bool = True


CLOSED_EARLY = Why(
    NO_HANDSHAKE,
    "if it has no TLS, use http:// in the endpoint; else the store's log says why",
    is_final=False,
)


def explain(error: OSError, trust: Trust, host: str) -> Why | None:
    """What an error of `ssl` means; None for one of another module."""
    # by the name: without TLS the module is not loaded
    if type(error).__module__ != "ssl":
        return None
    code = getattr(error, "verify_code", None)
    if code is not None:
        return _explain_certificate(
            int(code), str(getattr(error, "verify_message", "")), trust, host
        )
    reason = str(getattr(error, "reason", "") or error)
    words = reason.partition(" (_ssl")[0].lower().replace("_", " ")
    if any(text in words for text in _NO_TLS):
        return Why("it does not speak TLS", "use http:// in the endpoint, or the port with TLS")
    if "alert" in words and any(
        word in words for word in ("certificate", "unknown ca", "access denied", "decrypt error")
    ):
        cert_field = trust.fields[1]
        own = f"the client certificate {trust.cert_file}" if trust.cert_file else "no certificate"
        return Why(
            f"the server does not accept {own} ({words})",
            f"set {cert_field} and {trust.fields[2]} to a certificate that its authority has "
            "signed for clients, and that is valid now",
        )
    if "eof" in words:  # etcd without TLS answers nothing
        return CLOSED_EARLY
    remedy = "look into the store's log; compare the TLS versions and ciphers of both sides"
    return Why(f"TLS failed: {words}", remedy, is_final=False)


def _explain_certificate(code: int, message: str, trust: Trust, host: str) -> Why:
    ca_field = trust.fields[0]
    if code == _EXPIRED:
        return Why(
            "its certificate, or the authority's, has expired",
            "renew the certificate, or correct this node's clock",
        )
    if code == _NOT_YET_VALID:
        return Why("its certificate is not valid yet", "correct this node's clock, or the store's")
    if code in _OTHER_NAME:
        name = trust.server_name or host
        return Why(
            f"its certificate is not for {name}",
            "write the endpoint with a name of the certificate, or set serverName to one",
        )
    if code in _UNKNOWN_ISSUER:
        trusted = f"{ca_field} {trust.ca_file}" if trust.ca_file else "the system's authorities"
        return Why(
            f"its certificate is not signed by {trusted}",
            f"set {ca_field} to the certificate of the authority that signed it",
        )
    return Why(f"its certificate is not accepted: {message}", f"check it against {ca_field}")
