"""Real software from a real registry: Debian's nginx and redis, pushed by skopeo, pulled by RIK, run as pods."""

from __future__ import annotations

import base64
import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio

from tests.debian_image import PAGE, PRIVATE_PAGE, TAG
from tests.e2e.server import Client, Server, pod, serving
from tests.images.build import file, folder, layout, tar
from tests.registry import PASSWORD, USER, Registry, running_registry, slow_way

pytestmark = [
    pytest.mark.require("user-namespaces", reason="pods are made of them"),
    pytest.mark.require("subordinate-ids", reason="programs of an image have users of their own"),
    pytest.mark.require("docker-registry", reason="images are pulled from it"),
    pytest.mark.require("skopeo", reason="images are pushed by it"),
    pytest.mark.slow,
]

LIMIT_S = 120.0
ANSWER_S = 20.0
CROWD = 20
SLOW_BYTES_PER_S = 25e6
# Each server's processes, and whom they belong to in the words of the image.
WHO_RUNS = """
for process in /proc/[0-9]*; do
    read -r name < $process/comm
    uid=$(sed -n 's/^Uid:[[:space:]]*\\([0-9]*\\).*/\\1/p' $process/status)
    echo "$name $(getent passwd $uid | cut -d: -f1)"
done | grep -E '^(nginx|redis-server) ' | sort -u
"""


@pytest.fixture(scope="module")
def debian(registry: Registry, debian_image: Path) -> tuple[str, str]:
    """The image's reference by tag, and by digest."""
    digest = registry.push(f"oci:{debian_image}:{TAG}", "debian:v1")
    return f"{registry.host}/debian:v1", f"{registry.host}/debian@{digest}"


def layer_sizes(layout: Path) -> dict[str, int]:
    """The compressed size of each layer of the layout's only image, by digest."""
    blobs = layout / "blobs"
    index = msgspec.json.decode((layout / "index.json").read_bytes())
    manifest = msgspec.json.decode((blobs / index["manifests"][0]["digest"].replace(":", "/")).read_bytes())
    return {layer["digest"]: layer["size"] for layer in manifest["layers"]}


def site(name: str, image: str) -> dict[str, Any]:
    """nginx as the image wants it, nginx with a master of root's, and redis as its user in the image."""
    as_root = ["/usr/sbin/nginx", "-e", "stderr", "-c", "/etc/nginx/root.conf"]
    return pod(
        name,
        {"name": "web", "image": image, "ports": {"targetPort": 8080}},
        {"name": "root", "image": image, "user": "root", "command": as_root, "ports": {"targetPort": 80}},
        {
            "name": "redis",
            "image": image,
            "user": "redis",
            "command": ["redis-server", "/etc/redis/rik.conf"],
            "ports": {"targetPort": 6379},
        },
        stopGraceSeconds=5,
    )


async def running(client: Client, document: dict[str, Any]) -> dict[str, Any]:
    """The record of the one instance of a new workload, Running."""
    await client.post("workloads.create", document)
    [name] = await client.post("instances.create", {"workload_id": document["name"]})
    record = await client.until(name, "Running", "Failed", limit_s=LIMIT_S)
    assert record["status"] == "Running", json.dumps(record)
    return record


def published(record: dict[str, Any]) -> dict[int, int]:
    """The node's port for each of the pod's."""
    return {port["targetPort"]: port["port"] for port in record["ports"]}


async def page(port: int, path: str = "/") -> str:
    """What a web server answers with 200, once it listens."""
    async with httpx.AsyncClient(trust_env=False) as http:
        with trio.fail_after(ANSWER_S):
            while True:
                try:
                    answer = await http.get(f"http://127.0.0.1:{port}{path}")
                except httpx.TransportError:
                    await trio.sleep(0.05)
                    continue
                assert answer.status_code == 200, answer.text
                return answer.text


