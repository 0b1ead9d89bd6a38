"""Which ids pods get: the best map that works, never the host's root, and a reason when there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from rik.linux.idmap import ROOT_RANGE, SINGLE, SUBORDINATE, IdMap, candidates, detect, single


@pytest.mark.require("user-namespaces", reason="one is made")
def test_detect() -> None:
    """What is detected has been tried; root gets a range of its own, an ordinary user at least one id."""
    found = detect()
    assert isinstance(found, IdMap)
    if os.geteuid() == 0:
        assert found.mode == ROOT_RANGE
        assert found.outside_uid(0) != 0
    else:
        assert found.mode in (SUBORDINATE, SINGLE)
        assert found.outside_uid(0) == os.geteuid()
        assert found.mode == SUBORDINATE or found.note


@pytest.mark.require("root", reason="an ordinary user's maps cannot hold the host's root")
def test_root_is_never_mapped() -> None:
    """No map that is tried for the host's root lets a pod have the host's root."""
    for idmap in candidates():
        for first, outside, count in (*idmap.uid_ranges, *idmap.gid_ranges):
            assert not first <= 0 < first + count or outside != 0


def test_ids_outside() -> None:
    """An id is found in the range that has it, and nowhere else."""
    idmap = IdMap(SUBORDINATE, ((0, 1001, 1), (1, 100_000, 65_535)), ((0, 1001, 1),))
    assert idmap.outside_uid(0) == 1001
    assert idmap.outside_uid(33) == 100_032
    assert idmap.outside_uid(65_536) is None
    assert idmap.outside_gid(33) is None


def test_survives_json() -> None:
    """A map is the same after a way through JSON."""
    for idmap in (single(), IdMap(ROOT_RANGE, ((0, 1_000_000, 65_536),), ((0, 1_000_000, 65_536),))):
        assert IdMap.from_json(json.loads(json.dumps(idmap.to_json()))) == idmap


_FORBIDDING = """
import os
from rik.linux import syscalls
from rik.linux.idmap import detect, single
ready, go = os.pipe(), os.pipe()
pid = os.getpid()
if os.fork() == 0:
    os.read(ready[0], 1)
    single().write(pid)
    os._exit(0)
mapped = single()
syscalls.unshare(syscalls.CLONE_NEWUSER)
os.write(ready[1], b"x")
os.wait()
with open("/proc/sys/user/max_user_namespaces", "w") as file:
    file.write("0")
found = detect()
print(found.reason, "/", found.next_step)
"""


@pytest.mark.require("user-namespaces", reason="they are forbidden in one, so that nobody else is disturbed")
def test_forbidden_is_explained() -> None:
    """Where user namespaces are forbidden the setting that forbids them is named, and what to do."""
    answer = subprocess.run([sys.executable, "-c", _FORBIDDING], capture_output=True, text=True, check=True).stdout
    assert answer.startswith("user namespaces are forbidden: /proc/sys/user/max_user_namespaces is 0 (unshare: ")
    assert answer.endswith("as root: echo 15000 > /proc/sys/user/max_user_namespaces\n")
