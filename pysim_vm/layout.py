"""Where everything lies: the addresses, I/O ports and interrupt lines of the PC board and of its boot.

Numbers only: no range is claimed and nothing is decoded here. The devices know offsets, the loaders know
formats; both meet the machine through these names. Addresses are guest-physical bytes, sizes are bytes,
IRQs are ISA lines.
"""

from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
PAGE_SIZE: Final = 0x1000

# --- The first mebibyte -------------------------------------------------------------------------------------

IVT_BASE: Final = 0x0000  # real-mode interrupt vector table: where LIDT's reset value points
IVT_SIZE: Final = 0x0400  # 256 vectors of offset and segment
BIOS_DATA_AREA: Final = 0x0400  # the BIOS's variables, by IBM PC convention
BIOS_DATA_AREA_SIZE: Final = 0x0100
BOOT_GDT_BASE: Final = 0x0500  # first free byte after the BIOS data area; Firecracker's choice
BOOT_GDT_SIZE: Final = 0x0030  # null, unused, code, data, and a TSS, which takes two slots in long mode
BOOT_IDT_BASE: Final = 0x0530  # right behind the GDT; no vector in it is present
BOOT_IDT_LIMIT: Final = (
    0x0007  # one empty descriptor: any exception before the guest's own LIDT is a triple fault
)
PVH_START_INFO: Final = 0x6000  # hvm_start_info; where Firecracker and Cloud Hypervisor put it
PVH_MODULE_LIST: Final = 0x6040  # hvm_modlist_entry[], right behind the 56-byte start info
PVH_MEMORY_MAP: Final = 0x7000  # hvm_memmap_table_entry[]; the zero page's place, which PVH leaves free
MULTIBOOT_INFO: Final = 0x6000  # multiboot information structure, 116 bytes; axvm's address for it
AXVM_MULTIBOOT_MEMORY_MAP: Final = (
    0x6040  # axvm's memory map: it uses only the first 52 bytes of the information
)
MULTIBOOT_MEMORY_MAP: Final = 0x6080  # memory map behind a complete information structure
MULTIBOOT_MODULE_LIST: Final = 0x6400  # module structures, 16 bytes each, up to the zero page's place
AXVM_STACK_TOP: Final = 0x7000  # ESP that axvm's boot blobs hand over
ZERO_PAGE: Final = 0x7000  # Linux struct boot_params; both Firecracker and axvm
BOOT_SECTOR: Final = 0x7C00  # where every PC BIOS puts the first sector of the boot drive
AXVM_BIOS: Final = 0x8000  # axvm's default bios_load_addr: the blob that leaves real mode
BOOT_STACK_BASE: Final = 0x8000  # one page below the page tables
BOOT_STACK_TOP: Final = 0x8FF0  # first stack pointer in long mode; Firecracker's value
PAGE_TABLES: Final = 0x9000  # PML4; the PDPT is the next page, the page directories follow it
LINUX_SETUP: Final = 0x10000  # real-mode part of a bzImage, entered as 0x1000:0x200 by way of CS 0x1020
LINUX_SETUP_HEAP_END: Final = 0xE000  # offset of the setup's stack top; Linux boot.rst's sample boot loader
COMMAND_LINE: Final = 0x20000  # kernel command line; Firecracker and kvmtool
MULTIBOOT_STRINGS: Final = 0x20000  # command line, module strings and loader name of a multiboot kernel
LOW_RAM_TOP: Final = 0x9FC00  # end of conventional memory: 639 KiB, one KiB is the extended BIOS data area
EBDA_BASE: Final = 0x9FC00  # extended BIOS data area; also axvm's MP floating pointer
AXVM_MP_TABLE: Final = 0x9F800  # axvm's MP configuration table, below its floating pointer
VGA_WINDOW_BASE: Final = 0xA0000  # video memory as a whole: the hole in low RAM
VGA_WINDOW_SIZE: Final = 0x20000
VGA_GRAPHICS_BASE: Final = 0xA0000  # graphics modes
VGA_MONO_TEXT_BASE: Final = 0xB0000  # monochrome text (MDA, mode 7)
VGA_TEXT_BASE: Final = 0xB8000  # colour text (mode 3): character and attribute byte alternate
VGA_TEXT_SIZE: Final = 0x8000
VGA_TEXT_COLUMNS: Final = 80
VGA_TEXT_ROWS: Final = 25
VGA_ROM_BASE: Final = 0xC0000  # video BIOS: the first option ROM
OPTION_ROM_BASE: Final = 0xC8000  # further option ROMs, searched in steps of 2 KiB
ACPI_RSDP: Final = 0xE0000  # ACPI root pointer: a guest scans 0xE0000-0xFFFFF in steps of 16
LOW_ROM_BASE: Final = 0xE0000  # last 128 KiB of the firmware, where real mode can reach it
LOW_ROM_SIZE: Final = 0x20000
TINY_BIOS: Final = 0xF0000  # handlers for guests that enter in real mode without a firmware; segment 0xF000
TINY_BIOS_SIZE: Final = 0x10000
LOW_ROM_TOP: Final = 0x100000  # one past the last byte a real-mode segment base can start a paragraph at

