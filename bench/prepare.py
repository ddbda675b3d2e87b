"""Parts a, b and c: fresh machines prepared by `up`, by Ansible, and by the scripts alone; then changes."""

import json
import os
import re
import shlex
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import ansible
from bench.figures import Comparison, Operation, longest_path, slowest
from bench.rig import Fleet, Program, Rig, Run, cluster, run, ssh_connections, steps
from daskstack import ssh
from daskstack.client_output import Connection
from daskstack.engine import PROJECT
from on_this_computer import send_scripts
from rehearsal.machines import Machine

SIZES = (1, 4)
NAMES = ("scheduler", "worker-1", "worker-2", "worker-3", "worker-4")
# The environment's installation, and the steps that need it: services and check.
WITHOUT = ("--exclude", "**local:Command::dask-*-files", "--exclude-dependents")
VARIANTS = {"without the environment": (WITHOUT, ("--skip-tags", "environment")), "with the environment": ((), ())}


def measure(rig: Rig, parts: Sequence[str], repeats: int) -> dict[str, dict[str, Any]]:
    """The results of the requested parts of a, b and c."""
    with rig.fleet("prepare") as fleet:
        return _measure(rig, fleet, parts, repeats)


def _measure(rig: Rig, fleet: Fleet, parts: Sequence[str], repeats: int) -> dict[str, dict[str, Any]]:
    program = rig.program("prepare")
    results: dict[str, dict[str, Any]] = {part: {"comparisons": {}, "profiles": {}} for part in parts}
    wanted = [(size, variant) for variant in VARIANTS for size in SIZES if needed(parts, size, variant)]

    def note(part: str, what: str, beside: str, goal: float, ours: float, theirs: float) -> None:
        known = results[part]["comparisons"]
        known.setdefault(what, Comparison(what, beside, "s", goal)).add(ours, theirs)

    for repeat in range(repeats):
        floors = {}
        for size, variant in wanted:
            names, (up_words, play_words) = NAMES[:size], VARIANTS[variant]
            what = f"{size} machine{'s' if size > 1 else ''}, {variant}"
            machines = fleet.fresh(*names)
            done = up(program, fleet, machines, *up_words)
            opened = ssh_connections(machines)
            made, exported = ansible.state(machines), program.deployment()
            harvested = rig.scratch()
            wrote = ansible.harvest(machines, whole(stdin(exported, "dask-check")), harvested)

            if "c" in parts and size == 4 and variant == "with the environment":
                changes(results["c"], program, fleet, machines, done, opened, note)
            if "b" in parts and size == 1:
                machines = fleet.fresh(*names)
                floors[variant], where = floor(exported, machines)
                results["b"]["profiles"][f"the scripts alone, {variant}"] = where
            if "b" in parts:
                note("b", what, "the scripts on one machine", 1.5, done.seconds, floors[variant])
                results["b"]["profiles"][f"`up` of {what}"] = path(done)
            if "a" in parts:
                machines = fleet.fresh(*names)
                played = ansible.play(rig, machines, wrote, harvested, *play_words)
                goal = 0.5 if up_words else 0.8
                note("a", what, "Ansible", goal, done.seconds, played.seconds)
                results["a"]["profiles"][f"`up` of {what}"] = path(done)
                results["a"]["profiles"][f"Ansible, {what}"] = slowest(ansible.tasks(played), 12)
                found = ansible.state(machines)
                differences = [f"only after `up`: {line}" for line in sorted(made - found)]
                differences += [f"only after Ansible: {line}" for line in sorted(found - made)]
                results["a"].setdefault("differences", {})[what] = differences
        print(f"repeat {repeat + 1} of {repeats}", flush=True)
    return results


def needed(parts: Sequence[str], size: int, variant: str) -> bool:
    return (size == 1 and ("a" in parts or "b" in parts)) or (size == 4 and variant == "with the environment")


def up(program: Program, fleet: Fleet, machines: Sequence[Machine], *words: str, **settings: Any) -> Run:
    """The first `up` of a stack on these machines."""
    program.fresh()
    program.describe(cluster(machines, fleet.network, **settings))
    return program.up(*words)


