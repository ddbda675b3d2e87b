"""The password of the notebook server.

The first `up` creates it. It is in the stack's state, encrypted; the cluster gets its hash.
"""

import json
import secrets
from typing import Any

from argon2 import PasswordHasher
from pulumi import Input, Output, Resource, ResourceOptions, Stash


def jupyter_login(name: str, own: Input[str] | None, parent: Resource) -> Output[dict]:
    """`password`, `hash`, and the hash's `salt` in hex, secret. `own` is the user's password, if there is one."""
    opts = ResourceOptions(parent=parent, ignore_changes=["input"])
    made = Stash(f"{name}-jupyter", input=Output.secret(jupyter_secret()), opts=opts).output

    def hashed(known: dict[str, Any]) -> dict[str, str]:
        password, salt = known["own"] or known["made"]["password"], known["made"]["salt"]
        return {"password": password, "hash": jupyter_hash(password, salt), "salt": salt}

    return Output.secret(Output.all(own=own, made=made).apply(hashed))


def jupyter_secret() -> dict[str, str]:
    """A random `password`, and a `salt` in hex for the hash of any password."""
    return {"password": secrets.token_urlsafe(18), "salt": secrets.token_hex(16)}


def jupyter_hash(password: str, salt: str) -> str:
    """The password as jupyter_server_config.json expects it. The salt is an argument so that `up` changes nothing."""
    return "argon2:" + PasswordHasher().hash(password, salt=bytes.fromhex(salt))


def jupyter_config(hashed: str, **sections: dict) -> str:
    """jupyter_server_config.json, which accepts this password and no token."""
    login = {"PasswordIdentityProvider": {"hashed_password": hashed}, "IdentityProvider": {"token": ""}}
    return json.dumps(login | sections)
