"""Changes of a cluster during a computation: the right processes run, and no result is lost."""

import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import distributed
import pytest

import daskstack
from daskstack import access_file
from rehearsal.machines import Machine, until
from tests import access
from tests.checkout import Checkout
from tests.tls import accepts
from tests.work import Work, tasks

PACKAGES = "/opt/daskstack/environment/lib/python3.11/site-packages"


pytestmark = pytest.mark.timeout(1800)
RUNNING = {"worker-1-1": "running", "worker-2-1": "running"}


@pytest.fixture
def work(checkout: Checkout) -> Iterator[Work]:
    work = Work(daskstack.connect("dev"))
    yield work
    work.end()


def touched(printed: str) -> set[str]:
    """The Commands that `up` ran."""
    return set(re.findall(r"command:\w+:Command (\S+) (?:created|updated|deleted)", printed))


def began(machine: Machine, unit: str = "dask-worker@1") -> str:
    return machine.ssh(f"systemctl show -p ActiveEnterTimestampMonotonic {unit}").stdout


def comes_back(work: Work, name: str) -> None:
    until(lambda: work.workers().get(name) == "running")


def pids(*machines: Machine) -> list[str]:
    """The process IDs of Dask's services."""
    show = "systemctl show -p MainPID 'dask-scheduler*' 'dask-worker*'"
    return [machine.ssh(show).stdout for machine in machines]


def counter() -> type:
    """Defined inside a function, like `tasks`."""

    class Counter:
        def __init__(self) -> None:
            self.count = 0

        def more(self) -> int:
            self.count += 1
            return self.count

    return Counter


def place() -> Callable[[int], str]:
    """Defined inside a function, like `tasks`."""

    def host(_: int) -> str:
        import socket

        return socket.gethostname()

    return host


def others(printed: str) -> set[str]:
    """The Commands that `up` ran, except for those of the machines that come and go."""
    return {each for each in touched(printed) if "-worker-3" not in each and "-big-1" not in each}


@contextmanager
def full(client: distributed.Client, *names: str) -> Iterator[None]:
    """Makes the workers with these names pause as if their memory were full."""

    def set_limit(fraction: float, dask_worker: distributed.Worker) -> None:
        dask_worker.memory_manager.memory_pause_fraction = fraction

    def paused() -> set[str]:
        workers = client.sync(client.scheduler.identity, n_workers=-1)["workers"].values()
        return {worker["name"] for worker in workers if worker["status"] == "paused"}

    workers = client.sync(client.scheduler.identity, n_workers=-1)["workers"]
    addresses = [address for address, worker in workers.items() if worker["name"] in names]
    client.run(set_limit, 1e-6, workers=addresses)
    try:
        until(lambda: paused() == set(names))
        yield
    finally:
        client.run(set_limit, 0.8, workers=addresses)
        until(lambda: paused() == set())


