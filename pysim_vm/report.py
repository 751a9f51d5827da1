"""Words for people: exits, places, registers, page walks, descriptors and the triple-fault report.

It reads a CPU and changes nothing, not even an accessed bit; it prints nothing either.
Sources: SDM Vol. 3, "Protected-Mode Memory Management", "Paging", "Interrupt and Exception Handling".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from isa.cpu import Cpu
from isa.decode import MAX_LENGTH, Insn, disassemble
from isa.descriptors import Descriptor
from isa.exits import (
    Budget,
    CpuDown,
    CpuUp,
    ExitReason,
    ExternalInterrupt,
    FailEntry,
    Halt,
    Hypercall,
    IoRead,
    IoWrite,
    MmioRead,
    MmioWrite,
    NestedPageFault,
    SendIPI,
    SysRegRead,
    SysRegWrite,
    SystemDown,
    TripleFault,
    Unimplemented,
    VmExit,
)
from isa.faults import PageFault
from isa.memory import PHYSICAL_BITS, PhysicalMemory
from isa.mmu import ACCESS_READ, FRAME, NX, PF_RESERVED, PS, RW, US, A, D, NotPlain, P
from isa.msr import is_canonical
from isa.state import (
    CR0_PE,
    CR0_PG,
    CR4_PAE,
    CR4_PSE,
    CR4_SMAP,
    EFER_LMA,
    GPR_NAMES,
    M32,
    M64,
    SEGMENT_NAMES,
    XMM_NAMES,
    YMM_HIGH_NAMES,
    Segment,
)
from pysim_vm.symbols import SymbolTable

CONTEXT_BEFORE: Final = 6  # instructions shown before the one that failed
CONTEXT_AFTER: Final = 4
STACK_NEIGHBOURHOOD: Final = 0x100  # a CR2 so close to RSP is a push

# SDM Vol. 3, "Protected-Mode Exceptions and Interrupts"
EXCEPTIONS: Final[Mapping[str, tuple[int, str]]] = {
    "#DE": (0, "divide error"),
    "#DB": (1, "debug exception"),
    "#BP": (3, "breakpoint"),
    "#OF": (4, "overflow"),
    "#BR": (5, "BOUND range exceeded"),
    "#UD": (6, "invalid opcode"),
    "#NM": (7, "device not available"),
    "#DF": (8, "double fault"),
    "#TS": (10, "invalid TSS"),
    "#NP": (11, "segment not present"),
    "#SS": (12, "stack-segment fault"),
    "#GP": (13, "general protection"),
    "#PF": (14, "page fault"),
    "#MF": (16, "x87 floating-point error"),
    "#AC": (17, "alignment check"),
    "#MC": (18, "machine check"),
    "#XM": (19, "SIMD floating-point exception"),
}
VECTOR_NAMES: Final[Mapping[int, str]] = {
    2: "NMI",
    **{vector: name for name, (vector, _) in EXCEPTIONS.items()},
}
SELECTOR_FAULTS: Final = ("#TS", "#NP", "#SS", "#GP")  # their error code names a descriptor

FLAG_NAMES: Final = (
    (0, "CF"), (2, "PF"), (4, "AF"), (6, "ZF"), (7, "SF"), (8, "TF"), (9, "IF"), (10, "DF"), (11, "OF"),
    (14, "NT"), (16, "RF"), (17, "VM"), (18, "AC"), (19, "VIF"), (20, "VIP"), (21, "ID"),
)  # fmt: skip
CR0_NAMES: Final = (
    (0, "PE"), (1, "MP"), (2, "EM"), (3, "TS"), (4, "ET"), (5, "NE"), (16, "WP"), (18, "AM"), (29, "NW"),
    (30, "CD"), (31, "PG"),
)  # fmt: skip
CR4_NAMES: Final = (
    (0, "VME"), (1, "PVI"), (2, "TSD"), (3, "DE"), (4, "PSE"), (5, "PAE"), (6, "MCE"), (7, "PGE"), (8, "PCE"),
    (9, "OSFXSR"), (10, "OSXMMEXCPT"), (11, "UMIP"), (16, "FSGSBASE"), (17, "PCIDE"), (18, "OSXSAVE"),
    (20, "SMEP"), (21, "SMAP"),
)  # fmt: skip
EFER_NAMES: Final = ((0, "SCE"), (8, "LME"), (10, "LMA"), (11, "NXE"))


# ---- exits -------------------------------------------------------------------------------------------------


def value_words(value: int, width: int) -> str:
    """A value as a student wants to see it: `'H' (0x48)` for a printable byte, else hexadecimal."""
    if width == 1 and 0x20 < value < 0x7F:
        return f"{chr(value)!r} ({value:#x})"
    return f"{value:#x}"


def plural(count: int, noun: str) -> str:
    """`1 byte`, `2 bytes`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def exit_words(reason: ExitReason, answer: int | None = None) -> str:
    """What the guest did that made it exit; `answer` is the value that a device gave to a read."""
    got = "" if answer is None else f" -> {answer:#x}"
    match reason:
        case IoRead():
            return f"IN {reason.port:#x}{_width(reason.width)}{got}"
        case IoWrite():
            return f"OUT {reason.port:#x}{_width(reason.width)} <- {value_words(reason.data, reason.width)}"
        case MmioRead():
            return f"load {reason.addr:#x}{_width(reason.width)}{got}"
        case MmioWrite():
            return f"store {reason.addr:#x}{_width(reason.width)} <- {value_words(reason.data, reason.width)}"
        case SysRegRead():
            return f"RDMSR {reason.addr:#x}{got}"
        case SysRegWrite():
            return f"WRMSR {reason.addr:#x} <- {reason.value:#x}"
        case Halt():
            return "HLT"
        case Hypercall():
            arguments = ", ".join(f"{argument:#x}" for argument in reason.args)
            return f"VMCALL {reason.nr:#x}({arguments})"
        case NestedPageFault():
            return f"{_access(reason.access_flags)} of guest-physical {reason.addr:#x}"
        case Unimplemented():
            return f"{reason.text} ({reason.code.hex(' ')})"
        case TripleFault():
            return " -> ".join(text.split(":", 1)[0] for text in reason.chain)
        case FailEntry():
            return f"entry refused, {reason.why or hex(reason.hardware_entry_failure_reason)}"
        case ExternalInterrupt():
            return f"host interrupt {reason.vector:#x}"
        case SendIPI():
            return f"IPI {reason.vector:#x} to CPU {reason.target_cpu:#x}"
        case CpuUp():
            return f"start CPU {reason.target_cpu:#x} at {reason.entry_point:#x}"
        case CpuDown():
            return "CPU off"
        case SystemDown():
            return "power off"
        case Budget():
            return f"{plural(reason.retired, 'instruction')} retired"
        case _:
            return type(reason).__name__


