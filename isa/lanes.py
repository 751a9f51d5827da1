"""Vector registers in translated code. It knows lanes and locals, and no instruction.

In a block an XMM register is a number of 128 bits, a pair of doubles, or both. The locals of register n:
`xmm<n>` the number, or None; `lo<n>` and `hi<n>` the doubles as Python floats, None where there is no pair;
`ok<n>` true where both are known to be *tame* (see `isa.doubles`). Arithmetic on doubles makes pairs, integer
instructions make numbers, moves copy what there is, and what is missing is made where it is read. So a loop
over doubles neither packs nor unpacks anything. `ymmh<n>` is the upper half of YMMn, always a number.

The definitions work on 128-bit integers. `pair_of` finds the 64-bit lanes in such an expression.
Placeholders of vector operand n: read U (the number), X (the number or None), C E T (pair, tame), Y (upper
half of YMM); written F P Q K Z alike. Of one in memory: L (its value), G H (the halves of 256 bits).
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Collection, Iterable
from math import sqrt
from typing import Any, NamedTuple

from isa import doubles
from isa.doubles import EXACT_INTEGERS, LEAST, MOST
from isa.floats import BINARY64, EASY_BITS, QUICK
from isa.folding import constant, fold, name
from isa.semantics import sse_float
from isa.semantics.vector import LOW64_OUT, M128
from isa.state import M64, XMM_NAMES, YMM_HIGH_NAMES

_OF_PAIRS = tuple(f"{part}{n}" for n in range(16) for part in ("lo", "hi", "ok"))
VECTOR_LOCALS = frozenset((*XMM_NAMES, *YMM_HIGH_NAMES, *_OF_PAIRS))

# What translated code calls
RUNTIME: dict[str, Any] = {
    "v_add": doubles.add, "v_sub": doubles.sub, "v_mul": doubles.mul, "v_div": doubles.div,
    "v_root": doubles.root, "v_sqrt": sqrt, "v_tame": doubles.tame, "v_split": doubles.split,
    "v_join": doubles.join, "v_double": doubles.double, "v_halves": doubles.halves,
    "v_quarters": doubles.quarters, "v_dd": doubles.load_pair, "v_qq": doubles.load_halves,
    "v_4q": doubles.load_quarters, "v_pdd": doubles.store_pair, "v_pqq": doubles.store_halves,
    "v_p4q": doubles.store_quarters,
}  # fmt: skip

# ---- around a block --------------------------------------------------------------------------------------


def entry_lines(used: Collection[str]) -> list[str]:
    """How a block gets the vector registers of which it uses these locals."""
    lines: list[str] = []
    for n, register in enumerate(XMM_NAMES):
        pair = f"lo{n}" in used
        if register in used or pair:
            lines.append(f"{register} = cpu.{register}")
        if pair:
            lines.append(f"lo{n} = hi{n} = ok{n} = None")
    return lines + [f"{upper} = cpu.{upper}" for upper in YMM_HIGH_NAMES if upper in used]


def locals_of_vector(number: int) -> frozenset[str]:
    """All locals that hold a part of a vector register."""
    return frozenset((XMM_NAMES[number], YMM_HIGH_NAMES[number], f"lo{number}", f"hi{number}", f"ok{number}"))


def exit_lines(used: Collection[str], stored: Collection[str]) -> list[str]:
    """How a block hands back the vector registers that it stored."""
    lines: list[str] = []
    for n, register in enumerate(XMM_NAMES):
        if register in stored:
            if f"lo{n}" in used:
                lines += [f"if {register} is None:", f"    {register} = v_join(lo{n}, hi{n})"]
            lines.append(f"cpu.{register} = {register}")
    return lines + [f"cpu.{upper} = {upper}" for upper in YMM_HIGH_NAMES if upper in stored]


STICKY = f"cpu.mxcsr & {EASY_BITS | QUICK:#x} == {QUICK:#x}"  # how a block gets `sticky`


def runtime_names(used: Iterable[str]) -> dict[str, Any]:
    """Of the names that a block uses, those of functions that it calls here and in `isa.semantics`."""
    found: dict[str, Any] = {}
    for each in used:
        if each in RUNTIME:
            found[each] = RUNTIME[each]
        elif "__" in each and not each.startswith("_"):
            found[each] = known_value(each)
    return found


def vector_names(n: int, source: str, register: str) -> dict[str, str]:
    """The placeholders of an operand that reads register `source` and writes `register` ("xmm3", "ymm3")."""
    read, written = source[3:], register[3:]
    return {
        f"OP{n}U": f"xmm{read}", f"OP{n}X": f"xmm{read}", f"OP{n}C": f"lo{read}", f"OP{n}E": f"hi{read}",
        f"OP{n}T": f"ok{read}", f"OP{n}Y": f"ymmh{read}", f"OP{n}F": f"xmm{written}",
        f"OP{n}P": f"lo{written}", f"OP{n}Q": f"hi{written}", f"OP{n}K": f"ok{written}",
        f"OP{n}Z": f"ymmh{written}",
    }  # fmt: skip


# ---- what modules of the CPU define ------------------------------------------------------------------------


def known_path(function: Any, identifier: str) -> str:
    """The name in blocks of a global of the function's module, where `known_value` finds it."""
    return f"{function.__module__.rpartition('.')[2]}__{identifier}"


