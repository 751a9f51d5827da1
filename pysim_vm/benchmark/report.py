"""Results as one HTML page to hand in: machine, table, plots, cost model. It measures and draws nothing.

The page needs nothing but itself: no script, no picture, no address. It follows the reader's light or dark
setting and prints on paper. Figures come from `plots`, where matplotlib is; without them the same numbers
are bars of plain HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

from pysim_vm.benchmark.result import ModelRow, Results, TimedRow
from pysim_vm.exit_kinds import KINDS
from pysim_vm.report import plural

# What exits are grouped by in the plots: label, colour that is fit for light and dark, kinds
GROUPS: Final[tuple[tuple[str, str, tuple[str, ...]], ...]] = (
    ("ports", "#3f7fbf", ("io_read", "io_write")),
    ("device memory", "#d9822b", ("mmio_read", "mmio_write")),
    ("registers (MSR)", "#3d9970", ("sys_reg_read", "sys_reg_write")),
    ("everything else", "#a45bb5", ()),
)
INSTRUCTIONS: Final = ("instructions", "#8a94a3")
ENGINE_COLOURS: Final = {"block": "#3f7fbf", "step": "#d9822b"}
OTHER_COLOUR: Final = "#8a94a3"
CYCLES, UNITS = "cycles", "units"  # the keys of the figures

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5c6776; --line: #d8dde4; --paper: #ffffff;
  --panel: #f5f7f9; --accent: #2f6db0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa5b4; --line: #343c48;
  --paper: #15191f; --panel: #1d232b; --accent: #7fb2e8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 72rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .5rem; }
p { max-width: 46rem; margin: .5rem 0; }
.author, .note, caption { color: var(--soft); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .75rem;
  margin: 1.5rem 0 0; padding: 0; }
.facts div { background: var(--panel); border-radius: .5rem; padding: .7rem .9rem; }
.facts dt { color: var(--soft); font-size: .8rem; }
.facts dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .8125rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .45rem; text-align: right; vertical-align: baseline; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
thead th { border-bottom: 1px solid var(--line); }
tbody tr.first td, tbody tr.first th { border-top: 1px solid var(--line); }
.l { text-align: left; }
tbody th { color: var(--ink); }
td.kinds { white-space: normal; min-width: 11rem; color: var(--soft); }
.layer { text-align: center; border-bottom: 2px solid var(--accent); color: var(--accent); }
figure { margin: 1rem 0 0; }
figure svg { width: 100%; height: auto; display: block; color: var(--ink); }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .25rem .8rem;
  font-size: .875rem; font-variant-numeric: tabular-nums; align-items: center; }
.bars .track { display: flex; height: .8rem; background: var(--panel); border-radius: .2rem;
  overflow: hidden; }
.bars .track i { display: block; height: 100%; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.2rem; margin: .5rem 0 .8rem; padding: 0;
  list-style: none; font-size: .875rem; }
.legend i { display: inline-block; width: .8em; height: .8em; border-radius: .2em; margin-right: .4em; }
code { font: .9em ui-monospace, "DejaVu Sans Mono", monospace; background: var(--panel); padding: .1em .3em;
  border-radius: .25em; }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); color: var(--soft);
  font-size: .875rem; }
@media print { :root { --ink: #000; --soft: #444; --line: #bbb; --paper: #fff; --panel: #f2f2f2;
  --accent: #1f4e82; } body { padding: 0; max-width: none; font-size: 10pt; }
  table, .bars, .legend { font-size: 7pt; } th, td { padding: .1rem .25rem; } td.kinds { min-width: 7rem; }
  tr, figure, .facts div { break-inside: avoid; } h2 { break-after: avoid; } .wide { overflow: visible; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


def page(results: Results, *, title: str, author: str = "", figures: Mapping[str, str] | None = None) -> str:
    """The page as text. `figures` has SVG elements by the keys CYCLES and UNITS; what is not there becomes
    bars. The same arguments give the same text."""
    drawn = figures or {}
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style>",
        "</head>",
        "<body>",
        f"<h1>{escape(title)}</h1>",
    ]
    if author:
        parts.append(f'<p class="author">{escape(author)}</p>')
    parts += [_facts(results), _reading(results)]
    if results.timed:
        parts.append("<h2>What an operation takes</h2>")
        drawn_units = drawn.get(UNITS)
        parts.append(_units_words("in brackets" if drawn_units is None else "the line"))
        parts.append(_figure(drawn_units) or _unit_bars(results.timed))
    parts.append("<h2>Where the virtual cycles go</h2>")
    parts.append("<p>Virtual cycles for each exit of a workload, by what they are spent on.</p>")
    parts.append(_figure(drawn.get(CYCLES)) or _cycle_bars(results))
    parts += ["<h2>All results</h2>", _table(results), "<h2>The cost model</h2>", _costs(results)]
    parts += [_footer(results), "</body>", "</html>"]
    return "\n".join(parts) + "\n"


def cycles_per_operation(results: Results, row: ModelRow) -> list[tuple[str, str, float]]:
    """(label, colour, cycles per operation) for instructions and each group of exits, in a fixed order."""
    named = {kind for _, _, kinds in GROUPS for kind in kinds}
    operations = max(row.operations, 1)
    costs = results.costs
    parts = [(*INSTRUCTIONS, row.instructions * costs.instruction / operations)]
    for label, colour, kinds in GROUPS:
        chosen = kinds or tuple(kind for kind in KINDS if kind not in named)
        cycles = sum(row.exits.get(kind, 0) * costs.exits[kind] for kind in chosen)
        parts.append((label, colour, cycles / operations))
    return parts


def named(row: ModelRow | TimedRow) -> str:
    """The workload, and what its operation is if that is no exit."""
    return row.workload if row.per == "exit" else f"{row.workload} (per {row.per})"


def number(value: float) -> str:
    """A measured number with as many digits as mean something."""
    return f"{value:,.{0 if value >= 1000 else 1 if value >= 10 else 2}f}"


def _facts(results: Results) -> str:
    facts = [("Workloads", str(len(results.models)))]
    if results.machine is not None:
        facts += [("CPU", results.machine["cpu"]), ("Python", results.machine["python"]),
                  ("System", results.machine["system"])]  # fmt: skip
        units = sorted(row.unit_ns for row in results.timed)
        if units:
            facts.append(("One unit here", f"{number(units[len(units) // 2])} ns"))
    facts.append(("Cost model", results.costs.name))
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    return f'<dl class="facts">{cells}</dl>'


def _reading(results: Results) -> str:
    text = (
        "<h2>How to read this</h2><p>Each row has up to three layers. The <strong>model</strong> counts "
        "instructions and exits and turns them into virtual cycles; it is the same on every machine, to the "
        "last digit."
    )
    if results.timed:
        text += (
            " <strong>Normalised</strong> is time as a ratio to a loop in Python that was timed in turns "
            "with the workload, so it holds still on a busy host and compares across hosts. "
            "<strong>Raw</strong> is what it took on the machine named above, for orientation."
        )
    return text + "</p>"


def _units_words(spread: str) -> str:
    return (
        "<p>One unit is one round of <code>x = (x + y) &amp; M64</code> in a Python <code>for</code> loop. "
        f"Shown is the median of the rounds; {spread} is their middle half.</p>"
    )


def _figure(svg: str | None) -> str:
    return "" if svg is None else f"<figure>{svg}</figure>"


def _unit_bars(rows: Sequence[TimedRow]) -> str:
    most = max(row.high for row in rows) or 1.0
    lines = []
    for row in rows:
        colour = ENGINE_COLOURS.get(row.engine, OTHER_COLOUR)
        label = f"{named(row)}, {row.engine}"
        words = f"{number(row.units)} ({number(row.low)}–{number(row.high)})"
        lines.append(_bar(label, [(colour, row.units / most)], words))
    return f'<div class="bars">{"".join(lines)}</div>'


def _cycle_bars(results: Results) -> str:
    split = [(row, cycles_per_operation(results, row)) for row in results.models]
    most = max((sum(part[2] for part in parts) for _, parts in split), default=0.0) or 1.0
    legend = "".join(
        f'<li><i style="background:{colour}"></i>{escape(label)}</li>'
        for label, colour in (INSTRUCTIONS, *((label, colour) for label, colour, _ in GROUPS))
    )
    lines = [
        _bar(named(row), [(colour, cycles / most) for _, colour, cycles in parts],
             number(sum(part[2] for part in parts)))
        for row, parts in split
    ]  # fmt: skip
    return f'<ul class="legend">{legend}</ul><div class="bars">{"".join(lines)}</div>'


def _bar(label: str, pieces: Sequence[tuple[str, float]], words: str) -> str:
    track = "".join(
        f'<i style="width:{100 * share:.2f}%;background:{colour}"></i>' for colour, share in pieces if share
    )
    return f'<span>{escape(label)}</span><span class="track">{track}</span><span>{escape(words)}</span>'


def _table(results: Results) -> str:
    head = ['<th class="l">Workload</th><th>Instructions</th><th>Exits</th><th class="l">by reason</th>'
            "<th>Virtual cycles</th>"]  # fmt: skip
    layers = ['<th></th><th class="layer" colspan="4">model</th>']
    if results.timed:
        head.append("<th>Engine</th><th>Units</th><th>Middle half</th><th>Time per exit</th>")
        layers.append('<th></th><th class="layer" colspan="2">normalised</th><th class="layer">raw</th>')
    body = []
    for row in results.models:
        times = [timed for timed in results.timed if timed.workload == row.workload]
        span = f' rowspan="{len(times)}"' if len(times) > 1 else ""
        note = "" if row.per == "exit" else f'<br><small class="note">per {escape(row.per)}</small>'
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in row.exits.items()) or "none"
        cells = (
            f'<th class="l"{span}>{escape(row.workload)}{note}</th><td{span}>{row.instructions:,}</td>'
            f'<td{span}>{row.taken:,}</td><td class="l kinds"{span}>{escape(kinds)}</td>'
            f"<td{span}>{row.virtual_cycles:,}</td>"
        )
        if results.timed:
            cells += _times(times[0]) if times else '<td colspan="4" class="note">not measured</td>'
        body.append(f'<tr class="first">{cells}</tr>')
        body += [f"<tr>{_times(timed)}</tr>" for timed in times[1:]]
    return (
        f'<div class="wide"><table><thead><tr>{"".join(layers)}</tr><tr>{"".join(head)}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _times(row: TimedRow) -> str:
    time = f"{number(row.ns)} ns" if row.ns < 1e4 else f"{number(row.ns / 1e3)} µs"
    engine = row.engine if row.exit_path == "short" else f"{row.engine}, {row.exit_path} way"
    return (
        f"<td>{escape(engine)}</td><td>{number(row.units)}</td><td>{number(row.low)}–{number(row.high)}</td>"
        f"<td>{time}</td>"
    )


def _costs(results: Results) -> str:
    costs = results.costs
    used = {kind for row in results.models for kind in row.exits}
    rows = "".join(
        f'<tr><th class="l">{kind}</th><td>{costs.exits[kind]:,}</td></tr>' for kind in KINDS if kind in used
    )
    return (
        f"<p>“{escape(costs.name)}”: {escape(costs.source)}. Cycles of an exit, on top of its instruction, "
        f'which has {plural(costs.instruction, "cycle")}.</p><div class="wide"><table style="width:auto">'
        f'<thead><tr><th class="l">Exit</th><th>Cycles</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _footer(results: Results) -> str:
    rounds = max((len(row.rounds) for row in results.timed), default=0)
    how = f" --rounds {rounds}" if rounds else " --model-only"
    return (
        f"<footer>Made by <code>pysim-vm bench report</code> from results of <code>pysim-vm bench{how}"
        " --output FILE</code>. The same results give the same page.</footer>"
    )
