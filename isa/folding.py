"""Constant folding for specialised expressions; masks that change nothing go away. It knows no operands."""

from __future__ import annotations

import ast
import re
from typing import Any

from isa.state import GPR_NAMES, M32, M64

REGISTERS = frozenset(GPR_NAMES)


def name(text: str) -> ast.Name:
    """A name to read."""
    return ast.Name(text, ast.Load())


def constant(value: Any) -> ast.Constant:
    """A literal."""
    return ast.Constant(value)


def is_constant(node: ast.AST) -> bool:
    """True for a literal number or truth value."""
    return isinstance(node, ast.Constant) and isinstance(node.value, int)


def _evaluate(node: ast.expr) -> ast.Constant:
    expression = ast.Expression(ast.fix_missing_locations(node))
    return constant(eval(compile(expression, "<fold>", "eval"), {"__builtins__": {}}))  # literals only


def _parts(node: ast.expr) -> list[ast.expr]:
    match node:
        case ast.BinOp(left=left, right=right):
            return [left, right]
        case ast.UnaryOp(operand=operand):
            return [operand]
        case ast.Compare(left=left, comparators=comparators):
            return [left, *comparators]
        case ast.Call(args=arguments):
            return arguments
    return []


def fold(node: ast.expr) -> ast.expr:
    """Constants computed, masks that change nothing dropped."""
    parts = _parts(node)
    if parts and all(is_constant(part) for part in parts) and not isinstance(node, ast.Call):
        return _evaluate(node)
    if isinstance(node, ast.BinOp):
        return _fold_binary(node)
    if (
        isinstance(node, ast.UnaryOp)
        and isinstance(node.op, ast.Not)
        and isinstance(node.operand, ast.Constant)
    ):
        return constant(not node.operand.value)
    return node


def _fold_binary(node: ast.BinOp) -> ast.expr:
    left, right = node.left, node.right
    for one, other in ((left, right), (right, left)):
        if isinstance(one, ast.Constant) and isinstance(one.value, int):
            match node.op:
                case ast.BitAnd() if isinstance(other, ast.Name) and _is_register(other.id):
                    if one.value & M64 == M64:
                        return other
                    if one.value & M64 == 0:
                        return constant(0)
                case ast.BitAnd() if isinstance(other, ast.Name) and _is_half(other.id):
                    if one.value & M32 == M32:
                        return other
                case ast.BitAnd() if one.value == 0:
                    return constant(0)
                case ast.BitOr() | ast.BitXor() | ast.Add() if one.value == 0:
                    return other
                case ast.Mult() if one.value == 1:
                    return other
    if (
        isinstance(right, ast.Constant)
        and right.value == 0
        and isinstance(node.op, ast.Sub | ast.LShift | ast.RShift)
    ):
        return left
    return node


def _is_register(identifier: str) -> bool:
    return identifier in REGISTERS or bool(re.fullmatch(r"OP\d[RO]", identifier))


def _is_half(identifier: str) -> bool:
    return bool(re.fullmatch(r"OP\dW", identifier))


def fold_boolean(op: ast.boolop, values: list[ast.expr]) -> ast.expr:
    """`and` / `or` with constants resolved."""
    ends = isinstance(op, ast.Or)
    kept: list[ast.expr] = []
    for value in values:
        if isinstance(value, ast.Constant):
            if bool(value.value) == ends:
                kept.append(value)
                break
            continue
        kept.append(value)
    if not kept:
        return constant(not ends)
    return kept[0] if len(kept) == 1 else ast.BoolOp(op, kept)


def or_(left: ast.expr, right: ast.expr) -> ast.expr:
    return ast.BinOp(left, ast.BitOr(), right)