async def ping(port: int) -> bytes:
    """What redis answers, once it listens."""
    with trio.fail_after(ANSWER_S):
        while True:
            try:
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    await stream.send_all(b"PING\r\n")
                    if answer := await stream.receive_some(100):
                        return bytes(answer)
            except (OSError, trio.BrokenResourceError):
                pass
            await trio.sleep(0.05)


async def inside(server: Server, instance: str, container: str, script: str) -> list[str]:
    """The lines that a shell in a container prints."""
    command = [sys.executable, "-m", "rik", "--server", server.url, "exec", instance, "-c", container]
    done = await trio.run_process([*command, "--", "sh", "-c", script], stdin=b"", capture_stdout=True)
    return done.stdout.decode().splitlines()


async def test_debian_from_a_registry(
    tmp_path: Path, data_dir: Path, registry: Registry, debian: tuple[str, str], debian_image: Path
) -> None:
    """nginx and redis answer through published ports, as the users, in the directory and with the environment and the
    stop signal that the image names; the record says what was pulled; the second start pulls nothing.
    """
    tagged, by_digest = debian
    layers = layer_sizes(debian_image)
    async with (
        serving(data_dir, "--publish-address", "127.0.0.1", env={"HOME": str(tmp_path)}) as server,
        Client(server.url) as client,
    ):
        record = await running(client, site("site", tagged))
        ports = published(record)
        assert await page(ports[8080]) == PAGE
        assert await page(ports[8080], "/private.html") == PRIVATE_PAGE
        assert await page(ports[80], "/private.html") == PRIVATE_PAGE, "the workers of root's master are www-data"
        assert await ping(ports[6379]) == b"+PONG\r\n"
        name = record["name"]
        told = await inside(server, name, "web", "id -un; pwd; echo $GREETING")
        assert told == ["www-data", "/var/www/html", "from the image"]
        users = {container: await inside(server, name, container, WHO_RUNS) for container in ("web", "root", "redis")}
        assert users == {
            "web": ["nginx www-data"],
            "root": ["nginx root", "nginx www-data"],
            "redis": ["redis-server redis"],
        }

        [used] = record["images"]
        assert used["reference"] == tagged and used["digest"] == by_digest.partition("@")[2]
        assert registry.host in used["origin"]
        assert sorted(used["containers"]) == ["redis", "root", "web"]
        assert (used["cached"], used["layers"], used["pulled_layers"]) == (False, len(layers), len(layers))
        assert sum(layers.values()) <= used["pulled_bytes"] <= sum(layers.values()) + 100_000
        assert used["size_bytes"] > used["pulled_bytes"] and 0 < used["seconds"] < LIMIT_S
        assert used["exposed_ports"] == ["6379/tcp", "8080/tcp"]
        assert os.geteuid() != 0 or used["dropped"] == {}

        for number, reference in enumerate((tagged, by_digest)):
            again = await running(client, site(f"again-{number}", reference))
            assert await page(published(again)[8080]) == PAGE
            assert again["images"][0]["cached"] is True and again["images"][0]["digest"] == used["digest"]
        sent = registry.blobs_sent("debian")
        assert {digest: sent[digest] for digest in layers} == dict.fromkeys(layers, 1)

        await client.post("instances.delete", {"id": name})
        ended = await client.until(name, "Terminated", "Failed")
        assert {c["name"]: c["exit_code"] for c in ended["containers"] if c["name"] != "redis"} == {"web": 0, "root": 0}
        log = (await client.http.get(f"/api/v0/instances.logs/{name}", params={"container": "web"})).text
        assert "signal 3 (SIGQUIT) received" in log, "nginx ends in good order at the image's own stop signal"


