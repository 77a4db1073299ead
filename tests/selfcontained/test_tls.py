"""TLS where there is nothing but the file: stores over https, and certificates that are wrong."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import ssl
import subprocess
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from cni.authorities import BUNDLES
from tests.harness.admission import NODE_CLAIM, User
from tests.harness.apiserver import serving as serving_api
from tests.harness.build import ROOT
from tests.harness.certificates import Authority
from tests.harness.etcd import EtcdCluster, client_options
from tests.harness.http_faults import FaultyServer, answer, saying
from tests.harness.netns import BARE_ENV
from tests.harness.server import Server, served
from tests.harness.wait import wait_until
from tests.unit.ipam_node import environment

from .conftest import BIN_DIR, Chroot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.harness.netns import Netns

RANGES = [[{"subnet": "10.88.0.0/24"}]]
SOCKET = "/run/cni/s"
WARM = {"CNI_SERVER": "", "CNI_SERVER_SOCKET": SOCKET}
NODE_FILE = "etc/cni/cluster.json"
ACCOUNT = "system:serviceaccount:kube-system"
MANIFESTS = [ROOT / f"deploy/cluster/{name}.yaml" for name in ("crds", "rbac", "policy")]


class Node:
    """A root directory whose `cluster` has a store. A path below `directory` is the same inside."""

    def __init__(self, root: Path, ns: Netns, program: Path) -> None:
        self.chroot = Chroot(root, ns)
        shutil.copy(program, self.chroot.outside(BIN_DIR) / "cni")
        (self.chroot.outside(BIN_DIR) / "cluster").symlink_to("cni")
        self.directory = root / "tls"
        self.directory.mkdir()

    def use(self, **store: Any) -> None:
        """Keep the store in the node's file, which plugins and commands read."""
        path = self.chroot.outside(NODE_FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"store": store, "nodeName": "n1"}))

    def plugin(self, verb: str, container: str = "c1", **env: str) -> dict[str, Any]:
        """Run it without a server; what it prints."""
        ipam = {"type": "cluster", "ranges": RANGES, "blockSize": 28}
        conf = {"cniVersion": "1.1.0", "name": "net", "type": "cluster", "ipam": ipam}
        variables = {**environment(verb, container, "eth0", ""), "CNI_SERVER": "off", **env}
        done = self.chroot.run(f"{BIN_DIR}/cluster", env=variables, stdin=json.dumps(conf))
        assert done.returncode == 0 or done.stdout, done.stderr
        result: dict[str, Any] = json.loads(done.stdout or "{}")
        return result

    def address(self, **more: Any) -> str:
        """That of an ADD, which has to succeed."""
        result = self.plugin("ADD", **more)
        assert "ips" in result, result
        return str(result["ips"][0]["address"])

    def problem(self, **env: str) -> str:
        """What an ADD says that has to fail."""
        result = self.plugin("ADD", **env)
        assert "msg" in result, result
        return f"{result['msg']}: {result.get('details', '')}"

    def command(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return self.chroot.run(f"{BIN_DIR}/cni", *words, env=env)


@pytest.fixture
def node(tmp_path: Path, host: Netns, program: Path) -> Node:
    return Node(tmp_path / "root", host, program)


@pytest.fixture
def https(host: Netns) -> Iterator[Callable[..., FaultyServer]]:
    """Starts a server that is no store: who gets an answer of it has accepted its certificate."""
    servers: list[FaultyServer] = []

    def start(pair: Any, clients: Authority | None = None) -> FaultyServer:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.cert, pair.key)
        if clients is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(clients.cert)
        servers.append(FaultyServer(host, saying(answer(b"{}")), context=context))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


ACCEPTED = "no answer of etcd"


