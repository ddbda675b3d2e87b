"""Reads the status and the logs of a cluster's machines and pods, as text and JSON, never as pickles.

Any task may have changed the programs there. So answers have a time limit and a size limit, are validated before use,
and are printed without control characters.
"""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from daskstack import kubectl, report_status, ssh
from daskstack.client_output import Connection, KubernetesClient, MachinesClient
from daskstack.route import way_to

REPORT_STATUS = Path(__file__).with_name("report_status.py")
SCALE_WORKERS = Path(__file__).with_name("scale_workers.py")
WAIT = 90  # seconds for an answer
SIZE = 4 << 20  # bytes of an answer
LINES = 40  # of a log
Report = TypeVar("Report", bound=BaseModel)

# A program of its own, because `ask` limits the time and the size of its output.
READ_URL = """
import sys, urllib.request as url
with url.build_opener(url.ProxyHandler({})).open(sys.argv[1], timeout=60) as answer:
    sys.stdout.buffer.write(answer.read())
"""

# Does the same as `in_environment` in the steps. With -I, Python imports modules only from the environment.
AS_DASK = (
    "timeout 60 setpriv --reuid dask --regid dask --init-groups --no-new-privs env -i HOME=/var/lib/daskstack/home"
    " PATH=/opt/daskstack/environment/bin:/usr/local/bin:/usr/bin:/bin DASK_CONFIG=/etc/daskstack/dask.yaml"
)


class RemoteError(RuntimeError):
    """A machine or pod did not answer as expected. The message contains its output."""


class Worker(BaseModel):
    """A worker, as the scheduler reports it: memory in bytes, CPU in percent of one processor."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(max_length=200)
    status: str = Field(max_length=50)
    threads: int = Field(ge=0, lt=1e6)
    used: float = Field(ge=0, lt=1e18)
    limit: float = Field(ge=0, lt=1e18)
    cpu: float = Field(ge=0, lt=1e9)


class Person(BaseModel):
    """Who has connections to the scheduler, and unfinished tasks there. The owner's name is `client`."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str = Field(max_length=100)
    connections: int = Field(ge=0, lt=1e6)
    running: int = Field(ge=0, lt=1e9)
    waiting: int = Field(ge=0, lt=1e9)


class Status(BaseModel):
    """The output of `report_status.py`."""

    model_config = ConfigDict(strict=True, extra="forbid")

    workers: list[Worker] = Field(max_length=10_000)
    people: list[Person] = Field(default_factory=list, max_length=10_000)


class Revoked(BaseModel):
    """The answer of `people.py`."""

    model_config = ConfigDict(strict=True, extra="forbid")

    ended: int = Field(ge=0, lt=1e6)


class Scaling(BaseModel):
    """The output of `scale_workers.py`: the number of workers, and the bounds of the stack and of adapting."""

    model_config = ConfigDict(strict=True, extra="forbid")

    number: int = Field(0, ge=0, lt=1e6)
    min: int = Field(0, ge=0, lt=1e6)
    max: int = Field(0, ge=0, lt=1e6)
    adaptive: list[int] | None = Field(None, min_length=2, max_length=2)
    error: str = Field("", max_length=1000)


def status(outputs: Mapping[str, Any]) -> Status:
    """The status of the workers. Takes a stack's outputs. Raises RemoteError if the answer is not a status report."""
    # A stack in Kubernetes without an authority for people has a scheduler that does not know them.
    people = [] if isinstance(outputs["client"], KubernetesClient) and not outputs.get("authority") else ["--people"]
    return parse_status(_ask_scheduler(outputs, REPORT_STATUS, *people))


def scale(outputs: Mapping[str, Any], handler: str, **arguments: int | None) -> Scaling:
    """Calls a handler of `elastic.py`. Takes a stack's outputs. Raises RemoteError if the scheduler refuses."""
    answer = _parse(Scaling, _ask_scheduler(outputs, SCALE_WORKERS, handler, json.dumps(arguments)))
    if answer.error:
        raise RemoteError(answer.error)
    return answer


def revoke(outputs: Mapping[str, Any], serials: Sequence[str]) -> int:
    """Makes `people.py` close the connections of these certificates; returns how many. Takes a stack's outputs."""
    arguments = json.dumps({"serials": serials})
    return _parse(Revoked, _ask_scheduler(outputs, SCALE_WORKERS, "people_revoke", arguments)).ended


