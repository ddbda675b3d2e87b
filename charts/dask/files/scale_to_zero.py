"""A preload of the scheduler that scales the workers to zero when the cluster is idle.

Environment variables: IDLE_SECONDS, IDLE_DEPLOYMENTS (names, separated by spaces), and those that Kubernetes sets. The
pod's account must be allowed to scale these Deployments. The next client scales each back to the number in its
annotation `dask/replicas`.
"""

import asyncio
import json
import logging
import os
import ssl
import time
import urllib.request
from pathlib import Path

from tornado.ioloop import PeriodicCallback

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
logger = logging.getLogger("dask.idle")


class Watch:
    def __init__(self, scheduler):
        self.scheduler = scheduler
        self.limit = float(os.environ["IDLE_SECONDS"])
        self.workers, self.changed = set(), time.time()

    async def check(self):
        now, workers = time.time(), set(self.scheduler.workers)
        if workers != self.workers:  # new workers get the full time
            self.workers, self.changed = workers, now
        jobs = any("-daskstack-job-" in client for client in self.scheduler.clients)
        since = now if jobs else max(self.scheduler.idle_since or now, self.changed)
        if not workers or now - since < self.limit:
            return
        logger.info("Scaling the workers to zero after %g s without work", self.limit)
        for name in os.environ["IDLE_DEPLOYMENTS"].split():
            try:
                await asyncio.to_thread(scale, name, 0)
            except OSError as error:  # the next check retries
                logger.warning("Cannot scale Deployment %s: %s", name, error)


def scale(deployment, replicas):
    host, port = (os.environ[f"KUBERNETES_SERVICE_{part}"] for part in ("HOST", "PORT"))
    namespace = (ACCOUNT / "namespace").read_text()
    request = urllib.request.Request(
        f"https://{host}:{port}/apis/apps/v1/namespaces/{namespace}/deployments/{deployment}/scale",
        method="PATCH",
        data=json.dumps({"spec": {"replicas": replicas}}).encode(),
        headers={
            "Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}",
            "Content-Type": "application/merge-patch+json",
        },
    )
    https = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ACCOUNT / "ca.crt"))
    # A proxy for the internet does not reach the API server.
    urllib.request.build_opener(urllib.request.ProxyHandler({}), https).open(request, timeout=20).close()


def dask_setup(scheduler):
    watch = Watch(scheduler)
    scheduler.idle_watch = PeriodicCallback(watch.check, min(10, watch.limit / 4) * 1000)
    scheduler.idle_watch.start()