def test_workers_and_groups_are_added_and_removed_without_data_loss_and_removed_keys_are_rejected(
    checkout: Checkout, work: Work
) -> None:
    keep = [checkout.machines()[name] for name in ("scheduler", "worker-1", "worker-2")]
    were = pids(*keep)
    before = [machine.logins() for machine in keep[1:]]
    checkout.change("Pulumi.dev.yaml", "workers: 2", "workers: 3")
    group = "{name: big, perMachine: 2, threads: 1, resources: {BIG: 1}}"
    checkout.change(
        "Pulumi.dev.yaml", "^    target: machines", f"    target: machines\n    workers: {{groups: [{group}]}}"
    )
    printed = checkout.make("up")
    assert re.search(r"^workers +5 running", printed, re.MULTILINE)
    assert "correct for 26 names" in printed and "(in an earlier run)" in printed
    assert [machine.logins() - 1 for machine in keep[1:]] == before, "more than this test's own"
    assert others(printed) == {"dask-members", "dask-check"}
    assert pids(*keep) == were
    work.check_progress()

    # Tasks that ask for a group's resources run on its machines alone.
    asked = work.client.map(place(), range(20), resources={"BIG": 1}, pure=False)
    assert set(work.client.gather(asked)) == {"big-1"}
    info = work.client.sync(work.client.scheduler.identity, n_workers=-1)["workers"].values()
    resources = {each["name"]: (each["nthreads"], each["resources"]) for each in info if each["name"].startswith("big")}
    assert resources == {"big-1-1": (1, {"BIG": 1}), "big-1-2": (1, {"BIG": 1})}

    # Data that the others have no room for is not discarded, and neither is an actor, which cannot move.
    third, staying = checkout.machines()["worker-3"], [*RUNNING, "big-1-1", "big-1-2"]
    address = work.client.sync(work.client.scheduler.identity)["address"]
    part = work.client.submit(bytes, 1000, workers=["worker-3-1"], pure=False)
    distributed.wait(part)
    leave = (
        "cd / && sudo -u dask env DASK_CONFIG=/etc/daskstack/dask.yaml /opt/daskstack/environment/bin/python"
        f" /opt/daskstack/drain.py {address} --all-but {' '.join(staying)}"
    )
    with full(work.client, *staying):
        refused = third.ssh(leave, check=False)
    assert refused.returncode == 1
    assert "cannot move results of worker-3-1: they hold actors, or no other worker has enough memory" in refused.stderr
    comes_back(work, "worker-3-1")
    work.check_progress()
    counting = work.client.submit(counter(), actor=True, workers=["worker-3-1"])
    actor = counting.result(timeout=120)
    assert actor.more().result(timeout=120) == 1
    checkout.change("Pulumi.dev.yaml", "workers: 3", "workers: 2")
    refusal = checkout.make("up", succeeds=False)
    assert "cannot move results of worker-3-1" in refusal
    assert "release the results in the notebooks that use them" in refusal
    assert actor.more().result(timeout=120) == 2
    assert work.client.gather(part) == bytes(1000)
    comes_back(work, "worker-3-1")
    work.check_progress()
    del actor
    counting.release()

    stolen = [third.ssh(f"sudo cat /etc/daskstack/tls/{file}.pem").stdout for file in ("certificate", "key")]
    info = work.client.sync(work.client.scheduler.identity, n_workers=-1)
    kept = {address: each for address, each in info["workers"].items() if each["name"] in RUNNING}
    doors = [info["address"], *kept, *(each["nanny"] for each in kept.values())]
    assert [accepts(door, *stolen) for door in doors] == [True] * len(doors)
    were = pids(*keep)
    checkout.change("Pulumi.dev.yaml", "^    workers: .*\n", "")
    printed = checkout.make("up")
    assert re.search(r"^workers +2 running", printed, re.MULTILINE)
    assert others(printed) == {"dask-members", "dask-check"}
    assert work.workers() == RUNNING
    keep[0].ssh("sudo systemctl start dask-authority")
    for machine in keep:  # like the timers, within minutes
        machine.ssh("sudo systemctl start dask-credentials")
    until(lambda: not any(accepts(door, *stolen) for door in doors))
    assert work.client.gather(part) == bytes(1000)
    work.check_progress()
    assert pids(*keep) == were


