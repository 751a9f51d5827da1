"""The figures of the report: SVG by matplotlib (the extra `report`), the same bytes for the same results.

Nothing is drawn to a screen and no state of pyplot is touched. Text and lines have the colour of the page, so
that a figure follows its light or dark setting.
"""

from __future__ import annotations

import re
from importlib import import_module
from io import StringIO
from typing import Any, Final

from pysim_vm.benchmark.report import (
    CYCLES,
    ENGINE_COLOURS,
    OTHER_COLOUR,
    UNITS,
    cycles_per_operation,
    named,
    number,
)
from pysim_vm.benchmark.result import Results

# An extra need not be there, neither for a reader of the types: ImportError is for whoever wants figures
_matplotlib: Final[Any] = import_module("matplotlib")
_backend: Final[Any] = import_module("matplotlib.backends.backend_svg")
_figure: Final[Any] = import_module("matplotlib.figure")

INK: Final = "#010203"  # becomes currentColor
GRID: Final = "#040506"  # becomes currentColor, faint
WIDTH: Final = 10.0  # inches
ROW: Final = 0.3
FRAME: Final = 1.1
LABEL_MAX: Final = 26  # characters
_SETTINGS: Final[dict[str, Any]] = {
    "svg.fonttype": "none",  # text stays text: searchable, in the page's font
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "axes.unicode_minus": False,
    "text.parse_math": False,  # a name may have a dollar sign
}


def figures_of(results: Results) -> dict[str, str]:
    """SVG elements by the keys of `benchmark.report`: where cycles go, and units if anything was measured."""
    figures = {CYCLES: _drawn(_cycles, results, CYCLES)} if results.models else {}
    if results.timed:
        figures[UNITS] = _drawn(_units, results, UNITS)
    return figures


def _drawn(draw: Any, results: Results, salt: str) -> str:
    """The SVG of a figure; `salt` keeps the ids of two figures of one page apart."""
    with _matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": salt}):
        figure = draw(results)
        _backend.FigureCanvasSVG(figure)
        file = StringIO()
        figure.savefig(file, format="svg", transparent=True)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    # Date and version of the program, and addresses of other hosts
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    used = set(re.findall(r"#([\w.]+)", svg))
    # Names of groups, which nothing refers to: two figures of one page would share them
    svg = re.sub(r' id="([\w.]+)"', lambda match: match[0] if match[1] in used else "", svg)
    svg = re.sub(r"font: [^;\"]*?(\d+(?:\.\d+)?px)[^;\"]*", r"font-size: \1", svg)
    return svg.replace(GRID, "color-mix(in srgb, currentColor 22%, transparent)").replace(INK, "currentColor")


def _frame(rows: int) -> tuple[Any, Any]:
    height = ROW * rows + FRAME
    figure = _figure.Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0.19, 0.55 / height, 0.78, 1 - FRAME / height))
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    axes.set_ylim(rows - 0.4, -0.6)
    return figure, axes


def _label(name: str) -> str:
    """A name that fits beside the axis."""
    return name if len(name) <= LABEL_MAX else name[: LABEL_MAX - 1] + "…"


def _cycles(results: Results) -> Any:
    figure, axes = _frame(len(results.models))
    split = [cycles_per_operation(results, row) for row in results.models]
    left = [0.0] * len(split)
    for part, (label, colour, _) in enumerate(split[0]):
        widths = [parts[part][2] for parts in split]
        axes.barh(range(len(split)), widths, left=left, height=0.62, color=colour, label=label)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, total in enumerate(left):
        axes.annotate(number(total), (total, place), (4, 0), textcoords="offset points", va="center", size=8)
    axes.set_yticks(range(len(split)), [_label(named(row)) for row in results.models])
    axes.set_xlim(0, max(left) * 1.12 or 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    # Between the powers of ten: by themselves they would be formulas, which SVG text does not show
    low, high = axes.get_xlim()
    shown = "123456789" if high < 3 * low else "235"
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:,g}" if f"{value:e}"[0] in shown else "")
    axes.set_xlabel("virtual cycles per exit")
    axes.grid(axis="x", linewidth=0.6)
    axes.legend(loc="lower center", bbox_to_anchor=(0.42, 1.0), ncols=5, frameon=False, fontsize=9)
    return figure


def _units(results: Results) -> Any:
    names = list(dict.fromkeys(named(row) for row in results.timed))
    places = {name: place for place, name in enumerate(names)}
    engines = list(dict.fromkeys(row.engine for row in results.timed))
    figure, axes = _frame(len(names))
    for number_, engine in enumerate(engines):
        shift = 0.26 * (number_ - (len(engines) - 1) / 2)
        rows = [row for row in results.timed if row.engine == engine]
        where = [places[named(row)] + shift for row in rows]
        colour = ENGINE_COLOURS.get(engine, OTHER_COLOUR)
        axes.hlines(where, [row.low for row in rows], [row.high for row in rows], color=colour, linewidth=3.5,
                    alpha=0.45)  # fmt: skip
        axes.plot([row.units for row in rows], where, "o", markersize=5.5, color=colour, label=engine)
    axes.set_yticks(range(len(names)), [_label(name) for name in names])
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    # Between the powers of ten: by themselves they would be formulas, which SVG text does not show
    low, high = axes.get_xlim()
    shown = "123456789" if high < 3 * low else "235"
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:,g}" if f"{value:e}"[0] in shown else "")
    axes.set_xlabel("units per exit, logarithmic; left is faster")
    axes.grid(axis="x", which="major", linewidth=0.6)
    axes.grid(axis="x", which="minor", linewidth=0.3)
    axes.legend(loc="lower center", bbox_to_anchor=(0.42, 1.0), ncols=4, frameon=False, fontsize=9)
    return figure
