"""`instances.watch`: snapshot, replay, live changes, progress, and an honest gap for whoever cannot keep up.

All watchers share the view's latest changes and keep nothing but a revision each, so a slow one costs no memory and
nobody else's time. What has gone from memory it reads from the store; when it is so far behind that a snapshot is
cheaper, or the store has no longer what it missed, it gets a gap and a fresh snapshot.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice

import msgspec
import trio

from rik.api.filters import Filter
from rik.api.view import Frame, View
from rik.errors import StoreUnavailable
from rik.model.public import render_progress
from rik.settings import ApiSettings
from rik.store.base import Compacted, Store

# Changes read from the store at a time during a replay, and sent between two looks at what has come meanwhile.
REPLAY_PAGE = 200
ROUND = 200
# A watcher that has lost touch with the changes in memory is helped from the store up to so many times as many.
REPLAY_FACTOR = 10
# With more watchers than this each rests between two looks, so that a busy cluster does not spend itself on waking
# them: 0.5 ms a watcher, which keeps their waking under half a core, and no more than a second.
CROWD = 50
REST_PER_WATCHER_S = 0.0005
LONGEST_REST_S = 1.0
# `sync` is promised at least every `sync_interval_s`; being woken takes a moment.
SYNC_MARGIN = 0.9

Send = Callable[[str], Awaitable[None]]


class Hub:
    """What the watchers share."""

    def __init__(self, view: View, store: Store, settings: ApiSettings) -> None:
        self.view = view
        self.store = store
        self.settings = settings
        self.watchers = 0
        self.gaps = 0
        self.progress: dict[str, tuple[int, str]] = {}
        self.progress_version = 0
        self.furthest = settings.watch_queue * REPLAY_FACTOR
        self._snapshot: tuple[tuple[int, int, Filter], str] | None = None

    def publish_progress(self, uids: Sequence[str]) -> None:
        """Makes a frame for each that is still being created, for every watcher to pick up."""
        for uid in [uid for uid in self.progress if uid not in self.view.progress]:
            del self.progress[uid]
        self.progress_version += 1
        for uid in uids:
            live, record = self.view.progress.get(uid), self.view.instances.get(uid)
            if live is None or record is None:
                continue
            frame = {
                "type": "progress",
                "instance": record.name,
                "step": live.step,
                **render_progress(live),
            }
            self.progress[uid] = (self.progress_version, msgspec.json.encode(frame).decode())
        self.view.wake()

    def snapshot(self, wanted: Filter) -> tuple[int, str]:
        """Revision and text of a snapshot frame; the last one made is kept for the next who asks for the same."""
        view = self.view
        key = (view.epoch, view.revision, wanted)
        if self._snapshot is None or self._snapshot[0] != key:
            shown = [view.summary(record) for record in view.instances.values() if wanted.matches(record)]
            frame = {"type": "snapshot", "revision": view.revision, "instances": shown}
            self._snapshot = key, msgspec.json.encode(frame).decode()
        return view.revision, self._snapshot[1]

    def forget_snapshot(self) -> None:
        """Nobody is starting to watch: the last snapshot need not be kept."""
        self._snapshot = None

    def rest_s(self) -> float:
        """How long a watcher rests between two looks."""
        return min(LONGEST_REST_S, self.watchers * REST_PER_WATCHER_S) if self.watchers > CROWD else 0.0


class Watch:
    """One watcher. `run` returns when `closing` is set and the goodbye was sent."""

    def __init__(self, hub: Hub, wanted: Filter, send: Send, closing: trio.Event, *, batch: bool) -> None:
        self._hub = hub
        self._view = hub.view
        self._wanted = wanted
        self._send = send
        self._closing = closing
        self._batch = batch
        self._cursor = 0
        self._epoch = 0
        self._progress_seen = hub.progress_version
        self._synced_at = trio.current_time()

    async def run(self, since: int | None) -> None:
        """`since` None begins with a snapshot."""
        self._hub.watchers += 1
        try:
            await self._begin(since)
            while not self._closing.is_set():
                await self._round()
            if self._epoch == self._view.epoch and self._cursor >= self._view.floor:
                await self._deliver_recent()  # what came while it rested: how instances ended with this host
            await self._send('{"type":"bye"}')
        finally:
            self._hub.watchers -= 1

    async def _begin(self, since: int | None) -> None:
        self._epoch = self._view.epoch
        if since is None:
            await self._send_snapshot()
        elif since > self._view.revision:
            await self._gap(self._view.revision)  # a revision of another life of this cluster's data
        else:
            self._cursor = since
            await self._replay(math.inf)  # it asked for all of it

    async def _round(self) -> None:
        view, interval_s = self._view, self._hub.settings.sync_interval_s * SYNC_MARGIN
        changed = view.changed()
        if view.epoch != self._epoch or self._cursor < view.floor:
            await self._replay(self._hub.furthest)
            return
        caught_up = await self._deliver_recent()
        await self._send_progress()
        if trio.current_time() >= self._synced_at + interval_s:
            await self._sync()
        if caught_up:
            with trio.move_on_at(self._synced_at + interval_s):
                await changed.wait()
            rest_s = max(self._hub.rest_s(), self._hub.settings.batch_interval_s if self._batch else 0.0)
            if rest_s:
                with trio.move_on_after(rest_s):
                    await self._closing.wait()

    async def _deliver_recent(self) -> bool:
        """One round of what the view has kept; whether that was everything."""
        upto = self._view.revision
        frames = list(islice(self._view.since(self._cursor), ROUND))
        await self._deliver(frames)
        self._cursor = frames[-1].change.revision if len(frames) == ROUND else upto
        return len(frames) < ROUND

    async def _replay(self, furthest: float) -> None:
        """Everything from the cursor to the present, then `sync`; or a gap, if it is more than `furthest` behind."""
        present = self._view.revision
        await self._catch_up(furthest)
        while self._view.floor <= self._cursor < present and not self._closing.is_set():
            await self._deliver_recent()
        await self._sync()

    async def _catch_up(self, furthest: float) -> None:
        """Replays from the store until the view's latest changes go on from there; or else a gap."""
        view = self._view
        while True:
            self._epoch = view.epoch
            if self._cursor >= view.floor or self._closing.is_set():
                return
            if view.revision - self._cursor > furthest:
                await self._gap(view.floor)
                return
            try:
                page = await self._hub.store.changes_since(self._cursor, limit=REPLAY_PAGE)
            except Compacted as gone:
                await self._gap(gone.oldest)
                return
            except StoreUnavailable:
                await self._gap(view.floor)
                return
            # What the view has not seen yet is left for later: nobody may hear of a revision before it can be read.
            known = [change for change in page if change.revision <= view.revision]
            if not known:
                self._cursor = view.floor
                return
            await self._deliver([Frame(change) for change in known])
            self._cursor = known[-1].revision

    async def _deliver(self, frames: list[Frame]) -> None:
        texts: list[str] = []
        for frame in frames:
            op = self._wanted.shows(frame.change)
            if op is not None:
                texts.append(frame.text if op == frame.change.op else frame.text_of_leaving)
        if self._batch:
            if texts:
                await self._send(f'{{"type":"batch","changes":[{",".join(texts)}]}}')
        else:
            for text in texts:
                await self._send(text)

    async def _send_progress(self) -> None:
        hub, seen = self._hub, self._progress_seen
        if seen == hub.progress_version:
            return
        self._progress_seen = hub.progress_version
        news = [(uid, text) for uid, (version, text) in hub.progress.items() if version > seen]
        for uid, text in news:
            record = self._view.instances.get(uid)
            if record is not None and uid in self._view.progress and self._wanted.matches(record):
                await self._send(text)

    async def _sync(self) -> None:
        self._synced_at = trio.current_time()
        await self._send(f'{{"type":"sync","revision":{self._cursor}}}')

    async def _gap(self, oldest: int) -> None:
        self._hub.gaps += 1
        await self._send(f'{{"type":"gap","oldest":{oldest}}}')
        await self._send_snapshot()

    async def _send_snapshot(self) -> None:
        self._epoch = self._view.epoch
        self._cursor, text = self._hub.snapshot(self._wanted)
        await self._send(text)
