"""An image to measure with: of the size, the kinds of files and the compression that real ones have."""

from __future__ import annotations

import hashlib
import io
import os
import random
import stat
import tarfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from tests.images.build import CONFIG, LAYER, MANIFEST, Layout, config_of

SOURCES = ("/usr/share", "/usr/lib", "/usr/bin", "/usr/libexec", "/usr/local")
MAX_FILE_BYTES = 30_000_000
MEGABYTE = 1_000_000
SEED = 1
COMPRESSION = 6  # as docker's and most builders'
_GENERATED_BYTES = 40_000


class _Compressed(io.RawIOBase):
    """A file that compresses what is written to it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._compressor = zlib.compressobj(COMPRESSION, zlib.DEFLATED, 31)
        self._plain = hashlib.sha256()
        self.size = 0

    def write(self, data: Any) -> int:
        self._plain.update(data)
        self.size += self._file.write(self._compressor.compress(data))
        return len(data)

    def finish(self) -> str:
        """Returns the digest of the plain bytes."""
        self._file.write(self._compressor.flush())
        self._file.close()
        return f"sha256:{self._plain.hexdigest()}"


def large_image(path: Path, size_bytes: int, layers: int) -> str:
    """Writes a layout of about `size_bytes` compressed, from this host's own files, made up ones where they do not
    suffice; returns the reference to it. The same host gives the same image."""
    directories = sorted(folder for source in SOURCES for folder, _, _ in os.walk(source))
    random.Random(SEED).shuffle(directories)
    made = Layout(path)
    shares = [directories[number::layers] for number in range(layers)]
    files = [path / f"layer-{number}" for number in range(layers)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        diff_ids = list(pool.map(_write_layer, files, shares, [size_bytes // layers] * layers))
    blobs = [made.blob(file.read_bytes(), f"{LAYER}+gzip") for file in files]
    for file in files:
        file.unlink()
    config = config_of([], rootfs={"type": "layers", "diff_ids": diff_ids})
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": made.document(config, CONFIG), "layers": blobs}
    made.add(made.document(manifest, MANIFEST), "v1")
    return f"oci:{made.write()}:v1"


def _write_layer(path: Path, directories: list[str], size_bytes: int) -> str:
    output = _Compressed(path)
    written: set[str] = set()
    with tarfile.open(fileobj=output, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for name in _files(directories):
            if output.size >= size_bytes:
                break
            parents = [str(parent) for parent in reversed(Path(name).parents)][1:]
            for entry in (*parents, name):
                if entry not in written:
                    written.add(entry)
                    archive.add(entry, recursive=False)
        generator, number = random.Random(path.name), 0
        while output.size < size_bytes:  # not enough files here
            number += 1
            info = tarfile.TarInfo(f"generated/{number}")
            words = " ".join(f"word{generator.randrange(5000)}" for _ in range(_GENERATED_BYTES // 16)).encode()
            data = words + generator.randbytes(_GENERATED_BYTES // 4)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return output.finish()


def _files(directories: list[str]) -> Iterator[str]:
    for directory in directories:
        for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
            status = entry.stat(follow_symlinks=False)
            small = stat.S_ISREG(status.st_mode) and status.st_size < MAX_FILE_BYTES
            if entry.is_symlink() or (small and os.access(entry.path, os.R_OK)):
                yield entry.path
