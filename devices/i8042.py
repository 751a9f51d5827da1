"""8042 keyboard controller with a PS/2 keyboard and a PS/2 mouse. No USB, and no key repeats by itself.

Sources: IBM PS/2 Hardware Interface Technical Reference, sections "Keyboard and Auxiliary Device Controller",
"101/102-Key Keyboard" and "Mouse"; the translation from scan code set 2 to set 1 is the AT controller's.

The host types in the keyboard's own language, scan code set 2 as it leaves the factory. Keys wait in a
backlog and enter the keyboard one at a time, at the pace of its serial line, while the guest reads them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from devices.base import Clock, DeviceError, IrqLine
from devices.bytewide import UNDRIVEN, ByteDevice


class Offset:
    """Register offsets from port 0x60."""

    DATA = 0
    STATUS_COMMAND = 4  # status when read, controller command when written


STATUS_OUTPUT_FULL = 0x01
STATUS_SYSTEM = 0x04  # self-test passed
STATUS_COMMAND = 0x08  # A2 of the last write: it was a command
STATUS_NOT_INHIBITED = 0x10  # the key lock is open
STATUS_AUX_DATA = 0x20  # the byte in the output buffer is the mouse's

COMMAND_KEYBOARD_INTERRUPT = 0x01
COMMAND_AUX_INTERRUPT = 0x02
COMMAND_SYSTEM = 0x04
COMMAND_KEYBOARD_DISABLED = 0x10
COMMAND_AUX_DISABLED = 0x20
COMMAND_TRANSLATE = 0x40
# What firmware leaves: keyboard interrupt on, mouse off, translation to set 1. Firmware itself rewrites it.
POWER_ON_COMMAND_BYTE = COMMAND_KEYBOARD_INTERRUPT | COMMAND_SYSTEM | COMMAND_AUX_DISABLED | COMMAND_TRANSLATE

OUTPUT_PORT_NOT_RESET = 0x01
OUTPUT_PORT_A20 = 0x02
OUTPUT_PORT_KEYBOARD_FULL = 0x10
OUTPUT_PORT_AUX_FULL = 0x20
OUTPUT_PORT_HIGH = 0xCC  # pins that nothing on the board pulls down

INPUT_PORT_UNLOCKED = 0x80

SELF_TEST_PASSED = 0x55
INTERFACE_TEST_PASSED = 0x00


class Command:
    """Controller commands, written to port 0x64."""

    READ_RAM = 0x20  # to 0x3F; the first byte is the command byte
    WRITE_RAM = 0x60  # to 0x7F
    DISABLE_AUX = 0xA7
    ENABLE_AUX = 0xA8
    TEST_AUX = 0xA9
    SELF_TEST = 0xAA
    TEST_KEYBOARD = 0xAB
    DISABLE_KEYBOARD = 0xAD
    ENABLE_KEYBOARD = 0xAE
    READ_INPUT_PORT = 0xC0
    READ_OUTPUT_PORT = 0xD0
    WRITE_OUTPUT_PORT = 0xD1
    WRITE_KEYBOARD_BUFFER = 0xD2
    WRITE_AUX_BUFFER = 0xD3
    WRITE_AUX = 0xD4
    A20_OFF = 0xDD
    A20_ON = 0xDF
    READ_TEST_INPUTS = 0xE0
    PULSE_OUTPUT_PORT = 0xF0  # to 0xFF: a zero in bits 3:0 pulses that pin low


class Ps2:
    """What keyboard and mouse say, and the commands they share."""

    ACK = 0xFA
    RESEND = 0xFE
    SELF_TEST_PASSED = 0xAA
    ENABLE = 0xF4
    DISABLE = 0xF5
    SET_DEFAULTS = 0xF6
    RESET = 0xFF


class KeyboardCommand:
    """Commands of the keyboard alone."""

    SET_LEDS = 0xED
    ECHO = 0xEE
    SCAN_CODE_SET = 0xF0
    IDENTIFY = 0xF2
    TYPEMATIC = 0xF3
    ALL_TYPEMATIC = 0xF7  # set 3 only, down to SET_MAKE
    ALL_MAKE_BREAK = 0xF8
    ALL_MAKE = 0xF9
    ALL_TYPEMATIC_MAKE_BREAK = 0xFA
    SET_TYPEMATIC = 0xFB
    SET_MAKE_BREAK = 0xFC
    SET_MAKE = 0xFD


class MouseCommand:
    """Commands of the mouse alone."""

    SCALING_1_TO_1 = 0xE6
    SCALING_2_TO_1 = 0xE7
    RESOLUTION = 0xE8
    STATUS = 0xE9
    STREAM_MODE = 0xEA
    READ_DATA = 0xEB
    END_WRAP_MODE = 0xEC
    WRAP_MODE = 0xEE
    REMOTE_MODE = 0xF0
    IDENTIFY = 0xF2
    SAMPLE_RATE = 0xF3


KEYBOARD_ID = (0xAB, 0x83)
MOUSE_ID = 0x00  # a wheelless mouse
DEFAULT_TYPEMATIC = 0x2B  # 500 ms, 10.9 characters a second
DEFAULT_RESOLUTION = 2  # 4 counts a millimetre
DEFAULT_SAMPLE_RATE = 100

QUEUE_BYTES = 64  # answers and codes a device holds; what a guest that never reads asks for beyond it is lost
BACKLOG_KEYS = 1 << 16  # key events of the host that may wait
BACKLOG_MOVES = 256  # mouse events that may wait before they merge
KEY_BYTE_NS = 1_000_000  # about one byte of 11 bits on a 12 kHz keyboard clock

BREAK = 0xF0
EXTENDED = 0xE0
PAUSE = 0xE1
KEY_BYTES = 8  # the longest sequence of one key: Pause, E1 14 77 E1 F0 14 F0 77

# Set 2 code -> set 1 code, as the controller translates; codes from 0x80 on pass, but for the two below.
TRANSLATION = bytes.fromhex(
    "ff43413f3d3b3c58644442403e0f2959"
    "65382a701d10025a66712c1f1e11035b"
    "672e2d201205045c68392f211413065d"
    "693130232215075e6a7232241608095f"
    "6b332517180b0a606c34352627190c61"
    "6d7328741a0d626e3a361c1b752b6376"
    "55567778797a0e7b7c4f7d4b477e7f6f"
    "5253504c4d480145574e514a37494654"
)
TRANSLATION_HIGH = {0x83: 0x41, 0x84: 0x54}  # F7, and SysRq beside Alt

# Set 2 code -> set 3 code where they differ; the second table is for codes after E0.
SET_3 = {
    0x76: 0x08, 0x05: 0x07, 0x06: 0x0F, 0x04: 0x17, 0x0C: 0x1F, 0x03: 0x27, 0x0B: 0x2F, 0x83: 0x37,
    0x0A: 0x3F, 0x01: 0x47, 0x09: 0x4F, 0x78: 0x56, 0x07: 0x5E, 0x7E: 0x5F, 0x5D: 0x5C, 0x58: 0x14,
    0x14: 0x11, 0x11: 0x19, 0x77: 0x76, 0x7C: 0x7E, 0x7B: 0x84, 0x79: 0x7C, 0x61: 0x13, 0x84: 0x57,
}  # fmt: skip
SET_3_EXTENDED = {
    0x14: 0x58, 0x11: 0x39, 0x1F: 0x8B, 0x27: 0x8C, 0x2F: 0x8D, 0x7C: 0x57, 0x70: 0x67, 0x6C: 0x6E,
    0x7D: 0x6F, 0x71: 0x64, 0x69: 0x65, 0x7A: 0x6D, 0x75: 0x63, 0x6B: 0x61, 0x72: 0x60, 0x74: 0x6A,
    0x4A: 0x77, 0x5A: 0x79,
}  # fmt: skip
SET_3_PAUSE = 0x62
# Keys that report their release in set 3 unless told otherwise: the modifiers.
SET_3_DEFAULT_BREAKS = frozenset({0x11, 0x12, 0x14, 0x19, 0x39, 0x58, 0x59})

SHIFT = 0x12  # set 2, the left one
RIGHT_SHIFT = 0x59
CONTROL = 0x14

# Set 2 codes of the US layout, plain and shifted on the same key.
US_PLAIN = "`1234567890-=qwertyuiop[]\\asdfghjkl;'zxcvbnm,./ \t\n\b\x1b"
US_SHIFTED = '~!@#$%^&*()_+QWERTYUIOP{}|ASDFGHJKL:"ZXCVBNM<>?'
US_CODES = bytes.fromhex(
    "0e161e26252e363d3e46454e55"  # ` to =
    "151d242d2c353c43444d545b5d"  # q to backslash
    "1c1b232b34333b424b4c52"  # a to '
    "1a22212a32313a41494a"  # z to /
    "290d5a6676"  # space, Tab, Enter, Backspace, Escape
)


def translate(code: int) -> int:
    """The set 1 code for the set 2 byte `code`, without the break bit."""
    return TRANSLATION[code] if code < 0x80 else TRANSLATION_HIGH.get(code, code)


def key_events(character: str) -> list[bytes]:
    """Set 2 key events that type one `character` on a US keyboard; empty if it is not one with a key there.

    Control characters without a key of their own are typed with Ctrl (U+0003 is Ctrl+C).
    """
    if len(character) != 1:
        return []
    if character == "\r":
        character = "\n"
    elif character == "\x7f":
        character = "\b"
    modifier = 0
    position = US_PLAIN.find(character)
    if position < 0:
        position = US_SHIFTED.find(character)
        modifier = SHIFT
    if position < 0 and "\x01" <= character <= "\x1f":
        position = US_PLAIN.find(chr(ord(character) | 0x60))
        if position < 0:
            position = US_PLAIN.find(chr(ord(character) | 0x40))
        modifier = CONTROL
    if position < 0:
        return []
    code = US_CODES[position]
    events = [bytes((code,)), bytes((BREAK, code))]
    if modifier:
        events = [bytes((modifier,)), *events, bytes((BREAK, modifier))]
    return events


@dataclass(slots=True)
class Keyboard:
    """The keyboard: its settings, the bytes it is about to send and the host's keys that wait."""

    queue: deque[int] = field(default_factory=deque)
    backlog: deque[bytes] = field(default_factory=deque)
    scanning: bool = True
    scan_code_set: int = 2
    leds: int = 0
    typematic: int = DEFAULT_TYPEMATIC
    set_3_breaks: set[int] = field(default_factory=lambda: set(SET_3_DEFAULT_BREAKS))
    argument_of: int = 0  # the command whose argument comes next
    last_sent: int = Ps2.SELF_TEST_PASSED
    next_key_ns: int = 0  # the serial line is busy until then

    def send(self, *data: int) -> None:
        """Queue answer bytes."""
        self.queue.extend(data[: max(0, QUEUE_BYTES - len(self.queue))])

    def pop(self) -> int:
        """The next byte on the wire; Resend repeats it."""
        byte = self.queue.popleft()
        if byte != Ps2.RESEND:
            self.last_sent = byte
        return byte

    def set_defaults(self) -> None:
        """Rate, delay, scan code set and key types of power-on."""
        self.scan_code_set = 2
        self.typematic = DEFAULT_TYPEMATIC
        self.set_3_breaks = set(SET_3_DEFAULT_BREAKS)

    def command(self, value: int) -> None:
        """A byte from the controller: a command, or the argument of the last one."""
        argument_of, self.argument_of = self.argument_of, 0
        if argument_of and value < KeyboardCommand.SET_LEDS:
            self._argument(argument_of, value)
            return
        match value:
            case Ps2.RESET:
                self.set_defaults()
                self.leds = 0
                self.scanning = True
                self.queue.clear()
                self.send(Ps2.ACK, Ps2.SELF_TEST_PASSED)
            case Ps2.RESEND:
                self.send(self.last_sent)
            case KeyboardCommand.ECHO:
                self.send(KeyboardCommand.ECHO)
            case KeyboardCommand.IDENTIFY:
                self.send(Ps2.ACK, *KEYBOARD_ID)
            case Ps2.ENABLE:
                self.queue.clear()
                self.scanning = True
                self.send(Ps2.ACK)
            case Ps2.DISABLE | Ps2.SET_DEFAULTS:
                self.set_defaults()
                self.queue.clear()
                self.scanning = self.scanning and value == Ps2.SET_DEFAULTS
                self.send(Ps2.ACK)
            case KeyboardCommand.SET_LEDS | KeyboardCommand.SCAN_CODE_SET | KeyboardCommand.TYPEMATIC:
                self.argument_of = value
                self.send(Ps2.ACK)
            case KeyboardCommand.SET_TYPEMATIC | KeyboardCommand.SET_MAKE_BREAK | KeyboardCommand.SET_MAKE:
                self.argument_of = value
                self.send(Ps2.ACK)
            case KeyboardCommand.ALL_TYPEMATIC | KeyboardCommand.ALL_MAKE:
                self.set_3_breaks = set()
                self.send(Ps2.ACK)
            case KeyboardCommand.ALL_MAKE_BREAK | KeyboardCommand.ALL_TYPEMATIC_MAKE_BREAK:
                self.set_3_breaks = set(range(256))
                self.send(Ps2.ACK)
            case _:
                self.send(Ps2.RESEND)

    def _argument(self, command: int, value: int) -> None:
        match command:
            case KeyboardCommand.SET_LEDS:
                self.leds = value & 7
                self.send(Ps2.ACK)
            case KeyboardCommand.TYPEMATIC:
                # Quirk: rate and delay are kept, but a held key repeats only if the host says so.
                self.typematic = value & 0x7F
                self.send(Ps2.ACK)
            case KeyboardCommand.SCAN_CODE_SET if value == 0:
                self.send(Ps2.ACK, self.scan_code_set)
            case KeyboardCommand.SCAN_CODE_SET if value <= 3:
                self.scan_code_set = value
                self.send(Ps2.ACK)
            case KeyboardCommand.SCAN_CODE_SET:
                self.argument_of = command
                self.send(Ps2.RESEND)
            case _:  # key types of set 3: codes follow until the next command
                self.argument_of = command
                if command == KeyboardCommand.SET_MAKE_BREAK:
                    self.set_3_breaks.add(value)
                else:
                    self.set_3_breaks.discard(value)
                self.send(Ps2.ACK)

    def encode(self, event: bytes) -> list[int]:
        """A set 2 key event in the scan code set that the guest chose."""
        match self.scan_code_set:
            case 1:
                return _to_set_1(event)
            case 3:
                return self._to_set_3(event)
            case _:
                return list(event)

    def _to_set_3(self, event: bytes) -> list[int]:
        if event[0] == PAUSE:
            return [SET_3_PAUSE]
        released = BREAK in event
        extended = event[0] == EXTENDED
        codes = [code for code in event if code not in (EXTENDED, BREAK)]
        if extended:  # the shifts that set 2 fakes around the grey keys do not exist in set 3
            codes = [code for code in codes if code not in (SHIFT, RIGHT_SHIFT)]
        if not codes:
            return []
        code = SET_3_EXTENDED.get(codes[-1], codes[-1]) if extended else SET_3.get(codes[-1], codes[-1])
        if not released:
            return [code]
        return [BREAK, code] if code in self.set_3_breaks else []


