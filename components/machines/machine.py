"""One machine of the cluster, as the tree of `pulumi up` shows it."""

from collections.abc import Mapping, Sequence

from pulumi import ComponentResource, Input, ResourceOptions

from components.machines.step import Host, Step


class Machine(ComponentResource):
    """A machine and its steps; each step runs after the one before it."""

    name: str
    host: Host
    steps: list[Step]

    def __init__(self, name: str, host: Host, opts: ResourceOptions | None = None):
        super().__init__("dask:index:Machine", name, {}, opts)
        self.name = name
        self.host = host
        self.steps = []

    def step(self, state: str, variables: Mapping[str, Input[str]], *, after: Sequence[Step] = ()) -> Step:
        """Makes `state` true on the machine, after its earlier steps and after those of other machines in `after`."""
        step = Step(f"{self.name}-{state}", state, self.host, variables, parent=self, after=[*self.steps[-1:], *after])
        self.steps.append(step)
        return step
