"""Who wants what twice: ranges, interrupt lines and the IVC range of a configuration. It reads no TOML."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from devices.contract import EmulatedDeviceConfig, EmulatedDeviceType
from pysim_vm.axtypes import VM_ASPACE_SIZE, VmMemMappingType
from pysim_vm.config.model import PassThroughDeviceConfig, VirtualDeviceConfig, VmMemConfig
from pysim_vm.config.problems import Problems, show, span, where
from pysim_vm.config.table import Table
from pysim_vm.config.toml_lines import Path as KeyPath
from pysim_vm.layout import PAGE_SIZE

PORT_SPACE: Final = 1 << 16  # SDM, I/O Address Space


# Emulated devices that live at guest-physical addresses; the rest are on ports when their window lies there.
_MMIO_TYPES: Final = frozenset(
    (
        EmulatedDeviceType.InterruptController,
        EmulatedDeviceType.IVCChannel,
        EmulatedDeviceType.GPPTRedistributor,
        EmulatedDeviceType.GPPTDistributor,
        EmulatedDeviceType.GPPTITS,
        EmulatedDeviceType.X86IoApic,
        EmulatedDeviceType.LoongArchPchPic,
        EmulatedDeviceType.PPPTGlobal,
        EmulatedDeviceType.VirtioBlk,
        EmulatedDeviceType.VirtioNet,
        EmulatedDeviceType.VirtioConsole,
    )
)


@dataclass(frozen=True, slots=True)
class Claim:
    """A range that a row of the file takes: `length` addresses of `space` ("mmio" or "port") from `start`.

    `shift` is host address minus guest address of a passthrough range.
    """

    space: str
    start: int
    length: int
    kind: str
    who: str
    path: KeyPath
    shift: int = 0
    map_type: VmMemMappingType | None = None

    @property
    def end(self) -> int:
        """First address behind the range."""
        return self.start + self.length

    @classmethod
    def of_ram(cls, region: VmMemConfig, path: KeyPath) -> Claim:
        """The range of a memory region."""
        who = f"RAM {span(region.gpa, region.size)}"
        return cls("mmio", region.gpa, region.size, "ram", who, path, map_type=region.map_type)

    @classmethod
    def of_emulated(cls, device: EmulatedDeviceConfig, path: KeyPath) -> Claim:
        """The range of an emulated device, on the bus its type or window belongs to."""
        end = device.base_gpa + device.length
        on_ports = device.emu_type not in _MMIO_TYPES and end <= PORT_SPACE
        space = "port" if on_ports or device.emu_type is EmulatedDeviceType.X86Pit else "mmio"
        who = f"emulated device {show(device.name)} {span(device.base_gpa, device.length)}"
        return cls(space, device.base_gpa, device.length, "emulated", who, path)

    @classmethod
    def of_passthrough(cls, device: PassThroughDeviceConfig, path: KeyPath) -> Claim:
        """The range of a passthrough device."""
        who = f"passthrough device {show(device.name)}"
        if device.length:
            who += f" {span(device.base_gpa, device.length)}"
        shift = device.base_hpa - device.base_gpa
        return cls("mmio", device.base_gpa, device.length, "passthrough", who, path, shift)

    def limit(self) -> int:
        """Size of the address space."""
        return PORT_SPACE if self.space == "port" else VM_ASPACE_SIZE

    def misfit(self) -> str:
        """What is wrong with the range by itself; empty if nothing is."""
        if self.length == 0:
            return "a length of 0 covers nothing; give the length of the range"
        if self.end > self.limit():
            space = "the 65536 ports" if self.space == "port" else "the guest's address space"
            return f"{span(self.start, self.length)} leaves {space}; end below {self.limit():#x}"
        return ""

    def fits(self, problems: Problems) -> bool:
        """Whether the range is sound by itself; if not, the error is put at its row."""
        text = self.misfit()
        if text:
            problems.error(self.path, text)
        return not text

    def tolerates(self, other: Claim) -> bool:
        """Whether two overlapping ranges do not contradict each other.

        Boot scratch: a MapAlloc region wholly inside a MapIdentical one is that RAM under a second name, as
        axvm's linux-smp1 has it. Passthrough ranges merge as long as they lead to the same host addresses.
        """
        if self.kind == other.kind == "passthrough":
            return self.shift == other.shift
        return _is_scratch(self, other) or _is_scratch(other, self)


def _is_scratch(inner: Claim, outer: Claim) -> bool:
    return (
        inner.map_type is VmMemMappingType.MapAlloc
        and outer.map_type is VmMemMappingType.MapIdentical
        and outer.start <= inner.start
        and inner.end <= outer.end
    )


def check_claim(row: Table, claim: Claim, key: str) -> bool:
    """Whether the range is sound by itself; if not, the error is put at `key`."""
    text = claim.misfit()
    if text:
        row.error(key, text)
    return not text


def overlaps(claims: Iterable[Claim]) -> Iterator[tuple[Claim, Claim]]:
    """Pairs of ranges that contradict each other: few for each range, and none only if there is no conflict.

    Ranges are taken by start; each is held against the one that reaches furthest so far. RAM that is boot
    scratch of other RAM is also held against other scratch.
    """
    groups: dict[str, list[Claim]] = {}
    for claim in claims:
        groups.setdefault(claim.space, []).append(claim)
    for group in groups.values():
        furthest: Claim | None = None
        scratch: Claim | None = None
        for claim in sorted(group, key=lambda each: (each.start, -each.end)):
            if furthest is not None and claim.start < furthest.end:
                if not claim.tolerates(furthest):
                    yield furthest, claim
                elif claim.kind == "ram":
                    inner = claim if claim.map_type is VmMemMappingType.MapAlloc else furthest
                    if scratch is not None and inner.start < scratch.end:
                        yield scratch, inner
                    scratch = inner
            if furthest is None or claim.end > furthest.end:
                furthest = claim


def report_overlaps(claims: list[Claim], problems: Problems) -> None:
    """An error at the later row of each contradiction."""
    order = {claim.path: number for number, claim in enumerate(claims)}
    for one, other in overlaps(claims):
        first, second = (one, other) if order[one.path] < order[other.path] else (other, one)
        message = (
            f"{second.who} overlaps {first.who} ({where(problems, first.path)}); move or shrink one of them"
        )
        problems.error(second.path, message)


def report_lines(
    emulated: list[tuple[KeyPath, EmulatedDeviceConfig]],
    passthrough: list[tuple[KeyPath, PassThroughDeviceConfig]],
    virtual: list[VirtualDeviceConfig],
    table: Table,
) -> None:
    """One interrupt line, one emulated owner. Line 0 means none, or the chip's usual line.

    Passthrough rows share lines freely: axvisor's own files give three devices line 1. Next to an emulated
    device such a line deserves a warning.
    """
    problems = table.problems
    owners: dict[int, tuple[str, KeyPath]] = {}
    claims = [(row.irq_id, row.name, path) for path, row in emulated]
    claims += [(row.irq, row.name, (*table.path, "virtual", index)) for index, row in enumerate(virtual)]
    for line, name, path in claims:
        if line and line in owners:
            other, place = owners[line]
            message = (
                f"{show(name)} wants interrupt line {line} of {show(other)} "
                f"({where(problems, place)}); give one of them another line"
            )
            problems.error(path, message)
        owners.setdefault(line, (name, path))
    for path, row in passthrough:
        if row.irq_id and row.irq_id in owners:
            other, _ = owners[row.irq_id]
            message = f"{show(row.name)} shares interrupt line {row.irq_id} with emulated {show(other)}"
            problems.warn(path, message)


def report_ivc(emulated: list[tuple[KeyPath, EmulatedDeviceConfig]], table: Table) -> None:
    """An IVC range is whole pages, and a VM has one."""
    first: EmulatedDeviceConfig | None = None
    for path, row in emulated:
        if row.emu_type is not EmulatedDeviceType.IVCChannel:
            continue
        if row.length == 0 or row.base_gpa % PAGE_SIZE or row.length % PAGE_SIZE:
            message = (
                f"IVC range {row.base_gpa:#x} + {row.length:#x} is not whole pages; use multiples of 0x1000"
            )
            table.problems.error(path, message)
        if first is not None:
            message = f"{show(row.name)} is ignored: {show(first.name)} holds the VM's IVC range; remove one"
            table.problems.warn(path, message)
        first = first or row
