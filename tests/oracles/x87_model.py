"""The x87 oracle's other side: this CPU on the same images, and the comparison.

Nothing here needs a host of a certain kind: recorded cases are replayed on the same machine.
"""

from __future__ import annotations

from dataclasses import replace

from isa.cpu import Cpu
from isa.decode import disassemble
from tests.isa.machine import make_cpu
from tests.oracles.native_x87 import WINDOW_SIZE, Case, Image, Outcome
from tests.oracles.x87_cases import encodings

CODE, DATA = 0x2000, 0x8000  # encoding n stands at CODE + 16 * n
HOST_CS = 0x33
VISIBLE_FLAGS = 0x8D5  # CF PF AF ZF SF OF
INEXACT, ROUNDED_UP = 1 << 5, 1 << 9  # PE and C1
TRANSCENDENTAL = frozenset(
    ("F2XM1", "FYL2X", "FYL2XP1", "FPTAN", "FPATAN", "FSIN", "FCOS", "FSINCOS")
)  # fmt: skip
ENCODINGS = list(encodings())


def machine() -> Cpu:
    """A machine with every encoding in its code, each at its own address."""
    cpu = make_cpu(64)
    for n, (code, _, _) in enumerate(ENCODINGS):
        cpu.memory.write(CODE + 16 * n, code)
    cpu.cs.selector = HOST_CS
    cpu.ds.selector = 0
    return cpu


def run(cpu: Cpu, n: int, case: Case, at: int) -> Outcome:
    """Encoding n on ours; addresses in the image are moved to where the host has them."""
    plain = ENCODINGS[n][0]
    if case.code != plain:  # it has a prefix
        cpu.memory.write(CODE + 16 * n, case.code)
        out = _run(cpu, n, case, at)
        cpu.memory.write(CODE + 16 * n, plain.ljust(len(case.code), b"\0"))
        return out
    return _run(cpu, n, case, at)


def _run(cpu: Cpu, n: int, case: Case, at: int) -> Outcome:
    fpu, image = cpu.fpu, case.image
    fpu.control, fpu.status, fpu.top = image.control, image.status & ~0x3800, image.status >> 11 & 7
    if fpu.status & ~fpu.control & 0x3F:
        fpu.status |= 0x8080
    fpu.tags = [int(image.tags >> 2 * i & 3 == 3) for i in range(8)]
    for i in range(8):
        fpu.regs[fpu.top + i & 7] = image.registers[i]
    fpu.ip, fpu.cs, fpu.opcode, fpu.dp, fpu.ds = image.ip, image.cs, image.opcode, image.dp, image.ds
    cpu.memory.write(DATA, case.window)
    cpu.set_rflags_raw(case.flags | 2)
    cpu.rax, cpu.rdi, cpu.rip = 0, DATA, CODE + 16 * n
    reason = cpu.step()
    assert reason is None, reason
    assert cpu.rip == CODE + 16 * n + len(case.code), "the instruction faulted"
    flags, ax, window = cpu.rflags(), cpu.rax, bytes(cpu.ram[DATA : DATA + WINDOW_SIZE])
    # FNSAVE at another place tells the state as the host's image does
    cpu.rdi, cpu.rip = DATA, CODE + 16 * FNSAVE
    assert cpu.step() is None
    out = Image.unpack(bytes(cpu.ram[DATA : DATA + 108]))
    ip = at if out.ip == CODE + 16 * n else out.ip
    dp = 0x2000_2000 if out.dp == DATA else out.dp
    return Outcome(replace(out, ip=ip, dp=dp), flags, window, ax)


FNSAVE = next(n for n, (_, form, _) in enumerate(ENCODINGS) if form == "FNSAVE_M108BYTE")


def units_apart(a: int, b: int) -> int:
    """Distance of two 80-bit patterns in units in the last place; huge if the signs differ."""
    ordinals = [(pattern >> 64 & 0x7FFF) << 63 | pattern & (1 << 63) - 1 for pattern in (a, b)]
    return abs(ordinals[0] - ordinals[1]) if not (a ^ b) >> 79 else 1 << 80


def forgive_rounding(ours: Outcome, theirs: Outcome) -> Outcome:
    """`ours` with what rounding an inexact transcendental result elsewhere may change: one unit, and C1."""
    image, host = ours.image, theirs.image
    if not (image.status & INEXACT and host.status & INEXACT):
        return ours
    registers = tuple(
        b if units_apart(a, b) <= 1 else a for a, b in zip(image.registers, host.registers, strict=True)
    )
    status = image.status & ~ROUNDED_UP | host.status & ROUNDED_UP
    return replace(ours, image=replace(image, status=status, registers=registers))


def difference(case: Case, ours: Outcome, theirs: Outcome) -> list[str]:
    """What differs, in words."""
    found = []
    names = ["control", "status", "tags"]
    # A task switch of the host loses the pointers: XSAVE keeps them only with an exception pending
    if theirs.image.cs:
        names += ["ip", "cs", "opcode"]
    if theirs.image.dp:
        names += ["dp", "ds"]
    for name in names:
        a, b = getattr(ours.image, name), getattr(theirs.image, name)
        if a != b:
            found.append(f"{name} {a:#x}, host {b:#x}")
    for n in range(8):
        a, b = ours.image.registers[n], theirs.image.registers[n]
        if a != b:
            found.append(f"ST({n}) {a:020x}, host {b:020x}")
    if (ours.flags ^ theirs.flags) & VISIBLE_FLAGS:
        found.append(f"flags {ours.flags & VISIBLE_FLAGS:#x}, host {theirs.flags & VISIBLE_FLAGS:#x}")
    if ours.ax != theirs.ax:
        found.append(f"AX {ours.ax:#x}, host {theirs.ax:#x}")
    if ours.window != theirs.window:
        found.append(f"memory {ours.window.hex()}, host {theirs.window.hex()}")
    return found


def describe(case: Case, found: list[str]) -> str:
    """A case and what differs, to be read by a person."""
    image = case.image
    text = disassemble(case.code, 64, 0)
    stack = " ".join(
        f"{register:020x}{'e' if image.tags >> 2 * ((image.status >> 11) + n & 7) & 3 == 3 else ''}"
        for n, register in enumerate(image.registers)
    )
    return (
        f"{text}: {'; '.join(found)}"
        f"\n    control {image.control:#x} status {image.status:#x} flags {case.flags:#x}"
        f"\n    st {stack}\n    memory {case.window[:16].hex()}"
    )
