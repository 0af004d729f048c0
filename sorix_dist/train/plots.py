"""Curves of recorded runs, as a picture for a paper and as text for a terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sorix_dist.train.recorder import RECORDS, read_records

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which colour-blind readers can distinguish."""

MARKS = "*o+x#@%&"
STEP = "step"
THROUGHPUT = "samples_per_second"
_NOT_CURVES = ("step", "time", "epoch")
_VALIDATION = re.compile(r"^(val|valid|validation|test)_")


class Curve(NamedTuple):
    """A number of one run over its steps, or over another axis."""

    run: str
    name: str
    steps: list[int]
    values: list[float]


Panels = dict[str, list[Curve]]


def curves(runs: Sequence[str | Path], names: Sequence[str] = ()) -> Panels:
    """The curves of runs by what they show: `loss` and `val_loss` belong to one panel, loss first, throughput last.

    runs: folders of recorders, or folders of such folders; names: the curves wanted, all if empty.
    FileNotFoundError for a folder without records; ValueError for a name that no run has, or if there is no number yet.
    """
    panels: Panels = {}
    folders = [folder for run in runs for folder in _folders(Path(run))]
    for run, label in zip(folders, _labels(folders), strict=True):
        found: dict[str, tuple[list[int], list[float]]] = {}
        for record in read_records(run):
            for name, value in record.items():
                if name not in _NOT_CURVES and isinstance(value, int | float) and not isinstance(value, bool):
                    steps, values = found.setdefault(name, ([], []))
                    steps.append(record["step"])
                    values.append(float(value))
        for name, (steps, values) in found.items():
            panel = _VALIDATION.sub("", name).removeprefix("train_")
            if not names or panel in names or name in names:
                panels.setdefault(panel, []).append(Curve(label, name, steps, values))
    if not names and not panels:
        raise ValueError(f"no number is recorded yet in {', '.join(map(str, runs))}")
    missing = [name for name in names if name not in panels and all(c.name != name for p in panels.values() for c in p)]
    if missing:
        raise ValueError(f"no run has {missing[0]!r}; there is {', '.join(curves(runs))}")
    return {name: panels[name] for name in sorted(panels, key=_rank_of_panel)}


def _folders(run: Path) -> list[Path]:
    """The folder, or those in it that have records, if it has none itself."""
    below = sorted(path.parent for path in run.glob(f"*/{RECORDS}"))
    return below if below and not (run / RECORDS).exists() else [run]


