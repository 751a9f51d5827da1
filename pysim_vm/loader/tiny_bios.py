"""The tiny BIOS: interrupt handlers for guests that enter in real mode while no firmware runs.

Teletype output and keyboard input go through COM1; memory is reported by INT 15h and INT 12h. No disk, no
video modes, no clock, no POST: a guest that needs those is booted through SeaBIOS (`firmware`).
"""

from __future__ import annotations

import struct
from typing import Final

from pysim_vm.boot_plan import Placement
from pysim_vm.layout import (
    BIOS_DATA_AREA,
    BIOS_DATA_AREA_SIZE,
    COM1_PORT,
    EBDA_BASE,
    GIB,
    HIGH_MEMORY,
    IVT_BASE,
    KIB,
    LOW_RAM_TOP,
    MIB,
    TINY_BIOS,
    TINY_BIOS_SIZE,
)

E820_RAM: Final = 1
E820_RESERVED: Final = 2
_SMAP_ENTRY_SIZE: Final = 20

# The handlers, one instruction a line: label, machine code, what it says. 16-bit code at offset 0 of segment
# 0xF000. Functions a handler does not know set CF and AH=86h ("function not supported"), as a BIOS does.
LISTING: Final = (
    ("ignore", "cf", "iret"),
    ("irq_slave", "50", "push ax"),
    ("", "b020", "mov al, 0x20"),
    ("", "e6a0", "out 0xa0, al"),
    ("", "e620", "out 0x20, al"),
    ("", "58", "pop ax"),
    ("", "cf", "iret"),
    ("irq_master", "50", "push ax"),
    ("", "b020", "mov al, 0x20"),
    ("", "e620", "out 0x20, al"),
    ("", "58", "pop ax"),
    ("", "cf", "iret"),
    ("refuse", "b486", "mov ah, 0x86"),
    ("refuse_ah", "55", "push bp"),
    ("", "89e5", "mov bp, sp"),
    ("", "804e0601", "or byte [bp+0x6], 0x1"),
    ("", "5d", "pop bp"),
    ("", "cf", "iret"),
    ("grant", "55", "push bp"),
    ("", "89e5", "mov bp, sp"),
    ("", "806606fe", "and byte [bp+0x6], 0xfe"),
    ("", "5d", "pop bp"),
    ("", "cf", "iret"),
    ("disk", "b401", "mov ah, 0x1"),
    ("", "ebea", "jmp short 0x13"),
    ("video", "80fc0e", "cmp ah, 0xe"),
    ("", "7416", "je short 0x44"),
    ("", "80fc03", "cmp ah, 0x3"),
    ("", "740b", "je short 0x3e"),
    ("", "80fc0f", "cmp ah, 0xf"),
    ("", "75c8", "jne short 0x0"),
    ("", "b80350", "mov ax, 0x5003"),
    ("", "b700", "mov bh, 0x0"),
    ("", "cf", "iret"),
    ("cursor", "31d2", "xor dx, dx"),
    ("", "b90706", "mov cx, 0x607"),
    ("", "cf", "iret"),
    ("teletype", "52", "push dx"),
    ("", "50", "push ax"),
    ("", "bafd03", "mov dx, 0x3fd"),
    ("tt_wait", "ec", "in al, dx"),
    ("", "a820", "test al, 0x20"),
    ("", "74fb", "je short 0x49"),
    ("", "58", "pop ax"),
    ("", "baf803", "mov dx, 0x3f8"),
    ("", "ee", "out dx, al"),
    ("", "5a", "pop dx"),
    ("", "cf", "iret"),
    ("equipment", "b82202", "mov ax, 0x222"),
    ("", "cf", "iret"),
    ("memory_size", "b87f02", "mov ax, 0x27f"),
    ("", "cf", "iret"),
    ("keyboard", "80fc02", "cmp ah, 0x2"),
    ("", "7428", "je short 0x8a"),
    ("", "f6c4ef", "test ah, 0xef"),
    ("", "7426", "je short 0x8d"),
    ("", "88e0", "mov al, ah"),
    ("", "24ef", "and al, 0xef"),
    ("", "3c01", "cmp al, 0x1"),
    ("", "7591", "jne short 0x0"),
    ("", "31c0", "xor ax, ax"),
    ("", "55", "push bp"),
    ("", "89e5", "mov bp, sp"),
    ("", "804e0640", "or byte [bp+0x6], 0x40"),
    ("", "52", "push dx"),
    ("", "bafd03", "mov dx, 0x3fd"),
    ("", "ec", "in al, dx"),
    ("", "5a", "pop dx"),
    ("", "a801", "test al, 0x1"),
    ("", "b000", "mov al, 0x0"),
    ("", "7404", "je short 0x88"),
    ("", "806606bf", "and byte [bp+0x6], 0xbf"),
    ("no_key", "5d", "pop bp"),
    ("", "cf", "iret"),
    ("shift", "b000", "mov al, 0x0"),
    ("", "cf", "iret"),
    ("read_key", "52", "push dx"),
    ("", "bafd03", "mov dx, 0x3fd"),
    ("rk_wait", "f390", "pause"),
    ("", "ec", "in al, dx"),
    ("", "a801", "test al, 0x1"),
    ("", "74f9", "je short 0x91"),
    ("", "baf803", "mov dx, 0x3f8"),
    ("", "ec", "in al, dx"),
    ("", "b400", "mov ah, 0x0"),
    ("", "5a", "pop dx"),
    ("", "cf", "iret"),
    ("system", "3d20e8", "cmp ax, 0xe820"),
    ("", "7434", "je short 0xd9"),
    ("", "3d01e8", "cmp ax, 0xe801"),
    ("", "741f", "je short 0xc9"),
    ("", "80fc88", "cmp ah, 0x88"),
    ("", "7413", "je short 0xc2"),
    ("", "3d0124", "cmp ax, 0x2401"),
    ("", "7409", "je short 0xbd"),
    ("", "3d0224", "cmp ax, 0x2402"),
    ("", "0f8556ff", "jne near 0x11"),
    ("", "b001", "mov al, 0x1"),
    ("a20_on", "b400", "mov ah, 0x0"),
    ("", "e95aff", "jmp 0x1c"),
    ("extended", "2ea1f001", "mov ax, [cs:0x1f0]"),
    ("", "e953ff", "jmp 0x1c"),
    ("e801", "2ea1f201", "mov ax, [cs:0x1f2]"),
    ("", "2e8b1ef401", "mov bx, [cs:0x1f4]"),
    ("", "89c1", "mov cx, ax"),
    ("", "89da", "mov dx, bx"),
    ("", "e943ff", "jmp 0x1c"),
    ("e820", "6681fa50414d53", "cmp edx, 0x534d4150"),
    ("", "0f852dff", "jne near 0x11"),
    ("", "6683f914", "cmp ecx, 0x14"),
    ("", "0f8225ff", "jb near 0x11"),
    ("", "2e663b1ef801", "cmp ebx, [cs:0x1f8]"),
    ("", "0f831bff", "jae near 0x11"),
    ("", "56", "push si"),
    ("", "57", "push di"),
    ("", "1e", "push ds"),
    ("", "8cc9", "mov cx, cs"),
    ("", "8ed9", "mov ds, cx"),
    ("", "6bf314", "imul si, bx, 0x14"),
    ("", "81c60002", "add si, 0x200"),
    ("", "b90a00", "mov cx, 0xa"),
    ("", "fc", "cld"),
    ("", "f3a5", "rep movsw"),
    ("", "1f", "pop ds"),
    ("", "5f", "pop di"),
    ("", "5e", "pop si"),
    ("", "6643", "inc ebx"),
    ("", "2e663b1ef801", "cmp ebx, [cs:0x1f8]"),
    ("", "7203", "jb short 0x11a"),
    ("", "6631db", "xor ebx, ebx"),
    ("e820_more", "66b914000000", "mov ecx, 0x14"),
    ("", "6689d0", "mov eax, edx"),
    ("", "e9f6fe", "jmp 0x1c"),
    ("halt", "fb", "sti"),
    ("", "f4", "hlt"),
    ("", "ebfc", "jmp short 0x126"),
)

