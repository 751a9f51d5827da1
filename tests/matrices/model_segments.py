"""Segmentation after SDM Vol. 3, "Protected-Mode Memory Management" and "Protection".

Descriptors, segment loads, limit and type checks, LAR to ARPL, LLDT and LTR. The transfers that load CS are
in
`model_far` and `model_iret`.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.matrices import model_paging as paging
from tests.matrices.spec import (
    AC,
    ACF,
    AM,
    GP,
    M16,
    M32,
    M64,
    NP,
    SS,
    TSF,
    Fault,
    Machine,
    Seg,
    canonical,
)

# "System-Segment and Gate-Descriptor Types"
TSS16, LDT, TSS16_BUSY, CALL16, TASK_GATE, INT16, TRAP16 = 1, 2, 3, 4, 5, 6, 7
TSS32, TSS32_BUSY, CALL32, INT32, TRAP32 = 9, 11, 12, 14, 15
# "Code- and Data-Segment Types", bit 4 being S: what may be read, written, executed
WRITABLE = frozenset((0x12, 0x13, 0x16, 0x17))
READABLE = frozenset((*range(0x10, 0x18), 0x1A, 0x1B, 0x1E, 0x1F))
CODE = frozenset(range(0x18, 0x20))
CONFORMING = frozenset(range(0x1C, 0x20))
EXPAND_DOWN = frozenset(range(0x14, 0x18))


class Desc(NamedTuple):
    """A descriptor as it lies in memory: `kind` is S and type, five bits."""

    selector: int
    at: int
    raw: int

    @property
    def kind(self) -> int:
        """S and the type."""
        return self.raw >> 40 & 31

    @property
    def dpl(self) -> int:
        """Bits 45-46."""
        return self.raw >> 45 & 3

    @property
    def present(self) -> bool:
        """Bit 47."""
        return bool(self.raw >> 47 & 1)

    @property
    def l(self) -> int:  # noqa: E743
        """Bit 53."""
        return self.raw >> 53 & 1

    @property
    def db(self) -> int:
        """Bit 54."""
        return self.raw >> 54 & 1

    @property
    def limit(self) -> int:
        """ "Segment limit field" and "G (granularity) flag"."""
        field = self.raw & M16 | self.raw >> 32 & 0xF_0000
        return field << 12 | 0xFFF if self.raw >> 55 & 1 else field

    @property
    def base(self) -> int:
        """Bits 31-0 of the base."""
        return self.raw >> 16 & 0xFF_FFFF | (self.raw >> 56) << 24

    def seg(self, selector: int | None = None) -> Seg:
        """What a segment register holds after loading this descriptor."""
        return Seg(
            self.selector if selector is None else selector, self.base, self.limit, self.raw >> 40 & 0xF0FF
        )


def error_of(selector: int) -> int:
    """ "Error Code": index and TI, EXT and IDT clear."""
    return selector & 0xFFFC


def is_null(selector: int) -> bool:
    """ "Segment Selectors": index 0 of the GDT."""
    return selector < 4


def locate(m: Machine, selector: int, size: int = 8) -> int:
    """Linear address of a descriptor, -1 outside the limit of its table."""
    index = selector & 0xFFF8
    if selector & 4:
        if m.ldtr.null:
            return -1
        base, limit = m.ldtr.base, m.ldtr.limit
    else:
        base, limit = m.gdtr
    if index + size - 1 > limit:
        return -1
    return base + index & (M64 if m.long else M32)


def fetch(m: Machine, selector: int, vector: int = GP) -> Desc:
    """The descriptor that a selector names; the fault `vector` with the selector outside its table."""
    at = locate(m, selector)
    if at < 0:
        raise Fault(vector, error_of(selector))
    return Desc(selector, at, paging.load(m, at, 8, implicit=True))


def fetch_upper(m: Machine, desc: Desc, vector: int = GP) -> int:
    """IA-32e mode: the second half of a 16-byte descriptor, whose type field must be 0."""
    if locate(m, desc.selector, 16) < 0:
        raise Fault(vector, error_of(desc.selector))
    upper = paging.load(m, desc.at + 8 & M64, 8, implicit=True)
    if upper >> 40 & 31:
        raise Fault(vector, error_of(desc.selector))
    return upper


def mark_accessed(m: Machine, desc: Desc) -> Desc:
    """ "Accessed bit": set in memory when the descriptor goes into a segment register."""
    if desc.kind & 1:
        return desc
    raw = desc.raw | 1 << 40
    paging.store(m, desc.at + 5, 1, raw >> 40 & 0xFF, implicit=True)
    return desc._replace(raw=raw)


# ---- loading segment registers (SDM Vol. 2, MOV; Vol. 3, "Privilege Level Checking...") --------------------


def check_ss(m: Machine, selector: int, level: int, vector: int = GP) -> Desc:
    """A stack segment for privilege `level`, not null. #SS(selector) if it is not present."""
    desc = fetch(m, selector, vector)
    if selector & 3 != level or desc.kind not in WRITABLE or desc.dpl != level:
        raise Fault(vector, error_of(selector))
    if not desc.present:
        raise Fault(SS, error_of(selector))
    return desc