def test_a_stopping_worker_gives_tasks_20_seconds_and_hands_over_its_data(checkout: Checkout, work: Work) -> None:
    worker, other = checkout.machines()["worker-1"], checkout.machines()["worker-2"]
    unit = worker.ssh("systemctl show dask-worker@1 -p ExecStop -p TimeoutStopUSec").stdout
    assert re.search(r"argv\[\]=timeout 80 \S+/python \S+/drain.py tls://\S+ --within 80 worker-1-1 ;", unit)
    assert "TimeoutStopUSec=1min 30s\n" in unit, "systemd's own comes later"

    def held(folder: str, name: str) -> str:
        import os
        import socket
        import time

        with open(f"{folder}/began-{name}", "a") as began:
            began.write(socket.gethostname() + "\n")
        while not os.path.exists(f"{folder}/end-{name}"):
            time.sleep(0.1)
        return socket.gethostname()

    folder = f"/srv/daskdata/{uuid.uuid4()}"
    other.ssh(f"sudo -u dask mkdir {folder}")

    def began(name: str) -> list[str]:
        return other.ssh(f"cat {folder}/began-{name}", check=False).stdout.split()

    short, endless = (
        work.client.submit(held, folder, name, workers=["worker-1-1"], allow_other_workers=True, priority=10)
        for name in ("short", "endless")
    )
    until(lambda: began("short") == began("endless") == ["worker-1"])
    stopped = time.monotonic()
    worker.ssh("sudo systemctl stop --no-block dask-worker@1")
    until(lambda: work.workers().get("worker-1-1") == "closing_gracefully")
    other.ssh(f"sudo -u dask touch {folder}/end-short")
    assert short.result(timeout=120) == "worker-1"
    until(lambda: began("endless") == ["worker-1", "worker-2"])
    assert time.monotonic() - stopped >= 20
    other.ssh(f"sudo -u dask touch {folder}/end-endless")
    assert endless.result(timeout=120) == "worker-2"
    assert began("short") == ["worker-1"], "it was done again"
    until(lambda: "worker-1-1" not in work.workers())
    work.check_progress()
    until(lambda: worker.ssh("systemctl is-active dask-worker@1", check=False).stdout == "inactive\n")
    worker.ssh("sudo systemctl start dask-worker@1")
    comes_back(work, "worker-1-1")


def test_a_worker_hands_over_its_data_before_a_reboot(checkout: Checkout, work: Work) -> None:
    checkout.machines()["worker-2"].ssh("sudo systemctl reboot", check=False)
    until(lambda: "worker-2-1" not in work.workers())
    work.check_progress()
    comes_back(work, "worker-2-1")


def test_removing_a_package_restarts_workers_one_by_one_but_not_the_scheduler(checkout: Checkout, work: Work) -> None:
    lock = checkout.folder / "environment.lock"
    text, machines = lock.read_text(), checkout.machines()
    head, worker = machines["scheduler"], machines["worker-1"]
    scheduler_began, worker_began = began(head, "dask-scheduler"), began(worker)
    numpy = worker.ssh(f"stat -c %Z {PACKAGES}/numpy/__init__.py").stdout
    seen: list[dict[str, str]] = []
    counting = threading.Event()

    def count() -> None:
        while not counting.wait(0.3):
            seen.append(work.workers())

    counter = threading.Thread(target=count)
    counter.start()
    try:
        checkout.change("environment.lock", r"^tzdata==.*\n(?: .*\n)*", "")
        printed = checkout.make("up")
    finally:
        counting.set()
        counter.join()
    assert checkout.locked() in printed
    assert re.search(r"correct for 26 names in [\d.]+ s$", printed, re.MULTILINE)
    assert worker.ssh(f"ls {PACKAGES}/tzdata", check=False).returncode
    assert worker.ssh(f"stat -c %Z {PACKAGES}/numpy/__init__.py").stdout == numpy, "numpy was installed again"
    assert began(worker) != worker_began
    assert began(head, "dask-scheduler") == scheduler_began
    fewest = min(seen, key=lambda workers: list(workers.values()).count("running"))
    assert list(fewest.values()).count("running") == 1, fewest
    work.check_progress()

    # Added again, the package restarts nothing.
    worker_began = began(worker)
    lock.write_text(text)
    printed = checkout.make("up")
    assert checkout.locked() in printed
    assert began(worker) == worker_began
    work.check_progress()


