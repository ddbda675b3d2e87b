"""A cluster that is changed while somebody computes on it: what should run does, and no result is lost."""

import json
import re
import threading
import time
import uuid
from collections.abc import Iterator

import distributed
import pytest
from checkout import Checkout, stack_dev
from fleet import Machine, until
from tls import accepts
from work import Work, tasks

import daskstack

PACKAGES = "/opt/daskstack/environment/lib/python3.11/site-packages"


@pytest.fixture(scope="module")
def checkout(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    with stack_dev(tmp_path_factory.mktemp("user")) as checkout:
        checkout.make("up")
        yield checkout


@pytest.fixture(scope="module")
def work(checkout: Checkout) -> Iterator[Work]:
    work = Work(daskstack.connect("dev"))
    yield work
    work.end()


def change(checkout: Checkout, file: str, old: str, new: str) -> None:
    path = checkout.folder / file
    text, count = re.subn(old, new, path.read_text(), flags=re.MULTILINE)
    assert count == 1, f"{old} is {count} times in {file}"
    path.write_text(text)


def touched(printed: str) -> set[str]:
    """The Commands that `up` ran."""
    return set(re.findall(r"command:\w+:Command (\S+) (?:created|updated|deleted)", printed))


def began(machine: Machine, unit: str = "dask-worker@1") -> str:
    return machine.ssh(f"systemctl show -p ActiveEnterTimestampMonotonic {unit}").stdout


def comes_back(work: Work, name: str) -> None:
    deadline = time.monotonic() + 90
    while work.workers().get(name) != "running":
        assert time.monotonic() < deadline, f"{name} does not run again: {work.workers()}"
        time.sleep(0.2)


def test_adding_a_worker_runs_commands_on_it_and_on_the_authority_alone(checkout: Checkout, work: Work) -> None:
    others = [checkout.machines()[name] for name in ("worker-1", "worker-2")]
    before = [machine.logins() for machine in others]
    change(checkout, "Pulumi.dev.yaml", "workers: 2", "workers: 3")
    printed = checkout.make("up")
    assert re.search(r"^workers +3 running", printed, re.MULTILINE)
    assert [machine.logins() - 1 for machine in others] == before, "more than this test's own"
    assert {each for each in touched(printed) if not each.startswith("worker-3-")} == {"members", "check"}
    work.goes_on()


def test_a_worker_that_is_removed_hands_over_first_and_its_keys_are_refused_by_what_runs(
    checkout: Checkout, work: Work
) -> None:
    machine = checkout.machines()["worker-3"]
    stolen = [machine.ssh(f"sudo cat /etc/daskstack/tls/{file}.pem").stdout for file in ("certificate", "key")]
    info = work.client.sync(work.client.scheduler.identity, n_workers=-1)
    staying = {address: each for address, each in info["workers"].items() if not each["name"].startswith("worker-3")}
    doors = [info["address"], *staying, *(each["nanny"] for each in staying.values())]
    assert [accepts(door, *stolen) for door in doors] == [True] * len(doors)
    keep = [checkout.machines()[name] for name in ("scheduler", "worker-1", "worker-2")]
    pids = [machine.ssh("systemctl show -p MainPID 'dask-scheduler*' 'dask-worker*'").stdout for machine in keep]
    change(checkout, "Pulumi.dev.yaml", "workers: 3", "workers: 2")
    printed = checkout.make("up")
    assert re.search(r"^workers +2 running", printed, re.MULTILINE)
    assert {each for each in touched(printed) if not each.startswith("worker-3-")} == {"members", "check"}
    assert work.workers() == {"worker-1-1": "running", "worker-2-1": "running"}
    keep[0].ssh("sudo systemctl start dask-authority")
    for machine in keep:  # as timers do within minutes
        machine.ssh("sudo systemctl start dask-credentials")
    deadline = time.monotonic() + 60
    while any(accepts(door, *stolen) for door in doors):
        assert time.monotonic() < deadline, "the key of the removed machine is still accepted"
        time.sleep(1)
    work.goes_on()
    assert [
        machine.ssh("systemctl show -p MainPID 'dask-scheduler*' 'dask-worker*'").stdout for machine in keep
    ] == pids


def test_a_worker_that_is_stopped_lets_tasks_end_for_20_seconds_and_hands_over(checkout: Checkout, work: Work) -> None:
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
    work.goes_on()
    until(lambda: worker.ssh("systemctl is-active dask-worker@1", check=False).stdout == "inactive\n")
    worker.ssh("sudo systemctl start dask-worker@1")
    comes_back(work, "worker-1-1")


def test_a_worker_hands_over_when_its_machine_reboots(checkout: Checkout, work: Work) -> None:
    checkout.machines()["worker-2"].ssh("sudo systemctl reboot", check=False)
    until(lambda: "worker-2-1" not in work.workers())
    work.goes_on()
    comes_back(work, "worker-2-1")


def test_a_package_that_goes_restarts_workers_one_by_one_and_the_scheduler_not(checkout: Checkout, work: Work) -> None:
    lock = (checkout.folder / "environment.lock").read_text()
    machines = checkout.machines()
    head, worker = machines["scheduler"], machines["worker-1"]
    scheduler_began, worker_began = began(head, "dask-scheduler"), began(worker)
    numpy = worker.ssh(f"stat -c %Z {PACKAGES}/numpy/__init__.py").stdout
    seen: list[dict[str, str]] = []
    counting = threading.Event()

    def count() -> None:
        while not counting.wait(0.1):
            seen.append(work.workers())

    counter = threading.Thread(target=count)
    counter.start()
    try:
        change(checkout, "environment.lock", r"^tzdata==.*\n(?: .*\n)*", "")
        printed = checkout.make("up")
    finally:
        counting.set()
        counter.join()
    assert "30 packages as locked" in printed
    assert worker.ssh(f"ls {PACKAGES}/tzdata", check=False).returncode
    assert worker.ssh(f"stat -c %Z {PACKAGES}/numpy/__init__.py").stdout == numpy, "numpy was installed again"
    assert began(worker) != worker_began
    assert began(head, "dask-scheduler") == scheduler_began
    fewest = min(seen, key=lambda workers: list(workers.values()).count("running"))
    assert list(fewest.values()).count("running") == 1, fewest
    work.goes_on()

    # And back: what is only added restarts nothing.
    worker_began = began(worker)
    (checkout.folder / "environment.lock").write_text(lock)
    assert "31 packages as locked" in checkout.make("up")
    assert began(worker) == worker_began
    work.goes_on()


def test_a_setting_of_the_workers_touches_their_services_alone(checkout: Checkout, work: Work) -> None:
    head = checkout.machines()["scheduler"]
    scheduler_began = began(head, "dask-scheduler")
    change(checkout, "Pulumi.dev.yaml", "^    target: vms", "    target: vms\n    workers: {threads: 3}")
    printed = checkout.make("up")
    services = {f"{name}-service" for name in ("scheduler", "worker-1", "worker-2")}
    assert touched(printed) == {*services, "check"}
    assert re.search(r"^workers +2 running, 6 threads", printed, re.MULTILINE)
    assert began(head, "dask-scheduler") == scheduler_began
    work.goes_on()


def test_a_worker_hands_over_when_its_machine_is_powered_off(checkout: Checkout, work: Work) -> None:
    checkout.machines()["worker-2"].ssh("sudo systemctl poweroff", check=False)
    deadline = time.monotonic() + 60
    while "worker-2-1" in work.workers():
        assert time.monotonic() < deadline, "it was not stopped"
        time.sleep(0.1)
    work.goes_on()


def test_a_machine_made_anew_under_its_address_gets_all_its_steps(checkout: Checkout) -> None:
    resources = json.loads(checkout.pulumi("stack", "export"))["deployment"]["resources"]
    [urn] = [each["urn"] for each in resources if each["urn"].endswith("::worker-2-machine")]
    before = json.loads(checkout.printed("worker-2-machine"))
    printed = checkout.pulumi("up", "--yes", "--skip-preview", "--replace", urn)
    after = json.loads(checkout.printed("worker-2-machine"))
    assert after["id"] != before["id"]
    assert after["address"] == before["address"]
    assert re.search(r"workers +2 running", printed)
    steps = ("firewall", "keys", "certificates", "credentials", "data", "environment", "service")
    assert {f"worker-2-{step}" for step in steps} <= touched(printed)


def test_a_raised_renewal_refuses_the_former_keys_and_what_runs_keeps_its_processes_and_its_data(
    checkout: Checkout,
) -> None:
    def processes() -> list[str]:
        show = "systemctl show -p MainPID 'dask-scheduler*' 'dask-worker*'; pgrep -u dask -f environment/bin"
        return [machine.ssh(show).stdout for machine in checkout.machines().values()]

    def pair(client: distributed.Client) -> tuple[str, str]:
        tls = client.security.get_tls_config_for_role("client")
        return tls["cert"], tls["key"]

    numbers, _ = tasks()
    with daskstack.connect("dev") as former:
        parts = former.map(numbers, range(8), pure=False)
        sums = [sum(part) for part in former.gather(parts)]
        former.publish_dataset(parts=parts)
        info = former.sync(former.scheduler.identity, n_workers=-1)
        doors = [former.scheduler.address]
        doors += [*info["workers"], *(each["nanny"] for each in info["workers"].values())]
        before, stolen = processes(), pair(former)
        assert [accepts(door, *stolen) for door in doors] == [True] * len(doors)

        change(checkout, "Pulumi.dev.yaml", "^    target: vms", "    target: vms\n    credentials: {renewal: 2}")
        printed = checkout.make("up")
        assert not [each for each in touched(printed) if each.endswith(("data", "environment", "service"))]
        assert [sum(part) for part in former.gather(parts)] == sums
        for machine in checkout.machines().values():  # as timers do within minutes
            machine.ssh("sudo systemctl start dask-credentials")
        deadline = time.monotonic() + 60
        while any(accepts(door, *stolen) for door in doors):
            assert time.monotonic() < deadline, "the client's former key is still accepted"
            time.sleep(1)
        with daskstack.connect("dev") as client:
            renewed = pair(client)
            assert [accepts(door, *renewed) for door in doors] == [True] * len(doors)
            assert [sum(part) for part in client.gather(client.get_dataset("parts"))] == sums
            copies = client.map(sorted, client.get_dataset("parts"), pure=False)  # from worker to worker
            client.replicate(copies)
            assert [sum(part) for part in client.gather(copies)] == pytest.approx(sums)
    assert processes() == before