def _ask_scheduler(outputs: Mapping[str, Any], program: Path, *arguments: str) -> str:
    """The output of a program that runs next to the scheduler. Its first argument is the scheduler's address."""
    client, text = outputs["client"], program.read_text()
    if isinstance(client, KubernetesClient):
        address = f"{urlsplit(client.scheduler).scheme}://127.0.0.1:8786"
        with kubectl.kubectl(client.kubernetes) as command:
            pod = ["--namespace", client.namespace, "exec", "--stdin", "deployment/dask-scheduler"]
            return ask([*command, *pod, "--", "python", "-I", "-", address, *arguments], text)
    words = shlex.join([client.scheduler, *arguments])
    return ask_machine(outputs["admin"]["machines"][client.head], f"{AS_DASK} python -I - {words}", text)


def status_through(client: MachinesClient | KubernetesClient) -> Status:
    """The same without a login: from the dashboard."""
    if not client.scheduler.startswith("tls://"):
        raise RemoteError("without TLS, only the stack's owner can read its status; look at the dashboard instead")
    with way_to(client, [urlsplit(client.dashboard).netloc]) as way:
        url = f"http://127.0.0.1:{way.ports[0]}/json/status.json"
        said = ask([sys.executable, "-I", "-c", READ_URL, url])
    try:
        found = json.loads(said)
        workers, people = report_status.workers(found), report_status.people(found["people"])
        return parse_status(json.dumps({"workers": workers, "people": people}))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise RemoteError(f"the dashboard did not answer as expected: {said[-300:]}") from None


def parse_status(said: str) -> Status:
    """The report in the last line of an answer."""
    return _parse(Status, said)


def _parse(model: type[Report], said: str) -> Report:
    try:
        return model.model_validate_json(said.strip().rpartition("\n")[2])
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise RemoteError(
            f"the scheduler's machine answered, but not with a status report ({where}: {first['msg']}): a task may have"
            f" changed the scheduler; restart its service. The answer ends with: {said[-300:]}"
        ) from None


def journal(machine: Connection) -> str:
    """The last lines of Dask's services on a machine."""
    return ask_machine(machine, f"timeout 60 journalctl -u 'dask-*' -n {LINES} --no-pager -o short-iso")


def ask_machine(machine: Connection, command: str, program: str = "") -> str:
    """The output of a command that runs as root on a machine; `program` is its standard input."""
    with ssh.command(machine) as login:
        return ask([*login, f"{'' if machine['user'] == 'root' else 'sudo -n '}{command}"], program)


def pod_logs(client: KubernetesClient, component: str | None) -> str:
    """The last lines of a release's pods, or only of one component's pods."""
    selector = f"release=dask,component={component}" if component else "release=dask"
    with kubectl.kubectl(client.kubernetes) as command:
        words = ["--namespace", client.namespace, "logs", "--selector", selector, "--tail", str(LINES)]
        return ask([*command, *words, "--prefix", "--all-containers"])


def ask(
    command: Sequence[str],
    program: str = "",
    wait: float = WAIT,
    size: int = SIZE,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """The standard output and error of a command, together. The command reads `program` from its standard input.

    Raises RemoteError if the command fails, takes longer than `wait` seconds, or prints more than `size` bytes.
    """
    late = threading.Event()
    with tempfile.TemporaryFile() as stdin:  # a pipe would block if the command does not read it
        stdin.write(program.encode())
        stdin.seek(0)
        process = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=cwd,
            env=env,
        )

        def end() -> None:  # the whole group: programs that it started may hold its output open
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        def stop() -> None:
            late.set()
            end()

        timer = threading.Timer(wait, stop)
        timer.start()
        try:
            assert process.stdout  # because stdout=PIPE above
            said = process.stdout.read(size + 1)
            if len(said) <= size:
                process.wait()
        finally:
            timer.cancel()
            if process.poll() is None:
                end()
            process.wait()
            if process.stdout:
                process.stdout.close()
    text = said[:size].decode(errors="replace")
    if late.is_set():
        raise RemoteError(
            f"`{command[0]}` did not answer completely within {wait:.0f} s; it printed: {text[-500:].strip()}"
        )
    if len(said) > size:
        raise RemoteError(f"`{command[0]}` answered with more than {size} bytes")
    if process.returncode == 124:  # `timeout` has ended the command
        raise RemoteError(f"the machine answers, but the command there did not end in time: {text[-500:].strip()}")
    if process.returncode:
        last = text[-2000:].strip() or "it printed nothing"
        raise RemoteError(f"`{command[0]}` ended with status {process.returncode}: {last}")
    return text
