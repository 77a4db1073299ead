"""The store in a real etcd: the contract, and everything that happens to a cluster."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from cni.store.config import open_store
from cni.store.http import parse_endpoint
from cni.store.interface import Conflict, Exists, Expired, Refused, Unavailable
from tests.conftest import making_netns
from tests.harness.certificates import Authority
from tests.harness.etcd import CHAINS, NETWORK, EtcdCluster, NetnsStore, client_options
from tests.harness.http_faults import FaultyServer, answer, saying
from tests.harness.store_contract import StoreContract, changes, together
from tests.harness.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cni.store.interface import Item, Store
    from tests.harness.netns import Netns

T = TypeVar("T")


@pytest.fixture(scope="module")
def single(_namespaces: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """One member, for all tests that do it no harm."""
    with making_netns() as netns:
        cluster = EtcdCluster(netns, tmp_path_factory.mktemp("etcd"))
        yield cluster
        cluster.close()


class TestContract(StoreContract):
    cluster: EtcdCluster

    @pytest.fixture
    def opened(self, single: EtcdCluster, tmp_path: Path) -> Iterator[Callable[[], Store]]:
        self.cluster = single
        stores: list[Store] = []

        def opened() -> Store:
            stores.append(single.store(prefix=f"/test/{tmp_path.name}"))
            return stores[-1]

        yield opened
        for store in stores:
            store.close()

    def forget(self, store: Store) -> None:
        store.delete(store.create("long", {}))
        self.cluster.members[0].ctl("compact", store.list("").revision)


# --- errors of one member ---


@pytest.fixture
def etcd(netns: Callable[..., Netns], tmp_path: Path) -> Iterator[Callable[..., EtcdCluster]]:
    """Starts a cluster of this test's own."""
    made: list[EtcdCluster] = []

    def start(members: int = 1, *arguments: str, **more: Any) -> EtcdCluster:
        made.append(EtcdCluster(netns, tmp_path, members, *arguments, **more))
        return made[-1]

    yield start
    for cluster in made:
        cluster.close()


def test_a_key_of_somebody_else_is_named(single: EtcdCluster) -> None:
    single.members[0].ctl("put", "/foreign/a", "no object")
    with closing(single.store(prefix="/foreign")) as store:
        for verb in (lambda: store.read("a"), lambda: store.list("")):
            with pytest.raises(Refused, match=r"/foreign/a in etcd .* is no JSON object"):
                verb()


def test_prefixes_are_apart(single: EtcdCluster) -> None:
    with closing(single.store(prefix="/p/1")) as one, closing(single.store(prefix="/p/10")) as ten:
        item = one.create("a", {})
        ten.create("a", {"ten": True})
        one.identity()
        assert one.list("").items == [item]
    assert single.members[0].ctl("get", "/p/1/a", "--print-value-only") == "{}\n"


def test_what_is_no_etcd_is_named(single: EtcdCluster) -> None:
    member = single.members[0]
    peer = single.store(endpoints=[f"http://{member.address}:2380"])
    with pytest.raises(Refused, match="no JSON gateway") as raised:
        peer.read("a")
    assert "--enable-grpc-gateway" in raised.value.remedy
    peer.close()


def test_an_etcd_without_tls_is_named(single: EtcdCluster) -> None:
    """It answers nothing, and closes the connection."""
    url = f"https://{single.members[0].address}:2379"
    store = single.store(endpoints=[url], timeout=5)
    with pytest.raises(Unavailable, match="instead of speaking TLS") as raised:
        store.read("a")
    assert "use http://" in raised.value.remedy
    assert "ssl.c" not in str(raised.value)
    store.close()


