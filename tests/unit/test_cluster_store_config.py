"""The configuration of a store: each wrong key is named, and nothing is connected."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from cni.store.config import open_store
from cni.store.http import parse_endpoint
from cni.store.interface import Refused

ETCD = {"type": "etcd", "endpoints": ["https://192.0.2.1:2379"]}


def test_a_store_is_opened_without_connecting() -> None:
    store = open_store({"type": "directory", "path": "/nowhere/store"})
    assert store.name == "directory /nowhere/store"


@pytest.mark.parametrize(
    ("options", "key", "remedy"),
    [
        ({}, "store.type: None", "directory, etcd"),
        ({"type": "consul"}, "store.type: 'consul'", "directory, etcd"),
        ({"type": ["etcd"]}, "store.type", "directory, etcd"),
        ({"type": "directory", "paht": "/x"}, "store.paht: unknown", "path"),
        ({"type": "directory", "path": "x"}, "store.path: 'x'", "'/'"),
        ({"type": "directory", "path": ""}, "store.path is empty", "directory"),
        ({"type": "directory", "path": 7}, "store.path: Expected `str`", "correct"),
        ({"type": "etcd"}, "store.endpoints is empty", "URLs"),
        ({**ETCD, "endpoints": "https://a"}, "store.endpoints: Expected `array`", "correct"),
        ({**ETCD, "endpoints": ["a:2379"]}, "store.endpoints: 'a:2379'", "https://HOST:PORT"),
        ({**ETCD, "endpoints": [7]}, "store.endpoints[0]: Expected `str`", "correct"),
        ({**ETCD, "cafile": "/x"}, "store.cafile: unknown", "caFile"),
        ({**ETCD, "caFile": "ca.pem"}, "store.caFile: 'ca.pem'", "'/'"),
        ({**ETCD, "serverName": ".a"}, "store.serverName: '.a'", "etcd.example"),
        ({**ETCD, "username": "u"}, "store.passwordFile is missing", "both"),
        ({**ETCD, "passwordFile": "/p"}, "store.username is missing", "both"),
        ({**ETCD, "prefix": "cni"}, "store.prefix: 'cni'", "/cni/v1"),
        ({"type": "directory", "timeout": 0}, "store.timeout: 0", "seconds"),
        ({"type": "directory", "timeout": float("nan")}, "store.timeout", "seconds"),
    ],
)
def test_a_wrong_key_is_named(options: dict[str, Any], key: str, remedy: str) -> None:
    with pytest.raises(Refused) as raised:
        open_store(options)
    assert key in str(raised.value)
    assert remedy in raised.value.remedy


def test_an_etcd_is_opened_without_connecting() -> None:
    assert open_store(ETCD).name == "etcd at https://192.0.2.1:2379"
    more = open_store({**ETCD, "endpoints": ["http://a", "http://b:1", "http://[::1]:2"]})
    assert more.name == "etcd at http://a and 2 more"


def test_only_what_an_engine_needs_is_loaded() -> None:
    """A directory needs no sockets, and an endpoint without TLS no `ssl`."""
    script = (
        "import sys; from cni.store.config import open_store\n"
        "open_store({'type': 'directory', 'path': '/nowhere'}).read('a')\n"
        "print({'ssl', 'socket', 'http.client', 'email'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stdout + done.stderr


@pytest.mark.parametrize(
    ("url", "named", "port"),
    [
        ("https://192.0.2.1:2379/", "https://192.0.2.1:2379", 2379),
        # Without a port: what is then tried is named, so that errors show it.
        ("https://192.0.2.1", "https://192.0.2.1:443", 443),
        ("http://[2001:db8::1]", "http://[2001:db8::1]:80", 80),
    ],
)
def test_an_endpoint_is_named_with_its_port(url: str, named: str, port: int) -> None:
    address = parse_endpoint(url)
    assert (address.url, address.port) == (named, port)
