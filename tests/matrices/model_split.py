"""What instructions of every class do to an operand at [rBX] or on the stack, access by access in their
order.

SDM Vol. 2 for each. An access over two pages checks both before it reads or writes a byte; the first page
that refuses is reported, with its own address (CR2). A read-modify-write is checked as a write, which CPUs do
for every such instruction, whether or not it will store something else (measured on an AMD Zen 4).
"""

from __future__ import annotations

from collections.abc import Callable

from tests.matrices import model_paging as paging
from tests.matrices.model_rep import flags_of
from tests.matrices.model_segments import reference
from tests.matrices.spec import AF, ARITHMETIC, CF, GP, M16, OF, PF, RF, SF, VM, ZF, Fault, Machine, low

Model = Callable[[Machine], None]


def ones(size: int) -> int:
    """All bits of `size` bytes."""
    return (1 << 8 * size) - 1


def load(m: Machine, offset: int, size: int, segment: str = "ds") -> int:
    """A checked data read."""
    return paging.load(m, reference(m, segment, offset, size, write=False), size)


def store(m: Machine, offset: int, size: int, value: int, segment: str = "ds") -> None:
    """A checked data write."""
    paging.store(m, reference(m, segment, offset, size, write=True), size, value & ones(size))


def modify(m: Machine, offset: int, size: int) -> int:
    """The read of a read-modify-write."""
    return paging.modify(m, reference(m, "ds", offset, size, write=True), size)


def sum_flags(a: int, b: int, size: int) -> int:
    """The arithmetic flags of a + b."""
    total, top = a + b, 1 << 8 * size - 1
    result = total & ones(size)
    found = (CF if total > ones(size) else 0) | (ZF if not result else 0) | (SF if result & top else 0)
    found |= (PF if (result & 0xFF).bit_count() % 2 == 0 else 0) | (AF if (a ^ b ^ result) & 16 else 0)
    return found | (OF if (a ^ result) & (b ^ result) & top else 0)


def set_flags(m: Machine, flags: int, which: int = ARITHMETIC) -> None:
    """Replace the flags in `which`."""
    m.rflags = m.rflags & ~which | flags & which


def write_register(m: Machine, name: str, value: int, size: int) -> None:
    """The low part of a general register."""
    m.set(**{name: low(getattr(m, name), value, ones(size))})


# ---- loads and stores --------------------------------------------------------------------------------------


def loads(size: int, register: str = "rax", extend: int = 0, signed: bool = False) -> Model:
    """MOV, MOVZX and MOVSX r, [rBX]"""

    def instruction(m: Machine) -> None:
        value = load(m, m.rbx, size)
        if signed and value >> 8 * size - 1:
            value |= ones(extend) ^ ones(size)
        write_register(m, register, value, extend or size)

    return instruction


def load_vector(size: int) -> Model:
    """MOVUPS and MOVQ xmm, [rBX]"""

    def instruction(m: Machine) -> None:
        m.xmm0 = load(m, m.rbx, size)

    return instruction


def touch(size: int) -> Model:
    """A load whose value goes where no one looks."""

    def instruction(m: Machine) -> None:
        load(m, m.rbx, size)

    return instruction


def stores(size: int, value: Callable[[Machine], int]) -> Model:
    """Any store at [rBX]"""

    def instruction(m: Machine) -> None:
        store(m, m.rbx, size, value(m))

    return instruction


# ---- read-modify-write -------------------------------------------------------------------------------------


def add(size: int) -> Model:
    """ADD [rBX], rAX"""

    def instruction(m: Machine) -> None:
        a, b = modify(m, m.rbx, size), m.rax & ones(size)
        store(m, m.rbx, size, a + b)
        set_flags(m, sum_flags(a, b, size))

    return instruction


def compare_only(size: int) -> Model:
    """CMP [rBX], rAX: reads, does not write"""

    def instruction(m: Machine) -> None:
        set_flags(m, flags_of(load(m, m.rbx, size), m.rax & ones(size), size))

    return instruction


def complement(size: int) -> Model:
    """NOT [rBX]"""

    def instruction(m: Machine) -> None:
        store(m, m.rbx, size, ~modify(m, m.rbx, size))

    return instruction


def shift_by_none(size: int) -> Model:
    """SHL [rBX], CL with CL = 0: nothing changes, but the operand is checked as one to be written"""

    def instruction(m: Machine) -> None:
        store(m, m.rbx, size, modify(m, m.rbx, size))

    return instruction


def increment(size: int) -> Model:
    """INC [rBX]: CF stays"""

    def instruction(m: Machine) -> None:
        a = modify(m, m.rbx, size)
        store(m, m.rbx, size, a + 1)
        set_flags(m, sum_flags(a, 1, size), ARITHMETIC & ~CF)

    return instruction


def exchange(size: int) -> Model:
    """XCHG [rBX], rAX"""

    def instruction(m: Machine) -> None:
        value = modify(m, m.rbx, size)
        store(m, m.rbx, size, m.rax)
        write_register(m, "rax", value, size)

    return instruction


def exchange_and_add(size: int) -> Model:
    """XADD [rBX], rCX"""

    def instruction(m: Machine) -> None:
        a, b = modify(m, m.rbx, size), m.rcx & ones(size)
        store(m, m.rbx, size, a + b)
        write_register(m, "rcx", a, size)
        set_flags(m, sum_flags(a, b, size))

    return instruction


def compare_and_exchange(size: int) -> Model:
    """CMPXCHG [rBX], rCX: what was there is written back where the comparison fails"""

    def instruction(m: Machine) -> None:
        value, wanted = modify(m, m.rbx, size), m.rax & ones(size)
        store(m, m.rbx, size, m.rcx if value == wanted else value)
        set_flags(m, flags_of(wanted, value, size))
        if value != wanted:
            write_register(m, "rax", value, size)

    return instruction


