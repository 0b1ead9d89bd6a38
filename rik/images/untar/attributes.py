"""Owners, modes and extended attributes of what a layer brings: kept where this host allows, else counted.
Standard library only."""

from __future__ import annotations

import errno
import os
import stat

from rik.images.untar.merged import OPAQUE_NAMES
from rik.images.untar.tarstream import BadTar, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from rik.images.untar.members import Member

# What setxattr says when a file system, a namespace or an attribute's size is the matter (ext4: ENOSPC when it is too
# large).
UNSUPPORTED = (
    errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EINVAL, errno.E2BIG, errno.ERANGE, errno.ENOSPC
)  # fmt: skip
_NOT_OURS_TO_GIVE = (errno.EINVAL, errno.EPERM)
_SET_ID = stat.S_ISUID | stat.S_ISGID
_MAX_ID = 2**32 - 2


class Attributes:
    """`drop(kind)` is called for everything that cannot be kept: "owners" or "xattrs"."""

    def __init__(self, drop: Callable[[str], None]) -> None:
        self._drop = drop

    def apply(self, file: int | str, member: Member) -> None:
        """Owner, then mode, then extended attributes: a change of owner would clear set-uid bits and capabilities.

        `file` is open, or the path of what may be a symbolic link. It is asked first: most files are made as they
        should be, and a look is cheaper than a change, which goes into the file system's journal.
        """
        uid, gid = member.uid, member.gid
        if not (0 <= uid <= _MAX_ID and 0 <= gid <= _MAX_ID):
            raise BadTar(f"{shown(member.name)} has the owner {uid}:{gid}")
        status = os.fstat(file) if isinstance(file, int) else os.lstat(file)
        mode = member.mode & 0o7777
        if (status.st_uid != uid or status.st_gid != gid) and not self.own(file, uid, gid):
            mode &= ~_SET_ID  # it would give the rights of somebody else than the image says
        if (status.st_mode & 0o7777) != mode and not stat.S_ISLNK(status.st_mode):
            os.chmod(file, mode)
        for name, value in member.xattrs:
            self._set_xattr(file, name, value)

    def own(self, file: int | str, uid: int, gid: int) -> bool:
        """Gives the file its owners; one that does not exist in this user namespace is left as it is, counted, and
        answered with False."""
        follow = isinstance(file, int)
        try:
            os.chown(file, uid, gid, follow_symlinks=follow)
            return True
        except OSError as error:
            if error.errno not in _NOT_OURS_TO_GIVE:
                raise
        self._drop("owners")
        for part in ((uid, -1), (-1, gid)):
            try:
                os.chown(file, *part, follow_symlinks=follow)
            except OSError as error:
                if error.errno not in _NOT_OURS_TO_GIVE:
                    raise
        return False

    def copy_xattrs(self, source: int, path: str) -> None:
        """Gives `path` the attributes of the open file `source`, but for overlayfs's own."""
        try:
            names = os.listxattr(source)
        except OSError:  # a file system without them
            return
        for name in names:
            if name not in OPAQUE_NAMES:
                self._set_xattr(path, name, os.getxattr(source, name))

    def _set_xattr(self, file: int | str, name: str, value: bytes) -> None:
        # An image must not write overlayfs's own attributes (redirects!), nor labels that belong to the host's policy.
        of_overlay = name.startswith(("trusted.overlay.", "user.overlay."))
        of_policy = name.startswith("security.") and name != "security.capability"
        if not of_overlay and not of_policy:
            try:
                os.setxattr(file, name, value, follow_symlinks=isinstance(file, int))
                return
            except ValueError:
                raise BadTar(f"an extended attribute is called {shown(name)}") from None
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
        self._drop("xattrs")
