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
from isa.decode import Insn
from isa.folding import REGISTERS, constant, fold, fold_boolean, name, or_
from isa.semantics.registry import Definition
from isa.state import GPR_NAMES, M64

FLAGS = ("cf", "pf", "af", "zf", "sf", "of")
ARCHITECTURAL = frozenset((*GPR_NAMES, *FLAGS, "df"))
VIEWS = {1: "mb", 2: "mw", 4: "md", 8: "mq"}
SHIFTS = {1: "", 2: " >> 1", 4: " >> 2", 8: " >> 3"}
BUILTINS = frozenset(("bool", "int", "min", "max", "abs"))
ENVIRONMENT = frozenset(("load", "store", "tr", "tw", *VIEWS.values(), "PARITY", "True", "False", "None"))
MODE = {"mode64": True, "stack_mask": M64, "code_bits": 64, "protected": True, "vm": 0}


class Untranslatable(Exception):
    """The instruction stays with the step engine."""


class Form(NamedTuple):
    """What an operand is, without its registers' names: the key under which a template is kept."""

    kind: str  # "reg", "high", "mem", "imm", "const", "width"
    bits: int
    value: int = 0  # of "const"; 1 for memory through FS or GS


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


# ---- operands --------------------------------------------------------------------------------------------


def form_of(operand: Any) -> Form:
    """The form of a bound operand; Untranslatable for kinds that blocks do not know."""
    cls = operand.__class__
    register = getattr(operand, "register", None)
    if isinstance(register, str) and register in REGISTERS:
        return Form("high" if cls.__name__.endswith("_high") else "reg", operand.bits)
    if cls is operand_types.Immediate:
        if operand.bits == 8:
            return Form("const", 8, operand.value)
        return Form("imm", operand.bits)
    if cls is operand_types.FlatMemory or cls is operand_types.FlatStackMemory:
        return Form("mem", operand.bits, 0)
    if cls is operand_types.BasedMemory:
        return Form("mem", operand.bits, 1)
    if cls is operand_types.Width:
        return Form("width", operand.bits)
    raise Untranslatable(cls.__name__)


def address_text(operand: Any) -> tuple[str, bool]:
    """The effective address as an expression, and whether it is a plain register."""
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


