"""Brings what was committed to the request store to the disk, once for all who wait.

A commit in the store's relaxed mode survives the death of this process at once; to survive a loss
of power it has to reach the disk, which takes from a tenth of a millisecond to many. Were each
answer to wait for that by itself, every request under way would wait with it.
"""

from __future__ import annotations

import asyncio
import os
from types import TracebackType

from bpo_data.errors import UserError
from bpo_data.llm.store import RequestStore


class Syncer:
    """``await syncer.synced()`` returns when all commits before it are on disk.

    Used as a context manager within a running event loop; the store is relaxed meanwhile.
    """

    def __init__(self, store: RequestStore) -> None:
        self.store = store
        self.running: asyncio.Task[None] | None = None
        self.next: asyncio.Task[None] | None = None

    def __enter__(self) -> Syncer:
        if self.store.read_only:
            raise UserError(
                f"runtime.store={self.store.path} is on a read-only file system and lacks answers. "
                f"Name a copy of it that can be written."
            )
        self.store.relax(True)
        self.log = os.open(f"{self.store.path}-wal", os.O_RDONLY)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.fsync(self.log)
        os.close(self.log)
        self.store.relax(False)

    async def synced(self) -> None:
        """Wait for a sync that begins after now; those who wait together share it."""
        if self.next is None:
            self.next = asyncio.create_task(self.sync_after(self.running))
        await asyncio.shield(self.next)

    async def sync_after(self, earlier: asyncio.Task[None] | None) -> None:
        if earlier:
            await asyncio.wait([earlier])
        self.running, self.next = self.next, None
        await asyncio.to_thread(os.fsync, self.log)