def exit_kind(reason: ExitReason) -> str:
    """The kind of an exit in a student's words."""
    match reason:
        case IoRead() | IoWrite():
            return "I/O exit"
        case MmioRead() | MmioWrite():
            return "MMIO exit"
        case SysRegRead() | SysRegWrite():
            return "MSR exit"
        case Halt():
            return "halt exit"
        case Hypercall():
            return "hypercall"
        case NestedPageFault():
            return "nested page fault"
        case ExternalInterrupt():
            return "host interrupt"
        case _:
            return "exit"


def _width(width: int) -> str:
    return "" if width == 1 else f" ({width} bytes)"


def _access(flags: int) -> str:
    if flags & 4:
        return "fetch"
    return "write" if flags & 2 else "read"


# ---- memory, read without a trace --------------------------------------------------------------------------


def peek_physical(memory: PhysicalMemory, gpa: int, size: int) -> bytes | None:
    """`size` bytes of RAM at `gpa`, or None where RAM ends; populates no lazy page."""
    parts = []
    while size > 0:
        region = memory.region_at(gpa)
        if region is None:
            return None
        if region.populated is not None and not region.populated[gpa - region.base >> 12]:
            return None
        length = min(size, 0x1000 - (gpa & 0xFFF))
        host = region.host + gpa - region.base
        parts.append(bytes(memory.view[host : host + length]))
        gpa += length
        size -= length
    return b"".join(parts)