def draw(panels: Panels, path: str | Path, log: Sequence[str] = (), axis_name: str = STEP) -> None:
    """Writes a picture (PNG, PDF or SVG, by the suffix of `path`), one panel beside the other; needs matplotlib.
    ValueError for another suffix.

    log: the panels whose vertical axis is logarithmic. Validation curves are dashed. axis_name: of the horizontal axis,
    which is logarithmic unless it is `STEP`.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
        from matplotlib.ticker import EngFormatter, MaxNLocator, ScalarFormatter
    except ImportError as error:
        raise ImportError('a picture needs matplotlib: pip install "sorix_dist[plot]"') from error
    if Path(path).suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ValueError(f"a picture must be a .png, .pdf or .svg file, got {str(path)!r}")
    runs = list(dict.fromkeys(curve.run for panel in panels.values() for curve in panel))
    widths = np.linspace(1.3 if len(runs) == 1 else 2.8, 1.3, len(runs))  # so that equal curves of two runs both show
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.4 * columns, 2.6 * rows + 0.35), layout="constrained", dpi=200)
    axes = figure.subplots(rows, columns, squeeze=False)
    dashed = False
    for axis, (name, panel) in zip(axes.flat, panels.items()):
        for curve in panel:
            run, validation = runs.index(curve.run), bool(_VALIDATION.match(curve.name))
            dashed |= validation
            axis.plot(
                curve.steps,
                curve.values,
                color=COLOURS[run % len(COLOURS)],
                linestyle="--" if validation else "-",
                linewidth=widths[run],
                marker="." if len(curve.steps) == 1 else None,
            )
        axis.set_title(_title(name), fontsize=9)
        axis.set_xlabel(axis_name, fontsize=8)
        axis.tick_params(labelsize=7)
        if axis_name == STEP:
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        else:
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter(ScalarFormatter())
        if name in log:
            axis.set_yscale("log")
        elif name == THROUGHPUT:
            axis.yaxis.set_major_formatter(EngFormatter(sep=""))
            axis.set_ylim(bottom=0)
        axis.grid(linewidth=0.4, alpha=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_axis_off()
    handles = [
        Line2D([], [], color=COLOURS[i % len(COLOURS)], linewidth=widths[i], label=run) for i, run in enumerate(runs)
    ]
    if dashed:
        handles += [
            Line2D([], [], color="0.4", linewidth=1.3, linestyle=style, label=label)
            for style, label in (("-", "training"), ("--", "validation"))
        ]
    if len(handles) > 1:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(len(handles), 5), fontsize=8, frameon=False
        )
    figure.savefig(path)


def as_text(panels: Panels, width: int = 80, height: int = 11, axis_name: str = STEP, log: Sequence[str] = ()) -> str:
    """The curves in characters, at most `width` columns wide, `height` lines a panel; log, axis_name: see `draw`."""
    options = [(name, panel, width, height, axis_name, name in log) for name, panel in panels.items()]
    return "\n\n".join(_panel_as_text(*each) for each in options)


def _panel_as_text(name: str, panel: Sequence[Curve], width: int, height: int, axis_name: str, log: bool) -> str:
    along = float if axis_name == STEP else math.log
    up, back = (
        (math.log, math.exp) if log else (lambda value: value / 2, lambda value: value * 2)
    )  # halves: their difference can't overflow

    def is_shown(value: float) -> bool:
        return math.isfinite(value) and (value > 0 or not log)

    points = [(s, v) for curve in panel for s, v in zip(curve.steps, curve.values) if is_shown(v)]
    title = _title(name)
    if not points:
        return f"{title}: no {'positive' if log else 'finite'} values"
    (first, last), (low, high) = ((min(axis), max(axis)) for axis in zip(*points))
    labels = [_short(value) for value in (high, back(up(high) / 2 + up(low) / 2), low)]
    margin = max(map(len, labels))
    columns = max(10, width - margin - 3)
    canvas = np.full((height, columns), " ")
    for mark, curve in zip(MARKS * len(panel), panel):
        for step, value in zip(curve.steps, curve.values):
            if is_shown(value):
                column = round((along(step) - along(first)) / ((along(last) - along(first)) or 1) * (columns - 1))
                row = round((up(high) - up(value)) / ((up(high) - up(low)) or 1) * (height - 1))
                canvas[row, column] = mark
    at = {0: labels[0], height // 2: labels[1], height - 1: labels[2]}
    lines = [f"{at.get(row, ''):>{margin}} |{''.join(canvas[row]).rstrip()}" for row in range(height)]
    middle = "" if axis_name == STEP else axis_name
    ends = f"{first:<{columns // 3}}{middle:^{columns // 3}}{last:>{columns - 2 * (columns // 3)}}"
    axis = [f"{'':{margin}} +{'-' * columns}", f"{'':{margin}}  {ends}"]
    several = len({curve.run for curve in panel}) > 1
    legend = [
        f"  {mark} {f'{curve.run} ' if several else ''}{curve.name}, last {_short(curve.values[-1])}"
        for mark, curve in zip(MARKS * len(panel), panel)
    ]
    return "\n".join([title, *lines, *axis, *legend])


def _labels(runs: Sequence[Path]) -> list[str]:
    """The ends of the folders' paths, as short as is unique."""
    parts = [run.resolve().parts for run in runs]
    for depth in range(1, max(map(len, parts), default=1)):
        labels = ["/".join(part[-depth:]) for part in parts]
        if len(set(labels)) == len(set(parts)):
            return labels
    return [str(run) for run in runs]


def _short(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


def _rank_of_panel(name: str) -> tuple[int, str]:
    known = ("loss", "accuracy")
    return (known.index(name) if name in known else 3 if name == THROUGHPUT else 2, name)


def _title(name: str) -> str:
    return name.replace("samples_per_second", "samples / s").replace("_", " ")
