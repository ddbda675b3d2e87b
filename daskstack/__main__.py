"""What `make` shows of a stack: python -m daskstack summary|status|logs|dashboard|jupyter STACK [MACHINE]."""

import sys
import time

from daskstack import engine, status_and_logs
from daskstack.client_output import KubernetesClient, MachinesClient
from daskstack.printable import printable
from daskstack.route import wake, way_to
from daskstack.tunnel import TunnelError

PYTHON = ".venv/bin/python"


def summary(stack: str) -> None:
    """The check's table, and how to get to the cluster."""
    outputs = engine.cluster(stack)
    woken = wake(outputs["client"])
    print()
    print(printable(outputs["check"]))
    if "cost" in outputs:
        print(f"\n{outputs['cost']}\n")
    if woken:
        print(f"{'idle':<12} the cluster was asleep; starting {woken} workers (this takes a few minutes)")
    print()
    print(f"{'scheduler':<12} {outputs['scheduler']}")
    print(f"{'dashboard':<12} {PYTHON} -m daskstack dashboard {stack}")
    if outputs["client"].jupyter:
        print(f"{'notebook':<12} {PYTHON} -m daskstack jupyter {stack}")
    print(f"{'in Python':<12} {PYTHON} -ic 'import daskstack; client = daskstack.connect(\"{stack}\")'")
    print(f"{'remove':<12} make destroy" + ("" if stack == "dev" else f" STACK={stack}"))


def status(stack: str) -> None:
    """What runs now, by the scheduler's own account, of which only text arrives here."""
    outputs = engine.cluster(stack)
    workers = status_and_logs.status(outputs).workers
    print(f"{'scheduler':<12} {outputs['scheduler']}, {len(workers)} workers")
    for worker in sorted(workers, key=lambda worker: worker.name):
        load = f"{worker.used / 2**30:.1f} of {worker.limit / 2**30:.1f} GiB, {worker.cpu:.0f} % CPU"
        print(printable(f"{worker.name:<12} {worker.status}, {worker.threads} threads, {load}"))


def logs(stack: str, machine: str | None = None) -> None:
    """The last lines of Dask's services, of all machines (or kinds of pods) or one."""
    outputs = engine.cluster(stack)
    client = outputs["client"]
    if isinstance(client, KubernetesClient):
        print(printable(status_and_logs.pod_logs(client, machine)))
        return
    machines = outputs["admin"]["machines"]
    if machine and machine not in machines:
        raise engine.EngineError(f"stack {stack} has no machine {machine}; it has {', '.join(machines)}")
    failed = []
    for name in [machine] if machine else machines:
        print(f"== {name}", flush=True)
        try:
            print(printable(status_and_logs.journal(machines[name])), flush=True)
        except status_and_logs.RemoteError as error:
            failed.append(name)
            print(printable(str(error)), file=sys.stderr)
    if failed:
        raise status_and_logs.RemoteError(f"no logs of {', '.join(failed)}; what was said is above")


def dashboard(stack: str) -> None:
    """Keeps a way to the dashboard open until Ctrl-C."""
    client = engine.cluster(stack)["client"]
    host, _, path = client.dashboard.removeprefix("http://").partition("/")
    keep_open(client, f"the dashboard of {stack}", host, path)


def jupyter(stack: str) -> None:
    """Keeps a way to the notebook server open until Ctrl-C."""
    outputs = engine.cluster(stack)
    if not outputs["client"].jupyter:
        raise engine.EngineError(f"stack {stack} has no notebook server")
    # Not the password itself: terminals keep what they show, and others may look on.
    print(f"its password: pulumi stack output jupyterPassword --show-secrets --stack {stack}")
    keep_open(outputs["client"], f"the notebook server of {stack}", outputs["client"].jupyter, "lab")


def keep_open(client: MachinesClient | KubernetesClient, what: str, target: str, path: str) -> None:
    with way_to(client, [target]) as way:
        print(f"{what}: http://127.0.0.1:{way.ports[0]}/{path} (until Ctrl-C)", flush=True)
        while not (fault := way.fault()):
            time.sleep(1)
        # The port is anybody's by now, and what a browser shows there may be another user's page.
        raise TunnelError(f"{fault}. Close the browser's page, and run this again")


def main() -> None:
    commands = {command.__name__: command for command in (summary, status, logs, dashboard, jupyter)}
    words = sys.argv[1:]
    if len(words) not in (2, 3) or words[0] not in commands:
        sys.exit(__doc__)
    try:
        commands[words[0]](*words[1:])
    except (engine.EngineError, TunnelError, status_and_logs.RemoteError) as error:
        sys.exit(f"error: {printable(str(error))}")
    except KeyboardInterrupt:
        print()


if __name__ == "__main__":
    main()