# What the handlers read from their own segment, behind the code.
_EXTENDED_KIB: Final = 0x1F0  # INT 15h AH=88h: KiB from 1 MiB up, at most 15 MiB are told this way
_E801_LOW: Final = 0x1F2  # INT 15h AX=E801h: KiB from 1 to 16 MiB
_E801_HIGH: Final = 0x1F4  # INT 15h AX=E801h: 64 KiB blocks from 16 MiB up
_E820_COUNT: Final = 0x1F8  # dword
_E820_TABLE: Final = 0x200  # 20-byte entries

_VECTORS: Final = {
    0x10: "video",
    0x11: "equipment",
    0x12: "memory_size",
    0x13: "disk",
    0x15: "system",
    0x16: "keyboard",
    0x18: "halt",  # no bootable device
    0x19: "halt",  # reboot
    0x1A: "refuse",
    **dict.fromkeys(range(0x08, 0x10), "irq_master"),
    **dict.fromkeys(range(0x70, 0x78), "irq_slave"),
}


def code() -> bytes:
    """The handlers' machine code."""
    return bytes.fromhex("".join(machine_code for _, machine_code, _ in LISTING))


def handlers() -> dict[str, int]:
    """Offset of every label of the listing in segment 0xF000."""
    offsets = {}
    offset = 0
    for label, machine_code, _ in LISTING:
        if label:
            offsets[label] = offset
        offset += len(machine_code) // 2
    return offsets