@dataclass(frozen=True, slots=True)
class WalkStep:
    """One paging-structure entry that a translation reads; `value` is None where there is no RAM."""

    level: str
    address: int
    value: int | None
    words: str


@dataclass(frozen=True, slots=True)
class PageWalk:
    """The translation of one linear address: the entries read, and where it ended.

    `physical` is None if the walk ends at an entry that is not present or cannot be read; `why` says so.
    """

    linear: int
    steps: tuple[WalkStep, ...]
    physical: int | None
    why: str

    def lines(self) -> list[str]:
        """The walk, one line an entry."""
        rows = []
        for step in self.steps:
            value = "no RAM there" if step.value is None else f"= {step.value:#018x}  {step.words}"
            rows.append(f"{step.level:<6}{step.address:#x} {value}")
        rows.append(self.why)
        return rows


def page_walk(cpu: Cpu, linear: int) -> PageWalk:
    """Walk the page tables for `linear` as the CPU would, without access checks and side effects.

    It ends where the CPU's walk ends: at an entry that is not present or has a reserved bit set.
    """
    if not cpu.cr0 & CR0_PG:
        physical = linear & cpu.memory.address_mask
        return PageWalk(linear, (), physical, f"paging is off: linear {linear:#x} is physical {physical:#x}")
    if cpu.mode64 and not is_canonical(linear):
        return PageWalk(linear, (), None, f"{linear:#x} is not canonical: no translation, #GP or #SS")
    if cpu.efer & EFER_LMA:
        levels = (("PML4E", 39, 9, 8), ("PDPTE", 30, 9, 8), ("PDE", 21, 9, 8), ("PTE", 12, 9, 8))
        table = cpu.cr3 & FRAME
    elif cpu.cr4 & CR4_PAE:
        levels = (("PDPTE", 30, 2, 8), ("PDE", 21, 9, 8), ("PTE", 12, 9, 8))  # type: ignore[assignment]
        table = cpu.cr3 & 0xFFFF_FFE0
    else:
        levels = (("PDE", 22, 10, 4), ("PTE", 12, 10, 4))  # type: ignore[assignment]
        table = cpu.cr3 & 0xFFFF_F000
    steps: list[WalkStep] = []
    for level, shift, index_bits, size in levels:
        index = linear >> shift & (1 << index_bits) - 1
        address = table + index * size
        raw = peek_physical(cpu.memory, address & cpu.memory.address_mask, size)
        value = None if raw is None else int.from_bytes(raw, "little")
        if level == "PDPTE" and index_bits == 2:
            value = cpu.pdptes[index]  # the CPU uses the copy it took when CR3 was loaded
        if value is None:
            steps.append(WalkStep(level, address, None, ""))
            return PageWalk(
                linear, tuple(steps), None, f"the {level} lies outside RAM: CR3 or a table is wrong"
            )
        large = shift != 12 and bool(value & PS) and (size == 8 and shift in (21, 30) and index_bits == 9)
        large = large or (size == 4 and shift == 22 and bool(value & PS and cpu.cr4 & CR4_PSE))
        has_rights = level != "PDPTE" or index_bits == 9
        steps.append(WalkStep(level, address, value, _entry_words(value, large, size, has_rights)))
        if not value & P:
            return PageWalk(
                linear, tuple(steps), None, f"{linear:#x} is not mapped: the {level} is not present"
            )
        if value >> PHYSICAL_BITS or value & PS:  # no other entry can have a reserved bit set
            fault = access_verdict(cpu, linear, ACCESS_READ, user=False)
            reserved = fault is not None and bool((fault.error_code or 0) & PF_RESERVED)
            if reserved and fault is not None and f"{level} at {address:#x}" in fault.why:
                why = f"{linear:#x} is not mapped: {fault.why.partition(', ')[2]}"
                return PageWalk(linear, tuple(steps), None, why)
        if large or shift == 12:
            offset = linear & (1 << shift) - 1
            frame = value & FRAME if size == 8 else value & 0xFFFF_F000
            if size == 4 and large:
                frame = value & 0xFFC0_0000 | (value & 0x1F_E000) << 19
            physical = (frame & -(1 << shift) | offset) & cpu.memory.address_mask
            return PageWalk(linear, tuple(steps), physical, f"{linear:#x} is physical {physical:#x}")
        table = value & FRAME if size == 8 else value & 0xFFFF_F000
    raise AssertionError("every walk ends at its last level")