def test_a_server_that_resets_the_connection_may_have_no_tls() -> None:
    """The kernel does so if a server closes it without having read all: as etcd, at times."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse() -> None:
            peer, _ = server.accept()
            peer.recv(1)  # the greeting has come, and most of it stays unread
            peer.close()

        thread = threading.Thread(target=refuse)
        thread.start()
        url = f"https://127.0.0.1:{server.getsockname()[1]}"
        options = {"type": "etcd", "endpoints": [url], "timeout": 5, "stateDir": ""}
        match = "instead of speaking TLS"
        with (
            closing(open_store(options)) as store,
            pytest.raises(Unavailable, match=match) as raised,
        ):
            store.read("a")
        thread.join()
    assert "use http://" in raised.value.remedy


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[]", b"null", b'{"header": {"revision": "x"}}', b'{"header": {"revision": 1}}',
     b"<html>", b'{"header": {}, "kvs": [{"key": 7}]}', b'{"header": {}, "kvs": {}}'],
)  # fmt: skip
def test_what_speaks_http_and_is_no_etcd_is_named(host: Netns, body: bytes) -> None:
    server = FaultyServer(host, saying(answer(body)))
    options = {"type": "etcd", "endpoints": [server.url], "stateDir": ""}
    store = NetnsStore(open_store(options), host)
    try:
        for verb in (
            lambda: store.read("a"),
            lambda: store.create("a", {}),
            lambda: store.list(""),
            store.identity,
        ):
            with pytest.raises(Unavailable, match="no answer of etcd") as raised:
                verb()
            assert server.url in str(raised.value)
    finally:
        store.close()
        server.close()


def test_a_partition_between_node_and_store(etcd: Any) -> None:
    cluster = etcd()
    [member] = cluster.members
    with closing(cluster.store(timeout=2)) as store:
        item = store.create("a", {"n": 1})
        revision = store.list("").revision
        member.cut_off(cluster.node_address)
        for verb in (
            lambda: store.read("a"),
            lambda: store.create("b", {}),
            lambda: store.list(""),
            lambda: list(store.watch("", revision, 60)),
            store.identity,
        ):
            with pytest.raises(Unavailable, match="timed out") as raised:
                verb()
            assert member.url in str(raised.value)
            assert raised.value.remedy
        member.join()
        assert store.update(item, {"n": 2}).value == {"n": 2}


def test_a_change_whose_answer_is_lost_is_unavailable_and_made_once(etcd: Any) -> None:
    """The request arrives, the answer does not: packets from the member are dropped."""
    cluster = etcd()
    [member] = cluster.members
    with closing(cluster.store(timeout=2)) as store:
        store.read("a")  # so that there is a connection
        member.ns.exec(["nft", "-f", "-"], stdin=CHAINS + ANSWERS_LOST)
        with pytest.raises(Unavailable):
            store.create("a", {"n": 1})
        member.join()
        item = store.read("a")
        assert item is not None, "the request had arrived"
        assert item.value == {"n": 1}
        with pytest.raises(Exists):
            store.create("a", {"n": 2})
    assert member.ctl("get", "/cni/v1/a", "-w", "fields").count('"Version" : 1') == 1


ANSWERS_LOST = f"add rule inet cut out ip daddr {NETWORK}.100 tcp flags & psh == psh drop\n"


def test_a_member_that_is_started_again(etcd: Any) -> None:
    cluster = etcd()
    [member] = cluster.members
    with closing(cluster.store(timeout=3)) as store:
        item = store.create("a", {})
        identity = store.identity()
        member.kill()
        with pytest.raises(Unavailable, match=r"refused|reset|closed"):
            store.read("a")
        member.start()
        wait_until(member.has_leader, "the member", timeout=90)
        assert store.read("a") == item
        assert store.identity() == identity


def test_used_up_space_is_named_and_items_can_be_deleted(etcd: Any) -> None:
    cluster = etcd(1, f"--quota-backend-bytes={1 << 20}")
    [member] = cluster.members
    with closing(cluster.store()) as store:
        item = store.create("mine", {})
        with pytest.raises(Unavailable, match="database space exceeded") as raised:
            fill_up(store)
        assert "alarm disarm" in raised.value.remedy
        assert "NOSPACE" in member.ctl("alarm", "list")
        assert store.read("mine") == item
        for each in store.list("fill/").items:
            store.delete(each)
        assert [each.key for each in store.list("").items] == ["mine"]
        member.ctl("compact", store.list("").revision)
        member.ctl("defrag")
        member.ctl("alarm", "disarm")
        store.create("after", {})


def fill_up(store: Store) -> None:
    for number in range(100):
        store.create(f"fill/{number}", {"large": "x" * 100_000})


# --- a restored backup ---


def test_a_store_that_was_restored_has_another_identity_for_every_node(
    etcd: Any, tmp_path: Path
) -> None:
    cluster = etcd()
    with closing(cluster.store()) as store, closing(cluster.store(stateDir="")) as stranger:
        store.create("kept", {})
        identity = store.identity()
        cluster.members[0].ctl("snapshot", "save", str(tmp_path / "backup"))
        lost = store.create("lost", {})
        revision = store.list("").revision
        assert store.identity() == identity
        cluster.restore(tmp_path / "backup")
        assert stranger.identity() == identity, "a restored cluster has its old id and marker"
        with pytest.raises(Expired, match="restored"):
            list(store.watch("", revision, 60))
        with pytest.raises(Conflict):
            store.update(lost, {})
    # Another process of the node, which knows only what the file says:
    with closing(cluster.store()) as later, closing(cluster.store(stateDir="")) as stranger:
        assert later.read("lost") is None
        renewed = later.identity()
        assert renewed != identity
        assert later.identity() == stranger.identity() == renewed
    with closing(cluster.store()) as again:
        assert again.identity() == renewed


def test_another_cluster_has_another_identity(etcd: Any, single: EtcdCluster) -> None:
    other = etcd(1, "--initial-cluster-token=another")
    with closing(other.store()) as one, closing(single.store(stateDir="")) as two:
        assert one.identity() != two.identity()


# --- users ---


def with_users(cluster: EtcdCluster, password: str = "secret") -> None:
    ctl = cluster.members[0].ctl
    ctl("user", "add", "root:root")
    ctl("user", "grant-role", "root", "root")
    ctl("role", "add", "cni")
    ctl("role", "grant-permission", "cni", "--prefix=true", "readwrite", "/cni/v1/")
    ctl("user", "add", f"cni:{password}")
    ctl("user", "grant-role", "cni", "cni")
    ctl("auth", "enable")


def test_user_and_password(etcd: Any, tmp_path: Path) -> None:
    cluster = etcd(1, "--auth-token-ttl=2")
    [member] = cluster.members
    password = tmp_path / "password"
    password.write_text("secret\n")
    user = {"username": "cni", "passwordFile": str(password)}
    with closing(cluster.store(**user)) as store, closing(cluster.store()) as nobody:
        store.create("before", {})  # authentication is not enabled yet
        with_users(cluster)
        item = store.create("a", {})
        assert store.identity()
        revision = store.list("").revision
        with pytest.raises(Refused, match="user name is empty") as raised:
            nobody.read("a")
        assert "store.username" in raised.value.remedy
        with pytest.raises(Refused):
            next(nobody.watch("", revision, 60))
        # The token ends after two seconds without use, and with the member's process.
        item = update_with_an_old_token(store, item)
        store.inner._token = "expired.1"
        assert [c.key for c in store.watch("", revision, 1) if c.key] == ["a"]
        member.kill()
        member.start()
        wait_until(lambda: _answers(store), "the member", timeout=90)
        # A change of users or roles makes older tokens invalid.
        member.ctl("--user=root:root", "user", "add", "x:y")
        store.delete(item)
        # The password is read when it is needed.
        set_password(cluster, "new")
        password.write_text("new")
        store.create("b", {})
    with closing(cluster.store(prefix="/else", **user)) as elsewhere:
        with pytest.raises(Refused, match="permission denied") as raised:
            elsewhere.read("a")
        assert "grant-permission" in raised.value.remedy
        with pytest.raises(Refused, match="permission denied"):
            next(elsewhere.watch("", revision, 60))
    password.write_text("wrong")
    with closing(cluster.store(**user)) as wrong:
        with pytest.raises(Refused, match="invalid user ID or password") as raised:
            wrong.read("a")
        assert "store.passwordFile" in raised.value.remedy
    password.unlink()
    with (
        closing(cluster.store(**user)) as without,
        pytest.raises(Refused, match=r"store\.passwordFile .*password: no such file"),
    ):
        without.read("a")


def set_password(cluster: EtcdCluster, password: str) -> None:
    """By the gateway: etcdctl 3.4 cannot, as a user."""

    def post(path: str, message: dict[str, str], *more: str) -> dict[str, Any]:
        url = f"{cluster.members[0].url}/v3/auth/{path}"
        argv = ["curl", "-sS", "--fail", *more, url, "-d", json.dumps(message)]
        answer: dict[str, Any] = json.loads(cluster.node.exec(argv).stdout)
        return answer

    token = post("authenticate", {"name": "root", "password": "root"})["token"]
    message = {"name": "cni", "password": password}
    post("user/changepw", message, "-H", f"Authorization: {token}")


def update_with_an_old_token(store: Any, item: Item) -> Item:
    """Wait ever longer between two changes, until one needed another token."""
    before = store.inner._token
    for pause in range(3, 15):
        time.sleep(pause)  # each use lengthens the token's life
        item = store.update(item, {"pause": pause})
        if store.inner._token != before:
            return item
    raise AssertionError("the token did not expire")


def _answers(store: Store) -> bool:
    try:
        store.read("a")
    except Unavailable:
        return False
    return True


# --- TLS ---


def test_client_certificates(etcd: Any, tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    cluster = etcd(1, authority=authority)
    mine, foreign = authority.issue("node"), stranger.issue("node")
    with closing(cluster.store(**client_options(authority, mine))) as store:
        item = store.create("a", {})
        assert store.read("a") == item
        assert changes(store, "", str(int(item.version) - 1), 1) == [("a", {})]
    for options, words in [
        ({"caFile": authority.cert}, "does not accept no certificate"),
        (client_options(authority, foreign), "does not accept the client certificate"),
        (client_options(stranger, mine), f"not signed by store.caFile {stranger.cert}"),
    ]:
        with closing(cluster.store(**options)) as wrong:
            with pytest.raises(Refused, match=words) as raised:
                wrong.read("a")
            assert "store." in raised.value.remedy
    plain = [cluster.members[0].url.replace("https", "http")]
    with (
        closing(cluster.store(endpoints=plain)) as wrong,
        pytest.raises(Unavailable, match="without an answer") as raised,
    ):
        wrong.read("a")
    assert "https://" in raised.value.remedy


def test_users_and_client_certificates(etcd: Any, tmp_path: Path) -> None:
    """An etcd with users takes a client certificate only if that has no common name."""
    authority = Authority(tmp_path / "ca")
    cluster = etcd(1, authority=authority)
    with_users(cluster)
    password = tmp_path / "password"
    password.write_text("secret")
    user = {"username": "cni", "passwordFile": str(password)}
    named = client_options(authority, authority.issue("node"))
    nameless = client_options(authority, authority.issue("nameless", subject="/O=nodes"))
    with closing(cluster.store(**user, **named)) as store:
        with pytest.raises(Refused, match="CommonName of client") as raised:
            store.read("a")
        assert "without one" in raised.value.remedy
    with closing(cluster.store(**user, **nameless)) as store:
        assert store.read("a") is None
    with closing(cluster.store(**nameless)) as store:
        with pytest.raises(Refused, match=r"permission denied|user name is empty") as raised:
            store.read("a")
        assert "store.username is not set" in raised.value.remedy


# --- three members ---


@pytest.fixture
def three(etcd: Any) -> EtcdCluster:
    return etcd(3)  # type: ignore[no-any-return]


def patiently(function: Callable[[], T]) -> T:
    """As a caller does that is told `Unavailable`: again, for a while."""
    outcome: list[T] = []

    def attempt() -> bool:
        try:
            outcome.append(function())
        except Unavailable:
            return False
        return True

    wait_until(attempt, "an answer", timeout=90)
    return outcome[0]


def claim(store: Store, key: str, node: str) -> bool:
    """As the node's part does: a create whose answer is lost is read."""

    def attempt() -> bool:
        try:
            store.create(key, {"node": node})
        except Exists:
            item = store.read(key)
            return item is not None and item.value["node"] == node
        return True

    return patiently(attempt)