# --- RAM above the first mebibyte ---------------------------------------------------------------------------

HIGH_MEMORY: Final = 0x100000  # extended memory: the protected-mode part of a bzImage starts here
AXVM_KERNEL: Final = 0x200000  # where axvm's boot blob jumps
PCI_HOLE_BASE: Final = 0xC0000000  # RAM stops at 3 GiB so that PCI and the chips below fit under 4 GiB
FOUR_GIB: Final = 0x1_0000_0000  # the rest of RAM continues here; also the end of the 32-bit world

# --- Memory-mapped chips below 4 GiB ------------------------------------------------------------------------

VIRTIO_MMIO_BASE: Final = 0xD0000000  # virtio-mmio slots of the PC board, inside the PCI hole
VIRTIO_MMIO_STRIDE: Final = 0x1000  # one page a slot, so that a slot can be mapped or trapped alone
VIRTIO_MMIO_SIZE: Final = 0x0200  # registers and configuration space of one slot
AXVM_VIRTIO_MMIO_BASE: Final = 0x0A000000  # default window of axvirtio-devices
PCI_MMCONFIG_BASE: Final = 0xE0000000  # PCI Express configuration space, had the board one; kept free
PCI_MMCONFIG_SIZE: Final = 0x10000000
IO_APIC_BASE: Final = 0xFEC00000  # 82093AA: default base of the first I/O APIC
IO_APIC_SIZE: Final = 0x1000
HPET_BASE: Final = 0xFED00000  # IA-PC HPET specification: the usual first block
HPET_SIZE: Final = 0x0400
TPM_BASE: Final = 0xFED40000  # TPM space: OVMF probes it, all ones means none
TPM_SIZE: Final = 0x5000
LOCAL_APIC_BASE: Final = 0xFEE00000  # IA32_APIC_BASE after reset
LOCAL_APIC_SIZE: Final = 0x1000
ROM_TOP: Final = 0x1_0000_0000  # the firmware ROM ends here: the CPU's first fetch is 16 bytes below
ROM_SIZE_MAX: Final = 0x01000000  # 16 MiB: a larger ROM would cover the local APIC
RESET_VECTOR: Final = 0xFFFFFFF0  # physical address of the first instruction after RESET
AXVM_UEFI_BASE: Final = 0xFFC00000  # axvm's UEFI firmware: 4 MiB up to ROM_TOP

# --- I/O ports ----------------------------------------------------------------------------------------------