def access_verdict(cpu: Cpu, linear: int, access: int, user: bool) -> PageFault | None:
    """The #PF that an access of this kind (ACCESS_READ ... of isa.mmu) would raise, or None.

    The CPU's own walk answers. It sets no bit, as it leaves no trace while it looks ahead.
    """
    ahead, cpu.looking_ahead = cpu.looking_ahead, True
    try:
        cpu.translate(linear, access, user, smap=bool(cpu.cr4 & CR4_SMAP) and not cpu.ac)
    except PageFault as fault:
        return fault
    except (NotPlain, VmExit):  # an accessed bit would be set; a table outside RAM, which the walk tells
        return None
    finally:
        cpu.looking_ahead = ahead
    return None


def _entry_words(entry: int, large: bool, size: int, has_rights: bool) -> str:
    if not entry & P:
        return "not present"
    if not has_rights:
        return "present"
    words = ["writable" if entry & RW else "read-only", "user" if entry & US else "supervisor"]
    if size == 8 and entry & NX:
        words.append("no-execute")
    if large:
        words.append("large page")
    if entry & A:
        words.append("accessed")
    if large and entry & D:
        words.append("dirty")
    return ", ".join(words)


def peek(cpu: Cpu, linear: int, size: int) -> bytes | None:
    """`size` bytes at a linear address, or None where they are not mapped RAM; no side effects."""
    parts = []
    mask = M64 if cpu.mode64 else M32
    while size > 0:
        linear &= mask
        length = min(size, 0x1000 - (linear & 0xFFF))
        physical = page_walk(cpu, linear).physical
        data = None if physical is None else peek_physical(cpu.memory, physical, length)
        if data is None:
            return None
        parts.append(data)
        linear += length
        size -= length
    return b"".join(parts)


# ---- places and instructions -------------------------------------------------------------------------------


def code_linear(cpu: Cpu, ip: int) -> int:
    """Linear address of CS:`ip`."""
    return ip if cpu.mode64 else cpu.cs.base + ip & M32


def place(cpu: Cpu, ip: int | None = None, symbols: SymbolTable | None = None) -> str:
    """Where the CPU is: `0x7c31`, `f000:e05b` in real mode with a segment, `0x7c31 <name+0x10>`."""
    ip = cpu.rip if ip is None else ip
    segmented = not cpu.protected and cpu.cs.selector
    text = f"{cpu.cs.selector:04x}:{ip:04x}" if segmented else f"{ip:#x}"
    location = None if symbols is None else symbols.lookup(code_linear(cpu, ip))
    return text if location is None else f"{text} <{location}>"


def instruction_at(cpu: Cpu, ip: int) -> tuple[bytes, str]:
    """Bytes and text of the instruction at CS:`ip`; (b"", "...") where it cannot be read."""
    linear = code_linear(cpu, ip)
    raw = peek(cpu, linear, MAX_LENGTH)
    if raw is None:  # the last instruction of the last mapped page
        raw = peek(cpu, linear, 0x1000 - (linear & 0xFFF))
    if not raw:
        return b"", "(the bytes here cannot be read)"
    length = _length(raw, cpu.code_bits)
    return raw[:length], disassemble(raw[:length], cpu.code_bits, ip)


def _length(raw: bytes, bits: int) -> int:
    from iced_x86 import Decoder

    instruction = Decoder(bits, raw[:MAX_LENGTH]).decode()
    return max(1, instruction.len)


def instruction_line(cpu: Cpu, ip: int, raw: bytes, text: str, symbols: SymbolTable | None = None) -> str:
    """`0x7c31              ee                    out dx, al`."""
    return f"{place(cpu, ip, symbols):<18} {raw.hex(' '):<30} {text}"