def test_etcd_with_client_certificates(
    program: Path, netns: Callable[..., Netns], tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "ca")
    etcd = EtcdCluster(netns, tmp_path, authority=authority)
    try:
        node = Node(tmp_path / "root", etcd.node, program)
        inside = Authority.__new__(Authority)
        shutil.copytree(tmp_path / "ca", node.directory / "ca")
        pair = authority.issue("node")
        for path in (pair.cert, pair.key):
            shutil.copy(path, node.directory)
        inside.cert = str(node.directory / "ca/ca.pem")
        mine = type(pair)(str(node.directory / "node.pem"), str(node.directory / "node.key"))
        store = etcd.options(stateDir="", **client_options(inside, mine))
        node.use(**store)

        assert re.fullmatch(r"10\.88\.0\.\d+/24", node.address())
        assert '"n1"' in etcd.members[0].ctl("get", "--prefix", "/cni/v1/blocks")
        listed = node.command("ipam", "blocks", "-o", "json")
        assert "10.88.0." in listed.stdout, listed.stderr
        assert node.plugin("STATUS") == {}
        assert node.plugin("DEL") == {}

        with serve(node) as server:
            names = [f"c{number}" for number in range(20)]
            addresses = {
                served(server, lambda name=name: node.address(container=name, **WARM))
                for name in names
            }
            assert len(addresses) == len(names)

        node.use(**{**store, "certFile": "", "keyFile": ""})
        shutil.rmtree(node.chroot.outside("/var/lib/cni"))
        assert "does not accept no certificate" in node.problem()
    finally:
        etcd.close()


@contextlib.contextmanager
def serve(node: Node, **env: str) -> Iterator[Server]:
    """A server on the node, which plugins with the variables WARM find."""
    words = [*node.chroot.prefix, f"{BIN_DIR}/cni", "serve", "--socket", SOCKET, "--workers", "1"]
    child = node.chroot.host.popen(words, env={**BARE_ENV, **env}, stderr=subprocess.PIPE)
    server = Server(child, node.chroot.root / SOCKET.lstrip("/"), node.chroot.host)
    try:
        wait_until(lambda: _answers(server), "the server", process=child)
        yield server
    finally:
        child.terminate()
        server.said = child.communicate(timeout=60)[1].decode()


def _answers(server: Server) -> bool:
    try:
        return bool(server.status())
    except OSError:
        return False


def test_spans_to_a_collector(node: Node, https: Any) -> None:
    """Over https, also from here; one whose certificate is not signed by an authority gets none."""
    authority, other = Authority(node.directory / "ca"), Authority(node.directory / "other")
    collector = https(authority.issue("good", "IP:127.0.0.1"))
    spans = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
    node.use(type="directory", path="/var/lib/cni/cluster/store")

    def is_counted() -> bool:
        return node.chroot.outside(f"{SOCKET}.spans").exists()

    with serve(node, **spans, SSL_CERT_FILE=other.cert) as server:
        wait_until(is_counted, "spans are taken")
        served(server, lambda: node.address(**WARM))
        wait_until(lambda: collector.connections, "a connection")
    assert not collector.requests
    assert "certificate" in server.said
    with serve(node, **spans, SSL_CERT_FILE=authority.cert) as server:
        wait_until(is_counted, "spans are taken")
        served(server, lambda: node.address(container="c2", **WARM))
        wait_until(lambda: collector.requests, "spans")
    assert collector.requests[0].startswith(b"POST /v1/traces")


def test_the_api_of_kubernetes(node: Node, host: Netns, tmp_path: Path) -> None:
    listener = host.run(socket.create_server, ("127.0.0.1", 0))
    with serving_api(node.directory, MANIFESTS, listener) as api:
        api.tokens["admin"] = User("admin", ("system:masters",))
        token = node.directory / "token"
        token.write_text("admin")
        ca = node.directory / "authority.pem"
        shutil.copy(api.ca, ca)
        keys = {"server": api.url, "caFile": str(ca), "tokenFile": str(token)}
        node.use(type="kubernetes", **keys)
        assert node.address().startswith("10.88.0.")
        listed = node.command("ipam", "blocks", "-o", "json")
        assert "10.88.0." in listed.stdout, listed.stderr


