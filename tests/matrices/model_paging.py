"""Paging after SDM Vol. 3, "Paging": walks, access rights, error codes, accessed and dirty flags.

The model of `test_paging.py` and of every other matrix that runs with CR0.PG = 1. It has no TLB. Where the
manual leaves a choice, the model takes one: a walk that ends in a page fault sets no flag at all, and a store
that cannot be done sets no dirty flag.
"""

from __future__ import annotations

from contextlib import suppress

from tests.matrices.spec import (
    AC,
    GP,
    LMA,
    M32,
    M64,
    NXE,
    PAE,
    PFAULT,
    PG,
    PSE,
    SMAP,
    SMEP,
    WP,
    Fault,
    Machine,
)

READ, WRITE, FETCH = "read", "write", "fetch"

P, RW, US, A, D, PS, XD = 1 << 0, 1 << 1, 1 << 2, 1 << 5, 1 << 6, 1 << 7, 1 << 63
MAXPHYADDR = 48  # CPUID.80000008H:EAX[7:0]
PAGE = 4096

# "Paging", tables of entry formats: the lowest linear-address bit that each level of a mode translates
LEVELS = {"32-bit": (22, 12), "PAE": (21, 12), "4-level": (39, 30, 21, 12)}


def paging_mode(m: Machine) -> str:
    """SDM Vol. 3, "Three Paging Modes" (and none)."""
    if not m.cr0 & PG:
        return "none"
    if not m.cr4 & PAE:
        return "32-bit"
    return "4-level" if m.efer & LMA else "PAE"


def bits(*ranges: int | tuple[int, int]) -> int:
    """A mask from bit numbers and (high, low) ranges."""
    mask = 0
    for part in ranges:
        high, last = part if isinstance(part, tuple) else (part, part)
        mask |= (1 << high + 1) - (1 << last)
    return mask


def reserved_bits(m: Machine, mode: str, level: int, large: bool) -> int:
    """The bits that an entry translating from linear-address bit `level` on must have clear.

    Tables "Format of a 32-Bit Page-Directory Entry that Maps a 4-MByte Page", "... PAE Page-Directory Entry
    ...", "Format of a PML4 Entry", "... PDPTE that Maps a 1-GByte Page", "... PDE that Maps a 2-MByte Page".
    """
    if mode == "32-bit":
        # PSE-36 with 40 bits of physical address: bits 20-13 are address bits 39-32
        return (bits(21) if m.pse36 else bits((21, 13))) if large else 0
    found = bits((51, MAXPHYADDR))
    if not m.efer & NXE:
        found |= bits(63)
    if mode == "PAE":
        found |= bits((62, 52))
    if level == 39 or (level == 30 and not m.pages_1g):
        found |= bits(7)
    if large and level != 39:
        found |= bits((level - 1, 13))
    return found


def pdpte_reserved() -> int:
    """Table "Format of a PAE Page-Directory-Pointer-Table Entry (PDPTE)"."""
    return bits((2, 1), (8, 5), (63, MAXPHYADDR))


def load_pdptes(m: Machine, cr3: int) -> tuple[int, int, int, int]:
    """ "PDPTE Registers": all four from the table at CR3[31:5]; #GP(0) for a reserved bit in a present
    one."""
    table = cr3 & 0xFFFF_FFE0
    first, second, third, fourth = (m.get(table + 8 * n, 8) for n in range(4))
    if any(entry & P and entry & pdpte_reserved() for entry in (first, second, third, fourth)):
        raise Fault(GP, 0)
    return first, second, third, fourth


