"""The arithmetic of the benchmarks' figures, and the report."""

import json
import re
import subprocess
import sys

import pytest

from bench import registration
from bench.figures import Comparison, Operation, Spread, longest_path, rounded, slowest, spread
from bench.report import KEPT, RESULTS, page
from daskstack.engine import PROJECT


def comparison(more: bool = False, goal: float | None = 0.5) -> Comparison:
    return Comparison("1 machine", "Ansible", "s", goal, more, ours=[1.0, 4.0, 2.0], theirs=[4.0, 5.0, 4.0])


def test_ratios_compare_measurements_of_the_same_repeat() -> None:
    assert comparison().ratio == Spread(0.5, 0.25, 0.8)


def test_a_spread_has_median_minimum_and_maximum() -> None:
    assert spread([3, 1, 10, 2]) == Spread(2.5, 1, 10)


@pytest.mark.parametrize(
    ("more", "goal", "met"),
    [(False, 0.5, True), (False, 0.49, False), (True, 0.5, True), (True, 0.51, False), (True, None, True)],
)
def test_the_median_decides_whether_a_goal_is_met(more: bool, goal: float | None, met: bool) -> None:
    assert comparison(more, goal).met is met


@pytest.mark.parametrize(("value", "text"), [(0.12345, "0.123"), (12.345, "12.3"), (1234.5, "1234"), (0, "0")])
def test_figures_are_rounded_to_three_digits(value: float, text: str) -> None:
    assert rounded(value) == text


def test_the_longest_path_skips_operations_that_nothing_waited_for() -> None:
    operations = [
        Operation("start", 0, 1), Operation("quick", 1, 2), Operation("slow", 1.5, 4), Operation("last", 4.5, 6),
    ]  # fmt: skip
    path = longest_path(operations, 7)
    assert path == [("start", 1), ("slow", 2.5), ("last", 1.5), ("between and around them", 2)]


def test_the_slowest_operations_keep_their_order_and_the_rest_is_summed() -> None:
    durations = [("a", 1.0), ("b", 5.0), ("c", 2.0), ("d", 7.0)]
    assert slowest(durations, 2) == [("b", 5.0), ("d", 7.0), ("all else", 3.0)]


def test_a_missed_goal_is_reported_with_its_profile() -> None:
    kept = {
        "a": {
            "date": "2026-01-02", "machine": "2 processors", "profiles": {"`up`": [("scheduler-data", 1.234)]},
            "comparisons": [vars(comparison(goal=0.4))],
        }
    }  # fmt: skip
    text = page(kept)
    assert "| 1 machine | 2 (1 to 4) s | Ansible: 4 (4 to 5) s | 0.5 (0.25 to 0.8) | at most 0.4 | **missed** |" in text
    assert "| scheduler-data | 1.23 |" in text
    kept["a"]["comparisons"] = [vars(comparison(goal=0.5))]
    assert "scheduler-data" not in page(kept)


def test_the_section_about_a_thousand_machines_needs_all_its_figures() -> None:
    sessions = {"the first `up`": ["8"], "`up` without a change": ["0"], "one worker more": ["3"]}
    figures = {
        "c": ["`up` without a change", "one worker more"],
        "d": ["time of each machine", "memory of each machine"],
        "e": ["512 MiB read", "512 MiB written"],
    }
    kept = {
        part: {
            "date": "2026-01-02", "machine": "2 processors",
            "comparisons": [vars(comparison()) | {"what": what} for what in names],
            "table": {"what": "", "columns": ["sessions"], "rows": sessions},
        }
        for part, names in figures.items()
    }  # fmt: skip
    text = page(kept)
    assert "## A thousand machines" in text
    assert "the first `up` of four machines opened 8." in text
    for part in kept:
        assert "A thousand machines" not in page({name: result for name, result in kept.items() if name != part})


def test_every_part_has_its_plot() -> None:
    links = re.findall(r"\(plots/(.*)\)", RESULTS.read_text())
    assert links == [f"{part}.svg" for part in json.loads(KEPT.read_text())]
    assert set(links) == {path.name for path in RESULTS.with_name("plots").iterdir()}


def test_sizes_whose_workers_did_not_register_in_time_have_no_figures() -> None:
    turns = [registration.Turn(2.5, 0.6, 4.0, 107.2)], [registration.Turn(2.0, 0.5, 3.0, 107.2)]
    rows = registration.table({50: list(turns)})["rows"]
    assert rows["50"] == ["2.5 (2.5 to 2.5)", "0.6", "4", "107"]
    assert rows["100"] == ["not within 240 s", "", "", ""]
    ratios = {what: each.ratio.median for what, each in registration.comparisons({50: list(turns)}).items()}
    assert ratios == {
        "processor time to register 50 workers": pytest.approx(1.2),
        "processor time at rest with 50 workers": pytest.approx(4 / 3),
        "memory with 50 workers": 1,
    }
    assert registration.comparisons({}) == {}


def test_the_bench_starts_without_test_dependencies() -> None:
    program = "import sys; sys.modules['pytest'] = None; import bench.__main__"
    subprocess.run([sys.executable, "-c", program], cwd=PROJECT, check=True, timeout=60)
