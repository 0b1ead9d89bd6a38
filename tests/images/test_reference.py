"""Image references."""

from __future__ import annotations

import pytest

from rik.images.errors import ImageInvalid
from rik.images.reference import (
    ArchiveReference,
    HostReference,
    LayoutReference,
    Reference,
    RegistryReference,
    familiar,
    parse_reference,
)

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"

GOOD: dict[str, Reference] = {
    "alpine": RegistryReference("docker.io", "library/alpine", "latest"),
    "alpine:3.20": RegistryReference("docker.io", "library/alpine", "3.20"),
    "grafana/grafana": RegistryReference("docker.io", "grafana/grafana", "latest"),
    f"alpine@{DIGEST}": RegistryReference("docker.io", "library/alpine", None, DIGEST),
    f"alpine:3@{DIGEST}": RegistryReference("docker.io", "library/alpine", "3", DIGEST),
    "index.docker.io/alpine": RegistryReference("docker.io", "library/alpine", "latest"),
    "localhost/app": RegistryReference("localhost", "app", "latest"),
    "127.0.0.1:5000/app:1": RegistryReference("127.0.0.1:5000", "app", "1"),
    "[::1]:5000/app": RegistryReference("[::1]:5000", "app", "latest"),
    "ghcr.io/a/b/c:v1_2-3.4": RegistryReference("ghcr.io", "a/b/c", "v1_2-3.4"),
    "Registry/app": RegistryReference("Registry", "app", "latest"),
    "a__b/c--d.e_f": RegistryReference("docker.io", "a__b/c--d.e_f", "latest"),
    "library/host": RegistryReference("docker.io", "library/host", "latest"),
    "host": HostReference(),
    "oci:/srv/images": LayoutReference("/srv/images"),
    "oci:./here:v1": LayoutReference("./here", "v1"),
    "oci:/srv/images:docker.io/library/app:1": LayoutReference("/srv/images", "docker.io/library/app:1"),
    "oci-archive:app.tar": ArchiveReference("oci", "app.tar"),
    "oci-archive:/srv/app.tar:v1": ArchiveReference("oci", "/srv/app.tar", "v1"),
    "docker-archive:/srv/app.tar:app:1": ArchiveReference("docker", "/srv/app.tar", "app:1"),
}

BAD = {
    "": "is empty",
    "Alpine": "upper-case letters; did you mean `alpine`",
    "docker.io/Library/alpine": "upper-case letters",
    "alpine:": "the tag `` is not",
    "alpine:-x": "the tag `-x` is not",
    "alpine:" + "x" * 129: "the tag",
    "alpine@sha256:123": "the digest `sha256:123` is not",
    f"alpine@{DIGEST.upper()}": "the digest",
    f"alpine@md5:{HEX}": "the digest",
    "a//b": "an empty part",
    "a/": "an empty part",
    "/a": "an empty part",
    "localhost:5000/": "no repository is named",
    "localhost:99999/a": "port `99999` is not",
    "localhost:x/a": "port `x` is not",
    "-bad.host/a": "is no host name",
    "a_.b": "`a_.b` in the repository",
    "..": "in the repository",
    "a/../b": "`..` in the repository",
    "docker://alpine": "leave out `docker://`",
    "https://example.org/a": "leave out `https://`",
    "me:hush@example.org/a": "`me:…@example.org/a` is no image reference: credentials are no part",
    "https://me:hush@example.org/a": "`https://me:…@example.org/a` is",
    "me:hush@example.org/a\x1b": "'me:\\u2026@example.org/a\\x1b' is",
    "example.org:5000/a:v1@deadbeef": "the digest `deadbeef`",
    "al pine": "`al pine` in the repository",
    "al\npine": "unprintable character",
    "al\ud800pine": "unprintable character",
    "x" * 300: "longer than 255",
    "x" * 5000: "5,000 characters",
    "oci:": "no directory is named",
    "oci:/a:": "nothing follows the colon",
    "oci://a": "without `//`",
    "docker-archive:": "no file is named",
    "oci-archive::x": "no file is named",
}


@pytest.mark.parametrize("text", GOOD)
def test_reads_references(text: str) -> None:
    """A reference is read with Docker Hub, `library` and `latest` filled in."""
    assert parse_reference(text) == GOOD[text]


@pytest.mark.parametrize("text", GOOD)
def test_full_form_reads_back(text: str) -> None:
    """The full form of a reference is a reference to the same image."""
    reference = parse_reference(text)
    assert parse_reference(str(reference)) == reference
    assert parse_reference(familiar(reference)) == reference


@pytest.mark.parametrize("text", BAD)
def test_names_the_wrong_part(text: str) -> None:
    """What is no reference is refused by one short line that names the wrong part."""
    with pytest.raises(ImageInvalid) as caught:
        parse_reference(text)
    message = str(caught.value)
    assert BAD[text] in message
    assert "\n" not in message and len(message) < 500 and "hush" not in message
    assert caught.value.reason == "ImageInvalid"


def test_familiar_form_is_short() -> None:
    """People read `alpine:3` rather than its full form."""
    assert familiar(parse_reference("docker.io/library/alpine:3")) == "alpine:3"
    assert familiar(parse_reference("docker.io/a/b")) == "a/b:latest"
    assert familiar(parse_reference("ghcr.io/a/b")) == "ghcr.io/a/b:latest"
