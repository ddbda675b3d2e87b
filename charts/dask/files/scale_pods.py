"""Scales the workers' Deployments: a preload of the scheduler's pod.

The ConfigMap $SCALING holds two JSON texts: `settings`, which the chart writes, and `state`, which this program writes
for a scheduler that restarts. The settings are `deployments` (their names; the main one comes first), `bounds` of the
main one's number of workers, `groups` (for others with bounds, `min`, `max` and the Dask `resources` of each worker),
and `idle`, the seconds without work after which all Deployments are scaled to zero. The next client scales each idle
Deployment back to the number in its annotation `dask/replicas`.

The number of a group's workers follows the tasks that ask for its resources. Other Deployments keep their number while
they are not idle.

Workers that are to stop first hand over their results. Then they stop their HTTP server, so their pods are not ready
any more. Of a Deployment's pods, Kubernetes deletes those first that are not ready. So the scheduler's account needs no
permission for pods: with one to change them, tasks could run code as any account in the namespace.
"""

import asyncio
import contextlib
import itertools
import json
import logging
import math
import os
import runpy
import ssl
import time
import urllib.request
from collections import deque
from pathlib import Path

from distributed.core import Status
from distributed.protocol.pickle import dumps

INTERVAL = 2  # seconds

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
SCALING = runpy.run_path(str(Path(__file__).with_name("scaling.py")))
logger = logging.getLogger("dask.scaling")


class Pods(SCALING["Number"]):
    def __init__(self, scheduler, api, file, clock=time.monotonic):
        super().__init__(scheduler, clock)
        self.api, self.file = api, f"v1 configmaps/{file}"
        self.deployments, self.idle, self.asleep = [], None, False
        self.needs = {}
        self.loaded, self.saved, self.replicas = False, "", None
        # Workers that this program retires, and those of them that have handed over their results.
        self.begun, self.retired = set(), set()
        self.workers, self.changed = set(), time.time()
        self.asked, self.tasks = asyncio.Event(), set()

    async def run(self):
        while True:
            try:
                await self.follow()
            except (OSError, *SCALING["DAMAGED"]) as error:
                logger.warning("Cannot scale the workers: %s; trying again", error)
            with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                await asyncio.wait_for(self.asked.wait(), INTERVAL)
            self.asked.clear()

    def tick(self):
        self.asked.set()

    async def follow(self):
        await self.read()
        found = [await self.api("GET", f"apps/v1 deployments/{name}") for name in self.deployments]
        replicas = found[0]["spec"]["replicas"]
        if not self.bounds and not self.asleep:
            self.number = replicas  # the chart's; with bounds, the cluster keeps its workers
        awake = any(each["spec"]["replicas"] for each in found)
        if (self.asleep and (awake or any(map(self.demand, self.groups)))) or self.replicas == 0 < replicas:
            # A client has started the workers, or tasks wait for a group.
            self.asleep, self.number, self.changed = False, max(self.number, replicas), time.time()
            self.targets.clear()
        self.replicas = replicas
        if self.is_idle():
            logger.info("Scaling the workers to zero after %g s without work", self.idle)
            self.asleep = True
            await self.write()
            for name in self.deployments:
                await self.scale_to(name, 0)
        elif not self.asleep:
            if self.bounds:
                await self.adjust(self.deployments[0], found[0], self.wanted())
            for name, deployment in zip(self.deployments, found, strict=True):
                if name in self.groups:
                    await self.adjust(name, deployment, self.needed(name, deployment["spec"]["replicas"]))
        await self.write()

    def is_idle(self):
        now, workers = time.time(), set(self.scheduler.workers)
        if workers != self.workers:  # new workers get the full time
            self.workers, self.changed = workers, now
        jobs = any("-daskstack-job-" in client for client in self.scheduler.clients)
        since = now if jobs else max(self.scheduler.idle_since or now, self.changed)
        return bool(workers and self.idle and now - since >= self.idle and not self.is_held())

    def needed(self, name, number):
        """The number of workers that the group needs. As in the main group, a short pause stops none."""
        group = self.groups[name]
        target = self.steady(self.needs.setdefault(name, deque()), number, self.demand(name))
        return min(max(target, group["min"]), group["max"])

    def demand(self, name):
        """How many of the group's workers can work on tasks at the same time that ask for its resources."""
        scheduler, group = self.scheduler, self.groups[name]
        waiting = itertools.islice(scheduler.unrunnable, SCALING["WAITING"])
        tasks = [task for task in waiting if self.group_for(task) == name]
        for worker in scheduler.workers.values():
            if deployment_of(worker.name) == name:
                tasks += itertools.islice(worker.processing, SCALING["WAITING"])
        shares = sum(min(share(task, group["resources"]), 1) for task in tasks)
        return math.ceil(round(shares, 6))  # sums of fractions are inexact

    def group_for(self, task):
        """The first group whose workers can run this task, which no worker can run now."""
        fitting = (name for name, group in self.groups.items() if 0 < share(task, group["resources"]) <= 1)
        return next(fitting, None)

    # The main Deployment

    async def adjust(self, deployment, found, wanted):
        """Takes the next step towards this number of pods. One step ends before the next begins."""
        replicas, ready = found["spec"]["replicas"], found["status"].get("readyReplicas", 0)
        workers = {each.name: each for each in self.scheduler.workers.values()}
        gone = {name for name, worker in workers.items() if worker.status == Status.closing_gracefully}
        self.begun &= workers.keys()
        self.retired &= gone
        if self.leaving:
            return
        ours = {name: worker for name, worker in workers.items() if deployment_of(name) == deployment}
        leaving, retired = gone & ours.keys(), self.retired & ours.keys()
        if retired:
            await self.stop_serving([ours[name].address for name in retired])
            if ready <= replicas - len(retired):
                await self.scale_to(deployment, replicas - len(retired))
                self.begun -= retired
                self.retired -= retired
        elif self.begun & leaving:  # their retirement has failed halfway
            self.retire(self.begun & leaving)
        elif replicas < wanted:
            await self.scale_to(deployment, wanted)
        elif replicas > wanted and not self.is_held():
            present = {name: worker for name, worker in ours.items() if name not in leaving}
            absent = replicas - len(present)
            if absent > 0:  # Kubernetes deletes those first that are not ready yet
                await self.scale_to(deployment, max(wanted, replicas - absent))
            elif absent == 0 and is_settled(found):
                names = self.cheapest(present)[: replicas - wanted]
                # The workers of a group can hand over their results to others.
                if deployment not in self.groups or workers.keys() - gone == present.keys():
                    names = self.without_last(names, present)
                if names:
                    self.retire(set(names))

    def is_ours(self, name):
        """Whether this is the name of a pod of the main Deployment."""
        return deployment_of(name) == self.deployments[0]

    def retire(self, names):
        self.leaving |= names
        self.begun |= names
        task = asyncio.ensure_future(self.leave(names))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def leave(self, names):
        try:
            ready = await self.drain(names)
            self.retired |= {self.scheduler.workers[each].name for each in ready if each in self.scheduler.workers}
        except Exception:
            logger.exception("Stopping %s failed; trying again", ", ".join(sorted(names)))
        finally:
            self.leaving -= names
            self.asked.set()

    async def stop_serving(self, addresses):
        def stop(dask_worker):  # a function inside a function is sent by value
            dask_worker.http_server.stop()

        message = {"op": "run", "function": dumps(stop), "wait": True}
        await self.scheduler.broadcast(msg=message, workers=addresses, on_error="ignore")

    async def scale_to(self, name, replicas):
        await self.api("PATCH", f"apps/v1 deployments/{name}/scale", {"spec": {"replicas": replicas}})
        if name == self.deployments[0]:
            self.replicas = replicas

    # The ConfigMap

    async def read(self):
        data = (await self.api("GET", self.file))["data"]
        settings = json.loads(data["settings"])
        if not self.loaded:
            try:
                known = json.loads(data.get("state", "{}"))
                self.restore(known)
                self.asleep = known.get("asleep") is True
            except SCALING["DAMAGED"] as error:
                logger.warning("The state is damaged (%s); the number of workers stays", error)
                self.number, self.adaptive, self.asleep = None, None, False
            self.loaded = True
        if self.number is None:  # a new cluster, or one that ran without bounds before
            main = await self.api("GET", f"apps/v1 deployments/{settings['deployments'][0]}")
            self.number = main["spec"]["replicas"] if self.number is None else self.number
        self.deployments, self.bounds, self.idle = settings["deployments"], settings["bounds"], settings["idle"]
        self.groups = settings["groups"]

    async def write(self):
        text = json.dumps({**self.state(), "asleep": self.asleep})
        if text != self.saved:
            await self.api("PATCH", self.file, {"data": {"state": text}})
            self.saved = text

    # Handlers

    def register(self):
        super().register()
        for handler in (self.scaling, self.scale, self.adapt, self.hold):
            self.scheduler.handlers[f"workers_{handler.__name__}"] = self.up_to_date(handler)

    def up_to_date(self, handler):
        async def answer(**arguments):
            await self.read()
            found = handler(**arguments)
            await self.write()
            return found

        return answer

    def hold(self, seconds):
        if not self.bounds:  # only workers that are idle stop
            self.held_until = self.clock() + seconds
            return {}
        self.asleep = self.asleep and not seconds
        return super().hold(seconds)


