"""One instruction function made into statements for one operand form. `translate` puts blocks together.

The function's AST is walked: `dst.value` becomes a local variable or an expression on RAM, `dst.bits` a
number, a helper its body. The result is a template with placeholders, kept by form; `fill` puts registers and
numbers in.
"""

from __future__ import annotations

import ast
import copy
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from isa import operands as operand_types
from isa.decode import Insn, code_names
from isa.folding import REGISTERS, constant, fold, fold_boolean, name, or_
from isa.lanes import VECTOR_LOCALS, VectorCode, known_path, known_value, vector_names
from isa.modes import Mode
from isa.semantics.fpu_control import check_sse
from isa.semantics.registry import HALVES, WIDE, Definition
from isa.semantics.vector import M128, check_vector, on_halves
from isa.state import GPR_NAMES, M32, M64, YMM_HIGH_NAMES

FLAGS = ("cf", "pf", "af", "zf", "sf", "of")
ARCHITECTURAL = frozenset((*GPR_NAMES, *FLAGS, "df", *VECTOR_LOCALS))
VIEWS = {1: "mb", 2: "mw", 4: "md", 8: "mq"}
SHIFTS = {1: "", 2: " >> 1", 4: " >> 2", 8: " >> 3"}
BUILTINS = frozenset(("bool", "int", "min", "max", "abs", "float", "round"))
ENVIRONMENT = frozenset(
    ("load", "store", "tr", "tw", "mf", "sticky", "cpu", *VIEWS.values(), "PARITY", "True", "False", "None")
)
# Functions of `isa.semantics` that are called from blocks with the CPU: of it they touch MXCSR alone, and
# there only set flags, which does no harm should the instruction be executed again
ON_MXCSR = frozenset(("settled", "each", "packed", "each_of", "mixed", "relation_of", "rounding"))
VECTORS = frozenset(("xmm", "vex", "ymm", "same"))
# What is a number in a block because another value is another mode
OF_MODE = frozenset(("mode64", "stack_mask", "code_bits", "protected", "vm", "cpl"))


class Untranslatable(Exception):
    """The instruction stays with the step engine."""


class Form(NamedTuple):
    """What an operand is, without its registers' names: the key under which a template is kept."""

    # "reg", "high", "mem", "imm", "const", "width"; "xmm", "vex" (XMM, zeroes the rest), "ymm", "same"
    kind: str
    bits: int
    value: int = 0  # of "const"; of "mem" BASED, ALIGNED, NUMBERS; of "same" the operand that it is


BASED = 1  # through FS or GS
ALIGNED = 2  # faults unless it is aligned to its size
NUMBERS = 4  # what is moved are most likely doubles
SEGMENTED = 8  # 16- and 32-bit code: the segment has a base and a limit


class Statement(NamedTuple):
    """One line (or compound) of a template or of a block."""

    text: str
    defs: frozenset[str]
    uses: frozenset[str]
    raises: bool
    stores: frozenset[str] = frozenset()  # what it assigns on some path
    flag: str = ""  # the flag that this plain assignment computes, if it could be left out
    jump: tuple[str, str] = ("", "")  # (condition, target) of an assignment to RIP; condition "" = always


@dataclass(slots=True)
class Template:
    """The statements of one instruction form, with placeholders for what differs between instructions."""

    statements: list[Statement]
    sse: bool = False  # #UD or #NM where the CPU's state does not allow SSE


# ---- operands --------------------------------------------------------------------------------------------


def form_of(operand: Any) -> Form:
    """The form of a bound operand; Untranslatable for kinds that blocks do not know."""
    cls = operand.__class__
    register = getattr(operand, "register", None)
    if isinstance(register, str):
        if register in REGISTERS:
            return Form("high" if cls.__name__.endswith("_high") else "reg", operand.bits)
        if operand.bits == 128:
            return Form("vex" if cls.vex else "xmm", 128)
        return Form("ymm", 256)
    if cls is operand_types.Immediate:
        if operand.bits == 8:
            return Form("const", 8, operand.value)
        return Form("imm", operand.bits)
    if cls in _MEMORY:
        based = operand.segment.name in ("fs", "gs") and cls is not operand_types.SegmentedMemory
        return Form("mem", operand.bits, _MEMORY[cls] | (BASED if based else 0))
    if cls is operand_types.Width:
        return Form("width", operand.bits)
    raise Untranslatable(cls.__name__)


_MEMORY: dict[Any, int] = {
    operand_types.FlatMemory: 0,
    operand_types.FlatStackMemory: 0,
    operand_types.BasedMemory: 0,
    operand_types.SegmentedMemory: SEGMENTED,
    operand_types.FlatMemory128: 0,
    operand_types.AlignedFlatMemory: ALIGNED,
    operand_types.AlignedMemory: ALIGNED,
}
_OF_NUMBERS = re.compile(r"(VEX_V)?(MOVSD|MOVAP[SD]|MOVUP[SD]|MOV[LH]P[SD]|MOVDDUP|UNPCK[LH]PD|MOVNTPD)_.*")


