"""Downloads over real loopback sockets: shared, resumed, handed over, stalled, spoilt, and nothing left behind.

The server speaks one line: it is asked for `digest offset` and answers `start`, then bytes until it closes.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from rik.images.errors import ImageError, ImageInvalid, ImageNotFound, ImagePullFailed
from rik.images.registry import attempts
from rik.images.registry.attempts import TransientFailure
from rik.images.registry.downloads import Body, Downloads, OpenAt
from rik.images.source import Layer
from rik.settings import ImageSettings

SIZE = 1_500_000
HALF = SIZE // 2
QUICK = ImageSettings(idle_s=0.6)

Behaviour = Callable[[trio.SocketStream, bytes, int], Awaitable[None]]


def blob(seed: int, size: int = SIZE) -> bytes:
    return random.Random(seed).randbytes(size)


def layer_of(data: bytes) -> Layer:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return Layer(digest, len(data), digest)


async def whole(stream: trio.SocketStream, data: bytes, offset: int) -> None:
    await stream.send_all(b"%d\n" % offset + data[offset:])


async def from_the_start(stream: trio.SocketStream, data: bytes, offset: int) -> None:
    await stream.send_all(b"0\n" + data)


async def half(stream: trio.SocketStream, data: bytes, offset: int) -> None:
    await stream.send_all(b"%d\n" % offset + data[offset:HALF])


async def half_from_the_start(stream: trio.SocketStream, data: bytes, offset: int) -> None:
    await stream.send_all(b"0\n" + data[:HALF])


async def half_and_silence(stream: trio.SocketStream, data: bytes, offset: int) -> None:
    await half(stream, data, offset)
    await trio.sleep_forever()


async def nothing(stream: trio.SocketStream, data: bytes, offset: int) -> None:
    """The connection ends at once."""


async def silence(stream: trio.SocketStream, data: bytes, offset: int) -> None:
    await trio.sleep_forever()


async def drops(stream: trio.SocketStream, data: bytes, offset: int) -> None:
    await stream.send_all(b"%d\n" % offset)
    for index in range(offset, len(data)):
        await stream.send_all(data[index : index + 1])
        await trio.sleep(0.05)


async def one_byte(stream: trio.SocketStream, data: bytes, offset: int) -> None:
    await stream.send_all(b"%d\n" % offset + data[offset : offset + 1])


async def other_bytes(stream: trio.SocketStream, data: bytes, offset: int) -> None:
    await stream.send_all(b"%d\n" % offset + bytes(len(data) - offset))


async def too_much(stream: trio.SocketStream, data: bytes, offset: int) -> None:
    await stream.send_all(b"%d\n" % offset + data[offset:] + b"!")


async def elsewhere(stream: trio.SocketStream, data: bytes, offset: int) -> None:
    await stream.send_all(b"%d\n" % (offset + 7) + data[offset + 7 :])


class Server:
    """Blobs by digest. The first connection meets the first of `behaviours`, the last one stays; `asked` notes
    (digest, offset), `most_open` how many connections there were at once."""

    def __init__(self, port: int, blobs: Sequence[bytes]) -> None:
        self.port = port
        self.blobs = {layer_of(data).digest: data for data in blobs}
        self.behaviours: list[Behaviour] = [whole]
        self.asked: list[tuple[str, int]] = []
        self.open = 0
        self.most_open = 0

    @property
    def offsets(self) -> list[int]:
        return [offset for _, offset in self.asked]

    async def handle(self, stream: trio.SocketStream) -> None:
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            request = await stream.receive_some(200)
            if not request:
                return
            digest, offset = request.split()
            self.asked.append((digest.decode(), int(offset)))
            behaviour = self.behaviours.pop(0) if len(self.behaviours) > 1 else self.behaviours[0]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, stream, nursery.cancel_scope)
                await behaviour(stream, self.blobs[digest.decode()], int(offset))
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.open -= 1
            await stream.aclose()

    async def _watch(self, stream: trio.SocketStream, scope: trio.CancelScope) -> None:
        """The client has gone."""
        await stream.receive_some(1)
        scope.cancel()

    @asynccontextmanager
    async def open_at(self, layer: Layer, offset: int) -> AsyncIterator[Body]:
        try:
            stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        except OSError as error:
            raise TransientFailure(str(error), unreachable=True) from error
        async with stream:
            await stream.send_all(f"{layer.digest} {offset}\n".encode())
            chunks = stream.__aiter__()
            line, _, rest = (await anext(chunks, b"")).partition(b"\n")
            if not line:
                raise TransientFailure("no answer")

            async def body() -> AsyncIterator[bytes]:
                if rest:
                    yield bytes(rest)
                async for chunk in chunks:
                    yield bytes(chunk)

            yield Body(int(line), body())


BLOBS = [blob(number) for number in range(6)]
LAYERS = [layer_of(data) for data in BLOBS]
ONE = LAYERS[0]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        made = Server(listeners[0].socket.getsockname()[1], BLOBS)
        nursery.start_soon(trio.serve_listeners, made.handle, listeners)
        yield made
        nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
async def nothing_left(tmp_path: Path, server: Server) -> AsyncIterator[None]:
    """After every test: no descriptor, no file, no connection, and no thread at work."""
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    with trio.fail_after(5):
        while server.open or sorted(os.listdir("/proc/self/fd")) != before:
            await trio.sleep(0.01)
    assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
    assert not list((tmp_path / "downloads").glob("*"))


@pytest.fixture
def downloads(tmp_path: Path) -> Downloads:
    return Downloads(tmp_path / "downloads", QUICK)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other quickly."""
    monkeypatch.setattr(attempts, "FIRST_PAUSE_S", 0.01)


