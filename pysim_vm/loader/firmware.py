"""Firmware loader: a ROM image that ends at 4 GiB, where the CPU fetches its first instruction.

No flash: the ROM is not writable, and variables of a UEFI firmware are not kept.
"""

from __future__ import annotations

from typing import Final

from pysim_vm.boot_plan import (
    BootPlan,
    Placement,
    RamMap,
    reset_start,
)
from pysim_vm.errors import LoadError
from pysim_vm.layout import LOW_ROM_SIZE, LOW_ROM_TOP, PAGE_SIZE, RESET_VECTOR, ROM_SIZE_MAX, ROM_TOP

RESET_CODE_SIZE: Final = ROM_TOP - RESET_VECTOR
# What firmwares begin with at the reset vector: far jump, near and short jump, CLI, NOP, WBINVD.
_RESET_OPCODES: Final = (b"\xea", b"\xe9", b"\xeb", b"\xfa", b"\x90", b"\x0f\x09")
_ROM_SIZE_STEP: Final = 64 << 10  # flash chips come in multiples of 64 KiB


def looks_like_firmware(data: bytes) -> bool:
    """Whether an image has a flash chip's size and a jump at the reset vector."""
    return (
        0 < len(data) <= ROM_SIZE_MAX
        and len(data) % _ROM_SIZE_STEP == 0
        and data[-RESET_CODE_SIZE:].startswith(_RESET_OPCODES)
    )


def load_firmware(data: bytes, ram: RamMap, *, name: str = "firmware") -> BootPlan:
    """The ROM below 4 GiB and a copy of its last 128 KiB below 1 MiB, entered by RESET.

    The low copy is RAM, as after the chipset's shadowing: a BIOS writes its variables there. Raises
    LoadError for an image that is empty, over 16 MiB, not made of whole pages, or without code at the reset
    vector.
    """
    if not data or len(data) % PAGE_SIZE or len(data) > ROM_SIZE_MAX:
        raise LoadError(
            f"{name} has {len(data)} bytes, a ROM has a multiple of 4096 up to {ROM_SIZE_MAX:#x}; "
            "name a complete ROM image"
        )
    reset_code = data[-RESET_CODE_SIZE:]
    if reset_code.strip(b"\0") == b"" or reset_code.strip(b"\xff") == b"":
        raise LoadError(f"{name} has no code in its last 16 bytes, where the CPU starts; name a ROM image")
    low_size = min(len(data), LOW_ROM_SIZE)
    placement = Placement(ram, name)
    placement.write("the low copy of the ROM", LOW_ROM_TOP - low_size, data[-low_size:])
    return BootPlan(
        protocol="firmware",
        description=(
            f"{name}: firmware ROM of {len(data) >> 10} KiB at {ROM_TOP - len(data):#x}, "
            f"entered at the reset vector {RESET_VECTOR:#x}."
        ),
        start=reset_start(),
        writes=placement.writes,
        roms=((ROM_TOP - len(data), data),),
    )
