"""The certificates of authorities that the node trusts, in the places of all distributions.

OpenSSL's place is fixed when it is compiled, so that of the self-contained file would find only
some distributions' certificates. SSL_CERT_FILE and SSL_CERT_DIR name others, as for every program.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl

# Files with all certificates: of Debian and Alpine; Fedora; RHEL; SUSE.
BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
)


def trust(context: ssl.SSLContext) -> bool:
    """Make `context` trust the system's authorities; False if the node has none.

    Raises OSError if their file cannot be read.
    """
    import ssl

    context.load_default_certs()
    places = ssl.get_default_verify_paths()
    if places.cafile or _has_hashed_names(places.capath):
        return True
    for path in BUNDLES:
        if os.path.exists(path):
            context.load_verify_locations(path)
            return True
    return False


def _has_hashed_names(directory: str | None) -> bool:
    """Can OpenSSL find certificates in the directory? It looks for hashed names (c_rehash(1))."""
    try:
        return any(name.endswith(".0") for name in os.listdir(directory or ""))
    except OSError:
        return False
