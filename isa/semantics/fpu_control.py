"""Control of the x87 and SSE units: what kernels touch. No arithmetic.

FINIT, FCLEX, FSTCW, FSTSW, FSTENV and FSAVE are two instructions each: WAIT and the form with FN.

Source: SDM Vol. 1, "Programming with the x87 FPU"; Vol. 2 for each instruction. The FXSAVE image follows
Vol. 1, "FXSAVE Area".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isa.faults import DeviceNotAvailable, FpuError, GeneralProtection, InvalidOpcode, StackFault
from isa.msr import is_canonical
from isa.operands import Memory, Operand
from isa.semantics.registry import insn
from isa.state import CR0_EM, CR0_MP, CR0_NE, CR0_TS, CR4_OSFXSR, M16, M32, M64

if TYPE_CHECKING:
    from isa.cpu import Cpu

MXCSR_MASK = 0xFFFF
FXSAVE_SIZE = 512
EXCEPTIONS = 0x3F
ERROR_SUMMARY = 0x80
BUSY = 0x8000
M80 = (1 << 80) - 1


def _task_switched(what: str, cr0: int) -> str:
    return f"{what} with CR0.EM={int(bool(cr0 & CR0_EM))}, CR0.TS={int(bool(cr0 & CR0_TS))}"


def check_fpu(cpu: Cpu) -> None:
    """#NM for an x87 instruction with CR0.EM or CR0.TS."""
    if cpu.cr0 & (CR0_EM | CR0_TS):
        raise DeviceNotAvailable((_task_switched, ("x87 instruction", cpu.cr0)))


def _pending(flags: int) -> str:
    names = ("invalid", "denormal", "divide by zero", "overflow", "underflow", "precision")
    found = ", ".join(name for n, name in enumerate(names) if flags >> n & 1)
    return f"unmasked x87 exception pending: {found}"


def check_pending(cpu: Cpu) -> None:
    """#MF for an unmasked x87 exception that an earlier instruction left, with CR0.NE = 1."""
    # Quirk: with CR0.NE = 0 the instruction goes on as if IGNNE# were asserted; hardware waits here for the
    # interrupt. FERR# is asserted when the exception happens, so the interrupt normally came before.
    if cpu.fpu.status & ~cpu.fpu.control & EXCEPTIONS and cpu.cr0 & CR0_NE:
        raise FpuError((_pending, (cpu.fpu.status & ~cpu.fpu.control & EXCEPTIONS,)))


def _sse_off(cr0: int, cr4: int) -> str:
    return f"SSE instruction with CR0.EM={int(bool(cr0 & CR0_EM))}, CR4.OSFXSR={int(bool(cr4 & CR4_OSFXSR))}"


def check_sse(cpu: Cpu) -> None:
    """#UD with CR0.EM or without CR4.OSFXSR; #NM with CR0.TS."""
    # Quirk: VEX forms are held to CR0.EM = 0 and CR4.OSFXSR = 1 too, which hardware asks of legacy ones only;
    # no system enables XCR0.AVX without them
    if cpu.cr0 & CR0_EM or not cpu.cr4 & CR4_OSFXSR:
        raise InvalidOpcode((_sse_off, (cpu.cr0, cpu.cr4)))
    if cpu.cr0 & CR0_TS:
        raise DeviceNotAvailable("SSE instruction with CR0.TS=1")


def update_summary(cpu: Cpu) -> None:
    """ES and B follow the unmasked exceptions, and FERR# follows them."""
    fpu = cpu.fpu
    if fpu.status & ~fpu.control & EXCEPTIONS:
        fpu.status |= ERROR_SUMMARY | BUSY
    else:
        fpu.status &= ~(ERROR_SUMMARY | BUSY)
    drive_ferr(cpu)