def forms_of(insn: Insn) -> tuple[Form, ...]:
    """The forms of an instruction's operands. A vector register read twice is "same" the second time."""
    forms: list[Form] = []
    first: dict[tuple[str, int], int] = {}
    numbers = bool(_OF_NUMBERS.fullmatch(code_names()[insn.code]))
    for n, operand in enumerate(insn.operands):
        form = form_of(operand)
        if form.kind == "mem" and numbers:
            form = form._replace(value=form.value | NUMBERS)
        elif form.kind in VECTORS:
            seen = first.setdefault((operand.source, form.bits), n)
            if seen != n:
                form = Form("same", form.bits, seen)
        forms.append(form)
    return tuple(forms)


def address_text(operand: Any, wraps: bool = True) -> tuple[str, bool]:
    """The effective address as an expression, and whether it is a plain register.

    `wraps`: as a number. Else as a place in memory: no page is found beyond 2**64, and the step engine wraps.
    """
    base, index, scale, bits = operand.effective.shape
    displacement = operand.displacement
    if displacement >> 63:
        displacement -= 1 << 64
    terms = [base] if base else []
    if index == "al":
        terms.append("(rax & 255)")
    elif index:
        terms.append(f"{index} * {scale}" if scale != 1 else index)
    if not terms:
        return f"{displacement & (1 << bits) - 1:#x}", False
    if len(terms) == 1 and terms[0] == base and not displacement and bits == 64:
        return base, True
    text = " + ".join(terms)
    if displacement:
        text += f" + {displacement}" if displacement > 0 else f" - {-displacement}"
    if not wraps and bits == 64 and base:
        return f"({text})", False
    return f"({text} & {(1 << bits) - 1:#x})", False


# ---- specialising one function ---------------------------------------------------------------------------


@cache
def function_ast(function: Callable[..., Any]) -> ast.FunctionDef:
    """The definition of a function, parsed."""
    node = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(node, ast.FunctionDef)
    return node


@cache
def reads_of(function: Callable[..., Any]) -> frozenset[str]:
    """The attributes that a function reads."""
    return frozenset(
        node.attr
        for node in ast.walk(function_ast(function))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    )


