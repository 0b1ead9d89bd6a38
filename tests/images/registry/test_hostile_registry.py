"""Whatever a registry does: the pull ends in time, for a reason, with a message, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import trio

from rik.images.errors import ImageError, ImageInvalid, ImagePullFailed, ImageUnauthorized
from rik.images.reference import parse_reference
from rik.images.store import ImageStore
from rik.linux.idmap import IdMap, Unavailable
from tests.conftest import Require
from tests.images.build import file, tar
from tests.images.registry.casebook import CASES, QUICK_S, Case
from tests.images.registry.certificate import self_signed
from tests.images.registry.conftest import SETTLE_S, half_made, store_in
from tests.images.registry.hostile import TokenServer, redirect, serving_registry, well
from tests.images.registry.scene import LOWER, Scene, playing

pytestmark = [
    pytest.mark.require("user-namespaces", reason="layers are unpacked in one"),
    pytest.mark.usefixtures("nothing_stays"),
]

QUICK = [case for case in CASES if case.within_s <= QUICK_S]
PATIENT = [case for case in CASES if case.within_s > QUICK_S]


class Row(NamedTuple):
    """What became of a case, for the table."""

    title: str
    reason: str
    seconds: float
    message: str


@pytest.fixture(scope="module")
def table(pytestconfig: pytest.Config) -> Iterator[list[Row]]:
    """Rows that are printed when all is over."""
    rows: list[Row] = []
    yield rows
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        width = max((len(row.title) for row in rows), default=0)
        print(f"\n\n{'what the registry does':{width}}  {'reason':18}  seconds  message")
        for row in rows:
            print(f"{row.title:{width}}  {row.reason:18}  {row.seconds:7.2f}  {row.message}")


async def play(case: Case, scene: Scene, store: ImageStore, table: list[Row]) -> None:
    """Pulls what the case says; it must fail as promised."""
    text = case.arrange(scene) or scene.image.reference
    started = trio.current_time()
    with trio.move_on_after(case.within_s + 5) as limit:
        try:
            await store.ensure(parse_reference(text), holder="somebody")
        except ImageError as error:
            failure = error
        else:
            raise AssertionError(f"{case.title}: it was pulled")
    seconds = trio.current_time() - started
    assert not limit.cancelled_caught, f"{case.title}: not done after {seconds:.0f} s"
    message = failure.message
    table.append(Row(case.title, failure.reason, seconds, message))
    assert isinstance(failure, case.error), f"{case.title}: {failure.reason}: {message}"
    assert seconds <= case.within_s, f"{case.title}: took {seconds:.1f} s"
    assert re.search(case.words, message, re.IGNORECASE), f"{case.title}: {message}"
    registry, _, rest = text.partition("/")
    for part in (registry, re.split("[:@]", rest)[0]):
        assert part in message, f"{case.title}: {part} is not named: {message}"
    assert "secret" not in f"{message} {failure.next_step}", f"{case.title}: {message}"
    assert len(message) <= 2000 and message.isprintable(), f"{case.title}: {message[:300]!r}"
    for check in scene.checks:
        check()
    await store.release("somebody")
    # Layers that were whole may stay: what lies there is either a layer or nothing.
    left = [name for name in half_made(store) if not re.match(r"layers/[0-9a-f]{64}", name) or ".lock" in name]
    assert left == [], f"{case.title} left {left}"
    with trio.move_on_after(SETTLE_S):
        while scene.registry.sending_blobs or scene.other.sending_blobs:
            await trio.sleep(0.02)
    assert not (scene.registry.sending_blobs or scene.other.sending_blobs), f"{case.title}: still downloading"


@pytest.mark.parametrize("case", QUICK, ids=[case.title for case in QUICK])
async def test_quickly(
    case: Case, scene: Scene, workspace: Path, detected_idmap: IdMap | Unavailable, table: list[Row]
) -> None:
    """What waiting does not mend ends at once."""
    await play(case, scene, store_in(workspace / "images", detected_idmap, **case.settings), table)


@pytest.mark.slow
async def test_patiently(
    home: Path, workspace: Path, detected_idmap: IdMap | Unavailable, table: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may mend itself is tried again, or waited for, and given up in time; all of these at once."""
    failures: list[str] = []

    async def run(number: int, case: Case) -> None:
        async with playing(home) as scene:
            store = store_in(workspace / str(number), detected_idmap, **case.settings)
            try:
                await play(case, scene, store, table)
            except AssertionError as error:
                failures.append(str(error))

    async with trio.open_nursery() as nursery:
        for number, case in enumerate(PATIENT):
            nursery.start_soon(run, number, case)
    assert failures == []


# -- what needs a scene of its own -------------------------------------------------------------------------------------


async def refuses(
    store: ImageStore, reference: str, error: type[ImageError], words: str, title: str, table: list[Row]
) -> None:
    started = trio.current_time()
    with trio.fail_after(15), pytest.raises(error, match=words) as failure:
        await store.ensure(parse_reference(reference))
    table.append(Row(title, failure.value.reason, trio.current_time() - started, failure.value.message))
    assert half_made(store) == []