def drive_ferr(cpu: Cpu) -> None:
    """The FERR# pin is asserted while ES is set and CR0.NE is not; call after a change of either.

    SDM Vol. 1, "MS-DOS Compatibility Sub-mode": at once, and the board makes IRQ 13 of it.
    """
    level = bool(cpu.fpu.status & ERROR_SUMMARY) and not cpu.cr0 & CR0_NE
    if level != cpu.ferr:
        cpu.ferr = level
        if cpu.on_ferr is not None:
            cpu.on_ferr(level)


@insn("FNINIT", inline=False)
def fninit(cpu: Cpu) -> None:
    """Control word 0x37F, status word 0, all registers empty"""
    check_fpu(cpu)
    cpu.fpu.init()
    drive_ferr(cpu)


@insn("FNCLEX", inline=False)
def fnclex(cpu: Cpu) -> None:
    """Clear the exception flags, ES, SF and B"""
    check_fpu(cpu)
    cpu.fpu.status &= 0x7F00
    drive_ferr(cpu)


@insn("FNSTCW", inline=False, called=True)
def fnstcw(cpu: Cpu, dst: Operand) -> None:
    """DEST := control word"""
    check_fpu(cpu)
    dst.value = cpu.fpu.control


@insn("FLDCW", inline=False, called=True)
def fldcw(cpu: Cpu, src: Operand) -> None:
    """Control word := SRC"""
    check_fpu(cpu)
    check_pending(cpu)
    cpu.fpu.control = src.value & 0x1F7F | 0x40
    update_summary(cpu)


@insn("FNSTSW", inline=False, called=True)
def fnstsw(cpu: Cpu, dst: Operand) -> None:
    """DEST := status word"""
    check_fpu(cpu)
    dst.value = cpu.fpu.status_word()


@insn("WAIT", inline=False, called=True)
def fwait(cpu: Cpu) -> None:
    """#NM with CR0.MP and CR0.TS; #MF if an unmasked x87 exception is pending"""
    if cpu.cr0 & CR0_MP and cpu.cr0 & CR0_TS:
        raise DeviceNotAvailable("WAIT with CR0.MP=1, CR0.TS=1")
    check_pending(cpu)


@insn("EMMS", inline=False, called=True)
def emms(cpu: Cpu) -> None:
    """Mark every x87 register empty"""
    if cpu.cr0 & CR0_EM:
        raise InvalidOpcode("EMMS with CR0.EM=1")
    if cpu.cr0 & CR0_TS:
        raise DeviceNotAvailable("EMMS with CR0.TS=1")
    check_pending(cpu)
    cpu.fpu.tags = [1] * 8
    cpu.fpu.top = 0  # Vol. 3, "Effect of MMX Instructions on the x87 FPU State"


@insn("FNENI", "FNDISI", "FNSETPM", inline=False)
def fneni(cpu: Cpu) -> None:
    """Nothing: 8087 and 80287 control that later units ignore"""
    check_fpu(cpu)


# ---- environment and state images ------------------------------------------------------------------------

ENVIRONMENT16, ENVIRONMENT32 = 14, 28  # bytes of the two formats
RESERVED_ONES = 0xFFFF_0000


def full_tags(cpu: Cpu) -> int:
    """The tag word: two bits for each physical register, 0 valid, 1 zero, 2 special, 3 empty."""
    fpu = cpu.fpu
    word = 0
    for n in range(8):
        exponent, significand = fpu.regs[n] >> 64 & 0x7FFF, fpu.regs[n] & M64
        if fpu.tags[n]:
            tag = 3
        elif not exponent and not significand:
            tag = 1
        elif exponent in (0, 0x7FFF) or not significand >> 63:
            tag = 2
        else:
            tag = 0
        word |= tag << 2 * n
    return word


