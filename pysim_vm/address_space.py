"""AddrSpace: the VM's second-stage map from guest-physical addresses to host memory (axaddrspace).

Host memory is the VM's own pool; a HostPhysAddr is an offset into it. Devices are not mapped here.
"""

from __future__ import annotations

from isa.memory import PAGE, MemoryMapError, PhysicalMemory, RamRegion
from pysim_vm.axtypes import MappingFlags
from pysim_vm.errors import AxError, AxErrorKind


class AddrSpace:
    """Half-open guest-physical space [base, base + size), mapped area by area."""

    def __init__(self, memory: PhysicalMemory, base: int = 0, size: int = 0x7FFF_FFFF_F000) -> None:
        self.memory = memory
        self._base = base
        self._size = size

    @classmethod
    def new_empty(cls, memory: PhysicalMemory, base: int, size: int) -> AddrSpace:
        """An address space without a mapping."""
        return cls(memory, base, size)

    def base(self) -> int:
        """First guest-physical address."""
        return self._base

    def size(self) -> int:
        """Bytes."""
        return self._size

    def end(self) -> int:
        """First guest-physical address behind the space."""
        return self._base + self._size

    def page_table_root(self) -> int:
        """The root of the second-stage tables. There are none: the map is a list of areas; always 0."""
        return 0

    def contains_range(self, gpa: int, size: int) -> bool:
        """True if [gpa, gpa + size) lies inside the space."""
        return self._base <= gpa and gpa + size <= self.end()

    def _check(self, gpa: int, size: int) -> None:
        if size <= 0 or not self.contains_range(gpa, size):
            raise AxError(AxErrorKind.InvalidInput, f"address out of range: {gpa:#x}+{size:#x}")
        if (gpa | size) & (PAGE - 1):
            raise AxError(AxErrorKind.InvalidInput, f"address not aligned: {gpa:#x}+{size:#x} (4 KiB)")

    def _add(
        self, gpa: int, size: int, flags: int, name: str, *, lazy: bool = False, host: int | None = None
    ) -> RamRegion:
        self._check(gpa, size)
        try:
            return self.memory.add_ram(gpa, size, int(flags), name=name, lazy=lazy, host=host)
        except MemoryMapError as error:
            kind = AxErrorKind.InvalidInput
            if "overlaps" in str(error):
                kind = AxErrorKind.AlreadyExists
            elif isinstance(error.__cause__, MemoryError):
                kind = AxErrorKind.NoMemory
            raise AxError(kind, str(error)) from None

    def map_alloc(
        self, gpa: int, size: int, flags: int, populate: bool = True, *, name: str = "ram"
    ) -> RamRegion:
        """Map fresh zeroed memory; without `populate` each page is given at its first touch."""
        return self._add(gpa, size, flags, name, lazy=not populate)

    def map_linear(self, gpa: int, hpa: int, size: int, flags: int, *, name: str = "linear") -> RamRegion:
        """Map host memory at pool offset `hpa`, which another area allocated; both see the same bytes."""
        return self._add(gpa, size, flags, name, host=hpa)

    def unmap(self, gpa: int, size: int) -> None:
        """Remove the area [gpa, gpa + size); InvalidInput unless it is exactly one area."""
        self._check(gpa, size)
        region = self.memory.region_at(gpa)
        if region is None or region.base != gpa or region.size != size:
            held = "nothing" if region is None else f"{region.name} {region.base:#x}+{region.size:#x}"
            raise AxError(
                AxErrorKind.InvalidInput, f"unmap {gpa:#x}+{size:#x}: {held} is mapped there; give its bounds"
            )
        self.memory.remove_ram(region)

    def clear(self) -> None:
        """Remove every area."""
        for region in list(self.memory.regions):
            self.memory.remove_ram(region)

    def translate(self, gpa: int) -> int | None:
        """Pool offset of a mapped address, or None."""
        region = self.memory.region_at(gpa)
        return None if region is None else region.host + gpa - region.base

    def translate_and_get_limit(self, gpa: int) -> tuple[int, int] | None:
        """Pool offset and the bytes left in the area from there, or None."""
        region = self.memory.region_at(gpa)
        return None if region is None else (region.host + gpa - region.base, region.end - gpa)

    def translated_byte_buffer(self, gpa: int, size: int) -> list[memoryview] | None:
        """Host views that make up [gpa, gpa + size), across areas, or None where nothing is mapped.

        They stay valid until the memory map changes. Code written through them is not noticed by a running
        CPU: use `AxVM.write_to_guest` for that.
        """
        pieces = self.memory.chunks(gpa, size)
        if pieces is None:
            return None
        return [self.memory.view[host : host + length] for host, length in pieces]

    def handle_page_fault(self, gpa: int, access: int) -> bool:
        """True if a lazily mapped page was given to the guest; False: a real nested page fault."""
        region = self.memory.region_at(gpa)
        if region is None or region.populated is None:
            return False
        if int(access) & ~(int(region.flags) | MappingFlags.USER):
            return False
        page = gpa - region.base >> 12
        if region.populated[page]:
            return False
        region.populated[page] = True
        return True