class Progress:
    """What `received` was told."""

    def __init__(self) -> None:
        self.pieces: list[int] = []

    def __call__(self, count: int) -> None:
        self.pieces.append(count)

    @property
    def total(self) -> int:
        return sum(self.pieces)

    async def reach(self, total: int) -> None:
        with trio.fail_after(10):
            while self.total < total:
                await trio.sleep(0.002)


async def read(downloads: Downloads, layer: Layer, origin: str = "") -> bytes:
    data = bytearray()
    async with downloads.open_layer(layer, origin=origin) as chunks:
        async for chunk in chunks:
            data += chunk
    return bytes(data)


async def pull(downloads: Downloads, open_at: OpenAt, layers: Sequence[Layer] = (ONE,), where: str = "") -> list[bytes]:
    with trio.fail_after(20):
        async with downloads.fetching(layers, open_at, lambda count: None, where=where):
            return [await read(downloads, layer) for layer in layers]
    raise AssertionError("a failure was swallowed")


async def failure(downloads: Downloads, open_at: OpenAt, where: str = "127.0.0.1/app") -> ImageError:
    with pytest.raises(ImageError) as caught:
        await pull(downloads, open_at, where=where)
    return caught.value


# -- what goes well ----------------------------------------------------------------------------------------------------


async def test_layers_are_read_while_they_come(server: Server, downloads: Downloads) -> None:
    """All layers are on their way at once; each is read from its first bytes on, and `received` adds up."""
    gate = trio.Event()

    async def gated(stream: trio.SocketStream, data: bytes, offset: int) -> None:
        await stream.send_all(b"0\n" + data[:HALF])
        await gate.wait()
        await stream.send_all(data[HALF:])

    server.behaviours = [gated]
    progress = Progress()
    with trio.fail_after(20):
        async with downloads.fetching(LAYERS[:3], server.open_at, progress):
            await progress.reach(3 * HALF)
            async with downloads.open_layer(ONE) as chunks:
                first = await anext(chunks)
                assert BLOBS[0].startswith(first)
                gate.set()
                assert first + b"".join([chunk async for chunk in chunks]) == BLOBS[0]
            assert [await read(downloads, layer) for layer in LAYERS[:3]] == BLOBS[:3]
    assert progress.total == 3 * SIZE
    assert max(progress.pieces) < SIZE