def test_the_leader_is_killed_while_nodes_claim(three: EtcdCluster) -> None:
    stores = [three.store(timeout=8) for _ in range(3)]
    for store in stores:
        store.identity()
    leader = three.leader
    killed = threading.Event()

    def run(number: int) -> list[str]:
        if number == 3:
            wait_until(lambda: len(watcher.list("k/").items) > 20, "some claims")
            leader.kill()
            killed.set()
            return []
        won = []
        for block in range(60):
            if claim(stores[number], f"k/{block}", f"n{number}"):
                won.append(f"k/{block}")
        return won

    watcher = three.store(timeout=8)
    outcomes = together(4, run)
    assert killed.is_set()
    assert all(isinstance(won, list) for won in outcomes), outcomes
    winners = {key: f"n{number}" for number, won in enumerate(outcomes) for key in won}
    assert sum(map(len, outcomes)) == len(winners) == 60
    listed = patiently(lambda: watcher.list("k/").items)
    assert {item.key: item.value["node"] for item in listed} == winners
    identity = patiently(watcher.identity)
    leader.start()
    wait_until(leader.has_leader, "the member", timeout=90)
    assert patiently(stores[0].identity) == identity
    for store in (*stores, watcher):
        store.close()


def test_a_member_that_is_cut_off_from_the_others_is_not_believed(three: EtcdCluster) -> None:
    lonely = three.leader
    others = [member for member in three.members if member is not lonely]
    asked = [lonely.url, *(member.url for member in others)]
    with (
        closing(three.store(timeout=10)) as store,
        closing(three.store(endpoints=[lonely.url], timeout=4)) as only,
    ):
        item = store.create("a", {"n": 1})
        assert only.read("a") == item
        lonely.cut_off(*(member.address for member in others))
        wait_until(lambda: any(member.is_leader() for member in others), "a leader", timeout=90)
        item = patiently(lambda: store.update(store.read("a") or item, {"n": 2}))
        with pytest.raises(Unavailable) as raised:
            assert only.read("a") == item, "it answered with an old value"
        assert lonely.url in str(raised.value)
        with pytest.raises(Unavailable):
            only.create("b", {})
        # Whoever asks it first gets the answer of another one.
        store.inner._client._addresses = [parse_endpoint(url) for url in asked]
        store.close()
        assert patiently(lambda: store.read("a")) == item
        lonely.join()
        assert patiently(lambda: only.read("a")) == item


def test_a_member_that_hangs_is_passed_over(three: EtcdCluster) -> None:
    hung = next(member for member in three.members if not member.is_leader())
    rest = [member.url for member in three.members if member is not hung]
    with closing(three.store(timeout=12)) as store:
        store.inner._client._addresses = [parse_endpoint(url) for url in (hung.url, *rest)]
        item = store.create("a", {})
        hung.signal(signal.SIGSTOP)
        try:
            assert store.read("a") == item
            assert patiently(lambda: store.update(item, {"n": 1})).value == {"n": 1}
        finally:
            hung.signal(signal.SIGCONT)
