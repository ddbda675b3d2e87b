"""The password of the notebook server in Kubernetes.

The first `up` creates it. It is in the stack's state, encrypted; Kubernetes gets its hash in a Secret.
"""

import secrets

from argon2 import PasswordHasher


def jupyter_secret() -> dict[str, str]:
    """A random `password`, and a `salt` in hex for the hash of any password."""
    return {"password": secrets.token_urlsafe(18), "salt": secrets.token_hex(16)}


def jupyter_hash(password: str, salt: str) -> str:
    """The password as jupyter_server_config.json expects it. The salt is an argument so that `up` changes nothing."""
    return "argon2:" + PasswordHasher().hash(password, salt=bytes.fromhex(salt))
