"""How far the pull of one image has come: what is told of it never goes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from rik.images.flights import ReportProgress
from rik.images.source import Layer
from rik.model.instance import Progress
from rik.model.sizes import format_share
from rik.model.spans import format_span

PULL, UNPACK = "pull", "unpack"
# Waiting for other unpackings brings no bytes; the seconds then show that it is alive.
TICK_S = 1.0
# Pieces come by the thousand: what has come since the last report must be worth another one, or that be long ago.
_WORTH_BYTES = 1 << 18
_WORTH_S = 0.1


class Tally:
    """Counts bytes of the layers that are `missing` of an image with `layers` in all, and reports.

    Step "pull" counts those received while some are to come; then, or from the beginning when the source lies on this
    host (`remote` false), "unpack" counts those read. `total` is how many are to come, or to be read.
    """

    def __init__(
        self, report: ReportProgress, layers: int, missing: Sequence[Layer], began: float, *, remote: bool
    ) -> None:
        self._report = report
        self._layers = layers
        self._began = began
        self._remote = remote
        self._pulling = remote and bool(missing)
        self._to_read = sum(layer.size for layer in missing)
        # One blob that is several layers comes once.
        distinct = {layer.digest or layer.name: layer.size for layer in missing}
        self.total = sum(distinct.values()) if remote else self._to_read
        self._received = 0
        self._read: dict[int, int] = {}
        self._complete = layers - len(missing)
        self._shown = 0
        self._told_at = began
        self.tell()

    @property
    def received(self) -> int:
        """Bytes that have come, in all."""
        return min(max(self._received, 0), self.total)

    def receive(self, count: int) -> None:
        """`count` more bytes have come; negative when some must come again."""
        self._received += count
        if not self._pulling:
            return
        if self._received >= self.total:
            self._turn_to_unpacking()
        elif self._received - self._shown < _WORTH_BYTES and trio.current_time() - self._told_at < _WORTH_S:
            return
        self.tell()

    def reader(self, number: int, layer: Layer) -> Callable[[int], None]:
        """To be told how many bytes of the image's layer `number` have been read. Whoever takes a layer over from
        another begins it anew."""

        def read(done: int) -> None:
            self._read[number] = max(self._read.get(number, 0), min(done, layer.size))
            self.tell()

        return read

    def completed(self, number: int, layer: Layer) -> None:
        """A missing layer is here, whoever made it."""
        self._read[number] = layer.size
        self._complete += 1
        if self._pulling and self._complete == self._layers:
            self._turn_to_unpacking()
        self.tell()

    def tell(self) -> None:
        """Reports how far it is."""
        done, total = (self._received, self.total) if self._pulling else (sum(self._read.values()), self._to_read)
        self._shown = max(self._shown, min(done, total))
        self._told_at = trio.current_time()
        self._report(
            Progress(
                PULL if self._pulling else UNPACK,
                self._shown,
                total,
                "bytes",
                self._complete,
                self._layers,
                self.seconds(),
            )
        )

    def seconds(self) -> float:
        """Since it began."""
        return round(trio.current_time() - self._began, 3)

    def so_far(self) -> str:
        """In words, for who is told that it failed; "" when nothing had come."""
        came, verb = (self.received, "had come") if self._remote else (sum(self._read.values()), "had been read")
        if not came:
            return ""
        told = f"{format_share(came, self.total)} {verb} after {format_span(self.seconds())}"
        return f"{told}, and {self._complete} of {self._layers} layers were complete" if self._layers > 1 else told

    async def tick(self) -> None:
        """Until cancelled, the seconds are reported also when no bytes come: waiting is not being stuck."""
        while True:
            await trio.sleep(TICK_S)
            self.tell()

    def _turn_to_unpacking(self) -> None:
        self._pulling = False
        self._shown = 0