def check_data(m: Machine, selector: int, level: int, vector: int = GP) -> Desc:
    """A segment for DS, ES, FS or GS, not null."""
    desc = fetch(m, selector, vector)
    if desc.kind not in READABLE:
        raise Fault(vector, error_of(selector))
    if desc.kind not in CONFORMING and (selector & 3 > desc.dpl or level > desc.dpl):
        raise Fault(vector, error_of(selector))
    if not desc.present:
        raise Fault(NP, error_of(selector))
    return desc


def load_sreg(m: Machine, name: str, selector: int) -> None:
    """MOV, POP, LDS and their kin, in any mode."""
    old: Seg = getattr(m, name)
    if m.v86:
        m.set(**{name: Seg(selector, selector << 4, 0xFFFF, 0xF3)})
        return
    if not m.protected:
        # "Real-Address Mode": only selector and base change; the access byte says what may be done:
        # everything
        m.set(**{name: Seg(selector, selector << 4, old.limit, old.attributes & 0xF060 | 0x93)})
        return
    if is_null(selector):
        attributes = old.attributes
        if name == "ss":
            if not m.mode64 or m.cpl == 3 or selector != m.cpl:
                raise Fault(GP, 0)
            attributes = attributes & ~0x60 | m.cpl << 5
        m.set(**{name: Seg(selector, 0, old.limit, attributes, null=True)})
        return
    desc = check_ss(m, selector, m.cpl) if name == "ss" else check_data(m, selector, m.cpl)
    desc = mark_accessed(m, desc)
    m.set(**{name: desc.seg()})


# ---- LDTR and TR (SDM Vol. 2, LLDT, LTR) -------------------------------------------------------------------


def load_ldtr(m: Machine, selector: int, vector: int = GP) -> None:
    """LLDT; the LDT of a new task with `vector` #TS, which then stands for not present as well."""
    if is_null(selector):
        m.ldtr = Seg(selector, 0, m.ldtr.limit, m.ldtr.attributes, null=True)
        return
    if selector & 4:
        raise Fault(vector, error_of(selector))
    desc = fetch(m, selector, vector)
    if desc.kind != LDT:
        raise Fault(vector, error_of(selector))
    upper = fetch_upper(m, desc, vector) if m.long else 0
    if not desc.present:
        raise Fault(NP if vector == GP else vector, error_of(selector))
    base = desc.base | (upper & M32) << 32
    if not canonical(base):
        raise Fault(vector, error_of(selector))
    m.ldtr = desc.seg()._replace(base=base)


def load_tr(m: Machine, selector: int) -> None:
    """LTR."""
    if is_null(selector):
        raise Fault(GP, 0)
    if selector & 4:
        raise Fault(GP, error_of(selector))
    desc = fetch(m, selector)
    if desc.kind not in ((TSS32,) if m.long else (TSS32, TSS16)):
        raise Fault(GP, error_of(selector))
    upper = fetch_upper(m, desc) if m.long else 0
    if not desc.present:
        raise Fault(NP, error_of(selector))
    base = desc.base | (upper & M32) << 32
    if not canonical(base):
        raise Fault(GP, error_of(selector))
    raw = desc.raw | 1 << 41
    paging.store(m, desc.at + 5, 1, raw >> 40 & 0xFF, implicit=True)
    m.tr = desc._replace(raw=raw).seg()._replace(base=base)


# ---- looking at descriptors (SDM Vol. 2, LAR, LSL, VERR/VERW, ARPL) ----------------------------------------

# The tables of types in LAR and LSL: valid ones outside and inside of IA-32e mode
LAR_TYPES = {False: {TSS16, LDT, TSS16_BUSY, CALL16, TASK_GATE, TSS32, TSS32_BUSY, CALL32},
             True: {LDT, TSS32, TSS32_BUSY, CALL32}}  # fmt: skip
LSL_TYPES = {False: {TSS16, LDT, TSS16_BUSY, TSS32, TSS32_BUSY}, True: {LDT, TSS32, TSS32_BUSY}}


def visible(m: Machine, selector: int, types: set[int]) -> Desc | None:
    """The descriptor if it may be seen at this CPL with this RPL."""
    if is_null(selector) or locate(m, selector) < 0:
        return None
    desc = fetch(m, selector)
    if desc.kind < 0x10 and desc.kind not in types:
        return None
    if desc.kind not in CONFORMING and max(m.cpl, selector & 3) > desc.dpl:
        return None
    return desc