async def test_lowest_layers_first(server: Server, tmp_path: Path) -> None:
    """With one connection the layers come in the image's order."""
    for _ in range(10):
        downloads = Downloads(tmp_path / "downloads", ImageSettings(downloads_at_once=1))
        server.asked.clear()
        assert await pull(downloads, server.open_at, LAYERS) == BLOBS
        assert server.asked == [(layer.digest, 0) for layer in LAYERS]


async def test_connections_are_bounded(server: Server, tmp_path: Path) -> None:
    """All pulls together have as many connections as the settings say, and waiting for one is no stall."""

    async def slowly(stream: trio.SocketStream, data: bytes, offset: int) -> None:
        await stream.send_all(b"0\n")
        for start in range(0, SIZE, SIZE // 10):
            await stream.send_all(data[start : start + SIZE // 10])
            await trio.sleep(0.04)

    server.behaviours = [slowly]
    downloads = Downloads(tmp_path / "downloads", ImageSettings(downloads_at_once=2, idle_s=0.6))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pull, downloads, server.open_at, LAYERS[:3])
        nursery.start_soon(pull, downloads, server.open_at, LAYERS[3:])
    assert server.most_open == 2
    assert len(server.asked) == 6


async def test_layer_that_appears_twice(server: Server, downloads: Downloads) -> None:
    """The same layer twice in one image is fetched once and can be read for each."""
    assert await pull(downloads, server.open_at, [ONE, LAYERS[1], ONE]) == [BLOBS[0], BLOBS[1], BLOBS[0]]
    assert len(server.asked) == 2


async def test_empty_layer(server: Server, downloads: Downloads) -> None:
    """A layer without a byte is not asked for."""
    assert await pull(downloads, server.open_at, [layer_of(b"")]) == [b""]
    assert server.asked == []


async def test_one_blob_for_many(server: Server, downloads: Downloads) -> None:
    """Twenty that want one blob cause one download, and each is told of all bytes."""
    progress = [Progress() for _ in range(20)]

    async def one(told: Progress) -> None:
        async with downloads.fetching([ONE], server.open_at, told):
            assert await read(downloads, ONE) == BLOBS[0]

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for told in progress:
                nursery.start_soon(one, told)
    assert server.offsets == [0]
    assert [told.total for told in progress] == [SIZE] * 20


async def test_late_comer(server: Server, downloads: Downloads) -> None:
    """One who comes late is told at once what is there; what others use is not fetched again."""
    server.behaviours = [half_and_silence, whole]
    early, late, last = Progress(), Progress(), Progress()
    with trio.fail_after(20):
        async with downloads.fetching([ONE], server.open_at, early):
            await early.reach(HALF)
            async with downloads.fetching([ONE], server.open_at, late):
                assert late.pieces == [HALF]
        async with downloads.fetching([ONE], server.open_at, early):
            assert await read(downloads, ONE) == BLOBS[0]
            async with downloads.fetching([ONE], server.open_at, last):
                assert await read(downloads, ONE) == BLOBS[0]
    assert last.pieces == [SIZE]
    assert server.offsets == [0, 0]


async def test_origins_do_not_share(server: Server, downloads: Downloads) -> None:
    """Whoever asks another registry gets its bytes, whatever the first one sends."""
    server.behaviours = [half_and_silence, whole]
    progress = Progress()
    with trio.fail_after(20):
        with pytest.raises(ImagePullFailed, match="only"):
            async with downloads.fetching([ONE], server.open_at, progress, origin="hostile.example"):
                await progress.reach(HALF)
                async with downloads.fetching([ONE], server.open_at, lambda count: None, origin="good.example"):
                    assert await read(downloads, ONE, "good.example") == BLOBS[0]
                await trio.sleep_forever()
    assert server.offsets == [0, 0]


# -- going on ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", [whole, from_the_start])
async def test_resumed(server: Server, downloads: Downloads, impatient: None, second: Behaviour) -> None:
    """A body that was cut is asked for from where it ended; a server that starts over is skipped to there."""
    server.behaviours = [half, second]
    progress = Progress()
    with trio.fail_after(20):
        async with downloads.fetching([ONE], server.open_at, progress):
            assert await read(downloads, ONE) == BLOBS[0]
    assert server.offsets == [0, HALF]
    assert progress.total == SIZE


async def test_answer_from_elsewhere(server: Server, downloads: Downloads, impatient: None) -> None:
    """Bytes from another place than asked for are not taken, and the message says it."""
    server.behaviours = [half, elsewhere]
    error = await failure(downloads, server.open_at)
    asked = f"the registry answers with the bytes from {HALF + 7:,} on, asked for were those from {HALF:,} on"
    assert error.message == f"127.0.0.1/app: the layer {ONE.digest}: {asked} (tried 5 times)"


async def test_handed_over_when_cancelled(server: Server, downloads: Downloads) -> None:
    """When the one who fetches is cancelled, another goes on from where it was, and nobody hears of it."""
    server.behaviours = [half_and_silence, whole]
    first, second = Progress(), Progress()
    found: list[bytes] = []

    async def fetch(progress: Progress, scope: trio.CancelScope) -> None:
        with scope:
            async with downloads.fetching([ONE], server.open_at, progress):
                found.append(await read(downloads, ONE))

    scope = trio.CancelScope()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch, first, scope)
            await first.reach(HALF)
            nursery.start_soon(fetch, second, trio.CancelScope())
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    assert found == [BLOBS[0]]
    assert server.offsets == [0, HALF]
    assert (first.total, second.total) == (HALF, SIZE)


async def test_handed_over_in_the_midst_of_a_chunk(downloads: Downloads) -> None:
    """What a cancelled one had taken of a large chunk counts for the others, who are told of every byte once."""
    layer, open_at = repeated(random.Random(2).randbytes(6 << 20), 2)
    told = Progress()

    async def fetch(scope: trio.CancelScope) -> None:
        with scope:
            async with downloads.fetching([layer], open_at, lambda count: None):
                await trio.sleep_forever()

    scope = trio.CancelScope()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch, scope)
            await trio.testing.wait_all_tasks_blocked()
            async with downloads.fetching([layer], open_at, told):
                [spool] = [blob.spool for blob in downloads._blobs.values()]
                while spool.size < 1 << 20:
                    await trio.lowlevel.checkpoint()
                scope.cancel()
                async with downloads.open_layer(layer) as chunks:
                    assert sum([len(chunk) async for chunk in chunks]) == layer.size
    assert told.total == layer.size


