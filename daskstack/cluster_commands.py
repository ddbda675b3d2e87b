"""Commands that show a running cluster or connect to it."""

import json
import os
import subprocess
import sys
import threading
import time
import webbrowser
from collections.abc import Mapping, Sequence
from typing import Any

from daskstack import access_file, engine, kubectl, ssh, status_and_logs
from daskstack.client_output import NO_BOUNDS, KubernetesClient, MachinesClient
from daskstack.printable import printable
from daskstack.route import wake, way_to
from daskstack.status_and_logs import RemoteError
from daskstack.tunnel import TunnelError

COMMAND = ".venv/bin/daskstack"
CHECK_LIMIT = 900  # seconds; the check's own limits are shorter


def summary(stack: str) -> None:
    """Prints the check's table and the commands that reach the cluster."""
    outputs = engine.cluster(stack)
    woken = wake(outputs["client"])
    print()
    print(printable(outputs["check"]))
    if "cost" in outputs:
        print(f"\n{outputs['cost']}\n")
    if woken:
        print(f"{'idle':<12} {asleep(woken)}")
    print_missing(outputs)
    option = "" if stack == "dev" else f" --stack {stack}"
    print()
    print(f"{'scheduler':<12} {outputs['scheduler']}")
    print(f"{'dashboard':<12} {COMMAND} dashboard{option}")
    if outputs["client"].jupyter:
        print(f"{'notebook':<12} {COMMAND} jupyter{option}")
    print(f"{'in Python':<12} .venv/bin/python -ic 'import daskstack; client = daskstack.connect(\"{stack}\")'")
    print(f"{'remove':<12} {COMMAND} destroy{option}")


def print_missing(outputs: Mapping[str, Any]) -> None:
    if names := outputs.get("missing"):
        print(f"{'missing':<12} {', '.join(names)}: the next `{COMMAND} up` lets them join if they can")


def status(stack: str, as_json: bool = False) -> None:
    """Prints the workers as the scheduler reports them. The report is JSON, never a pickle."""
    file, outputs = access_file.find(stack), {}
    if file:
        client = access_file.read(file).client
        found = status_and_logs.status_through(client)
    else:
        outputs = engine.cluster(stack)
        client, found = outputs["client"], status_and_logs.status(outputs)
    if as_json:
        known = {"stack": access_file.stack_name(stack), "scheduler": client.scheduler, "bounds": client.bounds}
        print(json.dumps(known | found.model_dump(), indent=2))
        return
    most = f" of at most {client.most}" if client.most else ""
    print(printable(f"{'scheduler':<12} {client.scheduler}, {len(found.workers)} workers{most}"))
    for worker in sorted(found.workers, key=lambda worker: worker.name):
        load = f"{worker.used / 2**30:.1f} of {worker.limit / 2**30:.1f} GiB, {worker.cpu:.0f} % CPU"
        print(printable(f"{worker.name:<12} {worker.status}, {worker.threads} threads, {load}"))
    print_missing(outputs)
    for each in sorted(found.people, key=lambda person: person.name):
        name = "you" if each.name == "client" else each.name
        work = f"tasks: {each.running} running, {each.waiting} waiting"
        print(printable(f"{name:<12} connections: {each.connections}, {work}"))


def scale(stack: str, number: int | None, adapts: bool, minimum: int | None, maximum: int | None) -> None:
    """Changes the number of workers, or prints it."""
    outputs = engine.cluster(stack)
    client = outputs["client"]
    if not client.bounds:
        raise engine.EngineError(NO_BOUNDS.format(stack=stack))
    if woken := wake(client):
        print(asleep(woken), file=sys.stderr)
    if adapts:
        state = status_and_logs.scale(outputs, "workers_adapt", minimum=minimum, maximum=maximum)
    elif number is not None:
        state = status_and_logs.scale(outputs, "workers_scale", number=number)
    else:
        state = status_and_logs.scale(outputs, "workers_scaling")
    mode = "adapts from {} to {}".format(*state.adaptive) if state.adaptive else "stays until the next scale"
    print(f"{'workers':<12} {state.number}; the number {mode}; the stack allows {state.min} to {state.max}")


def check(stack: str) -> None:
    """Runs the check of the last `up` again, with the expectations that the stack's state records."""
    outputs = engine.cluster(stack)
    client = outputs["client"]
    if woken := wake(client):
        print(asleep(woken), file=sys.stderr)
    inputs = check_inputs(stack)
    if isinstance(client, KubernetesClient):
        said = status_and_logs.ask(
            ["sh", "-c", inputs["create"]], wait=CHECK_LIMIT, cwd=engine.PROJECT, env=os.environ | inputs["environment"]
        )
    else:
        with ssh.command(outputs["admin"]["machines"][client.head]) as command:
            said = status_and_logs.ask([*command, f"{inputs['update']} again"], inputs["stdin"], wait=CHECK_LIMIT)
    print(printable(said), end="")


