"""ELF loader: the program headers of an ELF32 or ELF64 x86 file, and bare-metal programs made of them.

No relocation and no dynamic linking: a program runs at the physical addresses it was linked for.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from io import BytesIO
from typing import Final

from elftools.common.exceptions import ELFError
from elftools.construct.core import ConstructError
from elftools.elf.elffile import ELFFile

from pysim_vm.boot_plan import (
    BootPlan,
    Placement,
    RamMap,
    long_start,
    protected_start,
)
from pysim_vm.errors import LoadError
from pysim_vm.layout import FOUR_GIB
from pysim_vm.symbols import SymbolTable

ELF_MAGIC: Final = b"\x7fELF"
SEGMENT_COUNT_MAX: Final = 4096  # programs have a handful; the format allows 65,535
NOTE_COUNT_MAX: Final = 4096

EM_386: Final = 3
EM_X86_64: Final = 62
_MACHINE_NAMES: Final = {
    2: "SPARC",
    8: "MIPS",
    20: "PowerPC",
    21: "PowerPC64",
    22: "S/390",
    40: "ARM",
    183: "AArch64",
    243: "RISC-V",
    258: "LoongArch",
}
_EI_CLASS: Final = 4
_EI_DATA: Final = 5
_ELFCLASS32: Final = 1
_ELFCLASS64: Final = 2
_ELFDATA2LSB: Final = 1
_E_MACHINE: Final = 18
_EHDR_SIZE: Final = {_ELFCLASS32: 52, _ELFCLASS64: 64}
_PHDR_SIZE: Final = {_ELFCLASS32: 32, _ELFCLASS64: 56}

XEN_NOTE_PHYS32_ENTRY: Final = 18  # XEN_ELFNOTE_PHYS32_ENTRY: where PVH enters
_NOTE_HEADER: Final = struct.Struct("<III")


@dataclass(frozen=True, slots=True)
class ElfSegment:
    """One PT_LOAD: `data` goes to `paddr`, and zeros follow up to `memory_size` bytes."""

    paddr: int
    vaddr: int
    memory_size: int
    data: bytes

    @property
    def end(self) -> int:
        """Physical address behind the last byte."""
        return self.paddr + self.memory_size


@dataclass(frozen=True, slots=True)
class ElfImage:
    """The loadable part of an x86 ELF file, checked against the file's size and against itself."""

    name: str
    is_64_bit: bool
    entry: int
    segments: tuple[ElfSegment, ...]
    pvh_entry: int | None

    @property
    def low(self) -> int:
        """Lowest physical address."""
        return min(segment.paddr for segment in self.segments)

    @property
    def end(self) -> int:
        """Physical address behind the highest byte."""
        return max(segment.end for segment in self.segments)

    @property
    def physical_entry(self) -> int:
        """The entry point as a physical address.

        A linker that separates virtual from physical addresses leaves a virtual entry point; like GRUB, the
        segment whose virtual range holds it says where that is. An entry in no such range is physical
        already.
        """
        for segment in self.segments:
            if segment.vaddr <= self.entry < segment.vaddr + segment.memory_size:
                return self.entry - segment.vaddr + segment.paddr
        return self.entry

    def place(self, placement: Placement) -> None:
        """Writes every segment into a plan. Raises LoadError for overlaps and addresses outside RAM."""
        for number, segment in enumerate(self.segments):
            placement.write(f"segment {number}", segment.paddr, segment.data, segment.memory_size)


def parse_elf(data: bytes, name: str) -> ElfImage:
    """Reads the program headers of an x86 ELF executable.

    Raises LoadError for another machine, byte order or kind of file, for a truncated file and for segments
    that do not fit into it.
    """
    if not data.startswith(ELF_MAGIC):
        raise LoadError(f"{name} is no ELF file (it does not start with 7f 45 4c 46); name another loader")
    elf_class = data[_EI_CLASS] if len(data) > _EI_CLASS else 0
    if elf_class not in _EHDR_SIZE or len(data) < _EHDR_SIZE[elf_class]:
        raise LoadError(
            f"{name}: the ELF header of {len(data)} bytes is truncated or damaged; build it again"
        )
    little = data[_EI_DATA] == _ELFDATA2LSB
    machine = int.from_bytes(data[_E_MACHINE : _E_MACHINE + 2], "little" if little else "big")
    if machine not in (EM_386, EM_X86_64):
        owner = _MACHINE_NAMES.get(machine, f"machine {machine}")
        raise LoadError(f"{name} is an ELF file for {owner}, not for x86; build it for x86-64")
    if not little or (machine == EM_386 and elf_class == _ELFCLASS64):
        raise LoadError(f"{name}: the ELF header contradicts itself (x86 is little-endian, i386 32-bit)")
    try:
        return _read_elf(data, name, elf_class, machine == EM_X86_64)
    except (ELFError, ConstructError, struct.error, OverflowError) as error:
        raise LoadError(f"{name}: the ELF headers cannot be read ({error}); the file is damaged") from error