def walk(
    m: Machine, linear: int, kind: str, *, user: bool, implicit: bool
) -> tuple[int, list[tuple[int, int]]]:
    """The physical address, and (address, width) of the entries used, lowest level last. Raises #PF.

    `user` is a user-mode access; `implicit` a supervisor-mode access to a system data structure.
    """
    mode = paging_mode(m)
    if mode == "none":
        return linear, []
    path: list[tuple[int, int]] = []
    rights = US | RW
    disabled = 0
    width = 4 if mode == "32-bit" else 8
    frame = m.cr3 & (0xFFFF_F000 if mode == "32-bit" else bits((MAXPHYADDR - 1, 12)))
    if mode == "PAE":
        pdpte = m.pdptes[linear >> 30 & 3]
        if not pdpte & P:
            raise page_fault(m, linear, kind, user, 0)
        frame = pdpte & bits((MAXPHYADDR - 1, 12))
    for level in LEVELS[mode]:
        index = linear >> level & (0x3FF if mode == "32-bit" else 0x1FF)
        at = frame + index * width
        entry = m.get(at, width)
        if not entry & P:
            raise page_fault(m, linear, kind, user, 0)
        may_be_large = level in (21, 30) or (level == 22 and m.cr4 & PSE)
        large = bool(entry & PS and may_be_large)
        if entry & reserved_bits(m, mode, level, large):
            raise page_fault(m, linear, kind, user, 9)  # P and RSVD
        rights &= entry
        disabled |= entry & XD
        path.append((at, width))
        if large or level == 12:
            break
        frame = entry & (0xFFFF_F000 if mode == "32-bit" else bits((MAXPHYADDR - 1, 12)))
    if not allowed(m, kind, rights, bool(disabled) and mode != "32-bit", user, implicit):
        raise page_fault(m, linear, kind, user, 1)
    offset = (1 << level) - 1
    base = entry & bits((MAXPHYADDR - 1, 12)) if mode != "32-bit" else entry & 0xFFFF_F000
    if level == 22:
        base = entry & 0xFFC0_0000 | (entry >> 13 & 0xFF) << 32
    return base & ~offset | linear & offset, path


def allowed(m: Machine, kind: str, rights: int, disabled: bool, user: bool, implicit: bool) -> bool:
    """SDM Vol. 3, "Access Rights": `rights` are the R/W and U/S flags that all entries have."""
    user_address, writable = bool(rights & US), bool(rights & RW)
    executable = not (disabled and m.efer & NXE)
    if user:
        if not user_address:
            return False
        return {READ: True, WRITE: writable, FETCH: executable}[kind]
    if kind == FETCH:
        return executable and not (user_address and m.cr4 & SMEP)
    if user_address and m.cr4 & SMAP and (implicit or not m.rflags & AC):
        return False
    return kind == READ or writable or not m.cr0 & WP


def page_fault(m: Machine, linear: int, kind: str, user: bool, code: int) -> Fault:
    """SDM Vol. 3, "Page-Fault Exceptions": `code` holds P and RSVD."""
    if kind == WRITE:
        code |= 1 << 1
    if user:
        code |= 1 << 2
    if kind == FETCH and (m.cr4 & SMEP or (m.cr4 & PAE and m.efer & NXE)):
        code |= 1 << 4
    return Fault(PFAULT, code, cr2=linear)


def access(
    m: Machine, linear: int, size: int, kind: str, *, implicit: bool = False, user: bool | None = None,
    happens: bool = True,
) -> list[tuple[int, int]]:  # fmt: skip
    """(physical address, bytes) pieces of an access, page by page, after every check; sets A and D.

    "Accessed and Dirty Flags": A in every entry used, D in the one that maps the page, for writes; not for
    one that is only checked (`happens` False).
    """
    if linear + size <= m.flat:
        return [(linear, size)]
    if user is None:
        user = m.cpl == 3 and not implicit
    mask = M64 if m.mode64 or (m.long and implicit) else M32
    pieces, used = [], []
    done = 0
    while done < size:
        at = linear + done & mask
        part = min(size - done, PAGE - (at & PAGE - 1))
        physical, path = walk(m, at, kind, user=user, implicit=implicit)
        for _, (entry_at, width) in enumerate(path):
            m.put(entry_at, width, m.get(entry_at, width) | A)
        if path:
            used.append(path[-1])
        pieces.append((physical, part))
        done += part
    if kind == WRITE and happens:
        for entry_at, width in used:
            m.put(entry_at, width, m.get(entry_at, width) | D)
    return pieces


def load(m: Machine, linear: int, size: int, *, implicit: bool = False) -> int:
    """Little-endian bytes at a linear address."""
    raw = b"".join(m.mem[at : at + part] for at, part in access(m, linear, size, READ, implicit=implicit))
    return int.from_bytes(raw, "little")


def store(
    m: Machine, linear: int, size: int, value: int, *, implicit: bool = False, user: bool | None = None
) -> None:
    """Store little-endian bytes at a linear address."""
    raw = value.to_bytes(size, "little")
    for at, part in access(m, linear, size, WRITE, implicit=implicit, user=user):
        m.mem[at : at + part], raw = raw[:part], raw[part:]


def modify(m: Machine, linear: int, size: int) -> int:
    """The read of a read-modify-write, which CPUs check as a write: its value.

    Where only the write is refused the page has been read, and its accessed flags are set.
    """
    try:
        pieces = access(m, linear, size, WRITE)
    except Fault:
        with suppress(Fault):
            access(m, linear, size, READ)
        raise
    return int.from_bytes(b"".join(m.mem[at : at + part] for at, part in pieces), "little")
