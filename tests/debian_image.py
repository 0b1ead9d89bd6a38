"""An image made of Debian itself by debootstrap, with nginx and redis: an OCI layout of three layers, tagged `v1`.

    python -m tests.debian_image        (as root; prints where it lies)

It takes about a minute and a Debian mirror to make, so it is made once, by root, and kept for every user's tests below
/var/tmp/rik-ci, under a name that changes with this file. `RIK_TEST_DEBIAN_IMAGE` names another place for it.

    1  what debootstrap installs (minbase): setuid programs, devices, hardlinks, many owners
    2  nginx-light and redis-server with their configuration; a file capability and an extended attribute
    3  files, whole directories and one of two hardlinks deleted; a directory that became a link; files changed

It wants to run nginx on port 8080 as www-data, and to be stopped by SIGQUIT; `nginx -c /etc/nginx/root.conf` is a
master of root's with workers of www-data's, on port 80; `redis-server /etc/redis/rik.conf` listens on 6379.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

RELEASE = "bookworm"
DEFAULT_MIRROR = "http://deb.debian.org/debian"
KEPT_IN = Path("/var/tmp/rik-ci")
TAG = "v1"
PLACE = "RIK_TEST_DEBIAN_IMAGE"
BUILD_LIMIT_S = 300.0
PAGE = "nginx of an image\n"
PRIVATE_PAGE = "for www-data alone\n"

NGINX = """{user}
daemon off;
worker_processes 1;
pid /tmp/nginx-{port}.pid;
error_log stderr notice;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path /tmp/body-{port};
    proxy_temp_path /tmp/proxy-{port};
    fastcgi_temp_path /tmp/fastcgi-{port};
    uwsgi_temp_path /tmp/uwsgi-{port};
    scgi_temp_path /tmp/scgi-{port};
    server {{ listen {port}; root /var/www/html; }}
}}
"""
REDIS = 'bind 0.0.0.0\nprotected-mode no\nport 6379\ndir /tmp\nsave ""\n'
# CAP_NET_RAW, permitted and effective, in the kernel's version 2 format.
NET_RAW = bytes.fromhex("01000002" + "00200000" + "00" * 12)

CONFIG = {
    "entrypoint": ("/usr/sbin/nginx", "-e", "stderr"),
    "cmd": ("-c", "/etc/nginx/rik.conf"),
    "env": ("PATH=/usr/sbin:/usr/bin:/sbin:/bin", "GREETING=from the image"),
    "workingdir": ("/var/www/html",),
    "user": ("www-data",),
    "stopsignal": ("SIGQUIT",),
    "exposedports": ("8080/tcp", "6379/tcp"),
    "label": ("org.example.made-by=debootstrap",),
}


class Unavailable(Exception):
    """Why there is no such image here."""


def image() -> Path:
    """The layout; root makes it when it is not there yet. Raises Unavailable."""
    if PLACE in os.environ:
        place = Path(os.environ[PLACE])
    else:
        key = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
        place = KEPT_IN / f"debian-{key}"
    if (place / "index.json").exists():
        return _trusted(place)
    if os.geteuid() != 0:
        raise Unavailable(f"{place} is not there, and only root can make it: python3 -m tests.debian_image")
    for program in ("debootstrap", "umoci", "unshare"):
        if shutil.which(program) is None:
            raise Unavailable(f"`{program}` makes it, and is not installed")
    place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with open(_trusted(place.parent) / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "index.json").exists():
            with tempfile.TemporaryDirectory(dir=place.parent, prefix="tmp-") as scratch:
                _build(Path(scratch)).rename(place)
    return place


def _trusted(place: Path) -> Path:
    """Anybody may make directories in /var/tmp."""
    status = place.stat()
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
        raise Unavailable(f"{place} may be written by others than root")
    return place


def _build(scratch: Path) -> Path:
    layout, bundle = scratch / "layout", scratch / "bundle"
    root = bundle / "rootfs"
    _run("umoci", "init", "--layout", layout)
    _run("umoci", "new", "--image", f"{layout}:{TAG}")
    _run("umoci", "unpack", "--image", f"{layout}:{TAG}", bundle)
    for change in (_debian, _services, _changes):
        change(root)
        last = change is _changes
        _run("umoci", "repack", *(() if last else ("--refresh-bundle",)), "--image", f"{layout}:{TAG}", bundle)
    wishes = [f"--config.{name}={value}" for name, values in CONFIG.items() for value in values]
    _run("umoci", "config", "--image", f"{layout}:{TAG}", *wishes)
    _run("umoci", "gc", "--layout", layout)
    _run("chmod", "--recursive", "a+rX,go-w", layout)
    return layout


def _debian(root: Path) -> None:
    # In a mount namespace of its own: what it mounts goes with it, whatever happens.
    _run("unshare", "--mount", "debootstrap", "--variant=minbase", RELEASE, root, _mirror())
    shutil.rmtree(root / "usr" / "share" / "locale")
    for archive in (root / "var" / "cache" / "apt" / "archives").glob("*.deb"):
        archive.unlink()


def _services(root: Path) -> None:
    policy = root / "usr" / "sbin" / "policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")  # nothing is started in there
    policy.chmod(0o755)
    install = "mount -t proc proc /proc; DEBIAN_FRONTEND=noninteractive exec apt-get install -qq"
    packages = "--no-install-recommends nginx-light redis-server libcap2-bin"
    _run("unshare", "--mount", "chroot", root, "/bin/sh", "-c", f"{install} {packages}")
    _run("chroot", root, "apt-get", "clean")
    (root / "etc" / "nginx" / "rik.conf").write_text(NGINX.format(user="", port=8080))
    (root / "etc" / "nginx" / "root.conf").write_text(NGINX.format(user="user www-data;", port=80))
    (root / "etc" / "redis" / "rik.conf").write_text(REDIS)
    (root / "etc" / "redis" / "rik.conf").chmod(0o644)
    html = root / "var" / "www" / "html"
    (html / "index.html").write_text("to be changed\n")
    (html / "private.html").write_text(PRIVATE_PAGE)
    (html / "private.html").chmod(0o400)
    os.chown(html / "private.html", 33, 33)
    os.setxattr(root / "usr" / "sbin" / "nologin", "security.capability", NET_RAW)
    os.setxattr(html / "private.html", "user.note", b"\xff\x00binary")


def _changes(root: Path) -> None:
    for gone in ("usr/share/doc", "usr/share/man", "var/lib/apt/lists", "usr/share/lintian"):
        shutil.rmtree(root / gone)
    for gone in ("usr/sbin/policy-rc.d", "usr/bin/perl", "var/www/html/index.nginx-debian.html"):
        (root / gone).unlink()  # perl has a second name, which stays
    (root / "usr" / "share" / "doc").symlink_to("../../srv")
    (root / "var" / "www" / "html" / "index.html").write_text(PAGE)
    (root / "etc" / "motd").write_text("changed\n")
    (root / "srv").chmod(0o1777)
    os.link(root / "etc" / "motd", root / "srv" / "motd")
    with open(root / "srv" / "sparse", "wb") as sparse:
        sparse.truncate(16 << 20)


def _mirror() -> str:
    """The one that this machine's own packages come from, where that is one of the release."""
    asked = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", f"Codename: {RELEASE}"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
    return answer[0] if answer else DEFAULT_MIRROR


def _run(*command: object) -> None:
    """Raises Unavailable with the command's last words."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=BUILD_LIMIT_S
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"`{' '.join(words)}` took more than {BUILD_LIMIT_S:.0f} s") from error
    if done.returncode != 0:
        last = done.stdout.decode(errors="replace").strip().splitlines()[-15:]
        raise Unavailable("\n".join([f"`{' '.join(words)}` ended with {done.returncode}:", *last]))


if __name__ == "__main__":
    try:
        print(image())
    except Unavailable as unavailable:
        sys.exit(f"error: {unavailable}")