def known_value(path: str) -> Any:
    """What `module__name__attribute` stands for; the module is one of `isa.semantics` or `isa`."""
    module, *names = path.split("__")
    value: Any = sys.modules.get(f"isa.semantics.{module}") or sys.modules[f"isa.{module}"]
    for each in names:
        value = getattr(value, each)
    return value


# ---- lanes -------------------------------------------------------------------------------------------------


class Lane(NamedTuple):
    """64 bits of a vector expression."""

    kind: str  # "zero", "reg", "mem", or the operation that makes it
    operand: int = 0  # of "reg" and "mem"
    half: int = 0  # of "reg" and "mem": 0 the low 64 bits, 1 the next
    parts: tuple[Lane | ast.expr, ...] = ()  # what is operated on


ZERO = Lane("zero")
Pair = tuple[Lane, Lane]
ARITHMETIC = ("add", "sub", "mul", "div", "min", "max")
_U = re.compile(r"OP(\d)U")
_L = re.compile(r"OP(\d)L")
_SIGN_LOW, _SIGNS = 1 << 63, 1 << 127 | 1 << 63
_LOADS = re.compile(r"OP\d[LGH]|load|tr|cpu")


def _callee(node: ast.expr) -> Any:
    """What a call of something known calls."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and "__" in node.func.id:
        return known_value(node.func.id)
    return None


def _known(node: ast.expr) -> Any:
    return known_value(node.id) if isinstance(node, ast.Name) and "__" in node.id else None


def _operation(function: Any) -> str:
    """The name of an operation on doubles, "" for anything else."""
    return function.__name__ if getattr(function, "__self__", None) is BINARY64 else ""


class VectorCode:
    """The part of the specialiser that reads and writes vector operands."""

    forms: Any

    def __init__(self) -> None:
        self.out: list[ast.stmt] = []
        self.temporaries = 0
        self.results: list[ast.expr] = []  # of the halves
        self.tamed: set[int] = set()
        self.numbers: dict[tuple[int, int], str] = {}  # (operand, half) in memory -> the local that holds it
        self.checked: set[str] = set()  # those of them that are known to be tame

    def code(self, text: str) -> None:
        """Emit statements."""
        self.out += ast.parse(text).body

    def temporary(self, letter: str) -> str:
        """A new local of this instruction."""
        self.temporaries += 1
        return f"{letter}{self.temporaries}_S"

    def hold(self, value: ast.expr) -> ast.expr:
        """The specialiser's: keep a value in a temporary."""
        raise NotImplementedError

    def store_memory(self, address: ast.Name, size: int, value: ast.expr) -> None:
        """The specialiser's: RAM[address] := value."""
        raise NotImplementedError

    def load_memory(self, address: ast.expr, size: int) -> ast.expr:
        """The specialiser's: the value of RAM[address]."""
        raise NotImplementedError

    # -- reading --

    def read_whole(self, n: int, kind: str, bits: int) -> ast.expr:
        """The value of a vector operand, or of a memory operand beside one."""
        if kind == "mem":
            return name(f"OP{n}L")
        if kind == "ymm":
            upper = ast.BinOp(name(f"OP{n}Y"), ast.LShift(), constant(128))
            return ast.BinOp(name(f"OP{n}U"), ast.BitOr(), upper)
        return name(f"OP{n}U")

    def is_aligned_form(self, n: int) -> bool:
        """True if the memory operand faults unless it is aligned."""
        return bool(self.forms[n].value & 2)

    def check_alignment(self, n: int, size: int) -> None:
        """Emit the check of an operand that has to be aligned."""
        if self.is_aligned_form(n):
            self.code(f"if OP{n}A & {size - 1}:\n    raise NotPlain")

    @staticmethod
    def halves_of(node: ast.expr, forms: Any) -> tuple[ast.expr, ast.expr] | None:
        """The halves of a 256-bit expression, where they are apart already."""
        match node:
            case ast.Name(id=label) if (found := _L.fullmatch(label)) and forms[int(found[1])].bits == 256:
                return name(f"OP{found[1]}G"), name(f"OP{found[1]}H")
            case ast.Constant(value=0):
                return node, node
            case ast.BinOp(
                left=low, op=ast.BitOr(), right=ast.BinOp(left=high, op=ast.LShift(), right=ast.Constant(128))
            ):
                return low, high
            case ast.UnaryOp(op=ast.Invert(), operand=operand):
                found_halves = VectorCode.halves_of(operand, forms)
                if found_halves is not None:
                    low, high = found_halves
                    return ast.UnaryOp(ast.Invert(), low), ast.UnaryOp(ast.Invert(), high)
            case ast.BinOp(left=left, op=ast.BitAnd() | ast.BitOr() | ast.BitXor() as op, right=right):
                one, other = VectorCode.halves_of(left, forms), VectorCode.halves_of(right, forms)
                if one is not None and other is not None:
                    low, high = (_folded_bits(ast.BinOp(a, op, b)) for a, b in zip(one, other, strict=True))
                    return low, high
        return None

    def folded(self, node: ast.BinOp) -> ast.expr:
        """`fold`, and what holds for vectors: halves taken apart, x ^ x."""
        match node:
            case ast.BinOp(left=left, op=ast.BitAnd(), right=ast.Constant(value=value)) if value == M128:
                halves = self.halves_of(left, self.forms)
                if halves is not None:
                    return halves[0]
            case ast.BinOp(left=left, op=ast.RShift(), right=ast.Constant(value=128)):
                halves = self.halves_of(left, self.forms)
                if halves is not None:
                    return halves[1]
        return _folded_bits(node)

    # -- lanes --

    def pair_of(self, node: ast.expr) -> Pair | None:
        """The two 64-bit lanes of a 128-bit expression; None where it is not made of lanes."""
        match node:
            case ast.Name(id=label):
                if found := _U.fullmatch(label):
                    n = int(found[1])
                    return Lane("reg", n, 0), Lane("reg", n, 1)
                if found := _L.fullmatch(label):
                    n = int(found[1])
                    if self.forms[n].bits == 64:
                        return Lane("mem", n, 0), ZERO
                    if self.forms[n].bits == 128:
                        return Lane("mem", n, 0), Lane("mem", n, 1)
            case ast.Constant(value=0):
                return ZERO, ZERO
            case ast.BinOp(left=left, op=ast.BitAnd(), right=ast.Constant(value=int(mask))):
                lanes = self.pair_of(left) if mask in (M64, LOW64_OUT, M128) else None
                if lanes is not None:
                    return lanes[0] if mask & M64 else ZERO, lanes[1] if mask >> 64 else ZERO
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                one, other = self.pair_of(left), self.pair_of(right)
                if one is not None and other is not None:
                    merged = [a if b is ZERO else b for a, b in zip(one, other, strict=True)
                              if a is ZERO or b is ZERO]  # fmt: skip
                    return (merged[0], merged[1]) if len(merged) == 2 else None
            case ast.BinOp(left=left, op=ast.RShift(), right=ast.Constant(value=64)):
                lanes = self.pair_of(left)
                return None if lanes is None else (lanes[1], ZERO)
            case ast.BinOp(left=left, op=ast.LShift(), right=ast.Constant(value=64)):
                low = self.lane_of(left)
                return None if low is None else (ZERO, low)
            case ast.Call():
                return self._made_by(node)
        return None

    def lane_of(self, node: ast.expr) -> Lane | None:
        """The 64-bit lane that an expression is."""
        lanes = self.pair_of(node)
        return lanes[0] if lanes is not None and lanes[1] is ZERO else None

    def _made_by(self, node: ast.Call) -> Pair | None:
        """The lanes of the result of an operation on doubles."""
        arguments = node.args
        called = _callee(node)
        if called is sse_float.settled:
            inner = arguments[1]
            operation = _operation(_callee(inner))
            if operation and isinstance(inner, ast.Call):
                if operation == "from_int":
                    return Lane(operation, parts=(inner.args[0],)), ZERO
                if operation in (*ARITHMETIC, "sqrt"):
                    lanes = [self.lane_of(part) for part in inner.args[:-1]]
                    if None not in lanes:
                        return Lane(operation, parts=tuple(lane for lane in lanes if lane)), ZERO
        elif called is sse_float.packed or called is sse_float.each:
            operation = _operation(_known(arguments[-4]))
            one, other = self.pair_of(arguments[-3]), self.pair_of(arguments[-2])
            if operation in ARITHMETIC and one is not None and other is not None and _is(arguments[-1], 128):
                low, high = (Lane(operation, parts=(a, b)) for a, b in zip(one, other, strict=True))
                return low, high
        elif called is sse_float.each_of:
            operation = _operation(_known(arguments[1]))
            one = self.pair_of(arguments[2])
            if operation == "sqrt" and one is not None and _is(arguments[-1], 2):
                return Lane(operation, parts=(one[0],)), Lane(operation, parts=(one[1],))
        return None

    def is_cheap(self, node: ast.expr) -> bool:
        """True for an expression on registers that may be written out wherever its value is needed."""
        if isinstance(node, ast.Name):
            return node.id.startswith("OP") or "__" in node.id
        if self.halves_of(node, self.forms) is not None:
            return not any(isinstance(part, ast.Call) for part in ast.walk(node))
        lanes = self.pair_of(node)
        return lanes is not None and all(lane.kind in ("zero", "reg", "mem") for lane in lanes)

    # -- doubles --

    def number(self, lane: Lane) -> str:
        """A lane as a tame double: a local or a literal."""
        match lane.kind:
            case "zero":
                return "0.0"
            case "reg":
                n = lane.operand
                if n not in self.tamed:
                    self.tamed.add(n)
                    self.code(
                        f"if not OP{n}T:\n"
                        f"    OP{n}C, OP{n}E = v_tame(OP{n}X, OP{n}C, OP{n}E)\n"
                        f"    OP{n}T = True"
                    )
                return f"OP{n}{'CE'[lane.half]}"
            case "mem":
                local = self.loaded_number(lane.operand, lane.half)
                if local not in self.checked:
                    self.checked.add(local)
                    self.code(f"if not ({_tame(local)}):\n    raise NotPlain")
                return local
        return self.operated(lane)

    def loaded_number(self, n: int, half: int) -> str:
        """The local that holds 64 bits of memory as a float, whatever they are."""
        found = self.numbers.get((n, half))
        if found is not None:
            return found
        low = self.temporary("f")
        at = f"OP{n}A"
        if self.forms[n].bits == 64:
            self.code(f"{low} = v_double(load({at}, 8)) if {at} & 7 else mf[{at} + tr[{at} >> 12] >> 3]")
            self.numbers[n, 0] = low
            return low
        high = self.temporary("f")
        self.check_alignment(n, 16)
        self.code(
            f"{low}, {high} = v_dd(mb, {at} + tr[{at} >> 12]) if {at} & 4095 < 4081 "
            f"else v_split(load({at}, 16))"
        )
        self.numbers.update({(n, 0): low, (n, 1): high})
        return self.numbers[n, half]

    def operated(self, lane: Lane) -> str:
        """The result of an operation; bails out where it would set a flag of MXCSR."""
        operation = lane.kind
        if operation == "from_int":
            number = ast.unparse(lane.parts[0])  # type: ignore[arg-type]  # an expression there
            result = self.temporary("t")
            if not any(form.kind in ("reg", "mem") and form.bits == 32 for form in self.forms[1:]):
                self.code(
                    f"if not (sticky or {-EXACT_INTEGERS} <= {number} <= {EXACT_INTEGERS}):\n"
                    "    raise NotPlain"
                )
            self.code(f"{result} = float({number})")
            return result
        values = [self.number(part) for part in lane.parts if isinstance(part, Lane)]
        a, b = values[0], values[-1]
        result = self.temporary("t")
        match operation:
            case "add" | "sub" | "mul":
                sign = {"add": "+", "sub": "-", "mul": "*"}[operation]
                self.code(f"{result} = {a} {sign} {b} if sticky else v_{operation}({a}, {b}, cpu)")
                zero = f"not ({a} and {b})" if operation == "mul" else f"not {result}"
                self.code(f"if not ({_normal(result)} or {zero}):\n    raise NotPlain")
            case "div":
                self.code(
                    f"if not {b}:\n    raise NotPlain\n"
                    f"{result} = {a} / {b} if sticky else v_div({a}, {b}, cpu)\n"
                    f"if not ({_normal(result)} or not {a}):\n    raise NotPlain"
                )
            case "sqrt":
                self.code(
                    f"if {a} < 0.0:\n    raise NotPlain\n"
                    f"{result} = v_sqrt({a}) if sticky else v_root({a}, cpu)"
                )
            case "min":
                self.code(f"{result} = {a} if {a} < {b} else {b}")
            case "max":
                self.code(f"{result} = {a} if {a} > {b} else {b}")
        return result

    def lowered(self, value: ast.expr) -> ast.expr:
        """`value`, or the local with its value if it is an integer made of doubles."""
        called = _callee(value)
        if called is None or not isinstance(value, ast.Call):
            return value
        if called is sse_float.relation_of and _known(value.args[1]) is BINARY64:
            one, other = self.lane_of(value.args[2]), self.lane_of(value.args[3])
            if one is not None and other is not None:
                a, b = self.number(one), self.number(other)
                result = self.temporary("r")
                self.code(f"{result} = ({a} > {b}) - ({a} < {b})")
                return name(result)
        inner = value.args[1] if called is sse_float.settled else None
        if isinstance(inner, ast.Call) and _operation(_callee(inner)) == "to_int":
            width = inner.args[1]
            lane = self.lane_of(inner.args[0])
            if lane is not None and isinstance(width, ast.Constant) and isinstance(width.value, int):
                truncates = not isinstance(inner.args[2], ast.Name)  # or'ed with TRUNCATE
                return self.whole(self.number(lane), width.value, truncates)
        return value

    def whole(self, number: str, bits: int, truncates: bool) -> ast.expr:
        """A double as a two's complement number."""
        result, limit = self.temporary("r"), 1 << bits - 1
        self.code(
            f"{result} = {'int' if truncates else 'round'}({number})\n"
            f"if not ({-limit} <= {result} < {limit} and (sticky or {result} == {number})):\n"
            "    raise NotPlain"
        )
        return ast.BinOp(name(result), ast.BitAnd(), constant((1 << bits) - 1))

    # -- writing --

    def write_xmm(self, n: int, value: ast.expr) -> None:
        """An XMM register := value."""
        clear = f"\nOP{n}Z = 0" if self.forms[n].kind == "vex" else ""
        if self.write_signs(n, value, clear):
            return
        lanes = self.pair_of(value)
        if isinstance(value, ast.Constant) and value.value == 0:
            self.code(f"OP{n}F = 0\nOP{n}P = OP{n}Q = 0.0\nOP{n}K = True{clear}")
        elif lanes is None or not self.write_pair(n, lanes, value, clear):
            text = ast.unparse(value)
            self.code(f"OP{n}F = {text}\nOP{n}P = OP{n}K = None{clear}")

    def write_signs(self, n: int, value: ast.expr, clear: str) -> bool:
        """An XMM register := register AND or XOR something: on pairs, absolute values and changes of sign."""
        if not isinstance(value, ast.BinOp) or not isinstance(value.op, ast.BitAnd | ast.BitXor):
            return False
        one, other = ast.unparse(value.left), ast.unparse(value.right)
        found = _U.fullmatch(one)
        if found is None or one == other or not (_U.fullmatch(other) or _L.fullmatch(other)):
            return False
        low, high, tame = (f"OP{found[1]}{part}" for part in "CET")
        mask = self.temporary("s")
        self.code(f"{mask} = {other}")
        if isinstance(value.op, ast.BitXor):
            sign, cases = "^", ((_SIGN_LOW, f"-{low}", high), (_SIGNS, f"-{low}", f"-{high}"))
        else:
            absolute = f"abs({low})", f"abs({high})"
            sign, cases = "&", ((_SIGN_LOW - 1, absolute[0], "0.0"), (M128 ^ _SIGNS, *absolute))
        kept = "" if self.forms[n].kind == "xmm" else f"    OP{n}K = {tame}\n"
        texts = [
            f"if {low} is not None and {mask} == {number}:\n    OP{n}P = {on_low}\n"
            + ("" if kept == "" and on_high == high else f"    OP{n}Q = {on_high}\n")
            + f"{kept}    OP{n}F = None\n"
            for number, on_low, on_high in cases
        ]
        number = f"else:\n    OP{n}F = {one} {sign} {mask}\n    OP{n}P = OP{n}K = None"
        self.out += ensured_branches("el".join(texts) + number)
        if clear:
            self.code(clear.strip())
        return True

    def write_pair(self, n: int, lanes: Pair, value: ast.expr, clear: str) -> bool:
        """An XMM register := two lanes. False if they are better made as a number."""
        low, high = lanes
        kinds = {lane.kind for lane in lanes}
        if not kinds <= {"zero", "reg", "mem"}:
            a, b = self.number(low), self.number(high)
            same = self.forms[n].kind == "xmm"  # what is written is what was read
            if same and b == f"OP{n}E":
                self.code(f"OP{n}P = {a}")
            else:
                self.code(f"OP{n}P, OP{n}Q = {a}, {b}")
            self.code(f"OP{n}F = None{clear}" + ("" if same and n in self.tamed else f"\nOP{n}K = True"))
            return True
        registers = list(dict.fromkeys(lane.operand for lane in lanes if lane.kind == "reg"))
        memory = [lane.operand for lane in lanes if lane.kind == "mem"]
        if memory:
            if not self.forms[memory[0]].value & 4:
                return False
            texts = [self.moved(lane) for lane in lanes]
            tame = " and ".join(
                f"OP{lane.operand}T" if lane.kind == "reg" else f"({_tame(text)})"
                for lane, text in zip(lanes, texts, strict=True) if lane.kind != "zero"
            )  # fmt: skip
            self.code(f"OP{n}K = {tame}\nOP{n}P, OP{n}Q = {', '.join(texts)}\nOP{n}F = None{clear}")
            return True
        if not registers:
            return False
        source = registers[0]
        if low == Lane("reg", source, 0) and high == Lane("reg", source, 1):
            self.code(
                f"OP{n}F = OP{source}X\nOP{n}P = OP{source}C\nOP{n}Q = OP{source}E\nOP{n}K = OP{source}T"
                + clear
            )
            return True
        known = " and ".join(f"OP{each}C is not None" for each in registers)
        tame = " and ".join(f"OP{each}T" for each in registers)
        texts = [f"OP{lane.operand}{'CE'[lane.half]}" if lane.kind == "reg" else "0.0" for lane in lanes]
        pair = ast.parse(
            f"if {known}:\n    OP{n}K = {tame}\n    OP{n}P, OP{n}Q = {', '.join(texts)}\n    OP{n}F = None\n"
            "else:\n    pass"
        ).body[0]
        assert isinstance(pair, ast.If)
        number = ast.parse(f"OP{n}F = {ast.unparse(value)}\nOP{n}P = OP{n}K = None").body
        pair.orelse = ensured(number)
        self.out.append(pair)
        if clear:
            self.code(clear.strip())
        return True

    def moved(self, lane: Lane) -> str:
        """A lane as a float that may be anything."""
        match lane.kind:
            case "zero":
                return "0.0"
            case "mem":
                return self.loaded_number(lane.operand, lane.half)
        n = lane.operand
        self.code(f"if OP{n}C is None:\n    OP{n}C, OP{n}E = v_split(OP{n}X)\n    OP{n}T = None")
        return f"OP{n}{'CE'[lane.half]}"

    def write_ymm(self, n: int, value: ast.expr) -> None:
        """A YMM register := value."""
        halves = self.halves_of(value, self.forms)
        if halves is None:
            halves = _cut(self.hold(value))
        self.write_halves(n, *halves)

    def write_halves(self, n: int, low: ast.expr, high: ast.expr) -> None:
        """A YMM register := two halves."""
        low_text, high_text = ast.unparse(low), ast.unparse(high)
        self.code(f"OP{n}F, OP{n}Z = {low_text}, {high_text}\nOP{n}P = OP{n}K = None")

    def write_memory(self, n: int, size: int, value: ast.expr) -> None:
        """A memory operand beside a vector register := value."""
        at = f"OP{n}A"
        self.check_alignment(n, size)
        lanes = self.pair_of(value)
        if size == 32:
            self.write_memory_256(n, value)
        elif size == 16:
            known = isinstance(value, ast.Name) and _U.fullmatch(value.id)
            held = value.id if known and isinstance(value, ast.Name) else ast.unparse(self.hold(value))
            number = f"v_pqq(mb, {at} + tw[{at} >> 12], {held} & {M64}, {held} >> 64)"
            slow = f"store({at}, 16, {held})"
            if known:
                source = known[1]
                self.out += ensured_branches(
                    f"if {at} & 4095 > 4080:\n    {slow}\n"
                    f"elif OP{source}C is not None:\n"
                    f"    v_pdd(mb, {at} + tw[{at} >> 12], OP{source}C, OP{source}E)\n"
                    f"else:\n    {number}"
                )
            else:
                self.code(f"if {at} & 4095 > 4080:\n    {slow}\nelse:\n    {number}")
        elif size == 8 and lanes is not None and lanes[0].kind == "reg":
            source = lanes[0].operand
            part = "CE"[lanes[0].half]
            held = f"OP{source}U & {M64}" if part == "C" else f"OP{source}U >> 64"
            self.out += ensured_branches(
                f"if OP{source}C is not None and not {at} & 7:\n"
                f"    mf[{at} + tw[{at} >> 12] >> 3] = OP{source}{part}\n"
                f"elif {at} & 7:\n    store({at}, 8, {held})\n"
                f"else:\n    mq[{at} + tw[{at} >> 12] >> 3] = {held}"
            )
        else:
            self.store_memory(name(at), size, value)

    def write_memory_256(self, n: int, value: ast.expr) -> None:
        at = f"OP{n}A"
        halves = self.halves_of(value, self.forms)
        if halves is None:
            halves = _cut(self.hold(value))
        low, high = (ast.unparse(self.hold(half)) for half in halves)
        self.code(
            f"if {at} & 4095 > 4064:\n    store({at}, 32, {low} | {high} << 128)\n"
            f"else:\n    v_p4q(mb, {at} + tw[{at} >> 12], {low} & {M64}, {low} >> 64, {high} & {M64}, "
            f"{high} >> 64)"
        )

    # -- the end of an instruction --

    def finish(self) -> None:
        """Put reads of memory where their values are first needed; make numbers that are missing."""
        self.out = _without_unused(self.out)
        made: list[ast.stmt] = []
        loaded: dict[str, ast.expr] = {}
        for statement in self.out:
            for label in _names(statement):
                if label not in loaded and (found := re.fullmatch(r"OP(\d)[LGH]", label)):
                    self.out = made
                    self.load_value(int(found[1]), loaded)
            made.append(_Replace(loaded).visit(statement))
        self.out = ensured(made)

    def load_value(self, n: int, loaded: dict[str, ast.expr]) -> None:
        """Emit the load of a memory operand."""
        size = self.forms[n].bits // 8
        at = f"OP{n}A"
        self.check_alignment(n, size)
        if size == 16:
            low, high = self.temporary("m"), self.temporary("m")
            self.code(
                f"{low}, {high} = v_qq(mb, {at} + tr[{at} >> 12]) if {at} & 4095 < 4081 "
                f"else v_halves(load({at}, 16))"
            )
            whole = self.temporary("m")
            self.code(f"{whole} = {low} | {high} << 64")
        elif size == 32:
            parts = [self.temporary("m") for _ in range(4)]
            self.code(
                f"{', '.join(parts)} = v_4q(mb, {at} + tr[{at} >> 12]) if {at} & 4095 < 4065 "
                f"else v_quarters(load({at}, 32))"
            )
            low, high, whole = (self.temporary("m") for _ in range(3))
            self.code(
                f"{low} = {parts[0]} | {parts[1]} << 64\n{high} = {parts[2]} | {parts[3]} << 64\n"
                f"{whole} = {low} | {high} << 128"
            )
            loaded[f"OP{n}G"], loaded[f"OP{n}H"] = name(low), name(high)
        else:
            whole = self.temporary("m")
            value = self.load_memory(name(at), size)
            self.out.append(ast.Assign([ast.Name(whole, ast.Store())], value))
        loaded[f"OP{n}L"] = name(whole)


