"""What a cluster's machines and pods say when they are asked: text and JSON, never a pickle.

Any task may have changed what answers there, so answers have a time limit and a size limit, are checked before they are
used, and lose their control characters before a terminal sees them.
"""

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from daskstack import kubectl, ssh
from daskstack.client_output import Connection, KubernetesClient

REPORT_STATUS = Path(__file__).with_name("report_status.py")
WAIT = 90  # seconds for an answer
SIZE = 4 << 20  # bytes of an answer
LINES = 40  # of a log

# As `in_environment` of the steps does it. The interpreter looks for modules in the environment alone (-I).
AS_DASK = (
    "timeout 60 setpriv --reuid dask --regid dask --init-groups --no-new-privs env -i HOME=/var/lib/daskstack/home"
    " PATH=/opt/daskstack/environment/bin:/usr/local/bin:/usr/bin:/bin DASK_CONFIG=/etc/daskstack/dask.yaml"
)


class RemoteError(RuntimeError):
    """A machine or pod did not answer as expected; the message has its own words."""


class Worker(BaseModel):
    """A worker, by the scheduler's account; memory in bytes, CPU in percent of one processor."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(max_length=200)
    status: str = Field(max_length=50)
    threads: int = Field(ge=0, lt=1e6)
    used: float = Field(ge=0, lt=1e18)
    limit: float = Field(ge=0, lt=1e18)
    cpu: float = Field(ge=0, lt=1e9)


class Status(BaseModel):
    """What `report_status.py` prints."""

    model_config = ConfigDict(strict=True, extra="forbid")

    workers: list[Worker] = Field(max_length=10_000)


def status(outputs: Mapping[str, Any]) -> Status:
    """How the workers are; from a stack's outputs. RemoteError where the answer is none."""
    client = outputs["client"]
    program, scheduler = REPORT_STATUS.read_text(), client.scheduler
    if isinstance(client, KubernetesClient):
        address = f"{urlsplit(scheduler).scheme}://127.0.0.1:8786"
        with kubectl.kubectl(client.kubernetes) as command:
            pod = ["--namespace", client.namespace, "exec", "--stdin", "deployment/dask-scheduler"]
            said = ask([*command, *pod, "--", "python", "-I", "-", address], program)
    else:
        machine = outputs["admin"]["machines"][client.head]
        with ssh.command(machine) as command:
            said = ask([*command, f"{_as_root(machine)}{AS_DASK} python -I - {scheduler}"], program)
    return parse_status(said)


def parse_status(said: str) -> Status:
    """The report in the last line of what was said."""
    try:
        return Status.model_validate_json(said.strip().rpartition("\n")[2])
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise RemoteError(
            f"the scheduler's machine answered, but not with a status report ({where}: {first['msg']}): a task may have"
            f" changed the scheduler; restart its service. The answer ends with: {said[-300:]}"
        ) from None


def journal(machine: Connection) -> str:
    """The last lines of Dask's services on a machine."""
    with ssh.command(machine) as command:
        show = f"journalctl -u 'dask-*' -n {LINES} --no-pager -o short-iso"
        return ask([*command, f"{_as_root(machine)}timeout 60 {show}"])


def pod_logs(client: KubernetesClient, component: str | None) -> str:
    """The last lines of the pods of a release, or of one kind of them."""
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
    """What a command said, on both of its outputs, with `program` on its standard input.

    RemoteError where it fails, takes longer than `wait` seconds, or says more than `size` bytes.
    """
    late = threading.Event()
    with tempfile.TemporaryFile() as stdin:  # a pipe would stand still where nobody reads it
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

        def end() -> None:  # and the programs that it has started, which may hold its output open
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        def stop() -> None:
            late.set()
            end()

        timer = threading.Timer(wait, stop)
        timer.start()
        try:
            assert process.stdout  # a pipe, as asked above
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
        raise RemoteError(f"`{command[0]}` had no whole answer after {wait:.0f} s; it said: {text[-500:].strip()}")
    if len(said) > size:
        raise RemoteError(f"`{command[0]}` answered with more than {size} bytes")
    if process.returncode == 124:  # of `timeout`
        raise RemoteError(f"the machine answers, but what was asked there had not ended in time: {text[-500:].strip()}")
    if process.returncode:
        last = text[-2000:].strip() or "it said nothing"
        raise RemoteError(f"`{command[0]}` ended with status {process.returncode}: {last}")
    return text


def _as_root(machine: Connection) -> str:
    return "" if machine["user"] == "root" else "sudo -n "