async def test_tls_that_nobody_vouches_for(store: ImageStore, home: Path, tmp_path: Path, table: list[Row]) -> None:
    """A self-signed certificate is refused at once, not asked again, and never answered by plain http."""
    context, _ = self_signed(tmp_path)
    async with serving_registry(tls=context) as registry:
        image = registry.publish(LOWER)
        title = "A certificate that nobody vouches for"
        await refuses(store, image.reference, ImagePullFailed, r"(?i)certificate", title, table)
        assert registry.requests == []
        assert registry.connections <= 3


async def test_plain_http_elsewhere(store: ImageStore, home: Path, table: list[Row], require: Require) -> None:
    """A registry that is not on loopback is not spoken to by plain http, unless that is allowed."""
    address = own_address()
    require("a network", reason="an address beside loopback", present=address is not None, expected_in_ci=False)
    async with serving_registry(str(address)) as registry:
        image = registry.publish(LOWER)
        title = "Plain http on an address that is not loopback"
        await refuses(store, image.reference, ImagePullFailed, r"(?i)tls|ssl|https|plain", title, table)
        assert registry.requests == []
        with trio.fail_after(10):
            allowed = store_in(store.directory, detected(store), insecure_registries=(registry.address,))
            assert (await allowed.ensure(parse_reference(image.reference))).digest == image.digest


async def test_downgrades(
    workspace: Path,
    detected_idmap: IdMap | Unavailable,
    home: Path,
    tmp_path: Path,
    table: list[Row],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A registry that is spoken to by https cannot send its client to plain http, neither for a layer nor a token."""
    context, certificate = self_signed(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with serving_registry(tls=context) as registry, playing(home) as plain:
        image = registry.publish(LOWER)
        other = plain.registry.publish(LOWER)
        store = store_in(workspace / "a", detected_idmap)
        registry.script(image.layer_paths[0], redirect(f"{plain.registry.url}{other.layer_paths[0]}"))
        title = "A redirect from https to http"
        await refuses(store, image.reference, ImagePullFailed, r"(?i)redirect.*http", title, table)
        assert plain.registry.requests == []
        registry.script(image.layer_paths[0], well)
        plain.login(registry, "user", "secret-of-mine")
        registry.guard = lambda request: [("WWW-Authenticate", 'Bearer realm="http://tokens.invalid/token"')]
        title = "A token server of plain http for a registry of https"
        await refuses(store, image.reference, ImageError, r"(?i)https", title, table)


async def test_a_full_disk(
    store: ImageStore, scene: Scene, small_disk: Path, detected_idmap: IdMap | Unavailable, table: list[Row]
) -> None:
    """A disk that is full in the middle ends the pull, which names it; with room again the next one succeeds."""
    image = scene.registry.publish(tar(file("large", os.urandom(4_000_000))), repository="large")
    full = store_in(small_disk / "images", detected_idmap)
    await refuses(full, image.reference, ImagePullFailed, "No space left on device", "A full disk in the middle", table)
    assert shutil.disk_usage(small_disk).used < 200_000, "everything was given back"
    small = scene.registry.publish(LOWER, repository="small")
    with trio.fail_after(10):
        assert (await full.ensure(parse_reference(small.reference))).digest == small.digest
    await full.remove_tree(full.directory)


@pytest.mark.parametrize(
    "text", ["", "App:v1", "a b", "http://x/y", "x/y:", "x@sha256:0", "../../etc", "a" * 5000, "é:1"]
)
async def test_no_reference(text: str, table: list[Row]) -> None:
    """A reference that is no reference is refused before anything is asked."""
    with pytest.raises(ImageInvalid) as failure:
        parse_reference(text)
    table.append(Row(f"The reference {text[:20]!r}", failure.value.reason, 0, failure.value.message[:200]))


async def test_secrets_stay_with_their_registry(store: ImageStore, scene: Scene) -> None:
    """A layer is followed to another host without Authorization, and a manifest too."""
    scene.login(scene.registry, "user", "secret-of-mine")
    TokenServer(scene.registry, scene.registry, secret="user:secret-of-mine")
    there = scene.other.publish(LOWER)
    image = scene.registry.publish(LOWER, repository="app")
    for path, target in (
        (image.layer_paths[0], there.layer_paths[0]),
        (image.config_path, there.config_path),
        (image.manifest_path, there.manifest_path),
    ):
        scene.script(path, redirect(f"{scene.other.url}{target}"))
    with trio.fail_after(10):
        await store.ensure(parse_reference(image.reference))
    assert {request.path for request in scene.other.requests} >= {there.layer_paths[0]}
    scene.no_credentials_at(scene.other)


async def test_wrong_secrets_are_not_told(store: ImageStore, scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """Neither messages nor the log repeat a password or a token."""
    caplog.set_level(0)
    TokenServer(scene.registry, scene.registry, secret="user:right")
    scene.login(scene.registry, "user", "secret-of-mine")
    with trio.fail_after(10), pytest.raises(ImageUnauthorized) as failure:
        await store.ensure(parse_reference(scene.image.reference))
    for text in (failure.value.message, failure.value.next_step, caplog.text):
        assert "secret-of-mine" not in text
        assert "c2VjcmV0" not in text


def own_address() -> str | None:
    """An IPv4 address of this machine that is not loopback."""
    found = [entry for entries in psutil.net_if_addrs().values() for entry in entries if entry.family == socket.AF_INET]
    return next((entry.address for entry in found if not entry.address.startswith("127.")), None)


def detected(store: ImageStore) -> IdMap | Unavailable:
    return store._owners.idmap