def met_before(cpu: Cpu, count: int) -> list[Insn]:
    """Up to `count` instructions that end where RIP is, one behind the other, of those the CPU decoded."""
    by_end = {insn.next: insn for insn in cpu.code.values()}
    before: list[Insn] = []
    at = cpu.rip
    while len(before) < count and at in by_end and by_end[at].ip < at:
        insn = by_end[at]
        before.append(insn)
        at = insn.ip
    return before[::-1]


def surroundings(cpu: Cpu, symbols: SymbolTable | None = None) -> list[str]:
    """The instructions around RIP, RIP's marked with `>`.

    Those before it are taken from the CPU's cache of decoded instructions, so they were really executed or
    at least met; where it knows none the list starts at RIP.
    """
    lines = [
        "  "
        + instruction_line(cpu, insn.ip, insn.raw, disassemble(insn.raw, cpu.code_bits, insn.ip), symbols)
        for insn in met_before(cpu, CONTEXT_BEFORE)
    ]
    at = cpu.rip
    for number in range(CONTEXT_AFTER + 1):
        raw, text = instruction_at(cpu, at)
        if number and not any(raw):
            break  # empty memory decodes as ADD [rAX], AL for ever
        lines.append(("  " if number else "> ") + instruction_line(cpu, at, raw, text, symbols))
        if text == "(bad)":
            break
        at += len(raw)
    return lines


# ---- registers ---------------------------------------------------------------------------------------------


def bit_names(value: int, names: Iterable[tuple[int, str]]) -> str:
    """The names of the bits that are set: `PE ET PG`."""
    return " ".join(name for bit, name in names if value >> bit & 1)


def segment_kind(segment: Segment) -> str:
    """`64-bit readable code, DPL 0`."""
    if segment.null:
        return "null"
    raw = segment.type << 40 | segment.s << 44 | segment.l << 53 | segment.db << 54
    return f"{descriptor_kind(Descriptor(segment.selector, 0, raw))}, DPL {segment.dpl}"


def segment_words(segment: Segment) -> str:
    """A segment register with its hidden part."""
    if segment.null:
        return f"{segment.name.upper():<4} {segment.selector:04x}  null"
    return (
        f"{segment.name.upper():<4} {segment.selector:04x}  base {segment.base:#x}  "
        f"limit {segment.limit:#x}  {segment_kind(segment)}"
    )


def register_dump(cpu: Cpu) -> list[str]:
    """General registers, RIP, RFLAGS, segments, control registers and tables, one row a line."""
    wide = cpu.mode64
    digits, count, columns = (16, 16, 3) if wide else (8, 8, 4)
    letter = "R" if wide else "E"
    cells = []
    for name in GPR_NAMES[:count]:
        label = name.upper() if wide else letter + name[1:].upper()
        cells.append(f"{label:<3} {getattr(cpu, name) & (1 << 4 * digits) - 1:0{digits}x}")
    rows = ["  ".join(cells[n : n + columns]) for n in range(0, count, columns)]
    flags = cpu.rflags()
    rows.append(
        f"{letter}IP {cpu.rip:0{digits}x}  {letter}FLAGS {flags:08x} [{bit_names(flags, FLAG_NAMES)}]  "
        f"CPL {cpu.cpl}  {cpu.mode_name()} mode"
    )
    rows += [segment_words(segment) for segment in (*cpu.segments, cpu.ldtr, cpu.tr)]
    rows.append(f"CR0 {cpu.cr0:08x} [{bit_names(cpu.cr0, CR0_NAMES)}]  CR2 {cpu.cr2:x}  CR3 {cpu.cr3:x}")
    rows.append(f"CR4 {cpu.cr4:08x} [{bit_names(cpu.cr4, CR4_NAMES)}]  "
                f"EFER {cpu.efer:x} [{bit_names(cpu.efer, EFER_NAMES)}]")  # fmt: skip
    rows.append(
        f"GDTR base {cpu.gdtr.base:#x} limit {cpu.gdtr.limit:#x}  "
        f"IDTR base {cpu.idtr.base:#x} limit {cpu.idtr.limit:#x}"
    )
    return rows


