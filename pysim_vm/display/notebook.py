"""Notebooks kept as text: a Python file in cells, run from top to bottom, and the page that comes of it.

The format is Jupytext's "percent": `# %%` begins a cell of code, `# %% [markdown]` one of words in comments.
So a notebook is a Python program too, its changes can be read, and Jupyter opens it with Jupytext. Nothing
here needs Jupyter; a notebook is a program of the user's own and runs with the user's rights.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import tokenize
from dataclasses import dataclass
from html import escape
from keyword import iskeyword
from pathlib import Path
from typing import Any, Final

from pysim_vm.errors import AxError, AxErrorKind

MARKER: Final = re.compile(r"# %%(?P<title>[^\[]*)(?P<kind>\[\w+\])?.*")
OUTPUT_MAX: Final = 200_000  # characters that a cell may print on a page
MARKDOWN: Final = ("[markdown]", "[md]")
# The pieces of an f-string have types of their own from Python 3.12 on
_TOKENS: Final = {
    tokenize.STRING: "str", tokenize.NUMBER: "num", tokenize.COMMENT: "com",
    **{
        getattr(tokenize, name): "str"
        for name in ("FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END")
        if hasattr(tokenize, name)
    },
}  # fmt: skip


class NotebookError(AxError):
    """A notebook that cannot be read, or a cell that raised; one sentence with file and line."""

    def __init__(self, message: str, kind: AxErrorKind = AxErrorKind.InvalidInput) -> None:
        super().__init__(kind, message)


class CellError(NotebookError):
    """A cell raised an exception, which is `__cause__`."""


@dataclass(frozen=True, slots=True)
class NotebookCell:
    """One cell: `words` (markdown) or code; `line` is where its text begins in the file, from 1."""

    text: str
    line: int
    words: bool = False


@dataclass(frozen=True, slots=True)
class CellRun:
    """A cell that ran: what it printed, and the value of its last expression (None for none).

    `text` and `html` are how the value was shown when the cell ended; a live object is another one later.
    """

    cell: NotebookCell
    printed: str = ""
    value: Any = None
    text: str = ""
    html: str = ""


# ---- reading -----------------------------------------------------------------------------------------------


def read_notebook(path: str | Path) -> list[NotebookCell]:
    """The cells of a notebook file. NotebookError if it cannot be read or has none."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "its name or text is not UTF-8"
        raise NotebookError(f"notebook {path} cannot be read ({reason}); check the path") from error
    cells = parse_cells(text)
    if not cells:
        raise NotebookError(f"notebook {path} has no cells; begin each one with a line '# %%'")
    return cells


def parse_cells(text: str) -> list[NotebookCell]:
    """The cells of a text in the percent format, without those that are blank and without its header."""
    cells: list[NotebookCell] = []
    lines: list[str] = []
    start, words, seen = 1, False, False
    for number, line in enumerate((*text.splitlines(), "# %%"), 1):
        match = MARKER.fullmatch(line)
        if match is None:
            lines.append(line)
            continue
        if seen:
            body = _words(lines) if words else "\n".join(lines).rstrip()
            if body.strip():
                cells.append(NotebookCell(body, start, words))
        seen, words = True, match["kind"] in MARKDOWN
        lines, start = [], number + 1
    return cells


def _words(lines: list[str]) -> str:
    """The words of a markdown cell, without the comment signs."""
    return "\n".join(re.sub(r"^# ?", "", line) for line in lines).strip()


# ---- running -----------------------------------------------------------------------------------------------


def run_cells(cells: list[NotebookCell], name: str) -> list[CellRun]:
    """Run the cells from top to bottom in one namespace. CellError if one raises."""
    names: dict[str, Any] = {"__name__": "__main__"}
    return [CellRun(cell) if cell.words else _run(cell, name, names) for cell in cells]


def _run(cell: NotebookCell, name: str, names: dict[str, Any]) -> CellRun:
    printed = io.StringIO()
    value = None
    try:
        tree = ast.parse("\n" * (cell.line - 1) + cell.text, name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(printed):
            exec(compile(tree, name, "exec", dont_inherit=True), names)
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), name, "eval", dont_inherit=True), names)
            text = "" if value is None else repr(value)
            html = "" if value is None else _html(value, text)
    except Exception as error:
        what = f"{type(error).__name__}: {error}".replace("\n", " ")
        raise CellError(f"notebook {name} line {_line(error, name, cell)}: {what}") from error
    return CellRun(cell, printed.getvalue(), value, text, html)


