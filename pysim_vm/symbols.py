"""Symbols: which name an address belongs to, from an ELF file's symbol table or a System.map.

No DWARF: no lines, no types, no locals.
"""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from io import BytesIO
from typing import Final, NamedTuple

from elftools.common.exceptions import ELFError
from elftools.construct.core import ConstructError
from elftools.elf.elffile import ELFFile

from pysim_vm.errors import LoadError

SYMBOL_COUNT_MAX: Final = 4_000_000  # a Linux kernel has about 150,000
NAME_SIZE_MAX: Final = 1024  # Linux allows 512; longer names are cut, so that a bad string table stays cheap
REACH: Final = 1 << 20  # an address further than 1 MiB behind the last symbol belongs to none

_STT_NOTYPE: Final = 0
_STT_OBJECT: Final = 1
_STT_FUNC: Final = 2
_STT_GNU_IFUNC: Final = 10
_SHN_UNDEF: Final = 0
_SHN_LORESERVE: Final = 0xFF00  # from here on: SHN_ABS and its kin, which name no place in memory
_STB_LOCAL: Final = 0
_SECTION_COUNT_MAX: Final = 0x10000

_MAP_LINE: Final = re.compile(r"([0-9a-fA-F]{1,16}) ([A-Za-z?]) (\S+)(?:\s+\[\S+\])?\s*")


class Symbol(NamedTuple):
    """A name and the address it stands for; `size` is in bytes, 0 when the file does not say."""

    name: str
    address: int
    size: int = 0


class Location(NamedTuple):
    """An address seen from its symbol; prints as `name` or `name+0x1c`."""

    symbol: Symbol
    offset: int

    def __str__(self) -> str:
        return f"{self.symbol.name}+{self.offset:#x}" if self.offset else self.symbol.name