def _to_set_1(event: bytes) -> list[int]:
    codes: list[int] = []
    released = 0
    for code in event:
        if code == BREAK:
            released = 0x80
        else:
            codes.append(translate(code) | released)
            released = 0
    return codes


@dataclass(slots=True)
class Mouse:
    """The mouse: its settings, the bytes it is about to send and the movement not yet sent."""

    queue: deque[int] = field(default_factory=deque)
    moves: deque[tuple[int, int, int]] = field(default_factory=deque)  # dx, dy, buttons; y grows upwards
    buttons: int = 0
    reporting: bool = False
    remote: bool = False
    wrap: bool = False
    double_scaling: bool = False
    resolution: int = DEFAULT_RESOLUTION
    sample_rate: int = DEFAULT_SAMPLE_RATE
    argument_of: int = 0
    last_packet: tuple[int, ...] = (Ps2.ACK,)

    def send(self, *data: int) -> None:
        """Queue bytes as one packet, which Resend repeats."""
        if len(self.queue) + len(data) <= QUEUE_BYTES:
            self.queue.extend(data)
            self.last_packet = data

    def set_defaults(self) -> None:
        """Stream mode, reporting off, 100 reports a second, 4 counts a millimetre, scaling 1:1."""
        self.reporting = self.remote = self.double_scaling = False
        self.resolution = DEFAULT_RESOLUTION
        self.sample_rate = DEFAULT_SAMPLE_RATE
        self.moves.clear()

    def move(self, dx: int, dy: int, buttons: int) -> None:
        """Movement since the last call and the buttons now held (bits 0 left, 1 right, 2 middle)."""
        buttons &= 7
        if not (self.reporting or self.remote):
            self.buttons = buttons
            return
        if self.moves and (len(self.moves) >= BACKLOG_MOVES or self.moves[-1][2] == buttons):
            old_dx, old_dy, _ = self.moves.pop()
            dx, dy = dx + old_dx, dy + old_dy
        self.moves.append((dx, dy, buttons))

    def next_report(self) -> None:
        """In stream mode: queue the next packet once the last one has gone."""
        if self.reporting and not self.remote and self.moves and not self.queue:
            self.send(*self._packet(scaled=self.double_scaling))

    def _packet(self, scaled: bool = False) -> tuple[int, int, int]:
        """Three bytes: buttons, signs and the low eight bits of each movement, at most 255 counts of it."""
        dx = dy = 0
        if self.moves:
            all_dx, all_dy, self.buttons = self.moves.popleft()
            dx, dy = max(-255, min(255, all_dx)), max(-255, min(255, all_dy))
            if (all_dx, all_dy) != (dx, dy):
                # Quirk: a long movement takes several packets; none ever shows the overflow bits.
                self.moves.appendleft((all_dx - dx, all_dy - dy, self.buttons))
        if scaled:
            dx, dy = _scale(dx), _scale(dy)
        signs = (0x10 if dx < 0 else 0) | (0x20 if dy < 0 else 0)
        return 0x08 | self.buttons | signs, dx & 0xFF, dy & 0xFF

    def command(self, value: int) -> None:
        """A byte from the controller: a command, the argument of the last one, or an echo in wrap mode."""
        argument_of, self.argument_of = self.argument_of, 0
        if self.wrap and value not in (Ps2.RESET, MouseCommand.END_WRAP_MODE):
            self.send(value)
            return
        if value != Ps2.RESEND:
            self.queue.clear()  # a command takes the place of whatever the mouse was about to send
        match argument_of:
            case MouseCommand.RESOLUTION:
                self.resolution = value & 3
                self.send(Ps2.ACK)
            case MouseCommand.SAMPLE_RATE:
                self.sample_rate = value
                self.send(Ps2.ACK)
            case _:
                self._execute(value)

    def _execute(self, value: int) -> None:
        match value:
            case Ps2.RESET:
                self.set_defaults()
                self.wrap = False
                self.send(Ps2.ACK, Ps2.SELF_TEST_PASSED, MOUSE_ID)
            case Ps2.RESEND:
                self.send(*self.last_packet)
            case Ps2.SET_DEFAULTS:
                self.set_defaults()
                self.send(Ps2.ACK)
            case Ps2.DISABLE | Ps2.ENABLE:
                self.reporting = value == Ps2.ENABLE
                self.moves.clear()
                self.send(Ps2.ACK)
            case MouseCommand.SAMPLE_RATE | MouseCommand.RESOLUTION:
                self.argument_of = value
                self.send(Ps2.ACK)
            case MouseCommand.IDENTIFY:
                self.send(Ps2.ACK, MOUSE_ID)
            case MouseCommand.REMOTE_MODE | MouseCommand.STREAM_MODE:
                self.remote = value == MouseCommand.REMOTE_MODE
                self.moves.clear()
                self.send(Ps2.ACK)
            case MouseCommand.WRAP_MODE | MouseCommand.END_WRAP_MODE:
                self.wrap = value == MouseCommand.WRAP_MODE
                self.send(Ps2.ACK)
            case MouseCommand.READ_DATA:
                self.send(Ps2.ACK, *self._packet())
            case MouseCommand.STATUS:
                self.send(Ps2.ACK, self._status(), self.resolution, self.sample_rate)
            case MouseCommand.SCALING_1_TO_1 | MouseCommand.SCALING_2_TO_1:
                self.double_scaling = value == MouseCommand.SCALING_2_TO_1
                self.send(Ps2.ACK)
            case _:
                self.send(Ps2.RESEND)

    def _status(self) -> int:
        left, right, middle = self.buttons & 1, self.buttons >> 1 & 1, self.buttons >> 2 & 1
        return (
            self.remote << 6
            | self.reporting << 5
            | self.double_scaling << 4
            | left << 2
            | middle << 1
            | right
        )


