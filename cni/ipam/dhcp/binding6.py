"""Stub."""

from __future__ import annotations
import msgspec
from .binding4 import Lease as Lease4
from .exchange import Closer, Settings
from .place import Place


class Lease(Lease4):
    pass


class Binding6:
    family = "IPv6"

    def __init__(self, place: Place, client_id: bytes, settings: Settings, closer: Closer) -> None:
        self.lease: Lease | None = None

    async def acquire(self, until: float) -> None: ...
    async def confirm(self, until: float) -> None: ...
    async def renew(self, until: float) -> None: ...
    async def rebind(self, until: float) -> None: ...
    async def release(self) -> None: ...