async def test_handed_over_when_an_endpoint_fails(server: Server, downloads: Downloads, impatient: None) -> None:
    """One whose endpoint fails is told so; another, with an endpoint that works, goes on from where it was."""
    server.behaviours = [half, nothing, nothing, nothing, nothing, whole]
    endings: list[str] = []

    async def fetch(where: str, started: trio.Event) -> None:
        try:
            async with downloads.fetching([ONE], server.open_at, lambda count: started.set(), where=where):
                endings.append(f"{where}: {await read(downloads, ONE) == BLOBS[0]}")
        except ImagePullFailed as error:
            endings.append(error.message)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            started = trio.Event()
            nursery.start_soon(fetch, "first", started)
            await started.wait()
            nursery.start_soon(fetch, "second", started)
    assert endings == [f"first: the layer {ONE.digest}: no answer (tried 5 times)", "second: True"]
    assert server.offsets == [0, *[HALF] * 5]


async def test_dead_registry_and_many(tmp_path: Path, server: Server) -> None:
    """Twenty that wait for a blob of a registry that is gone all fail within ten seconds."""
    downloads = Downloads(tmp_path / "downloads", ImageSettings())
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))
        gone = Server(unused.getsockname()[1], [])
        errors: list[ImageError] = []

        async def one() -> None:
            errors.append(await failure(downloads, gone.open_at))

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(one)
    assert len(errors) == 20
    assert all("attempts to connect" in error.message for error in errors)
    assert sum("tried 3 times" in error.message for error in errors) == 1


