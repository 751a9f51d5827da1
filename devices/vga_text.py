"""VGA adapter as a text screen: registers, palette, display memory. It draws characters, never pixels.

Source: IBM PS/2 Hardware Interface Technical Reference, "Video Subsystem". It has two windows: `VgaText` at
ports 0x3C0-0x3DF and `VgaMemory` at 0xA0000-0xBFFFF. The monochrome ports 0x3B4-0x3BA are absent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from devices.base import Clock, Device
from devices.bytewide import UNDRIVEN, ByteDevice


class VgaPort:
    """Offsets in the port window 0x3C0-0x3DF."""

    ATTRIBUTE: Final = 0x00  # 0x3C0: index and data by turns; the flip-flop says which
    ATTRIBUTE_READ: Final = 0x01
    MISC_WRITE: Final = 0x02  # 0x3C2; reading it gives input status 0
    SEQUENCER_INDEX: Final = 0x04
    SEQUENCER_DATA: Final = 0x05
    DAC_MASK: Final = 0x06
    DAC_READ_INDEX: Final = 0x07  # 0x3C7; reading it gives the DAC's state
    DAC_WRITE_INDEX: Final = 0x08
    DAC_DATA: Final = 0x09
    FEATURE_READ: Final = 0x0A
    MISC_READ: Final = 0x0C
    GRAPHICS_INDEX: Final = 0x0E
    GRAPHICS_DATA: Final = 0x0F
    CRTC_INDEX: Final = 0x14
    CRTC_DATA: Final = 0x15
    STATUS_1: Final = 0x1A  # 0x3DA: input status 1; writing it sets feature control
    COUNT: Final = 0x20


SEQ_MAP_MASK: Final = 0x02
SEQ_MEMORY_MODE: Final = 0x04
SEQ_ODD_EVEN_OFF: Final = 0x04
SEQ_CHAIN_4: Final = 0x08

GC_SET_RESET: Final = 0x00
GC_ENABLE_SET_RESET: Final = 0x01
GC_COLOR_COMPARE: Final = 0x02
GC_ROTATE: Final = 0x03
GC_READ_MAP: Final = 0x04
GC_MODE: Final = 0x05
GC_MISC: Final = 0x06
GC_COLOR_DONT_CARE: Final = 0x07
GC_BIT_MASK: Final = 0x08
GC_MODE_COMPARE: Final = 0x08  # read mode 1
GC_MODE_ODD_EVEN: Final = 0x10

CRTC_HORIZONTAL_END: Final = 0x01
CRTC_OVERFLOW: Final = 0x07
CRTC_MAX_SCAN_LINE: Final = 0x09
CRTC_CURSOR_START: Final = 0x0A
CRTC_CURSOR_END: Final = 0x0B
CRTC_START_HIGH: Final = 0x0C
CRTC_START_LOW: Final = 0x0D
CRTC_CURSOR_HIGH: Final = 0x0E
CRTC_CURSOR_LOW: Final = 0x0F
CRTC_RETRACE_END: Final = 0x11
CRTC_VERTICAL_END: Final = 0x12
CRTC_OFFSET: Final = 0x13
CRTC_PROTECT: Final = 0x80  # in CRTC_RETRACE_END: registers 0-7 are read-only
CRTC_LINE_COMPARE_8: Final = 0x10  # in CRTC_OVERFLOW: writable even so
CURSOR_OFF: Final = 0x20

ATTR_MODE: Final = 0x10
ATTR_BLINK: Final = 0x08
ATTR_VIDEO_ON: Final = 0x20  # in the index: the palette belongs to the display

DAC_READING: Final = 0x03  # DAC state register
DAC_WRITING: Final = 0x00
STATUS_0_SWITCH: Final = 0x10  # a colour monitor is attached
STATUS_1_BLANK: Final = 0x01
STATUS_1_RETRACE: Final = 0x08

PLANE_SIZE: Final = 0x1_0000
PLANES: Final = 4
WINDOW_SIZE: Final = 0x2_0000  # 0xA0000-0xBFFFF
CELL_STRIDE: Final = 4  # bytes of display memory from one text cell to the next: one of each plane
TEXT_CELLS: Final = PLANE_SIZE

# Where the memory answers in the window, by graphics register 6 bits 3:2: (first, last + 1)
MEMORY_MAPS: Final = ((0x0_0000, 0x2_0000), (0x0_0000, 0x1_0000), (0x1_0000, 0x1_8000), (0x1_8000, 0x2_0000))

# 720x400 at 70 Hz: pixel clock 28.322 MHz, 900 dots a line, 449 lines a frame
LINE_NS: Final = 31_777
VISIBLE_NS: Final = 25_422
FRAME_LINES: Final = 449
VISIBLE_LINES: Final = 400
RETRACE_FIRST: Final = 412
RETRACE_LAST: Final = 413

MAX_COLUMNS: Final = 132
MAX_ROWS: Final = 60
BLANK_CELL: Final = b"\x20\x07\x00\x00"

# Register values of BIOS mode 3, 80x25 colour text with 9x16 characters
MODE_3_MISC: Final = 0x67
MODE_3_SEQUENCER: Final = bytes.fromhex("03 00 03 00 02")
MODE_3_CRTC: Final = bytes.fromhex(
    "5f 4f 50 82 55 81 bf 1f 00 4f 0d 0e 00 00 00 00 9c 8e 8f 28 1f 96 b9 a3 ff"
)
MODE_3_GRAPHICS: Final = bytes.fromhex("00 00 00 00 00 10 0e 00 ff")
MODE_3_ATTRIBUTE: Final = bytes.fromhex("00 01 02 03 04 05 14 07 38 39 3a 3b 3c 3d 3e 3f 0c 00 0f 08 00")

# Code page 437 below 0x20 and at 0x7F, where Python's codec gives control characters
CP437_LOW: Final = " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼"
CP437_DEL: Final = "⌂"


def _dac_power_on() -> bytearray:
    """The 64 colours of the EGA palette (6 bits each of red, green, blue), then black."""
    dac = bytearray(768)
    for index in range(64):
        for channel in range(3):  # red, green, blue: bits 2, 1, 0 weigh 42 and bits 5, 4, 3 weigh 21
            high = index >> (2 - channel) & 1
            low = index >> (5 - channel) & 1
            dac[3 * index + channel] = 42 * high + 21 * low
    return dac


@dataclass(slots=True)
class VgaTextState:
    """Every register and the display memory: four planes of 64 KiB, byte `4 * address + plane`."""

    # Quirk: the adapter wakes in mode 3 with a blank screen, as firmware would leave it.
    memory: bytearray = field(default_factory=lambda: bytearray(BLANK_CELL * PLANE_SIZE))
    misc: int = MODE_3_MISC
    feature: int = 0
    sequencer_index: int = 0
    sequencer: bytearray = field(default_factory=lambda: bytearray(MODE_3_SEQUENCER))
    crtc_index: int = 0
    crtc: bytearray = field(default_factory=lambda: bytearray(MODE_3_CRTC))
    graphics_index: int = 0
    graphics: bytearray = field(default_factory=lambda: bytearray(MODE_3_GRAPHICS))
    attribute_index: int = ATTR_VIDEO_ON
    attribute: bytearray = field(default_factory=lambda: bytearray(MODE_3_ATTRIBUTE))
    attribute_expects_data: bool = False  # the flip-flop of port 0x3C0
    dac: bytearray = field(default_factory=_dac_power_on)  # 256 times red, green, blue, 6 bits each
    dac_mask: int = 0xFF
    dac_state: int = DAC_WRITING
    dac_read: int = 0  # byte positions in `dac`
    dac_write: int = 0
    latches: bytearray = field(default_factory=lambda: bytearray(PLANES))


@dataclass(frozen=True, slots=True)
class Cell:
    """One character on the screen: its picture, code page 437 code, colours 0-15, and whether it blinks."""

    char: str
    code: int
    foreground: int
    background: int
    blink: bool


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where the cursor is (from 0), whether it shows, and its first and last scan line in the cell."""

    row: int
    column: int
    visible: bool
    first_line: int
    last_line: int


