"""The process runtime's verbs. What they do to the world, they do in steps after each of which a kill leaves something
that the next start recognises: a directory, cgroup, socket or process whose name carries the uid.

prepare: directory, logs, layers of images, cgroups, pod.json. start: socket, lock, supervisor; from then on the
supervisor does the rest, whether RIK lives or not. remove: supervisor, strays, cgroups, socket, directory.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from rik.environment import Environment
from rik.errors import InstanceFailure
from rik.images.errors import ImageNotFound
from rik.images.reference import HostReference, Reference, RegistryReference, familiar, parse_reference
from rik.images.store import Image, ImageStore
from rik.link.base import Stream
from rik.linux.cgroups import CONTROLLERS, Cgroups
from rik.linux.idmap import IdMap, Unavailable
from rik.messages import Attach, Exec, ReadLogs
from rik.model.instance import ImageUse, LogLine, Progress, Reason
from rik.model.node import Capability, HostResource
from rik.model.workload import ALWAYS, NEVER, POD
from rik.runtime import logfiles
from rik.runtime.base import ContainerStats, Observed, Pod, ReportProgress
from rik.runtime.process import demolition, inventory, launch, states, terminals, usage
from rik.runtime.process.channel import Gone, Refusal
from rik.runtime.process.layout import Layout, is_supervised
from rik.runtime.process.probe import PREFIX as PROBE_PREFIX
from rik.runtime.process.probe import try_for_real
from rik.runtime.process.spec import enforced, pod_spec
from rik.runtime.process.supervision import ANSWER_S, Supervision, is_begun, is_over, lock
from rik.settings import DESTROY_S

log = logging.getLogger(__name__)

# Between a supervisor's last word and its end there is no more than a write or two; on a full disk there is.
FAREWELL_S = 2.0
# What a supervisor tells of all of them must fit into one packet, with what went wrong with each.
MOST_CONTAINERS = 128
_ABSENT = Observed("absent")


class ProcessRuntime:
    """`idmap` is what `rik.linux.idmap.detect()` found. With `bind_to_process` pods die with this process, and leave
    nothing (the demo); otherwise they outlive it. `unsafe_plain` runs them without namespaces where there are none."""

    name = "process"

    def __init__(
        self,
        environment: Environment,
        layout: Layout,
        images: ImageStore,
        idmap: IdMap | Unavailable,
        *,
        unsafe_plain: bool = False,
        bind_to_process: bool = False,
    ) -> None:
        self.layout = layout
        self._environment = environment
        self._images = images
        self._idmap = idmap
        self._unsafe_plain = unsafe_plain
        self._bind_to_process = bind_to_process
        self._cgroups = Cgroups(layout.host_id, {}, {})
        self._death_fd = -1
        self._launcher = launch.Launcher()
        self._supervision = Supervision(layout)

    def open(self) -> AbstractAsyncContextManager[None]:
        return self._open()

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[None]:
        await trio.to_thread.run_sync(self.layout.make)
        self._cgroups = await trio.to_thread.run_sync(Cgroups.find, self.layout.host_id)
        read_end = write_end = -1
        if self._bind_to_process:
            read_end, write_end = os.pipe()  # its hang-up, when this process ends, is the end of all pods
            self._death_fd = read_end
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._launcher.run)
                yield
                nursery.cancel_scope.cancel()
        finally:
            self._death_fd = -1
            for fd in (read_end, write_end):
                if fd >= 0:
                    os.close(fd)
            await trio.to_thread.run_sync(self._close_directories)

    def _close_directories(self) -> None:
        self._cgroups.close()
        self.layout.close()

    async def probe(self) -> Capability:
        limits: dict[str, bool | str] = {name: self._cgroups.reasons.get(name, True) for name in CONTROLLERS}
        if isinstance(self._idmap, Unavailable) and not self._unsafe_plain:
            limits["network"] = self._idmap.reason
            return Capability(self.name, False, f"{self._idmap.reason} ({self._idmap.next_step})", (POD,), limits)
        problem = await try_for_real(self, self.layout.forget_logs)
        if problem and self._unsafe_plain and isinstance(self._idmap, IdMap):
            # There are user namespaces, but what a pod needs beside them is forbidden (a masked /proc, say).
            self._idmap = Unavailable(problem, "")
            problem = await try_for_real(self, self.layout.forget_logs)
        limits["network"] = True if isinstance(self._idmap, IdMap) else "pods run plainly, in the host's network"
        if problem:
            return Capability(self.name, False, problem, (POD,), limits)
        return Capability(self.name, True, self._how(), (POD,), limits)

    def _how(self) -> str:
        if isinstance(self._idmap, Unavailable):
            return f"plainly, without namespaces (--unsafe-plain): {self._idmap.reason}"
        return f"user namespaces ({self._idmap.mode})" + (f"; {self._idmap.note}" if self._idmap.note else "")

    # --- life ---------------------------------------------------------------------------------------------------------

    async def prepare(self, pod: Pod, report: ReportProgress) -> tuple[ImageUse, ...]:
        uid, step = pod.uid, self._environment.step
        if is_supervised(self.layout.pod(uid)) is not None:
            return ()  # it was started already, and its images are known
        if len(pod.spec.containers) > MOST_CONTAINERS:
            message = f"it has {len(pod.spec.containers)} containers, and a pod can have {MOST_CONTAINERS} here"
            raise InstanceFailure(Reason.CREATE_FAILED, message, next_step="divide it into several pods")
        if isinstance(self._idmap, Unavailable) and not self._unsafe_plain:
            raise InstanceFailure(Reason.CREATE_FAILED, self._idmap.reason, next_step=self._idmap.next_step)
        idmap = self._idmap if isinstance(self._idmap, IdMap) else None
        try:
            await trio.to_thread.run_sync(self._make_directories, uid)
            step("process.prepare.directory")
            images = await self._ensure_images(pod, report, plain=idmap is None)
            step("process.prepare.images")
            await trio.to_thread.run_sync(self._write_down, pod, images, idmap)
            step("process.prepare.spec")
            return _uses(images)
        except OSError as error:
            raise _create_failed(error) from error

    async def start(self, pod: Pod) -> Observed:
        uid, directory = pod.uid, self.layout.pod(pod.uid)
        try:
            lock_fd = await lock(directory)
        except FileNotFoundError:
            raise InstanceFailure(Reason.CREATE_FAILED, "it was not prepared") from None
        if lock_fd is not None:
            if states.supervisor(directory) is None and states.final_record(directory) is None:
                await self._launch(uid, directory, lock_fd)
            else:
                os.close(lock_fd)
        self._environment.step("process.start.launched")
        state = await self._supervision.follow(uid, is_begun)
        failure = states.start_failure(state) if state is not None else states.lost(directory).failure
        if state is not None and failure is not None and state["phase"] != "ended":
            state = await self._supervision.follow(uid, is_over)
        if state is None:
            await self._clear_away(uid)
        if failure is not None:
            raise InstanceFailure(failure.reason, failure.message, container=failure.container)
        assert state is not None, "a supervisor that is lost is a failure"
        return self._observed(uid, state)

    async def observe(self, uid: str) -> Observed:
        directory = self.layout.pod(uid)
        state = await self._supervision.present_state(uid)
        if state is not None:
            return self._observed(uid, state)
        state = states.final_record(directory)
        if state is not None:
            return self._observed(uid, state)
        if states.supervisor(directory) is None:
            return _ABSENT  # nothing of it was ever executed
        await self._clear_away(uid)
        return states.lost(directory)

    async def wait(self, uid: str, changed: Callable[[Observed], None]) -> Observed:
        last: Observed | None = None

        def tell(state: dict[str, Any]) -> None:
            nonlocal last
            observed = self._observed(uid, state)
            news = observed.phase == "failing" if last is None else observed != last
            if news and observed.phase != "ended":
                changed(observed)
            last = observed

        state = await self._supervision.follow(uid, is_over, tell)
        with trio.move_on_after(FAREWELL_S):
            await self._supervision.until_unsupervised(uid)
        return self._observed(uid, state) if state is not None else await self.observe(uid)

    async def stop(self, uid: str, grace_s: float) -> None:
        directory = self.layout.pod(uid)
        if not is_supervised(directory):
            await self._clear_away(uid)
            return
        with trio.move_on_after(grace_s + DESTROY_S):
            try:
                async with self._supervision.ask(uid, "stop", grace_s=grace_s) as channel:
                    with trio.move_on_after(ANSWER_S):
                        await channel.message()
                await self._supervision.follow(uid, is_over)
                with trio.move_on_after(FAREWELL_S):
                    await self._supervision.until_unsupervised(uid)
            except (Gone, Refusal, InstanceFailure):  # nobody who can be asked
                pass
            await self._clear_away(uid)
            return
        raise InstanceFailure(Reason.DESTROY_FAILED, await self._survivors(uid, grace_s))

    async def remove(self, uid: str) -> None:
        step = self._environment.step
        if not os.path.lexists(self.layout.pod(uid)) and not self._cgroups.directories(uid):
            self.layout.socket(uid).unlink(missing_ok=True)
            await self._images.release(uid)
            self._supervision.forget(uid)
            return
        await self._clear_away(uid)
        step("process.remove.processes")
        await demolition.remove_cgroups(uid, self._cgroups)
        step("process.remove.cgroups")
        await demolition.remove_files(self.layout, uid, self._images)
        await self._images.release(uid)
        self._supervision.forget(uid)
        step("process.remove.files")

    # --- looking in ---------------------------------------------------------------------------------------------------

    def logs(self, query: ReadLogs) -> AsyncGenerator[list[LogLine], None]:
        directory = self.layout.pod(query.uid)

        def ended() -> bool:
            return not is_supervised(directory)

        return logfiles.read_logs(self.layout.log_directory(query.uid), query, ended)

    async def exec(self, request: Exec, stream: Stream) -> None:
        try:
            async with self._supervision.ask(request.uid, "exec", **terminals.exec_request(request)) as channel:
                await terminals.serve_exec(channel, request, stream)
        except Gone:
            raise InstanceFailure(Reason.CREATE_FAILED, "the instance is not running") from None

    async def attach(self, request: Attach, stream: Stream) -> None:
        try:
            async with self._supervision.ask(request.uid, "attach", container=request.container) as channel:
                await terminals.serve_attach(channel, stream)
        except Gone:
            raise InstanceFailure(Reason.CREATE_FAILED, "the instance is not running") from None

    async def stats(self, uid: str) -> list[ContainerStats]:
        state = await self._supervision.present_state(uid)
        spec = states.read_json(self.layout.pod(uid) / "pod.json")
        if state is None or spec is None:
            return []
        own_network = spec["mode"] != "plain" and not spec["host_network"]
        pids = {item["name"]: int(item["pid"]) for item in state["containers"] if item["state"] == "running"}
        return await trio.to_thread.run_sync(
            lambda: usage.container_stats(uid, pids, self._cgroups, own_network=own_network)
        )

    async def connect(self, uid: str, port: int) -> trio.SocketStream:
        problem: OSError | None = None
        for family, address in ((4, "127.0.0.1"), (6, "::1")):
            sock = await self._supervision.entrance(uid, "tcp", family)
            try:
                await sock.connect((address, port))
            except OSError as error:
                sock.close()
                problem = problem or error
            except BaseException:
                sock.close()
                raise
            else:
                return trio.SocketStream(sock)
        assert problem is not None
        raise problem

    async def datagrams(self, uid: str, port: int) -> trio.socket.SocketType:
        sock = await self._supervision.entrance(uid, "udp", 4)
        try:
            await sock.connect(("127.0.0.1", port))
        except BaseException:
            sock.close()
            raise
        return sock

    async def inventory(self) -> list[HostResource]:
        found = await trio.to_thread.run_sync(inventory.look, self.layout, self._cgroups)
        return [*found, *await self._images.inventory()]

    async def sweep(self, owned: frozenset[str]) -> list[HostResource]:
        strangers = [item for item in await self.inventory() if item.owner not in owned and item.owner != "rik"]
        await trio.to_thread.run_sync(demolition.unmount_all, strangers)
        for uid in {item.owner for item in strangers if item.owner}:
            await demolition.kill_supervisor(self.layout, uid)
            if any(item.owner == uid and item.kind in (inventory.PROCESS, inventory.CGROUP) for item in strangers):
                await demolition.kill_strays(self.layout, uid, self._cgroups)
            if uid.startswith(PROBE_PREFIX):
                await trio.to_thread.run_sync(self.layout.forget_logs, uid)
            await self.remove(uid)
        await self._images.sweep(owned)
        return strangers

    # --- the supervisor -----------------------------------------------------------------------------------------------

    def _make_directories(self, uid: str) -> None:
        pod = self.layout.pod(uid)
        for path in (pod, pod / "status", pod / "box", self.layout.log_directory(uid)):
            path.mkdir(mode=0o700, exist_ok=True)

    def _write_down(self, pod: Pod, images: dict[str, Image], idmap: IdMap | None) -> None:
        wanted, names = pod.spec.resources, [container.name for container in pod.spec.containers]
        pids = wanted.pids + len(names) if wanted.pids else 0  # each container has a first process that is RIK's
        unlimited = self._cgroups.create(pod.uid, names, wanted.cpu_millis, wanted.memory_bytes, pids)
        self._environment.step("process.prepare.cgroups")
        found = pod_spec(pod, self.layout, images, self._cgroups, idmap, enforced(pod, unlimited, idmap))
        _write_spec(self.layout.pod(pod.uid), found)

    async def _ensure_images(self, pod: Pod, report: ReportProgress, *, plain: bool) -> dict[str, Image]:
        images: dict[str, Image] = {}
        for container in pod.spec.containers:
            reference = parse_reference(container.image)
            if isinstance(reference, HostReference):
                continue
            if plain:
                message = f"image {container.image} needs namespaces; without them only the image `host` runs"
                raise InstanceFailure(Reason.CREATE_FAILED, message, container=container.name)
            images[container.name] = await self._image(reference, container.image_pull_policy, report, pod.uid)
        report(Progress("disk"))
        return images

    async def _image(self, reference: Reference, policy: str, report: ReportProgress, uid: str) -> Image:
        """Files of this host are looked at whatever the policy: nothing of them is pulled."""
        if policy == NEVER and isinstance(reference, RegistryReference):
            found = await self._images.find(reference, holder=uid)
            if found is None:
                message = f"{familiar(reference)} is not on this node, and imagePullPolicy is Never"
                raise ImageNotFound(message, next_step=f"`rik image pull {familiar(reference)}` brings it here")
            return found
        return await self._images.ensure(reference, report, holder=uid, refresh=policy == ALWAYS)

    async def _launch(self, uid: str, directory: Path, lock_fd: int) -> None:
        """Makes the supervisor; takes over the lock."""
        try:
            self._environment.step("process.start.locked")
            listener: socket.socket = await trio.to_thread.run_sync(launch.listen, self.layout.socket(uid))
            with listener:
                self._environment.step("process.start.listening")
                try:
                    await self._launcher.fork(directory, lock_fd, listener.fileno(), self._death_fd)
                except launch.ZygoteGone as error:
                    log.debug("pod %s is started without the zygote: %s", uid, error)
                    # If the zygote has made the supervisor all the same, that one alone holds the lock now.
                    os.close(lock_fd)
                    lock_fd = -1
                    again = await lock(directory)
                    if again is not None:
                        lock_fd = again
                        await self._launcher.spawn(directory, lock_fd, listener.fileno(), self._death_fd)
        except OSError as error:
            raise _create_failed(error) from error
        finally:
            if lock_fd >= 0:
                os.close(lock_fd)

    async def _clear_away(self, uid: str) -> None:
        """Nothing of it runs afterwards. All processes are walked over, for strays, only where there may be some."""
        await demolition.kill_supervisor(self.layout, uid)
        directory = self.layout.pod(uid)
        if states.supervisor(directory) is not None and states.final_record(directory) is None:
            await demolition.kill_strays(self.layout, uid, self._cgroups)

    async def _survivors(self, uid: str, grace_s: float) -> str:
        found = await trio.to_thread.run_sync(demolition.own_processes, self.layout, uid)
        named = ", ".join(str(pid) for pid in sorted(found)[:10])
        return f"processes {named} are still there {grace_s + DESTROY_S:g} s after the stop signal, in spite of SIGKILL"

    def _observed(self, uid: str, state: dict[str, Any]) -> Observed:
        spec = states.read_json(self.layout.pod(uid) / "pod.json") if state["failure"] is not None else None
        return states.observed(state, int(spec["memory_bytes"]) if spec is not None else 0)


def _create_failed(error: OSError) -> InstanceFailure:
    """This host's fault: a full disk, say."""
    return InstanceFailure(Reason.CREATE_FAILED, f"{error.filename or 'the pod'}: {error.strerror or error}")


def _uses(images: dict[str, Image]) -> tuple[ImageUse, ...]:
    """Each image once, with the containers that run it."""
    users: dict[str, list[str]] = {}
    for name, image in images.items():
        users.setdefault(image.reference, []).append(name)
    first = {image.reference: image for image in reversed(images.values())}
    return tuple(first[reference].use(*names) for reference, names in users.items())


def _write_spec(directory: Path, spec: dict[str, Any]) -> None:
    temporary = directory / "pod.json.new"
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
        json.dump(spec, file)
    temporary.replace(directory / "pod.json")
