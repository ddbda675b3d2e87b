"""What `make` shows of a stack: python -m daskstack summary|status|logs|dashboard|jupyter STACK [MACHINE]."""

import subprocess
import sys
import time

from daskstack import engine, kubernetes, ssh
from daskstack.tunnel import TunnelError
from daskstack.ways import wake, way_to

PYTHON = ".venv/bin/python"


def summary(stack: str) -> None:
    """The check's table, and how to get to the cluster."""
    outputs = engine.cluster(stack)
    woken = wake(outputs["client"])
    print()
    print(outputs["check"])
    if "cost" in outputs:
        print(f"\n{outputs['cost']}\n")
    if woken:
        print(f"{'idle':<12} the cluster slept; {woken} workers come back within minutes")
    print()
    print(f"{'scheduler':<12} {outputs['scheduler']}")
    print(f"{'dashboard':<12} {PYTHON} -m daskstack dashboard {stack}")
    if outputs["client"].get("jupyter"):
        print(f"{'notebook':<12} {PYTHON} -m daskstack jupyter {stack}")
    print(f"{'in Python':<12} {PYTHON} -ic 'import daskstack; client = daskstack.connect(\"{stack}\")'")
    print(f"{'take away':<12} make destroy" + ("" if stack == "dev" else f" STACK={stack}"))


def status(stack: str) -> None:
    """What runs now, by the scheduler's own account."""
    from daskstack import connect

    with connect(stack, wakes=False) as client:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        print(f"{'scheduler':<12} {engine.cluster(stack)['scheduler']}, {len(workers)} workers")
        for worker in sorted(workers, key=lambda worker: worker["name"]):
            used, limit = worker["metrics"].get("memory", 0) / 2**30, worker["memory_limit"] / 2**30
            load = f"{used:.1f} of {limit:.1f} GiB, {worker['metrics'].get('cpu', 0):.0f} % CPU"
            print(f"{worker['name']:<12} {worker['status']}, {worker['nthreads']} threads, {load}")


def logs(stack: str, machine: str | None = None) -> None:
    """The last lines of Dask's services, of all machines (or kinds of pods) or one."""
    client = engine.cluster(stack)["client"]
    if "kubernetes" in client:
        selector = f"release=dask,component={machine}" if machine else "release=dask"
        with kubernetes.kubectl(client["kubernetes"]) as command:
            words = ["--namespace", client["namespace"], "logs", "--selector", selector, "--tail", "40"]
            subprocess.run([*command, *words, "--prefix", "--all-containers"])
        return
    machines = client["machines"]
    if machine and machine not in machines:
        raise engine.EngineError(f"stack {stack} has no machine {machine}; it has {', '.join(machines)}")
    for name in [machine] if machine else machines:
        print(f"== {name}", flush=True)
        with ssh.command(machines[name]) as command:
            subprocess.run([*command, "sudo -n journalctl -u 'dask-*' -n 40 --no-pager -o short-iso"])


def dashboard(stack: str) -> None:
    """Keeps a way to the dashboard open until Ctrl-C."""
    client = engine.cluster(stack)["client"]
    host, _, path = client["dashboard"].removeprefix("http://").partition("/")
    keep_open(client, f"the dashboard of {stack}", host, path)


def jupyter(stack: str) -> None:
    """Keeps a way to the notebook server open until Ctrl-C."""
    outputs = engine.cluster(stack)
    if not outputs["client"].get("jupyter"):
        raise engine.EngineError(f"stack {stack} has no notebook server")
    print(f"the password: {outputs['jupyterPassword']}")
    keep_open(outputs["client"], f"the notebook server of {stack}", outputs["client"]["jupyter"], "lab")


def keep_open(client: dict, what: str, target: str, path: str) -> None:
    with way_to(client, [target]) as [port]:
        print(f"{what}: http://127.0.0.1:{port}/{path} (until Ctrl-C)", flush=True)
        while True:
            time.sleep(3600)


def main() -> None:
    commands = {command.__name__: command for command in (summary, status, logs, dashboard, jupyter)}
    words = sys.argv[1:]
    if len(words) not in (2, 3) or words[0] not in commands:
        sys.exit(__doc__)
    try:
        commands[words[0]](*words[1:])
    except (engine.EngineError, TunnelError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print()


if __name__ == "__main__":
    main()