def check_inputs(stack: str) -> dict[str, Any]:
    """The inputs of the Command that checks the cluster, from the stack's state."""
    for each in engine.resources(stack, secrets=True):
        if each["type"].startswith("command:") and each["urn"].endswith("-check"):
            return plain(each["inputs"])
    raise engine.EngineError(f"stack {stack} has no check yet: run `make up STACK={stack}`")


def plain(value: Any) -> Any:
    """A value of a state that was exported with --show-secrets, with its secrets decoded."""
    if not isinstance(value, dict):
        return value
    return json.loads(value["plaintext"]) if "plaintext" in value else {key: plain(each) for key, each in value.items()}


def asleep(woken: int) -> str:
    return f"the cluster was asleep; starting {woken} workers (this takes a few minutes)"


def logs(stack: str, machine: str | None = None) -> None:
    """Prints the last lines of Dask's services on one machine (or in one kind of pod), or on all."""
    outputs = engine.cluster(stack)
    client = outputs["client"]
    if isinstance(client, KubernetesClient):
        print(printable(status_and_logs.pod_logs(client, machine)).rstrip())
        return
    names = [known(stack, outputs, machine)] if machine else outputs["admin"]["machines"]
    failed = []
    for name in names:
        print(f"== {name}", flush=True)
        try:
            print(printable(status_and_logs.journal(outputs["admin"]["machines"][name])).rstrip(), flush=True)
        except RemoteError as error:
            failed.append(name)
            print(printable(str(error)), file=sys.stderr)
    if failed:
        raise RemoteError(f"no logs of {', '.join(failed)}; the reasons are above")


def shell(stack: str, machine: str | None, words: Sequence[str]) -> int:
    """Opens a shell on a machine or in a pod, or runs a command there. Returns the exit status."""
    outputs = engine.cluster(stack)
    client, terminal = outputs["client"], sys.stdin.isatty()
    if isinstance(client, KubernetesClient):
        interactive = ["--stdin", *(["--tty"] if terminal else [])]
        pod = ["--namespace", client.namespace, "exec", *interactive, f"deployment/dask-{machine or 'scheduler'}"]
        run = ["sh", "-c", " ".join(words)] if words else ["sh"]
        with kubectl.kubectl(client.kubernetes) as command:
            return subprocess.call([*command, *pod, "--", *run])
    name = known(stack, outputs, machine) if machine else client.head
    with ssh.command(outputs["admin"]["machines"][name]) as command:
        return subprocess.call([*command, *words])


def known(stack: str, outputs: dict[str, Any], machine: str) -> str:
    machines = outputs["admin"]["machines"]
    if machine not in machines:
        raise engine.EngineError(f"stack {stack} has no machine {machine}; it has {', '.join(machines)}")
    return machine


def dashboard(stack: str) -> None:
    """Keeps a local port to the dashboard open in the browser until Ctrl-C."""
    client = access_file.client(stack)
    host, _, path = client.dashboard.removeprefix("http://").partition("/")
    keep_open(client, f"the dashboard of {stack}", host, path)


def jupyter(stack: str, password: bool = False) -> None:
    """Keeps a local port to the notebook server open until Ctrl-C, or prints its password."""
    client = access_file.client(stack)
    if not client.jupyter:
        raise engine.EngineError(f"stack {stack} has no notebook server")
    if password:
        access_file.refuse(stack)
        print(engine.outputs(stack)["jupyterPassword"])
        return
    if woken := wake(client):
        print(asleep(woken), file=sys.stderr)
    # Do not print the password unasked: terminals keep their output, and others may see the screen.
    asks = "ask the stack's owner" if access_file.find(stack) else f"{COMMAND} jupyter --password --stack {stack}"
    print(f"password: {asks}")
    keep_open(client, f"the notebook server of {stack}", client.jupyter, "lab")


def keep_open(client: MachinesClient | KubernetesClient, what: str, target: str, path: str) -> None:
    with way_to(client, [target]) as way:
        url = f"http://127.0.0.1:{way.ports[0]}/{path}"
        print(f"{what}: {url} (until Ctrl-C)", flush=True)
        open_browser(url)
        try:
            while not (fault := way.fault()):
                time.sleep(1)
        except KeyboardInterrupt:
            print()
            return
        # Another user's program may hold the port by now, and the browser would show its page.
        raise TunnelError(f"{fault}. Close the page in the browser, and run this command again")


def open_browser(url: str) -> None:
    """Opens the page, but not in a text browser, which would take over the terminal."""
    if sys.platform == "darwin" or any(os.environ.get(each) for each in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")):
        # Some browsers keep `open` waiting until they are closed.
        threading.Thread(target=webbrowser.open, args=[url], daemon=True).start()
