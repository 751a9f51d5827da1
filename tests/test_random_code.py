"""Random bytes run as code in every mode end in exits and faults only, never in a Python traceback.

Every few bytes of a seeded chunk are a starting point; registers, descriptor tables, handlers, paging and
what the VM answers are drawn from the same seed. A run in which an exception escapes, a register leaves its
width or the mode that the engine derived has gone stale fails with the line that repeats it.

PYSIM_RANDOM_BYTES sets the bytes of code per mode: a few thousand by default, 1048576 for the full megabyte.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import pytest

from isa import blocks
from isa.cpu import Cpu
from isa.cpuid import OPTIONAL_FEATURES, CpuId
from isa.exits import (
    Budget,
    ExitReason,
    Halt,
    Hypercall,
    IoRead,
    IoWrite,
    MmioRead,
    MmioWrite,
    NestedPageFault,
    SysRegRead,
    SysRegWrite,
    SystemDown,
    TripleFault,
    Unimplemented,
)
from isa.faults import GeneralProtection
from isa.memory import EXECUTE, READ, PhysicalMemory
from isa.state import (
    CR0_AM,
    CR0_ET,
    CR0_NE,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_OSFXSR,
    CR4_OSXMMEXCPT,
    CR4_OSXSAVE,
    CR4_PAE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    CR4_VME,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    EFER_SCE,
    GPR_NAMES,
    M64,
    XMM_NAMES,
    YMM_HIGH_NAMES,
)
from tests.isa.machine import ALL_FEATURES
from tests.isa.tables import CODE, CODE_SELECTOR, DATA, DATA_SELECTOR, descriptor, gate, gate64

if TYPE_CHECKING:
    from pysim_vm.vm import AxVM

RANDOM_BYTES = int(os.environ.get("PYSIM_RANDOM_BYTES", "4096"))
SEED = int(os.environ.get("PYSIM_RANDOM_SEED", "1"))
INSTRUCTIONS = 60  # from one starting point
EXITS = 200
STRIDE = 24  # the next starting point lies up to this far on

RAM = 1 << 20
GDT, IDT, TSS, STACKS, HANDLER = 0x2000, 0x3000, 0x5000, 0x8000, 0x9000
PAGE_TABLES = 0x10000
CHUNK, CHUNK_SIZE = 0x40000, 0x8000
MMIO, ROM, LAZY, HOLE = 0x10_0000, 0x11_0000, 0x12_0000, 0x13_0000
P, RW, US, PS, NX = 1, 2, 4, 1 << 7, 1 << 63

MODES = ("real", "virtual-8086", "16-bit protected", "32-bit protected", "compatibility", "64-bit")
MODES_AND_RINGS = [
    (mode, ring)
    for mode in MODES
    for ring in (0, 3)
    if (mode, ring) not in (("real", 3), ("virtual-8086", 0))
]


# ---- the machine around the code -------------------------------------------------------------------------


@cache
def table_image(mode: str, handlers: str, variant: int) -> bytes:
    """The first 256 KiB of RAM: descriptor tables, a TSS, page tables and data."""
    rng = random.Random(f"{mode} {handlers} {variant}")
    image = bytearray(rng.randbytes(0x1000)) * (CHUNK >> 12)
    long_mode = mode in ("compatibility", "64-bit")

    def put(address: int, value: int, size: int = 8) -> None:
        image[address : address + size] = value.to_bytes(size, "little")

    for n in range(64):  # a quarter of the table is whatever it is
        put(GDT + 8 * n, rng.getrandbits(64) if rng.randrange(4) == 0 else 0)
    put(GDT, 0)
    for n in range(4):
        put(GDT + (CODE_SELECTOR[n] & 0xFFF8), descriptor(CODE, n, flags=0xA if long_mode else 0xC))
        put(GDT + (DATA_SELECTOR[n] & 0xFFF8), descriptor(DATA, n))
    put(GDT + 0x48, descriptor(0x0B, base=TSS, limit=0x2100, flags=0))
    put(GDT + 0x50, 0)
    for vector in range(256):
        if handlers == "random":
            put(IDT + 16 * vector, rng.getrandbits(128), 16)
        elif long_mode:
            put(IDT + 16 * vector, gate64(0xE, CODE_SELECTOR[0], HANDLER, dpl=3, ist=vector & 1), 16)
        else:
            put(IDT + 8 * vector, gate(0xE, CODE_SELECTOR[0], HANDLER, dpl=3))
        if mode == "real":
            put(4 * vector, rng.getrandbits(32) if handlers == "random" else HANDLER, 4)
    put(TSS + 4, STACKS, 8)
    put(TSS + 8, DATA_SELECTOR[0] if not long_mode else STACKS >> 32, 4)
    put(TSS + 0x24, STACKS - 0x800, 8)
    put(TSS + 0x66, 0x88, 2)
    code = b"\xf4" if handlers == "halt" else rng.randbytes(16) + b"\xcf"
    image[HANDLER : HANDLER + len(code)] = code
    _put_page_tables(image, rng)
    return bytes(image)


def _put_page_tables(image: bytearray, rng: random.Random) -> None:
    """Identity maps of the first 2 MiB in small pages of mixed rights and of the rest in large ones."""
    pml4, pdpt, pd, pt = (PAGE_TABLES + n * 0x1000 for n in range(4))
    pd32, pt32 = (PAGE_TABLES + n * 0x1000 for n in range(4, 6))
    pae = PAGE_TABLES + 0x6000
    rights = P | RW | US

    def put(address: int, value: int, size: int = 8) -> None:
        image[address : address + size] = value.to_bytes(size, "little")

    for n in range(512):
        put(pml4 + 8 * n, pdpt | rights if n in (0, 511) else 0)
        put(pdpt + 8 * n, pd | rights if n == 0 else n << 30 | PS | rights if n % 8 == 3 else 0)
        put(pd + 8 * n, pt | rights if n == 0 else n << 21 | PS | rights if n < 256 else rng.getrandbits(64))
        page = n << 12 | rights
        if n << 12 >= CHUNK + CHUNK_SIZE or 0x20 <= n < 0x30:
            page ^= rng.choice((0, 0, 0, P, RW, US, US | RW, NX, 1 << 51))
        put(pt + 8 * n, page)
        put(pt32 + 4 * n, page & 0xFFFF_FFFF, 4)
    for n in range(1024):
        put(pd32 + 4 * n, pt32 | rights if n == 0 else n << 22 & 0xFFC0_0000 | PS | rights, 4)
    for n in range(4):
        put(pae + 8 * n, pd | P)


def set_mode(cpu: Cpu, mode: str, ring: int, rng: random.Random) -> None:
    """Registers, segments and modes as a system would have them there, the rest at random."""
    cpu.reset()
    cpu.msr.update({0xC000_0081: rng.getrandbits(64), 0xC000_0082: HANDLER, 0x174: CODE_SELECTOR[0]})
    flags = rng.getrandbits(22) & 0x24_0ED5 | rng.randrange(4) << 12
    if rng.randrange(8) == 0:
        flags |= 0x100
    cpu.cr0 = CR0_ET | rng.choice((0, CR0_NE, CR0_NE | CR0_WP, CR0_AM | CR0_WP))
    cpu.cr4 = rng.choice((0, CR4_OSFXSR | CR4_OSXMMEXCPT)) | rng.choice((0, CR4_VME)) | CR4_PSE
    if rng.randrange(2):
        cpu.cr4 |= CR4_OSFXSR | CR4_OSXSAVE
        cpu.xcr0 = 7
    cpu.efer = rng.choice((0, EFER_SCE)) | EFER_NXE
    if mode != "real":
        cpu.cr0 |= CR0_PE
        paging = "long" if mode in ("compatibility", "64-bit") else rng.choice(("", "32-bit", "PAE"))
        if paging:
            cpu.cr0 |= CR0_PG
        if paging == "32-bit":
            cpu.cr3 = PAGE_TABLES + 0x4000
        elif paging == "PAE":
            cpu.cr4 |= CR4_PAE
            cpu.load_pdptes(PAGE_TABLES + 0x6000)
            cpu.cr3 = PAGE_TABLES + 0x6000
        elif paging == "long":
            cpu.cr4 |= CR4_PAE | rng.choice((0, CR4_SMEP, CR4_SMAP))
            cpu.cr3 = PAGE_TABLES
            cpu.efer |= EFER_LME | EFER_LMA
    cpu.gdtr.base, cpu.gdtr.limit = GDT, 0x1FF
    cpu.tr.load_raw(0x48, TSS, 0x2100, 0x8B)
    cpu.ldtr.load_raw(0x58, GDT, 0xFF, 0x82)
    cpu.cpl = ring
    data = 0xC093 | ring << 5
    if mode == "real":
        cpu.idtr.base, cpu.idtr.limit = 0, 0x3FF
        for segment in cpu.segments:
            segment.load_real(rng.choice((0, 0x2000, 0x3000, 0xFFFF)))
        cpu.cs.load_real(CHUNK >> 4)
    elif mode == "virtual-8086":
        flags |= 1 << 17
        for segment in cpu.segments:
            segment.load_v86(rng.choice((0, 0x2000, 0x3000, 0xFFFF)))
        cpu.cs.load_v86(CHUNK >> 4)
    else:
        for segment in cpu.segments:
            segment.load_raw(DATA_SELECTOR[ring], 0, 0xFFFF_FFFF, data)
        attributes, base, limit = {
            "16-bit protected": (0x9B, CHUNK, 0xFFFF), "32-bit protected": (0xC09B, 0, 0xFFFF_FFFF),
            "compatibility": (0xC09B, 0, 0xFFFF_FFFF), "64-bit": (0xA09B, 0, 0xFFFF_FFFF),
        }[mode]  # fmt: skip
        cpu.cs.load_raw(CODE_SELECTOR[ring], base, limit, attributes | ring << 5)
        if mode == "16-bit protected":
            cpu.ss.load_raw(DATA_SELECTOR[ring], 0x20000, 0xFFFF, 0x93 | ring << 5)
        cpu.es.load_raw(
            DATA_SELECTOR[ring], 0x21000, 0xFFF, rng.choice((0x93, 0x97, 0x91, 0xC093)) | ring << 5
        )
    if mode != "real":
        cpu.idtr.base, cpu.idtr.limit = IDT, 0xFFF
    cpu.set_rflags_raw(flags | 2)
    for name in GPR_NAMES:
        setattr(cpu, name, interesting(rng))
    for name in XMM_NAMES:
        setattr(cpu, name, rng.getrandbits(128))
    if rng.randrange(2):
        cpu.rsp = 0x2F000 if mode not in ("real", "virtual-8086") else rng.getrandbits(16)
    if rng.randrange(8) == 0:
        cpu.dr0, cpu.dr1 = interesting(rng), 0x20000 + rng.randrange(0x1000)
        cpu.dr7 = 0x400 | rng.getrandbits(32) & 0xFFFF_00FF
    cpu.flush_tlb()
    cpu.update_mode()
    cpu.request_attention()


def interesting(rng: random.Random) -> int:
    """A register value: small, an address of every kind of memory, an edge, or anything."""
    base = rng.choice(
        (0, 0x20000, CHUNK, MMIO, ROM, LAZY, HOLE, 0xFFFF, 1 << 31, 1 << 32, 1 << 47, 1 << 63, 0, 0)
    )
    match rng.randrange(4):
        case 0:
            return base + rng.randrange(-16, 4096) & M64
        case 1:
            return base + rng.choice((0xFF8, 0xFFF, 0x1000, -1, -4)) & M64
        case 2:
            return rng.getrandbits(16)
    return rng.getrandbits(64)


def bare_cpu() -> Cpu:
    """RAM, ROM, a device window, lazily mapped RAM and holes; every feature that iced knows by name."""
    memory = PhysicalMemory()
    memory.add_ram(0, RAM)
    memory.add_ram(ROM, 0x1000, READ | EXECUTE, name="rom")
    memory.add_ram(LAZY, 0x2000, name="lazy", lazy=True)
    memory.set_mmio([(MMIO, 0x1800)])
    return Cpu(memory, ALL_FEATURES, CpuId(ALL_FEATURES))


def board_vm() -> AxVM:
    """A PC whose absent devices read as ones."""
    from pysim_vm.config import AxVMConfig
    from pysim_vm.vm import AxVM

    features = [f"+{name.lower()}" for name in OPTIONAL_FEATURES]
    return AxVM(AxVMConfig.for_code("4M", platform="pc", missing_device="ones", cpu_features=features))


# ---- running -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Start:
    """One starting point, and what repeats it."""

    mode: str
    ring: int
    seed: int
    offset: int

    def __str__(self) -> str:
        return f"mode {self.mode!r} ring {self.ring} seed {self.seed} offset {self.offset:#x}"


def answer(cpu: Cpu, reason: ExitReason, rng: random.Random) -> bool:
    """Do what a VM does with an exit; False where the run is over."""
    match reason:
        case MmioRead() | IoRead() | SysRegRead() | Hypercall():
            if isinstance(reason, SysRegRead) and rng.randrange(2):
                cpu.fail(GeneralProtection(0, "no such MSR"))
            else:
                cpu.complete(rng.getrandbits(64))
        case MmioWrite(data=data, width=width) | IoWrite(data=data, width=width):
            assert 0 <= data < 1 << 8 * width
            cpu.complete()
        case SysRegWrite():
            cpu.complete()
        case Halt() if cpu.if_ and rng.randrange(2):
            cpu.injected.append(rng.randrange(256))
            cpu.request_attention()
        case Budget() | Halt() | TripleFault() | Unimplemented() | NestedPageFault():
            return False
        case _:
            raise AssertionError(f"a bare CPU left with {reason}")
    return True


def run_bare(cpu: Cpu, rng: random.Random, seen: Counter[str]) -> None:
    """From the state at hand until the run is over."""
    end = cpu.retired + INSTRUCTIONS
    for _ in range(EXITS):
        reason = cpu.run(end)
        seen[type(reason).__name__] += 1
        check_state(cpu)
        if not answer(cpu, reason, rng):
            return


def check_state(cpu: Cpu) -> None:
    """Every register fits its width, and what `update_mode` derives is up to date."""
    for name in GPR_NAMES:
        assert 0 <= getattr(cpu, name) <= M64, f"{name} = {getattr(cpu, name):#x}"
    for name in (*XMM_NAMES, *YMM_HIGH_NAMES):
        assert 0 <= getattr(cpu, name) < 1 << 128, f"{name} = {getattr(cpu, name):#x}"
    assert 0 <= cpu.rip <= (M64 if cpu.mode64 else 0xFFFF_FFFF), f"rip = {cpu.rip:#x}"
    assert cpu.cf in (0, 1) and 0 <= cpu.iopl <= 3 and 0 <= cpu.cpl <= 3
    for name in ("tf", "if_", "nt", "rf", "vm", "ac", "vif", "vip", "id_"):
        assert getattr(cpu, name) in (0, 1), f"{name} = {getattr(cpu, name)}"
    for name in ("cr2", "cr3", "cr4", "efer", "xcr0", "dr0", "dr1", "dr2", "dr3"):
        assert 0 <= getattr(cpu, name) <= M64, f"{name} = {getattr(cpu, name):#x}"
    assert cpu.cr0 >> 32 == cpu.dr6 >> 32 == cpu.dr7 >> 32 == cpu.mxcsr >> 16 == 0 <= cpu.cr8 < 16
    for segment in (*cpu.segments, cpu.ldtr, cpu.tr):
        assert 0 <= segment.selector <= 0xFFFF and 0 <= segment.base <= M64 and 0 <= segment.limit >> 32 == 0
    fpu = cpu.fpu
    assert all(0 <= value < 1 << 80 for value in fpu.regs) and all(tag in (0, 1) for tag in fpu.tags)
    assert 0 <= fpu.top < 8 and fpu.control >> 16 == fpu.status >> 16 == fpu.opcode >> 11 == 0
    derived = (cpu.mode64, cpu.code_bits, cpu.stack_mask, cpu.protected, cpu.code.key)
    tlb = (id(cpu.tlb_read), id(cpu.tlb_system_read))
    cpu.update_mode()
    assert derived == (cpu.mode64, cpu.code_bits, cpu.stack_mask, cpu.protected, cpu.code.key), "stale mode"
    assert tlb == (id(cpu.tlb_read), id(cpu.tlb_system_read)), "stale TLB choice"
    if cpu.vm:
        assert cpu.cpl == 3, "virtual-8086 mode outside ring 3"


def starts(mode: str, ring: int, count: int) -> list[Start]:
    """Starting points over `count` bytes of code."""
    found = []
    rng = random.Random(f"{SEED} {mode} {ring}")
    for chunk in range(-(-count // CHUNK_SIZE)):
        at = 0
        while at < min(CHUNK_SIZE, count - chunk * CHUNK_SIZE):
            found.append(Start(mode, ring, SEED * 10_000 + chunk, at))
            at += rng.randrange(1, STRIDE)
    return found


@cache
def chunk(mode: str, ring: int, seed: int) -> bytes:
    """The random bytes that are run."""
    return random.Random(f"{mode} {ring} {seed}").randbytes(CHUNK_SIZE)


def prepare(cpu: Cpu, start: Start) -> random.Random:
    """Fill RAM and set the registers for a starting point; the generator goes on answering exits."""
    rng = random.Random(str(start))
    handlers = rng.choice(("none", "halt", "random", "return"))
    image = table_image(start.mode, handlers, rng.randrange(4))
    cpu.memory.write(0, image + chunk(start.mode, start.ring, start.seed))
    set_mode(cpu, start.mode, start.ring, rng)
    if handlers == "none":
        cpu.idtr.limit = 0
    flat = start.mode in ("32-bit protected", "compatibility", "64-bit")
    cpu.rip = CHUNK + start.offset if flat else start.offset
    if rng.randrange(8) == 0:
        cpu.injected.append(rng.randrange(256))
    cpu.nmi_pending = rng.randrange(16) == 0
    return rng


@pytest.mark.parametrize(("mode", "ring"), MODES_AND_RINGS)
def test_random_bytes_on_a_bare_cpu_end_in_exits_and_faults_only(mode: str, ring: int) -> None:
    cpu = bare_cpu()
    seen: Counter[str] = Counter()
    for start in starts(mode, ring, RANDOM_BYTES):
        rng = prepare(cpu, start)
        try:
            run_bare(cpu, rng, seen)
        except Exception as error:
            raise AssertionError(f"{start} at RIP {cpu.rip:#x}: {error!r}") from error
    assert {"Budget", "TripleFault", "Halt"} <= seen.keys()


@pytest.mark.parametrize(("mode", "ring"), MODES_AND_RINGS)
def test_random_bytes_on_a_pc_end_in_exits_and_faults_only(mode: str, ring: int) -> None:
    vm = board_vm()
    cpu = vm.vcpu(0).cpu
    for start in starts(mode, ring, RANDOM_BYTES):
        rng = prepare(cpu, start)
        try:
            reason: ExitReason = Budget(0)
            for _ in range(EXITS):
                reason = vm.run_vcpu(0, INSTRUCTIONS)
                check_state(cpu)
                if isinstance(reason, Hypercall):
                    vm.vcpu(0).set_return_value(rng.getrandbits(64))
                else:
                    break
        except Exception as error:
            raise AssertionError(f"{start} at RIP {cpu.rip:#x}: {error!r}") from error
        if isinstance(reason, SystemDown):
            vm = board_vm()
            cpu = vm.vcpu(0).cpu


@pytest.mark.parametrize(("mode", "ring"), MODES_AND_RINGS)
def test_random_bytes_give_the_same_states_in_one_run_and_step_by_step(
    mode: str, ring: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 64-bit mode the one run is the block engine's, which translates at once what it meets again."""
    monkeypatch.setattr(blocks, "HOT", 1)
    whole, single = bare_cpu(), bare_cpu()
    whole.use_blocks = True
    for start in starts(mode, ring, RANDOM_BYTES // 4):
        rng, other = prepare(whole, start), prepare(single, start)
        whole.retired = single.retired = 0
        reasons = exits_of(whole, rng, INSTRUCTIONS)
        steps = exits_of(single, other, 1)
        whole.rf = single.rf = 0  # set where a budget ended between two elements of a REP
        assert reasons == steps, str(start)
        assert snapshot(whole) == snapshot(single), str(start)


def exits_of(cpu: Cpu, rng: random.Random, budget: int) -> list[str]:
    """The exits of a run of INSTRUCTIONS in pieces of `budget`."""
    reasons: list[str] = []
    while len(reasons) < EXITS:
        reason = cpu.run(min(cpu.retired + budget, INSTRUCTIONS))
        if isinstance(reason, Budget) and cpu.retired < INSTRUCTIONS:
            continue
        reasons.append(str(reason))
        if not answer(cpu, reason, rng):
            break
    return reasons


def snapshot(cpu: Cpu) -> dict[str, object]:
    """Registers and RAM, comparable."""
    names = (*GPR_NAMES, *XMM_NAMES, *YMM_HIGH_NAMES, "rip", "retired", "cpl", "cr0", "cr2", "cr3", "cr4",
             "efer", "dr6", "dr7", "mxcsr", "shadow", "halted")  # fmt: skip
    state: dict[str, object] = {name: getattr(cpu, name) for name in names}
    state["rflags"] = cpu.rflags()
    state["segments"] = [(s.selector, s.base, s.limit, s.attributes, s.null) for s in cpu.segments]
    state["fpu"] = [getattr(cpu.fpu, name) for name in ("regs", "tags", "top", "control", "status")]
    state["ram"] = cpu.memory.read(0, RAM)
    return state
