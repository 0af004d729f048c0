"""Draws the results of a comparison; run by an interpreter that has matplotlib:

python chart.py RESULTS.json CHART.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

COLOURS = {"sorix_dist": "tab:blue", "torch": "tab:orange", "sorix": "tab:green", "jax": "tab:purple"}
SHADES = (1.0, 0.75, 0.5, 0.35, 0.2)


def draw(results: dict[str, Any], path: Path) -> None:
    """Steps beside the first contestant's on the left, sums over ranks on the right, if there are any."""
    mpl.use("Agg")
    figure, axes = plt.subplots(1, 1 + bool(results["sums"]), figsize=(13, 7), squeeze=False, layout="constrained")
    machine = results["machine"]
    figure.suptitle(f"{machine['cpu']}, {machine['cores']} cores, {machine['mpi']}, {results['date'][:10]}", fontsize=9)
    _steps(axes[0, 0], results)
    if results["sums"]:
        _sums(axes[0, 1], results)
    figure.savefig(path, dpi=120)


def _steps(axes: Any, results: dict[str, Any]) -> None:
    training = results["training"]
    names = list(dict.fromkeys(name for found in training.values() for name in found["step"]))
    drawn: dict[str, int] = {}
    for i, name in enumerate(names):
        library = name.partition(",")[0].split()[0]
        shade = SHADES[min(drawn.get(library, 0), len(SHADES) - 1)]
        drawn[library] = drawn.get(library, 0) + 1
        values = [
            (place, found["step"][name]["p10"] / found["step"][names[0]]["p10"])
            for place, found in enumerate(training.values())
            if name in found["step"]
        ]
        width = 0.85 / len(names)
        places = [place - 0.425 + (i + 0.5) * width for place, _ in values]
        axes.bar(places, [value for _, value in values], width, label=name, color=COLOURS[library], alpha=shade)
    for place, found in enumerate(training.values()):
        bound = found["products"][names[0]]["p10"] / found["step"][names[0]]["p10"]
        label = f"matrix products alone, {names[0].partition(', ')[2]}" if place == 0 else None
        axes.hlines(bound, place - 0.45, place + 0.45, colors="black", linestyles="dashed", label=label)
    axes.set_yscale("log")
    axes.set_xticks(range(len(training)), list(training))
    axes.set_ylabel(f"time of a training step, {names[0]} = 1")
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)


def _sums(axes: Any, results: dict[str, Any]) -> None:
    sums = results["sums"]
    sizes = [int(size) for size in sums]
    for act, names in next(iter(sums.values())).items():
        for name in names:
            label = f"{name.partition(',')[0]}: {act.replace('_', '-')}"
            axes.plot(sizes, [found[act][name]["p10"] * 1e6 for found in sums.values()], marker="o", label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("bytes")
    axes.set_ylabel(f"microseconds, {results['ranks']} ranks")
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