def _is(node: ast.expr, value: int) -> bool:
    return isinstance(node, ast.Constant) and node.value == value


def _folded_bits(node: ast.BinOp) -> ast.expr:
    """`fold`, and x ^ x = 0."""
    match node:
        case ast.BinOp(left=ast.Name(id=one), op=ast.BitXor(), right=ast.Name(id=other)) if one == other:
            return constant(0)
    return fold(node)


def _cut(held: ast.expr) -> tuple[ast.expr, ast.expr]:
    """The halves of 256 bits."""
    return ast.BinOp(held, ast.BitAnd(), constant(M128)), ast.BinOp(held, ast.RShift(), constant(128))


def _normal(local: str) -> str:
    return f"{LEAST!r} < {local} <= {MOST!r} or {-MOST!r} <= {local} < {-LEAST!r}"


def _tame(local: str) -> str:
    return f"{_normal(local)} or not {local}"


def _names(statement: ast.AST) -> Iterable[str]:
    return [part.id for part in ast.walk(statement) if isinstance(part, ast.Name)]


class _Replace(ast.NodeTransformer):
    """Puts locals in the place of placeholders."""

    def __init__(self, values: dict[str, ast.expr]) -> None:
        self.values = values

    def visit_Name(self, node: ast.Name) -> ast.AST:  # the library's name
        found = self.values.get(node.id)
        return name(found.id) if isinstance(found, ast.Name) else node


