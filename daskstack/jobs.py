"""Jobs: scripts that run next to a stack's scheduler and go on without this computer."""

import base64
import contextlib
import json
import subprocess
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from daskstack import access_file, kubectl, ssh, status_and_logs
from daskstack.client_output import KubernetesClient, MachinesClient
from daskstack.engine import PROJECT
from daskstack.status_and_logs import RemoteError

# On a machine, these programs are installed; a job in Kubernetes brings them along.
RUNNER = PROJECT / "on_the_cluster/run_job.py"
USER_CODE = Path(__file__).with_name("user_code.py")
SECRET_LIMIT = 1_000_000  # bytes; Kubernetes rejects larger Secrets than 1 MiB
JOB_NAME = "batch.kubernetes.io/job-name"
SELECTOR = ("--selector", "release=dask,component=job")
START = 900  # seconds for a job's pod to start: it may need a new node


class JobError(RuntimeError):
    """The job cannot be started, or there is no such job. The message says what to do."""


class Job(BaseModel):
    """A job, as the cluster reports it. Times are in seconds since 1970."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    number: int = Field(ge=1)
    person: str = Field("", max_length=40)
    """Who started it; empty for the stack's owner."""
    words: list[str]
    """The script and its arguments."""
    started: float
    at: float | None = None
    """When it runs first, if it has a time."""
    every: float | None = None
    """Seconds after which it runs again."""
    workers: int | None = None
    sleep: bool = False
    report: bool = False
    status: str = Field(max_length=20)
    """running, succeeded, failed or stopped."""
    ended: float | None
    code: int | None
    """The script's exit status. A script that a signal has ended has 128 and the signal's number."""

    def next_run(self) -> float | None:
        """When it runs next, if it waits for that or runs again."""
        now = time.time()
        if self.ended is not None or self.at is None:
            return None
        if self.at > now:
            return self.at
        return self.at + ((now - self.at) // self.every + 1) * self.every if self.every else None


@dataclass(frozen=True)
class Plan:
    """What a new job runs, and when. Times are in seconds since 1970."""

    words: Sequence[str]
    """The script and its arguments."""
    at: float | None = None
    """None: at once."""
    every: float | None = None
    """Seconds after which it runs again, until it is stopped. Needs `at`. None: it runs once."""
    workers: int | None = None
    """How many workers the cluster has while the script runs. None: as many as there are."""
    sleep: bool = False
    """Whether the cluster has its smallest number of workers afterwards."""
    report: bool = False
    """Whether Dask's performance report of the last run is kept in the shared directory."""


@dataclass(frozen=True)
class MachineJobs:
    """The jobs on the scheduler's machine, where root's program `on_the_cluster/jobs.py` manages them.

    A session of the tunnels' user reaches that program, which knows who it is by the SSH certificate.
    """

    client: MachinesClient

    def start(self, plan: Plan, archive: bytes) -> int:
        """Starts a script. `archive` is its folder. Returns the job's number."""
        with self._manager("start") as command:
            given = json.dumps(asdict(plan)).encode() + b"\n" + archive
            done = subprocess.run(command, input=given, capture_output=True)
        said = done.stdout.decode(errors="replace").strip().rpartition("\n")[2]
        if done.returncode or not said.isdecimal():
            raise RemoteError(f"the job did not start: {(done.stderr or done.stdout).decode(errors='replace').strip()}")
        return int(said)

    def all(self) -> list[Job]:
        with self._manager("list") as command:
            said = status_and_logs.ask(command)
        try:
            return TypeAdapter(list[Job]).validate_json(said.strip().rpartition("\n")[2])
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise RemoteError(f"the scheduler's machine answered, but not with jobs: {problem}") from None

    def output(self, number: int) -> contextlib.AbstractContextManager[list[str]]:
        """The command that prints a job's output until the job has ended."""
        return self._manager(f"output {number}")

    def stop(self, number: int) -> None:
        with self._manager(f"stop {number}") as command:
            status_and_logs.ask(command)

    @contextlib.contextmanager
    def _manager(self, words: str) -> Generator[list[str]]:
        with ssh.command(self.client.tunnel) as command:
            yield [*command, words]


@dataclass(frozen=True)
class KubernetesJobs:
    """The jobs of a release, made from the chart's template for them."""

    client: KubernetesClient

    def start(self, plan: Plan, archive: bytes) -> int:
        """As `MachineJobs.start`."""
        if len(archive) > SECRET_LIMIT * 3 // 4:
            raise JobError(
                f"the script's folder has {len(archive) / 1e6:.1f} MB as an archive; Kubernetes takes"
                f" {SECRET_LIMIT * 3 / 4e6:.2f} MB: put data into the shared directory or a bucket"
            )
        if not (found := self._ask("get", "cronjob", "dask-job", "--output=json", "--ignore-not-found").strip()):
            raise JobError("this release has no template for jobs: it is of the official chart, or needs another `up`")
        template = json.loads(found)
        number = max((job.number for job in self.all()), default=0) + 1
        name, labels = f"dask-job-{number}", template["spec"]["jobTemplate"]["metadata"]["labels"]
        metadata = {"name": name, "labels": labels}
        spec: dict[str, Any] = {**template["spec"]["jobTemplate"]["spec"], "suspend": True}
        [volume] = [each for each in spec["template"]["spec"]["volumes"] if each["name"] == "job"]
        volume["secret"]["secretName"] = name
        if plan.report and not shares_a_directory(template):
            raise JobError("a report is kept in the shared directory, and this stack has none: set data in its file")
        annotations = {"dask/plan": json.dumps(asdict(plan))}
        job = metadata | {"annotations": annotations, "ownerReferences": [owner(template)]}
        made = self._create({"apiVersion": "batch/v1", "kind": "Job", "metadata": job, "spec": spec})
        files = {"job": json.dumps(asdict(plan) | {"number": number}).encode(), "code": archive}
        files |= {"run_job.py": RUNNER.read_bytes(), "user_code.py": USER_CODE.read_bytes()}
        data = {key: base64.b64encode(each).decode() for key, each in files.items()}
        secret = metadata | {"ownerReferences": [owner(made)]}
        self._create({"apiVersion": "v1", "kind": "Secret", "metadata": secret, "data": data})
        self._ask("patch", "job", name, "--patch", '{"spec": {"suspend": false}}')
        return number

    def all(self) -> list[Job]:
        jobs, codes = self._list("jobs", SELECTOR), {}
        for pod in self._list("pods", SELECTOR):
            for container in pod["status"].get("containerStatuses", []):
                if end := container["state"].get("terminated"):
                    codes[pod["metadata"]["labels"][JOB_NAME]] = int(end["exitCode"])
        return sorted((described(job, codes) for job in jobs), key=lambda job: job.number)

    @contextlib.contextmanager
    def output(self, number: int) -> Generator[list[str]]:
        """Waits until the job's pod has started, or until the job has ended without one."""
        deadline = time.monotonic() + START
        while not (pod := self._started(number)):
            if self._job(number).ended is not None:
                yield ["true"]
                return
            if time.monotonic() > deadline:
                raise RemoteError(f"the pod of job {number} did not start within {START} s")
            time.sleep(1)
        with kubectl.kubectl(self.client.kubernetes) as command:
            yield [*command, "--namespace", self.client.namespace, "logs", "--follow", pod, "--container=job"]

    def stop(self, number: int) -> None:
        """A running script gets a signal, so that its output stays; a pod that has not started is deleted."""
        if self._job(number).ended is not None:
            return
        name, pod = f"dask-job-{number}", self._started(number)
        self._ask("annotate", "job", name, "dask/stopped=yes", "--overwrite")
        if pod:
            self._ask("exec", pod, "--container=job", "--", "sh", "-c", "kill -TERM 1")
        else:
            self._ask("patch", "job", name, "--patch", '{"spec": {"suspend": true}}')

    def _started(self, number: int) -> str:
        """The job's newest pod whose script has started; empty if there is none."""
        pods = self._list("pods", ("--selector", f"{JOB_NAME}=dask-job-{number}"))
        started = [each["metadata"] for each in pods if each["status"]["phase"] in ("Running", "Succeeded", "Failed")]
        return max(started, key=lambda each: each["creationTimestamp"])["name"] if started else ""

    def _job(self, number: int) -> Job:
        for job in self.all():
            if job.number == number:
                return job
        raise JobError(f"there is no job {number}")

    def _list(self, kind: str, selector: Sequence[str]) -> list[dict[str, Any]]:
        """The objects, the oldest first."""
        found = json.loads(self._ask("get", kind, *selector, "--output=json"))["items"]
        return sorted(found, key=lambda each: each["metadata"]["creationTimestamp"])

    def _create(self, manifest: dict[str, Any]) -> dict[str, Any]:
        return json.loads(self._ask("create", "--filename=-", "--output=json", given=json.dumps(manifest)))

    def _ask(self, *words: str, given: str = "") -> str:
        with kubectl.kubectl(self.client.kubernetes) as command:
            return kubectl.answer([*command, "--namespace", self.client.namespace], *words, given=given)


def owner(manifest: dict[str, Any]) -> dict[str, Any]:
    """The owner reference to an object, which is deleted together with what it owns."""
    known = {"apiVersion": manifest["apiVersion"], "kind": manifest["kind"], "controller": True}
    return known | {key: manifest["metadata"][key] for key in ("name", "uid")}


def described(job: dict[str, Any], codes: Mapping[str, int]) -> Job:
    """A job of Kubernetes. `codes` has the exit statuses of pods by the names of their jobs."""
    metadata, status = job["metadata"], job["status"]
    annotations = metadata.get("annotations", {})
    ends = {each["type"]: each for each in status.get("conditions", []) if each["status"] == "True"}
    end = ends.get("Complete") or ends.get("Failed")
    stopped = "dask/stopped" in annotations and (end or job["spec"].get("suspend"))
    state = "stopped" if stopped else "running" if not end else "succeeded" if "Complete" in ends else "failed"
    ended = seconds(end["lastTransitionTime"]) if end else time.time() if stopped else None
    return Job(
        **json.loads(annotations.get("dask/plan", '{"words": []}')),
        number=int(metadata["name"].rpartition("-")[2]),
        started=seconds(metadata["creationTimestamp"]),
        status=state,
        ended=ended,
        code=None if ended is None else codes.get(metadata["name"], int(state != "succeeded")),
    )


def shares_a_directory(template: dict[str, Any]) -> bool:
    """Whether jobs of this template see the shared directory."""
    [container] = template["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    return any(each["name"] == "DASKSTACK_DATA" for each in container["env"])


def seconds(time_of_kubernetes: str) -> float:
    return datetime.fromisoformat(time_of_kubernetes).timestamp()


def of(stack: str) -> MachineJobs | KubernetesJobs:
    """The jobs of a stack, which an access file can name. Raises JobError if the file does not allow jobs."""
    client = access_file.client(stack)
    if isinstance(client, MachinesClient):
        return MachineJobs(client)
    if access_file.find(stack):
        raise JobError("on Kubernetes, only the stack's owner can start and see jobs")
    return KubernetesJobs(client)