def test_changing_worker_settings_restarts_only_worker_services(checkout: Checkout, work: Work) -> None:
    head = checkout.machines()["scheduler"]
    scheduler_began = began(head, "dask-scheduler")
    checkout.change("Pulumi.dev.yaml", "^    target: machines", "    target: machines\n    workers: {threads: 3}")
    printed = checkout.make("up")
    services = {f"dask-{name}-service" for name in ("scheduler", "worker-1", "worker-2")}
    assert touched(printed) == {*services, "dask-check"}
    assert re.search(r"^workers +2 running, 6 threads", printed, re.MULTILINE)
    assert began(head, "dask-scheduler") == scheduler_began
    work.check_progress()


def test_a_powered_off_worker_hands_over_its_data_and_its_replacement_gets_all_steps(
    checkout: Checkout, work: Work
) -> None:
    checkout.machines()["worker-2"].ssh("sudo systemctl poweroff", check=False)
    until(lambda: "worker-2-1" not in work.workers())
    work.check_progress()

    machine = checkout.resources()["machines-worker-2"]
    before = json.loads(machine["outputs"]["stdout"])
    printed = checkout.pulumi("up", "--yes", "--skip-preview", "--replace", machine["urn"])
    after = json.loads(checkout.printed("machines-worker-2"))
    assert after["id"] != before["id"]
    assert after["address"] == before["address"]
    assert re.search(r"workers +2 running", printed)
    steps = ("firewall", "keys", "certificates", "credentials", "data", "environment", "service")
    assert {f"dask-worker-2-{step}" for step in steps} <= touched(printed)
    work.check_progress()


def test_renewing_credentials_rejects_old_keys_but_keeps_processes_and_data(checkout: Checkout, tmp_path: Path) -> None:
    def processes() -> list[str]:
        show = "systemctl show -p MainPID 'dask-scheduler*' 'dask-worker*'; pgrep -u dask -f environment/bin"
        return [machine.ssh(show).stdout for machine in checkout.machines().values()]

    def pair(client: distributed.Client) -> tuple[str, str]:
        tls = client.security.get_tls_config_for_role("client")
        return tls["cert"], tls["key"]

    numbers, _ = tasks()
    [file] = access.give(checkout, tmp_path, "heidi")
    with daskstack.connect("dev") as former:
        parts = former.map(numbers, range(8), pure=False)
        sums = [sum(part) for part in former.gather(parts)]
        former.publish_dataset(parts=parts)
        info = former.sync(former.scheduler.identity, n_workers=-1)
        doors = [former.scheduler.address]
        doors += [*info["workers"], *(each["nanny"] for each in info["workers"].values())]
        before, stolen = processes(), pair(former)
        assert [accepts(door, *stolen) for door in doors] == [True] * len(doors)

        checkout.change(
            "Pulumi.dev.yaml", "^    target: machines", "    target: machines\n    credentials: {renewal: 2}"
        )
        printed = checkout.make("up")
        assert not [each for each in touched(printed) if each.endswith(("data", "environment", "service"))]
        assert [sum(part) for part in former.gather(parts)] == sums
        for machine in checkout.machines().values():  # like the timers, within minutes
            machine.ssh("sudo systemctl start dask-credentials")
        until(lambda: not any(accepts(door, *stolen) for door in doors))
        with daskstack.connect("dev") as client:
            renewed = pair(client)
            assert [accepts(door, *renewed) for door in doors] == [True] * len(doors)
            assert [sum(part) for part in client.gather(client.get_dataset("parts"))] == sums
            copies = client.map(sorted, client.get_dataset("parts"), pure=False)  # from worker to worker
            client.replicate(copies)
            assert [sum(part) for part in client.gather(copies)] == pytest.approx(sums)
        assert access.command(checkout, "list").startswith(
            "heidi        has keys from before a renewal: run `daskstack"
        )
        heidi = access_file.read(file).client.tls
        assert not accepts(doors[0], heidi.certificate, heidi.key)
        access.command(checkout, "renew", "heidi", "--output", str(file))
        with daskstack.connect(str(file)) as client:
            assert client.submit(sum, [1, 2]).result(60) == 3
        access.command(checkout, "revoke", "heidi")
    until(lambda: processes() == before)  # short-lived monitoring processes have exited by then
    checkout.keep()