def environment(cpu: Cpu, size: int) -> bytes:
    """Control, status and tag word and the pointers, in the format of the mode and of 14 or 28 bytes.

    SDM Vol. 1, "Saving the x87 FPU's State with FSTENV/FNSTENV and FSAVE/FNSAVE". Real and virtual-8086 mode
    store linear addresses; the 16-bit protected-mode format has no room for FOP.
    """
    fpu = cpu.fpu
    words = [fpu.control, fpu.status_word(), full_tags(cpu)]
    if size == ENVIRONMENT32:
        if cpu.protected:
            words += [fpu.ip & M32, fpu.opcode << 16 | fpu.cs, fpu.dp & M32, fpu.ds]
        else:
            ip, dp = (fpu.cs << 4) + fpu.ip & M32, (fpu.ds << 4) + fpu.dp & M32
            words += [ip & M16, ip >> 16 << 12 | fpu.opcode, dp & M16, dp >> 16 << 12]
        reserved = (1, 1, 1, 0, 0, 0, 1) if cpu.protected else (1, 1, 1, 1, 0, 1, 0)
        pairs = zip(words, reserved, strict=True)
        return b"".join((word | ones * RESERVED_ONES).to_bytes(4, "little") for word, ones in pairs)
    if cpu.protected:
        words += [fpu.ip & M16, fpu.cs, fpu.dp & M16, fpu.ds]
    else:
        ip, dp = (fpu.cs << 4) + fpu.ip, (fpu.ds << 4) + fpu.dp
        words += [ip & M16, ip >> 4 & 0xF000 | fpu.opcode, dp & M16, dp >> 4 & 0xF000]
    return b"".join(word.to_bytes(2, "little") for word in words)


def set_environment(cpu: Cpu, image: bytes) -> None:
    """The reverse of `environment`. Of the tags only "empty" counts; ES and B follow the exceptions."""
    fpu = cpu.fpu
    width = len(image) // 7
    words = [int.from_bytes(image[n : n + width], "little") for n in range(0, len(image), width)]
    fpu.control = words[0] & 0x1F7F | 0x40
    fpu.status = words[1] & 0x477F
    fpu.top = words[1] >> 11 & 7
    fpu.tags = [int(words[2] >> 2 * n & 3 == 3) for n in range(8)]
    ip, selector, dp, data_selector = words[3:]
    if cpu.protected:
        fpu.ip, fpu.cs, fpu.dp, fpu.ds = ip, selector & M16, dp, data_selector & M16
        if width == 4:
            fpu.opcode = selector >> 16 & 0x7FF
        else:
            fpu.opcode = 0
    else:
        fpu.ip = ip & M16 | (selector >> 12 & M16) << 16
        fpu.dp = dp & M16 | (data_selector >> 12 & M16) << 16
        fpu.cs = fpu.ds = 0
        fpu.opcode = selector & 0x7FF
    update_summary(cpu)


@insn("FNSTENV", inline=False)
def fnstenv(cpu: Cpu, dst: Memory) -> None:
    """DEST := environment; all exceptions masked"""
    check_fpu(cpu)
    cpu.write_bytes(dst.segment, dst.offset, environment(cpu, dst.bytes))
    cpu.fpu.control |= EXCEPTIONS
    update_summary(cpu)


@insn("FLDENV", inline=False)
def fldenv(cpu: Cpu, src: Memory) -> None:
    """Environment := SRC"""
    check_fpu(cpu)
    check_pending(cpu)
    set_environment(cpu, cpu.read_bytes(src.segment, src.offset, src.bytes))


@insn("FNSAVE", inline=False)
def fnsave(cpu: Cpu, dst: Memory) -> None:
    """DEST := environment and ST(0) to ST(7); FNINIT"""
    check_fpu(cpu)
    fpu = cpu.fpu
    registers = b"".join((fpu.regs[fpu.top + n & 7] & M80).to_bytes(10, "little") for n in range(8))
    cpu.write_bytes(dst.segment, dst.offset, environment(cpu, dst.bytes - len(registers)) + registers)
    fpu.init()
    drive_ferr(cpu)


