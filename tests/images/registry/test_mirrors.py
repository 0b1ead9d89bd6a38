"""Which of a registry's servers is asked for what, and what is told when none of them delivers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from rik.images.errors import ImageInvalid, ImageNotFound, ImagePullFailed, ImageSpoilt
from rik.images.registry.registries import Registries
from tests.images.registry.hostile import HostileRegistry, cut, instead, serving_registry, status, well
from tests.images.registry.pulling import pull, registries_in
from tests.images.registry.scene import LOWER, UPPER, Scene

pytestmark = pytest.mark.usefixtures("nothing_stays")


@pytest.fixture
async def third() -> AsyncIterator[HostileRegistry]:
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(serving_registry())


def mirrored(directory: Path, scene: Scene, *mirrors: HostileRegistry) -> Registries:
    return registries_in(directory, mirrors=tuple((scene.registry.address, mirror.url) for mirror in mirrors))


async def test_in_their_order(scene: Scene, third: HostileRegistry, tmp_path: Path) -> None:
    """The first mirror that has it serves the pull; the ones after it are not asked."""
    scene.other.publish(LOWER, UPPER)
    third.publish(LOWER, UPPER)
    resolved, layers = await pull(mirrored(tmp_path, scene, scene.other, third), scene.image.reference)
    assert resolved.origin == f"{scene.registry.address} by mirror {scene.other.url}"
    assert len(layers) == 2
    assert third.requests == [] and scene.registry.requests == []


async def test_without_mirrors(scene: Scene, tmp_path: Path) -> None:
    """The origin is then the registry."""
    resolved, _ = await pull(registries_in(tmp_path), scene.image.reference)
    assert resolved.origin == scene.registry.address


async def test_who_does_not_have_it_is_asked_once(scene: Scene, third: HostileRegistry, tmp_path: Path) -> None:
    """A mirror that does not have the manifest is not asked for the rest."""
    third.publish(LOWER, UPPER)
    resolved, _ = await pull(mirrored(tmp_path, scene, scene.other, third), scene.image.reference)
    assert third.url in resolved.origin
    assert [request.path for request in scene.other.requests] == [scene.image.manifest_path]


async def test_all_are_named(scene: Scene, third: HostileRegistry, tmp_path: Path) -> None:
    """When nobody delivers, the error is the registry's, and tells of each."""
    scene.registry.script(scene.image.manifest_path, status(404))
    scene.other.script(scene.image.manifest_path, status(403))
    third.script(scene.image.manifest_path, status(200, b"<html>", Content_Type="text/html"))
    with pytest.raises(ImageNotFound) as caught:
        await pull(mirrored(tmp_path, scene, scene.other, third), scene.image.reference)
    message = caught.value.message
    for words in (f"{scene.other.url} answers 403", f"{third.url} answers with a web page", "answers 404"):
        assert words in message, message


async def test_only_the_mirror_is_there(scene: Scene, tmp_path: Path) -> None:
    """A mirror that stumbles is asked again when the registry itself cannot be reached."""
    image = scene.other.publish(LOWER, UPPER)
    scene.other.script(image.manifest_path, status(503), well)
    scene.other.script(image.layer_paths[0], cut(5000), well)
    registries = registries_in(tmp_path, mirrors=(("registry.invalid", scene.other.url),))
    resolved, layers = await pull(registries, "registry.invalid/app:v1")
    assert resolved.digest == image.digest and len(layers) == 2


async def test_a_mirror_that_breaks_off(scene: Scene, tmp_path: Path) -> None:
    """A layer begun at a mirror is ended at the registry, when the mirror makes no progress; not a byte twice."""
    there = scene.other.publish(LOWER, UPPER)
    scene.other.script(there.layer_paths[0], cut(5000), cut(0))
    await pull(mirrored(tmp_path, scene, scene.other), scene.image.reference)
    assert [request.headers.get("range") for request in scene.registry.asked(scene.image.layer_paths[0])] == [
        "bytes=5000-"
    ]


async def test_a_mirror_that_lies(scene: Scene, tmp_path: Path) -> None:
    """A layer that a mirror has spoilt ends the pull; the next one passes the mirror over."""
    there = scene.other.publish(LOWER, UPPER)
    scene.other.script(there.layer_paths[0], instead(lambda data: data[:-1] + b"!"))
    registries = mirrored(tmp_path, scene, scene.other)
    with pytest.raises(ImageSpoilt, match=f"by mirror {scene.other.url}"):
        await pull(registries, scene.image.reference)
    resolved, _ = await pull(registries, scene.image.reference)
    assert resolved.origin == scene.registry.address


async def test_a_registry_that_lies(scene: Scene, tmp_path: Path) -> None:
    """What the registry itself has spoilt is not worth another pull."""
    scene.registry.script(scene.image.layer_paths[0], instead(lambda data: data[:-1] + b"!"))
    with pytest.raises(ImageInvalid) as caught:
        await pull(registries_in(tmp_path), scene.image.reference)
    assert not isinstance(caught.value, ImageSpoilt)


async def test_mirrors_that_are_none(scene: Scene, tmp_path: Path) -> None:
    """A mirror that cannot be used does not keep from the registry, and is named when that fails."""
    mirrors = ((scene.registry.address, "ftp://m.example"), (scene.registry.address, "http://m.example"))
    registries = registries_in(tmp_path, mirrors=mirrors)
    await pull(registries, scene.image.reference)
    scene.registry.script(scene.image.manifest_path, status(418))
    with pytest.raises(ImagePullFailed, match=r"http://m\.example: plain http is spoken to this machine"):
        await pull(registries, scene.image.reference)


async def test_prefixes(scene: Scene, tmp_path: Path) -> None:
    """A mirror below a path is asked below it."""
    there = scene.other.publish(LOWER, UPPER)
    manifest, media_type = scene.other.manifests["app", "v1"][1], scene.other.manifests["app", "v1"][0]
    scene.other.script(f"/hub{there.manifest_path}", status(200, manifest, Content_Type=media_type))
    for path in (there.config_path, *there.layer_paths):
        blob = scene.other.blobs[path.rpartition("/")[2]]
        scene.other.script(f"/hub{path}", status(200, blob))
    registries = registries_in(tmp_path, mirrors=((scene.registry.address, f"{scene.other.url}/hub/"),))
    resolved, _ = await pull(registries, scene.image.reference)
    assert resolved.digest == there.digest
    assert scene.registry.requests == []