def registers_dict(cpu: Cpu) -> dict[str, str]:
    """The registers for JSON: hexadecimal texts, because JSON's numbers stop at 2**53."""
    return {
        name: f"{value:#x}" for name, value in snapshot(cpu).items() if not name.startswith(("xmm", "ymm"))
    }


def snapshot(cpu: Cpu) -> dict[str, int]:
    """Every register that an instruction may change, by name; hidden parts of segments as `cs.base` ..."""
    values = {name: getattr(cpu, name) for name in GPR_NAMES}
    values["rip"] = cpu.rip
    values["rflags"] = cpu.rflags()
    for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "xcr0", "dr0", "dr1", "dr2", "dr3", "dr6", "dr7"):
        values[name] = getattr(cpu, name)
    for name in (*SEGMENT_NAMES, "ldtr", "tr"):
        segment = getattr(cpu, name)
        values[name] = segment.selector
        values[f"{name}.base"] = segment.base
        values[f"{name}.limit"] = segment.limit
        values[f"{name}.rights"] = segment.attributes
    for name in ("gdtr", "idtr"):
        table = getattr(cpu, name)
        values[f"{name}.base"] = table.base
        values[f"{name}.limit"] = table.limit
    values["cpl"] = cpu.cpl
    for name in (*XMM_NAMES, *YMM_HIGH_NAMES, "mxcsr"):
        values[name] = getattr(cpu, name)
    fpu = cpu.fpu
    values["fcw"], values["fsw"] = fpu.control, fpu.status_word()
    values.update({f"r{n}.x87": value for n, value in enumerate(fpu.regs)})
    values.update({f"msr {index:#x}": value for index, value in sorted(cpu.msr.items())})
    return values


@dataclass(frozen=True, slots=True)
class Change:
    """One register before and after."""

    name: str
    before: int
    after: int

    def __str__(self) -> str:
        if max(self.before, self.after) < 10:
            return f"{self.name.upper()} {self.before} -> {self.after}"
        return f"{self.name.upper()} {self.before:#x} -> {self.after:#x}"


def changes(before: Mapping[str, int], after: Mapping[str, int]) -> list[Change]:
    """What differs between two snapshots; RFLAGS flag by flag, and the plain step of RIP left out."""
    found = []
    for name in {**before, **after}:
        old, new = before.get(name, 0), after.get(name, 0)
        if old == new or name == "rip":
            continue
        if name == "rflags":
            found += [
                Change(flag, old >> bit & 1, new >> bit & 1)
                for bit, flag in FLAG_NAMES
                if (old ^ new) >> bit & 1
            ]
            if (old ^ new) & 0x3000:
                found.append(Change("IOPL", old >> 12 & 3, new >> 12 & 3))
        else:
            found.append(Change(name, old, new))
    return found


# ---- descriptors and gates ---------------------------------------------------------------------------------