# -- what goes wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviours", "bytes_of_late"),
    [([silence], "0"), ([drops], r"\d{1,3}"), ([half_and_silence], r"\d{1,4}"), ([half, silence], r"\d{1,4}")],
    ids=["nothing at all", "drop by drop", "silence in the middle", "silence after a break"],
)
async def test_stalled(
    server: Server, downloads: Downloads, impatient: None, behaviours: list[Behaviour], bytes_of_late: str
) -> None:
    """A download that stalls ends after the idle time, however often it was tried, and says how little came."""
    server.behaviours = list(behaviours)
    begun = trio.current_time()
    error = await failure(downloads, server.open_at)
    assert QUICK.idle_s <= trio.current_time() - begun < 2 * QUICK.idle_s
    assert isinstance(error, ImagePullFailed)
    expected = rf"127.0.0.1/app: the layer {ONE.digest}: only {bytes_of_late} bytes of the layer arrived in 0.6 s(;.*)?"
    assert re.fullmatch(expected, error.message)
    assert ("the last failure: the body ended after" in error.message) == (len(behaviours) == 2)
    assert error.next_step == "check the registry and the network"


@pytest.mark.parametrize(
    ("behaviours", "tries"),
    [([nothing], 5), ([one_byte], 5), ([half, half_from_the_start], 5), ([half, nothing], 5)],
    ids=["no answer", "a byte a connection", "never beyond the half", "nothing after the half"],
)
async def test_given_up(
    server: Server, downloads: Downloads, impatient: None, behaviours: list[Behaviour], tries: int
) -> None:
    """Without real progress a blob is given up after five tries, with the last cause."""
    server.behaviours = list(behaviours)
    error = await failure(downloads, server.open_at)
    assert isinstance(error, ImagePullFailed)
    assert re.search(r"(no answer|the body ended after [\d,]+ of 1,500,000 bytes) \(tried 5 times\)$", error.message)
    assert len(server.asked) == tries


@pytest.mark.parametrize(
    ("behaviour", "cause"),
    [(other_bytes, "is not what it says it is"), (too_much, "has more than the 1,500,000 bytes that are stated")],
)
async def test_spoilt(server: Server, downloads: Downloads, behaviour: Behaviour, cause: str) -> None:
    """Wrong bytes are nobody's to try again: ImageInvalid, with what and where, for all who want them; then anew."""
    server.behaviours = [behaviour]
    errors: list[ImageError] = []

    async def one(where: str) -> None:
        errors.append(await failure(downloads, server.open_at, where))

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(one, f"app{number}")
    assert all(isinstance(error, ImageInvalid) for error in errors)
    assert sorted(error.message.split(" is not")[0].split(" has")[0] for error in errors) == [
        f"app{number}: the layer {ONE.digest}" for number in range(3)
    ]
    assert all(cause in error.message for error in errors)
    assert len(server.asked) == 1
    server.behaviours = [whole]
    assert await pull(downloads, server.open_at) == [BLOBS[0]]


async def test_failure_cancels_the_body(server: Server, downloads: Downloads) -> None:
    """A failure ends a body that waits for something else, and is raised by itself, never in a group."""

    @asynccontextmanager
    async def refused(layer: Layer, offset: int) -> AsyncIterator[Body]:
        await trio.lowlevel.checkpoint()
        raise ImageNotFound(f"no blob {layer.digest}")
        yield

    with trio.fail_after(10), pytest.raises(ImageNotFound, match="no blob sha256:"):
        async with downloads.fetching(LAYERS, refused, lambda count: None):
            await trio.sleep_forever()
    assert downloads._blobs == {}


@pytest.mark.parametrize("error", [KeyError("a bug"), OSError(28, "No space left"), ImageInvalid("no tar")])
async def test_error_of_the_body(server: Server, downloads: Downloads, error: Exception) -> None:
    """What the body raises ends the downloads and passes through as it is."""
    server.behaviours = [half_and_silence]
    progress = Progress()
    with trio.fail_after(10), pytest.raises(type(error)) as caught:
        async with downloads.fetching([ONE], server.open_at, progress):
            await progress.reach(HALF)
            raise error
    assert caught.value is error