def number(node: ast.expr) -> int:
    """The value of a literal; Untranslatable for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return int(node.value)
    raise Untranslatable("size")


CPU = object()  # what the first parameter is bound to


class Specialiser(VectorCode):
    """Rewrites the body of a function for one form. Collects statements with placeholders:

    OPnR the register of operand n, OPnW the low 32 bits of it, OPnD the register into which a 32-bit result
    is zero-extended, OPnA its linear address, OPnO its offset, OPnV an immediate, NEXT_ the address of the
    next instruction, _S the number of the instruction (suffix of every temporary). Those of vector
    registers are told in `lanes`.
    """

    def __init__(self, forms: Sequence[Form], mode: Mode, part: int = WIDE) -> None:
        super().__init__()
        self.forms = forms
        self.mode = mode
        self.part = part  # of a 256-bit form that is executed for each half: see `on_halves`
        self.half = 0
        self.sse = False
        self.read: set[int] = set()  # memory operands whose value the definition asks for
        self.vector = any(form.kind in VECTORS for form in forms)
        self.forwards = False  # what a local variable is bound to stays what it is to the end
        self.depth = 0
        self.flag_values: dict[str, ast.expr] = {}  # flags that this instruction set and reads again

    # -- statements --

    def run(self, function: Callable[..., Any], operands: Sequence[int]) -> None:
        """Specialise an instruction function."""
        node = function_ast(function)
        parameters = [argument.arg for argument in node.args.args]
        if len(parameters) != len(operands) + 1 and node.args.vararg is None:
            raise Untranslatable("signature")
        if not self.vector and any(form.kind == "mem" and form.value & ALIGNED for form in self.forms):
            raise Untranslatable("alignment")
        env: dict[str, Any] = {parameters[0]: CPU}
        env.update(zip(parameters[1:], operands))  # noqa: B905  # NOP takes any operands and looks at none
        if not self.vector:
            self.body(node.body, env, function, "")
            return
        self.forwards = _writes(node) <= 1
        if self.part == WIDE:
            self.body(node.body, env, function, "")
        else:
            if self.forms[0].kind != "ymm":
                raise Untranslatable("halves")
            for self.half in (0, 1):
                self.body(node.body, dict(env), function, f"x{self.half}_")
            self.write_halves(0, *self.results)
        self.finish()

    def body(self, nodes: Iterable[ast.stmt], env: dict[str, Any], function: Any, prefix: str) -> None:
        """Emit a list of statements into `out`."""
        for node in nodes:
            self.statement(node, env, function, prefix)

    def statement(self, node: ast.stmt, env: dict[str, Any], function: Any, prefix: str) -> None:
        """Emit one statement."""
        match node:
            case ast.Expr(value=ast.Constant()) | ast.Pass():
                return
            case ast.Expr(value=ast.Call() as call):
                self.call_statement(call, env, function, prefix)
            case ast.Assign(targets=targets, value=value):
                self.assign(targets, value, env, function, prefix)
            case ast.If(test=test, body=body, orelse=orelse):
                condition = self.expression(test, env, function)
                if isinstance(condition, ast.Constant):
                    self.body(body if condition.value else orelse, env, function, prefix)
                    return
                branches = []
                known = dict(self.flag_values)
                for branch in (body, orelse):
                    outer, self.out = self.out, []
                    inner = dict(env)
                    self.flag_values = dict(known)
                    self.body(branch, inner, function, prefix)
                    branches.append(self.out)
                    self.out = outer
                self.flag_values = {}
                if branches[0] or branches[1]:
                    self.out.append(ast.If(condition, branches[0] or [ast.Pass()], branches[1]))
            case ast.Raise():
                self.out.append(ast.Raise(name("NotPlain"), None))
            case _:
                raise Untranslatable(ast.dump(node)[:60])

    def assign(
        self, targets: list[ast.expr], value: ast.expr, env: dict[str, Any], function: Any, prefix: str
    ) -> None:
        """An assignment to temporaries, registers, flags, RIP or an operand."""
        if len(targets) == 1 and isinstance(targets[0], ast.Tuple):
            if not isinstance(value, ast.Tuple):
                raise Untranslatable("tuple")
            values = [self.expression(part, env, function) for part in value.elts]
            held = [self.hold(part) for part in values]
            for target, part in zip(targets[0].elts, held, strict=True):
                self.store(target, part, env, function, prefix)
            return
        made = self.expression(value, env, function)
        if len(targets) > 1 and not isinstance(made, ast.Constant | ast.Name):
            made = self.hold(made)
        for target in targets:
            self.store(target, made, env, function, prefix)

    def hold(self, value: ast.expr) -> ast.expr:
        """Keep a value in a temporary of its own."""
        value = self.lowered(value)
        if isinstance(value, ast.Constant) or (self.vector and self.is_cheap(value)):
            return value
        self.temporaries += 1
        held = f"h{self.temporaries}_S"
        self.out.append(ast.Assign([ast.Name(held, ast.Store())], value))
        return name(held)

    def store(
        self, target: ast.expr, value: ast.expr, env: dict[str, Any], function: Any, prefix: str
    ) -> None:
        """target := an already specialised value."""
        match target:
            case ast.Name(id=local):
                if isinstance(value, ast.Constant) or (
                    isinstance(value, ast.Name) and re.fullmatch(r"OP\dV|NEXT_", value.id)
                ):
                    env[local] = value  # a constant temporary: propagate, emit nothing
                    return
                value = self.lowered(value)
                if self.forwards and self.is_cheap(value):
                    env[local] = value
                    return
                made = f"{prefix}{local}_S"
                env[local] = name(made)
                self.out.append(ast.Assign([ast.Name(made, ast.Store())], value))
            case ast.Attribute(value=ast.Name(id=owner), attr=attribute) if env.get(owner) is CPU:
                if attribute != "rip" and attribute not in ARCHITECTURAL:
                    raise Untranslatable(attribute)
                if attribute in YMM_HIGH_NAMES or any(isinstance(part, ast.Call) for part in ast.walk(value)):
                    value = self.hold(value)  # a recipe for flags calls nothing
                if attribute in FLAGS and attribute in reads_of(function):
                    value = self.flag_values[attribute] = self.hold(value)
                self.out.append(ast.Assign([ast.Name(attribute, ast.Store())], value))
            case ast.Attribute(value=ast.Name(id=owner), attr="value") if isinstance(env.get(owner), int):
                self.write_operand(env[owner], value)
            case _:
                raise Untranslatable("target")

    def write_operand(self, n: int, value: ast.expr) -> None:
        """An operand's register or memory := value."""
        form = self.forms[n]
        register = f"OP{n}R"
        value = self.lowered(value)
        match form.kind:
            case "reg" if form.bits == 64:
                pass
            case "reg" if form.bits == 32:
                register = f"OP{n}D"
            case "reg":
                low = (1 << form.bits) - 1
                value = or_(ast.BinOp(name(register), ast.BitAnd(), constant(M64 ^ low)), value)
            case "high":
                shifted = ast.BinOp(value, ast.LShift(), constant(8))
                value = or_(ast.BinOp(name(register), ast.BitAnd(), constant(M64 ^ 0xFF00)), shifted)
            case "mem" if self.vector:
                self.write_memory(n, form.bits // 8, value)
                return
            case "mem":
                self.store_memory(name(f"OP{n}A"), form.bits // 8, value)
                return
            case "xmm" | "vex":
                self.write_xmm(n, value)
                return
            case "ymm" if self.part != WIDE:
                self.results.append(self.hold(value))
                return
            case "ymm":
                self.write_ymm(n, value)
                return
            case _:
                raise Untranslatable("write")
        self.out.append(ast.Assign([ast.Name(register, ast.Store())], value))

    def call_statement(self, call: ast.Call, env: dict[str, Any], function: Any, prefix: str) -> None:
        """A store, or a helper whose body is put in place."""
        match call.func:
            case ast.Attribute(value=ast.Name(id=owner), attr="store" | "store_stack") if (
                env.get(owner) is CPU
            ):
                address, size, value = (self.expression(a, env, function) for a in call.args)
                self.store_memory(self.hold_name(address), number(size), value)
            case ast.Attribute(value=ast.Name(id=owner), attr="write_data") if env.get(owner) is CPU:
                offset, size, value = (self.expression(a, env, function) for a in call.args[1:])
                address = self.linear(call.args[0], env, offset, number(size), writes=True)
                self.store_memory(self.hold_name(address), number(size), value)
            case ast.Name(id=helper_name):
                helper = _global(function, helper_name)
                if helper is check_sse or helper is check_vector:
                    self.sse = True  # `fill` looks
                    return
                if not inspect.isfunction(helper):
                    raise Untranslatable(helper_name)
                node = function_ast(helper)
                self.depth += 1
                inner = self.bind(node, call, env, function)
                self.body(node.body, inner, helper, f"{prefix}{'i' * self.depth}{len(self.out)}_")
                self.depth -= 1
            case _:
                raise Untranslatable("call")

    def bind(
        self, node: ast.FunctionDef, call: ast.Call, env: dict[str, Any], function: Any
    ) -> dict[str, Any]:
        """The environment of a helper: parameter -> CPU, operand or expression held in a name."""
        if call.keywords or len(call.args) != len(node.args.args):
            raise Untranslatable("arguments")
        inner: dict[str, Any] = {}
        for parameter, argument in zip(node.args.args, call.args, strict=True):
            bound = env.get(argument.id) if isinstance(argument, ast.Name) else None
            if bound is CPU or isinstance(bound, int):
                inner[parameter.arg] = bound
            else:
                value = self.expression(argument, env, function)
                inner[parameter.arg] = (
                    value if isinstance(value, ast.Constant | ast.Name) else self.hold(value)
                )
        return inner

    # -- memory --

    def hold_name(self, address: ast.expr) -> ast.Name:
        """An address as a name, because it is used several times."""
        if isinstance(address, ast.Name):
            return address
        self.temporaries += 1
        held = f"a{self.temporaries}_S"
        self.out.append(ast.Assign([ast.Name(held, ast.Store())], address))
        return name(held)

    def store_memory(self, address: ast.Name, size: int, value: ast.expr) -> None:
        """RAM[address] := value: a subscript where it is plain and aligned."""
        if size not in VIEWS:
            call = ast.Call(name("store"), [address, constant(size), value], [])
            self.out.append(ast.Expr(call))
            return
        value = value if isinstance(value, ast.Constant | ast.Name) else self.hold(value)
        at = address.id
        target = ast.parse(f"{VIEWS[size]}[{at} + tw[{at} >> 12]{SHIFTS[size]}] = 0").body[0]
        assert isinstance(target, ast.Assign)
        target.value = value
        if size == 1:
            self.out.append(target)
            return
        slow = ast.Expr(ast.Call(name("store"), [address, constant(size), value], []))
        test = ast.BinOp(name(at), ast.BitAnd(), constant(size - 1))
        self.out.append(ast.If(test, [slow], [target]))

    def load_memory(self, address: ast.expr, size: int) -> ast.expr:
        """The expression that reads RAM[address]."""
        if size not in VIEWS:
            return ast.Call(name("load"), [address, constant(size)], [])
        if isinstance(address, ast.Name):
            at, first = address.id, address.id
        else:
            self.temporaries += 1
            at = f"a{self.temporaries}_S"
            first = f"({at} := {ast.unparse(address)})"
        if size == 1:
            text = f"mb[{first} + tr[{at} >> 12]]"
        else:
            text = (
                f"load({at}, {size}) if {first} & {size - 1} "
                f"else {VIEWS[size]}[{at} + tr[{at} >> 12]{SHIFTS[size]}]"
            )
        return ast.parse(text, mode="eval").body

    def linear(
        self, segment: ast.expr, env: dict[str, Any], offset: ast.expr, size: int, *, writes: bool
    ) -> ast.expr:
        """The linear address of an access; outside 64-bit mode the segment's limit is checked before it."""
        match segment:
            case ast.Attribute(value=ast.Name(id=owner), attr="segment") if isinstance(env.get(owner), int):
                n = env[owner]
                based = bool(self.forms[n].value & BASED)
                base, last = f"OP{n}B", f"OP{n}{'J' if writes else 'I'}"
            case ast.Attribute(value=ast.Name(id=owner), attr="ss" | "ds" | "es" as register) if (
                env.get(owner) is CPU
            ):
                based = False
                base, last = f"{register}_base", f"{register}_{'write' if writes else 'read'}"
            case _:
                raise Untranslatable("segment")
        if self.mode.mode64:
            if not based:
                return offset
            return ast.BinOp(ast.BinOp(offset, ast.Add(), name(base)), ast.BitAnd(), constant(M64))
        held = self.hold_name(offset)
        end = fold(ast.BinOp(held, ast.Add(), constant(size - 1)))
        beyond = ast.Compare(end, [ast.Gt()], [name(last)])
        self.out.append(ast.If(beyond, [ast.Raise(name("NotPlain"), None)], []))
        return ast.BinOp(ast.BinOp(held, ast.Add(), name(base)), ast.BitAnd(), constant(M32))

    # -- expressions --

    def expression(self, node: ast.expr, env: dict[str, Any], function: Any) -> ast.expr:
        """The specialised, folded form of an expression."""
        match node:
            case ast.Constant():
                return node
            case ast.Name(id=local):
                if local in env:
                    bound = env[local]
                    if isinstance(bound, ast.expr):
                        return copy.copy(bound)
                    raise Untranslatable("bare operand")
                if local in BUILTINS:
                    return node
                value = _global(function, local)
                if isinstance(value, int):
                    return constant(int(value))
                if local == "PARITY":
                    return name("PARITY")
                return name(known_path(function, local))
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id=owner), attr="cs"), attr="limit") if (
                env.get(owner) is CPU
            ):
                return constant(self.mode.limit)
            case ast.Attribute(value=ast.Name(id=owner), attr=attribute):
                bound = env.get(owner)
                if bound is CPU:
                    return self.cpu_attribute(attribute)
                if isinstance(bound, int):
                    return self.operand_attribute(bound, attribute)
                return self.known_attribute(self.expression(node.value, env, function), attribute)
            case ast.BinOp(left=left, op=op, right=right):
                made_binary = ast.BinOp(
                    self.expression(left, env, function), op, self.expression(right, env, function)
                )
                return self.folded(made_binary) if self.vector else fold(made_binary)
            case ast.Tuple(elts=parts):
                return ast.Tuple([self.expression(part, env, function) for part in parts], ast.Load())
            case ast.UnaryOp(op=op, operand=operand):
                return fold(ast.UnaryOp(op, self.expression(operand, env, function)))
            case ast.BoolOp(op=op, values=values):
                return fold_boolean(op, [self.expression(value, env, function) for value in values])
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                made = [self.expression(value, env, function) for value in comparators]
                return fold(ast.Compare(self.expression(left, env, function), ops, made))
            case ast.IfExp(test=test, body=body, orelse=orelse):
                condition = self.expression(test, env, function)
                if isinstance(condition, ast.Constant):
                    return self.expression(body if condition.value else orelse, env, function)
                return ast.IfExp(
                    condition, self.expression(body, env, function), self.expression(orelse, env, function)
                )
            case ast.Subscript(value=value, slice=index):
                return ast.Subscript(
                    self.expression(value, env, function), self.expression(index, env, function), ast.Load()
                )
            case ast.Call():
                return self.call(node, env, function)
        raise Untranslatable(ast.dump(node)[:60])

    def cpu_attribute(self, attribute: str) -> ast.expr:
        if attribute in self.flag_values:
            return copy.copy(self.flag_values[attribute])
        if attribute in ARCHITECTURAL:
            return name(attribute)
        if attribute == "rip":
            return name("NEXT_")
        if attribute in OF_MODE:
            return constant(getattr(self.mode, attribute))
        if attribute == "mxcsr":
            return name("cpu.mxcsr")
        raise Untranslatable(attribute)

    @staticmethod
    def known_attribute(owner: ast.expr, attribute: str) -> ast.expr:
        """An attribute of something that modules of the CPU define."""
        if not (isinstance(owner, ast.Name) and "__" in owner.id):
            raise Untranslatable(attribute)
        value = getattr(known_value(owner.id), attribute)
        return constant(int(value)) if isinstance(value, int) else name(f"{owner.id}__{attribute}")

    def operand_attribute(self, n: int, attribute: str) -> ast.expr:
        form = self.forms[n]
        if self.part != WIDE and attribute in HALF:
            return constant(HALF[attribute])
        match attribute:
            case "bits":
                return constant(form.bits)
            case "bytes":
                return constant(form.bits // 8)
            case "mask":
                return constant((1 << form.bits) - 1)
            case "in_memory":
                return constant(form.kind == "mem")
            case "address_mask" if form.kind == "mem":
                return name(f"OP{n}M")
            case "offset" if form.kind == "mem":
                return name(f"OP{n}O")
            case "value":
                return self.read_operand(n, form)
        raise Untranslatable(attribute)

    def read_operand(self, n: int, form: Form) -> ast.expr:
        register = name(f"OP{n}R")
        if form.kind == "mem":
            self.read.add(n)
        match form.kind:
            case "reg" if form.bits == 64:
                return register
            case "reg" if form.bits == 32:
                return name(f"OP{n}W")
            case "reg":
                return ast.BinOp(register, ast.BitAnd(), constant((1 << form.bits) - 1))
            case "high":
                shifted = ast.BinOp(register, ast.RShift(), constant(8))
                return ast.BinOp(shifted, ast.BitAnd(), constant(0xFF))
            case "imm":
                return name(f"OP{n}V")
            case "const":
                return constant(form.value)
            case "mem" if not self.vector:
                return self.load_memory(name(f"OP{n}A"), form.bits // 8)
            case "same":
                return self.read_operand(form.value, self.forms[form.value])
            case "mem" | "xmm" | "vex" | "ymm" if self.part != WIDE:
                return self.read_half(n, form.kind, form.bits)
            case "mem" | "xmm" | "vex" | "ymm":
                return self.read_whole(n, form.kind, form.bits)
        raise Untranslatable("read")

    def read_half(self, n: int, kind: str, bits: int) -> ast.expr:
        """What `on_halves` hands to the function for this half."""
        if self.part == HALVES and bits == 256:
            if kind == "mem":
                return name(f"OP{n}{'GH'[self.half]}")
            return name(f"OP{n}{'UY'[self.half]}")
        value = self.read_whole(n, kind, bits)
        if self.part == HALVES or not self.half:
            return value
        return self.folded(ast.BinOp(value, ast.RShift(), constant(self.part)))

    def call(self, node: ast.Call, env: dict[str, Any], function: Any) -> ast.expr:
        """A load, a helper that is one expression, or a method of a number."""
        match node.func:
            case ast.Attribute(value=ast.Name(id=owner), attr="load" | "load_stack") if env.get(owner) is CPU:
                address, size = (self.expression(a, env, function) for a in node.args)
                return self.load_memory(address, number(size))
            case ast.Attribute(value=ast.Name(id=owner), attr="read_data") if env.get(owner) is CPU:
                offset, size = (self.expression(a, env, function) for a in node.args[1:])
                address = self.linear(node.args[0], env, offset, number(size), writes=False)
                return self.load_memory(address, number(size))
            case ast.Name(id="bool" | "int" | "min" | "max" | "abs"):
                arguments = [self.expression(a, env, function) for a in node.args]
                return fold(ast.Call(node.func, arguments, []))
            case ast.Name(id=helper_name) if helper_name not in env:
                helper = _global(function, helper_name)
                if inspect.isfunction(helper):
                    mark, count = len(self.out), self.temporaries
                    try:
                        return self.inlined(helper, node, env, function)
                    except Untranslatable:
                        del self.out[mark:]
                        self.temporaries = count
                return self.value_call(node, env, function)
            case ast.Attribute(value=value, attr="bit_length" | "bit_count" as method):
                return ast.Call(
                    ast.Attribute(self.expression(value, env, function), method, ast.Load()), [], []
                )
            case ast.Name() | ast.Attribute(value=ast.Name()):
                return self.value_call(node, env, function)
        raise Untranslatable("call")

    def inlined(self, helper: Any, node: ast.Call, env: dict[str, Any], function: Any) -> ast.expr:
        """The value of a helper that is a few assignments and a return statement, put in place."""
        definition = function_ast(helper)
        inner = self.bind(definition, node, env, function)
        self.temporaries += 1
        todo = list(definition.body)
        prefix = f"v{self.temporaries}_"
        while todo:
            match statement := todo.pop(0):
                case ast.Return(value=value) if value is not None:
                    return self.expression(value, inner, helper)
                case ast.If(test=test, body=body, orelse=orelse):
                    condition = self.expression(test, inner, helper)
                    if not isinstance(condition, ast.Constant):
                        raise Untranslatable("condition")
                    todo[:0] = body if condition.value else orelse
                case ast.Assign() | ast.Expr(value=ast.Constant()):
                    self.statement(statement, inner, helper, prefix)
                case _:
                    raise Untranslatable(definition.name)
        raise Untranslatable(definition.name)

    def value_call(self, node: ast.Call, env: dict[str, Any], function: Any) -> ast.expr:
        """A call of a function of values: it reads no operand and writes none."""
        called = self.expression(node.func, env, function)
        if not (isinstance(called, ast.Name) and ("__" in called.id or called.id.endswith("_S"))):
            raise Untranslatable("call")
        arguments: list[ast.expr] = []
        for argument in node.args:
            if isinstance(argument, ast.Name) and env.get(argument.id) is CPU:
                if "__" not in called.id or known_value(called.id).__name__ not in ON_MXCSR:
                    raise Untranslatable(called.id)
                arguments.append(name("cpu"))
            else:
                arguments.append(self.expression(argument, env, function))
        keywords = [ast.keyword(k.arg, self.expression(k.value, env, function)) for k in node.keywords]
        return ast.Call(called, arguments, keywords)


def _global(function: Any, identifier: str) -> Any:
    try:
        return function.__globals__[identifier]
    except KeyError:
        raise Untranslatable(identifier) from None


HALF = {"bits": 128, "bytes": 16, "mask": M128, "in_memory": False}  # of every operand under `on_halves`


def _writes(node: ast.FunctionDef) -> int:
    """How often a function assigns to an operand."""
    return sum(
        isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store) and part.attr == "value"
        for part in ast.walk(node)
    )


# ---- templates -------------------------------------------------------------------------------------------


def describe(node: ast.stmt) -> Statement:
    """Text, names and properties of a specialised statement."""
    ast.fix_missing_locations(node)
    stores: set[str] = set()
    loads: set[str] = set()
    raises = isinstance(node, ast.Raise)
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            (stores if isinstance(part.ctx, ast.Store) else loads).add(part.id)
        elif isinstance(part, ast.Raise):
            raises = True
    raises = raises or bool(loads & {"load", "store", "tr", "tw", "cpu", "v_tame"})
    loads -= ENVIRONMENT | BUILTINS | {"NotPlain"}
    loads = {used for used in loads if "__" not in used}
    flag, jump = "", ("", "")
    match node:
        case ast.Assign(targets=[ast.Name(id="rip")], value=value):
            jump = ("", ast.unparse(value))
        case ast.If(test=test, body=[ast.Assign(targets=[ast.Name(id="rip")], value=value)], orelse=[]):
            jump = (ast.unparse(test), ast.unparse(value))
        case ast.Assign(targets=[ast.Name(id=target)]) if target in FLAGS and not raises:
            flag = target
        case ast.Assign():
            pass
        case _:
            loads |= stores - ({"rip"} if "rip" in stores else set())
            if "rip" in stores:
                raise Untranslatable("jump inside a condition")
            # on some path the old value survives: not a definition
            return Statement(
                ast.unparse(node), frozenset(), frozenset(loads | stores), raises, frozenset(stores)
            )
    made = frozenset(stores - {"rip"})
    return Statement(ast.unparse(node), made, frozenset(loads), raises, made, flag, jump)


@cache
def template(
    function: Callable[..., Any], forms: tuple[Form, ...], mode: Mode, part: int = WIDE
) -> Template | None:
    """The statements of one form; None if the step engine has to keep it."""
    specialiser = Specialiser(forms, mode, part)
    try:
        specialiser.run(function, range(len(forms)))
        statements = _loads_first([describe(node) for node in specialiser.out])
        for n in specialiser.read:  # a load whose value came to nothing may still fault
            if not any(f"OP{n}A" in statement.text for statement in statements):
                return None
        return Template(statements, specialiser.sse)
    except Untranslatable:
        return None


def _loads_first(statements: list[Statement]) -> list[Statement]:
    """What may raise goes before temporaries that do not depend on it: nothing is half done at a bail."""
    ordered: list[Statement] = []
    for statement in statements:
        at = len(ordered)
        if statement.raises:
            while (
                at
                and not ordered[at - 1].raises
                and not (
                    ordered[at - 1].stores & statement.uses
                    or ordered[at - 1].uses & statement.stores
                    or ordered[at - 1].stores & statement.stores
                    or ordered[at - 1].jump != ("", "")
                )
            ):
                at -= 1
        ordered.insert(at, statement)
    return ordered


def part_of(insn: Insn, definition: Definition) -> int | None:
    """WIDE, or how a 256-bit instruction is executed by halves; None if it faults whatever its operands."""
    if insn.function is definition.function:
        return WIDE
    part = definition.part
    return part if part != WIDE and insn.function is on_halves(definition.function, part) else None


def fill(
    insn: Insn, definition: Definition, index: int, mode: Mode, narrow: set[str]
) -> list[Statement] | None:
    """The statements of one instruction of a block.

    `narrow` are the registers whose upper half is known to be zero before it; afterwards, behind it.
    """
    part = part_of(insn, definition)
    if part is None:
        return None
    try:
        forms = forms_of(insn)
    except Untranslatable:
        return None
    made = template(definition.function, forms, mode, part)
    if made is None:
        return None
    vector = made.sse or any(form.kind in VECTORS for form in forms)
    if vector and not (mode.mode64 and insn.arguments[0].sse_enabled):
        return None
    names: dict[str, str] = {"NEXT_": f"{insn.next:#x}"}
    registers = {f"OP{n}": operand.register for n, operand in enumerate(insn.operands)
                 if forms[n].kind in ("reg", "high")}  # fmt: skip
    widened = {registers.get(place[:3], place) for statement in made.statements for place in statement.stores
               if not place.endswith("D")}  # fmt: skip
    narrow -= widened
    head: list[Statement] = []
    for n, (operand, form) in enumerate(zip(insn.operands, forms, strict=True)):
        match form.kind:
            case "reg" | "high":
                register = names[f"OP{n}R"] = names[f"OP{n}D"] = operand.register
                names[f"OP{n}W"] = register if register in narrow else f"({register} & {M32})"
            case "imm":
                names[f"OP{n}V"] = f"{operand.value:#x}"
            case "xmm" | "vex" | "ymm":
                names.update(vector_names(n, operand.source, operand.register))
            case "mem":
                text, plain = address_text(operand)
                names[f"OP{n}O"] = text
                names[f"OP{n}M"] = f"{operand.address_mask:#x}"
                for letter, field in (("B", "base"), ("I", "read"), ("J", "write")):
                    names[f"OP{n}{letter}"] = f"{operand.segment.name}_{field}"
                if form.value & SEGMENTED:
                    plain = False
                    if any(f"OP{n}A" in statement.text for statement in made.statements):
                        segment, last = operand.segment.name, f"O{n}_{index} + {form.bits // 8 - 1}"
                        writes = any(_writes_to(f"OP{n}A", statement.text) for statement in made.statements)
                        head += segmented(text, f"O{n}_{index}", segment, last, writes)
                        text = f"(O{n}_{index} + {segment}_base & {M32})"
                elif not form.value & BASED:
                    text, plain = address_text(operand, wraps=False)
                else:
                    text, plain = f"({text} + {operand.segment.name}_base & {M64:#x})", False
                if plain:
                    names[f"OP{n}A"] = text
                elif any(f"OP{n}A" in statement.text for statement in made.statements):
                    held = f"A{n}_{index}"
                    names[f"OP{n}A"] = held
                    uses = frozenset(_WORD.findall(text))
                    head.append(Statement(f"{held} = {text}", frozenset((held,)), uses, False))
    narrow |= {registers[place[:3]] for statement in made.statements for place in statement.defs
               if place in names and place.endswith("D")} - widened  # fmt: skip
    return head + [_fill_one(statement, names, index) for statement in made.statements]


def segmented(offset: str, held: str, segment: str, last: str, writes: bool) -> list[Statement]:
    """The offset of a memory operand, kept as `held`, and the check of the segment's limit."""
    limit = f"{segment}_{'write' if writes else 'read'}"
    uses = frozenset(_WORD.findall(offset))
    return [
        Statement(f"{held} = {offset}", frozenset((held,)), uses, False, frozenset((held,))),
        Statement(f"if {last} > {limit}:\n    raise NotPlain", frozenset(), frozenset((held,)), True),
    ]


def _writes_to(address: str, text: str) -> bool:
    return f"store({address}" in text or f"tw[{address}" in text


_WORD = re.compile(r"(?<!\w)[A-Za-z_]\w*")
_PLACEHOLDER = re.compile(r"\b(OP\d[A-Z]|NEXT_|\w+_S)\b")


@cache
def _parts(source: str) -> tuple[str, ...]:
    """The text of a template: what stays and, at the odd places, the placeholders."""
    return tuple(_PLACEHOLDER.split(source))


def _fill_one(statement: Statement, names: dict[str, str], index: int) -> Statement:
    suffix = f"_{index}"

    def text(source: str) -> str:
        parts = list(_parts(source))
        for n in range(1, len(parts), 2):
            part = parts[n]
            parts[n] = names[part] if part in names else part[:-2] + suffix
        return "".join(parts)

    def all_names(source: frozenset[str]) -> frozenset[str]:
        made: set[str] = set()
        for each in source:
            if each in names:
                made.update(_WORD.findall(names[each]))
            else:
                made.add(each[:-2] + suffix if each.endswith("_S") else each)
        return frozenset(made)

    jump = (text(statement.jump[0]), text(statement.jump[1])) if statement.jump[1] else ("", "")
    defs = all_names(statement.defs)
    return Statement(
        text(statement.text), defs, all_names(statement.uses), statement.raises,
        defs if statement.stores == statement.defs else all_names(statement.stores), statement.flag, jump,
    )  # fmt: skip