def selector_words(cpu: Cpu, selector: int) -> str:
    """What a selector names, whether the CPU could use it or not."""
    index = selector >> 3
    table, name = (cpu.ldtr, "LDT") if selector & 4 else (cpu.gdtr, "GDT")
    where = f"selector {selector:#06x} = {name} entry {index}"
    if not selector & 0xFFFC:
        return f"selector {selector:#06x} is null"
    if selector & 4 and cpu.ldtr.null:
        return f"{where}: there is no LDT (LDTR is null)"
    if index * 8 + 7 > table.limit:
        room = plural((table.limit + 1) // 8, "descriptor")
        return f"{where}: outside the {name}, whose limit {table.limit:#x} leaves room for {room}"
    raw = peek(cpu, table.base + index * 8, 8)
    if raw is None:
        return f"{where}: at {table.base + index * 8:#x}, which cannot be read"
    return f"{where}: {descriptor_words(int.from_bytes(raw, 'little'))}"


def descriptor_kind(descriptor: Descriptor) -> str:
    """`64-bit readable code`, `busy TSS`."""
    size = ""
    if descriptor.s:
        size = "64-bit " if descriptor.l else "32-bit " if descriptor.db else "16-bit "
    return size + descriptor.what


def descriptor_words(raw: int) -> str:
    """Eight descriptor bytes in words."""
    if raw == 0:
        return "all zeros, an empty entry"
    descriptor = Descriptor(0, 0, raw)
    present = "present" if descriptor.present else "NOT present"
    return (
        f"{raw:#018x}: {descriptor_kind(descriptor)}, base {descriptor.base:#x}, "
        f"limit {descriptor.limit:#x}, DPL {descriptor.dpl}, {present}"
    )


def vector_words(vector: int) -> str:
    """`14 (#PF, page fault)`."""
    name = VECTOR_NAMES.get(vector)
    if name is None:
        return f"{vector:#x}"
    return f"{vector} ({name}, {EXCEPTIONS[name][1]})" if name in EXCEPTIONS else f"{vector} ({name})"


def gate_words(cpu: Cpu, vector: int) -> str:
    """What the interrupt table holds for a vector."""
    real = not cpu.cr0 & CR0_PE
    size = 4 if real else 16 if cpu.efer & EFER_LMA else 8
    at = cpu.idtr.base + vector * size
    what = f"vector {vector_words(vector)}"
    if (vector + 1) * size - 1 > cpu.idtr.limit:
        room = (cpu.idtr.limit + 1) // size
        return f"{what}: outside the table, which has room for {plural(room, 'vector')} of {size} bytes"
    raw = peek(cpu, at, size)
    if raw is None:
        return f"{what}: at {at:#x}, which cannot be read"
    value = int.from_bytes(raw, "little")
    if real:
        return f"{what}: handler {value >> 16:04x}:{value & 0xFFFF:04x}"
    if value == 0:
        return f"{what}: all zeros, an empty gate"
    gate = Descriptor(0, at, value & M64)
    selector, offset = gate_target(value, size)
    present = "present" if gate.present else "NOT present"
    return f"{what}: {gate.what} to {selector:#06x}:{offset:#x}, DPL {gate.dpl}, {present}"


def gate_target(value: int, size: int) -> tuple[int, int]:
    """Selector and offset of a gate of 8 or 16 bytes; 16-bit and task gates have the low half only."""
    offset = value & 0xFFFF | value >> 32 & (0xFFFF_FFFF_FFFF_0000 if size == 16 else 0xFFFF_0000)
    if size == 8 and value >> 40 & 15 in (4, 5, 6, 7):
        offset &= 0xFFFF
    return value >> 16 & 0xFFFF, offset


# ---- the triple fault --------------------------------------------------------------------------------------

_CHAIN_ENTRY = re.compile(r"(#[A-Z]{2})(?:\((0x[0-9a-f]+)\))?")


@dataclass(frozen=True, slots=True)
class TripleFaultReport:
    """Why the CPU shut down: titled paragraphs for people, the same as data for programs."""

    chain: tuple[str, ...]
    sections: tuple[tuple[str, tuple[str, ...]], ...]

    def text(self) -> str:
        """The report as lines of text."""
        lines = []
        for title, rows in self.sections:
            lines.append(title)
            lines += [f"  {row}" for row in rows]
            lines.append("")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, object]:
        """The report for JSON."""
        return {"chain": list(self.chain), "sections": {title: list(rows) for title, rows in self.sections}}


