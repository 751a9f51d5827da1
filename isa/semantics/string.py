"""String instructions and the REP driver. INS and OUTS are in `io`.

A repeated instruction is one element after the other, each committed before the next, so that an interrupt, a
fault or an exit may come between any two. Where plain RAM lies on both sides a `bulk` function does all
elements that fit in the pages at hand in one copy, with the result and the count of the single ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from isa.faults import Restart
from isa.operands import Memory, Operand
from isa.semantics.helpers import advanced, compare, low_part
from isa.semantics.io import check_port
from isa.semantics.registry import Definition, insn
from isa.state import M32, M64

if TYPE_CHECKING:
    from isa.cpu import Cpu

PAGE = 4096
BULK_MINIMUM = 4  # fewer elements are faster one by one
BULK_MAXIMUM = 1 << 18  # bytes in one step: enough to make a step's cost vanish, little enough to hold twice
LOOK_AHEAD = 4096  # elements compared in one step: most searches end early


# ---- many elements at once -----------------------------------------------------------------------------


def plain_run(cpu: Cpu, pointer: Memory, write: bool, count: int) -> tuple[int, int]:
    """Where in host RAM the next element lies, and how many of `count` follow without leaving segment, offset
    or RAM that is plain, known to the TLB and in one piece (with DF = 1: one page).

    (0, 0) where the element itself is none of that or straddles a boundary.
    """
    offset = pointer.offset
    size = pointer.bytes
    segment = pointer.segment
    last = pointer.address_mask
    if not cpu.mode64:
        last = min(last, segment.write_last if write else segment.read_last)
        linear = offset + segment.base & M32
    elif segment is cpu.fs or segment is cpu.gs:
        linear = offset + segment.base & M64
    else:
        linear = offset
    within = linear & PAGE - 1
    page = linear >> 12
    tlb = cpu.tlb_write if write else cpu.tlb_read
    delta = tlb.get(page)
    if delta is None or within + size > PAGE or offset + size - 1 > last:
        return 0, 0
    if cpu.df:
        return linear + delta, min(min(within, offset) // size + 1, count)
    wanted = min(count * size, last - offset + 1, BULK_MAXIMUM)
    length = PAGE - within
    while length < wanted:
        page += 1
        if tlb.get(page) != delta:
            wanted = length
        length += PAGE
    return linear + delta, wanted // size


def advance(cpu: Cpu, pointer: Memory, register: int, count: int) -> int:
    """rSI or rDI after `count` elements."""
    step = count * pointer.bytes
    return advanced(register, -step if cpu.df else step, pointer.address_mask)


def movs_bulk(cpu: Cpu, count: int, while_equal: bool, dst: Memory, src: Memory) -> int:
    """MOVS for up to `count` elements."""
    target, count = plain_run(cpu, dst, True, count)
    source, count = plain_run(cpu, src, False, count)
    size = dst.bytes
    # How far the elements written run ahead of the elements still to be read
    gap = source - target if cpu.df else target - source
    pattern = b""
    if 0 < gap < count * size:
        if cpu.df or gap % size:
            count = gap // size
        else:
            pattern = bytes(cpu.ram[source : source + gap])  # read again and again as it is written
    if count == 0:
        return 0
    length = count * size
    if cpu.df:
        source -= length - size
        target -= length - size
    if pattern:
        cpu.ram[target : target + length] = (pattern * (length // gap + 1))[:length]
    else:
        cpu.ram[target : target + length] = cpu.ram[source : source + length]
    cpu.rsi = advance(cpu, src, cpu.rsi, count)
    cpu.rdi = advance(cpu, dst, cpu.rdi, count)
    return count


def stos_bulk(cpu: Cpu, count: int, while_equal: bool, dst: Memory, src: Operand) -> int:
    """STOS for up to `count` elements."""
    target, count = plain_run(cpu, dst, True, count)
    if count == 0:
        return 0
    length = count * dst.bytes
    if cpu.df:
        target -= length - dst.bytes
    cpu.ram[target : target + length] = src.value.to_bytes(dst.bytes, "little") * count
    cpu.rdi = advance(cpu, dst, cpu.rdi, count)
    return count


def lods_bulk(cpu: Cpu, count: int, while_equal: bool, dst: Operand, src: Memory) -> int:
    """LODS for up to `count` elements: only the last one stays."""
    source, count = plain_run(cpu, src, False, count)
    if count == 0:
        return 0
    step = (count - 1) * src.bytes
    at = source - step if cpu.df else source + step
    dst.value = int.from_bytes(cpu.ram[at : at + src.bytes], "little")
    cpu.rsi = advance(cpu, src, cpu.rsi, count)
    return count


def elements(cpu: Cpu, at: int, count: int, size: int) -> Any:
    """`count` little-endian elements of RAM as an array, in the direction of DF."""
    first = at - (count - 1) * size if cpu.df else at
    array = np.frombuffer(cpu.ram, f"<u{size}", count, first)
    return array[::-1] if cpu.df else array


def steps_until(ends: Any) -> int:
    """How many elements the loop does: up to and with the first that ends it, else all."""
    first = int(ends.argmax())
    return first + 1 if ends[first] else len(ends)


def cmps_bulk(cpu: Cpu, count: int, while_equal: bool, first: Memory, second: Memory) -> int:
    """CMPS for up to `count` elements, to the one that ends the repetition."""
    at, count = plain_run(cpu, first, False, min(count, LOOK_AHEAD))
    at2, count = plain_run(cpu, second, False, count)
    if count == 0:
        return 0
    a, b = elements(cpu, at, count, first.bytes), elements(cpu, at2, count, first.bytes)
    done = steps_until(a != b if while_equal else a == b)
    compare(cpu, int(a[done - 1]), int(b[done - 1]), first)
    cpu.rsi = advance(cpu, first, cpu.rsi, done)
    cpu.rdi = advance(cpu, second, cpu.rdi, done)
    return done


def scas_bulk(cpu: Cpu, count: int, while_equal: bool, accumulator: Operand, src: Memory) -> int:
    """SCAS for up to `count` elements, to the one that ends the repetition."""
    at, count = plain_run(cpu, src, False, min(count, LOOK_AHEAD))
    if count == 0:
        return 0
    wanted = accumulator.value
    found = elements(cpu, at, count, src.bytes)
    key = found.dtype.type(wanted)
    done = steps_until(found != key if while_equal else found == key)
    compare(cpu, wanted, int(found[done - 1]), src)
    cpu.rdi = advance(cpu, src, cpu.rdi, done)
    return done


# ---- one element ---------------------------------------------------------------------------------------


@insn("MOVSB", "MOVSW", "MOVSD_M32_M32", "MOVSQ", rep=True, bulk=movs_bulk)
def movs(cpu: Cpu, dst: Memory, src: Memory) -> None:
    """ES:[rDI] := DS:[rSI]; rSI := rSI +- size; rDI := rDI +- size"""
    dst.value = src.value
    step = -dst.bytes if cpu.df else dst.bytes
    cpu.rsi = advanced(cpu.rsi, step, src.address_mask)
    cpu.rdi = advanced(cpu.rdi, step, dst.address_mask)


@insn("STOSB", "STOSW", "STOSD", "STOSQ", rep=True, bulk=stos_bulk)
def stos(cpu: Cpu, dst: Memory, src: Operand) -> None:
    """ES:[rDI] := accumulator; rDI := rDI +- size"""
    dst.value = src.value
    cpu.rdi = advanced(cpu.rdi, -dst.bytes if cpu.df else dst.bytes, dst.address_mask)


@insn("LODSB", "LODSW", "LODSD", "LODSQ", rep=True, bulk=lods_bulk)
def lods(cpu: Cpu, dst: Operand, src: Memory) -> None:
    """accumulator := DS:[rSI]; rSI := rSI +- size"""
    dst.value = src.value
    cpu.rsi = advanced(cpu.rsi, -src.bytes if cpu.df else src.bytes, src.address_mask)


@insn("CMPSB", "CMPSW", "CMPSD_M32_M32", "CMPSQ", rep=True, bulk=cmps_bulk)
def cmps(cpu: Cpu, first: Memory, second: Memory) -> None:
    """flags of DS:[rSI] - ES:[rDI]; rSI := rSI +- size; rDI := rDI +- size"""
    a = first.value
    b = second.value
    step = -first.bytes if cpu.df else first.bytes
    cpu.rsi = advanced(cpu.rsi, step, first.address_mask)
    cpu.rdi = advanced(cpu.rdi, step, second.address_mask)
    compare(cpu, a, b, first)


@insn("SCASB", "SCASW", "SCASD", "SCASQ", rep=True, bulk=scas_bulk)
def scas(cpu: Cpu, accumulator: Operand, src: Memory) -> None:
    """flags of accumulator - ES:[rDI]; rDI := rDI +- size"""
    a = accumulator.value
    b = src.value
    cpu.rdi = advanced(cpu.rdi, -src.bytes if cpu.df else src.bytes, src.address_mask)
    compare(cpu, a, b, src)


# ---- REP -----------------------------------------------------------------------------------------------


@insn("REP", inline=False)
def repeat(cpu: Cpu, definition: Definition, while_equal: bool, *operands: Any) -> None:
    """WHILE rCX != 0 DO element; rCX := rCX - 1; IF CMPS or SCAS and ZF ends it THEN EXIT

    Raises Restart between two elements when the CPU has to look at something else first: `retired` reached
    `stop_at`, single step, a data breakpoint. Each element but the last counts as a retired instruction here,
    the last one in the engine.
    """
    pointer: Memory = operands[0] if operands[0].in_memory else operands[1]
    mask = pointer.address_mask
    count = cpu.rcx & mask
    function, bulk = definition.function, definition.bulk
    compares = function is cmps or function is scas
    if count == 0 and definition.own_privilege:
        check_port(cpu, cpu.rdx & 0xFFFF, pointer.bytes)  # INS and OUTS check even for no element
    while count:
        done = 0
        if bulk is not None and count >= BULK_MINIMUM and not cpu.tf:
            done = bulk(cpu, min(count, max(cpu.stop_at - cpu.retired, 1)), while_equal, *operands)
        if not done:
            function(cpu, *operands)
            done = 1
        count -= done
        cpu.rcx = low_part(cpu.rcx, count, mask)
        cpu.commit_element()
        if count == 0 or (compares and bool(cpu.zf) != while_equal):
            cpu.count_iterations(done - 1)
            return
        cpu.count_iterations(done)
        if cpu.retired >= cpu.stop_at or cpu.tf or cpu.debug_hits:
            raise Restart
