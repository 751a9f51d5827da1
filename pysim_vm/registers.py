"""A vCPU's registers by name, for people and tests. Reading and writing them executes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from isa.cpu import Cpu
from isa.state import GPR_NAMES, SEGMENT_NAMES, XMM_NAMES, YMM_HIGH_NAMES

_WHOLE = frozenset((*GPR_NAMES, *XMM_NAMES, *YMM_HIGH_NAMES, "rip", "mxcsr"))
_CONTROL = frozenset(
    ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "xcr0", "dr0", "dr1", "dr2", "dr3", "dr6", "dr7")
)
_FLAG_BITS = {
    "cf": 0, "pf": 2, "af": 4, "zf": 6, "sf": 7, "tf": 8, "if_": 9, "df": 10, "of": 11, "nt": 14, "rf": 16,
    "vm": 17, "ac": 18, "vif": 19, "vip": 20, "id": 21,
}  # fmt: skip


def _parts() -> dict[str, tuple[str, int, int]]:
    """Names of partial registers: name -> (whole register, shift, width in bits)."""
    parts: dict[str, tuple[str, int, int]] = {}
    for number, whole in enumerate(GPR_NAMES):
        if number < 8:
            short = whole[1:]
            parts["e" + short] = (whole, 0, 32)
            parts[short] = (whole, 0, 16)
            if number < 4:
                parts[short[0] + "l"] = (whole, 0, 8)
                parts[short[0] + "h"] = (whole, 8, 8)
            else:
                parts[short + "l"] = (whole, 0, 8)
        else:
            parts[whole + "d"] = (whole, 0, 32)
            parts[whole + "w"] = (whole, 0, 16)
            parts[whole + "b"] = (whole, 0, 8)
    parts["eip"] = ("rip", 0, 32)
    parts["ip"] = ("rip", 0, 16)
    return parts


_PARTS = _parts()


class Registers:
    """`regs.rax`, `regs["xmm0"]`, `regs.al = 3`, `regs.rflags`, `regs.zf`, `regs.cs` (a selector).

    A write to a 32-bit part zero-extends, as the CPU does; to an 8- or 16-bit part it keeps the rest. Writing
    RIP gives up an instruction that waits for an answer. Writing a selector sets only the visible part; to
    load a segment, let the guest do it or use `vcpu.cpu`.
    """

    __slots__ = ("_cpu",)
    _cpu: Cpu

    def __init__(self, cpu: Cpu) -> None:
        object.__setattr__(self, "_cpu", cpu)

    def __getitem__(self, name: str) -> int:
        cpu = self._cpu
        name = name.lower()
        if name in _WHOLE or name in _CONTROL:
            value: int = getattr(cpu, name)
            return value
        if name in _PARTS:
            whole, shift, bits = _PARTS[name]
            part: int = getattr(cpu, whole) >> shift & (1 << bits) - 1
            return part
        if name in ("rflags", "eflags", "flags"):
            return cpu.rflags()
        if name in _FLAG_BITS:
            return cpu.rflags() >> _FLAG_BITS[name] & 1
        if name == "iopl":
            return cpu.iopl
        if name in SEGMENT_NAMES or name in ("ldtr", "tr"):
            selector: int = getattr(cpu, name).selector
            return selector
        if name.endswith("_base") and name[:-5] in (*SEGMENT_NAMES, "ldtr", "tr", "gdtr", "idtr"):
            base: int = getattr(cpu, name[:-5]).base
            return base
        if name.startswith("ymm") and name[3:].isdigit() and int(name[3:]) < 16:
            low: int = getattr(cpu, "xmm" + name[3:])
            return low | int(getattr(cpu, "ymmh" + name[3:])) << 128
        raise KeyError(f"no register {name!r}; try rax, eax, al, xmm0, rflags, cs, cr3, gdtr_base")

    def __setitem__(self, name: str, value: int) -> None:
        cpu = self._cpu
        name = name.lower()
        self[name]  # KeyError for an unknown name
        cpu.request_attention()  # a device may do it while it answers: the instruction starts again with them
        if name in _WHOLE:
            bits = 128 if "mm" in name else 64
            setattr(cpu, name, value & (1 << bits) - 1)
            if name == "rip":
                self._left_instruction()
        elif name in _PARTS:
            whole, shift, bits = _PARTS[name]
            mask = (1 << bits) - 1
            old = 0 if bits == 32 else getattr(cpu, whole) & ~(mask << shift)
            setattr(cpu, whole, old | (value & mask) << shift)
            if whole == "rip":
                self._left_instruction()
        elif name in ("rflags", "eflags", "flags"):
            cpu.set_rflags(value)
        elif name in _FLAG_BITS:
            bit = 1 << _FLAG_BITS[name]
            cpu.set_rflags(cpu.rflags() & ~bit | (bit if value else 0))
        elif name == "iopl":
            cpu.set_rflags(cpu.rflags() & ~0x3000 | (value & 3) << 12)
        elif name in _CONTROL:
            setattr(cpu, name, value & (1 << 64) - 1)
            cpu.flush_tlb()
            cpu.update_mode()
            cpu.request_attention()
        elif name in SEGMENT_NAMES or name in ("ldtr", "tr"):
            getattr(cpu, name).selector = value & 0xFFFF
        elif name.startswith("ymm"):
            setattr(cpu, "xmm" + name[3:], value & (1 << 128) - 1)
            setattr(cpu, "ymmh" + name[3:], value >> 128 & (1 << 128) - 1)
        else:
            raise KeyError(f"register {name!r} cannot be written this way; use vcpu.cpu")

    def _left_instruction(self) -> None:
        """RIP was moved: what the VM answered to the instruction there is not for the next one."""
        self._cpu.forget_answers()

    def __getattr__(self, name: str) -> int:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(error.args[0]) from None

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            self[name] = value
        except KeyError as error:
            raise AttributeError(error.args[0]) from None

    def __iter__(self) -> Iterator[str]:
        return iter((*GPR_NAMES, "rip", "rflags"))

    def as_dict(self) -> dict[str, int]:
        """The general registers, RIP and RFLAGS."""
        return {name: self[name] for name in self}

    def _repr_html_(self) -> str:
        from pysim_vm.display.registers import RegisterView

        return RegisterView.of(self._cpu)._repr_html_()

    def __repr__(self) -> str:
        rows = [f"{name:>6} {self[name]:016x}" for name in self]
        return "\n".join("  ".join(rows[n : n + 3]) for n in range(0, len(rows), 3))
