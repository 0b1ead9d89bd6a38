"""Where a registry's images may be had, and how these servers may be spoken to."""

from __future__ import annotations

import pytest

from rik.images.reference import RegistryReference, parse_reference
from rik.images.registry.endpoints import Endpoint, endpoints_of, hostname, is_listed, is_loopback, origin_of


def endpoints(text: str, *mirrors: tuple[str, str], insecure: tuple[str, ...] = ()) -> tuple[Endpoint, ...]:
    reference = parse_reference(text)
    assert isinstance(reference, RegistryReference)
    return endpoints_of(reference, mirrors, insecure)


@pytest.mark.parametrize(
    ("text", "bases"),
    [
        ("alpine", ["https://registry-1.docker.io/v2"]),
        ("quay.io/org/app", ["https://quay.io/v2"]),
        ("127.0.0.1:5000/app", ["http://127.0.0.1:5000/v2", "https://127.0.0.1:5000/v2"]),
        ("localhost/app", ["http://localhost/v2", "https://localhost/v2"]),
        ("[::1]:5000/app", ["http://[::1]:5000/v2", "https://[::1]:5000/v2"]),
        ("10.0.0.1:5000/app", ["https://10.0.0.1:5000/v2"]),
    ],
)
def test_schemes(text: str, bases: list[str]) -> None:
    """A registry is spoken to by https alone, but on this machine by plain http first."""
    (endpoint,) = endpoints(text)
    assert list(endpoint.bases) == bases
    assert endpoint.plain == (len(bases) > 1)


def test_insecure() -> None:
    """A registry that is declared insecure may speak plain http, when https does not answer."""
    for name in ("reg.example", "reg.example:5000", "REG.example"):
        (endpoint,) = endpoints("reg.example:5000/app", insecure=(name,))
        assert endpoint.bases == ("https://reg.example:5000/v2", "http://reg.example:5000/v2")
    (endpoint,) = endpoints("reg.example:5000/app", insecure=("reg.example:5001", "example"))
    assert endpoint.bases == ("https://reg.example:5000/v2",)


def test_mirrors() -> None:
    """A registry's mirrors come first, in their order, under whatever name of Docker Hub; those of others do not."""
    found = endpoints(
        "alpine",
        ("docker.io", "https://one.example"),
        ("quay.io", "https://quay.example"),
        ("index.docker.io", "https://two.example/"),
    )
    assert [(endpoint.name, endpoint.mirror) for endpoint in found] == [
        ("https://one.example", True),
        ("https://two.example", True),
        ("docker.io", False),
    ]


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("https://m.example", "https://m.example/v2"),
        ("https://m.example:8443/hub/", "https://m.example:8443/hub/v2"),
        ("https://m.example/v2/hub", "https://m.example/v2/hub"),
        ("http://127.0.0.1:5001", "http://127.0.0.1:5001/v2"),
    ],
)
def test_path_of_a_mirror(url: str, base: str) -> None:
    """A mirror's path is kept, before the API's `v2` or with it."""
    assert endpoints("alpine", ("docker.io", url))[0].bases == (base,)


@pytest.mark.parametrize(
    "url",
    ["", "m.example", "ftp://m.example", "https://", "https://m.example:99999999", "https://[::1", "https://m?a=b"],
)
def test_mirrors_that_are_none(url: str) -> None:
    """A mirror whose URL makes no sense has a problem, and the registry remains."""
    mirror, registry = endpoints("alpine", ("docker.io", url))
    assert mirror.problem and not mirror.bases
    assert registry.name == "docker.io"


def test_plain_http_to_a_mirror() -> None:
    """A mirror is spoken to by plain http only on this machine, or when it is declared insecure."""
    mirror, _ = endpoints("alpine", ("docker.io", "http://m.example:5000"))
    assert "plain http" in mirror.problem and "--insecure-registry m.example:5000" in mirror.next_step
    mirror, _ = endpoints("alpine", ("docker.io", "http://m.example:5000"), insecure=("m.example",))
    assert not mirror.problem


def test_passwords_in_mirrors() -> None:
    """What stands before an @ in a mirror's URL is in none of its texts."""
    for url in ("https://user:secret@m.example", "https://user:secret@m.example:x"):
        assert "secret" not in repr(endpoints("alpine", ("docker.io", url))[0])


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:5000", "a.localhost", "127.1.2.3:80", "[::1]:5", "[::ffff:127.0.0.1]"]
)
def test_loopback(host: str) -> None:
    """This machine, by its names and addresses."""
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["localhost.example", "127.0.0.1.example", "128.0.0.1", "[::2]", "0.0.0.0", "", "notlocalhost"]
)
def test_not_loopback(host: str) -> None:
    """Whatever only looks like it."""
    assert not is_loopback(host)


def test_parts_of_hosts() -> None:
    """Ports and brackets are told from names; credentials are bound to scheme, host and port."""
    assert [hostname(host) for host in ("A.b:5", "[::1]:5", "a")] == ["a.b", "::1", "a"]
    assert is_listed("[::1]:5", ("[::1]",))
    assert origin_of("https://A.example/x") == origin_of("https://a.example:443/y") == ("https", "a.example", 443)
    assert origin_of("https://a.example") != origin_of("http://a.example")