def _scale(counts: int) -> int:
    """Scaling 2:1 ("Set Scaling 2:1"): small movements slow down, large ones double."""
    size = abs(counts)
    scaled = (0, 1, 1, 3, 6, 9)[size] if size < 6 else min(2 * size, 255)
    return -scaled if counts < 0 else scaled


@dataclass(slots=True)
class I8042State:
    """Controller, keyboard and mouse."""

    command_byte: int
    system: bool = True  # the status bit: firmware's self-test has passed
    last_was_command: bool = False
    ram: bytearray = field(default_factory=lambda: bytearray(32))  # byte 0 is kept in command_byte
    a20: bool = True
    awaiting_data: int = 0  # the controller command whose data byte comes next
    output: int | None = None  # the output buffer while it is full
    output_is_aux: bool = False
    output_from_device: bool = False
    last_output: int = 0  # what an empty buffer reads
    held: tuple[int, bool] | None = None  # a device's byte that made way for an answer: value, is_aux
    break_seen: bool = False  # translation: F0 has come, the next code gets its break bit
    keyboard: Keyboard = field(default_factory=Keyboard)
    mouse: Mouse = field(default_factory=Mouse)


class I8042(ByteDevice):
    """The controller at ports 0x60 and 0x64 with both devices plugged in.

    `keyboard_irq` is IRQ1, `aux_irq` IRQ12; `on_a20(level)` tells the gate's owner, `on_reset()` asks for a
    processor reset. `a20_level()` reads the gate back, since port 0x92 moves it too; without it the output
    port shows what this controller last drove.
    """

    name = "i8042"
    state: I8042State

    def __init__(
        self,
        keyboard_irq: IrqLine,
        aux_irq: IrqLine,
        clock: Clock,
        on_a20: Callable[[bool], None],
        on_reset: Callable[[], None],
        a20_level: Callable[[], bool] | None = None,
    ) -> None:
        self.keyboard_irq = keyboard_irq
        self.aux_irq = aux_irq
        self._clock = clock
        self._on_a20 = on_a20
        self._on_reset = on_reset
        self._a20_level = a20_level
        self._timer: int | None = None
        self.state = I8042State(POWER_ON_COMMAND_BYTE)

    # ------------------------------------------------------------------ host side

    def key(self, scancode: bytes) -> bool:
        """One key event in set 2 codes: b"\\x1c" presses A, b"\\xf0\\x1c" releases it.

        Returns False if too many events wait already; DeviceError for more or fewer than 1 to 8 bytes.
        """
        if not 1 <= len(scancode) <= KEY_BYTES:
            raise DeviceError(
                f"i8042: key event of {len(scancode)} bytes; give one event of 1 to {KEY_BYTES} set 2 codes"
            )
        backlog = self.state.keyboard.backlog
        if len(backlog) >= BACKLOG_KEYS:
            return False
        backlog.append(bytes(scancode))
        self._fill()
        return True

    def type_text(self, text: str) -> int:
        """Type `text` on a US keyboard; returns how many characters were taken before the backlog filled.

        Characters without a key are skipped; `key_events` tells which.
        """
        backlog = self.state.keyboard.backlog
        taken = 0
        for character in text:
            events = key_events(character)
            if len(backlog) + len(events) > BACKLOG_KEYS:
                break
            backlog.extend(events)
            taken += 1
        self._fill()
        return taken

    def move(self, dx: int, dy: int, buttons: int) -> None:
        """Mouse movement in counts (x to the right, y upwards); bits 0, 1, 2: left, right, middle held."""
        self.state.mouse.move(dx, dy, buttons)
        self._fill()

    # ------------------------------------------------------------------ guest side

    def read_byte(self, offset: int) -> int:
        """The output buffer, which the read empties, or the status."""
        match offset:
            case Offset.STATUS_COMMAND:
                return self._status()
            case Offset.DATA:
                return self._read_data()
            case _:
                return UNDRIVEN

    def write_byte(self, offset: int, value: int) -> None:
        """Data for a device or a pending controller command, or a controller command."""
        match offset:
            case Offset.DATA:
                self.state.last_was_command = False
                self._write_data(value)
                self._fill()
            case Offset.STATUS_COMMAND:
                self.state.last_was_command = True
                self._command(value)
                self._fill()
            case _:
                pass

    def reset(self) -> None:
        """Power-on; keys that the host has not delivered yet stay outside. The A20 pin comes up high."""
        old = self.state
        self.state = I8042State(POWER_ON_COMMAND_BYTE, keyboard=Keyboard(backlog=old.keyboard.backlog))
        self.state.keyboard.next_key_ns = old.keyboard.next_key_ns
        if not old.a20:
            self._on_a20(True)
        self._cancel_timer()
        self._drive_lines()
        self._fill()

    def rearm(self) -> None:
        """Schedule the next key and drive both interrupt lines and the A20 pin again."""
        self._on_a20(self.state.a20)
        self._cancel_timer()
        self._fill()

    # ------------------------------------------------------------------ controller

    def _status(self) -> int:
        state = self.state
        status = STATUS_NOT_INHIBITED
        if state.output is not None:
            status |= STATUS_OUTPUT_FULL | (STATUS_AUX_DATA if state.output_is_aux else 0)
        if state.system:
            status |= STATUS_SYSTEM
        if state.last_was_command:
            status |= STATUS_COMMAND
        return status  # bit 1, input buffer full, is never set: a command is carried out at once

    def _read_data(self) -> int:
        state = self.state
        if state.output is None:
            return state.last_output
        value = state.last_output = state.output
        state.output = None
        keyboard = state.keyboard
        if keyboard.backlog and state.output_from_device and not state.output_is_aux:
            # The next key starts its way only now: a guest that flushes the buffer finds it empty.
            keyboard.next_key_ns = max(keyboard.next_key_ns, self._clock.now_ns() + KEY_BYTE_NS)
        self._drive_lines()  # both lines drop before the next byte raises one: an edge for each byte
        self._fill()
        return value

    def _answer(self, value: int, aux: bool = False) -> None:
        """Put a byte of the controller itself into the output buffer."""
        # Quirk: a device's unread byte waits behind the answer; on the chip one of the two would be lost.
        state = self.state
        if state.output is not None and state.output_from_device:
            state.held = (state.output, state.output_is_aux)
        state.output = value
        state.output_is_aux = aux
        state.output_from_device = False
        self.keyboard_irq.lower()  # a new byte is a new edge even if the last one was never read
        self.aux_irq.lower()

    def _command(self, value: int) -> None:
        state = self.state
        state.awaiting_data = 0
        match value:
            case Command.DISABLE_AUX:
                state.command_byte |= COMMAND_AUX_DISABLED
            case Command.ENABLE_AUX:
                state.command_byte &= ~COMMAND_AUX_DISABLED
            case Command.TEST_AUX | Command.TEST_KEYBOARD:
                self._answer(INTERFACE_TEST_PASSED)
            case Command.SELF_TEST:
                state.system = True
                state.command_byte |= COMMAND_SYSTEM
                self._answer(SELF_TEST_PASSED)
            case Command.DISABLE_KEYBOARD:
                state.command_byte |= COMMAND_KEYBOARD_DISABLED
            case Command.ENABLE_KEYBOARD:
                state.command_byte &= ~COMMAND_KEYBOARD_DISABLED
            case Command.READ_INPUT_PORT:
                self._answer(INPUT_PORT_UNLOCKED)
            case Command.READ_OUTPUT_PORT:
                self._answer(self._output_port())
            case Command.WRITE_OUTPUT_PORT | Command.WRITE_KEYBOARD_BUFFER:
                state.awaiting_data = value
            case Command.WRITE_AUX_BUFFER | Command.WRITE_AUX:
                state.awaiting_data = value
            case Command.A20_OFF | Command.A20_ON:
                self._drive_a20(value == Command.A20_ON)
            case Command.READ_TEST_INPUTS:
                self._answer(0)
            case _ if value >= Command.PULSE_OUTPUT_PORT:
                if not value & OUTPUT_PORT_NOT_RESET:
                    self._on_reset()
            case _ if Command.READ_RAM <= value < Command.READ_RAM + 32:
                number = value - Command.READ_RAM
                self._answer(state.ram[number] if number else state.command_byte)
            case _ if Command.WRITE_RAM <= value < Command.WRITE_RAM + 32:
                state.awaiting_data = value
            case _:
                pass  # the chip ignores commands it does not know

    def _write_data(self, value: int) -> None:
        state = self.state
        command, state.awaiting_data = state.awaiting_data, 0
        match command:
            case 0:
                state.command_byte &= ~COMMAND_KEYBOARD_DISABLED  # sending clocks the keyboard again
                state.keyboard.command(value)
            case Command.WRITE_AUX:
                state.command_byte &= ~COMMAND_AUX_DISABLED
                state.mouse.command(value)
            case Command.WRITE_RAM:
                state.command_byte = value
                state.system = bool(value & COMMAND_SYSTEM)
            case Command.WRITE_OUTPUT_PORT:
                self._drive_a20(bool(value & OUTPUT_PORT_A20))
                if not value & OUTPUT_PORT_NOT_RESET:
                    self._on_reset()
            case Command.WRITE_KEYBOARD_BUFFER:
                self._answer(value)
            case Command.WRITE_AUX_BUFFER:
                self._answer(value, aux=True)
            case _:
                state.ram[command - Command.WRITE_RAM] = value

    def _output_port(self) -> int:
        state = self.state
        a20 = state.a20 if self._a20_level is None else self._a20_level()
        port = OUTPUT_PORT_HIGH | OUTPUT_PORT_NOT_RESET | (OUTPUT_PORT_A20 if a20 else 0)
        if state.output is not None:
            port |= OUTPUT_PORT_AUX_FULL if state.output_is_aux else OUTPUT_PORT_KEYBOARD_FULL
        return port

    def _drive_a20(self, level: bool) -> None:
        self.state.a20 = level
        self._on_a20(level)

    # ------------------------------------------------------------------ from the devices to the guest

    def _fill(self) -> None:
        """Let the host's keys in, put the next device byte into an empty output buffer, drive the lines."""
        state = self.state
        self._take_key()
        state.mouse.next_report()
        if state.output is None:
            if state.held is not None:
                state.output, state.output_is_aux = state.held
                state.held = None
                state.output_from_device = True
            else:
                self._fetch()
        self._drive_lines()

    def _fetch(self) -> None:
        state = self.state
        if not state.command_byte & COMMAND_KEYBOARD_DISABLED:
            while state.keyboard.queue:
                code = state.keyboard.pop()
                if state.command_byte & COMMAND_TRANSLATE:
                    if code == BREAK:
                        state.break_seen = True
                        continue
                    code = translate(code) | (0x80 if state.break_seen else 0)
                state.break_seen = False
                state.output, state.output_is_aux, state.output_from_device = code, False, True
                return
        if state.mouse.queue and not state.command_byte & COMMAND_AUX_DISABLED:
            state.output, state.output_is_aux, state.output_from_device = (
                state.mouse.queue.popleft(),
                True,
                True,
            )

    def _drive_lines(self) -> None:
        state = self.state
        full = state.output is not None
        aux = state.output_is_aux
        enabled = state.command_byte
        self.keyboard_irq.set_level(full and not aux and bool(enabled & COMMAND_KEYBOARD_INTERRUPT))
        self.aux_irq.set_level(full and aux and bool(enabled & COMMAND_AUX_INTERRUPT))

    def _take_key(self) -> None:
        """Move the host's next key into the keyboard once that is idle and its line has been free a while."""
        state = self.state
        keyboard = state.keyboard
        # Quirk: keys wait while the guest has scanning off; a real keyboard would not notice them.
        while keyboard.backlog and not keyboard.queue and keyboard.scanning and state.output is None:
            if state.command_byte & COMMAND_KEYBOARD_DISABLED:
                return
            now_ns = self._clock.now_ns()
            if now_ns < keyboard.next_key_ns:
                if self._timer is None:
                    self._timer = self._clock.call_at(keyboard.next_key_ns, self._on_line_free)
                return
            event = keyboard.backlog.popleft()
            keyboard.queue.extend(keyboard.encode(event))
            keyboard.next_key_ns = now_ns + KEY_BYTE_NS * len(event)

    def _on_line_free(self, now_ns: int) -> None:
        self._timer = None
        self._fill()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._clock.cancel(self._timer)
            self._timer = None
