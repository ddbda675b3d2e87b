"""Keeps the figures in results.json, and writes results.md from them."""

import json
import os
import platform
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from string import Template
from typing import Any

from bench.figures import Comparison, rounded, spread
from daskstack.engine import PROJECT
from tools.python_packages import bench_venv

FOLDER = Path(__file__).parent
KEPT = FOLDER / "results.json"
RESULTS = FOLDER / "results.md"
THOUSAND = FOLDER / "thousand.md.in"
TITLES = {
    "a": "Preparing fresh machines: `up` against Ansible",
    "b": "Preparing fresh machines: `up` against the scripts alone",
    "c": "Changing nothing, and adding a worker",
    "d": "Previews of many existing machines",
    "e": "Files through the shared directory",
    "f": "Jobs on a cluster of two workers with one thread each",
    "g": "Dask in Kubernetes: `up` against helm by hand",
    "h": "A GKE stack in rehearsal: `up` against its phases by hand",
    "i": "Rehearsed Compute Engine machines: `up` against local machines",
    "j": "To the first result: `StackCluster` against a plain client over a tunnel made by hand",
    "k": "More workers in Kubernetes: `StackCluster` against `KubeCluster`",
    "l": "Many workers: registration with TLS, and the scheduler at rest",
    "m": "From a sleeping cluster to the first result: `StackCluster` against what no program can avoid",
}


def keep(results: dict[str, dict[str, Any]]) -> None:
    """Replaces the old results of these parts."""
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for part, result in results.items():
        comparisons = [asdict(each) for each in result["comparisons"].values()]
        today = f"{datetime.now(UTC):%Y-%m-%d}"
        kept[part] = {**result, "comparisons": comparisons, "date": today, "machine": computer()}
    KEPT.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
    RESULTS.write_text(page(json.loads(KEPT.read_text())))
    subprocess.run([bench_venv() / "bin" / "python", "-m", "bench.plots"], cwd=PROJECT, check=True)


def computer() -> str:
    model = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    memory = int(next(line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))) / 1024**2
    system = f"{platform.freedesktop_os_release()['PRETTY_NAME']}, Linux {platform.release()}"
    return f"{os.cpu_count()} processors ({model or platform.machine()}), {memory:.0f} GiB, {system}"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def page(kept: dict[str, dict[str, Any]]) -> str:
    """All results, as Markdown."""
    text = ["# Figures", "", "Written by `make bench`; [README.md](README.md) describes the measurements.", ""]
    for part, result in kept.items():
        comparisons = [Comparison(**each) for each in result["comparisons"]]
        text += [f"## {part}. {TITLES[part]}", "", f"{result['date']}, {result['machine']}.", ""]
        text += [*_table(comparisons), "", f"![The ratios of part {part}](plots/{part}.svg)", ""]
        if table := result.get("table"):
            text += [*_rows([table["what"], *table["columns"]], [[k, *v] for k, v in table["rows"].items()]), ""]
        text += _differences(result.get("differences", {}))
        if any(not each.met for each in comparisons):
            text += _profiles(result.get("profiles", {}))
    return "\n".join([*text, *_thousand(kept)]).rstrip() + "\n"


def _table(comparisons: list[Comparison]) -> list[str]:
    rows = []
    for each in comparisons:
        goal = "" if each.goal is None else f"{'at least' if each.more else 'at most'} {each.goal:g}"
        verdict = "" if each.goal is None else ("met" if each.met else "**missed**")
        ours, theirs = f"{spread(each.ours)} {each.unit}", f"{each.beside}: {spread(each.theirs)} {each.unit}"
        rows.append([each.what, ours, theirs, f"{each.ratio}", goal, verdict])
    return _rows(["measured", "daskstack", "alternative", "ratio", "goal", ""], rows)


def _rows(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _differences(differences: dict[str, list[str]]) -> list[str]:
    """The differences between the machines after `up` and after Ansible."""
    text = []
    for what, lines in differences.items():
        if lines:
            text += [f"After {what}, the machines differ in:", "", *(f"    {line}" for line in lines), ""]
    return text


def _profiles(profiles: dict[str, list[tuple[str, float]]]) -> list[str]:
    """The profiles of the last repeat."""
    text = []
    for what, rows in profiles.items():
        text += [f"Time of {what}:", "", *_rows(["", "s"], [[name, f"{s:.2f}"] for name, s in rows]), ""]
    return text


def _thousand(kept: dict[str, dict[str, Any]]) -> list[str]:
    """The page about a thousand machines; empty until all figures that it needs exist."""
    if not {"c", "d", "e"} <= set(kept):
        return []
    return Template(THOUSAND.read_text()).substitute(facts(kept)).splitlines()


def facts(kept: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The figures that the page about a thousand machines uses."""
    found = {(part, each["what"]): Comparison(**each) for part in kept for each in kept[part]["comparisons"]}

    def ours(part: str, start: str) -> float:
        [each] = [each for (of, what), each in found.items() if of == part and what.startswith(start)]
        return spread(each.ours).median

    rows = kept["c"]["table"]["rows"]
    return {
        "preview_each": rounded(ours("d", "time of each")),
        "memory_each": rounded(ours("d", "memory of each")),
        "nothing": rounded(ours("c", "`up` without")),
        "added": rounded(ours("c", "one worker")),
        "sessions_four": rows["the first `up`"][0],
        "sessions_nothing": rows["`up` without a change"][0],
        "sessions_added": rows["one worker more"][0],
        "sessions_thousand": rounded(1000 * float(rows["the first `up`"][0]) / 4),
        "read": rounded(ours("e", "512 MiB read")),
        "written": rounded(ours("e", "512 MiB written")),
    }
