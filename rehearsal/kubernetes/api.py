"""A minimal client of the API server."""

import json
import ssl
import urllib.error
import urllib.request
from pathlib import Path


class Api:
    """A client with the administrator's certificate from the folder `pki`."""

    def __init__(self, address: str, pki: Path) -> None:
        self.url = f"https://{address}:6443"
        self.context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self.context.load_cert_chain(pki / "admin.crt", pki / "admin.key")

    def get(self, path: str) -> dict:
        return json.loads(self.call("GET", path))

    def make(self, path: str, body: dict) -> None:
        """Create an object, unless one with this name exists."""
        # Look first instead of handling a conflict, because a duplicate Service is rejected for its address.
        try:
            self.get(f"{path}/{body['metadata']['name']}")
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            self.call("POST", path, body)

    def delete(self, path: str) -> None:
        self.call("DELETE", path)

    def patch(self, path: str, body: dict) -> None:
        self.call("PATCH", path, body, "application/merge-patch+json")

    def call(self, method: str, path: str, body: dict | None = None, content: str = "application/json") -> str:
        """Raises OSError if the server is unreachable, or urllib.error.HTTPError if it rejects the request."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": content}, method=method)
        with urllib.request.urlopen(request, timeout=10, context=self.context) as answer:
            return answer.read().decode()