async def test_a_crowd_pulls_once(tmp_path: Path, data_dir: Path, registry: Registry, debian_image: Path) -> None:
    """Twenty pods of one new image, created at once: each of its blobs is sent once, and every pod shows its pull."""
    registry.push(f"oci:{debian_image}:{TAG}", "crowd:v1")
    layers = layer_sizes(debian_image)
    seen: dict[str, list[dict[str, Any]]] = {}
    async with (
        slow_way(registry.port, SLOW_BYTES_PER_S) as way,
        serving(data_dir, env={"HOME": str(tmp_path)}) as server,
        Client(server.url, checked=False) as client,
    ):
        sleeper = {"name": "main", "image": f"{way.host}/crowd:v1", "command": ["sleep", "1000"]}
        await client.post("workloads.create", pod("crowd", sleeper, stopGraceSeconds=0))
        names = await client.post("instances.create", {"workload_id": "crowd", "replicas": CROWD})
        with trio.fail_after(LIMIT_S):
            statuses: Counter[str] = Counter()
            while statuses["Running"] < CROWD:
                listed = await client.get("instances.list")
                statuses = Counter(entry["value"]["status"] for entry in listed)
                assert not statuses["Failed"], listed
                for entry in listed:
                    seen.setdefault(entry["name"], []).append(entry["value"])
                await trio.sleep(0.1)
        records = [await client.get(f"instances.get/{name}") for name in names]
    sent = registry.blobs_sent("crowd")
    assert {digest: sent[digest] for digest in layers} == dict.fromkeys(layers, 1)
    assert set(sent.values()) == {1}, "the config, too"
    for name in names:
        pulling = [value["progress"] for value in seen[name] if value["step"] == "pull" and value["progress"]]
        assert pulling and pulling[-1]["total"] >= sum(layers.values()), name
        done = [progress["done"] for progress in pulling]
        assert done == sorted(done) and done[-1] > 0, name
        assert pulling[-1]["unit"] == "bytes" and pulling[-1]["layers"]["total"] == len(layers)
    assert {record["images"][0]["digest"] for record in records} == {records[0]["images"][0]["digest"]}


@pytest.mark.require("static-busybox", reason="the image's only program")
async def test_credentials_of_docker_login(tmp_path: Path, data_dir: Path) -> None:
    """A registry with a password: refused with a hint; run once `config.json` in the server's home has it, without a
    restart; and the password is nowhere to be read.
    """
    busybox = shutil.which("busybox")
    assert busybox is not None
    contents = tar(folder("bin"), file("bin/busybox", Path(busybox).read_bytes(), mode=0o755))
    small = layout(tmp_path / "layout", contents, tag="v1")
    home = tmp_path / "home"
    (home / ".docker").mkdir(parents=True)
    folder_of_registry = tmp_path / "registry"
    folder_of_registry.mkdir()
    with running_registry(folder_of_registry, has_password=True) as registry:
        registry.push(f"oci:{small}:v1", "team/private:v1")
        image = f"{registry.host}/team/private:v1"
        sleeper = {"name": "main", "image": image, "command": ["/bin/busybox", "sleep", "1000"]}
        async with serving(data_dir, env={"HOME": str(home)}) as server, Client(server.url) as client:
            await client.post("workloads.create", pod("private", sleeper, stopGraceSeconds=0))
            [refused] = await client.post("instances.create", {"workload_id": "private"})
            record = await client.until(refused, "Failed")
            assert record["reason"] == "ImageUnauthorized"
            assert image in record["message"]
            assert f"docker login {registry.host}" in json.dumps(record)

            encoded = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            config = home / ".docker" / "config.json"
            config.write_text(json.dumps({"auths": {registry.host: {"auth": encoded}}}))
            config.chmod(0o600)
            [accepted] = await client.post("instances.create", {"workload_id": "private"})
            record = await client.until(accepted, "Running", "Failed")
            assert record["status"] == "Running", json.dumps(record)
            told = [json.dumps(record), json.dumps(await client.get("events.list")), server.stderr()]
    for secret in (PASSWORD, encoded):
        assert not [text for text in told if secret in text]
        kept = ["grep", "--recursive", "--text", "--files-with-matches", "--", secret, str(data_dir)]
        assert (await trio.run_process(kept, capture_stdout=True, check=False)).stdout == b""
