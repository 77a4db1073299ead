"""How long a client waits for a worker, in a simulation of the supervisor's looks."""

from __future__ import annotations

import random

import pytest

from cni.server import relief
from cni.server.slots import SlotState
from cni.server.supervisor import _TICK

START = 0.1  # seconds that a worker needs to start
STEP = 0.01


class Simulated:
    """A server whose clients come at some times, and occupy a worker for some seconds."""

    def __init__(self, usual: int, clients: list[tuple[float, float]], first_look: float) -> None:
        self.usual = usual
        self.coming = sorted(clients)
        self.waiting: list[tuple[float, float]] = []
        self.ready = [0.0] * usual  # when each worker has started
        self.busy_until = [0.0] * usual
        self.busy_since = [0.0] * usual
        self.next_look = first_look
        self.waited: list[float] = []
        self.turned_away = 0

    def run(self, seconds: float) -> None:
        now = 1.0
        self.next_look += now
        while now < seconds or self.waiting:
            while self.coming and self.coming[0][0] <= now:
                self.waiting.append(self.coming.pop(0))
            self.serve(now)
            if now >= self.next_look:
                self.look(now)
            now += STEP

    def serve(self, now: float) -> None:
        for number, until in enumerate(self.busy_until):
            if until > now or self.ready[number] > now:
                continue
            self.busy_since[number] = 0.0
            if self.waiting:
                came, takes = self.waiting.pop(0)
                self.waited.append(now - came)
                self.busy_since[number], self.busy_until[number] = now, now + takes

    def look(self, now: float) -> None:
        states = [SlotState(0.0, since, 1.0, 0, 0) for since in self.busy_since]
        verdict = relief.judge(states, self.usual, lambda: bool(self.waiting), now)
        if verdict is relief.Verdict.WORKERS:
            for _ in range(min(len(states), relief.most(self.usual) - len(states))):
                self.ready.append(now + START)
                self.busy_until.append(0.0)
                self.busy_since.append(0.0)
        elif verdict is relief.Verdict.EXEC:
            self.waited += [now - came for came, _ in self.waiting]
            self.turned_away += len(self.waiting)
            self.waiting.clear()
        states = [SlotState(0.0, since, 1.0, 0, 0) for since in self.busy_since]
        self.next_look = now + relief.pause(states, self.usual, _TICK)


@pytest.mark.parametrize("usual", [1, 2, 4, 8, 20, 32, 40])
def test_nobody_waits_a_second_for_requests_that_take_long(usual: int) -> None:
    """However many they are, and whenever they come."""
    rng = random.Random(usual)
    for _ in range(10):
        many = rng.choice((usual, 2 * usual, 3 * usual, 5 * usual, 10 * usual))
        begin = [(1.0 + rng.random() * rng.choice((0.01, 1.0, 3.0)), 30.0) for _ in range(many)]
        short = [(1.0 + rng.random() * 4.0, 0.01) for _ in range(20)]
        server = Simulated(usual, begin + short, rng.random() * _TICK)
        server.run(6.0)
        assert len(server.waited) == many + 20
        assert max(server.waited) < 1.0


@pytest.mark.parametrize("usual", [1, 4, 32])
def test_a_burst_of_short_requests_keeps_the_usual_workers(usual: int) -> None:
    server = Simulated(usual, [(1.0, 0.05)] * 40 * usual, 0.1)
    server.run(2.0)
    assert len(server.ready) == usual
    assert server.turned_away == 0


def test_without_any_worker_clients_are_turned_away() -> None:
    assert relief.judge([], 4, lambda: True, 9.0) is relief.Verdict.EXEC
    assert relief.judge([], 4, lambda: False, 9.0) is relief.Verdict.PATIENCE
