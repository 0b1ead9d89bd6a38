"""What the scheduler tells of images, when it first hears of them."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest

from rik.model.instance import ImageUse, Status
from rik.scheduler import lifecycle
from rik.scheduler.images import tell_of_use
from tests.scheduler.test_lifecycle import AT, TYPED, instance, report

PULLED = ImageUse(
    "alpine:3.20",
    "sha256:" + "1" * 64,
    ("web",),
    origin="docker.io",
    layers=3,
    pulled_layers=2,
    pulled_bytes=3_565_158,
    size_bytes=8_178_893,
    seconds=1.24,
    pulled_at=AT,
)
FOUND = msgspec.structs.replace(PULLED, reference="nginx:1", cached=True)


def test_a_pull_is_told_with_its_figures() -> None:
    """Where it came from, how many layers were fetched, how large they are as sent and unpacked, how long it took."""
    said = "alpine:3.20 from docker.io: 2 of 3 layers, 3.6 MB in 1.2 s; 8.2 MB unpacked"
    assert tell_of_use(PULLED, AT) == said


def test_an_image_that_was_there_is_told_with_its_age() -> None:
    """Since when it was there, and where it once came from."""
    said = "nginx:1 was here already (pulled 2 h ago from docker.io): 3 layers, 8.2 MB unpacked"
    assert tell_of_use(FOUND, AT + 2 * 3_600_000) == said


@pytest.mark.parametrize(("reference", "origin"), [("oci:/srv/a", "oci:/srv/a"), ("reg.example/a:1", "reg.example")])
def test_an_origin_is_not_named_twice(reference: str, origin: str) -> None:
    """It is left out where the reference says it already."""
    one = msgspec.structs.replace(PULLED, reference=reference, origin=origin, layers=1, pulled_layers=1)
    assert tell_of_use(one, AT).startswith(f"{reference}: 1 of 1 layer, ")


def test_each_image_is_an_event_before_the_status_that_it_led_to() -> None:
    """Two images and Running are three changes in this order, each with its own event; the record keeps both images."""
    creating = instance("Creating")
    steps = lifecycle.observe(creating, TYPED, report("Creating", "Running", images=(PULLED, FOUND)), AT + 100)
    told = [(step.event.type, step.event.reason) for step in steps if step.event]
    assert told == [("Normal", "Pulled"), ("Normal", "Pulled"), ("Normal", "Running")]
    assert [len(step.value.images) for step in steps] == [1, 2, 2]
    assert [step.value.status for step in steps] == [Status.CREATING, Status.CREATING, Status.RUNNING]
    assert all(later.before == earlier.value for earlier, later in pairwise(steps))
    assert sorted(step.value.updated_at for step in steps) == [step.value.updated_at for step in steps]


def test_images_are_told_once() -> None:
    """What the record has is no news, however often it is reported; nor is anything after the end."""
    seen = instance("Running", images=(PULLED,))
    assert lifecycle.observe(seen, TYPED, report("Running", images=(PULLED,), message=seen.message), AT + 100) == []
    assert lifecycle.observe(instance("Failed"), TYPED, report("Failed", images=(PULLED,)), AT + 100) == []


def test_images_of_an_instance_that_failed_are_told_too() -> None:
    """An instance that fails at its start was given its images all the same."""
    failed = report("Creating", "Failed", reason="CommandNotFound", images=(PULLED,))
    steps = lifecycle.observe(instance("Creating"), TYPED, failed, AT + 100)
    assert [step.event.reason for step in steps if step.event] == ["Pulled", "CommandNotFound"]
    assert steps[-1].value.images == (PULLED,)
