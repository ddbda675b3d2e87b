"""A plugin `command` that runs nothing: it appends operations to the file $OPERATIONS. All outputs are the same.

The stand-ins' own Python runs this file, with their folder of sources in PYTHONPATH.
"""

import asyncio
import json
import os
from typing import Any

from command import wire
from provider import Provider, name_of

OUTPUT = json.dumps(
    {
        "hostKey": "ssh-ed25519 AAAA", "userKey": "ssh-ed25519 AAAA", "request": "of a certificate",
        "hostAuthority": "ssh-ed25519 AAAA", "tlsAuthority": "a certificate",
        "bundle": "certificates", "tls": "a certificate", "user": "a certificate", "expires": "2099-01-01",
        "uv": "uv", "uvSha256": "its hash",
    }
)  # fmt: skip


class Canned(Provider):
    name, version = "command", "1.2.1"

    async def check(self, request: Any, kind: str, raw: Any) -> Any:
        return raw, []

    def changes(self, kind: str, old: Any, new: Any) -> Any:
        changed = [name for name in old.keys() | new.keys() if old.get(name) != new.get(name)]
        return dict.fromkeys(changed, "UPDATE"), [], False

    async def preview(self, request: Any, kind: str, raw: Any) -> Any:
        return raw

    async def create(self, request: Any, kind: str, raw: Any) -> Any:
        return name_of(request), self._done(request, "create", raw)

    async def update(self, request: Any, kind: str, raw: Any) -> Any:
        return self._done(request, "update", raw)

    async def delete(self, request: Any, kind: str) -> None:
        self._done(request, "delete", wire.load(request.properties))

    def _done(self, request: Any, what: str, raw: Any) -> Any:
        host = wire.plain(raw).get("connection", {}).get("host", "this computer")
        with open(os.environ["OPERATIONS"], "a") as file:
            print(json.dumps([what, name_of(request), host]), file=file)
        return raw | {"stdout": OUTPUT, "stderr": ""}


if __name__ == "__main__":
    asyncio.run(Canned().serve())
