"""Images made by other programs, umoci and skopeo: what comes out here is what comes out there."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import trio

from rik.images.reference import parse_reference
from rik.images.store import Image, ImageStore
from rik.linux.idmap import IdMap, Unavailable
from tests.conftest import Require
from tests.images.conftest import HOST_ID

Tree = dict[str, tuple[object, ...]]


def run(*command: object) -> str:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def umoci(layout: Path, *arguments: object) -> None:
    rootless = ["--rootless"] if os.geteuid() != 0 and arguments[0] in ("unpack", "insert") else []
    run("umoci", arguments[0], *rootless, "--image", f"{layout}:v1", *arguments[1:])


def first_files(root: Path) -> None:
    (root / "bin").mkdir()
    shutil.copy("/usr/bin/busybox", root / "bin" / "busybox")
    for name in ("sh", "ls", "cat", "id"):
        (root / "bin" / name).symlink_to("busybox")
    for name in ("etc", "srv", "home/me", "usr/lib", "gone/deep"):
        (root / name).mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    (root / "etc" / "passwd").write_text("root:x:0:0::/:/bin/sh\n")
    (root / "gone" / "deep" / "file").write_text("x")
    (root / "srv" / "a").write_bytes(os.urandom(100_000))
    os.link(root / "srv" / "a", root / "srv" / "b")
    (root / "home" / "me").chmod(0o711)
    if os.geteuid() == 0:
        os.chown(root / "home" / "me", 1000, 1000)
        os.mknod(root / "srv" / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mkfifo(root / "srv" / "pipe")
        shutil.copy("/usr/bin/busybox", root / "bin" / "ping")
        (root / "bin" / "ping").chmod(0o4755)
        os.setxattr(root / "bin" / "busybox", "security.capability", bytes.fromhex("01000002" + "00200000" + "00" * 12))
        os.setxattr(root / "srv" / "a", "user.note", b"\xff\x00binary")


def second_files(root: Path) -> None:
    shutil.rmtree(root / "gone")
    (root / "bin" / "id").unlink()
    (root / "srv" / "a").unlink()
    (root / "usr" / "lib" / "new.so").write_text("new")
    (root / "home" / "me" / "notes").write_text("hello")
    shutil.rmtree(root / "etc")
    (root / "etc").mkdir()
    (root / "etc" / "motd").write_text("welcome")


def make_layout(folder: Path) -> Path:
    """Two layers: the second deletes, replaces and adds."""
    layout = folder / "layout"
    run("umoci", "init", "--layout", layout)
    umoci(layout, "new")
    for number, change in enumerate((first_files, second_files)):
        bundle = folder / f"bundle{number}"
        umoci(layout, "unpack", bundle)
        change(bundle / "rootfs")
        umoci(layout, "repack", bundle)
    umoci(layout, "config", "--config.cmd", "/bin/sh", "--config.env", "A=b", "--config.user", "1000")
    return layout


def describe(root: Path) -> Tree:
    """Everything about every file below: kind and mode, owners, time, size, content or target, attributes, links."""
    found: Tree = {}
    first_of_inode: dict[int, str] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        status = path.lstat()
        name = str(path.relative_to(root))
        content = ""
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        attributes = {
            key: os.getxattr(path, key, follow_symlinks=False)
            for key in os.listxattr(path, follow_symlinks=False)
            if ".overlay." not in key
        }
        links = first_of_inode.setdefault(status.st_ino, name) if not path.is_dir() else name
        size = status.st_size if path.is_file() else 0
        time = status.st_mtime_ns if name != "." else 0  # umoci's bundles are touched by umoci
        found[name] = (
            oct(status.st_mode), status.st_uid, status.st_gid, time, size, status.st_rdev, content, attributes, links
        )  # fmt: skip
    return found


async def unpack(workspace: Path, idmap: IdMap | Unavailable, reference: str) -> Image:
    store = ImageStore(workspace / "images", HOST_ID, idmap)
    with trio.fail_after(60):
        return await store.ensure(parse_reference(reference))


async def same_trees(layout: Path, workspace: Path, scratch: Path, idmap: IdMap | Unavailable) -> Tree:
    """Asserts that our layers, stacked by overlayfs, are what umoci unpacks; returns what that is."""
    umoci(layout, "unpack", scratch / "reference")
    image = await unpack(workspace, idmap, f"oci:{layout}:v1")
    merged = scratch / "merged"
    merged.mkdir()
    lower = ":".join(str(layer) for layer in reversed(image.layers))
    run("mount", "-t", "overlay", "overlay", "-o", f"ro,lowerdir={lower}", merged)
    try:
        ours, theirs = describe(merged), describe(scratch / "reference" / "rootfs")
    finally:
        run("umount", merged)
        shutil.rmtree(scratch / "reference")
    names = sorted({*ours, *theirs})
    assert [(name, ours.get(name), theirs.get(name)) for name in names if ours.get(name) != theirs.get(name)] == []
    return ours


@pytest.mark.require("umoci", reason="it makes the image, and unpacks it for comparison")
@pytest.mark.require("static-busybox", reason="the image's only program")
async def test_the_same_tree_as_umoci(
    workspace: Path, tmp_path: Path, detected_idmap: IdMap | Unavailable, require: Require
) -> None:
    """Stacked by overlayfs, the layers show exactly what umoci unpacks: owners, modes, times, links, attributes."""
    require("root", reason="true owners, and mounting an overlay")
    assert len(await same_trees(make_layout(tmp_path), workspace, tmp_path, detected_idmap)) > 15


@pytest.mark.slow
@pytest.mark.require("root", reason="true owners, and mounting an overlay")
@pytest.mark.require("umoci", reason="it unpacks the image for comparison")
async def test_the_same_debian_as_umoci(
    workspace: Path, tmp_path: Path, detected_idmap: IdMap | Unavailable, debian_image: Path
) -> None:
    """Of a Debian made by debootstrap, every file is what umoci unpacks; and there is something of every kind."""
    tree = await same_trees(debian_image, workspace, tmp_path, detected_idmap)
    assert len(tree) > 2000
    states = list(tree.values())
    modes = {int(str(mode), 8) for mode, *_ in states}
    assert {stat.S_IFMT(mode) for mode in modes} == {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR}
    assert any(mode & stat.S_ISUID for mode in modes) and any(mode & stat.S_ISGID for mode in modes)
    assert len({owner for _, owner, *_ in states}) >= 3 and len({group for _, _, group, *_ in states}) >= 4
    attributes = {name for state in states if isinstance(state[7], dict) for name in state[7]}
    assert attributes == {"security.capability", "user.note"}
    assert any(links != name for name, (*_, links) in tree.items()), "a file of two names"
    assert "usr/bin/perl" not in tree and "usr/bin/perl5.36.0" in tree


@pytest.mark.require("umoci", reason="it makes the image")
@pytest.mark.require("unshare", reason="it makes the namespaces to try the image in")
@pytest.mark.require("static-busybox", reason="the image's only program")
async def test_a_program_of_the_image_runs(workspace: Path, tmp_path: Path, idmap: IdMap | Unavailable) -> None:
    """The layers can be mounted in a user namespace, hide what they delete, and their programs run."""
    layout = make_layout(tmp_path)
    image = await unpack(workspace, idmap, f"oci:{layout}:v1")
    assert image.config.cmd == ("/bin/sh",) and image.config.user == "1000" and "A=b" in image.config.env
    for name in ("upper", "work", "merged"):
        (workspace / name).mkdir()
    lower = ":".join(str(layer) for layer in reversed(image.layers))
    options = f"userxattr,lowerdir={lower},upperdir={workspace}/upper,workdir={workspace}/work"
    inside = "ls / /etc /srv /lib/; cat /usr/lib/new.so; echo written > /srv/new"
    mount = f'mount -t overlay overlay -o "{options}" "{workspace}/merged"'
    script = f'{mount} && chroot "{workspace}/merged" /bin/sh -c "{inside}"'
    shown = set(run("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script).split())
    assert {"bin", "motd", "new.so", "b", "new"} <= shown
    assert not {"gone", "passwd", "a"} & shown
    assert (workspace / "upper" / "srv" / "new").read_text() == "written\n"


@pytest.mark.require("umoci", reason="it makes the image")
@pytest.mark.require("skopeo", reason="it copies the image into archives")
@pytest.mark.require("static-busybox", reason="the image's only program")
async def test_archives_by_skopeo(workspace: Path, tmp_path: Path, detected_idmap: IdMap | Unavailable) -> None:
    """An image that skopeo has copied into archives is the same image, with the same layers."""
    layout = make_layout(tmp_path)
    image = await unpack(workspace, detected_idmap, f"oci:{layout}:v1")
    for reference in (f"oci-archive:{tmp_path}/oci.tar:v2", f"docker-archive:{tmp_path}/docker.tar:example.org/app:1"):
        run("skopeo", "--insecure-policy", "copy", "--quiet", f"oci:{layout}:v1", reference)
        copy = await unpack(workspace, detected_idmap, reference)
        assert copy.layers == image.layers and copy.config == image.config
