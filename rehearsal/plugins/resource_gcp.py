"""A stand-in for Pulumi's plugin `gcp` 10.2.0: a Google Cloud simulated by files, with a real cluster and machines.

The engine starts this file as `pulumi-resource-gcp ENGINE_ADDRESS` in the stand-ins' environment, only in a rehearsal.
DASKSTACK_REHEARSAL is the rehearsal's folder. DASKSTACK_REHEARSAL_KUBERNETES is a JSON object with the commands that
start (`command`) and stop (`down`) its Kubernetes, and their working directory (`cwd`). gcp.computers describes the
variable for machines. Unsupported arguments are rejected by name.
"""

import asyncio
import contextlib
import os
from typing import Any

import values
from command import wire
from command.output import CommandError
from gcp import checks, cloud, computers, node, refusals
from gcp.cloud import Record, simulated_cloud
from gcp.computers import ATTACHED, DISK, FIREWALL
from gcp.inputs import (
    DEFAULTS,
    changes,
    complete,
    config_problems,
    configured,
    given,
    not_done,
    problems,
    refuse_to_stop,
)
from gcp.kinds import CLUSTER, POOL, VM
from gcp.table import KINDS
from provider import Answer, Provider, name_of

PROJECT_NUMBER = "123456789012"
CREDENTIALS = ("GOOGLE_OAUTH_ACCESS_TOKEN", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CREDENTIALS")


def one_at_a_time(token: str) -> contextlib.AbstractAsyncContextManager[Any]:
    if token in (CLUSTER, POOL):
        return node.BUSY
    return computers.BUSY if token in (VM, FIREWALL) else contextlib.nullcontext()


class Gcp(Provider):
    name, version, not_done = "gcp", "10.2.0", staticmethod(not_done)
    promise = "; it does not use any account"

    def config_problems(self, raw):
        return config_problems(configured(raw))

    async def config_changes(self, old, new):
        found = values.differences(configured(old), configured(new))
        # Another project contains none of these resources.
        return found, [path for path in found if path == "project"]

    def configure(self, raw):
        self._config = configured(raw)
        own = [self._config.get(name) for name in ("accessToken", "credentials")]
        if not any([*own, *map(os.environ.get, CREDENTIALS)]):
            raise CommandError(
                f"no credentials for Google Cloud; set {CREDENTIALS[0]} (any text in a rehearsal),"
                f" {CREDENTIALS[1]}, or accessToken or credentials of the provider"
            )

    async def check(self, request, kind, raw):
        token, raw = token_of(kind), values.without_nulls(raw)
        if token not in KINDS:
            return raw, [("", not_done(kind))]
        inputs = complete(KINDS[token], raw, wire.plain(wire.load(request.olds)), name_of(request))
        found = problems(token, given(wire.plain(inputs)), self._config)
        return inputs, [(name, values.redacted(reason, raw)) for name, reason in found]

    def changes(self, kind, old, new):
        return changes(KINDS[token_of(kind)], old, new)

    async def preview(self, request, kind, raw):
        """Values that Google sets are unknown in a preview."""
        kind, inputs = KINDS[token_of(kind)], given(wire.plain(raw))
        before = wire.plain(wire.load(request.olds)) if isinstance(request, Answer.UpdateRequest) else {}
        filled: dict[str, Any] = {}
        for path in kind.filled:
            cloud.put(filled, path, next((value for _, value in checks.at(before, path)), wire.UNKNOWN), inputs)
        return values.marked(cloud.over(filled, cloud.settled(kind, inputs, self._config)), raw)

    async def create(self, request, kind, raw):
        token, inputs = token_of(kind), given(wire.plain(raw))
        async with one_at_a_time(token):
            if token == CLUSTER:
                identity, record = await self._create_cluster(inputs)
            else:
                identity, record = cloud.new_record(token, inputs, self._config, known=simulated_cloud().records())
                if text := refusals.refusal(identity, record, simulated_cloud().records(), refusals.limits()):
                    raise CommandError(text)
                if token == VM and computers.real():
                    simulated_cloud().admit(identity, record)
                    await computers.create(identity, record)
                elif token == ATTACHED and computers.real():
                    raise CommandError(not_done("an AttachedDisk (use attachedDisks of an Instance)"))
                await self._put(token, identity, record, request.urn)
        return identity, values.marked(record["outputs"], raw)

    async def _create_cluster(self, inputs: dict[str, Any]) -> tuple[str, Record]:
        known = simulated_cloud()
        known.admit(*cloud.new_record(CLUSTER, inputs, self._config, kubernetes=node.NONE))
        for other, _ in known.records(CLUSTER):
            raise CommandError(not_done(f"a second cluster: a rehearsal has only one Kubernetes, and {other} uses it"))
        identity, record = cloud.new_record(CLUSTER, inputs, self._config, kubernetes=await node.up())
        known.write(identity, record)
        known.trust(record["kubernetes"]["authority"])
        return identity, record

    async def _put(self, token: str, identity: str, record: Record, urn: str, *, new: bool = True) -> None:
        known = simulated_cloud()
        write = known.create if new else known.write
        if token != POOL:
            write(identity, record)
            if token == FIREWALL and computers.real():
                await computers.compute("rules")
            return
        async with node.changing(known, record["links"][0][0]) as warnings:
            write(identity, record)
        for line in warnings:
            await self.engine.log(line, urn=urn, level="WARNING")

    async def update(self, request, kind, raw):
        token, inputs = token_of(kind), given(wire.plain(raw))
        async with one_at_a_time(token):
            old = simulated_cloud().read(request.id)
            if old is None:
                raise CommandError(f"{request.id} was not found (notFound); `pulumi refresh` removes it from the stack")
            refuse_to_stop(token, old["inputs"], inputs)
            more = {"kubernetes": old["kubernetes"]} if token == CLUSTER else {}
            identity, record = cloud.new_record(
                token, inputs, self._config, old["made"], known=simulated_cloud().records(), **more
            )
            if token == VM and computers.real():
                wanted = await computers.before_update(identity, old, record)
                await self._put(token, identity, record, request.urn, new=False)
                await computers.after_update(identity, record, wanted)
            else:
                await self._put(token, identity, record, request.urn, new=False)
            if token == DISK and computers.real():
                await computers.compute("grow", identity)
        return values.marked(record["outputs"], raw)

    async def delete(self, request, kind):
        token, outputs = token_of(kind), wire.plain(wire.load(request.properties))
        known, policy = simulated_cloud(), outputs.get("deletionPolicy")
        if policy == "PREVENT":
            raise CommandError(
                f"{request.id} has deletionPolicy PREVENT; set it to DELETE, run `pulumi up`, then try again"
            )
        if policy == "ABANDON" or (token == "projects/service:Service" and outputs.get("disableOnDestroy") is not True):
            return
        if outputs.get("deletionProtection") is True:
            raise CommandError(
                f"cannot delete {request.id} while deletionProtection is true; set it to false, run `pulumi up`,"
                " then try again"
            )
        async with one_at_a_time(token):
            record = known.read(request.id)
            if token == POOL and record:
                async with node.changing(known, record["links"][0][0]):
                    known.delete(request.id)
                return
            if token == CLUSTER and record:
                await node.down()
                known.trust("")
            if token == VM and computers.real():
                await computers.compute("delete", request.id)
            known.delete(request.id)
            if token == FIREWALL and computers.real():
                await computers.compute("rules")

    async def Invoke(self, request, context):
        if request.tok != "gcp:organizations/getProject:getProject":
            return await super().Invoke(request, context)
        project = wire.load(request.args)["projectId"]
        return Answer.InvokeResponse(**{"return": wire.dump({"projectId": project, "number": PROJECT_NUMBER})})

    async def read(self, request, kind):
        inputs, before = wire.load(request.inputs), wire.load(request.properties)
        record = simulated_cloud().read(request.id)
        if record is None:
            return "", {}, {}
        if token_of(kind) == VM and computers.real():
            await computers.observe(request.id, record)
        outputs = record.get("outputs", {})
        if not inputs:  # an import
            return request.id, record.get("inputs", {}) | {DEFAULTS: []}, outputs
        now = values.drifted(given(wire.plain(inputs)), wire.plain(before), outputs)
        made_up = {key: value for key, value in inputs.items() if key == DEFAULTS}
        return request.id, values.marked(now, inputs) | made_up, values.marked(outputs, inputs)


def token_of(kind: str) -> str:
    return kind.removeprefix("gcp:")


if __name__ == "__main__":
    asyncio.run(Gcp().serve())
