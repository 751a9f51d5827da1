"""Exits as a Perfetto trace: a track per vCPU and per device, counters, virtual time. No library is needed.

The file is a protobuf message `Trace` whose field 1 is repeated `TracePacket`; the field numbers below are
those of Perfetto's protos/perfetto/trace (track_descriptor.proto, track_event.proto, debug_annotation.proto).
On the track of a vCPU an exit is an instant, HLT a slice as long as the sleep; on the track of a device every
access is an instant. Open it at https://ui.perfetto.dev.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Final

from pysim_vm.trace.rows import ExitRow
from pysim_vm.trace.trace import Trace

# TracePacket
PACKET: Final = 1  # of Trace
TIMESTAMP: Final = 8
SEQUENCE_ID: Final = 10
TRACK_EVENT: Final = 11
SEQUENCE_FLAGS: Final = 13
TRACK_DESCRIPTOR: Final = 60
# TrackDescriptor
UUID: Final = 1
NAME: Final = 2
PARENT_UUID: Final = 5
COUNTER: Final = 8
CHILD_ORDERING: Final = 11
SIBLING_RANK: Final = 12
EXPLICIT: Final = 3  # ChildTracksOrdering: by rank
UNIT_NAME: Final = 6  # CounterDescriptor
# TrackEvent
CATEGORIES: Final = 22
DEBUG_ANNOTATIONS: Final = 4
TYPE: Final = 9
TRACK_UUID: Final = 11
EVENT_NAME: Final = 23
COUNTER_VALUE: Final = 30
SLICE_BEGIN: Final = 1
SLICE_END: Final = 2
INSTANT: Final = 3
COUNTER_EVENT: Final = 4
# DebugAnnotation
ANNOTATION_UINT: Final = 3
ANNOTATION_STRING: Final = 6
ANNOTATION_POINTER: Final = 7
ANNOTATION_NAME: Final = 10

STATE_CLEARED: Final = 1  # SEQ_INCREMENTAL_STATE_CLEARED
THE_SEQUENCE: Final = 1
MACHINE_UUID: Final = 1
VCPU_UUID: Final = 0x100
DEVICE_UUID: Final = 0x1_0000
EXITS_UUID: Final = 2
RETIRED_UUID: Final = 3
COUNTER_STEP_NS: Final = 1_000_000  # a point of the counters for each millisecond of virtual time
NS_MAX: Final = (1 << 63) - 1  # Perfetto's times are signed inside


def write_perfetto(trace: Trace, file: BinaryIO) -> int:
    """Write the exits as packets; how many exits."""
    for packet in _descriptors(trace):
        file.write(packet)
    count = 0
    window, in_window = -1, 0
    for row in trace:
        ns = min(row.ns, NS_MAX)
        if ns // COUNTER_STEP_NS != window:
            if window >= 0:
                file.write(_counter(window * COUNTER_STEP_NS, EXITS_UUID, in_window))
                if ns // COUNTER_STEP_NS > window + 1:
                    file.write(_counter((window + 1) * COUNTER_STEP_NS, EXITS_UUID, 0))
            file.write(_counter(ns, RETIRED_UUID, min(row.retired, NS_MAX)))
            window, in_window = ns // COUNTER_STEP_NS, 0
        elif row.reason == "halt":
            file.write(_counter(ns, RETIRED_UUID, min(row.retired, NS_MAX)))  # as far as it came before
        in_window += 1
        for packet in _exit(trace, row, ns):
            file.write(packet)
        count += 1
    if window >= 0:
        file.write(_counter(window * COUNTER_STEP_NS, EXITS_UUID, in_window))
    return count


def _descriptors(trace: Trace) -> Iterator[bytes]:
    """The tracks: the machine, below it vCPUs, counters and devices. It is no process: Perfetto would sort
    those of a process by name."""
    header = trace.header.get("vm")
    about = header if isinstance(header, dict) else {}
    name = f"VM[{about.get('id', 0)}] {about.get('name', '')}".strip()
    yield _packet(
        _message(
            TRACK_DESCRIPTOR,
            _number(UUID, MACHINE_UUID) + _text(NAME, name) + _number(CHILD_ORDERING, EXPLICIT),
        )
        + _number(SEQUENCE_FLAGS, STATE_CLEARED)
    )
    vcpus = about.get("vcpus", 1)
    for number in range(vcpus if isinstance(vcpus, int) and 0 < vcpus <= 256 else 1):
        yield _track(VCPU_UUID + number, f"vCPU {number}", number)
    yield _track(EXITS_UUID, "exits per ms", 1_000, _text(UNIT_NAME, "exits"))
    yield _track(RETIRED_UUID, "instructions retired", 1_001, _text(UNIT_NAME, "instructions"))
    for number, device in enumerate(trace.record.devices):
        yield _track(DEVICE_UUID + number, device, 2_000 + number)


def _exit(trace: Trace, row: ExitRow, ns: int) -> Iterator[bytes]:
    """The events of one exit."""
    category = _text(CATEGORIES, row.reason)
    notes = b"".join(_annotations(row))
    track = VCPU_UUID + min(row.vcpu, 255)
    if row.reason == "halt" and row.value:
        yield _event(ns, SLICE_BEGIN, track, category + _text(EVENT_NAME, "HLT") + notes)
        yield _event(min(ns + row.value, NS_MAX), SLICE_END, track, b"")
        return
    yield _event(ns, INSTANT, track, category + _text(EVENT_NAME, row.reason) + notes)
    if row.device:
        name = _text(EVENT_NAME, row.words().split(":", 1)[0])
        device = DEVICE_UUID + trace.record.devices.index(row.device)
        yield _event(ns, INSTANT, device, category + name + notes)


def _annotations(row: ExitRow) -> Iterator[bytes]:
    yield _annotation("words", _text(ANNOTATION_STRING, row.words()))
    yield _annotation("rip", _number(ANNOTATION_POINTER, row.rip))
    if row.symbol:
        yield _annotation("symbol", _text(ANNOTATION_STRING, row.symbol))
    yield _annotation("retired", _number(ANNOTATION_UINT, row.retired))
    if row.width:
        yield _annotation("address", _number(ANNOTATION_POINTER, row.address))
        yield _annotation("value", _number(ANNOTATION_POINTER, row.value))


def _annotation(name: str, value: bytes) -> bytes:
    return _message(DEBUG_ANNOTATIONS, _text(ANNOTATION_NAME, name) + value)


def _track(uuid: int, name: str, rank: int, counter: bytes | None = None) -> bytes:
    fields = _number(UUID, uuid) + _text(NAME, name) + _number(PARENT_UUID, MACHINE_UUID)
    fields += _number(SIBLING_RANK, rank)
    if counter is not None:
        fields += _message(COUNTER, counter)
    return _packet(_message(TRACK_DESCRIPTOR, fields))


def _event(ns: int, kind: int, track: int, fields: bytes) -> bytes:
    event = _number(TYPE, kind) + _number(TRACK_UUID, track) + fields
    return _packet(_number(TIMESTAMP, ns) + _message(TRACK_EVENT, event))


def _counter(ns: int, track: int, value: int) -> bytes:
    return _event(ns, COUNTER_EVENT, track, _number(COUNTER_VALUE, value))


# ---- protobuf's wire format --------------------------------------------------------------------------------


def _packet(fields: bytes) -> bytes:
    return _message(PACKET, fields + _number(SEQUENCE_ID, THE_SEQUENCE))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    """A field of wire type 0, varint."""
    return _varint(field << 3) + _varint(value)


def _message(field: int, payload: bytes) -> bytes:
    """A field of wire type 2: a message or a text with its length."""
    return _varint(field << 3 | 2) + _varint(len(payload)) + payload


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode("utf-8", "replace"))