def inspect(m: Machine, what: str, selector: int) -> tuple[bool, int]:
    """ZF and the result of LAR and LSL (32 bits), VERR and VERW."""
    if what == "lar":
        desc = visible(m, selector, LAR_TYPES[m.long])
        return desc is not None, desc.raw >> 32 & 0x00FF_FF00 if desc else 0
    if what == "lsl":
        desc = visible(m, selector, LSL_TYPES[m.long])
        return desc is not None, desc.limit if desc else 0
    desc = visible(m, selector, set())
    return desc is not None and desc.kind in (READABLE if what == "verr" else WRITABLE), 0


# ---- using segments ("Limit Checking", "Type Checking") ----------------------------------------------------


def linear_address(m: Machine, name: str, offset: int, size: int, *, write: bool) -> int:
    """Linear address of `size` bytes at a segment's offset, checked. #GP(0) or #SS(0)."""
    seg: Seg = getattr(m, name)
    vector = SS if name == "ss" else GP
    if m.mode64:
        linear = offset + (seg.base if name in ("fs", "gs") else 0) & M64
        if not canonical(linear) or not canonical(linear + size - 1 & M64) or linear + size - 1 > M64:
            raise Fault(vector, 0)
        return linear
    if seg.null:
        raise Fault(GP, 0)
    kind = seg.attributes & 31
    if kind not in (WRITABLE if write else READABLE):
        raise Fault(GP, 0)
    if not inside(seg, offset, size):
        raise Fault(vector, 0)
    return seg.base + offset & M32


def inside(seg: Seg, offset: int, size: int) -> bool:
    """Whether all bytes lie within the limit, expand-down segments included."""
    last = offset + size - 1
    if seg.attributes & 31 in EXPAND_DOWN:
        return offset > seg.limit and last <= (M32 if seg.db else M16)
    return last <= seg.limit


def room(m: Machine, ss: Seg, sp: int, mask: int, size: int, count: int, error: int) -> list[int]:
    """Linear addresses of `count` pushes of `size` bytes below ss:sp. #SS(error) if one does not fit."""
    found = []
    for _ in range(count):
        sp = sp - size & mask
        if mask == M64:
            if not canonical(sp) or not canonical(sp + size - 1 & M64):
                raise Fault(SS, error)
            found.append(sp)
            continue
        if ss.null or ss.attributes & 31 not in WRITABLE or not inside(ss, sp, size):
            raise Fault(SS, error)
        found.append(ss.base + sp & M32)
    return found


def push_all(m: Machine, at: list[int], size: int, values: tuple[int, ...], level: int) -> None:
    """Store values at the addresses that `room` gave, as privilege `level`."""
    user = level == 3
    for linear, value in zip(at, values, strict=True):
        if user and m.rflags & AC and m.cr0 & AM and linear % size:  # "Alignment Check Exception (#AC)"
            raise Fault(ACF, 0)
        paging.store(m, linear, size, value & (1 << 8 * size) - 1, implicit=level != m.cpl, user=user)


def stack_from_tss(m: Machine, level: int) -> tuple[int, int]:
    """SS selector and stack pointer of an inner level from a 16- or 32-bit TSS (SDM Vol. 2, CALL). #TS."""
    wide = m.tr.type in (TSS32, TSS32_BUSY)
    at, size = (8 * level + 4, 4) if wide else (4 * level + 2, 2)
    if at + size + 1 > m.tr.limit:
        raise Fault(TSF, error_of(m.tr.selector))
    sp = paging.load(m, m.tr.base + at & M32, size, implicit=True)
    return paging.load(m, m.tr.base + at + size & M32, 2, implicit=True), sp


def stack_from_tss64(m: Machine, at: int) -> int:
    """RSPn or ISTn of a 64-bit TSS. #TS outside its limit."""
    if at + 7 > m.tr.limit:
        raise Fault(TSF, error_of(m.tr.selector))
    return paging.load(m, m.tr.base + at & M64, 8, implicit=True)


def set_sp(m: Machine, value: int, mask: int) -> None:
    """RSP, ESP or SP := value."""
    m.rsp = m.rsp & ~M16 | value & M16 if mask == M16 else value & mask


# "Alignment Requirements by Data Type": bytes of an access -> what its address has to be a multiple of
ALIGNMENT = {1: 1, 2: 2, 4: 4, 6: 4, 8: 8, 10: 8, 16: 16}


def reference(m: Machine, name: str, offset: int, size: int, *, write: bool) -> int:
    """Linear address of a program's data reference: segment checks, then "Alignment Check Exception
    (#AC)"."""
    linear = linear_address(m, name, offset, size, write=write)
    if m.cpl == 3 and m.rflags & AC and m.cr0 & AM and linear % ALIGNMENT.get(size, 1):
        raise Fault(ACF, 0)
    if m.log is not None:
        m.log.append((linear, size, write))
    return linear
