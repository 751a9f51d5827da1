"""XSAVE, XSAVEC, XSAVEOPT, XRSTOR. XGETBV and XSETBV are in `control`, state images in `fpu_control`.

Source: SDM Vol. 1, "Managing State Using the XSAVE Feature Set". The area: that of FXSAVE, 64 bytes of header
(XSTATE_BV, XCOMP_BV), YMM0-15[255:128]. With three components the compacted format has the same layout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isa.faults import DeviceNotAvailable, GeneralProtection
from isa.operands import Memory
from isa.semantics.control import check_osxsave
from isa.semantics.fpu_control import (
    FXSAVE_SIZE,
    area_address,
    checked_mxcsr,
    mxcsr_image,
    set_x87,
    set_xmm,
    x87_image,
    xmm_image,
)
from isa.semantics.registry import insn
from isa.state import CR0_TS, M32, XCR0_AVX, XCR0_SSE, XCR0_X87, XMM_NAMES, YMM_HIGH_NAMES

if TYPE_CHECKING:
    from isa.cpu import Cpu

HEADER, HEADER_SIZE = FXSAVE_SIZE, 64
AVX_AREA = HEADER + HEADER_SIZE
AVX_SIZE = 256
COMPACTED = 1 << 63  # XCOMP_BV
MXCSR_RESET = 0x1F80
ALIGNMENT = 64


def requested(cpu: Cpu) -> int:
    """RFBM, the requested-feature bitmap: XCR0 AND EDX:EAX."""
    return cpu.xcr0 & ((cpu.rdx & M32) << 32 | cpu.rax & M32)


def checked_area(cpu: Cpu, operand: Memory, name: str, wanted: int) -> int:
    """The offset of the area: #UD without CR4.OSXSAVE, #NM with CR0.TS, #GP(0) unless aligned to 64 bytes."""
    check_osxsave(cpu, name)
    if cpu.cr0 & CR0_TS:
        raise DeviceNotAvailable(f"{name} with CR0.TS=1")
    size = AVX_AREA + AVX_SIZE if wanted & XCR0_AVX else AVX_AREA
    return area_address(cpu, operand, size, ALIGNMENT)


def in_use(cpu: Cpu) -> int:
    """XINUSE: the components that are not in their initial configuration. MXCSR is none of SSE's."""
    fpu = cpu.fpu
    idle = (
        fpu.control == 0x37F
        and all(fpu.tags)
        and not (fpu.status_word() or any(fpu.regs) or fpu.ip or fpu.dp or fpu.cs or fpu.ds or fpu.opcode)
    )
    used = 0 if idle else XCR0_X87
    if any(getattr(cpu, name) for name in XMM_NAMES):
        used |= XCR0_SSE
    if any(getattr(cpu, name) for name in YMM_HIGH_NAMES):
        used |= XCR0_AVX
    return used


def ymm_image(cpu: Cpu) -> bytes:
    """The upper halves of 16 registers in 64-bit mode, else of 8."""
    names = YMM_HIGH_NAMES if cpu.mode64 else YMM_HIGH_NAMES[:8]
    return b"".join(getattr(cpu, name).to_bytes(16, "little") for name in names)


def put(cpu: Cpu, dst: Memory, offset: int, data: bytes) -> None:
    """Store a part of the area."""
    cpu.write_bytes(dst.segment, offset & dst.address_mask, data)


def write_components(cpu: Cpu, dst: Memory, offset: int, components: int, mxcsr: bool, wide: bool) -> None:
    """Store the components in the bitmap, and MXCSR; what lies between them stays."""
    if components & XCR0_X87:
        head, registers = x87_image(cpu, wide)
        put(cpu, dst, offset, head)
        put(cpu, dst, offset + 32, registers)
    if mxcsr:
        put(cpu, dst, offset + 24, mxcsr_image(cpu))
    if components & XCR0_SSE:
        put(cpu, dst, offset + 160, xmm_image(cpu))
    if components & XCR0_AVX:
        put(cpu, dst, offset + AVX_AREA, ymm_image(cpu))


def save(cpu: Cpu, dst: Memory, name: str, wide: bool, optimized: bool) -> None:
    """XSAVE, or with `optimized` XSAVEOPT, which leaves components in their initial configuration out."""
    wanted = requested(cpu)
    offset = checked_area(cpu, dst, name, wanted)
    used = in_use(cpu)
    at = offset + HEADER & dst.address_mask
    state = cpu.read_data(dst.segment, at, 8) & ~wanted | used & wanted
    if wanted & XCR0_SSE and cpu.mxcsr != MXCSR_RESET:
        state |= XCR0_SSE
    written = wanted & state if optimized else wanted
    write_components(cpu, dst, offset, written, bool(wanted & (XCR0_SSE | XCR0_AVX)), wide)
    cpu.write_data(dst.segment, at, 8, state)


def save_compacted(cpu: Cpu, dst: Memory, name: str, wide: bool) -> None:
    """XSAVEC: nothing is written for components in their initial configuration; MXCSR is part of SSE."""
    wanted = requested(cpu)
    offset = checked_area(cpu, dst, name, wanted)
    state = in_use(cpu) & wanted
    if wanted & XCR0_SSE and cpu.mxcsr != MXCSR_RESET:
        state |= XCR0_SSE
    write_components(cpu, dst, offset, state, bool(state & XCR0_SSE), wide)
    header = state.to_bytes(8, "little") + (wanted | COMPACTED).to_bytes(8, "little")
    put(cpu, dst, offset + HEADER, header)


