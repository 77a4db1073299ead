"""The daemon's waits: for several steps at once, until a time, and between attempts."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any

from .exchange import jitter, now

_QUICK_RETRIES = 4
_QUICK_PAUSE, _FIRST_PAUSE, _JITTER = 2.0, 8.0, 1.0  # seconds
_LONGEST_SLEEP = 3600.0


async def together(steps: list[Coroutine[Any, Any, None]]) -> None:
    """Run the steps at once; when one fails the others are cancelled, and its error is raised."""
    if len(steps) == 1:
        await steps[0]
        return
    tasks = [asyncio.create_task(step) for step in steps]
    try:
        for done in asyncio.as_completed(tasks):
            await done
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def sleep_until(when: float) -> None:
    """Wait; in steps, since the event loop's clock stands still while the machine sleeps."""
    while (left := when - now()) > 0:
        await asyncio.sleep(min(left, _LONGEST_SLEEP))


def pauses(longest: float) -> Iterator[float]:
    """Seconds between attempts: four short ones, then doubling from 8 while below `longest`."""
    for _ in range(_QUICK_RETRIES):
        yield jitter(_QUICK_PAUSE, _JITTER)
    pause = _FIRST_PAUSE
    while True:
        yield jitter(pause, _JITTER)
        if pause < longest:
            pause *= 2
