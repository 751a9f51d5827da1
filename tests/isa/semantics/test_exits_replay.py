"""Every form on memory that is a device: exits commit nothing, and the answers lead to what RAM would give.

The same instruction runs on RAM and on a device window with the same contents behind it. Registers, flags and
contents must end up equal, and no exit or fault on the way may have changed a register.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from isa.cpu import Cpu
from isa.decode import code_names
from isa.exits import (
    ExitReason,
    Hypercall,
    IoRead,
    IoWrite,
    MmioRead,
    MmioWrite,
    SysRegRead,
    SysRegWrite,
    VmExit,
)
from isa.faults import Fault, Restart
from isa.state import CR0_EM, CR4_OSFXSR, CR4_OSXMMEXCPT, GPR_NAMES, XMM_NAMES
from tests.isa.forms import encodings, exists_in, implemented_forms
from tests.isa.machine import CODE, make_cpu

WINDOW, SIZE = 0x20_0000, 0x1000
ROUNDS = 1
# Their whole meaning is to leave this little machine for a task, a gate or a mode that is not there
ELSEWHERE = ("IRET", "RETF", "JMP_M", "CALL_M", "JMP_PTR", "CALL_PTR", "LTR", "SYSENTER", "SYSEXIT",
             "SYSCALL", "SYSRET", "INT_IMM8", "INT1", "INT3", "INTO", "MOV_CR", "MOV_DR", "LMSW", "KNC",
             "XOP", "486", "RDTSC")  # fmt: skip


def prepared(bits: int, device: bool, seed: str, contents: bytes) -> Cpu:
    """A machine whose data, extra and stack segments see the window; registers drawn from the seed."""
    rng = random.Random(seed)
    cpu = make_cpu(bits)
    if device:
        cpu.memory.set_mmio([(WINDOW, SIZE)])
    else:
        cpu.memory.add_ram(WINDOW, SIZE, name="window")
        cpu.memory.write(WINDOW, contents)
    base = 0 if bits == 64 else WINDOW
    for segment in (cpu.ds, cpu.es, cpu.ss, cpu.fs, cpu.gs):
        segment.base = base
    for name in GPR_NAMES:
        offset = 0x400 + rng.randrange(0x80) * 16 + rng.choice((0, 0, 0, 1, 5))
        setattr(cpu, name, offset + (WINDOW if bits == 64 else 0))
    if bits == 16:
        cpu.rsi, cpu.rdi = rng.randrange(0x100), rng.randrange(0x100)  # [bx+si] must stay inside
    cpu.rcx = cpu.rcx & ~0xFF | rng.randrange(4)
    for name in XMM_NAMES:
        setattr(cpu, name, rng.getrandbits(128))
    cpu.cr0 &= ~CR0_EM
    cpu.cr4 = CR4_OSFXSR | CR4_OSXMMEXCPT
    cpu.fpu.init()
    cpu.fpu.regs = [0x3FFF << 64 | 1 << 63 | rng.getrandbits(40) for _ in range(8)]
    cpu.fpu.tags = [rng.randrange(4) == 0 for _ in range(8)]
    cpu.set_rflags_raw(rng.getrandbits(12) & 0xCD5 | 0x3002)
    cpu.update_mode()
    return cpu


def state(cpu: Cpu) -> dict[str, Any]:
    """Everything architectural but RAM."""
    names = (*GPR_NAMES, *XMM_NAMES, "cr0", "cr2", "cr3", "cr4", "cr8", "efer", "xcr0", "dr6", "dr7", "mxcsr",
             "cpl", "shadow", "halted")  # fmt: skip
    found: dict[str, Any] = {name: getattr(cpu, name) for name in names}
    found["rflags"] = cpu.rflags()
    found["segments"] = [
        (s.selector, s.base, s.limit, s.attributes) for s in (*cpu.segments, cpu.ldtr, cpu.tr)
    ]
    found["tables"] = [(t.base, t.limit) for t in (cpu.gdtr, cpu.idtr)]
    fpu = cpu.fpu
    found["fpu"] = (list(fpu.regs), [bool(t) for t in fpu.tags], fpu.top, fpu.control, fpu.status, fpu.opcode)
    found["msr"] = dict(cpu.msr)
    return found


def attempt(cpu: Cpu) -> str | ExitReason:
    """Execute the instruction at CODE once: "done", an exit reason or a fault's name."""
    cpu.rip, cpu.cursor = CODE, 0
    try:
        insn = cpu.code[CODE]
        cpu.rip = insn.next
        insn.function(cpu, *insn.operands)
    except VmExit as event:
        return event.reason
    except Restart:
        return "restart"
    except Fault as fault:
        return fault.name
    return "done"


def finish(cpu: Cpu, contents: bytearray, name: str) -> str:
    """Answer exits from `contents` until the instruction ends; nothing may change before it does."""
    before = state(cpu)
    for _ in range(200):
        found = attempt(cpu)
        if isinstance(found, str):
            if found not in ("done", "restart", "#XM"):
                assert state(cpu) == before, f"{name}: {found} left a trace"
            if found != "restart":
                return found
            before = state(cpu)
            cpu.answers.clear()
            continue
        if cpu.answers and state(cpu) != before:  # a REP instruction commits element by element
            assert name.startswith("REP "), f"{name}: {found} left a trace"
        before = state(cpu)
        match found:
            case MmioRead(addr=addr, width=width):
                at = addr - WINDOW
                cpu.complete(int.from_bytes(contents[at : at + width], "little"))
            case MmioWrite(addr=addr, width=width, data=data):
                at = addr - WINDOW
                contents[at : at + width] = data.to_bytes(width, "little")
                cpu.complete()
            case IoRead() | SysRegRead() | Hypercall():
                cpu.complete(0x1234_5678)
            case IoWrite() | SysRegWrite():
                cpu.complete()
            case _:
                return type(found).__name__
    raise AssertionError(f"{name}: no end after 200 exits")


def followed_forms(bits: int) -> list[tuple[str, bytes]]:
    """(name, encoding) of the forms that this test can follow."""
    found = []
    for code in implemented_forms():
        name = code_names()[code]
        if exists_in(code, bits) and not any(part in name for part in ELSEWHERE):
            found += [(name, raw) for raw in encodings(code, bits)]
    return found


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_a_device_gives_every_form_the_result_that_ram_gives(bits: int) -> None:
    rng = random.Random(f"replay {bits}")
    ends: dict[str, int] = {}
    for name, raw in followed_forms(bits):
        for number in range(ROUNDS):
            contents = rng.randbytes(SIZE)
            seed = f"{name} {raw.hex()} {number}"
            on_ram = prepared(bits, False, seed, contents)
            on_device = prepared(bits, True, seed, contents)
            for cpu in (on_ram, on_device):
                cpu.memory.write(CODE, raw)
            plain = finish(on_ram, bytearray(SIZE), name)
            behind = bytearray(contents)
            assert finish(on_device, behind, name) == plain, seed
            assert state(on_device) == state(on_ram), seed
            assert bytes(behind) == on_ram.memory.read(WINDOW, SIZE), seed
            assert on_device.rip == on_ram.rip, seed
            ends[plain] = ends.get(plain, 0) + 1
    assert ends["done"] > sum(ends.values()) // 2, ends