def changes(
    result: dict[str, Any], program: Program, fleet: Fleet, machines: list[Machine], first: Run, opened: int, note: Any
) -> None:
    """An `up` without changes and one that adds a worker, compared with the first one of the same stack."""
    nothing = program.up()
    after_nothing = ssh_connections(machines)
    machines = fleet.add(*NAMES)
    program.describe(cluster(machines, fleet.network))
    added = program.up()
    after_all = ssh_connections(machines)
    note("c", "`up` without a change", "the first `up` of 4 machines", 0.1, nothing.seconds, first.seconds)
    note("c", "one worker more, to three", "the first `up` of 4 machines", 0.35, added.seconds, first.seconds)
    result["profiles"] = {
        "the first `up`": path(first),
        "`up` without a change": path(nothing),
        "one worker more": path(added),
    }
    counts = (opened, after_nothing - opened, after_all - after_nothing)
    result["table"] = {
        "what": "SSH connections of",
        "columns": ["the engine's"],
        "rows": {what: [str(count)] for what, count in zip(result["profiles"], counts, strict=True)},
    }


def path(done: Run) -> list[tuple[str, float]]:
    """The critical path of an `up`."""
    commands = steps(done)
    start = min((each.start for each in commands), default=done.seconds)
    return longest_path([Operation("start of engine and program", 0, start), *commands], done.seconds)


def stdin(exported: list[dict[str, Any]], name: str) -> str:
    return next((each["inputs"]["stdin"] for each in exported if each["urn"].endswith(f"::{name}")), "")


def whole(step: str) -> str:
    """The step with the texts of its files, for machines that have no copies of them."""
    texts = send_scripts.texts()
    step = re.sub(r"^cd .*\n", "", step, flags=re.MULTILINE)
    step = re.sub(r"IFS= read -r -d '' (\w+) <(\w+) .*", lambda of: f"{of[1]}={shlex.quote(texts[of[2]])}", step)
    return re.sub(r'eval "\$\(cat (\w+) (\w+)\)"', lambda of: texts[of[1]] + texts[of[2]], step)


def floor(exported: list[dict[str, Any]], machines: Sequence[Machine]) -> tuple[float, list[tuple[str, float]]]:
    """Runs the scripts that `up` ran on a machine with this name and address, one after another, over one open SSH
    connection. Their new output, such as keys, replaces the old output in later scripts."""
    [machine] = machines
    remote = [each["inputs"] for each in exported if each["type"] == "command:remote:Command"]
    fresh = {inputs["connection"]["hostKey"]: machine.host_key for inputs in remote}
    durations = []
    with connection(machine) as command:
        for each in exported:
            kind, inputs = each["type"], each.get("inputs", {})
            if not kind.startswith("command:"):
                continue
            if kind == "command:remote:Command":
                done = run([*command, inputs["create"]], text_in=replaced(inputs["stdin"], fresh))
            else:
                environ = {name: replaced(value, fresh) for name, value in inputs["environment"].items()}
                done = run(shlex.split(inputs["create"]), env=os.environ | environ, cwd=PROJECT)
            fresh |= dict(pairs(each["outputs"]["stdout"], [line for _, line in done.lines]))
            durations.append((each["urn"].rpartition("::")[2], done.seconds))
    return sum(seconds for _, seconds in durations), durations


@contextmanager
def connection(machine: Machine) -> Generator[list[str]]:
    """An `ssh` command that uses one open connection."""
    facts: Connection = {"host": machine.address, "user": "admin", "host_key": machine.host_key}
    with ssh.command({**facts, "private_key": machine.key.read_text()}) as command:
        *options, host = command
        shared = [*options, f"-oControlPath={Path(options[2]).parent}/control", host]
        run([*shared[:-1], "-oControlMaster=yes", "-oControlPersist=yes", "-f", "-N", host])
        try:
            yield shared
        finally:
            run([*shared[:-1], "-O", "exit", host])


def pairs(before: str, now: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The values that a step printed then, paired with those that it prints now."""
    if before.startswith("{"):
        then, since = json.loads(before), json.loads(next(line for line in now if line.startswith("{")))
        yield from ((value, since[key]) for key, value in then.items() if value and value != since[key])


def replaced(text: str, fresh: dict[str, str]) -> str:
    for before, now in fresh.items():
        text = text.replace(before, now)
    return text
