"""Requests to stores over HTTP: endpoints that are away, hang, cut answers off, talk nonsense."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.store import http
from cni.store.http import Client, http_date, parse_endpoint, seconds_of
from cni.store.interface import Refused, StoreError, Unavailable
from cni.store.tls import Trust
from tests.harness.certificates import Authority
from tests.harness.http_faults import (
    FaultyServer,
    answer,
    dripping,
    hanging,
    mute,
    resetting,
    saying,
)
from tests.harness.netns import Netns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
OK = answer(b'{"fine": true}')


@pytest.fixture
def serve(host: Netns) -> Iterator[Callable[..., FaultyServer]]:
    servers: list[FaultyServer] = []

    def start(*behaviours: Any, **options: Any) -> FaultyServer:
        servers.append(FaultyServer(host, *behaviours, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def client(host: Netns) -> Iterator[Callable[..., Inside]]:
    made: list[Inside] = []

    def make(*urls: str, timeout: float = 60, **options: Any) -> Inside:
        client = Client(urls, name="the store", timeout=timeout, shuffle=False, **options)
        made.append(Inside(client, host))
        return made[-1]

    yield make
    for each in made:
        each.client.close()


@pytest.fixture
def long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that failed is asked last for longer than a test takes on a busy machine."""
    monkeypatch.setattr(http, "_FIRST_PAUSE", 600.0)
    monkeypatch.setattr(http, "_LONGEST_PAUSE", 600.0)


class Inside:
    """A client whose sockets are in the namespace."""

    def __init__(self, client: Client, ns: Netns) -> None:
        self.client, self.ns = client, ns

    def request(self, method: str = "GET", *, repeatable: bool = True, **more: Any) -> Any:
        return self.ns.run(self.client.request, method, "/x", repeatable=repeatable, **more)

    def fail(self, **more: Any) -> StoreError:
        with pytest.raises(StoreError) as raised:
            self.request(**more)
        assert raised.value.remedy, "an error without a remedy"
        return raised.value

    def lines(self, seconds: float) -> list[bytes]:
        stream = self.ns.run(self.client.stream, "GET", "/watch")
        try:
            return list(stream.lines(seconds))
        finally:
            stream.close()


NOBODY = "http://127.0.0.1:9"


# --- answers ---


def test_a_connection_is_used_again(serve: Any, client: Any) -> None:
    server = serve(saying(OK))
    asking = client(server.url)
    for _ in range(3):
        response = asking.request("POST", body=b"{}", headers={"X-Test": "1"}, repeatable=False)
        assert (response.status, response.body) == (200, b'{"fine": true}')
    assert server.connections == 1
    assert len(server.requests) == 3
    head = server.requests[0].decode()
    assert head.startswith("POST /x HTTP/1.1\r\n")
    assert f"\r\nHost: 127.0.0.1:{server.port}\r\n" in head
    assert "\r\nX-Test: 1\r\n" in head
    assert head.endswith("\r\n\r\n{}")


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (CHUNKED + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n",
         b"abcde"),
        (CHUNKED + b"A\r\n0123456789\r\n0\r\nT: 1\r\n\r\n",
         b"0123456789"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.0 200 OK\n\nto the end", b"to the end"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (answer(b"x" * 3_000_000), b"x" * 3_000_000),
    ],
    ids=["chunked", "trailers", "continue", "end", "none", "large"],
)  # fmt: skip
def test_each_way_to_end_an_answer(serve: Any, client: Any, data: bytes, body: bytes) -> None:
    server = serve(saying(data, then_close=True))
    asking = client(server.url)
    for _ in range(2):
        assert asking.request().body == body
        server.await_closed()
    assert server.connections == 2, "the server had closed the first connection"


def test_a_connection_that_the_server_closed_is_not_used_for_a_change(
    serve: Any, client: Any
) -> None:
    server = serve(saying(OK, then_close=True))
    asking = client(server.url)
    for _ in range(5):
        assert asking.request("PUT", repeatable=False, body=b"{}").status == 200
        server.await_closed()


def test_proxies_of_the_environment_are_not_used(
    serve: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, NOBODY)
    assert client(serve(saying(OK)).url).request().status == 200


def test_a_redirection_is_an_answer(serve: Any, client: Any) -> None:
    server = serve(saying(answer(b"", "302 Found", f"Location: {NOBODY}/")))
    assert client(server.url).request().status == 302


