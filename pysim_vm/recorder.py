"""The recorder: takes a VM's exits (and, if asked, its stores and instructions) and writes a record.

It answers no exit and reads no record back. Exits come from `AxVM.exit_log`, in bunches, so that
recording them costs four appends on the hot path and some numpy later. Stores and instructions are seen
through `cpu_watch`, which is slow and changes no result.

What is in a file depends on the rows alone: a complete chunk has a fixed number of rows. The rows after the
last complete chunk lie behind it in small chunks, for the sake of a run that is killed, until they are
replaced by the complete one.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np

from isa.cpu import Cpu
from isa.faults import Fault, PageFault
from isa.interrupts import INT_N
from pysim_vm.cpu_watch import EVERYWHERE, CpuWatcher, running_ip, unwatch, watch
from pysim_vm.errors import AxErrorKind
from pysim_vm.exit_kinds import KINDS
from pysim_vm.exit_log import ExitLog
from pysim_vm.record_format import (
    CHANGE_PACK,
    CHUNK_HEAD,
    CHUNK_LIMIT,
    CHUNK_ROWS,
    COLUMN_KINDS,
    EVENT_PACK,
    EXIT_PACK,
    EXIT_TYPE,
    INSTRUCTION_PACK,
    LINE_SHIFT,
    MSR_REGISTER,
    NO_ERROR_CODE,
    ROW_TYPES,
    STORE_PACK,
    STORE_TYPE,
    Column,
    Columns,
    Event,
    Kind,
    RecordError,
    StoreBy,
    chunk_bytes,
    chunk_parts,
    columns_of,
    packed_columns,
    preamble,
    unpacked_columns,
)
from pysim_vm.report import instruction_at, snapshot
from pysim_vm.short_exits import EXIT_CHUNK
from pysim_vm.trace.words import SOFTWARE_WORDS

if TYPE_CHECKING:
    from pysim_vm.vm import AxVM

DEFAULT_LIMIT: Final = 4 << 30  # bytes of one record unless told otherwise: a Debian boot's exits need 1/100
FLUSH_ROWS: Final = 1_024  # fewer exits than this are not worth a small chunk when a run pauses
NOBODY: Final = 0xFFFF  # the device of an exit that none answers, -1, in an unsigned column
HALT: Final = KINDS.index("halt")
SENTENCES_KNOWN: Final = 1 << 14  # those of a guest that faults everywhere are written again
SENTENCE_BYTES: Final = 1_000
SYMBOL_BYTES: Final = 32 << 20  # of names: a Linux kernel's take 6 MiB
M64: Final = (1 << 64) - 1


class Recorder(CpuWatcher):
    """One recording of one VM. Make it with `AxVM.record`; `close` ends it.

    `path` is None for a recording in memory. `stores` records every write to RAM, or those to some
    guest-physical ranges, which costs the others nothing; `instructions` every
    instruction with what it changed, stores included; `limit` bounds the bytes of the record: when it is
    reached the guest runs on unrecorded and `stopped` says so in a sentence, as it does when the host cannot
    write, which sets `failed` as well. `command` is what a later run needs to make the same machine again
    (JSON values only).
    RecordError if the file cannot be made.
    """

    def __init__(
        self,
        vm: AxVM,
        path: str | os.PathLike[str] | None = None,
        *,
        stores: bool | Sequence[range] = False,
        instructions: bool = False,
        limit: int = DEFAULT_LIMIT,
        compress: bool = False,
        command: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = None if path is None else Path(path)
        self.stopped = ""
        self.failed = False
        self.stepwise = instructions
        self._vm = vm
        self._limit = limit
        self._compress = compress
        self._cpu = vm.vcpu(0).cpu
        self._registers = {name: n for n, name in enumerate(_register_names(self._cpu))}
        self._ranges = () if instructions or isinstance(stores, bool) else tuple(stores)
        self._stores: list[tuple[int, int, int, int, int, int, int, int]] = []
        self._streams = {kind: _Stream(kind) for kind in CHUNK_ROWS}
        self._skipped = vm.now_ns() - self._cpu.retired * vm.ns_per_instruction
        self._skipped_safe = 0  # of the exits in small chunks
        self._start_retired = self._cpu.retired
        self._final_end = 0  # of the header and the complete chunks
        self._end = 0  # of what is written
        self._closed = False
        self._devices = _device_names(vm)
        self._sentences: dict[str, int] = {}  # where their words lie
        self._words = 0  # bytes of them
        self._watching = False
        self._last: dict[str, int] = {}
        self._event: tuple[int, int] = (Event.INSTRUCTION, 0)
        self._code: Any = None
        self._rip = self._bits = 0
        self._file: BinaryIO = self._create()
        seen = self._ranges or bool(stores) or instructions
        head = preamble(identity(vm, self._devices, self._skipped, seen, instructions, list(self._registers),
                                 command))  # fmt: skip
        self._write(0, head)
        self._final_end = self._end
        self._write_symbols()
        vm.exit_log = ExitLog()
        vm.exit_sink = self.take
        if stores or instructions:
            self.stores = self._ranges or EVERYWHERE
        watch(self._cpu, self)
        self._watching = True
        if instructions:
            self._last = snapshot(self._cpu)

    def _create(self) -> BinaryIO:
        if self.path is None:
            return io.BytesIO()
        try:
            return self.path.open("wb")
        except (OSError, ValueError) as error:
            raise RecordError(
                f"record {self.path} cannot be written ({_reason(error)}); check the path", AxErrorKind.Io
            ) from None

    # ---- what the VM calls ---------------------------------------------------------------------------------

    def take(self, log: ExitLog) -> None:
        """`AxVM.exit_sink`: take the exits out of the log. A few may wait there for more of them."""
        if self._stores:
            self._take_stores()
        count = len(log)
        if count >= EXIT_CHUNK and log.plain:
            self._take_columns(log)
        elif count >= FLUSH_ROWS:
            self._take_rows(log)

    def _take_rows(self, log: ExitLog) -> None:
        count = len(log)
        if count:
            rows = log.packed()
            log.clear()
            self._add(Kind.EXITS, rows, count)

    def _take_columns(self, log: ExitLog) -> None:
        """Take exits of the short way in the middle of a run: complete chunks; the rest waits in the log."""
        stream = self._streams[Kind.EXITS]
        lacking = stream.rows - len(stream.pending) // stream.size
        if stream.pending and len(log) >= lacking:
            rows = log.table()[:lacking].tobytes()
            log.drop(lacking)
            self._add(Kind.EXITS, rows, EXIT_CHUNK)
        while len(log) >= stream.rows and not (self.stopped or self._closed):
            columns = log.columns(stream.rows)
            log.drop(stream.rows)
            try:
                self._complete(stream, columns)
            except OSError as error:
                self._fail(error)
        if self.stopped or self._closed:
            log.clear()

    # ---- what the CPU shows --------------------------------------------------------------------------------

    def saw_store(self, cpu: Cpu, gpa: int, linear: int, size: int, value: int, before: bytes) -> None:
        """RAM was written by an instruction; more than eight bytes are rows of eight."""
        retired, rip = cpu.retired, running_ip(cpu)
        while size > 8:
            self._store(retired, rip, gpa, linear, value & M64, 8, StoreBy.CPU)
            gpa, linear, size, value = gpa + 8, linear + 8, size - 8, value >> 64
        self._store(retired, rip, gpa, linear, value, size, StoreBy.CPU)

    def saw_walk(self, cpu: Cpu, gpa: int, size: int, value: int) -> None:
        """The page walk set accessed or dirty bits."""
        self._store(cpu.retired, running_ip(cpu), gpa, 0, value, size, StoreBy.WALK)

    def saw_fault(self, cpu: Cpu, fault: Fault, nested: bool) -> None:
        """An exception; the step becomes one."""
        if not nested:
            self._event = Event.EXCEPTION, fault.vector
        address = fault.address if isinstance(fault, PageFault) else 0
        error_code = NO_ERROR_CODE if fault.error_code is None else fault.error_code
        self._add_event(
            cpu, cpu.rip, Event.EXCEPTION, fault.vector, fault.why, error_code, address, nested=nested
        )

    def saw_interrupt(self, cpu: Cpu, vector: int) -> None:
        """An interrupt; the step becomes one."""
        self._event = Event.INTERRUPT, vector
        self._add_event(cpu, cpu.rip, Event.INTERRUPT, vector, "")

    def saw_software(self, cpu: Cpu, ip: int, vector: int, kind: int) -> None:
        """INT n, or one of its relatives, which are exceptions."""
        event = Event.SOFTWARE if kind == INT_N else Event.EXCEPTION
        self._add_event(cpu, ip, event, vector, SOFTWARE_WORDS[kind])

    def saw_shutdown(self, cpu: Cpu, chain: Sequence[str]) -> None:
        """The end of a triple fault."""
        self._add_event(cpu, cpu.rip, Event.SHUTDOWN, 0, chain[-1])

    def _add_event(
        self, cpu: Cpu, rip: int, event: Event, vector: int, sentence: str, error_code: int = NO_ERROR_CODE,
        address: int = 0, *, nested: bool = False,
    ) -> None:  # fmt: skip
        words = sentence.encode()[:SENTENCE_BYTES]
        at = self._sentences.get(sentence)
        if at is None:
            if len(self._sentences) >= SENTENCES_KNOWN:
                self._sentences.clear()
            at = self._sentences[sentence] = self._words
            self._words += len(words)
            self._add(Kind.WORDS, words, len(words))
        row = EVENT_PACK.pack(
            cpu.retired, rip, 0, event, vector, nested, cpu.cpl, error_code, address, at, len(words)
        )
        self._add(Kind.EVENTS, row, 1)

    def before_step(self, cpu: Cpu) -> None:
        """Note where the CPU stands."""
        self._code, self._rip, self._bits = cpu.code, cpu.rip, cpu.code_bits
        self._event = Event.INSTRUCTION, 0

    def after_step(self, cpu: Cpu, retired: int) -> None:
        """One instruction or event, and what it changed."""
        if cpu.retired == retired:
            return
        event, vector = self._event
        raw = b""
        if event != Event.INTERRUPT:
            known = self._code.get(self._rip)
            raw = known.raw if known is not None else instruction_at(cpu, self._rip)[0]
        row = INSTRUCTION_PACK.pack(retired, self._rip, 0, self._bits, event, vector, len(raw), raw)
        self._add(Kind.INSTRUCTIONS, row, 1)
        after = snapshot(cpu)
        before, self._last = self._last, after
        if before != after:
            self._changes(retired, before, after)

    def _changes(self, retired: int, before: Mapping[str, int], after: Mapping[str, int]) -> None:
        rows = []
        for name in {**before, **after}:
            old, new = before.get(name, 0), after.get(name, 0)
            if old == new or name == "rip":
                continue
            number = self._registers.get(name)
            if number is None:
                number = MSR_REGISTER | int(name.split()[1], 16)
            for word in range(max(1, -(-max(old, new).bit_length() // 64))):
                low, high = old >> 64 * word & M64, new >> 64 * word & M64
                if low != high:
                    rows.append(CHANGE_PACK.pack(retired, number, word, low, high))
        if rows:
            self._add(Kind.CHANGES, b"".join(rows), len(rows))

    def saw_host_write(self, cpu: Cpu, gpa: int, size: int) -> None:
        """DMA, a loader or the host."""
        self._store(cpu.retired, cpu.rip, gpa, 0, 0, min(size, 0xFFFF_FFFF), StoreBy.DMA)

    def _store(self, retired: int, rip: int, gpa: int, linear: int, value: int, size: int, by: int) -> None:
        if self._ranges and not any(gpa < one.stop and gpa + size > one.start for one in self._ranges):
            return  # beside it in the same page
        rows = self._stores
        rows.append((retired, rip, gpa, linear, value, size, by, 0))
        if len(rows) >= EXIT_CHUNK:
            self._take_stores()

    def _take_stores(self) -> None:
        packed, count = b"".join(starmap(STORE_PACK.pack, self._stores)), len(self._stores)
        self._stores.clear()
        self._add(Kind.STORES, packed, count)

    # ---- the file ------------------------------------------------------------------------------------------

    def _add(self, kind: Kind, packed: bytes, count: int) -> None:
        """Put rows behind those of their kind; complete chunks go to the file at once."""
        if self.stopped or self._closed:
            return
        stream = self._streams[kind]
        size = stream.rows * stream.size
        try:
            if len(stream.pending) + len(packed) >= size:
                packed = bytes(stream.pending) + packed if stream.pending else packed
                stream.pending.clear()
                at = 0
                while len(packed) - at >= size and not self.stopped:
                    self._complete(stream, packed[at : at + size])
                    at += size
                packed = packed[at:]
            stream.pending += packed
            pauses = kind is Kind.EXITS and count < EXIT_CHUNK - 1  # in the middle of a run chunks will do
            if pauses and len(stream.pending) - stream.safe >= FLUSH_ROWS * stream.size:
                self._write_tail()
        except OSError as error:
            self._fail(error)

    def _complete(self, stream: _Stream, rows: bytes | Columns) -> None:
        """Write a complete chunk where the small ones were."""
        if self._end + stream.rows * stream.size > self._limit:
            self._fill_up(stream, rows)
            return
        data = self._chunk(stream, rows, final=True)
        self._skipped_safe = 0
        for other in self._streams.values():
            other.safe = 0
        tail = self._end > self._final_end
        self._write(self._final_end, *data)
        self._final_end = self._end
        if tail:
            self._cut()
        if any(other.pending for other in self._streams.values() if other is not stream):
            self._write_tail()

    def _write_tail(self) -> None:
        """Write what is not in the file yet as small chunks behind the complete ones."""
        for stream in self._streams.values():
            if self._end + len(stream.pending) - stream.safe > self._limit:
                self._fill_up(stream, bytes(stream.pending))
                return
            if len(stream.pending) > stream.safe:
                self._write(
                    self._end, *self._chunk(stream, bytes(stream.pending[stream.safe :]), final=False)
                )
                stream.safe = len(stream.pending)
        self._file.flush()

    def _chunk(self, stream: _Stream, rows: bytes | Columns, *, final: bool) -> list[bytes | memoryview]:
        """The parts of one chunk, with the index of the lines that its stores touch."""
        kind = stream.kind
        payload, columns, count = b"", None, stream.rows
        if not isinstance(rows, bytes):
            columns = rows
        else:
            payload, count = rows, len(rows) // stream.size
            if kind in COLUMN_KINDS:
                columns = columns_of(kind, rows)
        # Exits of several vCPUs are in the order in which they were answered, which need not be that of time.
        retired = addresses = (0, 0)
        if columns is not None:
            retired = columns["retired"].least, columns["retired"].most
            if kind in (Kind.EXITS, Kind.STORES):
                addresses = columns["address"].least, columns["address"].most
        elif kind is not Kind.WORDS:
            counts = np.frombuffer(payload, ROW_TYPES[kind])["retired"]
            retired = int(counts.min()), int(counts.max())
        first = stream.first + (0 if final else stream.safe // stream.size)
        base = self._skipped + (0 if final else self._skipped_safe)
        data: list[bytes | memoryview] = []
        if kind is Kind.EXITS and columns is not None:
            data.append(self._new_devices(columns["device"]))
        data += chunk_parts(
            kind, payload, columns=columns, count=count, first=first,
            base_ns=base if kind is Kind.EXITS else 0, retired=retired, addresses=addresses,
            deflate=self._compress,
        )  # fmt: skip
        if kind is Kind.STORES:
            lines = _lines(np.frombuffer(payload, STORE_TYPE))
            if lines.nbytes <= CHUNK_LIMIT:  # without its index the chunk is merely read
                data += chunk_parts(
                    Kind.STORE_LINES, lines.tobytes(), first=first, retired=retired,
                    addresses=(int(lines[0]), int(lines[-1])),
                )  # fmt: skip
        skipped = _skipped(columns, count) if kind is Kind.EXITS and columns is not None else 0
        if final:
            stream.first += count
            self._skipped += skipped
        else:
            self._skipped_safe += skipped
        return data

    def _new_devices(self, column: Column) -> bytes:
        """The table of names again if a device came after the last one."""
        most = column.most
        if most == NOBODY and column.values is not None:
            most = int(column.values[column.values != NOBODY].max())
        if most < len(self._devices) or most == NOBODY:
            return b""
        self._devices = _device_names(self._vm)
        return chunk_bytes(Kind.DEVICES, _json(self._devices))

    def _fill_up(self, stream: _Stream, rows: bytes | Columns) -> None:
        """Write as many of these rows as the limit allows, and end the recording."""
        room = self._limit - self._final_end - 2 * CHUNK_HEAD.size
        count = room // (stream.size + 2 * ROW_TYPES[Kind.STORE_LINES].itemsize)
        if count > 0:
            stream.safe = self._skipped_safe = 0
            if not isinstance(rows, bytes):
                rows = unpacked_columns(stream.kind, stream.rows, packed_columns(rows)) or b""
            self._write(self._final_end, *self._chunk(stream, rows[: count * stream.size], final=False))
            self._cut()
        self._full()

    def _pending(self) -> int:
        """Bytes of the rows behind the last complete chunks."""
        return sum(len(stream.pending) for stream in self._streams.values())

    def _full(self) -> None:
        self._stop(
            f"recording to {self._name()} ended after {self._end:,} bytes, its limit; a larger "
            "--record-limit (in Python: limit) records more"
        )

    def _stop(self, sentence: str) -> None:
        """Record no more; the guest runs on."""
        self.stopped = sentence
        self._detach()

    def _fail(self, error: OSError) -> None:
        self.failed = True
        self._stop(f"recording to {self._name()} ended: it cannot be written ({_reason(error)})")

    def _write(self, at: int, *parts: bytes | memoryview) -> None:
        data = b"".join(parts)
        if self._file.tell() != at:
            self._file.seek(at)
        self._file.write(data)
        self._file.flush()  # a chunk is worth a write of its own: what is in a buffer dies with the process
        self._end = at + len(data)

    def _cut(self) -> None:
        self._file.flush()
        self._file.truncate(self._end)

    def _name(self) -> str:
        return "memory" if self.path is None else str(self.path)

    def _write_symbols(self) -> None:
        """The guest's symbols: without them a record of a stripped kernel's map would only have numbers."""
        plan = self._vm.plan
        if plan is None or plan.symbols is None or not len(plan.symbols):
            return
        lines = bytearray()
        for symbol in plan.symbols:
            line = f"{symbol.address:x} {symbol.name}\n".encode()
            if len(lines) + len(line) > SYMBOL_BYTES:
                break
            lines += line
        self._write(self._end, chunk_bytes(Kind.SYMBOLS, bytes(lines)))
        self._final_end = self._end

    # ---- for the user --------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Put everything recorded so far into the file."""
        self._drain()
        if not self.stopped:
            try:
                self._write_tail()
            except OSError as error:
                self._fail(error)

    def close(self) -> None:
        """End the recording: the last rows, and how far the guest had come. Twice does nothing."""
        if self._closed:
            return
        self._drain()
        self._closed = True
        self._detach()
        try:
            if not self.stopped and self._final_end + self._pending() > self._limit:
                self._write_tail()  # as much as may be
            if not self.stopped:
                data = [
                    part
                    for stream in self._streams.values()
                    if stream.pending
                    for part in self._chunk(stream, bytes(stream.pending), final=True)
                ]
                for stream in self._streams.values():
                    stream.pending.clear()
                end = {
                    "retired": self._cpu.retired,
                    "ns": self._vm.now_ns(),
                    "rows": {stream.kind.name.lower(): stream.first for stream in self._streams.values()},
                }
                self._write(self._final_end, *data, *chunk_parts(Kind.END, _json(end)))
                self._cut()
            if self.path is not None:
                self._file.close()
        except OSError as error:
            self._fail(error)
            with contextlib.suppress(OSError):
                self._file.close()

    def source(self) -> Path | bytes:
        """What `Trace.open` reads: the path, or the bytes of a recording in memory. Flushes first."""
        if not self._file.closed:
            self.flush()
        if self.path is not None:
            return self.path
        assert isinstance(self._file, io.BytesIO)  # without a path
        return self._file.getvalue()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _drain(self) -> None:
        if self._stores:
            self._take_stores()
        if self._listens() and self._vm.exit_log is not None:
            self._take_rows(self._vm.exit_log)

    def _listens(self) -> bool:
        return self._vm.exit_sink == self.take

    def _detach(self) -> None:
        """Let the VM go. The CPU keeps its glass until the run is over, where a glass may come off."""
        vm = self._vm
        self.stepwise = False
        if self._listens():
            vm.exit_log = vm.exit_sink = None
        if self._watching and vm.current_vcpu() is None:
            unwatch(self._cpu, self)
            self._watching = False


