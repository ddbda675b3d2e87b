"""What `make` shows of a stack: python -m daskstack summary|status|logs|dashboard STACK [MACHINE]."""

import subprocess
import sys
import time

from daskstack import engine, ssh
from daskstack.tunnel import TunnelError, tunnel

PYTHON = ".venv/bin/python"


def summary(stack: str) -> None:
    """The check's table, and how to get to the cluster."""
    outputs = engine.cluster(stack)
    print()
    print(outputs["check"])
    print()
    print(f"{'scheduler':<12} {outputs['scheduler']}")
    print(f"{'dashboard':<12} {PYTHON} -m daskstack dashboard {stack}")
    print(f"{'in Python':<12} {PYTHON} -ic 'import daskstack; client = daskstack.connect(\"{stack}\")'")
    print(f"{'take away':<12} make destroy" + ("" if stack == "dev" else f" STACK={stack}"))


def status(stack: str) -> None:
    """What runs now, by the scheduler's own account."""
    from daskstack import connect

    with connect(stack) as client:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        print(f"{'scheduler':<12} {engine.cluster(stack)['scheduler']}, {len(workers)} workers")
        for worker in sorted(workers, key=lambda worker: worker["name"]):
            used, limit = worker["metrics"].get("memory", 0) / 2**30, worker["memory_limit"] / 2**30
            load = f"{used:.1f} of {limit:.1f} GiB, {worker['metrics'].get('cpu', 0):.0f} % CPU"
            print(f"{worker['name']:<12} {worker['status']}, {worker['nthreads']} threads, {load}")


def logs(stack: str, machine: str | None = None) -> None:
    """The last lines of Dask's services, of all machines or one."""
    machines = engine.cluster(stack)["client"]["machines"]
    if machine and machine not in machines:
        raise engine.EngineError(f"stack {stack} has no machine {machine}; it has {', '.join(machines)}")
    for name in [machine] if machine else machines:
        print(f"== {name}", flush=True)
        with ssh.command(machines[name]) as command:
            subprocess.run([*command, "sudo -n journalctl -u 'dask-*' -n 40 --no-pager -o short-iso"])


def dashboard(stack: str) -> None:
    """Keeps a tunnel to the dashboard open until Ctrl-C."""
    client = engine.cluster(stack)["client"]
    host, _, path = client["dashboard"].removeprefix("http://").partition("/")
    with tunnel(client["machines"][client["head"]], [host]) as [port]:
        print(f"the dashboard of {stack}: http://127.0.0.1:{port}/{path} (until Ctrl-C)", flush=True)
        while True:
            time.sleep(3600)


def main() -> None:
    commands = {command.__name__: command for command in (summary, status, logs, dashboard)}
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