# --- endpoints ---


@pytest.mark.parametrize("repeatable", [True, False])
def test_the_next_endpoint_is_asked_when_one_cannot_be_reached(
    serve: Any, client: Any, repeatable: bool
) -> None:
    server = serve(saying(OK))
    response = client(NOBODY, server.url).request("PUT", body=b"1", repeatable=repeatable)
    assert response.endpoint == server.url


@pytest.mark.usefixtures("long_pauses")
@pytest.mark.parametrize(
    "fault",
    [hanging, mute, resetting(), resetting(OK[:40]), saying(b"SSH-2.0-x\r\n"), dripping(OK * 90)],
    ids=["hang", "mute", "reset", "half", "garbage", "drip"],
)
def test_a_read_goes_to_the_next_endpoint_and_a_change_never(
    serve: Any, client: Any, fault: Any
) -> None:
    broken, works = serve(fault), serve(saying(OK))
    asking = client(broken.url, works.url, timeout=16)  # of which the first one has a half
    assert asking.request().endpoint == works.url
    changing = client(broken.url, works.url, timeout=4)
    before = len(works.requests)
    error = changing.fail(method="PUT", body=b"1", repeatable=False)
    assert isinstance(error, Unavailable)
    assert broken.url in str(error)
    assert len(works.requests) == before
    changing.client.timeout = 60
    assert changing.request("PUT", body=b"1", repeatable=False).endpoint == works.url


@pytest.mark.usefixtures("long_pauses")
def test_an_endpoint_that_failed_is_asked_last(serve: Any, client: Any) -> None:
    broken, works = serve(resetting()), serve(saying(OK, then_close=True))
    asking = client(broken.url, works.url)
    for _ in range(5):
        assert asking.request().endpoint == works.url
        works.await_closed()
    assert broken.connections == 1


def test_an_endpoint_that_came_back_is_asked_when_the_other_goes(
    serve: Any, client: Any, host: Netns
) -> None:
    first = serve(saying(OK))
    asking = client(NOBODY, first.url)
    assert asking.request().endpoint == first.url
    second = serve(saying(OK), port=9)
    first.close()
    assert asking.request().endpoint == second.url


def test_an_answer_that_is_not_accepted_leads_to_the_next_endpoint(serve: Any, client: Any) -> None:
    ill, well = serve(saying(answer(b"", "503 No"))), serve(saying(OK))

    def accept(response: Any) -> bool:
        return response.status != 503

    assert client(ill.url, well.url).request(accept=accept).endpoint == well.url
    assert client(ill.url).request(accept=accept).status == 503
    changed = client(ill.url, well.url).request("PUT", repeatable=False, accept=accept)
    assert changed.status == 503


# --- what went wrong ---


