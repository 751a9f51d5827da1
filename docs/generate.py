"""Writes the generated pages of docs/ from the code; `--check` only tells whether they are up to date.

isa-coverage.md: every mnemonic of iced's tables, what defines it here, or which exit it takes; which forms
were compared with a real CPU, from tests/vectors/coverage.json, and why not the others.
quirks.md: every place where the machine differs from hardware, collected from the `# Quirk:` comments.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

from iced_x86 import Code, EncodingKind, OpCodeInfo

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from isa.cpu import HYPERCALLS, NOP_WITHOUT_FEATURE  # noqa: E402  (the checkout's own packages)
from isa.cpuid import BASELINE, DEFAULT_FEATURES, OPTIONAL_FEATURES  # noqa: E402
from isa.decode import code_names, form_features, mnemonic_names  # noqa: E402
from isa.semantics import definition_for  # noqa: E402

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


def comparison(codes: list[int], checked: dict[str, int], reasons: dict[str, int]) -> str:
    """How many of the forms were compared with a real CPU; for the others a number behind each reason."""
    names = [code_names()[code] for code in codes]
    cases = sum(checked.get(name, 0) for name in names)
    compared = [name for name in names if name in checked]
    if not compared and not any(name in reasons for name in names):
        return "-"
    text = f"{cases} cases" if cases else ""
    if compared and len(compared) < len(names):
        text += f" of {len(compared)} forms"
    left: dict[int, list[str]] = defaultdict(list)
    for name in names:
        if name in reasons:
            left[reasons[name]].append(name)
    for number, missing in sorted(left.items()):
        listed = f" {', '.join(missing)}" if compared or len(left) > 1 else ""
        text += f"{'; ' if text else ''}not{listed} ({number})"
    return text


def coverage_page() -> str:
    """The text of isa-coverage.md."""
    silicon = json.loads((ROOT / "tests" / "vectors" / "coverage.json").read_text())
    causes = list(silicon["unchecked"])
    reasons = {name: number for number, why in enumerate(causes, 1) for name in silicon["unchecked"][why]}
    offered = BASELINE | set(DEFAULT_FEATURES) | set(OPTIONAL_FEATURES)
    titles = (*(title for title, _ in FAMILIES), VEX_FAMILY)
    sections: dict[str, list[str]] = {title: [] for title in titles}
    counts: dict[str, list[int]] = {title: [0, 0, 0, 0] for title in titles}
    everything = [
        (encoding, mnemonic, codes)
        for encoding in (EncodingKind.LEGACY, EncodingKind.VEX)
        for mnemonic, codes in forms_by_mnemonic(encoding).items()
    ]
    for encoding, mnemonic, codes in everything:
        features = {feature for code in codes for feature in form_features(code)}
        title = VEX_FAMILY
        if encoding == EncodingKind.LEGACY:
            title = next(title for title, belongs in FAMILIES if belongs(features))
        done = [code for code in codes if definition_for(code_names()[code], mnemonic)]
        counts[title][0] += 1
        counts[title][2] += len(codes)
        counts[title][3] += len(done)
        needs = ", ".join(sorted(features - BASELINE - {"X64"})) or "-"
        if mnemonic in NOP_WITHOUT_FEATURE and len(done) < len(codes):
            state = "no operation, as on a CPU without the feature"
            counts[title][3] += len(codes) - len(done)
            counts[title][1] += 1
        elif len(done) == len(codes):
            counts[title][1] += 1
            names = sorted({
                f"{definition.function.__module__.rpartition('.')[2]}.{definition.function.__name__}"
                for code in codes
                if (definition := definition_for(code_names()[code], mnemonic)) is not None
            })  # fmt: skip
            state = ", ".join(f"`{name}`" for name in names)
            if features and not features <= offered and mnemonic not in HYPERCALLS:
                state += " (#UD: the feature is never offered)"
        elif done:
            left = [code_names()[code] for code in codes if code not in done]
            state = f"exit `Unimplemented` for {', '.join(left)}"
        else:
            state = "exit `Unimplemented`"
        compared = comparison(codes, silicon["checked"], reasons)
        sections[title].append(f"| {mnemonic} | {len(codes)} | {needs} | {state} | {compared} |")
    lines = [
        "# Instruction coverage",
        "",
        "Generated by `python3 bootstrap.py dev docs/generate.py` from iced-x86's tables and from the",
        "definitions in `isa/semantics/`. An instruction that is not implemented leaves the guest as the",
        "exit `Unimplemented`, which names its bytes, its text, RIP and the mode. XOP and EVEX encodings",
        "are not listed: all of them take that exit.",
        "",
        "| family | mnemonics | implemented | forms | implemented |",
        "|---|---|---|---|---|",
    ]
    for title, (mnemonics, complete, forms, done_forms) in counts.items():
        lines.append(f"| {title} | {mnemonics} | {complete} | {forms} | {done_forms} |")
    lines += [
        "",
        f"{len(silicon['checked'])} forms were compared with a real CPU ({silicon['cpu']}) in",
        f"{silicon['cases']:,} cases of `python -m tests.oracles`, all alike.",
        "The last column tells how many of a mnemonic's; a few of each form are kept in `tests/vectors/` and",
        "replayed by the tests on any host. Where forms could not be compared, a number tells why:",
        "",
        *(f"{number}. {why}" for number, why in enumerate(causes, 1)),
    ]
    for title, rows in sections.items():
        lines += ["", f"## {title}", ""]
        lines += ["| mnemonic | forms | needs | defined by, or the exit it takes | compared on silicon |"]
        lines += ["|---|---|---|---|---|", *rows]
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


PAGES = {"isa-coverage.md": coverage_page, "quirks.md": quirks_page}


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
