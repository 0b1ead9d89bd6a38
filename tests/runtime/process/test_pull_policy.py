"""When a registry is asked for an image, over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from rik.errors import InstanceFailure
from rik.model.instance import ImageUse
from tests.images.registry.hostile import HostileRegistry, Published, serving_registry
from tests.images.registry.scene import LOWER, UPPER
from tests.runtime.process.conftest import Bench, container, make_pod

pytestmark = pytest.mark.require("user-namespaces", reason="layers are unpacked in one")


@pytest.fixture
async def registry() -> AsyncIterator[HostileRegistry]:
    async with serving_registry() as serving:
        yield serving


async def prepare(bench: Bench, image: Published, *policies: str) -> tuple[ImageUse, ...]:
    """A pod with a container for each policy ("": none is said)."""
    said = [{"imagePullPolicy": policy} if policy else {} for policy in policies]
    names = [container(f"c{n}", "x", **{"image": image.reference, **more}) for n, more in enumerate(said)]
    return await bench.runtime.prepare(make_pod(*names), lambda progress: None)


async def test_what_is_here_is_not_asked_for(bench: Bench, registry: HostileRegistry) -> None:
    """IfNotPresent, which is the default: the registry is asked once, and never again while the image is here."""
    image = registry.publish(LOWER)
    (first,) = await prepare(bench, image, "")
    asked = len(registry.requests)
    assert (first.cached, first.pulled_layers, first.containers) == (False, 1, ("c0",))
    (again,) = await prepare(bench, image, "IfNotPresent", "")
    assert (again.cached, again.digest, again.containers) == (True, first.digest, ("c0", "c1"))
    assert len(registry.requests) == asked


async def test_always_asks_where_the_tag_leads_now(bench: Bench, registry: HostileRegistry) -> None:
    """Always: what has changed is pulled, and nothing else."""
    (first,) = await prepare(bench, registry.publish(LOWER), "Always")
    moved = registry.publish(LOWER, UPPER)
    (same,) = await prepare(bench, moved, "IfNotPresent")
    (newer,) = await prepare(bench, moved, "Always")
    assert (same.digest, same.cached) == (first.digest, True)
    assert (newer.digest, newer.layers, newer.pulled_layers) == (moved.digest, 2, 1)
    asked = len(registry.requests)
    (unchanged,) = await prepare(bench, moved, "Always")
    assert unchanged.cached and registry.requests[asked:]
    assert not [request for request in registry.requests[asked:] if request.path in moved.layer_paths]


async def test_never_asks_nobody(bench: Bench, registry: HostileRegistry) -> None:
    """Never: what is not here already is ImageNotFound, which says why and what to do; no connection is made."""
    image = registry.publish(LOWER)
    with pytest.raises(InstanceFailure, match="is not on this node, and imagePullPolicy is Never") as failed:
        await prepare(bench, image, "Never")
    assert failed.value.reason == "ImageNotFound" and "rik image pull" in failed.value.next_step
    assert registry.connections == 0
    await prepare(bench, image, "")
    asked = len(registry.requests)
    (use,) = await prepare(bench, image, "Never")
    assert use.cached and len(registry.requests) == asked
