"""WWW-Authenticate, as registries write it and as they should not."""

from __future__ import annotations

import pytest

from rik.images.registry.challenges import MAX_CHALLENGES, Challenge, read_challenges

BEARER = Challenge("bearer", {"realm": "https://a.example/t", "service": "r", "scope": "repository:app:pull,push"})
BASIC = Challenge("basic", {"realm": "a, b"})


@pytest.mark.parametrize(
    ("headers", "challenges"),
    [
        (['Bearer realm="https://a.example/t",service="r",scope="repository:app:pull,push"'], [BEARER]),
        (['bearer  REALM = "https://a.example/t" , Service=r, scope="repository:app:pull,push"'], [BEARER]),
        (['Basic realm="a, b"'], [BASIC]),
        (
            ['Basic realm="a, b", Bearer realm="https://a.example/t",service=r,scope="repository:app:pull,push"'],
            [BASIC, BEARER],
        ),
        (
            ['Basic realm="a, b"', 'Bearer realm=https://a.example/t,service="r",scope="repository:app:pull,push"'],
            [BASIC, BEARER],
        ),
        (["Negotiate, Basic realm=x"], [Challenge("negotiate", {}), Challenge("basic", {"realm": "x"})]),
        (["Negotiate abc==, Basic"], [Challenge("negotiate", {}), Challenge("basic", {})]),
        ([r'Basic realm="a \"quoted\" \\ one"'], [Challenge("basic", {"realm": r'a "quoted" \ one'})]),
        (['Bearer realm="first",realm="second"'], [Challenge("bearer", {"realm": "first"})]),
        (["Basic"], [Challenge("basic", {})]),
        ([""], []),
        (['="'], []),
    ],
)
def test_challenges(headers: list[str], challenges: list[Challenge]) -> None:
    """Several in a header or in several, quoted or not, with commas in them."""
    assert list(read_challenges(headers)) == challenges


@pytest.mark.parametrize(
    "header", ['Bearer realm="' + "\\" * 50_000, '",' * 25_000, "a " * 25_000, "a=" * 25_000, "," * 50_000]
)
def test_hostile_challenges(header: str) -> None:
    """Whatever is sent is read in no time, and comes to a few challenges."""
    assert len(read_challenges([header] * 5)) <= MAX_CHALLENGES