def _read_elf(data: bytes, name: str, elf_class: int, is_64_bit: bool) -> ElfImage:
    elf = ELFFile(BytesIO(data))
    kind = elf.header["e_type"]
    if kind == "ET_REL":
        raise LoadError(f"{name} is an object file, not a program; link it first")
    if kind not in ("ET_EXEC", "ET_DYN"):
        raise LoadError(f"{name} is an ELF file of type {kind}, not a program; name an executable")
    count = elf.header["e_phnum"]
    if not 0 < count <= SEGMENT_COUNT_MAX:
        raise LoadError(
            f"{name} has {count} ELF program headers, expected 1 to {SEGMENT_COUNT_MAX}; link it as a program"
        )
    if elf.header["e_phentsize"] < _PHDR_SIZE[elf_class]:
        raise LoadError(f"{name}: ELF program headers of {elf.header['e_phentsize']} bytes are too short")
    segments = []
    pvh_entry = None
    for number in range(count):
        # Read through the header alone: building pyelftools' segment objects follows pointers of the file.
        header = elf._get_segment_header(number)
        kind, size = header["p_type"], header["p_filesz"]
        if kind == "PT_INTERP":
            raise LoadError(f"{name} is dynamically linked; link it with -static -no-pie for bare metal")
        if kind not in ("PT_LOAD", "PT_NOTE"):
            continue
        start = header["p_offset"]
        if start + size > len(data):
            raise LoadError(
                f"{name}: ELF segment {number} at file offset {start:#x} of {size:#x} bytes ends behind the "
                f"file's {len(data):#x} bytes; the file is truncated"
            )
        contents = data[start : start + size]
        if kind == "PT_NOTE":
            pvh_entry = pvh_entry or _pvh_entry(contents)
            continue
        if size > header["p_memsz"]:
            raise LoadError(f"{name}: ELF segment {number} is larger in the file than in RAM; link it again")
        if header["p_memsz"]:
            segments.append(ElfSegment(header["p_paddr"], header["p_vaddr"], header["p_memsz"], contents))
    if not segments:
        raise LoadError(f"{name} has no loadable ELF segment; link it as a program")
    return ElfImage(name, is_64_bit, elf.header["e_entry"], tuple(segments), pvh_entry)


def _pvh_entry(notes: bytes) -> int | None:
    """The address in the Xen note PHYS32_ENTRY, or None. Notes that do not parse end the search."""
    at = 0
    for _ in range(NOTE_COUNT_MAX):
        if at + _NOTE_HEADER.size > len(notes):
            return None
        name_size, desc_size, kind = _NOTE_HEADER.unpack_from(notes, at)
        name_at = at + _NOTE_HEADER.size
        desc_at = name_at + (name_size + 3) // 4 * 4
        at = desc_at + (desc_size + 3) // 4 * 4
        if (
            kind == XEN_NOTE_PHYS32_ENTRY
            and notes[name_at : name_at + name_size] == b"Xen\0"
            and desc_size in (4, 8)
            and desc_at + desc_size <= len(notes)
        ):
            return int.from_bytes(notes[desc_at : desc_at + desc_size], "little")
    return None


def load_elf(data: bytes, ram: RamMap, *, name: str = "ELF file") -> BootPlan:
    """A bare-metal program: 64-bit mode for x86-64 (4 GiB mapped, SSE on), flat protected mode for i386.

    The stack pointer is valid, interrupts are off, all other registers are zero. Raises LoadError.
    """
    image = parse_elf(data, name)
    entry = image.physical_entry
    if not any(segment.paddr <= entry < segment.end for segment in image.segments):
        raise LoadError(f"{name}: the entry point {entry:#x} lies in no segment; link it with -e SYMBOL")
    if entry >= FOUR_GIB:
        raise LoadError(f"{name}: the entry point {entry:#x} lies above the mapped 4 GiB; link it lower")
    placement = Placement(ram, name)
    image.place(placement)
    if image.is_64_bit:
        start = long_start(placement, entry, sse=True)
        bits = "64-bit"
    else:
        start = protected_start(placement, entry, stack=True)
        bits = "32-bit protected"
    return BootPlan(
        protocol="elf",
        description=(
            f"{name}: ELF program, {len(image.segments)} segment(s) at {image.low:#x}-{image.end - 1:#x}, "
            f"entered at {entry:#x} in {bits} mode."
        ),
        start=start,
        writes=placement.writes,
        clears=tuple(placement.clears),
        symbols=SymbolTable.from_elf(data, name),
    )