def e820_entries(placement: Placement) -> list[tuple[int, int, int]]:
    """What INT 15h AX=E820h reports: (base, size, type), RAM and the BIOS's own areas, ascending."""
    entries = [(base, size, E820_RAM) for base, size in placement.ram.usable()]
    entries.append((EBDA_BASE, 0xA0000 - EBDA_BASE, E820_RESERVED))
    entries.append((TINY_BIOS, TINY_BIOS_SIZE, E820_RESERVED))
    return sorted(entries)


def install(placement: Placement) -> None:
    """Writes the vector table, the BIOS data area and the handlers into a plan.

    Raises LoadError when something of the guest lies in their place.
    """
    offsets = handlers()
    segment = TINY_BIOS >> 4
    vectors = [(offsets[_VECTORS.get(vector, "ignore")], segment) for vector in range(256)]
    table = b"".join(struct.pack("<HH", *vector) for vector in vectors)
    placement.write("the interrupt vector table", IVT_BASE, table)

    data_area = bytearray(BIOS_DATA_AREA_SIZE)
    struct.pack_into("<H", data_area, 0x00, COM1_PORT)
    struct.pack_into("<H", data_area, 0x0E, EBDA_BASE >> 4)
    struct.pack_into("<H", data_area, 0x13, LOW_RAM_TOP // KIB)
    placement.write("the BIOS data area", BIOS_DATA_AREA, bytes(data_area))

    end = placement.ram.extended_end
    below_16_mib = (min(end, 16 * MIB) - HIGH_MEMORY) // KIB
    above_16_mib = max(0, min(end, 4 * GIB) - 16 * MIB) // (64 * KIB)
    entries = e820_entries(placement)
    image = bytearray(_E820_TABLE + _SMAP_ENTRY_SIZE * len(entries))
    image[: len(code())] = code()
    struct.pack_into("<HHH", image, _EXTENDED_KIB, below_16_mib, below_16_mib, above_16_mib)
    struct.pack_into("<I", image, _E820_COUNT, len(entries))
    for index, entry in enumerate(entries):
        struct.pack_into("<QQI", image, _E820_TABLE + _SMAP_ENTRY_SIZE * index, *entry)
    placement.write("the tiny BIOS", TINY_BIOS, bytes(image))
