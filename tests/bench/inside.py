"""What the parts of a run cost, measured in a small process of its own.

Run by bench.py as `python -I -S inside.py TREE NETNS ROUNDS` in the node's namespace; TREE is an
installed tree. Prints one JSON object: name -> median milliseconds.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from time import perf_counter

sys.path.insert(0, sys.argv[1])

from cni.kernel import link
from cni.kernel.netlink import Netlink
from cni.netns import Namespace
from cni.netns.executor import Executor


def median(function: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = perf_counter()
        function()
        times.append(perf_counter() - start)
    return sorted(times)[rounds // 2] * 1000


def first_call(path: str) -> None:
    with Namespace.open(path) as netns:
        netns.run(os.getpid)


def socket_first(path: str) -> None:
    with Namespace.open(path) as netns:
        netns.netlink()


def new_executor(path: str, rounds: int, work: Callable[[str], None]) -> float:
    """The cost of a call for which a child has to be started, with the child's end."""

    def once() -> None:
        work(path)
        Executor.discard_idle()

    return median(once, rounds)


def veth(sock: Netlink, netns: Namespace) -> None:
    link.create_veth(sock, "bench0", "bench1", peer_netns=netns.fd)


def measure(path: str, rounds: int) -> dict[str, float]:
    found = {
        "executor: first call, with start and end": new_executor(path, rounds, first_call),
        "executor: first socket, with start and end": new_executor(path, rounds, socket_first),
    }
    with Namespace.open(path) as netns, Netlink() as sock:
        netns.run(os.getpid)
        found["executor: another call"] = median(lambda: netns.run(os.getpid), rounds * 10)
        found["executor: another socket"] = median(
            lambda: netns.subscribe(link.RTNLGRP_LINK).close(), rounds * 10
        )
        found["netlink: get one link"] = median(lambda: link.get(sock, "lo"), rounds * 10)
        found["netlink: list all links"] = median(lambda: link.list_all(sock), rounds * 10)
        inside = netns.netlink()
        found["netlink: get one link in the container"] = median(
            lambda: link.get(inside, "lo"), rounds * 10
        )
        creates, deletes = [], []
        for _ in range(rounds):
            creates.append(median(lambda: veth(sock, netns), 1))
            index = link.get(sock, "bench0").index
            deletes.append(median(lambda index=index: link.delete(sock, index), 1))
        found["kernel: create a veth pair into the container"] = sorted(creates)[rounds // 2]
        found["kernel: delete it"] = sorted(deletes)[rounds // 2]
    return found


if __name__ == "__main__":
    gc.disable()
    results = measure(sys.argv[2], int(sys.argv[3]))
    lines = ", ".join(f'"{name}": {value:.4f}' for name, value in results.items())
    sys.stdout.write(f"{{{lines}}}\n")