def _without_unused(statements: list[ast.stmt]) -> list[ast.stmt]:
    """Leave out temporaries that nothing reads and whose value touches no memory."""
    while True:
        read = {
            part.id
            for statement in statements for part in ast.walk(statement)
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load)
        }  # fmt: skip
        kept = []
        for statement in statements:
            match statement:
                case ast.Assign(targets=[ast.Name(id=local)]) if local.endswith("_S") and local not in read:
                    if not any(_LOADS.fullmatch(used) for used in _names(statement)):
                        continue
            kept.append(statement)
        if len(kept) == len(statements):
            return kept
        statements = kept


def ensured(statements: list[ast.stmt]) -> list[ast.stmt]:
    """The statements behind others that make the numbers that they read."""
    wanted = {
        found[1]
        for statement in statements for part in ast.walk(statement)
        if isinstance(part, ast.Name) and (found := _U.fullmatch(part.id))
    }  # fmt: skip
    text = "\n".join(f"if OP{n}X is None:\n    OP{n}X = v_join(OP{n}C, OP{n}E)" for n in sorted(wanted))
    values = {f"OP{n}U": name(f"OP{n}X") for n in wanted}
    return [*ast.parse(text).body, *(_Replace(dict(values)).visit(statement) for statement in statements)]


def ensured_branches(text: str) -> list[ast.stmt]:
    """A chain of conditions, each branch of which makes the numbers that it reads."""
    made = ast.parse(text).body
    todo: list[ast.stmt] = list(made)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If):
            node.body = ensured(node.body)
            if len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If):
                todo.append(node.orelse[0])
            elif node.orelse:
                node.orelse = ensured(node.orelse)
    return made
