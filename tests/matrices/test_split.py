"""Accesses over the border of two pages of different permission, for every class of instruction.

Every byte of an operand may be the first behind the border. Nothing may be half written, CR2 and the error
code are the right page's, accessed and dirty flags those of what was done.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.matrices import model_split as split
from tests.matrices.model_split import Model
from tests.matrices.runner import Case, Matrix, verify
from tests.matrices.space import Combination, Space
from tests.matrices.spec import AC, AM, OSFXSR, WP
from tests.matrices.world import World, identity_paging, map_page

RAM = 0x1_8000
TABLES = 0x1_0000
BORDER = 0xE000
FIRST, SECOND = BORDER - 0x1000, BORDER
P, RW, US, A, D = 1, 2, 4, 0x20, 0x40
PAGES = ("fine", "missing", "read-only", "supervisor")
VALUE = 0x8091_A2B3_C4D5_E6F7

# name -> (bytes in 64-bit mode, in 32-bit mode, size in 64-bit mode, in 32-bit mode, model by size, where)
# `where` is the register that holds the operand's address: rbx, or rsp for what is pushed below it and popped
# at it, or rbp. Empty bytes: not in this mode.
CLASSES: dict[str, tuple[str, str, int, int, Callable[[int], Model], str]] = {
    "mov r16": ("668b03", "668b03", 2, 2, split.loads, "rbx"),
    "mov r32": ("8b03", "8b03", 4, 4, split.loads, "rbx"),
    "mov r64": ("488b03", "", 8, 0, split.loads, "rbx"),
    "movzx": ("0fb703", "0fb703", 2, 2, lambda n: split.loads(n, extend=4), "rbx"),
    "movsxd": ("486303", "", 4, 0, lambda n: split.loads(n, extend=8, signed=True), "rbx"),
    "movups load": ("0f1003", "0f1003", 16, 16, split.load_vector, "rbx"),
    "movq load": ("f30f7e03", "f30f7e03", 8, 8, split.load_vector, "rbx"),
    "fld m80": ("db2b", "db2b", 10, 10, split.touch, "rbx"),
    "fild m64": ("df2b", "df2b", 8, 8, split.touch, "rbx"),
    "cmp": ("3903", "3903", 4, 4, split.compare_only, "rbx"),
    "mov m16": ("668903", "668903", 2, 2, lambda n: split.stores(n, lambda m: m.rax), "rbx"),
    "mov m32": ("8903", "8903", 4, 4, lambda n: split.stores(n, lambda m: m.rax), "rbx"),
    "mov m64": ("488903", "", 8, 0, lambda n: split.stores(n, lambda m: m.rax), "rbx"),
    "mov imm": ("c70378563412", "c70378563412", 4, 4, lambda n: split.stores(n, lambda m: 0x1234_5678),
        "rbx"),
    "movups store": ("0f1103", "0f1103", 16, 16, lambda n: split.stores(n, lambda m: m.xmm0), "rbx"),
    "movq store": ("660fd603", "660fd603", 8, 8, lambda n: split.stores(n, lambda m: m.xmm0), "rbx"),
    "movnti": ("0fc303", "0fc303", 4, 4, lambda n: split.stores(n, lambda m: m.rax), "rbx"),
    "fnstcw": ("d93b", "d93b", 2, 2, lambda n: split.stores(n, lambda m: 0x40), "rbx"),
    "stmxcsr": ("0fae1b", "0fae1b", 4, 4, lambda n: split.stores(n, lambda m: m.mxcsr), "rbx"),
    "sgdt": ("0f0103", "0f0103", 10, 6, lambda n: split.descriptor_table, "rbx"),
    "fxsave": ("0fae03", "0fae03", 512, 512, lambda n: split.fxsave, "rbx"),
    "fxrstor": ("0fae0b", "0fae0b", 512, 512, lambda n: split.fxrstor, "rbx"),
    "add": ("0103", "0103", 4, 4, split.add, "rbx"),
    "add 16": ("660103", "660103", 2, 2, split.add, "rbx"),
    "lock add": ("f0480103", "f00103", 8, 4, split.add, "rbx"),
    "not": ("48f713", "f713", 8, 4, split.complement, "rbx"),
    "inc": ("ff03", "ff03", 4, 4, split.increment, "rbx"),
    "shl 0": ("d323", "d323", 4, 4, split.shift_by_none, "rbx"),
    "xchg": ("488703", "8703", 8, 4, split.exchange, "rbx"),
    "xadd": ("0fc10b", "0fc10b", 4, 4, split.exchange_and_add, "rbx"),
    "cmpxchg": ("0fb10b", "0fb10b", 4, 4, split.compare_and_exchange, "rbx"),
    "cmpxchg8b": ("0fc70b", "0fc70b", 8, 8, lambda n: split.compare_and_exchange_pair, "rbx"),
    "bts": ("0fba2b07", "0fba2b07", 4, 4, lambda n: split.bit_test_and_set(n, 7), "rbx"),
    "push r": ("50", "50", 8, 4, lambda n: split.push(n, lambda m: m.rax), "below"),
    "push imm": ("6a85", "6a85", 8, 4, lambda n: split.push(n, lambda m: -0x7B), "below"),
    "pushf": ("9c", "9c", 8, 4, lambda n: split.push(n, split.pushed_flags), "below"),
    "push m": ("ff33", "ff33", 8, 4, split.push_memory, "below"),
    "push m split": ("ff33", "ff33", 8, 4, split.push_memory, "rbx"),
    "pop r": ("58", "58", 8, 4, split.pop_register, "rsp"),
    "pop m": ("8f03", "8f03", 8, 4, split.pop_memory, "rsp"),
    "pop m split": ("8f03", "8f03", 8, 4, split.pop_memory, "rbx"),
    "call": ("e800010000", "e800010000", 8, 4, lambda n: split.call(n, 0x100), "below"),
    "ret": ("c3", "c3", 8, 4, split.ret, "rsp"),
    "enter": ("c8200000", "c8200000", 8, 4, lambda n: split.enter(n, 0x20), "below"),
    "enter top": ("c8200000", "c8200000", 8, 4, lambda n: split.enter(n, 0x20), "top"),
    "leave": ("c9", "c9", 8, 4, split.leave, "rbp"),
    "pusha": ("", "60", 0, 32, lambda n: split.push_all, "below"),
    "popa": ("", "61", 0, 32, lambda n: split.pop_all, "rsp"),
}  # fmt: skip


def moot(c: Combination) -> tuple[str, ...]:
    """What RAX holds matters to those that compare it, CR0.WP to read-only pages."""
    found = () if c["what"].startswith("cmpxchg") else ("equal",)
    return found if "read-only" in (c["first"], c["second"]) else (*found, "wp")


def over_border(world: World, c: Combination) -> Case | None:
    """An operand whose byte `at` is the first behind the border."""
    long_bytes, bytes32, size64, size32, make, where = CLASSES[c["what"]]
    wide = c["mode"] == "64"
    raw, size = bytes.fromhex(long_bytes if wide else bytes32), size64 if wide else size32
    at = c["at"]
    if not raw or at > size or (c["what"] == "sgdt" and c["ac"]):
        return None
    if c["what"] in ("fxsave", "fxrstor"):
        if at > 16:
            return None
        at *= 32  # aligned areas only
    m = world.machine(c["mode"], c["cpl"])
    identity_paging(m, TABLES)
    m.flat = 0xB000
    m.cr0 |= WP if c["wp"] else 0
    m.cr4 |= OSFXSR
    if c["ac"]:
        m.rflags |= AC
        m.cr0 |= AM
    m.xmm0 = 0x0F0E_0D0C_0B0A_0908_0706_0504_0302_0100
    for n in range(0, 0x800, 8):
        m.put(BORDER - 0x400 + n, 8, VALUE ^ n * 0x0101_0101_0101)
    m.rax, m.rcx, m.rdx = 0x1357_9BDF, 0x2468_AC00, 0x0F1E_2D3C
    linear = BORDER - at
    if c["equal"]:  # CMPXCHG and CMPXCHG8B find what they look for
        m.rax, m.rdx = m.get(linear, 4), m.get(linear + 4, 4)
    if c["what"] == "fxrstor":
        m.put(linear + 24, 4, 0xFFBF if c["wp"] else 0x1_0000)
    if c["what"] == "ret":
        m.put(linear, size, 0x8000)
    m.rbx = 0xC100
    if where == "below":
        m.rsp = linear + size
    elif where == "top":
        m.rsp = linear + size + 0x20
    else:
        m.set(**{where: linear})
    for page, what in ((FIRST, c["first"]), (SECOND, c["second"])):
        clear = {"fine": 0, "missing": P, "read-only": RW, "supervisor": US}[what]
        map_page(m, TABLES, page, clear=clear | A | D)
    return Case(m, raw, make(size))


SPLITS = Matrix(
    "split accesses",
    (
        Space("small operands", moot, mode=("64", "32"),
              what=tuple(name for name in CLASSES if not name.startswith("fx")), at=range(11), first=PAGES,
              second=PAGES, cpl=(3, 0), wp=(1, 0), ac=(0, 0, 0, 1), equal=(0, 1)),
        Space("vectors and areas", mode=("64", "32"),
              what=("movups load", "movups store", "fxsave", "fxrstor", "pusha", "popa", "fld m80", "sgdt"),
              at=range(33), first=PAGES, second=PAGES, cpl=(3, 0), wp=(1, 0), ac=(0,), equal=(0,)),
    ),
    over_border,
    3000,
    RAM,
)  # fmt: skip

MATRICES = (SPLITS,)


@pytest.mark.parametrize("blocks", [False, True], ids=["step", "block"])
def test_accesses_over_two_pages_are_done_whole_or_not_at_all(blocks: bool) -> None:
    verify(SPLITS, "done", "#PF", "#AC", "#GP", blocks=blocks)
