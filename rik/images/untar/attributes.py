"""Owners, modes, times and extended attributes of what a layer brings: kept where this host allows, else counted.
Standard library only."""

from __future__ import annotations

import errno
import os

from rik.images.untar.merged import OPAQUE_NAMES
from rik.images.untar.tarstream import BadTar, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    import tarfile
    from collections.abc import Callable

# What setxattr says when a file system, a namespace or an attribute's size is the matter (ext4: ENOSPC when it is too
# large).
UNSUPPORTED = (
    errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EINVAL, errno.E2BIG, errno.ERANGE, errno.ENOSPC
)  # fmt: skip
_NOT_OURS_TO_GIVE = (errno.EINVAL, errno.EPERM)
_XATTR = "SCHILY.xattr."  # how PAX headers carry them (star, GNU tar, Go)
_MAX_ID = 2**32 - 2
_MAX_TIME_NS = (1 << 62) - 1


class Attributes:
    """`drop(kind)` is called for everything that cannot be kept: "owners" or "xattrs"."""

    def __init__(self, drop: Callable[[str], None]) -> None:
        self._drop = drop

    def apply(self, path: str, member: tarfile.TarInfo) -> None:
        """Owner, then mode, then extended attributes: a change of owner would clear set-uid bits and capabilities."""
        if not (0 <= member.uid <= _MAX_ID and 0 <= member.gid <= _MAX_ID):
            raise BadTar(f"{shown(member.name)} has the owner {member.uid}:{member.gid}")
        self.own(path, member.uid, member.gid)
        if not member.issym():
            os.chmod(path, member.mode & 0o7777)
        for key, value in member.pax_headers.items():
            if key.startswith(_XATTR):
                self._set_xattr(path, key[len(_XATTR) :], value.encode("utf-8", "surrogateescape"))

    def own(self, path: str, uid: int, gid: int) -> None:
        """Gives the file its owners; one that does not exist in this user namespace is left as it is, and counted."""
        try:
            os.chown(path, uid, gid, follow_symlinks=False)
            return
        except OSError as error:
            if error.errno not in _NOT_OURS_TO_GIVE:
                raise
        self._drop("owners")
        for part in ((uid, -1), (-1, gid)):
            try:
                os.chown(path, *part, follow_symlinks=False)
            except OSError as error:
                if error.errno not in _NOT_OURS_TO_GIVE:
                    raise

    def copy_xattrs(self, source: int, path: str) -> None:
        """Gives `path` the attributes of the open file `source`, but for overlayfs's own."""
        try:
            names = os.listxattr(source)
        except OSError:  # a file system without them
            return
        for name in names:
            if name not in OPAQUE_NAMES:
                self._set_xattr(path, name, os.getxattr(source, name))

    def _set_xattr(self, path: str, name: str, value: bytes) -> None:
        # An image must not write overlayfs's own attributes (redirects!), nor labels that belong to the host's policy.
        of_overlay = name.startswith(("trusted.overlay.", "user.overlay."))
        of_policy = name.startswith("security.") and name != "security.capability"
        if not of_overlay and not of_policy:
            try:
                os.setxattr(path, name, value, follow_symlinks=False)
                return
            except ValueError:
                raise BadTar(f"an extended attribute is called {shown(name)}") from None
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
        self._drop("xattrs")


def time_of(member: tarfile.TarInfo) -> int:
    """Modification time in ns; PAX gives it as a decimal number, which a float would round."""
    whole, _, fraction = member.pax_headers.get("mtime", "").partition(".")
    try:
        nanoseconds = int((fraction + "000000000")[:9])
        value = int(whole) * 1_000_000_000 + (-nanoseconds if whole.startswith("-") else nanoseconds)
    except ValueError:
        try:
            value = int(member.mtime) * 1_000_000_000
        except (ValueError, OverflowError):  # not a number, or without end
            value = 0
    return max(-_MAX_TIME_NS, min(_MAX_TIME_NS, value))
