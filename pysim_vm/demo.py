"""The demo guest and its machine: 16, 32 and 64 bits, a device of one's own, a timer interrupt, power off.

The guest is demos/grand_tour.asm; demos/grand_tour.bin is the same, assembled, so that the demo needs no
assembler to start. `python -m pysim_vm.demo --assemble` writes it anew. The device is below: it is
the whole of what a custom device takes. How the result is shown is in cli/demo.py.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from devices.base import Device, DeviceError
from devices.bus import BusKind, Window

if TYPE_CHECKING:
    from pysim_vm.vm import AxVM

ORIGIN: Final = 0x7C00  # where a PC's boot code has always been
BUDGET: Final = 100_000  # instructions; the tour takes a tenth of it
CALCULATOR_PORT: Final = 0x2A0
CALCULATOR_BASE: Final = 0xFEB0_0000
CALCULATOR_MSR: Final = 0x4B56_0000
PRODUCT_MASK: Final = (1 << 64) - 1

# Offsets that the calculator sees: one device, three windows.
OPERAND_A: Final = 0x00
OPERAND_B: Final = 0x08
PRODUCT: Final = 0x10
NAME: Final = 0x1000
PRODUCTS_READ: Final = 0x2000


@dataclass
class CalculatorState:
    """All that changes in a calculator, so that a snapshot is a copy of it."""

    a: int = 0
    b: int = 0
    products_read: int = 0


class Calculator(Device):
    """Multiplies two qwords written to memory-mapped registers, says its name on a port, counts in an MSR."""

    name = "calculator"
    state: CalculatorState

    def __init__(self) -> None:
        self.state = CalculatorState()

    def read(self, offset: int, width: int) -> int:
        """The product, the operands, the name or the count; DeviceError for an offset without a register."""
        state = self.state
        match offset:
            case 0x00:
                return state.a
            case 0x08:
                return state.b
            case 0x10:
                state.products_read += 1
                return state.a * state.b & PRODUCT_MASK
            case 0x1000:
                return int.from_bytes(b"CALC", "little")
            case 0x2000:
                return state.products_read
        raise DeviceError(f"calculator: no register at offset {offset:#x}; read 0x0, 0x8 or 0x10")

    def write(self, offset: int, width: int, value: int) -> None:
        """Set an operand; DeviceError for an offset that is read-only or has no register."""
        match offset:
            case 0x00:
                self.state.a = value
            case 0x08:
                self.state.b = value
            case _:
                raise DeviceError(f"calculator: offset {offset:#x} cannot be written; write 0x0 or 0x8")

    def reset(self) -> None:
        """Operands and count are zero after power-on."""
        self.state = CalculatorState()


CALCULATOR_WINDOWS: Final = (
    Window(BusKind.MMIO, CALCULATOR_BASE, 0x1000, OPERAND_A),
    Window(BusKind.PORT, CALCULATOR_PORT, 4, NAME),
    Window(BusKind.SYS_REG, CALCULATOR_MSR, 1, PRODUCTS_READ),
)


def source_path() -> Path:
    """The guest's source."""
    return Path(__file__).with_name("demos") / "grand_tour.asm"


def image_path() -> Path:
    """The guest's image."""
    return Path(__file__).with_name("demos") / "grand_tour.bin"


def assemble_source() -> bytes:
    """The image that the source stands for."""
    from isa.assembler import assemble

    return assemble(source_path().read_text(encoding="utf-8"), bits=16, origin=ORIGIN)


def build_demo(**pysim: Any) -> AxVM:
    """The machine of the demo, waiting at the guest's first instruction; `pysim` as for AxVM.from_code."""
    from pysim_vm.vm import AxVM

    settings = {"platform": "pc", "vga": False, **pysim}
    vm = AxVM.from_code(image_path().read_bytes(), mode="real", base=ORIGIN, **settings)
    vm.get_devices().add_device(Calculator(), CALCULATOR_WINDOWS)
    return vm


def main(arguments: list[str]) -> int:
    """`--assemble` writes the image; anything else says so."""
    if arguments != ["--assemble"]:
        sys.stderr.write(
            "python -m pysim_vm.demo: write --assemble to make grand_tour.bin; pysim-vm demo runs it\n"
        )
        return 2
    image = assemble_source()
    image_path().write_bytes(image)
    sys.stdout.write(f"{image_path()}: {len(image)} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
