"""Scales the release's workers to none when nothing was computed for so long: a preload of the scheduler.

Variables: IDLE_SECONDS, IDLE_DEPLOYMENTS (names, with spaces between), and what Kubernetes gives a pod whose account
may scale these. Whoever connects next scales them up again, to what each Deployment's annotation `dask/replicas` says.
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
        self.without_workers = time.time()

    async def look(self):
        if not self.scheduler.workers:
            self.without_workers = time.time()
        # Workers that have just come get as long, whatever was before.
        since = max(self.scheduler.idle_since or time.time(), self.without_workers)
        if time.time() - since < self.limit:
            return
        logger.info("Nothing was computed for %g s: the workers go", self.limit)
        for name in os.environ["IDLE_DEPLOYMENTS"].split():
            try:
                await asyncio.to_thread(scale, name, 0)
            except OSError as error:  # the next look tries again
                logger.warning("Deployment %s cannot be scaled: %s", name, error)


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
    context = ssl.create_default_context(cafile=ACCOUNT / "ca.crt")
    urllib.request.urlopen(request, timeout=20, context=context).close()


def dask_setup(scheduler):
    watch = Watch(scheduler)
    scheduler.idle_watch = PeriodicCallback(watch.look, min(10, watch.limit / 4) * 1000)
    scheduler.idle_watch.start()
