"""Recorded cases: what the host CPU answered, kept so that any machine can check it. It runs no host code.

A file is gzip of JSON lines, sorted keys, ASCII. The first line is the header:

    {"format": "pysim-vm cases", "version": 1, "family": general | vector | avx | x87, "cpu": name,
     "cases": number of lines that follow, "sha256": of the bytes that follow the header line}

and each line after it one case:

    form      iced's Code name                      bits   64, 32 or 16: size of the code segment
    code      the instruction's bytes, hex          in     the state before, as it differs from `background`
    out       the state after, as it differs from the state before
    signal    Linux's number for the fault, absent for none        taken   1 where a branch was taken
    undefined RFLAGS bits that the manual leaves undefined, hex, absent for none

A state maps a register's name to its value in hex, and "memory" to pairs of offset and bytes in the window.
Names, window and addresses are the family's (`tests/oracles/families.py`).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from iced_x86 import Decoder, InstructionInfoFactory, MemorySizeExt, OpAccess, Register, RegisterExt

from tests.oracles import native_vector
from tests.oracles.families import (
    FAMILIES,
    GENERAL_NAMES,
    VECTOR_NAMES,
    X87_NAMES,
    Family,
    Result,
    Sample,
    State,
    differences,
)
from tests.oracles.general_model import initial_segments
from tests.oracles.native import BASES, CODE, GPR, SEGMENTS

FORMAT, VERSION = "pysim-vm cases", 1
LARGEST_FILE, LARGEST_TEXT = 1 << 20, 1 << 25  # bytes, compressed and not
NAMES = {
    "general": GENERAL_NAMES, "vector": VECTOR_NAMES, "avx": VECTOR_NAMES, "image": VECTOR_NAMES,
    "x87": X87_NAMES,
}  # fmt: skip
FIXED = {"flags": 0x202, "control": 0x37F, "mxcsr": 0x1F80}
ANYWHERE = 1024  # a repeated string instruction, a bit offset or an image may reach the whole window
M64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Recorded:
    """A sample, what the host made of it, and the RFLAGS bits not to compare."""

    sample: Sample
    result: Result
    undefined: int


# ---- the state that goes without saying --------------------------------------------------------------------


@cache
def background(family: str, bits: int) -> State:
    """Registers and memory of a case where it does not say otherwise: every one different."""
    registers = {}
    for name in NAMES[family]:
        if name in GPR:
            width = 8 if bits == 64 else 4
            registers[name] = int.from_bytes(bytes([0x11 + GPR.index(name)] * width), "little")
        elif name.startswith("xmm"):
            registers[name] = int.from_bytes(bytes([0x31 + int(name[3:])] * 16), "little")
        elif name.startswith("ymmh"):
            registers[name] = int.from_bytes(bytes([0x51 + int(name[4:])] * 16), "little")
        elif name.startswith("st") and name != "status":
            registers[name] = 0x3FFF << 64 | 1 << 63 | int(name[2:])
        else:
            registers[name] = FIXED.get(name, 0)
    if family == "general":
        registers.update(zip((*SEGMENTS, "fsbase", "gsbase"), initial_segments(bits), strict=True))
    if family == "x87":
        registers["rax"] = registers["flags"] = 0
    size = FAMILIES[family].memory_size
    return State(registers, bytes((37 * n + 11) & 0xFF for n in range(size)))


def _packed(state: State, base: State) -> dict[str, Any]:
    """`state` as it differs from `base`."""
    packed: dict[str, Any] = {
        name: f"{value:x}" for name, value in state.registers.items() if value != base.registers[name]
    }
    spans, start = [], None
    for n in range(len(state.memory) + 1):
        differs = n < len(state.memory) and state.memory[n] != base.memory[n]
        if differs and start is None:
            start = n
        elif not differs and start is not None:
            spans.append([start, state.memory[start:n].hex()])
            start = None
    if spans:
        packed["memory"] = spans
    return packed


def _unpacked(packed: dict[str, Any], base: State) -> State:
    registers, memory = dict(base.registers), bytearray(base.memory)
    for name, value in packed.items():
        if name == "memory":
            for at, text in value:
                raw = bytes.fromhex(text)
                memory[at : at + len(raw)] = raw
        elif name in registers:
            registers[name] = int(value, 16)
        else:
            raise ValueError(f"there is no register {name!r}")
    if len(memory) != len(base.memory):
        raise ValueError("memory outside the window")
    return State(registers, bytes(memory))


def to_line(family: str, case: Recorded) -> str:
    """One case as a line of JSON."""
    sample, result = case.sample, case.result
    line: dict[str, Any] = {
        "form": sample.form,
        "bits": sample.bits,
        "code": sample.code.hex(),
        "in": _packed(sample.state, background(family, sample.bits)),
        "out": _packed(result.state, sample.state),
    }
    if result.signal:
        line["signal"] = result.signal
    if result.taken:
        line["taken"] = 1
    if case.undefined:
        line["undefined"] = f"{case.undefined:x}"
    return json.dumps(line, sort_keys=True, separators=(",", ":"))


def from_line(family: str, text: str) -> Recorded:
    """The case of a line. ValueError or KeyError if it is none."""
    line = json.loads(text)
    before = _unpacked(line["in"], background(family, line["bits"]))
    sample = Sample(line["form"], line["bits"], bytes.fromhex(line["code"]), before)
    result = Result(line.get("signal", 0), bool(line.get("taken")), _unpacked(line["out"], before))
    return Recorded(sample, result, int(line.get("undefined", "0"), 16))


# ---- files -------------------------------------------------------------------------------------------------


def write(path: Path, family: str, cpu: str, cases: Iterable[Recorded]) -> int:
    """Write a file of cases; its size in bytes. The same cases give the same bytes."""
    lines = [to_line(family, case) for case in cases]
    body = "".join(f"{line}\n" for line in lines).encode("ascii")
    header = {"format": FORMAT, "version": VERSION, "family": family, "cpu": cpu, "cases": len(lines),
              "sha256": hashlib.sha256(body).hexdigest()}  # fmt: skip
    packed = gzip.compress(json.dumps(header, sort_keys=True).encode("ascii") + b"\n" + body, 9, mtime=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed)
    return len(packed)


def read(path: Path) -> tuple[str, list[Recorded]]:
    """Family and cases of a file. ValueError, in one sentence, if it is damaged or of another version."""
    packed = path.read_bytes()
    if len(packed) > LARGEST_FILE:
        raise ValueError(f"{path}: {len(packed)} bytes, more than {LARGEST_FILE}; record fewer cases")
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        text = unpacker.decompress(packed, LARGEST_TEXT)
        head, _, body = text.partition(b"\n")
        header = json.loads(head)
    except (zlib.error, ValueError) as error:
        raise ValueError(f"{path}: not a file of recorded cases ({error}); record it again") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{path}: not a file of recorded cases; record it again")
    if header["version"] != VERSION:
        raise ValueError(f"{path}: version {header['version']}, this reads {VERSION}; record it again")
    if not unpacker.eof or hashlib.sha256(body).hexdigest() != header["sha256"]:
        raise ValueError(f"{path}: the checksum does not fit the cases; fetch the file again")
    family = header["family"]
    try:
        cases = [from_line(family, line) for line in body.decode("ascii").splitlines()]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: a case cannot be read ({error}); record it again") from None
    if len(cases) != header["cases"]:
        raise ValueError(f"{path}: {len(cases)} cases, the header says {header['cases']}; fetch it again")
    return family, cases


def replay(family: Family, case: Recorded) -> list[str]:
    """What this CPU does differently from the recorded host; empty where they agree."""
    return differences(family, case.sample, case.result, case.undefined)


def replay_line(family: str, line: str) -> list[str]:
    """`replay` of one line of a file, for a test that names a single case."""
    return replay(FAMILIES[family](), from_line(family, line))


# ---- what an instruction needs of a state ------------------------------------------------------------------

_INFO = InstructionInfoFactory()
_REGISTER_NAMES = {value: name for name, value in vars(Register).items() if isinstance(value, int)}


@dataclass(frozen=True, slots=True)
class Touched:
    """Registers and window offsets that iced's table gives an instruction, for a state."""

    read: frozenset[str]
    written: frozenset[str]  # also those written under a condition
    read_at: frozenset[int]
    written_at: frozenset[int]