def test_each_fault_is_named_with_its_endpoint(serve: Any, client: Any) -> None:
    table = [
        (hanging, "timed out", Unavailable),
        (resetting(), "reset", Unavailable),
        (resetting(OK[:40]), "reset|closed", Unavailable),
        (saying(OK[:-3], then_close=True), "closed before the answer's end", Unavailable),
        (saying(b"SSH-2.0-OpenSSH\r\n"), "not HTTP", Unavailable),
        (saying(b"\x00\xff" * 70_000, then_close=True), "not HTTP", Unavailable),
        (saying(b"\x15\x03\x01\x00\x02\x02\x16", then_close=True), "speaks TLS", Refused),
        (saying(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"), "Content-Length", Unavailable),
        (saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"), "not HTTP",
         Unavailable),
        (saying(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 70_000), "not HTTP", Unavailable),
        (dripping(OK * 100), "timed out", Unavailable),
    ]  # fmt: skip
    for fault, text, kind in table:
        server = serve(fault)
        # As long as a busy machine needs, unless it is to time out.
        error = client(server.url, timeout=2 if text == "timed out" else 60).fail()
        assert type(error) is kind, error
        assert server.url in str(error)
        assert any(word in str(error) for word in text.split("|")), error


def test_an_answer_without_an_end_is_cut_off(serve: Any, client: Any) -> None:
    server = serve(saying(answer(b"x" * 50_000)))
    assert "more than 10000" in str(client(server.url).fail(limit=10_000))


def test_nobody_there(client: Any, host: Netns) -> None:
    error = client(NOBODY, "http://192.0.2.1:9", timeout=2).fail()
    assert type(error) is Unavailable
    assert f"{NOBODY}: connection refused" in str(error)
    assert "192.0.2.1:9: network is unreachable" in str(error)
    assert "routes" in error.remedy
    error = client("http://no.such.host.invalid:9").fail()
    assert "name has no address" in str(error)


def test_a_deadline_holds_for_all_endpoints_together(serve: Any, client: Any) -> None:
    servers = [serve(hanging) for _ in range(3)]
    client(*(server.url for server in servers), timeout=15).fail()
    # Each had a share: the first would have had the time of all.
    assert all(len(server.requests) == 1 for server in servers)


# --- streams ---


def test_a_stream_gives_lines_until_its_time_is_up(serve: Any, client: Any) -> None:
    chunks = [b'{"a":', b' 1}\n{"b": 2}\n', b"\n", b'{"c": 3}\n']
    data = CHUNKED + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)

    def behave(server: FaultyServer, sock: Any) -> None:
        server.receive(sock)
        sock.sendall(data)
        server.over.wait(120)

    server = serve(behave)
    assert client(server.url).lines(1) == [b'{"a": 1}', b'{"b": 2}', b'{"c": 3}']


def test_a_stream_that_is_cut_off_says_so(serve: Any, client: Any) -> None:
    data = CHUNKED + b'9\r\n{"a": 1}\n\r\n'
    server = serve(resetting(data))
    with pytest.raises(Unavailable, match="reset"):
        client(server.url).lines(60)


def test_a_stream_whose_server_ends_it_ends(serve: Any, client: Any) -> None:
    server = serve(saying(answer(b'{"a": 1}\n{"b": 2}')))
    assert client(server.url).lines(60) == [b'{"a": 1}', b'{"b": 2}']


# --- TLS ---


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


def server_context(pair: Any, clients: Authority | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients.cert)
    return context


def test_a_server_and_a_client_with_certificates(
    serve: Any, client: Any, authority: Authority
) -> None:
    context = server_context(authority.issue("server", "IP:127.0.0.1"), authority)
    server = serve(saying(OK), context=context)
    pair = authority.issue("client")
    trust = Trust(authority.cert, pair.cert, pair.key)
    asking = client(server.url, trust=trust)
    for _ in range(3):
        assert asking.request("PUT", repeatable=False).status == 200
    assert server.connections == 1
    with open(authority.cert) as file:
        trust = Trust(cert_file=pair.cert, key_file=pair.key, ca_data=file.read())
    assert client(server.url, trust=trust).request().status == 200


def test_a_server_by_another_name(serve: Any, client: Any, authority: Authority) -> None:
    context = server_context(authority.issue("named", "DNS:etcd.example"))
    server = serve(saying(OK), context=context)
    error = client(server.url, trust=Trust(authority.cert)).fail()
    assert type(error) is Refused
    assert "its certificate is not for 127.0.0.1" in str(error)
    assert "serverName" in error.remedy
    trust = Trust(authority.cert, server_name="etcd.example")
    assert client(server.url, trust=trust).request().status == 200


def test_certificates_that_are_not_accepted(
    serve: Any, client: Any, authority: Authority, tmp_path: Path
) -> None:
    good = authority.issue("good", "IP:127.0.0.1")
    expired = authority.issue("expired", "IP:127.0.0.1", days=-1)
    stranger = Authority(tmp_path / "stranger")
    foreign = stranger.issue("foreign", "IP:127.0.0.1")

    def error(context: ssl.SSLContext, trust: Trust) -> StoreError:
        server = serve(saying(OK), context=context)
        found = client(server.url, trust=trust).fail(method="PUT", repeatable=False)
        assert type(found) is Refused, found
        assert server.url in str(found)
        return found

    ours = Trust(authority.cert)
    assert "has expired" in str(error(server_context(expired), ours))
    found = error(server_context(foreign), ours)
    assert f"not signed by caFile {authority.cert}" in str(found)
    assert "not signed by the system's authorities" in str(error(server_context(good), Trust()))
    found = error(server_context(good, clients=authority), ours)
    assert "does not accept no certificate" in str(found)
    assert "certFile" in found.remedy
    found = error(
        server_context(good, clients=authority), Trust(authority.cert, foreign.cert, foreign.key)
    )
    assert f"does not accept the client certificate {foreign.cert}" in str(found)
    old = authority.issue("old-client", days=-1)
    found = error(server_context(good, clients=authority), Trust(authority.cert, old.cert, old.key))
    assert "expired" in str(found)


def test_http_and_https_mixed_up(serve: Any, client: Any, authority: Authority) -> None:
    def at_once(_: FaultyServer, sock: Any) -> None:
        """As Go's servers do."""
        sock.recv(65536)
        body = b"Client sent an HTTP request to an HTTPS server.\n"
        sock.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n" + body)

    server = serve(at_once)
    url = server.url.replace("http:", "https:")
    error = client(url, trust=Trust(authority.cert)).fail(method="PUT", repeatable=False)
    assert type(error) is Refused
    assert "does not speak TLS" in str(error)
    assert "http://" in error.remedy
    error = client(server.url).fail()
    assert type(error) is Refused
    assert "speaks TLS" in str(error)
    assert "https://" in error.remedy


def test_files_that_are_missing_or_wrong_are_named(
    client: Any, authority: Authority, tmp_path: Path
) -> None:
    pair, other = authority.issue("a"), authority.issue("b")
    text = tmp_path / "text"
    text.write_text("no certificate")
    for trust, words in [
        (Trust("/nowhere/ca.pem"), "caFile /nowhere/ca.pem: no such file"),
        (Trust(str(text)), f"caFile {text} holds no certificate"),
        (Trust(authority.cert, "/nowhere/c", pair.key), "certFile /nowhere/c: no such file"),
        (Trust(authority.cert, pair.cert, "/nowhere/k"), "keyFile /nowhere/k: no such file"),
        (Trust(authority.cert, pair.cert, other.key), "is not the key of certFile"),
        (Trust(authority.cert, str(text), pair.key), f"certFile {text} or keyFile"),
        (Trust(authority.cert, "", pair.key), "keyFile without certFile"),
    ]:
        error = client("https://127.0.0.1:9", trust=trust).fail()
        assert type(error) is Refused
        assert words in str(error)


def test_a_certificate_that_is_replaced_is_read_again(
    serve: Any, client: Any, authority: Authority, tmp_path: Path
) -> None:
    context = server_context(authority.issue("again", "IP:127.0.0.1"), authority)
    server = serve(saying(OK, then_close=True), context=context)
    pair, mine = authority.issue("renewed"), tmp_path / "mine.pem"
    mine.write_text("not there yet")
    asking = client(server.url, trust=Trust(authority.cert, str(mine), pair.key))
    asking.fail()
    mine.write_bytes(Path(pair.cert).read_bytes())
    assert asking.request().status == 200


# --- words ---


def test_a_header_that_would_be_two_is_refused_without_its_value(client: Any) -> None:
    error = client(NOBODY).fail(headers={"Authorization": "secret\r\nX: y"})
    assert type(error) is Refused
    assert "Authorization" in str(error)
    assert "secret" not in str(error)


@pytest.mark.parametrize(
    "url",
    ["", "etcd:2379", "ftp://a", "https://", "http://a:0", "http://a:99999", "http://a:b",
     "http://user:pw@a", "http://a/path", "http://a?q", "http://[::1", "http://a b",
     "http://a..b", "http://.a", "http://ä", "http://" + "a" * 64],
)  # fmt: skip
def test_what_is_no_endpoint_is_refused_by_field(url: str) -> None:
    with pytest.raises(Refused, match=r"store\.endpoints") as raised:
        parse_endpoint(url, "store.endpoints")
    assert "https://HOST:PORT" in raised.value.remedy


def test_endpoints() -> None:
    assert parse_endpoint("https://10.0.0.1:2379/")[:4] == (
        "https://10.0.0.1:2379", "10.0.0.1", 2379, True,
    )  # fmt: skip
    assert parse_endpoint("http://[fd00::1]")[1:] == ("fd00::1", 80, False)


def test_pauses_that_servers_ask_for() -> None:
    assert seconds_of("7") == 7
    assert seconds_of("999999999") == 3600
    assert seconds_of("") is None
    assert seconds_of("soon") is None
    assert seconds_of("Sun, 06 Nov 1994 08:49:37 GMT") == 0
    assert http_date("Sun, 06 Nov 1994 08:49:37 GMT") == 784111777
    assert http_date("Sun, 31 Feb 1994 08:49:37 GMT") is None