async def test_cancelled(server: Server, downloads: Downloads) -> None:
    """Cancellation closes everything at once, while bytes come, while a reader waits, and while tries pause."""
    server.behaviours = [half_and_silence, half, nothing]
    for _ in range(2):
        progress = Progress()
        with trio.CancelScope() as scope:
            async with downloads.fetching([ONE], server.open_at, progress), trio.open_nursery() as nursery:
                nursery.start_soon(read, downloads, ONE)
                await progress.reach(HALF)
                await trio.sleep(0.05)
                scope.cancel()
        assert scope.cancelled_caught
        assert downloads._blobs == {}


async def test_left_early(server: Server, downloads: Downloads) -> None:
    """A body that needs the rest no longer does not wait for it."""
    server.behaviours = [half_and_silence]
    progress = Progress()
    with trio.fail_after(5):
        async with downloads.fetching(LAYERS, server.open_at, progress):
            await progress.reach(HALF)
    assert downloads._blobs == {}


async def test_full_disk(server: Server, small_disk: Path) -> None:
    """A full disk fails the pull with the directory and the cause, and gives the space back."""
    downloads = Downloads(small_disk / "downloads", QUICK)
    with pytest.raises(ImagePullFailed) as caught:
        await pull(downloads, server.open_at, LAYERS, "127.0.0.1/app")
    assert re.fullmatch(
        rf"127.0.0.1/app: the layer sha256:\w+ cannot be kept in {small_disk}/downloads: No space left on device",
        caught.value.message,
    )
    assert os.statvfs(small_disk).f_bfree == os.statvfs(small_disk).f_blocks


async def test_sizes_beyond_every_limit(server: Server, tmp_path: Path) -> None:
    """Layers that state more bytes than an image may have unpacked are not even begun."""
    downloads = Downloads(tmp_path / "downloads", ImageSettings(max_bytes=2 * SIZE))
    with pytest.raises(
        ImageInvalid, match=r"app: its layers have 4,500,000 bytes even before they are unpacked; an"
    ) as caught:
        await pull(downloads, server.open_at, LAYERS[:3], "app")
    assert "`--image-max-size`" in caught.value.next_step
    assert server.asked == []


async def test_layer_that_is_not_fetched(downloads: Downloads) -> None:
    """Asking for a layer outside of `fetching` is a mistake of the program."""
    with pytest.raises(RuntimeError, match="is not being fetched"):
        await read(downloads, ONE)


# -- memory and the event loop -----------------------------------------------------------------------------------------


def repeated(chunk: bytes, times: int) -> tuple[Layer, OpenAt]:
    """A layer of many equal chunks that come without a pause, and how to open it."""
    whole_digest = hashlib.sha256()
    for _ in range(times):
        whole_digest.update(chunk)
    digest = f"sha256:{whole_digest.hexdigest()}"

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(times):
            yield chunk

    @asynccontextmanager
    async def open_at(layer: Layer, offset: int) -> AsyncIterator[Body]:
        yield Body(0, chunks())

    return Layer(digest, len(chunk) * times, digest), open_at


@pytest.mark.parametrize(("size", "times"), [(7, 30_000), (65_536, 600), (8 << 20, 5)])
async def test_memory_is_bounded(downloads: Downloads, size: int, times: int) -> None:
    """A few MiB are held for a download, whether it comes in bytes or in chunks of 8 MiB."""
    layer, open_at = repeated(random.Random(1).randbytes(size), times)
    tracemalloc.start()
    try:
        with trio.fail_after(60):
            async with downloads.fetching([layer], open_at, lambda count: None), downloads.open_layer(layer) as chunks:
                total = 0
                async for chunk in chunks:
                    total += len(chunk)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == layer.size
    assert peak < 5 << 20


async def test_others_run_meanwhile(downloads: Downloads) -> None:
    """However tiny the chunks that lie ready, no other task waits longer than a moment."""
    layer, open_at = repeated(b"1", 200_000)
    longest = 0.0

    async def look() -> None:
        nonlocal longest
        while True:
            before = time.perf_counter()
            await trio.lowlevel.checkpoint()
            longest = max(longest, time.perf_counter() - before)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await pull(downloads, open_at, [layer])
            nursery.cancel_scope.cancel()
    assert longest < 0.1
