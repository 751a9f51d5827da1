"""One ATA channel with up to two drives: hard disks and CD-ROMs, programmed I/O. No DMA, no timing of seeks.

Source: ATA/ATAPI-6 (INCITS 361), SFF-8020i and MMC for the packet commands. Ports 0x1F0-0x1F7 are offsets 0
to 7 and port 0x3F6 is offset 0x206. Every command finishes within the register write that gives or feeds it,
so BSY is seen only while software reset is held.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from devices.base import Device, DeviceError, IrqLine, ones
from devices.block import SECTOR_SIZE, BlockBackend, BlockError


class Reg:
    """Offsets of the command block and of the one control block register."""

    DATA: Final = 0
    ERROR: Final = 1  # written: features
    COUNT: Final = 2  # sector count; for packets the interrupt reason
    LOW: Final = 3
    MID: Final = 4  # for packets the byte count, with HIGH
    HIGH: Final = 5
    DEVICE: Final = 6
    STATUS: Final = 7  # written: command
    ALT_STATUS: Final = 0x206  # written: device control


STATUS_BSY: Final = 0x80
STATUS_DRDY: Final = 0x40
STATUS_DF: Final = 0x20
STATUS_DSC: Final = 0x10
STATUS_DRQ: Final = 0x08
STATUS_ERR: Final = 0x01
STATUS_READY: Final = STATUS_DRDY | STATUS_DSC

ERROR_UNC: Final = 0x40
ERROR_IDNF: Final = 0x10
ERROR_ABRT: Final = 0x04
DIAGNOSTIC_PASSED: Final = 0x01

DEVICE_OBSOLETE: Final = 0xA0  # two bits that read as ones on old drives
DEVICE_LBA: Final = 0x40
DEVICE_SELECT: Final = 0x10

CONTROL_HOB: Final = 0x80
CONTROL_SRST: Final = 0x04
CONTROL_NIEN: Final = 0x02

REASON_COMMAND: Final = 0x01  # CoD
REASON_TO_HOST: Final = 0x02  # IO

ATAPI_SIGNATURE: Final = (0x14, 0xEB)  # LBA mid and high of a packet device after reset

HEADS: Final = 16
SECTORS_PER_TRACK: Final = 63
CYLINDERS_MAX: Final = 16383  # ATA-6: the CHS geometry stops here, LBA goes on
LBA28_LIMIT: Final = 0x0FFF_FFFF
MULTIPLE_MAX: Final = 16  # sectors per block of READ and WRITE MULTIPLE

CD_BLOCK: Final = 2048
CD_SECTORS: Final = CD_BLOCK // SECTOR_SIZE
CD_READ_AHEAD: Final = 32  # blocks fetched at once, which bounds memory
PACKET_SIZE: Final = 12
PACKET_BYTES_MAX: Final = 0xFFFE  # most bytes of one packet data block
MSF_LEAD_IN: Final = 150  # frames before logical block 0


class Phase:
    """What the data port does. Plain integers: the port asks for every word."""

    IDLE: Final = 0
    DATA_IN: Final = 1
    DATA_OUT: Final = 2
    PACKET: Final = 3


class Addressing(IntEnum):
    """How the task file names a sector."""

    CHS = 0
    LBA28 = 1
    LBA48 = 2


class Power(IntEnum):
    """Power modes; the value is what CHECK POWER MODE answers."""

    STANDBY = 0x00
    SLEEP = 0x01  # never answered: a sleeping drive takes no command
    IDLE = 0x80
    ACTIVE = 0xFF


class Command:
    """ATA command codes (ATA/ATAPI-6, "Command descriptions")."""

    NOP: Final = 0x00
    DEVICE_RESET: Final = 0x08
    READ: Final = 0x20
    READ_NO_RETRY: Final = 0x21
    READ_EXT: Final = 0x24
    READ_MULTIPLE_EXT: Final = 0x29
    WRITE: Final = 0x30
    WRITE_NO_RETRY: Final = 0x31
    WRITE_EXT: Final = 0x34
    WRITE_MULTIPLE_EXT: Final = 0x39
    VERIFY: Final = 0x40
    VERIFY_NO_RETRY: Final = 0x41
    VERIFY_EXT: Final = 0x42
    DIAGNOSTIC: Final = 0x90
    INITIALIZE_PARAMETERS: Final = 0x91
    PACKET: Final = 0xA0
    IDENTIFY_PACKET: Final = 0xA1
    READ_MULTIPLE: Final = 0xC4
    WRITE_MULTIPLE: Final = 0xC5
    SET_MULTIPLE: Final = 0xC6
    STANDBY_IMMEDIATE: Final = 0xE0
    IDLE_IMMEDIATE: Final = 0xE1
    STANDBY: Final = 0xE2
    IDLE: Final = 0xE3
    CHECK_POWER: Final = 0xE5
    SLEEP: Final = 0xE6
    FLUSH: Final = 0xE7
    FLUSH_EXT: Final = 0xEA
    IDENTIFY: Final = 0xEC
    SET_FEATURES: Final = 0xEF


# The power commands of ATA-1 had other codes, which drives kept.
_POWER_ALIASES: Final = {
    0x94: Command.STANDBY_IMMEDIATE,
    0x95: Command.IDLE_IMMEDIATE,
    0x96: Command.STANDBY,
    0x97: Command.IDLE,
    0x98: Command.CHECK_POWER,
    0x99: Command.SLEEP,
}


class Feature:
    """Subcommands of SET FEATURES."""

    WRITE_CACHE_ON: Final = 0x02
    TRANSFER_MODE: Final = 0x03
    LOOK_AHEAD_OFF: Final = 0x55
    KEEP_SETTINGS: Final = 0x66
    WRITE_CACHE_OFF: Final = 0x82
    LOOK_AHEAD_ON: Final = 0xAA
    REVERT_SETTINGS: Final = 0xCC


class Packet:
    """Packet operation codes (MMC)."""

    TEST_UNIT_READY: Final = 0x00
    REQUEST_SENSE: Final = 0x03
    INQUIRY: Final = 0x12
    START_STOP: Final = 0x1B
    PREVENT_ALLOW: Final = 0x1E
    READ_CAPACITY: Final = 0x25
    READ_10: Final = 0x28
    SEEK_10: Final = 0x2B
    READ_TOC: Final = 0x43
    MODE_SENSE_10: Final = 0x5A
    READ_12: Final = 0xA8


class Sense:
    """Sense key, additional code and qualifier, as (key, ASC, ASCQ)."""

    NONE: Final = (0x0, 0x00, 0x00)
    NO_MEDIUM: Final = (0x2, 0x3A, 0x01)
    TRAY_OPEN: Final = (0x2, 0x3A, 0x02)
    UNREADABLE: Final = (0x3, 0x11, 0x00)
    BAD_OPERATION: Final = (0x5, 0x20, 0x00)
    BAD_BLOCK: Final = (0x5, 0x21, 0x00)
    BAD_FIELD: Final = (0x5, 0x24, 0x00)
    NO_SAVED_PAGES: Final = (0x5, 0x39, 0x00)
    REMOVAL_PREVENTED: Final = (0x5, 0x53, 0x02)
    MEDIUM_CHANGED: Final = (0x6, 0x28, 0x00)


def _check_text(drive: str, what: str, text: str, limit: int) -> None:
    if len(text) > limit or not text.isascii() or not text.isprintable():
        raise DeviceError(
            f"IDE {drive}: {what} {text!r} is not printable ASCII of up to {limit} characters; change it"
        )


@dataclass(frozen=True, slots=True)
class AtaDisk:
    """A hard disk: its medium and its texts for IDENTIFY DEVICE. DeviceError for texts that do not fit."""

    backend: BlockBackend
    model: str = "PYSIM ATA DISK"
    serial: str = "PS-0001"
    firmware: str = "1.0"

    def __post_init__(self) -> None:
        _check_text("disk", "model", self.model, 40)
        _check_text("disk", "serial", self.serial, 20)
        _check_text("disk", "firmware", self.firmware, 8)


@dataclass(frozen=True, slots=True)
class AtapiCdrom:
    """A CD-ROM drive, with a medium or empty. DeviceError for texts that do not fit."""

    backend: BlockBackend | None = None
    model: str = "PYSIM CD-ROM"
    serial: str = "PS-0002"
    firmware: str = "1.0"

    def __post_init__(self) -> None:
        _check_text("CD-ROM", "model", self.model, 40)
        _check_text("CD-ROM", "serial", self.serial, 20)
        _check_text("CD-ROM", "firmware", self.firmware, 8)


@dataclass(slots=True)
class DriveState:
    """One drive's registers, transfer and settings. Both drives latch every register the host writes."""

    feature: int = 0
    count: int = 1
    low: int = 1
    mid: int = 0
    high: int = 0
    previous_count: int = 0  # what 48-bit commands combine with the latest values
    previous_low: int = 0
    previous_mid: int = 0
    previous_high: int = 0
    status: int = 0
    error: int = DIAGNOSTIC_PASSED
    interrupt: bool = False
    phase: int = Phase.IDLE  # a Phase
    buffer: bytearray = field(default_factory=bytearray)  # the block that the data port moves
    position: int = 0
    writing: bool = False
    addressing: Addressing = Addressing.CHS
    lba: int = 0  # next sector (CD: block) of the transfer
    remaining: int = 0  # sectors (CD: blocks) not yet moved
    block: int = 1  # sectors per data block
    multiple: int = 0  # 0: READ and WRITE MULTIPLE are disabled
    cylinders: int = 0
    heads: int = HEADS
    track: int = SECTORS_PER_TRACK
    power: Power = Power.ACTIVE
    write_cache: bool = True
    look_ahead: bool = True
    # CD-ROM only
    packet: bool = False  # the data block belongs to a packet command
    staged: bytes = b""  # packet data not yet offered
    byte_limit: int = PACKET_BYTES_MAX
    sense: tuple[int, int, int] = Sense.NONE
    attention: bool = False
    tray_open: bool = False
    locked: bool = False


