"""Makes a running Dask process use new TLS certificates: a preload of scheduler, nanny and worker.

Existing connections stay; new connections use the current files. Revoked certificates are rejected: the revocation list
is in the file with the authority's certificate.
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
        except OSError as error:  # ssl.SSLError too: only some of the files are new yet; try again in INTERVAL
            logger.warning("TLS certificates cannot be reloaded yet: %s", error)

    def load(self):
        security = self.server.security
        accepts = security.get_listen_args(self.role)["ssl_context"]
        connects = security.get_connection_args(self.role)["ssl_context"]
        for context in (accepts, connects):
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        for listener in self.server.listeners:
            if hasattr(listener, "tcp_server"):
                listener.tcp_server.ssl_options = accepts
        # The connection pool and each rpc share this dictionary.
        self.server.connection_args["ssl_context"] = connects
        client = getattr(self.server, "_client", None)  # that tasks on a worker use
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