def deployment_of(name):
    """The Deployment of the pod with this name."""
    return str(name).rsplit("-", 2)[0]


def share(task, resources):
    """The share of a worker's resources that the task asks for; more than 1 if the worker does not have them."""
    asked = task.resource_restrictions or {}
    return max(
        (amount / resources[name] if name in resources else math.inf for name, amount in asked.items()), default=0
    )


def is_settled(deployment):
    """Whether all pods are ready, and no update replaces any."""
    wanted, status = deployment["spec"]["replicas"], deployment["status"]
    counts = {status.get(key, 0) for key in ("replicas", "updatedReplicas", "readyReplicas")}
    return status.get("observedGeneration", 0) >= deployment["metadata"]["generation"] and counts == {wanted}


async def ask(method, what, body=None):
    """The answer of the API server. `what` is a version and a path in the namespace: "apps/v1 deployments/NAME"."""
    return await asyncio.to_thread(request, method, what, body)


def request(method, what, body):
    host, port = (os.environ[f"KUBERNETES_SERVICE_{part}"] for part in ("HOST", "PORT"))
    version, path = what.split()
    group = "apis" if "/" in version else "api"
    asked = urllib.request.Request(
        f"https://{host}:{port}/{group}/{version}/namespaces/{(ACCOUNT / 'namespace').read_text()}/{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}",
            "Content-Type": "application/merge-patch+json",
        },
    )
    https = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ACCOUNT / "ca.crt"))
    # A proxy for the internet does not reach the API server.
    with urllib.request.build_opener(urllib.request.ProxyHandler({}), https).open(asked, timeout=20) as answer:
        return json.load(answer)


def dask_setup(scheduler):
    scheduler.scaling = pods = Pods(scheduler, ask, os.environ["SCALING"])
    pods.register()
    pods.running = asyncio.ensure_future(pods.run())
