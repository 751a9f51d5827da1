"""The recorder: takes a VM's exits (and, if asked, its stores and instructions) and writes a record.

It answers no exit and reads no record back. Exits come as the tuples of `AxVM.exit_log`, in bunches, so that
recording them costs an append on the hot path and a `struct` call later. Stores and instructions are seen
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
from collections.abc import Iterable, Mapping
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np

from isa.cpu import Cpu
from isa.faults import Fault
from pysim_vm.cpu_watch import CpuWatcher, running_ip, unwatch, watch
from pysim_vm.errors import AxErrorKind
from pysim_vm.exit_kinds import KINDS
from pysim_vm.record_format import (
    CHANGE_PACK,
    CHUNK_HEAD,
    CHUNK_LIMIT,
    CHUNK_ROWS,
    EXIT_PACK,
    EXIT_TYPE,
    INSTRUCTION_PACK,
    LINE_SHIFT,
    MSR_REGISTER,
    ROW_TYPES,
    STORE_PACK,
    STORE_TYPE,
    Event,
    Kind,
    RecordError,
    StoreBy,
    chunk_bytes,
    preamble,
)
from pysim_vm.report import instruction_at, snapshot
from pysim_vm.short_exits import EXIT_CHUNK

if TYPE_CHECKING:
    from pysim_vm.vm import AxVM

DEFAULT_LIMIT: Final = 4 << 30  # bytes of one record unless told otherwise: a Debian boot's exits need 1/100
FLUSH_ROWS: Final = 256  # fewer exits than this are not worth a small chunk when a run pauses
HALT: Final = KINDS.index("halt")
SYMBOL_BYTES: Final = 32 << 20  # of names: a Linux kernel's take 6 MiB
M64: Final = (1 << 64) - 1


class Recorder(CpuWatcher):
    """One recording of one VM. Make it with `AxVM.record`; `close` ends it.

    `path` is None for a recording in memory. `stores` records every write to RAM, `instructions` every
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
        stores: bool = False,
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
        self._stores: list[tuple[int, int, int, int, int, int, int, int]] = []
        self._streams = {kind: _Stream(kind) for kind in CHUNK_ROWS}
        self._skipped = vm.now_ns() - self._cpu.retired * vm.ns_per_instruction
        self._start_retired = self._cpu.retired
        self._final_end = 0  # of the header and the complete chunks
        self._end = 0  # of what is written
        self._closed = False
        self._devices = _device_names(vm)
        self._unwatched: type[Cpu] | None = None
        self._last: dict[str, int] = {}
        self._event: tuple[int, int] = (Event.INSTRUCTION, 0)
        self._code: Any = None
        self._rip = self._bits = 0
        self._file: BinaryIO = self._create()
        head = preamble(identity(vm, self._devices, self._skipped, stores or instructions, instructions,
                                 list(self._registers), command))  # fmt: skip
        self._write(0, head)
        self._final_end = self._end
        self._write_symbols()
        vm.exit_log = []
        vm.exit_sink = self.take
        if stores or instructions:
            self._unwatched = watch(self._cpu, self)
            self._host_write, self._memory = vm.memory.on_write, vm.memory
            vm.memory.on_write = self._saw_host_write
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

    def take(self, rows: list[tuple[int, int, int, int, int, int, int, int, int]]) -> None:
        """`AxVM.exit_sink`: take the exits and clear the list."""
        if self._stores:
            self._take_stores()
        if rows:
            packed = b"".join(starmap(EXIT_PACK.pack, rows))
            count = len(rows)
            rows.clear()
            self._add(Kind.EXITS, packed, count)

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

    def saw_fault(self, cpu: Cpu, fault: Fault) -> None:
        """The step becomes an exception."""
        self._event = Event.EXCEPTION, fault.vector

    def saw_interrupt(self, cpu: Cpu, vector: int) -> None:
        """The step becomes an interrupt."""
        self._event = Event.INTERRUPT, vector

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

    def _saw_host_write(self, host: int, size: int) -> None:
        if self._host_write is not None:
            self._host_write(host, size)
        for region in self._memory.regions:
            if region.host <= host < region.host + region.size:
                gpa = region.base + host - region.host
                self._store(self._cpu.retired, self._cpu.rip, gpa, 0, 0, min(size, 0xFFFF_FFFF), StoreBy.DMA)
                return

    def _store(self, retired: int, rip: int, gpa: int, linear: int, value: int, size: int, by: int) -> None:
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
        if self.stopped:
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

    def _complete(self, stream: _Stream, rows: bytes) -> None:
        """Write a complete chunk where the small ones were."""
        if self._end + len(rows) > self._limit:
            self._fill_up(stream, rows)
            return
        data = self._chunk(stream, rows, final=True)
        for other in self._streams.values():
            other.safe = 0
        tail = self._end > self._final_end
        self._write(self._final_end, data)
        self._final_end = self._end
        if tail:
            self._cut()
        if any(other.pending for other in self._streams.values() if other is not stream):
            self._write_tail()

    def _write_tail(self) -> None:
        """Write what is not in the file yet as small chunks behind the complete ones."""
        for stream in self._streams.values():
            if len(stream.pending) > stream.safe and self._fits(len(stream.pending) - stream.safe):
                self._write(self._end, self._chunk(stream, bytes(stream.pending[stream.safe :]), final=False))
                stream.safe = len(stream.pending)
        self._file.flush()

    def _chunk(self, stream: _Stream, rows: bytes, *, final: bool) -> bytes:
        """The bytes of one chunk, with the index of the lines that its stores touch."""
        kind = stream.kind
        table = np.frombuffer(rows, ROW_TYPES[kind])
        # Exits of several vCPUs are in the order in which they were answered, which need not be that of time.
        counts = table["retired"]
        where = table["address"] if kind in (Kind.EXITS, Kind.STORES) else None
        first = stream.first + (0 if final else stream.safe // stream.size)
        base = self._skipped + (0 if final else _skipped_in(stream.pending[: stream.safe], kind))
        data = chunk_bytes(
            kind, rows, first=first, base_ns=base if kind is Kind.EXITS else 0,
            retired=(int(counts.min()), int(counts.max())),
            addresses=(0, 0) if where is None else (int(where.min()), int(where.max())),
            deflate=self._compress,
        )  # fmt: skip
        if kind is Kind.STORES:
            lines = _lines(table)
            if lines.nbytes <= CHUNK_LIMIT:  # without its index the chunk is merely read
                data += chunk_bytes(
                    Kind.STORE_LINES, lines.tobytes(), first=first,
                    retired=(int(counts.min()), int(counts.max())), addresses=(int(lines[0]), int(lines[-1])),
                )  # fmt: skip
        if kind is Kind.EXITS:
            data = self._new_devices(table) + data
        if final:
            stream.first += len(table)
            if kind is Kind.EXITS:
                self._skipped += _skipped_in(rows, kind)
        return data

    def _new_devices(self, table: np.ndarray[Any, Any]) -> bytes:
        """The table of names again if a device came after the last one."""
        if int(table["device"].max()) < len(self._devices):
            return b""
        self._devices = _device_names(self._vm)
        return chunk_bytes(Kind.DEVICES, _json(self._devices))

    def _fill_up(self, stream: _Stream, rows: bytes) -> None:
        """Write as many of these rows as the limit allows, and end the recording."""
        room = self._limit - self._final_end - 2 * CHUNK_HEAD.size
        count = room // (stream.size + 2 * ROW_TYPES[Kind.STORE_LINES].itemsize)
        if count > 0:
            stream.safe = 0
            self._write(self._final_end, self._chunk(stream, rows[: count * stream.size], final=False))
            self._cut()
        self._full()

    def _fits(self, size: int) -> bool:
        """Whether the record stays within its limit; if not, the recording ends."""
        if self._end + size <= self._limit:
            return True
        self._full()
        return False

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

    def _write(self, at: int, data: bytes) -> None:
        self._file.seek(at)
        self._file.write(data)
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
            if not self.stopped:
                data = b"".join(
                    self._chunk(stream, bytes(stream.pending), final=True)
                    for stream in self._streams.values()
                    if stream.pending
                )
                for stream in self._streams.values():
                    stream.pending.clear()
                end = {
                    "retired": self._cpu.retired,
                    "ns": self._vm.now_ns(),
                    "rows": {stream.kind.name.lower(): stream.first for stream in self._streams.values()},
                }
                self._write(self._final_end, data + chunk_bytes(Kind.END, _json(end)))
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
        if self._listens() and self._vm.exit_log:
            self.take(self._vm.exit_log)

    def _listens(self) -> bool:
        return self._vm.exit_sink == self.take

    def _detach(self) -> None:
        """Let the VM go. The CPU keeps its glass until the run is over, where a glass may come off."""
        vm = self._vm
        self.stepwise = False
        if self._listens():
            vm.exit_log = vm.exit_sink = None
        if self._unwatched is not None:
            vm.memory.on_write = self._host_write
            if vm.current_vcpu() is None:
                unwatch(self._cpu, self._unwatched)
                self._unwatched = None


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
    vm: AxVM, devices: Iterable[str], skipped: int, stores: bool, instructions: bool,
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
        "stores": stores,
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


def _skipped_in(rows: bytes | bytearray, kind: Kind) -> int:
    """Virtual time in ns that the halts among these exits skipped."""
    if kind is not Kind.EXITS or not rows:
        return 0
    table = np.frombuffer(bytes(rows), EXIT_TYPE)
    return int(table["value"][table["kind"] == HALT].sum())


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