PIC_MASTER_PORT: Final = 0x20  # 8259A: IRQ 0-7
PIC_SLAVE_PORT: Final = 0xA0  # 8259A: IRQ 8-15, cascaded
PIC_PORT_COUNT: Final = 2
PIC_MASTER_ELCR_PORT: Final = 0x4D0  # edge/level control of IRQ 0-7
PIC_SLAVE_ELCR_PORT: Final = 0x4D1  # edge/level control of IRQ 8-15
PIT_PORT: Final = 0x40  # 8254: three counters and the control word
PIT_PORT_COUNT: Final = 4
I8042_PORT: Final = 0x60  # 8042 data; the status and command port is 0x64
I8042_DATA_PORT: Final = 0x60
SYSTEM_CONTROL_B_PORT: Final = 0x61  # PIT counter 2's gate and output, speaker, refresh toggle
I8042_COMMAND_PORT: Final = 0x64
RTC_PORT: Final = 0x70  # MC146818 index (bit 7 masks NMI); data at 0x71
RTC_PORT_COUNT: Final = 2
POST_PORT: Final = 0x80  # POST diagnostics; Linux writes it as a delay of one I/O cycle
SYSTEM_CONTROL_A_PORT: Final = 0x92  # fast A20 gate and fast reset
E9_PORT: Final = 0xE9  # Bochs and QEMU debug console: a byte written is a character
COPROCESSOR_ERROR_PORT: Final = 0xF0  # takes the FPU's IRQ 13 back
COPROCESSOR_ERROR_IRQ: Final = 13
DEBUG_EXIT_PORT: Final = 0xF4  # QEMU isa-debug-exit: a write ends the run with 2*value+1
DEBUG_EXIT_PORT_COUNT: Final = 4
COM4_PORT: Final = 0x2E8  # 16550A
COM2_PORT: Final = 0x2F8  # 16550A
COM3_PORT: Final = 0x3E8  # 16550A
COM1_PORT: Final = 0x3F8  # 16550A: the console
UART_PORT_COUNT: Final = 8
VGA_MONO_CRTC_PORT: Final = 0x3B4  # CRT controller index of a monochrome adapter
VGA_PORT: Final = 0x3C0  # VGA: attribute controller ... 0x3CF
VGA_PORT_COUNT: Final = 0x20  # 0x3C0-0x3DF, the colour CRT controller included
VGA_CRTC_PORT: Final = 0x3D4  # CRT controller index; data at 0x3D5
DEBUGCON_PORT: Final = 0x402  # SeaBIOS and OVMF debug output; a read answers 0xE9 when present
FW_CFG_PORT: Final = 0x510  # QEMU fw_cfg: selector word; data byte at 0x511
FW_CFG_PORT_COUNT: Final = 2
FW_CFG_DMA_PORT: Final = 0x514  # QEMU fw_cfg: DMA address, big-endian, high half first
FW_CFG_DMA_PORT_COUNT: Final = 8
ACPI_PM_BASE: Final = 0x600  # ACPI PM1a event block
ACPI_PM_PORT_COUNT: Final = 0x10
ACPI_PM_CONTROL_PORT: Final = 0x604  # PM1a control: 0x2000 (SLP_EN, type 0) powers off; axvm's SystemDown
ACPI_POWER_OFF_VALUE: Final = 0x2000
PM_TIMER_PORT: Final = 0x608  # ACPI PM timer, 3.579545 MHz
PCI_CONFIG_ADDRESS_PORT: Final = 0xCF8  # PCI configuration mechanism 1
RESET_CONTROL_PORT: Final = 0xCF9  # PIIX3 reset control: bit 2 resets the machine
PCI_CONFIG_DATA_PORT: Final = 0xCFC

# --- ISA interrupt lines ------------------------------------------------------------------------------------

PIT_IRQ: Final = 0  # 8254 counter 0
KEYBOARD_IRQ: Final = 1  # 8042 first channel
PIC_CASCADE_IRQ: Final = 2  # the slave 8259A's output; never a device
COM2_IRQ: Final = 3  # shared with COM4
COM1_IRQ: Final = 4  # shared with COM3
RTC_IRQ: Final = 8  # MC146818 alarm, periodic and update-ended
ACPI_SCI_IRQ: Final = 9  # ACPI system control interrupt, level
VIRTIO_FIRST_IRQ: Final = 5  # first virtio-mmio slot; the rest take 10 and 11
MOUSE_IRQ: Final = 12  # 8042 second channel
FPU_IRQ: Final = 13  # x87 error on AT boards; masked when CR0.NE is set
PIT_IO_APIC_PIN: Final = 2  # the PIT is wired to pin 2 of the I/O APIC: MADT interrupt source override
