"""Programs that keep credentials: `docker-credential-NAME get`, the server's name on standard input.

Protocol: github.com/docker/docker-credential-helpers. On success standard output is JSON with Username and Secret.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping

import msgspec
import trio

# A helper may ask a cloud's server for a token; nobody may be asked for a password here.
HELPER_DEADLINE_S = 10.0
MAX_ANSWER_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
_NOT_FOUND = "credentials not found"


class HelperFailed(Exception):
    """The program is not there, says no, or says nothing sensible; the text says which, and holds no secret."""


class _Answer(msgspec.Struct):
    username: str = msgspec.field(default="", name="Username")
    secret: str = msgspec.field(default="", name="Secret")


async def ask_helper(name: object, server: str, environment: Mapping[str, str]) -> tuple[str, str] | None:
    """User name and secret; None when the helper has none for `server`. Raises HelperFailed. The program and its
    children are dead when this returns or is cancelled."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise HelperFailed("it names a credential helper whose name is no name")
    program = f"docker-credential-{name}"
    path = shutil.which(program, path=environment.get("PATH", os.defpath))
    if path is None:
        raise HelperFailed(f"the program {program} is not in $PATH")
    own = {key: value for key, value in environment.items() if not key.startswith("RIK_")}
    try:
        process = await trio.lowlevel.open_process(
            [path, "get"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=own,
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise HelperFailed(f"{program} cannot be run: {error.strerror}") from None
    output = b""
    try:
        with trio.move_on_after(HELPER_DEADLINE_S) as scope:
            output = await _converse(process, server)
            if len(output) <= MAX_ANSWER_BYTES:
                await process.wait()
    finally:
        # Its whole session, also when it has ended: it may have left something running.
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        with trio.CancelScope(shield=True):
            await process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    await stream.aclose()
    if scope.cancelled_caught:
        raise HelperFailed(f"{program} did not answer within {HELPER_DEADLINE_S:g} s")
    return _read(output, process.returncode, program)


async def _converse(process: trio.Process, server: str) -> bytes:
    assert process.stdin is not None and process.stdout is not None
    output = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_tell, process.stdin, server)
        async for piece in process.stdout:
            output += piece
            if len(output) > MAX_ANSWER_BYTES:
                break
        nursery.cancel_scope.cancel()
    return bytes(output)


async def _tell(stream: trio.abc.SendStream, server: str) -> None:
    try:
        await stream.send_all(server.encode())
        await stream.aclose()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # it does not listen; its answer will say what it makes of that


def _read(output: bytes, code: int | None, program: str) -> tuple[str, str] | None:
    if len(output) > MAX_ANSWER_BYTES:
        raise HelperFailed(f"{program} answered with more than {MAX_ANSWER_BYTES:,} bytes")
    if code != 0:
        said = " ".join(output.decode(errors="replace").split())
        if said.startswith(_NOT_FOUND):
            return None
        if "{" in said:
            said = ""  # a secret, perhaps
        raise HelperFailed(f"{program} failed with exit code {code}" + (f": {said[:200]}" if said else ""))
    try:
        answer = msgspec.json.decode(output, type=_Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise HelperFailed(f"{program} answered with something else than a name and a secret") from None
    return (answer.username, answer.secret) if answer.secret else None
