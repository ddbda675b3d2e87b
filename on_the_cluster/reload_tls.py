"""Lets a running Dask process use new TLS certificates: a preload of scheduler, nanny and worker.

Connections stay; each new one is made with what the files hold now. A certificate that the authority has revoked is
refused: the list is in the file of the authority's certificate.
"""

import logging
import ssl
from pathlib import Path

from tornado.ioloop import PeriodicCallback

INTERVAL = 5  # seconds
logger = logging.getLogger("distributed.reload_tls")


class Reload:
    def __init__(self, server, role):
        self.server, self.role, self.seen = server, role, None
        tls = server.security.get_tls_config_for_role(role)
        self.files = [Path(tls[each]) for each in ("ca_file", "cert", "key")]
        self.callback = PeriodicCallback(self.look, INTERVAL * 1000)

    def look(self):
        try:
            now = [(file.stat().st_ino, file.stat().st_mtime_ns) for file in self.files]
            if now != self.seen:
                self.load()
                self.seen = now
        except OSError as error:  # ssl.SSLError is one: half of the files are new; the next look finds them all
            logger.warning("TLS certificates are not reloaded yet: %s", error)

    def load(self):
        security = self.server.security
        accepts = security.get_listen_args(self.role)["ssl_context"]
        connects = security.get_connection_args(self.role)["ssl_context"]
        for context in (accepts, connects):
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        for listener in self.server.listeners:
            if hasattr(listener, "tcp_server"):
                listener.tcp_server.ssl_options = accepts
        # The pool and each rpc share this dictionary.
        self.server.connection_args["ssl_context"] = connects
        client = getattr(self.server, "_client", None)  # of the tasks of a worker
        if client is not None:
            client.connection_args["ssl_context"] = connects


def start(server, role):
    if not server.security.require_encryption:
        return
    server.reload_tls = Reload(server, role)
    server.reload_tls.look()
    server.reload_tls.callback.start()


def dask_setup(server):
    from distributed import Scheduler

    start(server, "scheduler" if isinstance(server, Scheduler) else "worker")