class _Stream:
    """Rows of one kind on their way: `pending` are those behind the last complete chunk, the first `safe`
    bytes of them lie in small chunks; `first` is the number of the first one."""

    __slots__ = ("first", "kind", "pending", "rows", "safe", "size")

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.rows = CHUNK_ROWS[kind]
        self.size = ROW_TYPES[kind].itemsize
        self.pending = bytearray()
        self.safe = 0
        self.first = 0


def identity(
    vm: AxVM, devices: Iterable[str], skipped: int, stores: bool | Sequence[range], instructions: bool,
    registers: list[str], command: Mapping[str, Any] | None,
) -> dict[str, Any]:  # fmt: skip
    """What the header says: the machine and its guest. Nothing of it depends on engine, host or time."""
    config = vm.config()
    settings = config.pysim
    plan = vm.plan
    guest: dict[str, Any] = {"images": []}
    if plan is not None:
        guest = {
            "protocol": plan.protocol,
            "entry": plan.start.rip,
            "images": [
                {"gpa": gpa, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                for gpa, data in (*plan.roms, *plan.writes)
            ],
        }
    return {
        "vm": {"id": vm.id(), "name": vm.name(), "vcpus": vm.vcpu_num()},
        "memory": [[region.base, region.size] for region in vm.memory.regions],
        "ns_per_instruction": vm.ns_per_instruction,
        "start": {"retired": vm.vcpu(0).retired, "skipped_ns": skipped},
        "settings": {
            "platform": settings.platform,
            "missing_device": settings.missing_device,
            "tsc_hz": settings.tsc_hz,
            "seed": settings.seed,
            "cpu_features": list(settings.cpu_features),
        },
        "guest": guest,
        "devices": list(devices),
        "kinds": list(KINDS),
        "stores": stores if isinstance(stores, bool) else [[one.start, one.stop] for one in stores],
        "instructions": instructions,
        "registers": registers if instructions else [],
        "registers_at_start": {
            name: f"{value:#x}" for name, value in snapshot(vm.vcpu(0).cpu).items() if value
        },
        "command": None if command is None else dict(command),
    }


def _device_names(vm: AxVM) -> list[str]:
    return list(vm.get_devices().device_names)


def _register_names(cpu: Cpu) -> list[str]:
    return [name for name in snapshot(cpu) if not name.startswith("msr ")]


def _skipped(columns: Columns, count: int) -> int:
    """Virtual time in ns that the halts among these exits skipped."""
    kinds, values = columns["kind"], columns["value"]
    if not kinds.least <= HALT <= kinds.most:
        return 0
    if values.values is None:
        halts = count if kinds.values is None else int((kinds.values == HALT).sum())
        return values.least * halts
    return int((values.values if kinds.values is None else values.values[kinds.values == HALT]).sum())


def _lines(table: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The sorted numbers of the 8-byte lines that stores touch."""
    low = table["address"] >> np.uint64(LINE_SHIFT)
    last = table["address"] + np.maximum(table["size"], 1).astype(np.uint64) - np.uint64(1)
    high = last >> np.uint64(LINE_SHIFT)
    wide = high > low
    parts = [np.unique(low)]
    if wide.any():
        parts += [np.arange(a, b + 1, dtype="<u8") for a, b in zip(low[wide], high[wide], strict=True)]
    return np.unique(np.concatenate(parts)).astype("<u8")


def _json(value: object) -> bytes:
    import json

    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


assert EXIT_PACK.size == EXIT_TYPE.itemsize and STORE_PACK.size == STORE_TYPE.itemsize