def _drives() -> list[DriveState]:
    return [DriveState(), DriveState()]


@dataclass(slots=True)
class IdeState:
    """Everything a snapshot needs: the shared device and control registers and both drives."""

    device: int = 0
    control: int = 0
    drives: list[DriveState] = field(default_factory=_drives)


def _ata_text(text: str, size: int) -> bytes:
    """ASCII padded with spaces, the first character in the high byte of each word."""
    padded = text.encode("ascii").ljust(size)
    return b"".join(padded[index + 1 : index + 2] + padded[index : index + 1] for index in range(0, size, 2))


def _put_words(image: bytearray, word: int, *values: int) -> None:
    struct.pack_into(f"<{len(values)}H", image, 2 * word, *values)


def _seal(image: bytearray) -> bytearray:
    """IDENTIFY word 255: signature and a checksum that makes all 512 bytes sum to zero."""
    image[510] = 0xA5
    image[511] = -sum(image[:511]) & 0xFF
    return image


class _Unit:
    """What disks and CD-ROMs share: registers, completion, power and feature commands."""

    signature: tuple[int, int] = (0, 0)
    ready_status: int = STATUS_READY  # status after reset

    def __init__(self, channel: IdeChannel, number: int) -> None:
        self.channel = channel
        self.number = number

    @property
    def state(self) -> DriveState:
        """This drive's part of the channel's state, which a snapshot may have replaced."""
        return self.channel.state.drives[self.number]

    def reset_registers(self) -> None:
        """Signature, diagnostic code and status after any reset; the channel cleared the device register."""
        state = self.state
        state.count = state.low = 1
        state.mid, state.high = self.signature
        state.previous_count = state.previous_low = state.previous_mid = state.previous_high = 0
        state.error = DIAGNOSTIC_PASSED
        state.status = self.ready_status
        state.interrupt = False
        state.power = Power.ACTIVE
        self.stop_transfer()

    def stop_transfer(self) -> None:
        state = self.state
        state.phase = Phase.IDLE
        state.buffer = bytearray()
        state.staged = b""
        state.position = state.remaining = 0

    def begin(self) -> None:
        """A command arrives: the last one is forgotten."""
        state = self.state
        self.stop_transfer()
        state.error = 0
        state.status = STATUS_READY
        state.interrupt = False
        state.writing = state.packet = False

    def complete(self) -> None:
        """The command succeeded."""
        state = self.state
        self.stop_transfer()
        state.status = STATUS_READY
        state.interrupt = True

    def fail(self, error: int, status: int = 0) -> None:
        """The command failed."""
        state = self.state
        self.stop_transfer()
        state.error = error
        state.status = STATUS_READY | STATUS_ERR | status
        state.interrupt = True

    def offer(self, data: bytes | bytearray) -> None:
        """Let the host read one data block."""
        state = self.state
        state.buffer = bytearray(data)
        if len(data) & 1:
            state.buffer.append(0)
        state.position = 0
        state.phase = Phase.DATA_IN
        state.status = STATUS_READY | STATUS_DRQ
        state.interrupt = True

    def command(self, code: int) -> None:
        """Carry out a command written to this drive."""
        raise NotImplementedError

    def block_done(self) -> None:
        """The host moved the whole data block."""
        raise NotImplementedError

    def common(self, code: int) -> None:
        """Commands that every drive knows; the rest is aborted."""
        state = self.state
        match code:
            case Command.STANDBY_IMMEDIATE | Command.STANDBY:
                state.power = Power.STANDBY
                self.complete()
            case Command.IDLE_IMMEDIATE | Command.IDLE:
                state.power = Power.IDLE
                self.complete()
            case Command.SLEEP:
                state.power = Power.SLEEP
                self.complete()
            case Command.CHECK_POWER:
                state.count = state.power
                self.complete()
            case Command.SET_FEATURES:
                if self._set_feature():
                    self.complete()
                else:
                    self.fail(ERROR_ABRT)
            case _:  # NOP too: it is defined to abort
                self.fail(ERROR_ABRT)

    def _set_feature(self) -> bool:
        state = self.state
        match state.feature:
            case Feature.WRITE_CACHE_ON:
                state.write_cache = True
            case Feature.WRITE_CACHE_OFF:
                state.write_cache = False
            case Feature.LOOK_AHEAD_ON:
                state.look_ahead = True
            case Feature.LOOK_AHEAD_OFF:
                state.look_ahead = False
            case Feature.TRANSFER_MODE:
                # PIO default (with or without IORDY) and PIO flow control modes 0 to 4; no DMA mode.
                return state.count in (0x00, 0x01) or 0x08 <= state.count <= 0x0C
            case Feature.KEEP_SETTINGS | Feature.REVERT_SETTINGS:
                pass  # settings survive a software reset either way
            case _:
                return False
        return True


