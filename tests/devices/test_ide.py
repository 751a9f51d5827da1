"""The IDE channel: ATA disk and ATAPI CD-ROM, by programmed I/O."""

from __future__ import annotations

import copy
import struct

import pytest

from devices.base import DeviceError, IrqLine
from devices.block import MemoryBlock
from devices.ide import AtaDisk, AtapiCdrom, IdeChannel

DATA, ERROR, COUNT, LOW, MID, HIGH, DEVICE, STATUS, ALT = 0, 1, 2, 3, 4, 5, 6, 7, 0x206
READY, DRQ, ERR, DF, BSY = 0x50, 0x08, 0x01, 0x20, 0x80
ABRT, IDNF = 0x04, 0x10


def sector(number: int) -> bytes:
    return struct.pack("<I", number) * 128


def disk_image(sectors: int) -> bytes:
    return b"".join(sector(number) for number in range(sectors))


class Board:
    """A channel whose interrupt edges are counted."""

    def __init__(
        self, master: AtaDisk | AtapiCdrom | None = None, slave: AtaDisk | AtapiCdrom | None = None
    ) -> None:
        self.edges = 0
        self.irq = IrqLine(self._edge, 14)
        self.ide = IdeChannel(master, slave, self.irq)

    def _edge(self, _number: int, level: bool) -> None:
        self.edges += level

    def out(self, offset: int, value: int) -> None:
        self.ide.write(offset, 1, value)

    def get(self, offset: int) -> int:
        return self.ide.read(offset, 1)

    def command(self, code: int, device: int = 0xE0, count: int = 1, lba: int = 0, feature: int = 0) -> None:
        """Give an LBA28 command."""
        self.out(DEVICE, device | lba >> 24)
        self.out(ERROR, feature)
        self.out(COUNT, count)
        self.out(LOW, lba & 0xFF)
        self.out(MID, lba >> 8 & 0xFF)
        self.out(HIGH, lba >> 16 & 0xFF)
        self.out(STATUS, code)

    def read_words(self, words: int) -> bytes:
        return b"".join(self.ide.read(DATA, 2).to_bytes(2, "little") for _ in range(words))

    def write_words(self, data: bytes) -> None:
        for (word,) in struct.iter_unpack("<H", data):
            self.ide.write(DATA, 2, word)

    def packet(self, *head: int, limit: int = 0xFFFE) -> None:
        self.out(DEVICE, 0xA0)
        self.out(ERROR, 0)
        self.out(MID, limit & 0xFF)
        self.out(HIGH, limit >> 8)
        self.out(STATUS, 0xA0)
        self.write_words(bytes(head).ljust(12, b"\0"))

    def packet_data(self) -> bytes:
        """Every data block of the current packet command."""
        data = b""
        while self.get(ALT) & DRQ:
            size = self.get(HIGH) << 8 | self.get(MID)
            data += self.read_words((size + 1) // 2)[:size]
        return data

    def sense(self) -> tuple[int, int, int]:
        self.packet(0x03, 0, 0, 0, 18)
        reply = self.packet_data()
        return reply[2], reply[12], reply[13]


def disk_board(sectors: int = 2048, overlay_limit: int = 1 << 20) -> tuple[Board, MemoryBlock]:
    medium = MemoryBlock(disk_image(sectors), overlay_limit=overlay_limit)
    return Board(AtaDisk(medium)), medium


def cd_board(blocks: int = 100) -> Board:
    return Board(AtapiCdrom(MemoryBlock(disk_image(4 * blocks))))


# ---- registers, reset, selection -----------------------------------------------


def test_signatures_after_reset_tell_disk_from_cdrom() -> None:
    board = Board(AtaDisk(MemoryBlock(disk_image(8))), AtapiCdrom())
    assert [board.get(offset) for offset in (ERROR, COUNT, LOW, MID, HIGH, STATUS)] == [1, 1, 1, 0, 0, READY]
    board.out(DEVICE, 0xB0)
    assert [board.get(offset) for offset in (ERROR, COUNT, LOW, MID, HIGH, STATUS)] == [
        1,
        1,
        1,
        0x14,
        0xEB,
        0,
    ]


def test_an_absent_slave_reads_zero_and_an_empty_channel_floats() -> None:
    board, _ = disk_board()
    board.out(DEVICE, 0xB0)
    assert (board.get(STATUS), board.get(ALT)) == (0, 0)
    board.out(STATUS, 0xEC)
    assert board.edges == 0
    assert Board().get(STATUS) == 0xFF
    assert Board().ide.read(DATA, 2) == 0xFFFF


def test_registers_latch_in_both_drives_and_wide_accesses_become_bytes() -> None:
    board = Board(AtaDisk(MemoryBlock(disk_image(8))), AtaDisk(MemoryBlock(disk_image(8))))
    board.ide.write(COUNT, 2, 0xAA55)
    board.out(DEVICE, 0xB0)
    assert (board.get(COUNT), board.get(LOW)) == (0x55, 0xAA)
    assert board.ide.read(COUNT, 2) == 0xAA55


def test_software_reset_is_busy_while_held_and_restores_the_signature() -> None:
    board, _ = disk_board()
    board.command(0x20)
    board.out(ALT, 0x04)
    assert board.get(ALT) == BSY
    assert board.irq.level is False
    board.out(COUNT, 0x77)  # ignored while busy
    board.out(ALT, 0x00)
    assert board.get(STATUS) == READY
    assert [board.get(offset) for offset in (ERROR, COUNT, LOW, MID, HIGH)] == [1, 1, 1, 0, 0]


def test_reading_status_clears_the_interrupt_and_alternate_status_does_not() -> None:
    board, _ = disk_board()
    board.command(0x20)
    assert board.irq.level is True
    board.get(ALT)
    assert board.irq.level is True
    board.get(STATUS)
    assert board.irq.level is False


def test_nien_holds_the_interrupt_back() -> None:
    board, _ = disk_board()
    board.out(ALT, 0x02)
    board.command(0x20)
    assert board.irq.level is False
    board.out(ALT, 0x00)
    assert board.irq.level is True


def test_the_interrupt_follows_the_selected_drive() -> None:
    board = Board(AtaDisk(MemoryBlock(disk_image(8))), AtaDisk(MemoryBlock(disk_image(8))))
    board.command(0x20)
    board.out(DEVICE, 0xF0)
    assert board.irq.level is False
    board.out(DEVICE, 0xE0)
    assert board.irq.level is True


def test_diagnostic_runs_on_both_drives_and_selects_the_master() -> None:
    board = Board(AtaDisk(MemoryBlock(disk_image(8))), AtaDisk(MemoryBlock(disk_image(8))))
    board.command(0x90, device=0xF0)
    assert board.get(DEVICE) & 0x10 == 0
    assert board.irq.level is True
    assert board.get(ERROR) == 1


# ---- disk ----------------------------------------------------------------------


def test_read_moves_the_right_sectors_with_one_interrupt_each() -> None:
    board, _ = disk_board()
    board.command(0x20, count=2, lba=5)
    assert board.get(STATUS) == READY | DRQ
    assert board.read_words(256) == sector(5)
    assert board.irq.level is True
    board.get(STATUS)
    assert board.read_words(256) == sector(6)
    assert board.get(STATUS) == READY
    assert board.edges == 2
    assert (board.get(COUNT), board.get(LOW)) == (0, 6)


def test_count_zero_means_256_sectors() -> None:
    board, _ = disk_board()
    board.command(0x20, count=0)
    data = b"".join(board.read_words(256) for _ in range(256))
    assert data == disk_image(256)
    assert board.get(STATUS) == READY


def test_write_asks_for_the_first_sector_without_an_interrupt() -> None:
    board, medium = disk_board()
    board.command(0x30, count=2, lba=9)
    assert board.get(ALT) == READY | DRQ
    assert board.edges == 0
    board.write_words(b"AB" * 256)
    assert board.edges == 1
    board.get(STATUS)
    board.write_words(b"CD" * 256)
    assert board.edges == 2
    assert board.get(STATUS) == READY
    assert medium.read(9, 2) == b"AB" * 256 + b"CD" * 256


def test_the_data_port_moves_32_bits_too() -> None:
    board, medium = disk_board()
    board.command(0x20, lba=0x107)
    assert [board.ide.read(DATA, 4) for _ in range(128)] == [0x107] * 128
    assert board.get(STATUS) == READY
    board.command(0x30, lba=3)
    for _ in range(128):
        board.ide.write(DATA, 4, 0x11223344)
    assert medium.read(3, 1) == bytes.fromhex("44332211") * 128


def test_a_byte_access_of_the_data_port_moves_a_word() -> None:
    board, _ = disk_board()
    board.command(0x20, lba=0x102)
    assert [board.ide.read(DATA, 1) for _ in range(256)] == [2, 0] * 128
    assert board.get(STATUS) == READY


def test_chs_addresses_follow_the_translation() -> None:
    board, _ = disk_board()
    board.command(0x91, device=0xA3, count=17)  # 4 heads, 17 sectors
    assert board.get(STATUS) == READY
    board.out(DEVICE, 0xA2)
    board.out(COUNT, 1)
    board.out(LOW, 5)
    board.out(MID, 3)
    board.out(HIGH, 0)
    board.out(STATUS, 0x20)
    assert board.read_words(256) == sector((3 * 4 + 2) * 17 + 4)
    assert (board.get(LOW), board.get(MID), board.get(DEVICE) & 0xF) == (5, 3, 2)


@pytest.mark.parametrize(("device", "low"), [(0xA0, 0), (0xA0, 64)])
def test_chs_sector_numbers_outside_the_track_are_not_found(device: int, low: int) -> None:
    board, _ = disk_board()
    board.command(0x20, device=device, lba=low)
    assert board.get(STATUS) == READY | ERR
    assert board.get(ERROR) == IDNF


def test_lba48_combines_the_previous_register_contents() -> None:
    board, _ = disk_board(sectors=4096)
    board.out(DEVICE, 0xE0)
    for offset, previous, latest in ((COUNT, 1, 2), (LOW, 0, 0x21), (MID, 0, 3), (HIGH, 0, 0)):
        board.out(offset, previous)
        board.out(offset, latest)
    board.out(STATUS, 0x24)
    for number in range(0x102):
        assert board.get(ALT) == READY | DRQ
        assert board.read_words(256) == sector(0x321 + number)
    assert board.get(STATUS) == READY


def test_verify_ext_checks_the_48_bit_range_and_moves_nothing() -> None:
    board, _ = disk_board(sectors=4096)
    for first, status in ((0x0E00, READY), (0x0F00, READY | ERR)):
        for offset, previous, latest in ((COUNT, 2, 0), (LOW, 0, 0), (MID, 0, first >> 8), (HIGH, 0, 0)):
            board.out(offset, previous)
            board.out(offset, latest)
        board.out(STATUS, 0x42)
        assert board.get(STATUS) == status


def test_hob_shows_the_previous_contents_until_the_next_write() -> None:
    board, _ = disk_board()
    board.out(COUNT, 0x12)
    board.out(COUNT, 0x34)
    board.out(ALT, 0x80)
    assert board.get(COUNT) == 0x12
    board.out(LOW, 0)
    assert board.get(COUNT) == 0x34


def test_reading_past_the_end_is_not_found() -> None:
    board, _ = disk_board(sectors=8)
    for code in (0x20, 0x30, 0x40, 0x70):
        board.command(code, count=2, lba=7 if code != 0x70 else 8)
        assert board.get(STATUS) == READY | ERR
        assert board.get(ERROR) == IDNF


def test_multiple_needs_its_mode_and_moves_blocks() -> None:
    board, medium = disk_board()
    board.command(0xC4, count=6)
    assert board.get(STATUS) == READY | ERR
    board.command(0xC6, count=3)  # not a power of two
    assert board.get(ERROR) == ABRT
    board.command(0xC6, count=4)
    board.get(STATUS)
    edges = board.edges
    board.command(0xC4, count=6, lba=10)
    board.get(STATUS)
    first = board.read_words(4 * 256)
    board.get(STATUS)
    assert first + board.read_words(2 * 256) == disk_image(16)[10 * 512 :]
    assert board.edges - edges == 2
    board.command(0xC5, count=5, lba=20)
    board.write_words(b"mm" * 256 * 5)
    assert board.get(STATUS) == READY
    assert medium.read(20, 6) == b"mm" * 256 * 5 + sector(25)


def test_a_full_overlay_is_a_device_fault() -> None:
    board, medium = disk_board(overlay_limit=0)
    board.command(0x30)
    board.write_words(bytes(512))
    assert board.get(STATUS) == READY | DF | ERR
    assert board.get(ERROR) == ABRT
    assert medium.read(0, 1) == sector(0)


def test_identify_describes_the_disk_and_sums_to_zero() -> None:
    board = Board(AtaDisk(MemoryBlock(disk_image(2048)), model="Test Disk", serial="S1"))
    board.command(0xEC)
    data = board.read_words(256)
    assert board.get(STATUS) == READY
    words = struct.unpack("<256H", data)
    assert sum(data) & 0xFF == 0
    assert (words[0], words[1], words[3], words[6]) == (0x40, 2, 16, 63)
    assert struct.pack(">20H", *words[27:47]) == b"Test Disk".ljust(40)
    assert struct.pack(">10H", *words[10:20]) == b"S1".ljust(20)
    assert words[49] & 0x0300 == 0x0200  # LBA, no DMA
    assert (words[63], words[88]) == (0, 0)
    assert words[60] | words[61] << 16 == 2048
    assert struct.unpack_from("<Q", data, 200) == (2048,)
    assert words[57] | words[58] << 16 == 2 * 16 * 63


@pytest.mark.parametrize(
    ("code", "count", "answer"), [(0xE0, 0, 0x00), (0xE1, 0, 0x80), (0xE2, 9, 0x00), (0x95, 0, 0x80)]
)
def test_check_power_mode_answers_the_mode(code: int, count: int, answer: int) -> None:
    board, _ = disk_board()
    board.command(0xE5)
    assert board.get(COUNT) == 0xFF
    board.command(code, count=count)
    board.command(0xE5)
    assert board.get(COUNT) == answer
    board.command(0x20)
    board.read_words(256)
    board.command(0x98)
    assert board.get(COUNT) == 0xFF


def test_a_sleeping_drive_wakes_by_reset_only() -> None:
    board, _ = disk_board()
    board.command(0xE6)
    board.get(STATUS)
    board.command(0x20)
    assert board.irq.level is False
    board.out(ALT, 4)
    board.out(ALT, 0)
    board.command(0x20)
    assert board.get(STATUS) == READY | DRQ


@pytest.mark.parametrize(
    ("feature", "count", "status"),
    [
        (0x02, 0, READY),
        (0x82, 0, READY),
        (0x03, 0x0C, READY),
        (0x03, 0x22, READY | ERR),
        (0xAA, 0, READY),
        (0x5D, 0, READY | ERR),
    ],
)
def test_set_features(feature: int, count: int, status: int) -> None:
    board, _ = disk_board()
    board.command(0xEF, feature=feature, count=count)
    assert board.get(STATUS) == status


@pytest.mark.parametrize("code", [0x10, 0x40, 0x70, 0xE7, 0xEA])
def test_commands_without_data_complete_with_an_interrupt(code: int) -> None:
    board, _ = disk_board()
    board.command(code)
    assert board.irq.level is True
    assert board.get(STATUS) == READY


@pytest.mark.parametrize("code", [0x00, 0x08, 0xA0, 0xA1, 0xC8, 0xCA, 0x25, 0xFF])
def test_a_disk_aborts_what_it_does_not_know(code: int) -> None:
    board, _ = disk_board()
    board.command(code)
    assert board.get(STATUS) == READY | ERR
    assert board.get(ERROR) == ABRT


def test_a_snapshot_in_the_middle_of_a_sector_goes_on() -> None:
    board, _ = disk_board()
    board.command(0x20, count=2, lba=1)
    board.read_words(100)
    saved = copy.deepcopy(board.ide.state)
    board.ide.reset()
    assert board.ide.read(DATA, 2) == 0xFFFF
    board.ide.state = saved
    board.ide.rearm()
    assert board.irq.level is True
    assert board.read_words(412) == (sector(1) + sector(2))[200:]


def test_texts_that_do_not_fit_are_device_errors() -> None:
    with pytest.raises(DeviceError, match="serial"):
        AtaDisk(MemoryBlock(b""), serial="x" * 21)
    with pytest.raises(DeviceError, match="model"):
        AtapiCdrom(model="caf\u00e9")


def test_every_command_with_every_register_value_is_safe() -> None:
    for board in (disk_board(sectors=16)[0], cd_board(4)):
        for fill in (0x00, 0x01, 0x7F, 0xFF):
            for code in range(0x100):
                for device in (0xA0, 0xE0):
                    board.command(code, device=device, count=fill, feature=fill, lba=fill * 0x10101)
                    for width in (1, 2, 4):
                        board.ide.write(DATA, width, 0xFFFF_FFFF)
                        board.ide.read(DATA, width)
                board.out(ALT, 0x04)
                board.out(ALT, 0x80)


# ---- CD-ROM --------------------------------------------------------------------


def test_a_cdrom_aborts_identify_device_with_its_signature() -> None:
    board = cd_board()
    board.command(0xEC)
    assert board.get(STATUS) & ERR
    assert (board.get(ERROR), board.get(MID), board.get(HIGH)) == (ABRT, 0x14, 0xEB)


def test_identify_packet_device() -> None:
    board = cd_board()
    board.command(0xA1)
    words = struct.unpack("<256H", board.read_words(256))
    assert words[0] == 0x85C0
    assert words[49] & 0x0100 == 0
    assert board.get(STATUS) == READY


def test_device_reset_shows_the_signature_without_an_interrupt() -> None:
    board = cd_board()
    board.command(0x08)
    assert (board.get(COUNT), board.get(MID), board.get(HIGH), board.get(STATUS)) == (1, 0x14, 0xEB, 0)
    assert board.edges == 0


def test_packet_phases_follow_the_interrupt_reason() -> None:
    board = cd_board()
    board.out(MID, 0xFE)
    board.out(HIGH, 0xFF)
    board.out(ERROR, 0)
    board.out(STATUS, 0xA0)
    assert (board.get(ALT), board.get(COUNT), board.edges) == (READY | DRQ, 1, 0)
    board.write_words(bytes((0x12, 0, 0, 0, 36)).ljust(12, b"\0"))
    assert (board.get(STATUS), board.get(COUNT), board.edges) == (READY | DRQ, 2, 1)
    assert board.get(MID) | board.get(HIGH) << 8 == 36
    data = board.read_words(18)
    assert (board.get(STATUS), board.get(COUNT), board.edges) == (READY, 3, 2)
    assert data[:8] == bytes((5, 0x80, 0, 0x21, 31, 0, 0, 0))
    assert data[8:] == b"PYSIM   CD-ROM          1.0 "


def test_dma_packets_are_aborted() -> None:
    board = cd_board()
    board.command(0xA0, feature=1)
    assert board.get(ERROR) == ABRT


@pytest.mark.parametrize("limit", [2048, 65534, 65535, 0, 1, 3, 1000])
def test_read_10_gives_the_blocks_in_pieces_of_the_byte_count_limit(limit: int) -> None:
    board = cd_board()
    board.packet(0x28, 0, 0, 0, 0, 7, 0, 0, 40, limit=limit)
    assert board.packet_data() == disk_image(400)[7 * 2048 : 47 * 2048]
    assert board.get(STATUS) == READY


def test_read_12_to_the_last_block_and_not_beyond() -> None:
    board = cd_board(10)
    board.packet(0xA8, 0, 0, 0, 0, 9, 0, 0, 0, 1)
    assert board.packet_data() == disk_image(40)[9 * 2048 :]
    board.packet(0xA8, 0, 0, 0, 0, 9, 0, 0, 0, 2)
    assert board.get(STATUS) & ERR
    assert board.get(ERROR) == 0x54
    assert board.sense() == (5, 0x21, 0)
    assert board.sense() == (0, 0, 0)


def test_a_partial_last_block_is_padded() -> None:
    board = Board(AtapiCdrom(MemoryBlock(disk_image(5))))
    board.packet(0x25)
    assert board.packet_data() == struct.pack(">II", 1, 2048)
    board.packet(0x28, 0, 0, 0, 0, 1, 0, 0, 1)
    assert board.packet_data() == sector(4) + bytes(1536)


def test_a_zero_length_read_completes() -> None:
    board = cd_board()
    board.packet(0x28)
    assert board.get(STATUS) == READY
    assert board.get(COUNT) == 3


def test_an_empty_drive_is_not_ready() -> None:
    board = Board(AtapiCdrom())
    for operation in (0x00, 0x25, 0x28, 0x43):
        board.packet(operation)
        assert board.get(ERROR) == 0x24
        assert board.sense() == (2, 0x3A, 1)


def test_a_new_medium_is_announced_once() -> None:
    board = Board(AtapiCdrom())
    board.ide.change_medium(0, MemoryBlock(disk_image(8)))
    board.packet(0x12, 0, 0, 0, 36)
    assert len(board.packet_data()) == 36
    board.packet(0x00)
    assert board.sense() == (6, 0x28, 0)
    board.packet(0x00)
    assert board.get(STATUS) == READY
    with pytest.raises(DeviceError, match="not a CD-ROM"):
        board.ide.change_medium(1, None)


def test_eject_respects_the_lock() -> None:
    board = cd_board()
    board.packet(0x1E, 0, 0, 0, 1)
    board.packet(0x1B, 0, 0, 0, 2)
    assert board.sense() == (5, 0x53, 2)
    board.packet(0x1E, 0, 0, 0, 0)
    board.packet(0x1B, 0, 0, 0, 2)
    board.packet(0x00)
    assert board.sense() == (2, 0x3A, 2)
    board.packet(0x1B, 0, 0, 0, 3)
    board.packet(0x00)
    assert board.sense() == (6, 0x28, 0)


def test_read_toc_in_blocks_and_in_minutes() -> None:
    board = cd_board(100)
    board.packet(0x43, 0, 0, 0, 0, 0, 0, 0, 100)
    assert board.packet_data() == bytes.fromhex("00120101 00140100 00000000 0014aa00 00000064")
    board.packet(0x43, 2, 0, 0, 0, 0, 0xAA, 0, 100)
    assert board.packet_data() == bytes.fromhex("000a0101 0014aa00 00000319")
    board.packet(0x43, 0, 1, 0, 0, 0, 0, 0, 100)
    assert board.packet_data() == bytes.fromhex("000a0101 00140100 00000000")
    board.packet(0x43, 0, 0, 0, 0, 0, 2, 0, 100)
    assert board.sense() == (5, 0x24, 0)


def test_mode_sense_gives_pages_cut_to_the_allocation() -> None:
    board = cd_board()
    board.packet(0x5A, 0, 0x2A, 0, 0, 0, 0, 0, 255)
    page = board.packet_data()
    assert (len(page), page[:3], page[8:10]) == (28, bytes((0, 26, 1)), bytes((0x2A, 18)))
    board.packet(0x5A, 0, 0x3F, 0, 0, 0, 0, 0, 9)
    assert len(board.packet_data()) == 9
    board.packet(0x5A, 0, 0x41, 0, 0, 0, 0, 0, 255)
    assert board.packet_data()[8:] == bytes((1, 6, 0, 0, 0, 0, 0, 0))
    board.packet(0x5A, 0, 0xC1, 0, 0, 0, 0, 0, 255)
    assert board.sense() == (5, 0x39, 0)


def test_unknown_packets_are_illegal_requests() -> None:
    board = cd_board()
    board.packet(0x2A)
    assert board.sense() == (5, 0x20, 0)


def test_every_packet_is_safe() -> None:
    board = cd_board(2)
    for operation in range(0x100):
        for fill in (0x00, 0x02, 0xFF):
            board.packet(operation, *([fill] * 11), limit=fill)
            for _ in range(50):
                board.ide.read(DATA, 4)
