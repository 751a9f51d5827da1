"""loader/tiny_bios.py: the listing says what its bytes are, and the tables say what RAM there is."""

import struct

from iced_x86 import Decoder, Formatter, FormatterSyntax

from pysim_vm.boot_plan import Placement, RamMap
from pysim_vm.loader import tiny_bios

MIB = 1 << 20


def disassemble(code: bytes, bits: int, address: int) -> str:
    formatter = Formatter(FormatterSyntax.NASM)
    formatter.hex_prefix, formatter.hex_suffix = "0x", ""
    formatter.uppercase_hex = formatter.branch_leading_zeros = formatter.small_hex_numbers_in_decimal = False
    formatter.space_after_operand_separator = True
    decoder = Decoder(bits, code, ip=address)
    instruction = decoder.decode()
    assert instruction.len == len(code)
    return str(formatter.format(instruction))


def test_every_line_of_the_listing_says_what_its_bytes_are() -> None:
    address = 0
    for _, machine_code, text in tiny_bios.LISTING:
        code = bytes.fromhex(machine_code)
        assert disassemble(code, 16, address) == text
        address += len(code)
    assert address <= 0x1F0  # the data behind the code starts there


def test_the_vectors_lead_to_their_handlers_in_segment_f000() -> None:
    placement = Placement(RamMap.pc(16 * MIB), "guest")
    tiny_bios.install(placement)
    table = dict(placement.writes)[0]
    handlers = tiny_bios.handlers()
    for vector, label in (
        (0x08, "irq_master"),
        (0x10, "video"),
        (0x13, "disk"),
        (0x15, "system"),
        (0x70, "irq_slave"),
    ):
        assert struct.unpack_from("<HH", table, 4 * vector) == (handlers[label], 0xF000)
    assert struct.unpack_from("<HH", table, 4 * 0xFF) == (handlers["ignore"], 0xF000)


def test_the_bios_data_area_names_com1_and_639_kib() -> None:
    placement = Placement(RamMap.pc(16 * MIB), "guest")
    tiny_bios.install(placement)
    area = dict(placement.writes)[0x400]
    assert struct.unpack_from("<H", area, 0x00) == (0x3F8,)
    assert struct.unpack_from("<H", area, 0x13) == (639,)


def test_int_15h_reports_the_ram_map_and_the_bios_areas() -> None:
    placement = Placement(RamMap.pc(64 * MIB), "guest")
    tiny_bios.install(placement)
    image = dict(placement.writes)[0xF0000]
    count = struct.unpack_from("<I", image, 0x1F8)[0]
    assert [struct.unpack_from("<QQI", image, 0x200 + 20 * index) for index in range(count)] == [
        (0, 0x9FC00, 1),
        (0x9FC00, 0x400, 2),
        (0xF0000, 0x10000, 2),
        (MIB, 63 * MIB, 1),
    ]
    assert struct.unpack_from("<HHH", image, 0x1F0) == (15 * 1024, 15 * 1024, 48 * 16)


def test_ram_below_16_mib_is_reported_in_one_number() -> None:
    placement = Placement(RamMap.pc(4 * MIB), "guest")
    tiny_bios.install(placement)
    assert struct.unpack_from("<HHH", dict(placement.writes)[0xF0000], 0x1F0) == (3072, 3072, 0)