def _html(value: Any, text: str) -> str:
    """A value as a notebook shows it: its `_repr_html_`, or its text."""
    make = None if isinstance(value, type) else getattr(value, "_repr_html_", None)
    shown = make() if callable(make) else None
    return shown if isinstance(shown, str) else f"<pre>{escape(_bounded(text))}</pre>"


def _line(error: Exception, name: str, cell: NotebookCell) -> int:
    """The line of the notebook where an exception came up."""
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return error.lineno
    line, trace = cell.line, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == name:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


# ---- the page ----------------------------------------------------------------------------------------------

PAGE_STYLE: Final = """
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--soft:#f6f7f9;--line:#d9dde2;
 --key:#8a3ffc;--str:#0b7a4b;--num:#b35c00;--com:#6a737d;--link:#0b61d8}
@media (prefers-color-scheme:dark){:root{--ink:#dfe3e8;--paper:#15181c;--soft:#1d2126;--line:#343a41;
 --key:#c39bff;--str:#7fd6a8;--num:#f0b070;--com:#8b949e;--link:#79b0ff}}
body{margin:0;background:var(--paper);color:var(--ink);
 font:15px/1.6 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:68rem;margin:0 auto;padding:2.2rem 1.6rem 4rem}
main>h1,main>h2,main>h3,main>p,main>ul,main>ol,main>blockquote{max-width:46rem}
h1{font-size:1.75rem;line-height:1.25;margin:0 0 1rem}h2{font-size:1.25rem;margin:2.2rem 0 .6rem}
h3{font-size:1.05rem;margin:1.6rem 0 .4rem}p{margin:.6rem 0}a{color:var(--link)}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
p code,li code{font-size:.88em;background:var(--soft);border-radius:3px;padding:.08em .3em}
pre.code{background:var(--soft);border-left:3px solid var(--line);border-radius:0 4px 4px 0;
 margin:1.1rem 0 .7rem;padding:.65rem .9rem;font-size:13px;line-height:1.5;overflow-x:auto;tab-size:4}
div.out{margin:0 0 1.3rem;padding-left:1.1rem}
div.out>pre{font-size:13px;line-height:1.45;margin:.3rem 0;overflow-x:auto}
.key{color:var(--key)}.str{color:var(--str)}.num{color:var(--num)}.com{color:var(--com)}
"""


def notebook_page(runs: list[CellRun], name: str) -> str:
    """One HTML page of a notebook that ran: words, code, what it printed and showed; no file besides it."""
    from markdown_it import MarkdownIt

    words = MarkdownIt("commonmark", {"html": False}).enable("table")
    parts = []
    for run in runs:
        if run.cell.words:
            parts.append(words.render(run.cell.text))
            continue
        parts.append(f'<pre class="code">{_coloured(run.cell.text)}</pre>')
        shown = [f"<pre>{escape(_bounded(run.printed))}</pre>" if run.printed else "", run.html]
        if any(shown):
            parts.append(f'<div class="out">{"".join(shown)}</div>')
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(_title(runs, name))}</title>\n<style>{PAGE_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _coloured(code: str) -> str:
    """Python as HTML: keywords, texts, numbers and comments in colours of their own."""
    offsets = [0]
    for line in code.split("\n"):
        offsets.append(offsets[-1] + len(line) + 1)
    parts: list[str] = []
    at = 0
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        kind = _TOKENS.get(token.type, "")
        if token.type == tokenize.NAME and iskeyword(token.string):
            kind = "key"
        if not kind:
            continue
        start = max(at, offsets[token.start[0] - 1] + token.start[1])
        end = max(start, offsets[token.end[0] - 1] + token.end[1])
        parts.append(escape(code[at:start]) + f'<span class="{kind}">{escape(code[start:end])}</span>')
        at = end
    return "".join(parts) + escape(code[at:])


def _title(runs: list[CellRun], name: str) -> str:
    for run in runs:
        match = re.match(r"# (.+)", run.cell.text) if run.cell.words else None
        if match is not None:
            return match[1].strip()
    return name


def _bounded(text: str) -> str:
    left = len(text) - OUTPUT_MAX
    return text if left <= 0 else text[:OUTPUT_MAX] + f"\n… {left:,} more characters"