def _reads(access: int) -> bool:
    return access in (OpAccess.READ, OpAccess.COND_READ, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE)


def _writes(access: int) -> bool:
    return access in (OpAccess.WRITE, OpAccess.COND_WRITE, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE)


def _names_of(register: Any, state: State) -> list[str]:
    """The state's names of a register: full general registers, XMM, and ST for MMX (by TOP)."""
    name = _REGISTER_NAMES[RegisterExt.full_register(register)].lower()
    plain = _REGISTER_NAMES[register].lower()
    if plain.startswith("mm"):
        return [f"st{int(plain[2:]) - (state.registers['status'] >> 11) & 7}"]
    if name.startswith("zmm"):
        return ["xmm" + name[3:], "ymmh" + name[3:]]
    return [name, f"{name}base"] if name in ("fs", "gs") else [name]


def _value_of(register: Any, state: State) -> int:
    """The value of a general register of any width."""
    if register == Register.NONE:
        return 0
    value = state.registers.get(_REGISTER_NAMES[RegisterExt.full_register(register)].lower(), 0)
    if register in (Register.AH, Register.CH, Register.DH, Register.BH):
        return value >> 8 & 0xFF
    return value & (1 << 8 * RegisterExt.size(register)) - 1


def segment_base(family: str, bits: int, name: str) -> int:
    """The base of a segment register as the family's cases have it."""
    if family == "general":
        return BASES[bits][name] if bits != 64 or name in ("fs", "gs") else 0
    return {"fs": native_vector.FS_BASE, "gs": native_vector.GS_BASE}.get(name, 0)


