"""A person with access to a stack, as `daskstack access list` shows them."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}"  # as in on_the_cluster/access.py


class Person(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    name: str = Field(pattern=rf"^{NAME}$")
    state: Literal["valid", "incomplete", "outdated"]
    expires: str = Field(max_length=10)
    tunnels: int | None = Field(None, ge=0)
    """None: in Kubernetes nobody counts them."""

    def __str__(self) -> str:
        if self.state == "incomplete":
            text = f"incomplete: run `daskstack access add {self.name}` again"
        elif self.state == "outdated":
            text = f"has keys from before a renewal: run `daskstack access renew {self.name}`"
        else:
            opened = "" if self.tunnels is None else f", SSH connections: {self.tunnels}"
            text = f"until {self.expires}{opened}"
        return f"{self.name:<12} {text}"