def cp437(code: int) -> str:
    """The picture of a code page 437 character, control codes included."""
    if code < len(CP437_LOW):
        return CP437_LOW[code]
    return CP437_DEL if code == 0x7F else bytes([code]).decode("cp437")


CP437: Final = "".join(cp437(code) for code in range(256))


class VgaText(ByteDevice):
    """The register file at ports 0x3C0-0x3DF, and what a viewer sees: `screen`, `screen_cells`, `cursor`.

    `memory()` gives the Device for 0xA0000-0xBFFFF. The retrace bits follow the clock.
    """

    name = "vga_text"

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.state: VgaTextState = VgaTextState()

    def memory(self) -> VgaMemory:
        """The window of the display memory; it shares this adapter's state."""
        return VgaMemory(self)

    def reset(self) -> None:
        """Mode 3, blank screen."""
        self.state = VgaTextState()

    def read_byte(self, offset: int) -> int:
        """The register at a port."""
        state = self.state
        match offset:
            # Quirk: bit 0 of the miscellaneous output does not move the CRTC to 0x3B4; it stays at 0x3D4.
            case VgaPort.STATUS_1:
                state.attribute_expects_data = False
                return self._status_1()
            case VgaPort.CRTC_DATA:
                return _register(state.crtc, state.crtc_index)
            case VgaPort.CRTC_INDEX:
                return state.crtc_index
            case VgaPort.ATTRIBUTE:
                return state.attribute_index
            case VgaPort.ATTRIBUTE_READ:
                return _register(state.attribute, state.attribute_index & 0x1F)
            case VgaPort.MISC_WRITE:
                return STATUS_0_SWITCH
            case VgaPort.SEQUENCER_INDEX:
                return state.sequencer_index
            case VgaPort.SEQUENCER_DATA:
                return _register(state.sequencer, state.sequencer_index)
            case VgaPort.DAC_MASK:
                return state.dac_mask
            case VgaPort.DAC_READ_INDEX:
                return state.dac_state
            case VgaPort.DAC_WRITE_INDEX:
                return state.dac_write // 3
            case VgaPort.DAC_DATA:
                value = state.dac[state.dac_read]
                state.dac_read = (state.dac_read + 1) % len(state.dac)
                return value
            case VgaPort.FEATURE_READ:
                return state.feature
            case VgaPort.MISC_READ:
                return state.misc
            case VgaPort.GRAPHICS_INDEX:
                return state.graphics_index
            case VgaPort.GRAPHICS_DATA:
                return _register(state.graphics, state.graphics_index)
            case _:
                return UNDRIVEN

    def write_byte(self, offset: int, value: int) -> None:
        """Store a register at a port."""
        state = self.state
        match offset:
            case VgaPort.CRTC_INDEX:
                state.crtc_index = value & 0x1F
            case VgaPort.CRTC_DATA:
                self._write_crtc(value)
            case VgaPort.ATTRIBUTE:
                self._write_attribute(value)
            case VgaPort.MISC_WRITE:
                state.misc = value
            case VgaPort.SEQUENCER_INDEX:
                state.sequencer_index = value & 0x07
            case VgaPort.SEQUENCER_DATA:
                _store(state.sequencer, state.sequencer_index, value)
            case VgaPort.DAC_MASK:
                state.dac_mask = value
            case VgaPort.DAC_READ_INDEX:
                state.dac_read = 3 * value
                state.dac_state = DAC_READING
            case VgaPort.DAC_WRITE_INDEX:
                state.dac_write = 3 * value
                state.dac_state = DAC_WRITING
            case VgaPort.DAC_DATA:
                state.dac[state.dac_write] = value & 0x3F
                state.dac_write = (state.dac_write + 1) % len(state.dac)
            case VgaPort.GRAPHICS_INDEX:
                state.graphics_index = value & 0x0F
            case VgaPort.GRAPHICS_DATA:
                _store(state.graphics, state.graphics_index, value)
            case VgaPort.STATUS_1:
                state.feature = value
            case _:
                pass

    # The viewer's side

    def size(self) -> tuple[int, int]:
        """(columns, rows) of the mode the guest set; 80x25 in mode 3, at most 132x60."""
        crtc = self.state.crtc
        overflow = crtc[CRTC_OVERFLOW]
        lines = (crtc[CRTC_VERTICAL_END] | (overflow & 0x02) << 7 | (overflow & 0x40) << 3) + 1
        height = (crtc[CRTC_MAX_SCAN_LINE] & 0x1F) + 1
        columns = min(crtc[CRTC_HORIZONTAL_END] + 1, MAX_COLUMNS)
        return columns, max(1, min(lines // height, MAX_ROWS))

    def screen(self) -> list[str]:
        """The rows of the screen, each as long as the screen is wide."""
        columns, rows = self.size()
        return [
            "".join(CP437[code] for code in self._row(row, columns)[::CELL_STRIDE]) for row in range(rows)
        ]

    def screen_cells(self) -> list[list[Cell]]:
        """The rows of the screen with colours."""
        columns, rows = self.size()
        blinks = bool(self.state.attribute[ATTR_MODE] & ATTR_BLINK)
        return [
            [
                _cell(code, attribute, blinks)
                for code, attribute in zip(data[::CELL_STRIDE], data[1::CELL_STRIDE], strict=True)
            ]
            for data in (self._row(row, columns) for row in range(rows))
        ]

    def cursor(self) -> Cursor:
        """The cursor; it is not visible when switched off, shapeless or outside the screen."""
        crtc = self.state.crtc
        columns, rows = self.size()
        place = (crtc[CRTC_CURSOR_HIGH] << 8 | crtc[CRTC_CURSOR_LOW]) - self._start()
        row, column = divmod(place, self._pitch() or columns)
        first = crtc[CRTC_CURSOR_START] & 0x1F
        last = crtc[CRTC_CURSOR_END] & 0x1F
        inside = 0 <= row < rows and 0 <= column < columns
        visible = inside and first <= last and not crtc[CRTC_CURSOR_START] & CURSOR_OFF
        return Cursor(row, column, visible, first, last)

    def _start(self) -> int:
        crtc = self.state.crtc
        return crtc[CRTC_START_HIGH] << 8 | crtc[CRTC_START_LOW]

    def _pitch(self) -> int:
        """Cells from one row to the next."""
        return self.state.crtc[CRTC_OFFSET] * 2

    def _row(self, row: int, columns: int) -> bytes:
        """The display memory under one row, CELL_STRIDE bytes a cell; the address wraps as on the chip."""
        memory = self.state.memory
        first = CELL_STRIDE * ((self._start() + row * self._pitch()) % TEXT_CELLS)
        data = bytes(memory[first : first + CELL_STRIDE * columns])
        return data + bytes(memory[: CELL_STRIDE * columns - len(data)])

    # Registers with a life of their own

    def _status_1(self) -> int:
        line, position = divmod(self._clock.now_ns(), LINE_NS)
        line %= FRAME_LINES
        status = 0
        if line >= VISIBLE_LINES or position >= VISIBLE_NS:
            status |= STATUS_1_BLANK
        if RETRACE_FIRST <= line <= RETRACE_LAST:
            status |= STATUS_1_RETRACE
        return status

    def _write_attribute(self, value: int) -> None:
        """Index and data by turns; the palette (0-15) takes data only while the display does not use it."""
        state = self.state
        if not state.attribute_expects_data:
            state.attribute_index = value & 0x3F
        else:
            index = state.attribute_index & 0x1F
            if index > 0x0F or not state.attribute_index & ATTR_VIDEO_ON:
                _store(state.attribute, index, value)
        state.attribute_expects_data = not state.attribute_expects_data

    def _write_crtc(self, value: int) -> None:
        state = self.state
        index = state.crtc_index
        if index <= CRTC_OVERFLOW and state.crtc[CRTC_RETRACE_END] & CRTC_PROTECT:
            if index == CRTC_OVERFLOW:
                kept = state.crtc[index] & ~CRTC_LINE_COMPARE_8
                state.crtc[index] = kept | value & CRTC_LINE_COMPARE_8
            return
        _store(state.crtc, index, value)


class VgaMemory(Device):
    """The display memory at 0xA0000-0xBFFFF; offset 0 is 0xA0000.

    Text modes address it in odd/even fashion, graphics modes by plane or chained by four, with all write
    and read modes of the graphics controller.
    """

    name = "vga_memory"

    def __init__(self, adapter: VgaText) -> None:
        self._adapter = adapter

    def read(self, offset: int, width: int) -> int:
        """`width` bytes at `offset`, lowest address first; the window's dark parts read all ones."""
        value = 0
        state = self._adapter.state
        first, end = MEMORY_MAPS[state.graphics[GC_MISC] >> 2 & 3]
        chained = state.sequencer[SEQ_MEMORY_MODE] & SEQ_CHAIN_4
        text = state.graphics[GC_MODE] & GC_MODE_ODD_EVEN and not chained
        if text and first <= offset and offset + width <= end:  # the usual case, in one go
            for i in range(width):
                value |= state.memory[_odd_even(offset - first + i)] << 8 * i
            return value
        for i in range(width):
            value |= self._read_byte(offset + i) << 8 * i
        return value

    def write(self, offset: int, width: int, value: int) -> None:
        """Store `width` bytes at `offset`, lowest address first; the window's dark parts ignore them."""
        state = self._adapter.state
        first, end = MEMORY_MAPS[state.graphics[GC_MISC] >> 2 & 3]
        text = not state.sequencer[SEQ_MEMORY_MODE] & (SEQ_CHAIN_4 | SEQ_ODD_EVEN_OFF)
        if text and state.sequencer[SEQ_MAP_MASK] & 3 == 3 and first <= offset and offset + width <= end:
            for i in range(width):  # the usual case, in one go
                state.memory[_odd_even(offset - first + i)] = value >> 8 * i & 0xFF
            return
        for i in range(width):
            self._write_byte(offset + i, value >> 8 * i & 0xFF)

    def _read_byte(self, offset: int) -> int:
        state = self._adapter.state
        graphics = state.graphics
        first, end = MEMORY_MAPS[graphics[GC_MISC] >> 2 & 3]
        if not first <= offset < end:
            return UNDRIVEN
        address = (offset - first) % PLANE_SIZE
        if state.sequencer[SEQ_MEMORY_MODE] & SEQ_CHAIN_4:
            return state.memory[_chained(address)]
        if graphics[GC_MODE] & GC_MODE_ODD_EVEN:
            return state.memory[_odd_even(address)]
        base = CELL_STRIDE * address
        state.latches[:] = state.memory[base : base + PLANES]
        if graphics[GC_MODE] & GC_MODE_COMPARE:
            return _compare(state)
        return state.latches[graphics[GC_READ_MAP] & 3]

    def _write_byte(self, offset: int, value: int) -> None:
        state = self._adapter.state
        first, end = MEMORY_MAPS[state.graphics[GC_MISC] >> 2 & 3]
        if not first <= offset < end:
            return
        address = (offset - first) % PLANE_SIZE
        mode = state.sequencer[SEQ_MEMORY_MODE]
        mask = state.sequencer[SEQ_MAP_MASK]
        if mode & SEQ_CHAIN_4:
            index = _chained(address)
            if mask >> (index & 3) & 1:
                state.memory[index] = value
        elif not mode & SEQ_ODD_EVEN_OFF:
            index = _odd_even(address)
            if mask >> (index & 3) & 1:
                state.memory[index] = value
        else:
            base = CELL_STRIDE * address
            planes = _merge(state, value)
            for plane in range(PLANES):
                if mask >> plane & 1:
                    state.memory[base + plane] = planes[plane]

    def reset(self) -> None:
        """Nothing of its own: the adapter holds the state."""


def _register(registers: bytearray, index: int) -> int:
    """An indexed register; an index without one reads 0."""
    return registers[index] if index < len(registers) else 0


def _store(registers: bytearray, index: int, value: int) -> None:
    """Store an indexed register; an index without one ignores it."""
    if index < len(registers):
        registers[index] = value


def _odd_even(address: int) -> int:
    """Byte position in the display memory for odd/even addressing: even to plane 0, odd to plane 1.

    Set/reset, rotation and bit mask do not apply in this mode.
    """
    # Quirk: a cell's two bytes lie at plane address `cell`, not `2 * cell` as in the chip's word mode. Only a
    # guest that reads text through another addressing mode can tell, and each cell is found in one step.
    return (address >> 1) % (PLANE_SIZE // 2) * CELL_STRIDE | address & 1


def _chained(address: int) -> int:
    """Byte position for chain-4 addressing: the low two address bits name the plane."""
    return address


def _compare(state: VgaTextState) -> int:
    """Read mode 1: a 1 for each pixel whose colour equals colour compare in the planes that matter."""
    result = 0xFF
    for plane in range(PLANES):
        if state.graphics[GC_COLOR_DONT_CARE] >> plane & 1:
            wanted = 0xFF if state.graphics[GC_COLOR_COMPARE] >> plane & 1 else 0
            result &= ~(state.latches[plane] ^ wanted)
    return result & 0xFF


def _merge(state: VgaTextState, value: int) -> list[int]:
    """What a planar write puts in each plane: write modes 0-3 with latches, rotation and bit mask."""
    graphics = state.graphics
    latches = state.latches
    write_mode = graphics[GC_MODE] & 3
    if write_mode == 1:
        return list(latches)
    bit_mask = graphics[GC_BIT_MASK]
    count = graphics[GC_ROTATE] & 7
    rotated = (value >> count | value << (8 - count)) & 0xFF
    result = []
    for plane in range(PLANES):
        fill = 0xFF if graphics[GC_SET_RESET] >> plane & 1 else 0
        match write_mode:
            case 0:
                data = fill if graphics[GC_ENABLE_SET_RESET] >> plane & 1 else rotated
            case 2:
                data = 0xFF if value >> plane & 1 else 0
            case _:
                data = fill
        match graphics[GC_ROTATE] >> 3 & 3:
            case 1:
                data &= latches[plane]
            case 2:
                data |= latches[plane]
            case 3:
                data ^= latches[plane]
            case _:
                pass
        keep = bit_mask & rotated if write_mode == 3 else bit_mask
        result.append(data & keep | latches[plane] & ~keep & 0xFF)
    return result


def _cell(code: int, attribute: int, blinks: bool) -> Cell:
    """A cell's colours; bit 7 of the attribute blinks or brightens the background."""
    background = attribute >> 4
    return Cell(
        char=CP437[code],
        code=code,
        foreground=attribute & 0x0F,
        background=background & 7 if blinks else background,
        blink=blinks and bool(background & 8),
    )