def touched(family: Family, sample: Sample) -> Touched:
    """What iced's InstructionInfo says that the instruction of a sample uses."""
    at = CODE if family.name == "general" else native_vector.CODE
    instruction = Decoder(sample.bits, sample.code, ip=at).decode()
    info = _INFO.info(instruction)
    state = sample.state
    if family.name == "x87":
        state = replace(state, registers={**state.registers, "rdi": family.memory_at})
    read: set[str] = set()
    written: set[str] = set()
    for used in info.used_registers():
        names = _names_of(used.register, state)
        if _reads(used.access):
            read.update(names)
        if _writes(used.access):
            written.update(names)
            if sample.bits != 64 or RegisterExt.size(used.register) < 4:  # the rest of it stays
                read.update(names)
    if sample.form.startswith(("WRFSBASE", "WRGSBASE")):  # the table knows no bases
        written.add(f"{sample.form[2:4].lower()}base")
    read_at: set[int] = set()
    written_at: set[int] = set()
    for use in info.used_memory():
        offset = _value_of(use.base, state) + _value_of(use.index, state) * use.scale + use.displacement
        # CodeSize values of an address are 1, 2, 3 for 16, 32 and 64 bits
        offset &= {1: 0xFFFF, 2: 0xFFFF_FFFF}.get(use.address_size, M64)
        name = _REGISTER_NAMES[use.segment].lower()
        base = segment_base(family.name, sample.bits, name)
        first = (base + offset & M64) - family.memory_at
        size = MemorySizeExt.size(use.memory_size)
        low, high = (first, first + size) if size else (first - ANYWHERE, first + ANYWHERE)
        bit_offset = sample.form.startswith(("BT_", "BTS_", "BTR_", "BTC_")) and "IMM8" not in sample.form
        if instruction.has_rep_prefix or instruction.has_repne_prefix or bit_offset or instruction.is_vsib:
            low, high = first - ANYWHERE, first + ANYWHERE
        span = range(max(low, 0), min(high, family.memory_size))
        if _reads(use.access):
            read_at.update(span)
        if _writes(use.access):
            written_at.update(span)
    return Touched(frozenset(read), frozenset(written), frozenset(read_at), frozenset(written_at))


def tidied(family: Family, sample: Sample) -> Sample:
    """The sample with everything at the background that its instruction has no use for."""
    use = touched(family, sample)
    base = background(family.name, sample.bits)
    keep = use.read | use.written | {"rsp"}
    if family.name == "x87":
        keep |= {"st0", "st1", "st7"}
    registers = {
        name: value
        if name in keep or (name[:2] not in ("st", "xm", "ym") and name not in GPR) or name == "status"
        else base.registers[name]
        for name, value in sample.state.registers.items()
    }
    memory = bytes(
        byte if n in use.read_at or n in use.written_at else base.memory[n]
        for n, byte in enumerate(sample.state.memory)
    )
    return replace(sample, state=State(registers, memory))
