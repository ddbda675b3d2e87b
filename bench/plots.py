"""Writes bench/plots/PART.svg from bench/results.json; runs in the bench's own environment, which has matplotlib."""

import json
from pathlib import Path

import matplotlib  # ty: ignore[import-not-found]  # not in .venv
from matplotlib.figure import Figure  # ty: ignore[import-not-found]

from bench.figures import Comparison

FOLDER = Path(__file__).parent
PLOTS = FOLDER / "plots"


def main() -> None:
    # Same results, same files: text stays text, and names within a file do not change.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bench", "font.family": "sans-serif"})
    PLOTS.mkdir(exist_ok=True)
    for part, result in json.loads((FOLDER / "results.json").read_text()).items():
        drawn = plot([Comparison(**each) for each in result["comparisons"]])
        drawn.savefig(PLOTS / f"{part}.svg", metadata={"Date": None}, bbox_inches="tight")


def plot(comparisons: list[Comparison]) -> Figure:
    """The ratio to the alternative of each comparison: median, lowest, highest, and the goal."""
    figure = Figure(figsize=(8, 0.6 + 0.4 * len(comparisons)))
    axes = figure.subplots()
    for place, each in enumerate(comparisons):
        ratio = each.ratio
        reach = [[ratio.median - ratio.lowest], [ratio.highest - ratio.median]]
        axes.barh(place, ratio.median, height=0.6, xerr=reach, capsize=3, color="tab:blue" if each.met else "tab:red")
        if each.goal is not None:
            axes.plot([each.goal] * 2, [place - 0.4, place + 0.4], color="black", linestyle="dotted")
    axes.set_yticks(range(len(comparisons)), [f"{each.what} / {each.beside.replace('`', '')}" for each in comparisons])
    axes.invert_yaxis()
    axes.set_xlabel("ratio; dotted: the goal; red: missed")
    return figure


if __name__ == "__main__":
    main()
