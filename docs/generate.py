"""Writes the generated pages of docs/ from the code; `--check` only tells whether they are up to date.

isa-coverage.md: every form of iced's tables, what defines it here, or which exit it takes; in how many cases
it was compared with a real CPU, from tests/vectors/coverage.json, or why not; in how many combinations of the
system matrices it is checked, from tests/matrices/covered.json.
quirks.md: every place where the machine differs from hardware, collected from the `# Quirk:` comments.
block-engine.md: written by hand but for the listing in it, which is what its program prints.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from iced_x86 import Code, EncodingKind, OpCodeInfo

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from isa.cpu import HYPERCALLS, NOP_WITHOUT_FEATURE  # noqa: E402  (the checkout's own packages)
from isa.cpuid import BASELINE, DEFAULT_FEATURES, OPTIONAL_FEATURES  # noqa: E402
from isa.decode import code_names, form_features, mnemonic_names  # noqa: E402
from isa.semantics import definition_for  # noqa: E402
from tests.matrices.covered import COVERED, matrix_checked  # noqa: E402
from tests.oracles import coverage  # noqa: E402
from tests.oracles.reasons import only_fault  # noqa: E402

FAMILIES = (
    ("General-purpose and system instructions", lambda features: not features & VECTOR),
    ("x87", lambda features: bool(features & X87)),
    ("MMX and SSE to SSE4.2, AES, PCLMULQDQ, SHA", lambda features: bool(features & VECTOR - X87)),
)
VEX_FAMILY = "VEX encodings: AVX, AVX2, FMA, F16C, BMI and what came later"
X87 = {"FPU", "FPU287", "FPU387", "FPU287XL_ONLY", "FPU387SL_ONLY"}
VECTOR = X87 | {
    "MMX", "SSE", "SSE2", "SSE3", "SSSE3", "SSE4_1", "SSE4_2", "SSE4A", "AES", "PCLMULQDQ", "SHA", "GFNI",
    "AESKLE", "WIDE_KL", "D3NOW", "CYRIX_EMMI", "CYRIX_FPU",
}  # fmt: skip


CODES = {name: code for code, name in code_names().items()}


def forms_by_mnemonic(encoding: int) -> dict[str, list[int]]:
    """Mnemonic -> the forms of an encoding that an Intel or AMD CPU may decode without special options."""
    forms: dict[str, list[int]] = defaultdict(list)
    for code in code_names():
        info = OpCodeInfo(code)
        if not info.is_instruction or info.encoding != encoding or info.decoder_option:
            continue
        if "INTEL8086_ONLY" in form_features(code) or "KNC" in code_names()[code]:
            continue
        if code in (Code.INVALID, Code.DECLAREBYTE, Code.DECLAREWORD, Code.DECLAREDWORD, Code.DECLAREQWORD):
            continue
        forms[mnemonic_names()[info.mnemonic]].append(code)
    return dict(sorted(forms.items()))


def silicon_column(name: str, silicon: dict[str, Any], notes: list[str]) -> str:
    """How many native cases of a form came out alike; for others a number behind the reason in `notes`."""
    cases = silicon["checked"].get(name)
    if cases is not None:
        why = only_fault(CODES[name])
        return f"{cases} faults ({noted(why, notes)})" if why else str(cases)
    why = next((why for why, names in silicon["unchecked"].items() if name in names), "")
    return f"({noted(why, notes)})" if why else "-"


def noted(why: str, notes: list[str]) -> int:
    """The number of a reason, counted from 1 in the order of their appearance."""
    if why not in notes:
        notes.append(why)
    return notes.index(why) + 1


def runs_of(silicon: dict[str, Any]) -> list[str]:
    """The commands of the runs, one line for all that differ in the seed only."""
    seeds: dict[str, list[int]] = defaultdict(list)
    for run in silicon["runs"]:
        seed = re.search(r"--seed (\d+)", run)
        seeds[run.replace(seed.group(0), "--seed N") if seed else run].append(
            int(seed.group(1)) if seed else 0
        )
    return [
        f"`python -m tests.oracles {command}`, N = {', '.join(ranges(sorted(numbers)))}"
        for command, numbers in seeds.items()
    ]  # fmt: skip


def ranges(numbers: list[int]) -> list[str]:
    """1, 2, 3, 7 as "1 to 3", "7"."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return [f"{part[0]} to {part[-1]}" if len(part) > 1 else str(part[0]) for part in found]


def state_of(code: int, mnemonic: str) -> str:
    """What defines a form here, "" if nothing does."""
    definition = definition_for(code_names()[code], mnemonic)
    features = set(form_features(code))
    if definition is None:
        return "no operation, as on a CPU without the feature" if mnemonic in NOP_WITHOUT_FEATURE else ""
    text = f"`{definition.function.__module__.rpartition('.')[2]}.{definition.function.__name__}`"
    offered = BASELINE | set(DEFAULT_FEATURES) | set(OPTIONAL_FEATURES)
    if features and not features <= offered and mnemonic not in HYPERCALLS:
        text += " (#UD: the feature is never offered)"
    return text


def family_of(encoding: int, codes: list[int]) -> str:
    """The title of the section that a mnemonic belongs to."""
    if encoding == EncodingKind.VEX:
        return VEX_FAMILY
    features = {feature for code in codes for feature in form_features(code)}
    return next(title for title, belongs in FAMILIES if belongs(features))


