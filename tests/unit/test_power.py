"""When the scheduler's machine starts and stops the workers' machines in Google Cloud, on a clock of the tests."""

import asyncio
import json
import os
import runpy
import socket
from pathlib import Path
from typing import Any

import pytest

from daskstack.engine import PROJECT

MODULE: dict[str, Any] = runpy.run_path(str(PROJECT / "on_the_cluster/power.py"))
KEEP, WAIT, AGAIN, CHANGE, NEW = (MODULE[name] for name in ("KEEP", "WAIT", "AGAIN", "CHANGE", "NEW"))
NAMES = ("worker-1", "worker-2", "worker-3")


class Google:
    """Instances that start and stop at once, and a list of the requests that change one."""

    def __init__(self) -> None:
        self.states = dict.fromkeys(NAMES, "RUNNING")
        self.asked: list[str] = []
        self.fails = ""

    def status(self, instance: str) -> str:
        if self.fails:
            raise OSError(self.fails)
        return self.states[instance.removeprefix("dask-x-")]

    def start(self, instance: str) -> None:
        self.asked.append(f"start {instance}")
        self.states[instance.removeprefix("dask-x-")] = "RUNNING"

    def stop(self, instance: str) -> None:
        self.asked.append(f"stop {instance}")
        self.states[instance.removeprefix("dask-x-")] = "TERMINATED"


class Room:
    def __init__(self, folder: Path, idle: int | None = None) -> None:
        self.folder, self.google, self.now = folder, Google(), 100_000.0
        for name in ("members", "bounds"):
            (folder / name).touch()
        machines = {name: {"instance": f"dask-x-{name}", "address": "127.0.0.1", "port": 0} for name in NAMES}
        settings = {"machines": machines, "idle": idle}
        self.power = MODULE["Power"](
            settings, self.google, folder, folder, folder / "stepped", lambda: self.now, lambda: self.now
        )

    def needs(self, machines: str, **others: Any) -> None:
        (self.folder / "elastic.json").write_text(json.dumps({"machines": machines} | others))

    def after(self, seconds: float) -> list[str]:
        """The requests once this time has passed and the service has looked at all machines."""
        self.now += seconds
        self.google.asked.clear()
        asyncio.run(self.power.look())
        return sorted(self.google.asked)

    def touch(self, name: str, seconds: float = 0) -> None:
        """Modifies a file this long ago."""
        (self.folder / name).touch()
        os.utime(self.folder / name, (self.now - seconds, self.now - seconds))


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def test_machines_that_the_cluster_does_not_need_stop_and_those_that_it_needs_start(room: Room) -> None:
    room.needs(" worker-1")
    assert room.after(KEEP - 1) == [], "a service that has just started does not know when they were used"
    assert room.after(1) == ["stop dask-x-worker-2", "stop dask-x-worker-3"]
    assert room.after(KEEP) == []
    room.needs(" worker-1 worker-3")
    assert room.after(1) == ["start dask-x-worker-3"]
    room.needs("")
    assert room.after(KEEP - 1) == []
    assert room.after(1) == ["stop dask-x-worker-1", "stop dask-x-worker-3"]


def test_a_preempted_machine_starts_again_and_one_without_capacity_is_asked_for_now_and_then(room: Room) -> None:
    room.needs(" worker-1 worker-2 worker-3")
    room.google.states["worker-2"] = "TERMINATED"
    assert room.after(1) == ["start dask-x-worker-2"]
    room.google.states["worker-2"] = "TERMINATED"
    assert room.after(AGAIN - 1) == []
    assert room.after(1) == ["start dask-x-worker-2"]


def test_a_machine_that_up_stops_for_a_change_or_starts_stays_so_for_a_while(room: Room) -> None:
    room.needs(" worker-1 worker-2")
    assert room.after(KEEP) == ["stop dask-x-worker-3"]
    room.google.states["worker-1"] = "TERMINATED"
    assert room.after(1) == []
    assert room.after(CHANGE - 1) == []
    assert room.after(1) == ["start dask-x-worker-1"]
    room.after(1)
    room.google.states["worker-3"] = "RUNNING"
    assert room.after(1) == []
    assert room.after(NEW - 1) == []
    assert room.after(1) == ["stop dask-x-worker-3"]


@pytest.mark.parametrize(
    "text",
    ["", "x", "[]", "null", "{}", '{"machines": null}', '{"machines": 7}', '{"machines": ["worker-1"]}', "[" * 9999],
)
def test_a_damaged_file_starts_and_stops_nothing(room: Room, text: str) -> None:
    (room.folder / "elastic.json").write_text(text)
    room.google.states["worker-1"] = "TERMINATED"
    assert room.after(9 * KEEP) == []


def test_a_link_a_pipe_or_endless_data_in_place_of_the_file_starts_and_stops_nothing(room: Room) -> None:
    file = room.folder / "elastic.json"
    room.needs("")
    file.rename(room.folder / "other")
    file.symlink_to(room.folder / "other")
    assert room.after(9 * KEEP) == []
    file.unlink()
    os.mkfifo(file)
    assert room.after(1) == []
    file.unlink()
    room.needs("", more="x" * MODULE["SIZE"])
    assert room.after(1) == []


def test_only_machines_of_the_stack_are_started(room: Room) -> None:
    room.google.states["worker-1"] = "TERMINATED"
    room.needs(" worker-1/../../neighbour neighbour scheduler dask-x-worker-1 worker-2 worker-3")
    assert room.after(1) == []


