"""Whether pods can be run on this host, found by running one."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import trio

from rik.errors import InstanceFailure
from rik.messages import Assignment
from rik.runtime.base import Pod, Runtime

PREFIX = "probe-"
DEADLINE_S = 20.0


async def try_for_real(runtime: Runtime, forget_logs: Callable[[str], None]) -> str:
    """Runs `true` on the image `host`; returns "" when that went well, else what went wrong.

    Leaves nothing: `forget_logs(uid)`, called in a thread, removes what outlives an instance.
    """
    spec = {"containers": [{"name": "probe", "image": "host", "command": ["true"]}]}
    uid = PREFIX + secrets.token_hex(5)
    pod = Pod.of(Assignment(uid, "probe", "", "", "Pod", spec, 0, ""))
    problem = f"a pod that only runs `true` did not end within {DEADLINE_S:g} s"
    try:
        with trio.move_on_after(DEADLINE_S):
            await runtime.prepare(pod, lambda progress: None)
            await runtime.start(pod)
            observed = await runtime.wait(uid, lambda observed: None)
            problem = observed.failure.message if observed.failure is not None else ""
    except InstanceFailure as failure:
        problem = str(failure)
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(DEADLINE_S):
            try:
                # Its directory goes last: while it is there the sweep knows that there may be logs, too.
                await trio.to_thread.run_sync(forget_logs, uid)
                await runtime.remove(uid)
            except InstanceFailure as failure:
                problem = problem or str(failure)
    return problem
