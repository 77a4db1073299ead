"""Where a Kubernetes API is and how to log in: of a kubeconfig, or of the pod that this runs in.

Sources: kubernetes.io, "kubeconfig (v1)" (keys; paths are relative to the file) and "Accessing the
API from a Pod" (the mounted account, and the environment's KUBERNETES_SERVICE_HOST and _PORT).
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from .. import files
from . import kubeconfig_yaml
from .interface import Refused, Unavailable
from .tls import Trust

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_CA, _CERTIFICATE, _KEY = "certificate-authority", "client-certificate", "client-key"
_MOST = 4 << 20
_AS_JSON = "kubectl config view --raw --minify --flatten -o json"


class Access(NamedTuple):
    """A server, and the credentials for it.

    `server` is its URL, with a path where it has one. The token is in `token`, or in the file
    `token_file`, which somebody renews.
    """

    server: str
    trust: Trust
    token: str = ""
    token_file: str = ""

    def bearer(self) -> str:
        """The token as it is now; empty if there is none. Raises Refused, Unavailable."""
        if not self.token_file:
            return self.token
        text = _file(self.token_file, "the token").decode("utf-8", "replace").strip()
        if not text or not text.isprintable():
            raise Refused(f"{self.token_file} has no token", "the kubelet writes it: see the pod")
        return text


def in_cluster(env: Mapping[str, str], account: str = ACCOUNT) -> Access:
    """The API of the cluster whose pod this is. Raises Refused if it is none."""
    host, port = env.get("KUBERNETES_SERVICE_HOST"), env.get("KUBERNETES_SERVICE_PORT")
    token = f"{account}/token"
    if not host or not os.path.exists(token):
        raise Refused(
            "store.kubeconfig: not given, and this is not a pod with a service account",
            "name a kubeconfig, or run the server in a pod of which automountServiceAccountToken "
            "is true (deploy/cluster/node.yaml)",
        )
    # a URL has an IPv6 address in brackets
    host = f"[{host}]" if ":" in host else host
    trust = Trust(ca_file=f"{account}/ca.crt")
    return Access(f"https://{host}:{port or '443'}", trust, token_file=token)


def read(path: str) -> Access:
    """The cluster and user of the current context of a kubeconfig, in YAML or JSON.

    Raises Refused, which names the file and the field; Unavailable if it cannot be read just now.
    """
    data = _file(path, "the kubeconfig")
    try:
        config = _decoded(data)
    except ValueError as error:
        raise Refused(
            f"kubeconfig {path}: {error}", f"JSON is understood, too: {_AS_JSON}"
        ) from None
    try:
        return _Reader(path, config).access()
    except _Wrong as error:
        raise Refused(f"kubeconfig {path}: {error}", error.remedy) from None


def _decoded(data: bytes) -> dict[str, Any]:
    if data.lstrip().startswith(b"{"):
        value = msgspec.json.decode(data)
    else:
        value = kubeconfig_yaml.decode(data.decode())
    if not isinstance(value, dict):
        raise ValueError("it is not a mapping")
    return value


class _Wrong(Exception):
    def __init__(self, text: str, remedy: str = "") -> None:
        super().__init__(text)
        self.remedy = remedy


class _Reader:
    def __init__(self, path: str, config: dict[str, Any]) -> None:
        self.directory = os.path.dirname(os.path.abspath(path))
        self.config = config

    def access(self) -> Access:
        name = self.config.get("current-context")
        if not name:
            raise _Wrong("current-context is not set", "kubectl config use-context NAME")
        context = self._entry("contexts", "context", name)
        cluster = self._entry("clusters", "cluster", context.get("cluster", ""))
        user = self._entry("users", "user", context["user"]) if context.get("user") else {}
        self._check_login(user)
        server = _text(cluster, "server").rstrip("/")
        if not server.startswith("https://"):
            raise _Wrong(f"server {server!r} does not begin with https://")
        if cluster.get("proxy-url"):
            raise _Wrong("proxy-url is not supported", "give a server that is reached without one")
        token_file = self._path(_text(user, "tokenFile"))
        trust = Trust(
            ca_file=self._path(_text(cluster, _CA)) if not cluster.get(f"{_CA}-data") else "",
            ca_data=self._data(cluster, _CA).decode("utf-8", "replace"),
            cert_file=self._in_file(user, _CERTIFICATE),
            key_file=self._in_file(user, _KEY),
            server_name=_text(cluster, "tls-server-name"),
            verify=cluster.get("insecure-skip-tls-verify") is not True,
            fields=(_CA, _CERTIFICATE, _KEY),
        )
        # As kubectl does: the file comes before the token, which is as old as this file.
        token = "" if token_file else _text(user, "token")
        return Access(server, trust, token, token_file)

    def _entry(self, plural: str, singular: str, name: Any) -> dict[str, Any]:
        for each in self.config.get(plural) or ():
            if isinstance(each, dict) and each.get("name") == name:
                found = each.get(singular) or {}
                if isinstance(found, dict):
                    return found
        raise _Wrong(f"{plural} has no {singular} {name!r}")

    def _check_login(self, user: dict[str, Any]) -> None:
        for key in ("exec", "auth-provider"):
            if user.get(key):
                raise _Wrong(
                    f"the user logs in by a program ({key}), which a network plugin does not start",
                    "give a user with a token, a tokenFile or a client certificate: a service "
                    "account's, for example (docs/cluster-kubernetes.md)",
                )
        if user.get("username") or user.get("password"):
            raise _Wrong("Kubernetes has no user name and password", "give a token instead")
        if bool(self._source(user, _CERTIFICATE)) != bool(self._source(user, _KEY)):
            raise _Wrong("client-certificate and client-key come together")

    def _source(self, entry: dict[str, Any], key: str) -> str:
        return _text(entry, f"{key}-data") or _text(entry, key)

    def _data(self, entry: dict[str, Any], key: str) -> bytes:
        """What is in `<key>-data`, which comes before the file `<key>`; or nothing."""
        try:
            return base64.b64decode(_text(entry, f"{key}-data"), validate=True)
        except binascii.Error:
            raise _Wrong(f"{key}-data is not base64") from None

    def _in_file(self, entry: dict[str, Any], key: str) -> str:
        """The path of a file with it; what is in the kubeconfig gets one in memory."""
        data = self._data(entry, key)
        if not data:
            return self._path(_text(entry, key))
        # OpenSSL reads certificates and keys from files only. It stays open as long as the process.
        fd = os.memfd_create(key)
        os.write(fd, data)
        return f"/proc/self/fd/{fd}"

    def _path(self, path: str) -> str:
        return os.path.join(self.directory, path) if path else ""


def _text(entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _Wrong(f"{key} is not a string")
    return value


def _file(path: str, what: str) -> bytes:
    try:
        # an account is mounted as symbolic links, which the kubelet replaces all at once
        return files.read(path, _MOST, follow=True)
    except FileNotFoundError:
        raise Refused(f"{path}, {what}, does not exist", "give another path") from None
    except PermissionError:
        raise Refused(f"no permission to read {path}, {what}", "run as root") from None
    except OSError as error:
        raise Unavailable(f"cannot read {path}, {what}: {error.strerror}") from None