def coverage_page() -> str:
    """The text of isa-coverage.md."""
    silicon = coverage.read()
    matrices = matrix_checked() if COVERED.exists() else {}
    notes: list[str] = []
    titles = (*(title for title, _ in FAMILIES), VEX_FAMILY)
    sections: dict[str, list[str]] = {title: [] for title in titles}
    counts: dict[str, list[int]] = {title: [0] * 6 for title in titles}
    everything = [
        (encoding, mnemonic, codes)
        for encoding in (EncodingKind.LEGACY, EncodingKind.VEX)
        for mnemonic, codes in forms_by_mnemonic(encoding).items()
    ]
    for encoding, mnemonic, codes in everything:
        title = family_of(encoding, codes)
        count = counts[title]
        count[0] += len(codes)
        missing = [code for code in codes if not state_of(code, mnemonic)]
        for code in sorted(set(codes) - set(missing)):
            name, info = code_names()[code], OpCodeInfo(code)
            needs = ", ".join(sorted(set(form_features(code)) - BASELINE - {"X64"})) or "-"
            native = silicon_column(name, silicon, notes)
            in_matrix = matrices.get(name, 0)
            sections[title].append(
                f"| {info.instruction_string} | {info.op_code_string} | {needs} | {state_of(code, mnemonic)} "
                f"| {native} | {in_matrix or '-'} |"
            )
            count[1] += 1
            is_native = name in silicon["checked"] and not only_fault(code)
            count[2] += is_native
            count[3] += name in silicon["checked"] and not is_native
            count[4] += in_matrix > 0
            count[5] += not is_native and not in_matrix
        if missing:
            text = "exit `Unimplemented`"
            names = "" if len(missing) == len(codes) else f": {', '.join(code_names()[c] for c in missing)}"
            plural = "form" if len(missing) == 1 else "forms"
            sections[title].append(f"| {mnemonic} | {len(missing)} {plural}{names} | - | {text} | - | - |")
    lines = [
        "# Instruction coverage",
        "",
        "Generated by `python3 bootstrap.py dev docs/generate.py` from iced-x86's tables, from the",
        "definitions in `isa/semantics/` and from what the tests count. An instruction that is not",
        "implemented leaves the guest as the exit `Unimplemented`, which names its bytes, its text, RIP and",
        "the mode. XOP and EVEX encodings are not listed: all of them take that exit.",
        "",
        "| family | forms | implemented | compared on silicon | only their fault | in a matrix | neither |",
        "|---|---|---|---|---|---|---|",
    ]
    for title, numbers in counts.items():
        lines.append(f"| {title} | {' | '.join(str(number) for number in numbers)} |")
    total = [sum(numbers) for numbers in zip(*counts.values(), strict=True)]
    lines.append(f"| all | {' | '.join(str(number) for number in total)} |")
    lines += [
        "",
        f"The column *native* counts the cases in which a real CPU ({silicon['cpu']}) and this one",
        f"came out alike: {silicon['cases']:,} in all, none different.",
        "",
        *(f"- {run}" for run in runs_of(silicon)),
        "",
        f"Every form compared has at least {min(silicon['checked'].values())} cases. A few of each are kept",
        "in `tests/vectors/` and replayed by the tests on any host. The column *matrix* counts the",
        "combinations of machine states in which `tests/matrices/` holds a form against a model. A number in",
        "brackets tells why a form is not compared on silicon, or what of it is:",
        "",
        *(f"{number}. {why}" for number, why in enumerate(notes, 1)),
    ]
    for title, rows in sections.items():
        lines += ["", f"## {title}", ""]
        lines += ["| instruction | encoding | needs | defined by, or the exit it takes | native | matrix |"]
        lines += ["|---|---|---|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def quirks_page() -> str:
    """The text of quirks.md."""
    lines = [
        "# Quirks",
        "",
        "Where this machine knowingly differs from hardware. Generated by `python3 bootstrap.py dev",
        "docs/generate.py` from the `# Quirk:` comments, which stand where each one happens.",
    ]
    for package in ("isa", "devices", "pysim_vm"):
        lines += ["", f"## {package}", ""]
        for path in sorted((ROOT / package).rglob("*.py")):
            for quirk in quirks_of(path.read_text().splitlines()):
                lines.append(f"- `{path.relative_to(ROOT)}`: {quirk}")
    return "\n".join(lines) + "\n"


def quirks_of(source: list[str]) -> list[str]:
    """The quirks of one file, each joined over the comment lines that follow it."""
    found = []
    for number, line in enumerate(source):
        match = re.search(r"# Quirk: (.*)", line)
        if match is None:
            continue
        text = match.group(1).strip().removesuffix('"""')
        for follower in source[number + 1 :]:
            more = re.fullmatch(r"\s*# (?!Quirk:)(.*)", follower)
            if more is None or not line.strip().startswith("#"):
                break
            text += " " + more.group(1).strip()
        found.append(text)
    return found


def block_engine_page() -> str:
    """The text of block-engine.md: what its first program prints stands behind it."""
    text = (ROOT / "docs" / "block-engine.md").read_text()
    program = re.search(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert program is not None
    printed = StringIO()
    with redirect_stdout(printed):
        exec(compile(program[1], "docs/block-engine.md", "exec"), {})
    head, marker, rest = text.partition("\n<!-- listing: what the program above prints -->\n")
    _, _, tail = rest.removeprefix("```text\n").partition("```\n")
    return f"{head}{marker}```text\n{printed.getvalue().strip()}\n```\n{tail}"


PAGES = {
    "isa-coverage.md": coverage_page,
    "quirks.md": quirks_page,
    "block-engine.md": block_engine_page,
}


def main(arguments: list[str]) -> int:
    """Write the pages, or with --check compare them; 1 if a page is stale."""
    stale = []
    for name, build in PAGES.items():
        path = ROOT / "docs" / name
        text = build()
        if "--check" not in arguments:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            stale.append(name)
    if stale:
        print(f"docs/generate.py: {', '.join(stale)} out of date; run it without --check", file=sys.stderr)
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