class SymbolTable:
    """An immutable set of symbols, searched by address and by name. Where several symbols share an address,
    the first one given is shown and all are found by name; where several share a name, the first one is
    found.
    """

    __slots__ = ("_addresses", "_by_name", "_symbols")

    def __init__(self, symbols: Iterable[Symbol] = ()) -> None:
        by_address: dict[int, Symbol] = {}
        self._by_name: dict[str, Symbol] = {}
        for symbol in symbols:
            by_address.setdefault(symbol.address, symbol)
            self._by_name.setdefault(symbol.name, symbol)
        self._addresses = sorted(by_address)
        self._symbols = [by_address[address] for address in self._addresses]

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[Symbol]:
        """All names, ascending by address."""
        return iter(sorted(self._by_name.values(), key=lambda symbol: (symbol.address, symbol.name)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SymbolTable) and self._by_name == other._by_name

    __hash__ = None  # type: ignore[assignment]  # compared by content, which is too large to hash

    def __repr__(self) -> str:
        return f"<SymbolTable of {len(self)} symbols>"

    def lookup(self, address: int) -> Location | None:
        """The nearest symbol at or before an address, or None when it is more than 1 MiB away."""
        at = bisect_right(self._addresses, address) - 1
        if at < 0:
            return None
        symbol = self._symbols[at]
        offset = address - symbol.address
        return Location(symbol, offset) if offset < max(REACH, symbol.size) else None

    def address_of(self, name: str) -> int | None:
        """The address of a name, or None."""
        symbol = self._by_name.get(name)
        return None if symbol is None else symbol.address

    def format(self, address: int) -> str:
        """`name+0x1c (0xffffffff8100001c)`, or the bare number where no symbol is near."""
        location = self.lookup(address)
        return f"{address:#x}" if location is None else f"{location} ({address:#x})"

    def relocated(self, delta: int) -> SymbolTable:
        """The table of the same program moved by `delta` bytes, as KASLR or an identity mapping moves a
        kernel.

        Addresses wrap at 64 bits.
        """
        mask = (1 << 64) - 1
        return SymbolTable(symbol._replace(address=(symbol.address + delta) & mask) for symbol in self)

    @classmethod
    def from_elf(cls, data: bytes, name: str = "ELF file") -> SymbolTable:
        """The functions, objects and labels of `.symtab`, or of `.dynsym` in a file without it.

        A stripped file gives an empty table. Raises LoadError when the file is no ELF or its tables are
        damaged.
        """
        try:
            elf = ELFFile(BytesIO(data))
            if elf.num_sections() > _SECTION_COUNT_MAX:
                raise LoadError(
                    f"{name}: {elf.num_sections()} ELF sections are too many; the file is damaged"
                )
            headers = [elf._get_section_header(index) for index in range(elf.num_sections())]
            tables = [h for h in headers if h["sh_type"] == "SHT_SYMTAB"]
            tables = tables or [h for h in headers if h["sh_type"] == "SHT_DYNSYM"]
            if not tables:
                return cls()
            table = tables[0]
            if table["sh_link"] >= len(headers):
                raise LoadError(f"{name}: the ELF symbol table has no string table; the file is damaged")
            link = headers[table["sh_link"]]
            strings = _section(data, link["sh_offset"], link["sh_size"], name)
            symbols = _section(data, table["sh_offset"], table["sh_size"], name)
            return cls(_elf_symbols(symbols, strings, elf.elfclass == 64, elf.little_endian, name))
        except (ELFError, ConstructError, struct.error, OverflowError) as error:
            raise LoadError(
                f"{name}: the ELF symbol table cannot be read ({error}); the file is damaged"
            ) from error

    @classmethod
    def from_system_map(cls, text: str, name: str = "System.map") -> SymbolTable:
        """The symbols of a System.map, `nm` output or /proc/kallsyms. Raises LoadError naming the first bad
        line."""
        symbols = []
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            match = _MAP_LINE.fullmatch(line)
            if match is None:
                hint = (
                    "the real file is in the kernel's -dbg package"
                    if "-dbg package" in line
                    else "check the file"
                )
                raise LoadError(f'{name} line {number} is not "address type name": {line[:60]!r}; {hint}')
            if number > SYMBOL_COUNT_MAX:
                raise LoadError(f"{name}: more than {SYMBOL_COUNT_MAX} symbols; this is no System.map")
            if match[2] not in "aAUw":  # absolute values and undefined names are no places
                symbols.append(Symbol(match[3][:NAME_SIZE_MAX], int(match[1], 16)))
        return cls(symbols)

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> SymbolTable:
        """The symbols of either kind of file, told apart by the ELF magic. Raises LoadError."""
        if data.startswith(b"\x7fELF"):
            return cls.from_elf(data, name)
        try:
            return cls.from_system_map(data.decode("ascii"), name)
        except UnicodeDecodeError:
            raise LoadError(f"{name} is neither an ELF file nor a System.map; name one of the two") from None


def _section(data: bytes, start: int, size: int, name: str) -> memoryview:
    if start + size > len(data):
        raise LoadError(
            f"{name}: an ELF section at {start:#x} of {size:#x} bytes ends behind the file's "
            f"{len(data):#x} bytes; the file is truncated"
        )
    return memoryview(data)[start : start + size]


def _elf_symbols(table: memoryview, strings: memoryview, wide: bool, little: bool, name: str) -> list[Symbol]:
    entry = struct.Struct(("<" if little else ">") + ("IBBHQQ" if wide else "IIIBBH"))
    count = len(table) // entry.size
    if count > SYMBOL_COUNT_MAX:
        raise LoadError(f"{name}: {count} symbols are too many (at most {SYMBOL_COUNT_MAX}); strip the file")
    names = bytes(strings)
    found: list[tuple[int, Symbol]] = []
    for fields in entry.iter_unpack(table[: count * entry.size]):
        if wide:
            name_at, info, _, section, address, size = fields
        else:
            name_at, address, size, info, _, section = fields
        kind = info & 0xF
        if kind not in (_STT_NOTYPE, _STT_OBJECT, _STT_FUNC, _STT_GNU_IFUNC):
            continue
        if section == _SHN_UNDEF or section >= _SHN_LORESERVE or name_at >= len(names):
            continue
        end = names.find(b"\0", name_at, name_at + NAME_SIZE_MAX)
        text = names[name_at : name_at + NAME_SIZE_MAX if end < 0 else end]
        if not text:
            continue
        # Where names share an address, a global function says most, a local label least.
        rank = 2 * (kind not in (_STT_FUNC, _STT_GNU_IFUNC)) + (info >> 4 == _STB_LOCAL)
        found.append((rank, Symbol(text.decode("utf-8", "backslashreplace"), address, size)))
    found.sort(key=lambda item: item[0])
    return [symbol for _, symbol in found]