class Specialiser:
    """Rewrites the body of a function for one form. Collects statements with placeholders:

    OPnR the register of operand n, OPnA its linear address, OPnO its offset, OPnV an immediate, NEXT_ that of
    the next instruction, _S the number of the instruction (suffix of every temporary).
    """

    def __init__(self, forms: Sequence[Form], cpl: int) -> None:
        self.forms = forms
        self.cpl = cpl
        self.out: list[ast.stmt] = []
        self.depth = 0
        self.temporaries = 0
        self.flag_values: dict[str, ast.expr] = {}  # flags that this instruction set and reads again

    # -- statements --

    def run(self, function: Callable[..., Any], operands: Sequence[int]) -> None:
        """Specialise an instruction function."""
        node = function_ast(function)
        parameters = [argument.arg for argument in node.args.args]
        if len(parameters) != len(operands) + 1 and node.args.vararg is None:
            raise Untranslatable("signature")
        env: dict[str, Any] = {parameters[0]: CPU}
        env.update(zip(parameters[1:], operands))  # noqa: B905  # NOP takes any operands and looks at none
        self.body(node.body, env, function, "")

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
        if isinstance(value, ast.Constant):
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
                made = f"{prefix}{local}_S"
                env[local] = name(made)
                self.out.append(ast.Assign([ast.Name(made, ast.Store())], value))
            case ast.Attribute(value=ast.Name(id=owner), attr=attribute) if env.get(owner) is CPU:
                if attribute != "rip" and attribute not in ARCHITECTURAL:
                    raise Untranslatable(attribute)
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
        match form.kind:
            case "reg" if form.bits >= 32:
                pass
            case "reg":
                low = (1 << form.bits) - 1
                value = or_(ast.BinOp(name(register), ast.BitAnd(), constant(M64 ^ low)), value)
            case "high":
                shifted = ast.BinOp(value, ast.LShift(), constant(8))
                value = or_(ast.BinOp(name(register), ast.BitAnd(), constant(M64 ^ 0xFF00)), shifted)
            case "mem":
                self.store_memory(name(f"OP{n}A"), form.bits // 8, value)
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
                base = self.segment_base(call.args[0], env)
                address, size, value = (self.expression(a, env, function) for a in call.args[1:])
                self.store_memory(self.hold_name(self.based(address, base)), number(size), value)
            case ast.Name(id=helper_name):
                helper = _global(function, helper_name)
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

    def segment_base(self, node: ast.expr, env: dict[str, Any]) -> str:
        """ "" for a flat segment, else the local that holds its base."""
        match node:
            case ast.Attribute(value=ast.Name(id=owner), attr="segment") if isinstance(env.get(owner), int):
                return f"OP{env[owner]}B" if self.forms[env[owner]].value else ""
            case ast.Attribute(value=ast.Name(id=owner), attr="ss" | "ds" | "es") if env.get(owner) is CPU:
                return ""
        raise Untranslatable("segment")

    @staticmethod
    def based(offset: ast.expr, base: str) -> ast.expr:
        if not base:
            return offset
        return ast.BinOp(ast.BinOp(offset, ast.Add(), name(base)), ast.BitAnd(), constant(M64))

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
                raise Untranslatable(local)
            case ast.Attribute(value=ast.Name(id=owner), attr=attribute):
                bound = env.get(owner)
                if bound is CPU:
                    return self.cpu_attribute(attribute)
                if isinstance(bound, int):
                    return self.operand_attribute(bound, attribute)
                raise Untranslatable(attribute)
            case ast.BinOp(left=left, op=op, right=right):
                return fold(ast.BinOp(self.expression(left, env, function), op,
                                      self.expression(right, env, function)))  # fmt: skip
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
        if attribute == "cpl":
            return constant(self.cpl)
        if attribute in MODE:
            return constant(MODE[attribute])
        raise Untranslatable(attribute)

    def operand_attribute(self, n: int, attribute: str) -> ast.expr:
        form = self.forms[n]
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
        match form.kind:
            case "reg" if form.bits == 64:
                return register
            case "reg":
                return ast.BinOp(register, ast.BitAnd(), constant((1 << form.bits) - 1))
            case "high":
                shifted = ast.BinOp(register, ast.RShift(), constant(8))
                return ast.BinOp(shifted, ast.BitAnd(), constant(0xFF))
            case "imm":
                return name(f"OP{n}V")
            case "const":
                return constant(form.value)
            case "mem":
                return self.load_memory(name(f"OP{n}A"), form.bits // 8)
        raise Untranslatable("read")

    def call(self, node: ast.Call, env: dict[str, Any], function: Any) -> ast.expr:
        """A load, a helper that is one expression, or a method of a number."""
        match node.func:
            case ast.Attribute(value=ast.Name(id=owner), attr="load" | "load_stack") if env.get(owner) is CPU:
                address, size = (self.expression(a, env, function) for a in node.args)
                return self.load_memory(address, number(size))
            case ast.Attribute(value=ast.Name(id=owner), attr="read_data") if env.get(owner) is CPU:
                base = self.segment_base(node.args[0], env)
                address, size = (self.expression(a, env, function) for a in node.args[1:])
                return self.load_memory(self.based(address, base), number(size))
            case ast.Name(id="bool" | "int" | "min" | "max" | "abs"):
                arguments = [self.expression(a, env, function) for a in node.args]
                return fold(ast.Call(node.func, arguments, []))
            case ast.Name(id=helper_name):
                helper = _global(function, helper_name)
                if not inspect.isfunction(helper):
                    raise Untranslatable(helper_name)
                definition = function_ast(helper)
                returned = _returned(definition)
                return self.expression(returned, self.bind(definition, node, env, function), helper)
            case ast.Attribute(value=value, attr="bit_length" | "bit_count" as method):
                return ast.Call(
                    ast.Attribute(self.expression(value, env, function), method, ast.Load()), [], []
                )
        raise Untranslatable("call")


def _global(function: Any, identifier: str) -> Any:
    try:
        return function.__globals__[identifier]
    except KeyError:
        raise Untranslatable(identifier) from None


def _returned(node: ast.FunctionDef) -> ast.expr:
    """The expression of a helper that is one return statement."""
    body = [s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
    if len(body) == 1 and isinstance(body[0], ast.Return) and body[0].value is not None:
        return body[0].value
    raise Untranslatable(node.name)


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
    raises = raises or bool(loads & {"load", "store", "tr", "tw"})
    loads -= ENVIRONMENT | BUILTINS | {"NotPlain"}
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
def template(function: Callable[..., Any], forms: tuple[Form, ...], cpl: int) -> Template | None:
    """The statements of one form; None if the step engine has to keep it."""
    specialiser = Specialiser(forms, cpl)
    try:
        specialiser.run(function, range(len(forms)))
        return Template(_loads_first([describe(node) for node in specialiser.out]))
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
                    ordered[at - 1].defs & statement.uses
                    or ordered[at - 1].uses & statement.defs
                    or ordered[at - 1].defs & statement.defs
                    or ordered[at - 1].jump != ("", "")
                )
            ):
                at -= 1
        ordered.insert(at, statement)
    return ordered


def fill(insn: Insn, definition: Definition, index: int, cpl: int) -> list[Statement] | None:
    """The statements of one instruction of a block."""
    try:
        forms = tuple(form_of(operand) for operand in insn.operands)
    except Untranslatable:
        return None
    made = template(definition.function, forms, cpl)
    if made is None:
        return None
    names: dict[str, str] = {"NEXT_": f"{insn.next:#x}"}
    head: list[Statement] = []
    for n, (operand, form) in enumerate(zip(insn.operands, forms, strict=True)):
        match form.kind:
            case "reg" | "high":
                names[f"OP{n}R"] = operand.register
            case "imm":
                names[f"OP{n}V"] = f"{operand.value:#x}"
            case "mem":
                text, plain = address_text(operand)
                names[f"OP{n}O"] = text
                names[f"OP{n}M"] = f"{operand.address_mask:#x}"
                names[f"OP{n}B"] = f"{operand.segment.name}_base"
                if form.value:
                    text, plain = f"({text} + {operand.segment.name}_base & {M64:#x})", False
                if plain:
                    names[f"OP{n}A"] = text
                elif any(f"OP{n}A" in statement.text for statement in made.statements):
                    held = f"A{n}_{index}"
                    names[f"OP{n}A"] = held
                    uses = frozenset(_WORD.findall(text))
                    head.append(Statement(f"{held} = {text}", frozenset((held,)), uses, False))
    return head + [_fill_one(statement, names, index) for statement in made.statements]


_WORD = re.compile(r"(?<!\w)[A-Za-z_]\w*")
_PLACEHOLDER = re.compile(r"\b(OP\d[A-Z]|NEXT_|\w+_S)\b")


def _fill_one(statement: Statement, names: dict[str, str], index: int) -> Statement:
    def text(source: str) -> str:
        return _PLACEHOLDER.sub(
            lambda match: names[match[0]] if match[0] in names else f"{match[0][:-2]}_{index}", source
        )

    def all_names(source: frozenset[str]) -> frozenset[str]:
        made: set[str] = set()
        for each in source:
            made.update(_WORD.findall(text(each)))
        return frozenset(made)

    jump = (text(statement.jump[0]), text(statement.jump[1])) if statement.jump[1] else ("", "")
    return Statement(
        text(statement.text), all_names(statement.defs), all_names(statement.uses), statement.raises,
        all_names(statement.stores), statement.flag, jump,
    )  # fmt: skip