@insn("FRSTOR", inline=False)
def frstor(cpu: Cpu, src: Memory) -> None:
    """Environment and ST(0) to ST(7) := SRC"""
    check_fpu(cpu)
    check_pending(cpu)
    image = cpu.read_bytes(src.segment, src.offset, src.bytes)
    head = src.bytes - 80
    set_environment(cpu, image[:head])
    fpu = cpu.fpu
    for n in range(8):
        at = head + 10 * n
        fpu.regs[fpu.top + n & 7] = int.from_bytes(image[at : at + 10], "little")


@insn("LDMXCSR", "VLDMXCSR", inline=False)
def ldmxcsr(cpu: Cpu, src: Operand) -> None:
    """MXCSR := SRC; #GP(0) for reserved bits"""
    check_sse(cpu)
    value = src.value
    if value & ~MXCSR_MASK:
        raise GeneralProtection(0, f"LDMXCSR: reserved bits {value & ~MXCSR_MASK:#x}")
    cpu.mxcsr = value


@insn("STMXCSR", "VSTMXCSR", inline=False)
def stmxcsr(cpu: Cpu, dst: Operand) -> None:
    """DEST := MXCSR"""
    check_sse(cpu)
    dst.value = cpu.mxcsr


def fx_address(cpu: Cpu, operand: Memory) -> int:
    """The offset of the area of FXSAVE and FXRSTOR after their checks: #NM, alignment to 16 bytes."""
    if cpu.cr0 & (CR0_EM | CR0_TS):
        raise DeviceNotAvailable((_task_switched, ("FXSAVE or FXRSTOR", cpu.cr0)))
    return area_address(cpu, operand, FXSAVE_SIZE, 16)


def area_address(cpu: Cpu, operand: Memory, size: int, alignment: int) -> int:
    """The offset of a state area after the checks of its segment, canonicity and alignment."""
    offset = operand.offset
    linear = cpu.linear_address(operand.segment, offset, size, False)
    if cpu.mode64 and not is_canonical(linear):
        why = f"non-canonical address {linear:#x}"
        raise StackFault(0, why) if operand.segment is cpu.ss else GeneralProtection(0, why)
    if linear & alignment - 1:
        raise GeneralProtection(0, f"state area at {linear:#x} is not aligned to {alignment} bytes")
    return offset


def abridged_tags(cpu: Cpu) -> int:
    """The FXSAVE tag byte: bit n set where physical register n is not empty."""
    return sum((not empty) << n for n, empty in enumerate(cpu.fpu.tags))


@insn("FXSAVE", inline=False)
def fxsave(cpu: Cpu, dst: Memory) -> None:
    """Save x87, MMX, MXCSR and XMM state; FIP and FDP as 32-bit offset and selector"""
    save_state(cpu, dst, False)


@insn("FXSAVE64", inline=False)
def fxsave64(cpu: Cpu, dst: Memory) -> None:
    """Save x87, MMX, MXCSR and XMM state; FIP and FDP as 64-bit offsets"""
    save_state(cpu, dst, True)


def save_state(cpu: Cpu, dst: Memory, wide: bool) -> None:
    """Write the FXSAVE area. Bytes 416-511 are left as they are, but have to be writable."""
    offset = fx_address(cpu, dst)
    linear = cpu.linear_address(dst.segment, offset, FXSAVE_SIZE, True)
    cpu.check_write(linear, FXSAVE_SIZE, dst.segment is cpu.ss)
    head, registers = x87_image(cpu, wide)
    cpu.write_bytes(dst.segment, offset, head + mxcsr_image(cpu) + registers + xmm_image(cpu))


