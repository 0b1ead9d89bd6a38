"""Which proxy the environment names for a URL."""

from __future__ import annotations

import pytest

from rik.images.registry.proxies import proxy_of

PROXY = "http://proxy.example:3128"


@pytest.mark.parametrize(
    ("environment", "url", "proxy"),
    [
        ({}, "https://a.example/", None),
        ({"https_proxy": PROXY}, "https://a.example/", PROXY),
        ({"HTTPS_PROXY": PROXY}, "https://a.example/", PROXY),
        ({"HTTPS_PROXY": "http://other:1", "https_proxy": PROXY}, "https://a.example/", PROXY),
        ({"https_proxy": PROXY}, "http://a.example/", None),
        ({"all_proxy": PROXY}, "http://a.example/", PROXY),
        ({"https_proxy": "proxy.example:3128"}, "https://a.example/", PROXY),
        ({"https_proxy": ""}, "https://a.example/", None),
    ],
)
def test_proxies(environment: dict[str, str], url: str, proxy: str | None) -> None:
    """By scheme, small letters before capitals, a bare address as http."""
    assert proxy_of(url, environment) == proxy


@pytest.mark.parametrize("url", ["http://127.0.0.1:5000/", "https://localhost/", "http://[::1]:5000/"])
def test_this_machine(url: str) -> None:
    """This machine is always spoken to directly."""
    assert proxy_of(url, {"all_proxy": PROXY}) is None


@pytest.mark.parametrize(
    ("exempt", "url", "direct"),
    [
        ("a.example", "https://a.example/", True),
        ("a.example", "https://b.a.example:5000/", True),
        ("a.example", "https://ba.example/", False),
        (".a.example", "https://b.a.example/", True),
        ("x, a.example:5000", "https://a.example:5000/", True),
        ("a.example:5000", "https://a.example/", False),
        ("10.0.0.0/8", "https://10.1.2.3:5000/", True),
        ("10.0.0.0/8", "https://11.1.2.3/", False),
        ("10.0.0.0/8,nonsense/99", "https://a.example/", False),
        ("fd00::/8", "https://[fd00::1]:5000/", True),
        ("*", "https://a.example/", True),
    ],
)
def test_exemptions(exempt: str, url: str, direct: bool) -> None:
    """`no_proxy` lists names with their subdomains, ports, addresses and networks."""
    assert (proxy_of(url, {"https_proxy": PROXY, "no_proxy": exempt}) is None) == direct