def compare_and_exchange_pair(m: Machine) -> None:
    """CMPXCHG8B [rBX]"""
    value, wanted = modify(m, m.rbx, 8), (m.rdx & ones(4)) << 32 | m.rax & ones(4)
    store(m, m.rbx, 8, (m.rcx & ones(4)) << 32 | m.rbx & ones(4) if value == wanted else value)
    set_flags(m, ZF if value == wanted else 0, ZF)
    if value != wanted:
        m.rdx, m.rax = value >> 32, value & ones(4)


def bit_test_and_set(size: int, bit: int) -> Model:
    """BTS [rBX], imm8: only CF is defined, and the others stay"""

    def instruction(m: Machine) -> None:
        value = modify(m, m.rbx, size)
        store(m, m.rbx, size, value | 1 << bit)
        set_flags(m, CF if value >> bit & 1 else 0, CF)

    return instruction


# ---- the stack ---------------------------------------------------------------------------------------------


def push_value(m: Machine, size: int, value: int) -> None:
    """rSP := rSP - size; [rSP] := value"""
    top = m.rsp - size & m.stack_mask
    store(m, top, size, value, "ss")
    m.rsp = top


def pop_value(m: Machine, size: int) -> int:
    """[rSP]; rSP := rSP + size"""
    value = load(m, m.rsp, size, "ss")
    m.rsp = m.rsp + size & m.stack_mask
    return value


def push(size: int, value: Callable[[Machine], int]) -> Model:
    """PUSH"""
    return lambda m: push_value(m, size, value(m))


def push_memory(size: int) -> Model:
    """PUSH [rBX]"""
    return lambda m: push_value(m, size, load(m, m.rbx, size))


def pop_register(size: int) -> Model:
    """POP rAX"""

    def instruction(m: Machine) -> None:
        write_register(m, "rax", pop_value(m, size), size)

    return instruction


def pop_memory(size: int) -> Model:
    """POP [rBX]"""

    def instruction(m: Machine) -> None:
        store(m, m.rbx, size, pop_value(m, size))

    return instruction


def pushed_flags(m: Machine) -> int:
    """RF and VM read as zero."""
    return m.rflags & ~(RF | VM)


def call(size: int, distance: int) -> Model:
    """CALL rel32"""

    def instruction(m: Machine) -> None:
        push_value(m, size, m.rip)
        m.rip += distance

    return instruction


def ret(size: int) -> Model:
    """RET"""

    def instruction(m: Machine) -> None:
        m.rip = pop_value(m, size)

    return instruction


def leave(size: int) -> Model:
    """LEAVE"""

    def instruction(m: Machine) -> None:
        value = load(m, m.rbp, size, "ss")
        m.rsp = m.rbp + size & m.stack_mask
        m.rbp = value

    return instruction


def enter(size: int, room: int) -> Model:
    """ENTER room, 0: the frame pointer is pushed, then the new top is checked as if it were written"""

    def instruction(m: Machine) -> None:
        frame = m.rsp - size & m.stack_mask
        store(m, frame, size, m.rbp, "ss")
        top = frame - room & m.stack_mask
        paging.access(m, reference(m, "ss", top, size, write=True), size, paging.WRITE, happens=False)
        m.rbp, m.rsp = frame, top

    return instruction


PUSHA_ORDER = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi")


def push_all(m: Machine) -> None:
    """PUSHAD: eight pushes, the stack pointer moves at the end"""
    top = m.rsp
    for name in PUSHA_ORDER:
        top = top - 4 & m.stack_mask
        store(m, top, 4, getattr(m, name), "ss")
    m.rsp = top


def pop_all(m: Machine) -> None:
    """POPAD: ESP's place is skipped"""
    found = {}
    for n, name in enumerate(reversed(PUSHA_ORDER)):
        if name != "rsp":
            found[name] = load(m, m.rsp + 4 * n & m.stack_mask, 4, "ss")
    m.set(**found, rsp=m.rsp + 32 & m.stack_mask)


# ---- areas -------------------------------------------------------------------------------------------------


def fxsave(m: Machine) -> None:
    """FXSAVE of an x87 unit as RESET leaves it: 160 bytes and the XMM registers that the mode has."""
    registers = 16 if m.mode64 else 8
    image = bytearray(160 + 16 * registers)
    image[0:5] = bytes((0x40, 0, 0, 0, 0xFF))
    image[24:28] = m.mxcsr.to_bytes(4, "little")
    image[28:32] = M16.to_bytes(4, "little")
    image[160:176] = m.xmm0.to_bytes(16, "little")
    linear = reference(m, "ds", m.rbx, 512, write=True)
    paging.access(m, linear, 512, paging.WRITE, happens=False)  # all of the area, whatever is written
    paging.store(m, linear, len(image), int.from_bytes(image, "little"))


def fxrstor(m: Machine) -> None:
    """FXRSTOR: all 512 bytes are read; of what they hold, MXCSR and XMM0 are looked at here"""
    area = load(m, m.rbx, 512)
    mxcsr = area >> 8 * 24 & ones(4)
    if mxcsr & ~M16:
        raise Fault(GP, 0)
    m.mxcsr = mxcsr
    m.xmm0 = area >> 8 * 160 & ones(16)


def descriptor_table(m: Machine) -> None:
    """SGDT [rBX]"""
    base, limit = m.gdtr
    store(m, m.rbx, 10 if m.mode64 else 6, base << 16 | limit)