@pytest.mark.parametrize("name", ["members", "bounds", "elastic.json"])
def test_nothing_stops_before_up_has_completed_or_without_bounds(room: Room, name: str) -> None:
    room.needs("")
    (room.folder / name).unlink()
    assert room.after(9 * KEEP) == []


def test_nothing_stops_while_up_runs_steps(room: Room) -> None:
    room.needs("")
    room.now += 9 * KEEP
    room.touch("stepped")
    assert room.after(KEEP - 1) == []
    assert len(room.after(1)) == 3


async def test_a_machine_that_up_reaches_directly_is_started_and_has_no_port(room: Room) -> None:
    room.power.machines["worker-3"]["port"] = None
    await room.power.serve()
    assert len(room.power.servers) == 2
    for server in room.power.servers:
        server.close()
    room.needs(" worker-3")
    room.google.states["worker-3"] = "TERMINATED"
    await room.power.look()
    assert room.google.asked == ["start dask-x-worker-3"]


def test_an_idle_cluster_starts_no_machine_until_there_is_work(tmp_path: Path) -> None:
    room = Room(tmp_path, idle=600)
    room.needs(" worker-1 worker-2 worker-3")
    room.google.states["worker-1"] = "TERMINATED"
    room.touch("worked", 600)
    assert room.after(1) == []
    room.touch("worked")
    assert room.after(1) == ["start dask-x-worker-1"]
    # After the whole cluster was off, the last work was long ago.
    room.google.states["worker-1"] = "TERMINATED"
    room.touch("worked", 9999)
    room.power.uptime = lambda: 60
    assert room.after(AGAIN) == ["start dask-x-worker-1"]


def test_an_error_of_googles_api_is_reported_once_and_tried_again(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    room.needs(" worker-1 worker-2 worker-3")
    room.google.states["worker-1"] = "TERMINATED"
    room.google.fails = "403 Required permission"
    assert room.after(1) == room.after(1) == []
    assert len(caplog.messages) == len(NAMES) and "403 Required permission" in caplog.messages[0]
    room.google.fails = ""
    assert room.after(1) == []
    assert room.after(CHANGE) == ["start dask-x-worker-1"]


async def test_a_connection_starts_its_machine_alone_and_keeps_it_on(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(99))
        await reader.read()
        writer.close()

    sshd: list[asyncio.Server] = []
    start = room.google.start

    def boots(instance: str) -> None:
        start(instance)
        loop.call_soon_threadsafe(lambda: loop.create_task(listen()))

    async def listen() -> None:
        sshd.append(await asyncio.start_server(echo, sock=bound))

    loop = asyncio.get_running_loop()
    bound = socket.socket()  # refuses connections until it listens
    bound.bind(("127.0.0.1", 0))
    monkeypatch.setitem(MODULE["Power"].reach.__globals__, "SSH", bound.getsockname()[1])
    monkeypatch.setattr(room.google, "start", boots)

    room.needs("")
    room.google.states = dict.fromkeys(NAMES, "TERMINATED")
    await room.power.serve()
    service = room.power.servers[1].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", service)
    writer.write(b"SSH-")
    assert await asyncio.wait_for(reader.read(99), 30) == b"SSH-"
    assert room.google.asked == ["start dask-x-worker-2"]
    room.now += 9 * KEEP
    await room.power.look()
    assert room.google.asked == ["start dask-x-worker-2"]
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), 30) == b""
    writer.close()
    while room.power.open["worker-2"]:
        await asyncio.sleep(0.01)
    await room.power.look()
    assert room.google.asked == ["start dask-x-worker-2"]
    room.now += KEEP
    await room.power.look()
    assert room.google.asked == ["start dask-x-worker-2", "stop dask-x-worker-2"]
    for server in (*room.power.servers, *sshd):
        server.close()


def test_a_machine_that_did_not_start_is_started_again_and_the_log_says_why(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    """Google's API accepts the request, and says nothing if it then has no capacity."""
    caplog.set_level("INFO", "dask-power")
    room.google.states["worker-1"] = "TERMINATED"
    room.google.start = room.google.asked.append
    room.needs("worker-1 worker-2 worker-3")
    assert room.after(0) == ["dask-x-worker-1"]
    assert room.after(AGAIN - 1) == []
    assert room.after(1) == ["dask-x-worker-1"]
    assert caplog.messages[-1] == ("Starting dask-x-worker-1 again: Google had no capacity for it, or has preempted it")
    assert "again" not in caplog.messages[-2]


def test_requests_have_the_token_of_the_machines_account(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []

    def fetch(request: Any) -> dict[str, Any]:
        sent.append(request)
        return {"access_token": "secret", "expires_in": 3600, "status": "RUNNING"}

    monkeypatch.setitem(MODULE["Google"].call.__globals__, "fetch", fetch)
    google = MODULE["Google"]({"api": "http://api/compute/v1/", "project": "p"})
    assert google.status("zones/z/instances/a") == "RUNNING"
    google.stop("zones/z/instances/a")
    place = "http://api/compute/v1/projects/p/zones/z/instances/a"
    assert [(each.method, each.full_url) for each in sent[1:]] == [
        ("GET", place),
        ("POST", f"{place}/stop?discardLocalSsd=true"),
    ]
    assert all(each.headers["Authorization"] == "Bearer secret" for each in sent[1:])
    assert sent[0].full_url.startswith("http://169.254.169.254/") and sent[0].headers == {"Metadata-flavor": "Google"}
