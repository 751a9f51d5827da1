"""IN, OUT, INS, OUTS and the I/O permission check. The ports themselves are beyond the exit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isa.faults import GeneralProtection
from isa.operands import Memory, Operand
from isa.semantics.helpers import advanced
from isa.semantics.registry import insn
from isa.state import SYS_TSS_AVAILABLE, SYS_TSS_BUSY

if TYPE_CHECKING:
    from isa.cpu import Cpu

IO_MAP_BASE = 0x66  # offset of the I/O map base address in a 32-bit and in a 64-bit TSS


def check_port(cpu: Cpu, port: int, size: int) -> None:
    """#GP(0) unless the current privilege may use ports [port, port + size) (SDM Vol. 1, "Input/Output")."""
    if cpu.vm or (cpu.protected and cpu.cpl > cpu.iopl):
        check_io_bitmap(cpu, port, size)


def check_io_bitmap(cpu: Cpu, port: int, size: int) -> None:
    """#GP(0) unless the TSS's I/O permission bitmap has zeros for the ports."""
    tr = cpu.tr
    if tr.type not in (SYS_TSS_BUSY, SYS_TSS_AVAILABLE) or tr.limit < IO_MAP_BASE + 1:
        raise GeneralProtection(0, f"port {port:#x} at CPL {cpu.cpl} and a TSS without I/O permission bitmap")
    at = cpu.load_system(tr.base + IO_MAP_BASE, 2) + (port >> 3)
    # Two bytes are read whatever the port, so that a word or doubleword port needs no second look.
    if at + 1 > tr.limit:
        raise GeneralProtection(
            0, f"port {port:#x} beyond the I/O permission bitmap, TSS limit {tr.limit:#x}"
        )
    if cpu.load_system(tr.base + at, 2) >> (port & 7) & ((1 << size) - 1):
        raise GeneralProtection(0, f"port {port:#x} denied by the I/O permission bitmap at CPL {cpu.cpl}")


@insn("IN", own_privilege=True)
def in_(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """DEST := I/O port SRC"""
    port = src.value
    if cpu.vm or (cpu.protected and cpu.cpl > cpu.iopl):
        check_io_bitmap(cpu, port, dst.bytes)
    if cpu.dr7 & 0xFF:
        cpu.match_io_breakpoints(port, dst.bytes)
    dst.value = cpu.port_in(port, dst.bytes)


@insn("OUT", own_privilege=True)
def out(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """I/O port DEST := SRC"""
    port = dst.value
    if cpu.vm or (cpu.protected and cpu.cpl > cpu.iopl):
        check_io_bitmap(cpu, port, src.bytes)
    if cpu.dr7 & 0xFF:
        cpu.match_io_breakpoints(port, src.bytes)
    cpu.port_out(port, src.bytes, src.value)


@insn("INSB", "INSW", "INSD", rep=True, own_privilege=True)
def ins(cpu: Cpu, dst: Memory, src: Operand) -> None:
    """ES:[rDI] := I/O port DX; rDI := rDI +- size"""
    port = src.value
    check_port(cpu, port, dst.bytes)
    # The port must not lose a value to a page fault: the store is checked before the port is read.
    cpu.check_write(cpu.linear_address(dst.segment, dst.offset, dst.bytes, True), dst.bytes)
    cpu.match_io_breakpoints(port, dst.bytes)
    dst.value = cpu.port_in(port, dst.bytes)
    cpu.rdi = advanced(cpu.rdi, -dst.bytes if cpu.df else dst.bytes, dst.address_mask)


@insn("OUTSB", "OUTSW", "OUTSD", rep=True, own_privilege=True)
def outs(cpu: Cpu, dst: Operand, src: Memory) -> None:
    """I/O port DX := DS:[rSI]; rSI := rSI +- size"""
    port = dst.value
    check_port(cpu, port, src.bytes)
    value = src.value
    cpu.match_io_breakpoints(port, src.bytes)
    cpu.port_out(port, src.bytes, value)
    cpu.rsi = advanced(cpu.rsi, -src.bytes if cpu.df else src.bytes, src.address_mask)