def restore(cpu: Cpu, src: Memory, name: str, wide: bool) -> None:
    """Load the requested components that XSTATE_BV names and initialize the others of them."""
    wanted = requested(cpu)
    offset = checked_area(cpu, src, name, wanted)
    header = cpu.read_bytes(src.segment, offset + HEADER & src.address_mask, HEADER_SIZE)
    state = int.from_bytes(header[:8], "little")
    compact = int.from_bytes(header[8:16], "little")
    check_header(cpu, name, state, compact, header[16:])
    loaded = wanted & state
    area = cpu.read_bytes(src.segment, offset, FXSAVE_SIZE) if loaded or wanted & ~XCR0_X87 else b""
    high = b""
    if loaded & XCR0_AVX:
        high = cpu.read_bytes(src.segment, offset + AVX_AREA & src.address_mask, 256 if cpu.mode64 else 128)
    mxcsr = cpu.mxcsr
    if compact:
        if wanted & XCR0_SSE:
            mxcsr = checked_mxcsr(area) if loaded & XCR0_SSE else MXCSR_RESET
    elif wanted & (XCR0_SSE | XCR0_AVX):
        mxcsr = checked_mxcsr(area)
    # Nothing was changed so far, and nothing below can fault
    cpu.mxcsr = mxcsr
    count = 16 if cpu.mode64 else 8
    if loaded & XCR0_X87:
        set_x87(cpu, area, wide)
    elif wanted & XCR0_X87:
        cpu.fpu.init()
        cpu.fpu.regs = [0] * 8
    if loaded & XCR0_SSE:
        set_xmm(cpu, area)
    elif wanted & XCR0_SSE:
        for register in XMM_NAMES[:count]:
            setattr(cpu, register, 0)
    if wanted & XCR0_AVX:
        for n, register in enumerate(YMM_HIGH_NAMES[:count]):
            setattr(cpu, register, int.from_bytes(high[16 * n : 16 * n + 16], "little"))


def check_header(cpu: Cpu, name: str, state: int, compact: int, rest: bytes) -> None:
    """#GP(0) for a header that XRSTOR refuses. `rest` is what follows XCOMP_BV."""
    if compact & COMPACTED:
        if "XSAVEC" not in cpu.features:
            raise GeneralProtection(0, f"{name}: XCOMP_BV {compact:#x} is a compacted area's, without XSAVEC")
        allowed = compact & ~COMPACTED
        if allowed & ~cpu.xcr0 or state & ~allowed or any(rest):
            raise GeneralProtection(
                0,
                f"{name}: XSTATE_BV {state:#x}, XCOMP_BV {compact:#x}, XCR0 {cpu.xcr0:#x} or reserved bytes",
            )
    elif state & ~cpu.xcr0 or compact or any(rest[:8]):
        raise GeneralProtection(
            0, f"{name}: XSTATE_BV {state:#x} outside XCR0 {cpu.xcr0:#x} or reserved bytes"
        )


@insn("XSAVE", inline=False)
def xsave(cpu: Cpu, dst: Memory) -> None:
    """Save the components EDX:EAX AND XCR0; x87 pointers as 32-bit offset and selector"""
    save(cpu, dst, "XSAVE", False, False)


@insn("XSAVE64", inline=False)
def xsave64(cpu: Cpu, dst: Memory) -> None:
    """Save the components EDX:EAX AND XCR0; x87 pointers as 64-bit offsets"""
    save(cpu, dst, "XSAVE64", True, False)


@insn("XSAVEOPT", inline=False)
def xsaveopt(cpu: Cpu, dst: Memory) -> None:
    """Save the components EDX:EAX AND XCR0 that are in use; 32-bit x87 pointers"""
    save(cpu, dst, "XSAVEOPT", False, True)


@insn("XSAVEOPT64", inline=False)
def xsaveopt64(cpu: Cpu, dst: Memory) -> None:
    """Save the components EDX:EAX AND XCR0 that are in use; 64-bit x87 pointers"""
    save(cpu, dst, "XSAVEOPT64", True, True)


@insn("XSAVEC", inline=False)
def xsavec(cpu: Cpu, dst: Memory) -> None:
    """Save the components EDX:EAX AND XCR0 that are in use, compacted; 32-bit x87 pointers"""
    save_compacted(cpu, dst, "XSAVEC", False)


@insn("XSAVEC64", inline=False)
def xsavec64(cpu: Cpu, dst: Memory) -> None:
    """Save the components EDX:EAX AND XCR0 that are in use, compacted; 64-bit x87 pointers"""
    save_compacted(cpu, dst, "XSAVEC64", True)


@insn("XRSTOR", inline=False)
def xrstor(cpu: Cpu, src: Memory) -> None:
    """Restore or initialize the components EDX:EAX AND XCR0; 32-bit x87 pointers"""
    restore(cpu, src, "XRSTOR", False)


@insn("XRSTOR64", inline=False)
def xrstor64(cpu: Cpu, src: Memory) -> None:
    """Restore or initialize the components EDX:EAX AND XCR0; 64-bit x87 pointers"""
    restore(cpu, src, "XRSTOR64", True)