class _Disk(_Unit):
    """The ATA command set on a block back-end."""

    def __init__(self, channel: IdeChannel, number: int, config: AtaDisk) -> None:
        super().__init__(channel, number)
        self.config = config
        self.backend = config.backend
        self.set_geometry(HEADS, SECTORS_PER_TRACK)

    def set_geometry(self, heads: int, track: int) -> None:
        state = self.state
        state.heads, state.track = heads, track
        state.cylinders = max(min(self.backend.sectors // (heads * track), CYLINDERS_MAX), 1)

    def command(self, code: int) -> None:
        self.begin()
        code = _POWER_ALIASES.get(code, code)
        match code:
            case Command.READ | Command.READ_NO_RETRY:
                self._start(writing=False, extended=False, block=1)
            case Command.WRITE | Command.WRITE_NO_RETRY:
                self._start(writing=True, extended=False, block=1)
            case Command.READ_MULTIPLE | Command.READ_MULTIPLE_EXT:
                self._start(
                    writing=False, extended=code == Command.READ_MULTIPLE_EXT, block=self.state.multiple
                )
            case Command.WRITE_MULTIPLE | Command.WRITE_MULTIPLE_EXT:
                self._start(
                    writing=True, extended=code == Command.WRITE_MULTIPLE_EXT, block=self.state.multiple
                )
            case Command.READ_EXT:
                self._start(writing=False, extended=True, block=1)
            case Command.WRITE_EXT:
                self._start(writing=True, extended=True, block=1)
            case Command.VERIFY | Command.VERIFY_NO_RETRY | Command.VERIFY_EXT:
                if self._locate(extended=code == Command.VERIFY_EXT):
                    self._moved(self.state.remaining)
                    self.complete()
            case Command.IDENTIFY:
                self.offer(self._identify())
            case Command.FLUSH | Command.FLUSH_EXT:
                self._flush()
            case Command.SET_MULTIPLE:
                self._set_multiple()
            case Command.INITIALIZE_PARAMETERS:
                track = self.state.count
                if track:
                    self.set_geometry((self.channel.state.device & 0xF) + 1, track)
                    self.complete()
                else:
                    self.fail(ERROR_ABRT)
            case _ if code >> 4 == 0x1:  # RECALIBRATE
                self.complete()
            case _ if code >> 4 == 0x7:  # SEEK
                self.state.count = 1  # it has no count: look at the one sector it names
                if self._locate(extended=False):
                    self.complete()
            case _:
                self.common(code)

    # ---- addresses ---------------------------------------------------------------------------------------

    def _locate(self, extended: bool) -> bool:
        """Take the address and count from the registers; ends the command if they leave the disk."""
        state, device = self.state, self.channel.state.device
        state.power = Power.ACTIVE
        if extended:
            state.addressing = Addressing.LBA48
            state.remaining = (state.previous_count << 8 | state.count) or 0x10000
            previous = state.previous_high << 16 | state.previous_mid << 8 | state.previous_low
            state.lba = previous << 24 | state.high << 16 | state.mid << 8 | state.low
        else:
            state.remaining = state.count or 0x100
            if device & DEVICE_LBA:
                state.addressing = Addressing.LBA28
                state.lba = (device & 0xF) << 24 | state.high << 16 | state.mid << 8 | state.low
            else:
                state.addressing = Addressing.CHS
                head, sector = device & 0xF, state.low
                if head >= state.heads or not 1 <= sector <= state.track:
                    self.fail(ERROR_IDNF)
                    return False
                state.lba = ((state.high << 8 | state.mid) * state.heads + head) * state.track + sector - 1
        if state.lba + state.remaining > self.backend.sectors:
            self.fail(ERROR_IDNF)
            return False
        return True

    def _moved(self, count: int) -> None:
        """Account for `count` finished sectors; the registers name the last one and what is left."""
        state, shared = self.state, self.channel.state
        last = state.lba + count - 1
        state.lba += count
        state.remaining -= count
        state.count = state.remaining & 0xFF
        match state.addressing:
            case Addressing.LBA48:
                state.previous_count = state.remaining >> 8 & 0xFF
                state.low, state.mid, state.high = last & 0xFF, last >> 8 & 0xFF, last >> 16 & 0xFF
                state.previous_low, state.previous_mid = last >> 24 & 0xFF, last >> 32 & 0xFF
                state.previous_high = last >> 40 & 0xFF
            case Addressing.LBA28:
                state.low, state.mid, state.high = last & 0xFF, last >> 8 & 0xFF, last >> 16 & 0xFF
                shared.device = shared.device & 0xF0 | last >> 24 & 0xF
            case _:
                track, sector = divmod(last, state.track)
                cylinder, head = divmod(track, state.heads)
                state.low, state.mid, state.high = sector + 1, cylinder & 0xFF, cylinder >> 8 & 0xFF
                shared.device = shared.device & 0xF0 | head

    # ---- transfers ---------------------------------------------------------------------------------------

    def _start(self, writing: bool, extended: bool, block: int) -> None:
        if not block:
            self.fail(ERROR_ABRT)  # a MULTIPLE command before SET MULTIPLE MODE
            return
        if not self._locate(extended):
            return
        state = self.state
        state.block, state.writing = block, writing
        if writing:
            self._expect_block()  # the first block is asked for without an interrupt
        else:
            self._offer_block()

    def _offer_block(self) -> None:
        state = self.state
        try:
            self.offer(self.backend.read(state.lba, min(state.block, state.remaining)))
        except BlockError:
            self.fail(ERROR_UNC)

    def _expect_block(self) -> None:
        state = self.state
        state.buffer = bytearray(min(state.block, state.remaining) * SECTOR_SIZE)
        state.position = 0
        state.phase = Phase.DATA_OUT
        state.status = STATUS_READY | STATUS_DRQ

    def block_done(self) -> None:
        state = self.state
        if state.writing:
            self._store_block()
        elif state.remaining:
            self._moved(len(state.buffer) // SECTOR_SIZE)
            if state.remaining:
                self._offer_block()
            else:
                self._end_of_data_in()
        else:
            self._end_of_data_in()  # IDENTIFY

    def _end_of_data_in(self) -> None:
        """Reading the last block ends the command without another interrupt."""
        self.stop_transfer()
        self.state.status = STATUS_READY

    def _store_block(self) -> None:
        state = self.state
        try:
            self.backend.write(state.lba, bytes(state.buffer))
        except BlockError:
            self.fail(ERROR_ABRT, STATUS_DF)
            return
        self._moved(len(state.buffer) // SECTOR_SIZE)
        if state.remaining:
            self._expect_block()
            state.interrupt = True
        elif state.write_cache:
            self.complete()
        else:
            self._flush()

    def _flush(self) -> None:
        try:
            self.backend.flush()
        except BlockError:
            self.fail(ERROR_ABRT, STATUS_DF)
        else:
            self.complete()

    def _set_multiple(self) -> None:
        state = self.state
        if state.count <= MULTIPLE_MAX and state.count.bit_count() <= 1:
            state.multiple = state.count  # 0 disables
            self.complete()
        else:
            state.multiple = 0
            self.fail(ERROR_ABRT)

    def _identify(self) -> bytearray:
        """IDENTIFY DEVICE data (ATA/ATAPI-6, "IDENTIFY DEVICE")."""
        state, config, sectors = self.state, self.config, self.backend.sectors
        image = bytearray(512)
        cylinders = max(min(sectors // (HEADS * SECTORS_PER_TRACK), CYLINDERS_MAX), 1)
        lba28 = min(sectors, LBA28_LIMIT)
        current = min(state.cylinders * state.heads * state.track, lba28)
        _put_words(image, 0, 0x0040, cylinders)  # fixed drive
        _put_words(image, 3, HEADS)
        _put_words(image, 6, SECTORS_PER_TRACK)
        image[20:40] = _ata_text(config.serial, 20)
        image[46:54] = _ata_text(config.firmware, 8)
        image[54:94] = _ata_text(config.model, 40)
        _put_words(image, 47, 0x8000 | MULTIPLE_MAX, 0x0001)  # the data port may be 32 bits wide
        _put_words(image, 49, 0x0A00, 0x4000, 0x0200)  # LBA, IORDY, no DMA; PIO mode 2
        _put_words(image, 53, 0x0003, state.cylinders, state.heads, state.track)
        _put_words(image, 57, current & 0xFFFF, current >> 16)
        _put_words(image, 59, 0x0100 | state.multiple if state.multiple else 0)
        _put_words(image, 60, lba28 & 0xFFFF, lba28 >> 16)
        _put_words(image, 64, 0x0003)  # PIO modes 3 and 4
        _put_words(image, 67, 120, 120)  # shortest PIO cycles in ns
        _put_words(image, 80, 0x0070)  # ATA/ATAPI-4 to 6
        enabled = 0x4008 | state.write_cache << 5 | state.look_ahead << 6
        _put_words(image, 82, 0x4068, 0x7400, 0x4000, enabled, 0x3400, 0x4000)  # NOP, caches, LBA48, FLUSH
        struct.pack_into("<Q", image, 200, sectors)
        return _seal(image)


class _Cdrom(_Unit):
    """The packet command set of a read-only CD-ROM drive."""

    signature = ATAPI_SIGNATURE
    ready_status = 0  # SFF-8020i: DRDY stays off until the first packet command

    def __init__(self, channel: IdeChannel, number: int, config: AtapiCdrom) -> None:
        super().__init__(channel, number)
        self.config = config
        self.backend = config.backend

    def command(self, code: int) -> None:
        if code == Command.DEVICE_RESET:
            self.channel.state.device &= DEVICE_SELECT
            self.reset_registers()
            return
        self.begin()
        code = _POWER_ALIASES.get(code, code)
        state = self.state
        match code:
            case Command.PACKET if not state.feature & 1:  # bit 0 asks for DMA
                limit = state.high << 8 | state.mid
                # Quirk: a byte count limit of 0 or 1, which moves nothing, counts as the largest.
                state.byte_limit = min(limit, PACKET_BYTES_MAX) if limit > 1 else PACKET_BYTES_MAX
                state.power = Power.ACTIVE
                state.count = REASON_COMMAND
                state.buffer = bytearray(PACKET_SIZE)
                state.phase = Phase.PACKET
                state.status = STATUS_READY | STATUS_DRQ
            case Command.IDENTIFY_PACKET:
                self.offer(self._identify())
            case Command.IDENTIFY | Command.READ:
                # A packet device aborts these and shows its signature, by which hosts recognise it.
                state.count = state.low = 1
                state.mid, state.high = self.signature
                self.fail(ERROR_ABRT)
            case _:
                self.common(code)

    def block_done(self) -> None:
        state = self.state
        if state.phase == Phase.PACKET:
            packet = bytes(state.buffer)
            self.stop_transfer()
            state.packet = True
            self._packet(packet)
        elif state.packet:
            self._offer_packet_data()
        else:  # IDENTIFY PACKET DEVICE
            self.stop_transfer()
            state.status = STATUS_READY

    # ---- completion --------------------------------------------------------------------------------------

    def _finish(self) -> None:
        self.complete()
        self.state.count = REASON_COMMAND | REASON_TO_HOST

    def _check_condition(self, sense: tuple[int, int, int]) -> None:
        state = self.state
        state.sense = sense
        self.fail(sense[0] << 4 | ERROR_ABRT)
        state.count = REASON_COMMAND | REASON_TO_HOST

    def _reply(self, data: bytes, allocation: int) -> None:
        """Send at most `allocation` bytes of `data`."""
        self.state.staged = data[:allocation]
        self._offer_packet_data()

    def _offer_packet_data(self) -> None:
        """The next data block of at most the byte count limit, or the end of the command."""
        state = self.state
        left = len(state.staged) + state.remaining * CD_BLOCK
        if not left:
            self._finish()
            return
        size = min(left, state.byte_limit)
        if size < left:
            size &= ~1  # only the last block may be odd
        while len(state.staged) < size:
            blocks = min(state.remaining, CD_READ_AHEAD)
            try:
                state.staged += self._read_blocks(state.lba, blocks)
            except BlockError:
                self._check_condition(Sense.UNREADABLE)
                return
            state.lba += blocks
            state.remaining -= blocks
        data, state.staged = state.staged[:size], state.staged[size:]
        state.mid, state.high = size & 0xFF, size >> 8
        state.count = REASON_TO_HOST
        self.offer(data)

    # ---- medium ------------------------------------------------------------------------------------------

    def change_medium(self, backend: BlockBackend | None) -> None:
        """The operator swaps the disc; the guest hears of it with its next packet."""
        self.backend = backend
        state = self.state
        state.tray_open = False
        state.attention = True

    def _blocks(self) -> int:
        return -(-self.backend.sectors // CD_SECTORS) if self.backend is not None else 0

    def _read_blocks(self, lba: int, blocks: int) -> bytes:
        if self.backend is None:
            raise BlockError("IDE CD-ROM: the medium left during a read; insert one")
        first = lba * CD_SECTORS
        count = min(blocks * CD_SECTORS, self.backend.sectors - first)
        return self.backend.read(first, count).ljust(blocks * CD_BLOCK, b"\0")

    def _medium_missing(self) -> bool:
        """Whether there is no medium; then the command has ended with that."""
        if self.state.tray_open:
            self._check_condition(Sense.TRAY_OPEN)
        elif self.backend is None:
            self._check_condition(Sense.NO_MEDIUM)
        else:
            return False
        return True

    # ---- packet commands ---------------------------------------------------------------------------------

    def _packet(self, packet: bytes) -> None:
        state = self.state
        operation = packet[0]
        if state.attention and operation not in (Packet.INQUIRY, Packet.REQUEST_SENSE):
            state.attention = False
            self._check_condition(Sense.MEDIUM_CHANGED)
            return
        if operation != Packet.REQUEST_SENSE:
            state.sense = Sense.NONE
        match operation:
            case Packet.TEST_UNIT_READY:
                if not self._medium_missing():
                    self._finish()
            case Packet.REQUEST_SENSE:
                self._request_sense(packet[4])
            case Packet.INQUIRY:
                if packet[1] & 1:  # vital product data
                    self._check_condition(Sense.BAD_FIELD)
                else:
                    self._reply(self._inquiry(), int.from_bytes(packet[3:5], "big"))
            case Packet.READ_10:
                self._read(int.from_bytes(packet[2:6], "big"), int.from_bytes(packet[7:9], "big"))
            case Packet.READ_12:
                self._read(int.from_bytes(packet[2:6], "big"), int.from_bytes(packet[6:10], "big"))
            case Packet.SEEK_10:
                if not self._medium_missing():
                    if int.from_bytes(packet[2:6], "big") < self._blocks():
                        self._finish()
                    else:
                        self._check_condition(Sense.BAD_BLOCK)
            case Packet.READ_CAPACITY:
                if not self._medium_missing():
                    self._reply(struct.pack(">II", max(self._blocks() - 1, 0), CD_BLOCK), 8)
            case Packet.READ_TOC:
                self._read_toc(packet)
            case Packet.MODE_SENSE_10:
                self._mode_sense(packet)
            case Packet.PREVENT_ALLOW:
                state.locked = bool(packet[4] & 1)
                self._finish()
            case Packet.START_STOP:
                self._start_stop(packet[4])
            case _:
                self._check_condition(Sense.BAD_OPERATION)

    def _read(self, lba: int, blocks: int) -> None:
        if self._medium_missing():
            return
        if lba + blocks > self._blocks():
            self._check_condition(Sense.BAD_BLOCK)
            return
        state = self.state
        state.lba, state.remaining = lba, blocks
        self._offer_packet_data()

    def _request_sense(self, allocation: int) -> None:
        state = self.state
        key, code, qualifier = state.sense
        if state.attention:
            key, code, qualifier = Sense.MEDIUM_CHANGED
            state.attention = False
        state.sense = Sense.NONE
        reply = bytearray(18)
        reply[0] = 0x70  # current error, fixed format
        reply[2] = key
        reply[7] = len(reply) - 8
        reply[12:14] = code, qualifier
        self._reply(bytes(reply), allocation)

    def _inquiry(self) -> bytes:
        # Device type CD-ROM, removable, ATAPI format, 31 more bytes; then vendor, product, revision.
        head = bytes((0x05, 0x80, 0x00, 0x21, 31, 0, 0, 0))
        vendor, _, product = self.config.model.rpartition(" ")
        text = vendor[:8].ljust(8) + product[:16].ljust(16) + self.config.firmware[:4].ljust(4)
        return head + text.encode("ascii")

    def _read_toc(self, packet: bytes) -> None:
        if self._medium_missing():
            return
        msf = bool(packet[1] & 2)
        toc_format = packet[2] & 0xF or packet[9] >> 6  # SFF-8020i kept the format in byte 9
        start = packet[6]
        allocation = int.from_bytes(packet[7:9], "big")
        track = bytes((0, 0x14, 1, 0)) + self._toc_address(0, msf)  # a data track
        lead_out = bytes((0, 0x14, 0xAA, 0)) + self._toc_address(self._blocks(), msf)
        if toc_format == 0 and (start <= 1 or start == 0xAA):
            body = (track if start <= 1 else b"") + lead_out
        elif toc_format == 1:
            body = track  # the first track of the last session
        else:
            self._check_condition(Sense.BAD_FIELD)
            return
        self._reply(struct.pack(">HBB", len(body) + 2, 1, 1) + body, allocation)

    @staticmethod
    def _toc_address(lba: int, msf: bool) -> bytes:
        if not msf:
            return struct.pack(">I", lba)
        seconds, frame = divmod(lba + MSF_LEAD_IN, 75)
        minute, second = divmod(seconds, 60)
        return bytes((0, min(minute, 0xFF), second, frame))

    def _mode_sense(self, packet: bytes) -> None:
        control, code = packet[2] >> 6, packet[2] & 0x3F
        if control == 3:
            self._check_condition(Sense.NO_SAVED_PAGES)
            return
        pages = {
            0x01: bytes((0x01, 6, 0x00, 5, 0, 0, 0, 0)),  # error recovery: 5 retries
            0x0E: bytes((0x0E, 14, 0x04, 0, 0, 0, 0, 75)) + bytes(8),  # audio control
            # Capabilities: reads CD-R and CD-RW; tray that locks and ejects; 706 kB/s; 64 KiB of buffer.
            0x2A: bytes((0x2A, 18, 0x03, 0, 0, 0, 0x29 | self.state.locked << 1, 0))
            + struct.pack(">HHHH", 706, 0, 64, 706)
            + bytes(4),
        }
        if code == 0x3F:
            chosen = list(pages.values())
        elif code in pages:
            chosen = [pages[code]]
        else:
            self._check_condition(Sense.BAD_FIELD)
            return
        if control == 1:  # changeable values: none is
            chosen = [page[:2] + bytes(len(page) - 2) for page in chosen]
        body = b"".join(chosen)
        if self.state.tray_open:
            medium = 0x71
        else:
            medium = 0x70 if self.backend is None else 0x01  # no disc, 120 mm data disc
        header = struct.pack(">HB5x", len(body) + 6, medium)
        self._reply(header + body, int.from_bytes(packet[7:9], "big"))

    def _start_stop(self, flags: int) -> None:
        state = self.state
        load_eject, start = flags & 2, flags & 1
        if load_eject and not start:
            if state.locked:
                self._check_condition(Sense.REMOVAL_PREVENTED)
                return
            state.tray_open = True
        elif load_eject and state.tray_open:
            state.tray_open = False
            state.attention = self.backend is not None
        self._finish()

    def _identify(self) -> bytearray:
        """IDENTIFY PACKET DEVICE data (ATA/ATAPI-6, "IDENTIFY PACKET DEVICE")."""
        config = self.config
        image = bytearray(512)
        _put_words(image, 0, 0x85C0)  # ATAPI, CD-ROM, removable, DRQ within 50 us, 12-byte packets
        image[20:40] = _ata_text(config.serial, 20)
        image[46:54] = _ata_text(config.firmware, 8)
        image[54:94] = _ata_text(config.model, 40)
        _put_words(image, 49, 0x0A00, 0x4000, 0x0200)  # LBA, IORDY, no DMA; PIO mode 2
        _put_words(image, 53, 0x0002)
        _put_words(image, 64, 0x0003)  # PIO modes 3 and 4
        _put_words(image, 67, 120, 120)  # shortest PIO cycles in ns
        _put_words(image, 80, 0x0070)  # ATA/ATAPI-4 to 6
        _put_words(image, 82, 0x4218, 0x4000, 0x4000, 0x4218, 0x0000, 0x4000)  # NOP, DEVICE RESET, PACKET
        return _seal(image)


class IdeChannel(Device):
    """A channel with a master (device 0) and a slave (device 1), each a disk, a CD-ROM or absent.

    An absent slave reads as zero, answered by the master; a channel without a master floats (all ones).
    """

    name = "ide"
    state: IdeState

    def __init__(
        self,
        master: AtaDisk | AtapiCdrom | None = None,
        slave: AtaDisk | AtapiCdrom | None = None,
        irq: IrqLine | None = None,
    ) -> None:
        self._irq = irq if irq is not None else IrqLine()
        self.state = IdeState()
        self._units = (self._unit(0, master), self._unit(1, slave))
        self._after_reset()

    def _unit(self, number: int, config: AtaDisk | AtapiCdrom | None) -> _Unit | None:
        if config is None:
            return None
        return _Disk(self, number, config) if isinstance(config, AtaDisk) else _Cdrom(self, number, config)

    def reset(self) -> None:
        """Power-on: both drives forget their settings; media stay."""
        self.state = IdeState()
        for unit in self._units:
            if isinstance(unit, _Disk):
                unit.set_geometry(HEADS, SECTORS_PER_TRACK)
        self._after_reset()

    def rearm(self) -> None:
        """Drive the interrupt line from `state`."""
        self._update_irq()

    def change_medium(self, number: int, backend: BlockBackend | None) -> None:
        """Swap the disc in CD-ROM drive `number` (0 or 1), None empties it; the guest gets a unit attention.

        DeviceError when that drive is not a CD-ROM. The tray closes; a lock by the guest does not hinder it.
        Which medium is in is not part of `state`: a snapshot does not swap discs back.
        """
        unit = self._units[number] if number in (0, 1) else None
        if not isinstance(unit, _Cdrom):
            raise DeviceError(f"IDE channel: drive {number} is not a CD-ROM; change media of CD-ROMs only")
        unit.change_medium(backend)

    # ---- registers ---------------------------------------------------------------------------------------

    def read(self, offset: int, width: int) -> int:
        """A register of the selected drive; the data port moves 16 or 32 bits, the others are bytes."""
        state = self.state
        drive = state.drives[state.device >> 4 & 1]
        if offset == 0:  # Reg.DATA, the one that must be fast
            return self._read_data(drive, width)
        if width > 1:  # byte registers: the ISA bus makes one cycle for each byte
            return sum(self.read(offset + index, 1) << 8 * index for index in range(width))
        absent = self._absent_value()
        if absent is not None:
            return absent if offset <= Reg.STATUS or offset == Reg.ALT_STATUS else 0xFF
        previous = state.control & CONTROL_HOB
        match offset:
            case Reg.STATUS:
                drive.interrupt = False
                self._update_irq()
                return drive.status
            case Reg.ALT_STATUS:
                return drive.status
            case Reg.ERROR:
                return drive.error
            case Reg.COUNT:
                return drive.previous_count if previous else drive.count
            case Reg.LOW:
                return drive.previous_low if previous else drive.low
            case Reg.MID:
                return drive.previous_mid if previous else drive.mid
            case Reg.HIGH:
                return drive.previous_high if previous else drive.high
            case Reg.DEVICE:
                return state.device | DEVICE_OBSOLETE
            case _:
                return 0xFF  # nothing is there

    def write(self, offset: int, width: int, value: int) -> None:
        """A register of both drives, a command to the selected one, or data."""
        state = self.state
        if offset == Reg.DATA:
            self._write_data(state.drives[state.device >> 4 & 1], width, value)
            return
        if width > 1:
            for index in range(width):
                self.write(offset + index, 1, value >> 8 * index & 0xFF)
            return
        value &= 0xFF
        if offset == Reg.ALT_STATUS:
            self._write_control(value)
            return
        if state.control & CONTROL_SRST:
            return  # both drives are busy
        state.control &= ~CONTROL_HOB  # any command block write clears it
        match offset:
            case Reg.ERROR:
                for drive in state.drives:
                    drive.feature = value
            case Reg.COUNT:
                for drive in state.drives:
                    drive.previous_count, drive.count = drive.count, value
            case Reg.LOW:
                for drive in state.drives:
                    drive.previous_low, drive.low = drive.low, value
            case Reg.MID:
                for drive in state.drives:
                    drive.previous_mid, drive.mid = drive.mid, value
            case Reg.HIGH:
                for drive in state.drives:
                    drive.previous_high, drive.high = drive.high, value
            case Reg.DEVICE:
                state.device = value
                self._update_irq()
            case Reg.STATUS:
                self._command(value)
                self._update_irq()
            case _:
                pass  # nothing is there

    def _absent_value(self) -> int | None:
        """What a byte register reads when the selected drive is absent, None when it is there."""
        if self._units[self.state.device >> 4 & 1] is not None:
            return None
        return 0 if self._units[0] is not None else 0xFF

    def _command(self, code: int) -> None:
        if code == Command.DIAGNOSTIC:  # for both drives, whichever is selected
            for unit in self._units:
                if unit is not None:
                    unit.reset_registers()
            self.state.device &= ~(DEVICE_SELECT | 0xF)
            self.state.drives[0].interrupt = self._units[0] is not None
            return
        unit = self._units[self.state.device >> 4 & 1]
        if unit is None:
            return
        if unit.state.power == Power.SLEEP and code != Command.DEVICE_RESET:
            return  # a sleeping drive wakes up by reset only
        unit.command(code)

    def _write_control(self, value: int) -> None:
        state = self.state
        was_reset = state.control & CONTROL_SRST
        state.control = value & (CONTROL_HOB | CONTROL_SRST | CONTROL_NIEN)
        if value & CONTROL_SRST:
            for unit in self._units:
                if unit is not None:
                    unit.stop_transfer()
                    unit.state.status = STATUS_BSY
                    unit.state.interrupt = False
        elif was_reset:
            self._after_reset()
        self._update_irq()

    def _after_reset(self) -> None:
        self.state.device = 0
        for unit in self._units:
            if unit is not None:
                unit.reset_registers()
        self._update_irq()

    def _update_irq(self) -> None:
        """INTRQ is driven by the selected drive, unless nIEN releases it."""
        state = self.state
        pending = state.drives[state.device >> 4 & 1].interrupt
        self._irq.set_level(pending and not state.control & CONTROL_NIEN)

    # ---- the data port -----------------------------------------------------------------------------------

    def _read_data(self, drive: DriveState, width: int) -> int:
        if drive.phase != Phase.DATA_IN:
            return ones(width)  # no drive answers
        position, buffer = drive.position, drive.buffer
        if width == 2:
            value: int = buffer[position] | buffer[position + 1] << 8
        elif width == 4:  # the host adapter makes two 16-bit cycles of it
            value = int.from_bytes(buffer[position : position + 4], "little")
        else:
            width, value = 2, buffer[position]  # the drive still moves on by a word
        position += width
        drive.position = position
        if position >= len(buffer):
            self._block_done()
        return value

    def _write_data(self, drive: DriveState, width: int, value: int) -> None:
        if drive.phase not in (Phase.DATA_OUT, Phase.PACKET):
            return
        position, buffer = drive.position, drive.buffer
        buffer[position] = value & 0xFF
        buffer[position + 1] = value >> 8 & 0xFF if width > 1 else 0
        if width == 4 and position + 2 < len(buffer):
            buffer[position + 2] = value >> 16 & 0xFF
            buffer[position + 3] = value >> 24 & 0xFF
        position += max(width, 2)
        drive.position = position
        if position >= len(buffer):
            self._block_done()

    def _block_done(self) -> None:
        unit = self._units[self.state.device >> 4 & 1]
        if unit is not None:
            unit.block_done()
            self._update_irq()