def test_in_a_pod(node: Node, host: Netns) -> None:
    """The account that the kubelet mounts; reconciling as deploy/cluster/reconcile.yaml has it."""
    listener = host.run(socket.create_server, ("127.0.0.1", 0))
    with serving_api(node.directory, MANIFESTS, listener) as api:
        api.tokens["n1"] = User(f"{ACCOUNT}:cni-plugins", extra={NODE_CLAIM: ["n1"]})
        api.tokens["reconcile"] = User(f"{ACCOUNT}:cni-ipam-reconcile")
        account = node.chroot.outside("/var/run/secrets/kubernetes.io/serviceaccount")
        account.mkdir(parents=True)
        shutil.copy(api.ca, account / "ca.crt")
        (account / "token").write_text("n1")
        node.use(type="kubernetes")
        server = urlsplit(api.url)
        pod = {"KUBERNETES_SERVICE_HOST": str(server.hostname)}
        pod["KUBERNETES_SERVICE_PORT"] = str(server.port)
        assert node.address(**pod).startswith("10.88.0.")

        (account / "token").write_text("reconcile")
        *enter, root = node.chroot.prefix
        words = [f"{BIN_DIR}/cni", "ipam", "reconcile", "-o", "json"]
        done = host.exec(
            [*enter, "--userspec=65532:65532", root, *words],
            env={**BARE_ENV, **pod},
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_certificates_that_are_not_accepted(node: Node, https: Any) -> None:
    authority = Authority(node.directory / "ca")
    stranger = Authority(node.directory / "stranger")
    good = authority.issue("good", "IP:127.0.0.1")
    named = authority.issue("named", "DNS:etcd.example")
    foreign = stranger.issue("foreign", "IP:127.0.0.1")
    expired = authority.issue("expired", "IP:127.0.0.1", days=-1)

    def problem(server: FaultyServer, **more: str) -> str:
        keys = {"caFile": authority.cert, "stateDir": "", "timeout": 20, **more}
        node.use(type="etcd", endpoints=[server.url], **keys)
        return node.problem()

    assert ACCEPTED in problem(https(good))
    assert "has expired" in problem(https(expired))
    assert f"not signed by store.caFile {authority.cert}" in problem(https(foreign))
    assert "its certificate is not for 127.0.0.1" in problem(https(named))
    assert ACCEPTED in problem(https(named), serverName="etcd.example")
    strict = https(good, clients=authority)
    assert "does not accept no certificate" in problem(strict)
    theirs = {"certFile": foreign.cert, "keyFile": foreign.key}
    assert f"does not accept the client certificate {foreign.cert}" in problem(strict, **theirs)
    assert ACCEPTED in problem(strict, certFile=good.cert, keyFile=good.key)


@pytest.mark.parametrize("place", ["", *BUNDLES, "/etc/ssl/cert.pem"])
def test_the_authorities_of_the_system(node: Node, https: Any, place: str) -> None:
    """Wherever the distribution keeps them; if nowhere, that is said."""
    authority = Authority(node.directory / "ca")
    server = https(authority.issue("good", "IP:127.0.0.1"))
    node.use(type="etcd", endpoints=[server.url], stateDir="", timeout=20)
    if not place:
        assert "no certificates of authorities" in node.problem()
        return
    path = node.chroot.outside(place)
    path.parent.mkdir(parents=True)
    shutil.copy(Authority(node.directory / "other").cert, path)
    assert "not signed by the system's authorities" in node.problem()
    shutil.copy(authority.cert, path)
    assert ACCEPTED in node.problem()


def test_authorities_by_the_hash_of_their_names(node: Node, https: Any) -> None:
    authority = Authority(node.directory / "ca")
    server = https(authority.issue("good", "IP:127.0.0.1"))
    node.use(type="etcd", endpoints=[server.url], stateDir="", timeout=20)
    directory = node.chroot.outside("/etc/ssl/certs")
    directory.mkdir(parents=True)
    words = ["openssl", "x509", "-hash", "-noout", "-in", authority.cert]
    name = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    shutil.copy(authority.cert, directory / f"{name}.0")
    assert ACCEPTED in node.problem()


# --- the annex ---

ENDPOINT = "https://127.0.0.1:1"  # nobody is there: TLS comes first
ANNEX = "0x64000000"


def strace(program: Path, tmp_path: Path, *options: str, **env: str) -> tuple[str, str]:
    """What an ADD of `cluster` prints under strace, and the trace."""
    plugin, trace = tmp_path / "cluster", tmp_path / "trace"
    if not plugin.is_symlink():
        plugin.symlink_to(program)
    shutil.rmtree(tmp_path / "data", ignore_errors=True)  # the same calls each time
    endpoint = env.pop("endpoint", ENDPOINT)
    store = {"type": "etcd", "endpoints": [endpoint], "stateDir": "", "caFile": env.pop("ca", "")}
    ipam = {"type": "cluster", "ranges": RANGES, "store": store, "nodeName": "n1"}
    ipam["dataDir"] = str(tmp_path / "data")
    conf = {"cniVersion": "1.1.0", "name": "net", "type": "cluster", "ipam": ipam}
    done = subprocess.run(
        ["strace", "-f", "-o", trace, *options, plugin],
        env={**BARE_ENV, **environment("ADD", "c1", "eth0", ""), "CNI_SERVER": "off", **env},
        input=json.dumps(conf),
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout, trace.read_text(errors="replace")


needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


@needs_strace
@pytest.mark.parametrize("choice", ["on", "off"])
def test_who_needs_no_tls_does_not_unpack_it(program: Path, tmp_path: Path, choice: str) -> None:
    plain, trace = strace(
        program, tmp_path, "-e", "mmap", endpoint="http://127.0.0.1:1", CNI_SNAPSHOT=choice
    )
    assert "connection refused" in plain
    assert ANNEX not in trace
    authority = Authority(tmp_path / "ca")
    encrypted, trace = strace(
        program, tmp_path, "-e", "mmap", ca=authority.cert, CNI_SNAPSHOT=choice
    )
    assert "connection refused" in encrypted
    assert ANNEX in trace


@needs_strace
@pytest.mark.parametrize(
    ("call", "refused", "why"),
    [
        ("mmap", "error=EEXIST", "its addresses are in use"),
        ("mprotect", "error=EACCES", "a security policy of this system forbids"),
    ],
)
def test_code_that_may_not_be_unpacked(
    program: Path, tmp_path: Path, call: str, refused: str, why: str
) -> None:
    """The error says so, and nothing else is wrong with the file."""
    authority = Authority(tmp_path / "ca")
    _, trace = strace(program, tmp_path, "-e", call, ca=authority.cert)
    calls = [line for line in trace.splitlines() if f"{call}(" in line]
    number = next(n for n, line in enumerate(calls, 1) if f"{call}({ANNEX}" in line)
    said, _ = strace(
        program,
        tmp_path,
        "-e",
        call,
        "-e",
        f"inject={call}:{refused}:when={number}",
        ca=authority.cert,
    )
    error = json.loads(said)
    assert re.search(rf"TLS cannot be used.*({why})", error["msg"] + error.get("details", "")), (
        error
    )


def test_unicode_data(node: Node) -> None:
    """The other module of the annex: wide characters in a table take two columns."""
    path = node.chroot.outside("/etc/cni/net.d")
    path.mkdir(parents=True)
    conf = {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "網路"}]}
    (path / "10-net.conflist").write_text(json.dumps(conf))
    done = node.command("ls")
    assert (done.returncode, done.stderr) == (0, ""), done
    head, row = done.stdout.splitlines()
    assert head.index("RANGE") == row.index("-") + len("網路")
