"""A mix of accesses as a guest: from the rows of a workload to a loop in assembly text. It runs nothing.

The loop is endless: whoever runs it stops it after so many instructions. Registers that hold an address, a
port or a register number are loaded before the loop where the mix allows it, so that a loop of one OUT is
OUT and JMP and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

SOURCE: Final = 0x4_0000  # what OUTS reads
TARGET: Final = 0x6_0000  # what INS writes
STRING_BYTES: Final = TARGET - SOURCE  # of one OUTS or INS
MEMORY_LEAST: Final = TARGET + STRING_BYTES
BODY_MAX: Final = 4096  # instructions of one round of the loop, elements not counted
POINTERS: Final = ("rbx", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")

PORT_KINDS: Final = ("io_read", "io_write", "io_read_string", "io_write_string")
MEMORY_KINDS: Final = ("mmio_read", "mmio_write", "mmio_modify")
REGISTER_KINDS: Final = ("sys_reg_read", "sys_reg_write")
STRING_KINDS: Final = ("io_read_string", "io_write_string")
ACCESS_KINDS: Final = (*PORT_KINDS, *MEMORY_KINDS, *REGISTER_KINDS, "hypercall")

_ACCUMULATOR: Final = {1: "al", 2: "ax", 4: "eax", 8: "rax"}
_SIZE_WORD: Final = {1: "byte", 2: "word", 4: "dword", 8: "qword"}
_STRING: Final = {1: "b", 2: "w", 4: "d"}


@dataclass(frozen=True, slots=True)
class Access:
    """One row of a mix: `kind` (of ACCESS_KINDS) at `address`, once for each of `widths` (bytes), all of it
    `times` times in a row. A string access has `elements`. `mmio_modify` is a read and a write of one
    instruction."""

    kind: str
    address: int = 0
    widths: tuple[int, ...] = (1,)
    times: int = 1
    elements: int = 1

    @property
    def length(self) -> int:
        """Accesses that stand in the loop for this row."""
        return len(self.widths) * self.times


@dataclass(frozen=True, slots=True)
class MixGuest:
    """`text` is 64-bit code; `before` the instructions ahead of the loop, `round` those of one round, where
    each element of a string access counts as one, as it does in the machine."""

    text: str
    before: int
    round: int


def guest_of(mix: Sequence[Access]) -> MixGuest:
    """The guest of a mix. At most `len(POINTERS)` different memory addresses and BODY_MAX instructions; the
    reader of a workload has checked that."""
    pointers = dict(zip(addresses_of(mix), POINTERS, strict=False))
    before = [f"mov {register}, {address:#x}" for address, register in pointers.items()]
    if any(access.kind in STRING_KINDS for access in mix):
        before.append("cld")
    held: dict[str, int] = {}  # register -> what it holds at the head of the loop, in every round
    for register, wanted in (("edx", _ports(mix)), ("ecx", _numbers(mix))):
        if len(wanted) == 1 and not any(register in _clobbered(access.kind) for access in mix):
            held[register] = wanted[0]
            before.append(f"mov {register}, {wanted[0]:#x}")
    body: list[str] = []
    elements = 0
    current = dict(held)
    for access in mix:
        for _ in range(access.times):
            for width in access.widths:
                lines, repeated = _one(access, width, pointers, current)
                body += lines
                elements += repeated
    text = "\n".join(["        " + line for line in before] + ["loop:"])
    text += "".join(f"\n        {line}" for line in (*body, "jmp loop"))
    strings = sum(line.startswith("rep ") for line in body)
    return MixGuest(text + "\n", len(before), len(body) + 1 - strings + elements)


def addresses_of(mix: Iterable[Access]) -> list[int]:
    """The different memory addresses of a mix, in order."""
    return list(dict.fromkeys(access.address for access in mix if access.kind in MEMORY_KINDS))


def _ports(mix: Iterable[Access]) -> list[int]:
    return list(dict.fromkeys(access.address for access in mix if access.kind in PORT_KINDS))


def _numbers(mix: Iterable[Access]) -> list[int]:
    return list(dict.fromkeys(access.address for access in mix if access.kind in REGISTER_KINDS))


def _clobbered(kind: str) -> tuple[str, ...]:
    """What an access leaves changed of the registers that others rely on."""
    if kind == "sys_reg_read":
        return ("edx",)
    return ("ecx",) if kind in STRING_KINDS else ()


def _one(
    access: Access, width: int, pointers: dict[int, str], current: dict[str, int]
) -> tuple[list[str], int]:
    """The lines of one access and its elements, if it repeats; `current` is what EDX and ECX hold."""
    lines: list[str] = []

    def hold(register: str, value: int) -> None:
        if current.get(register) != value:
            lines.append(f"mov {register}, {value:#x}")
            current[register] = value

    accumulator, elements = _ACCUMULATOR[width], 0
    if access.kind in PORT_KINDS:
        hold("edx", access.address)
    elif access.kind in REGISTER_KINDS:
        hold("ecx", access.address)
    match access.kind:
        case "io_read":
            lines.append(f"in {accumulator}, dx")
        case "io_write":
            lines.append(f"out dx, {accumulator}")
        case "io_read_string" | "io_write_string":
            into = access.kind == "io_read_string"
            lines.append(f"mov edi, {TARGET:#x}" if into else f"mov esi, {SOURCE:#x}")
            lines.append(f"mov ecx, {access.elements:#x}")
            lines.append(f"rep {'ins' if into else 'outs'}{_STRING[width]}")
            elements = access.elements
        case "mmio_read":
            lines.append(f"mov {accumulator}, [{pointers[access.address]}]")
        case "mmio_write":
            lines.append(f"mov [{pointers[access.address]}], {accumulator}")
        case "mmio_modify":
            lines.append(f"add {_SIZE_WORD[width]} [{pointers[access.address]}], 1")
        case "sys_reg_read":
            lines.append("rdmsr")
        case "sys_reg_write":
            lines.append("wrmsr")
        case _:
            lines.append("vmcall")
    for register in _clobbered(access.kind):
        current.pop(register, None)
    return lines, elements