def triple_fault_report(
    cpu: Cpu, reason: TripleFault, symbols: SymbolTable | None = None, recent: Sequence[str] = ()
) -> TripleFaultReport:
    """Take a shut-down CPU apart. `recent` are the last instructions if they were traced."""
    sections: list[tuple[str, tuple[str, ...]]] = [
        ("The guest's CPU shut down: triple fault", tuple(_story(cpu, reason, symbols)))
    ]
    faults = [match for text in reason.chain if (match := _CHAIN_ENTRY.match(text))]
    sections.append(("What to look at first", tuple(_advice(cpu, reason))))
    if recent:
        sections.append(("The last instructions", tuple(recent)))
    sections.append(("Around the instruction that failed", tuple(surroundings(cpu, symbols))))
    if any(match[1] == "#PF" for match in faults):
        sections.append((f"Page walk of CR2 = {cpu.cr2:#x}", tuple(page_walk(cpu, cpu.cr2).lines())))
    tables = [f"IDTR base {cpu.idtr.base:#x}, limit {cpu.idtr.limit:#x}"]
    vectors = [EXCEPTIONS[match[1]][0] for match in faults if match[1] in EXCEPTIONS]
    vectors += [int(match[1], 16) for text in reason.chain if (match := re.match(r"interrupt (0x\w+)", text))]
    tables += [gate_words(cpu, vector) for vector in dict.fromkeys((*vectors, 8))]
    for match in faults:
        code = int(match[2] or "0", 16)
        if match[1] in SELECTOR_FAULTS and code & 0xFFFC and not code & 2:
            tables.append(f"{match[1]}: {selector_words(cpu, code & 0xFFFC)}")
    if cpu.cr0 & CR0_PE:
        tables.append(f"GDTR base {cpu.gdtr.base:#x}, limit {cpu.gdtr.limit:#x}")
        if cpu.cs.selector & 0xFFFC:
            tables.append(f"CS: {selector_words(cpu, cpu.cs.selector)}")
        tables.append(
            segment_words(cpu.tr).replace("TR  ", "TR ", 1) + " (inner and IST stacks come from here)"
        )
    sections.append(("Tables", tuple(dict.fromkeys(tables))))
    sections.append(("Registers", tuple(register_dump(cpu))))
    return TripleFaultReport(reason.chain, tuple(sections))


def _story(cpu: Cpu, reason: TripleFault, symbols: SymbolTable | None) -> list[str]:
    lines = [
        f"at {place(cpu, symbols=symbols)} in {cpu.mode_name()} mode, CPL {cpu.cpl}, "
        f"after {plural(cpu.retired, 'instruction')}"
    ]
    for number, text in enumerate(reason.chain, 1):
        match = _CHAIN_ENTRY.match(text)
        title, _, why = text.partition(": ")
        name = f" ({EXCEPTIONS[match[1]][1]})" if match and match[1] in EXCEPTIONS else ""
        meanwhile = "" if number == 1 or (match and match[1] == "#DF") else " while that was delivered"
        lines.append(f"{number}. {title}{name}{meanwhile}" + (f", because: {why}" if why else ""))
    lines.append(
        "A fault while a fault is delivered is a double fault, #DF; one while #DF is delivered is the end."
    )
    return lines


def _advice(cpu: Cpu, reason: TripleFault) -> list[str]:
    chain = " | ".join(reason.chain)
    advice = []
    first = _CHAIN_ENTRY.match(reason.chain[0]) if reason.chain else None
    if "outside the IDT limit" in chain:
        advice.append(
            "The interrupt table is too small for the fault: no LIDT was executed yet, or its limit is "
            "wrong. Set up the IDT before anything can fault."
        )
    elif (
        re.search(r"gate of vector \S+ not present", chain)
        or "not a 64-bit gate" in chain
        or ", not a gate" in chain
    ):
        advice.append(
            "The interrupt table has no usable gate for the fault: fill in the entries shown under Tables."
        )
    if "handler is not a 64-bit code segment" in chain:
        advice.append(
            "In long mode handlers are 64-bit code: the gate's selector must name a segment with L set."
        )
    if "#PF" in chain and (cpu.rsp - cpu.cr2) & M64 <= STACK_NEIGHBOURHOOD and first is not None:
        advice.append(
            "CR2 lies right below RSP: the fault could not be delivered because the stack is not mapped. "
            "Map it, or give #DF a stack of its own (IST)."
        )
    if first is not None and first[1] == "#UD" and "on purpose" in reason.chain[0]:
        advice.append(
            "The guest executed UD2: compilers put it where code must never come, kernels where they give up."
        )
    elif first is not None and first[1] == "#UD":
        advice.append(
            "The first fault is an invalid opcode: RIP may have run into data; see the bytes below."
        )
    if first is not None and first[1] == "#PF" and cpu.cr2 == code_linear(cpu, cpu.rip):
        advice.append(
            "CR2 is RIP itself: the guest jumped to an address that is not mapped or not executable."
        )
    return advice or ["The first entry of the chain is the cause; the others followed from it."]