def x87_image(cpu: Cpu, wide: bool) -> tuple[bytes, bytes]:
    """Bytes 0-23 and 32-159 of the FXSAVE area."""
    fpu = cpu.fpu
    if wide:
        pointers = fpu.ip.to_bytes(8, "little") + fpu.dp.to_bytes(8, "little")
    else:
        pointers = (
            (fpu.ip & M32).to_bytes(4, "little") + fpu.cs.to_bytes(4, "little")
            + (fpu.dp & M32).to_bytes(4, "little") + fpu.ds.to_bytes(4, "little")
        )  # fmt: skip
    head = (
        fpu.control.to_bytes(2, "little")
        + fpu.status_word().to_bytes(2, "little")
        + bytes((abridged_tags(cpu), 0))
        + fpu.opcode.to_bytes(2, "little")
        + pointers
    )
    registers = b"".join((fpu.regs[(fpu.top + n) & 7] & M80).to_bytes(16, "little") for n in range(8))
    return head, registers


def mxcsr_image(cpu: Cpu) -> bytes:
    """Bytes 24-31 of the FXSAVE area."""
    return cpu.mxcsr.to_bytes(4, "little") + MXCSR_MASK.to_bytes(4, "little")


def xmm_image(cpu: Cpu) -> bytes:
    """The FXSAVE area from byte 160 on: 16 registers in 64-bit mode, else 8."""
    count = 16 if cpu.mode64 else 8
    return b"".join(getattr(cpu, f"xmm{n}").to_bytes(16, "little") for n in range(count))


@insn("FXRSTOR", inline=False)
def fxrstor(cpu: Cpu, src: Memory) -> None:
    """Restore x87, MMX, MXCSR and XMM state; 32-bit pointers"""
    restore_state(cpu, src, False)


@insn("FXRSTOR64", inline=False)
def fxrstor64(cpu: Cpu, src: Memory) -> None:
    """Restore x87, MMX, MXCSR and XMM state; 64-bit pointers"""
    restore_state(cpu, src, True)


def restore_state(cpu: Cpu, src: Memory, wide: bool) -> None:
    """Read the FXSAVE area; #GP(0) for reserved MXCSR bits."""
    offset = fx_address(cpu, src)
    area = cpu.read_bytes(src.segment, offset, FXSAVE_SIZE)
    cpu.mxcsr = checked_mxcsr(area)
    set_x87(cpu, area, wide)
    set_xmm(cpu, area)


def checked_mxcsr(area: bytes) -> int:
    """MXCSR in an FXSAVE area; #GP(0) for reserved bits."""
    mxcsr = int.from_bytes(area[24:28], "little")
    if mxcsr & ~MXCSR_MASK:
        raise GeneralProtection(0, f"MXCSR in a state area: reserved bits {mxcsr & ~MXCSR_MASK:#x}")
    return mxcsr


def set_x87(cpu: Cpu, area: bytes, wide: bool) -> None:
    """x87 state := that of an FXSAVE area."""
    fpu = cpu.fpu
    fpu.control = int.from_bytes(area[0:2], "little") & 0x1F7F | 0x40
    status = int.from_bytes(area[2:4], "little")
    fpu.status = status & ~0x3800
    fpu.top = status >> 11 & 7
    fpu.tags = [1 - (area[4] >> n & 1) for n in range(8)]
    fpu.opcode = int.from_bytes(area[6:8], "little") & 0x7FF
    if wide:
        fpu.ip = int.from_bytes(area[8:16], "little") & M64
        fpu.dp = int.from_bytes(area[16:24], "little") & M64
    else:
        fpu.ip, fpu.cs = int.from_bytes(area[8:12], "little"), int.from_bytes(area[12:14], "little")
        fpu.dp, fpu.ds = int.from_bytes(area[16:20], "little"), int.from_bytes(area[20:22], "little")
    for n in range(8):
        fpu.regs[(fpu.top + n) & 7] = int.from_bytes(area[32 + 16 * n : 42 + 16 * n], "little")
    update_summary(cpu)


def set_xmm(cpu: Cpu, area: bytes) -> None:
    """XMM registers := those of an FXSAVE area: 16 in 64-bit mode, else 8."""
    for n in range(16 if cpu.mode64 else 8):
        setattr(cpu, f"xmm{n}", int.from_bytes(area[160 + 16 * n : 176 + 16 * n], "little"))
