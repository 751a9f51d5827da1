"""System instructions in every mode and at every level: IF and flags, fast system calls, UMIP, ports."""

from __future__ import annotations

import pytest

from tests.matrices import model_system as system
from tests.matrices.runner import Case, Matrix, verify
from tests.matrices.space import Combination, Space
from tests.matrices.spec import AC, IF, IOPL, M32, M64, PVI, SCE, TS, VIF, VIP, VME
from tests.matrices.test_segment_loads import prefix
from tests.matrices.world import BITS, CODE_SELECTOR, DATA, TSS, World

ALL = ("real", "v86", "16", "32", "compat", "64")
IMAGES = (2, 0xFFFF_FFFF, 0xFFFF_FEFF, 0x3000, *(1 << n | 2 for n in range(22)))


# ---- flags -------------------------------------------------------------------------------------------------


def one_level(c: Combination) -> tuple[str, ...]:
    """Real-address and virtual-8086 mode have one level each."""
    return ("cpl",) if c["mode"] in ("real", "v86") else ()


def moot_flags(c: Combination) -> tuple[str, ...]:
    """Only POPF reads an image."""
    return one_level(c) if c["how"] == "popf" else (*one_level(c), "image")


def flags(world: World, c: Combination) -> Case | None:
    """CLI, STI, PUSHF and POPF."""
    mode, how, bits = c["mode"], c["how"], c["bits"]
    if (bits == 64) != (mode == "64") and not (bits == 16 and mode == "64"):
        return None
    if mode == "64" and bits == 32:
        return None
    m = world.machine(mode, c["cpl"] if mode not in ("real", "v86") else 0)
    m.rflags |= c["iopl"] << 12 | c["flags"]
    m.cr4 |= (VME if c["vme"] else 0) | (PVI if c["pvi"] else 0)
    size = bits // 8
    m.put(m.rsp, 8, c["image"])
    m.put(m.rsp - 8, 8, M64)
    raw = {"cli": b"\xfa", "sti": b"\xfb", "pushf": b"\x9c", "popf": b"\x9d"}[how]
    if how.endswith("f"):
        raw = (b"\x66" if bits == 16 and mode == "64" else b"" if bits == 64 else prefix(mode, bits)) + raw
    elif bits != BITS[mode]:
        return None
    model = {"cli": system.change_if(False), "sti": system.change_if(True), "pushf": system.pushf(size),
             "popf": system.popf(size)}[how]  # fmt: skip
    return Case(m, raw, model)


# ---- fast system calls -------------------------------------------------------------------------------------

FAST = {
    "syscall": (b"\x0f\x05", system.syscall), "sysret": (b"\x0f\x07", system.sysret(False)),
    "sysretq": (b"\x48\x0f\x07", system.sysret(True)), "sysenter": (b"\x0f\x34", system.sysenter),
    "sysexit": (b"\x0f\x35", system.sysexit(False)), "sysexitq": (b"\x48\x0f\x35", system.sysexit(True)),
}  # fmt: skip
ADDRESSES = (0x9000, 0x1_2345_9000, 1 << 47, 0xFFFF_8000_0000_9000)


OPERANDS = ("sce", "rcx", "rdx", "r11", "star", "fmask", "cs")
# What each of them looks at, and whether that is in 64-bit mode only
LOOKS_AT = {"syscall": ("sce", "star", "fmask"), "sysret": ("sce", "rcx", "r11", "star"), "sysenter": ("cs",),
            "sysexit": ("rcx", "rdx", "cs")}  # fmt: skip


def moot_operands(c: Combination) -> tuple[str, ...]:
    """All that an instruction does not look at."""
    seen = LOOKS_AT[c["how"].removesuffix("q")]
    if "sce" in seen and c["mode"] != "64":
        seen = ()
    return (*one_level(c), *(name for name in OPERANDS if name not in seen))


def fast(world: World, c: Combination) -> Case | None:
    """SYSCALL to SYSEXIT."""
    mode = c["mode"]
    raw, model = FAST[c["how"]]
    if raw[0] == 0x48 and mode != "64":
        return None
    m = world.machine(mode, c["cpl"] if mode not in ("real", "v86") else 0)
    m.rflags |= c["flags"]
    if not c["sce"]:
        m.efer &= ~SCE
    m.rcx, m.rdx, m.r11 = c["rcx"], c["rdx"], c["r11"]
    if mode != "64":
        m.rcx, m.rdx, m.r11 = c["rcx"] & M32, c["rdx"] & M32, 0
    m.msrs = {
        system.STAR: c["star"] << 48 | (c["star"] ^ 0x50) << 32, system.LSTAR: ADDRESSES[3] & ~0xF,
        system.FMASK: c["fmask"], system.SYSENTER_CS: c["cs"], system.SYSENTER_ESP: 0xFFFF_8000_1234_5670,
        system.SYSENTER_EIP: 0xFFFF_8000_0765_4321,
    }  # fmt: skip
    return Case(m, raw, model)


# ---- registers that UMIP hides, bases, counters ------------------------------------------------------------

REGISTER_FORMS = {"sldt": b"\x0f\x00\xc0", "str": b"\x0f\x00\xc8", "smsw": b"\x0f\x01\xe0"}
MEMORY_FORMS = {"sldt": 0, "str": 1, "smsw": 4, "sgdt": 0, "sidt": 1}


def store(world: World, c: Combination) -> Case | None:
    """SGDT, SIDT, SLDT, STR, SMSW, LGDT and LIDT."""
    mode, what, bits = c["mode"], c["what"], c["bits"]
    if bits == 64 and mode != "64":
        return None
    m = world.machine(mode, c["cpl"] if mode not in ("real", "v86") else 0)
    m.cr4 |= system.UMIP if c["umip"] else 0
    m.rbx = DATA
    m.put(DATA, 16, c["table"])
    size_prefix = b"\x48" if bits == 64 else b"\x66" if mode == "64" and bits == 16 else prefix(mode, bits)
    rm = 7 if BITS[mode] == 16 else 3
    if what in ("lgdt", "lidt"):
        register = {"lgdt": "gdtr", "lidt": "idtr"}[what]
        reg = 2 if what == "lgdt" else 3
        return Case(m, size_prefix + bytes((0x0F, 0x01, reg << 3 | rm)), system.load_table(register, bits))
    if c["register"]:
        if what not in REGISTER_FORMS:
            return None
        return Case(m, size_prefix + REGISTER_FORMS[what], system.stored(what, bits // 8, True))
    opcode = 0x00 if what in ("sldt", "str") else 0x01
    raw = size_prefix + bytes((0x0F, opcode, MEMORY_FORMS[what] << 3 | rm))
    return Case(m, raw, system.stored(what, bits // 8, False))


OTHERS = {
    "clts": (b"\x0f\x06", system.clts), "invd": (b"\x0f\x08", system.privileged_nothing),
    "wbinvd": (b"\x0f\x09", system.privileged_nothing),
    "invlpg": (b"\x0f\x01\x3f", system.privileged_nothing),
    "rdtsc": (b"\x0f\x31", system.rdtsc(False)), "rdtscp": (b"\x0f\x01\xf9", system.rdtsc(True)),
    "rdpmc": (b"\x0f\x33", system.rdpmc), "rdpid": (b"\xf3\x0f\xc7\xf8", system.rdpid),
    "xgetbv": (b"\x0f\x01\xd0", system.xgetbv), "clac": (b"\x0f\x01\xca", system.set_ac(False)),
    "stac": (b"\x0f\x01\xcb", system.set_ac(True)),
    "rdfsbase": (b"\xf3\x48\x0f\xae\xc0", system.base_register("fs", 8, False)),
    "rdgsbase 32": (b"\xf3\x0f\xae\xc8", system.base_register("gs", 4, False)),
    "wrfsbase": (b"\xf3\x48\x0f\xae\xd0", system.base_register("fs", 8, True)),
    "wrgsbase": (b"\xf3\x48\x0f\xae\xd8", system.base_register("gs", 8, True)),
    "wrfsbase 32": (b"\xf3\x0f\xae\xd0", system.base_register("fs", 4, True)),
    "swapgs": (b"\x0f\x01\xf8", system.swapgs),
}  # fmt: skip


def moot_registers(c: Combination) -> tuple[str, ...]:
    """What only some of them look at."""
    what = c["what"]
    looks = {"ts": what == "clts", "ac": what in ("clac", "stac"), "rcx": what in ("rdpmc", "xgetbv"),
             "rax": what.startswith("wr")}  # fmt: skip
    return (*one_level(c), *(name for name, seen in looks.items() if not seen))


def other(world: World, c: Combination) -> Case | None:
    """What reads or writes one register, and who may."""
    mode = c["mode"]
    raw, model = OTHERS[c["what"]]
    if b"\x48" in raw and mode != "64":
        return None
    m = world.machine(mode, c["cpl"] if mode not in ("real", "v86") else 0)
    bits = (system.TSD, system.PCE, system.FSGSBASE, system.OSXSAVE)
    m.cr4 |= sum(bit for n, bit in enumerate(bits) if c["cr4"] >> n & 1)
    m.cr0 |= TS if c["ts"] else 0
    m.rflags |= AC if c["ac"] else 0
    m.rcx = c["rcx"]
    m.rax = c["rax"] & (M64 if mode == "64" else M32)
    m.rbx = DATA
    m.fs = m.fs._replace(base=0xFFFF_8000_0000_1000 if mode == "64" else m.fs.base)
    m.gs = m.gs._replace(base=0x7FFF_1234_5678 if mode == "64" else m.gs.base)
    m.msrs = {system.TSC_AUX: 0x1234, system.GS_BASE_OF_THE_KERNEL: 0xFFFF_9000_0000_0000}
    return Case(m, raw, model)


# ---- ports -------------------------------------------------------------------------------------------------


def moot_map(c: Combination) -> tuple[str, ...]:
    """IOPL spares the bit map; real-address mode has neither."""
    if c["mode"] == "real":
        return ("cpl", "iopl", "base", "limit", "bits", "tss16")
    if c["mode"] != "v86" and c["cpl"] <= c["iopl"]:
        return ("base", "limit", "tss16")
    # where the port's number comes from makes no difference to the map
    return (*one_level(c), "base", "tss16") if c["immediate"] else one_level(c)


def ports(world: World, c: Combination) -> Case | None:
    """IN and OUT against IOPL and the I/O permission bit map."""
    mode, size, port = c["mode"], c["size"], c["port"]
    if c["immediate"] and port > 0xFF:
        return None
    m = world.machine(mode, c["cpl"] if mode not in ("real", "v86") else 0)
    m.rflags |= c["iopl"] << 12
    base = {"usual": 0x68, "late": 0x140, "none": 0xFFFF, "in the TSS": 0x20}[c["base"]]
    m.put(TSS + 0x66, 2, base)
    for n in range(0x40):
        m.put(TSS + 0x68 + n, 1, c["bits"])
    if base == 0x140:
        m.put(TSS + 0x140, 0x40, int.from_bytes(bytes((c["bits"],)) * 0x40, "little"))
    at = base + port // 8
    limit = {"large": 0x3FF, "one short": at, "exact": at + 1, "no map": 0x66}[c["limit"]]
    m.tr = m.tr._replace(limit=min(limit, 0x3FF), attributes=0x83 if c["tss16"] else 0x8B)
    m.rdx = m.rdx & ~0xFFFF | port
    opcode = (0xE4 if c["immediate"] else 0xEC) | (2 if c["write"] else 0) | (size > 1)
    sized = b"\x66" if (size == 2) != (BITS[mode] == 16) and size > 1 else b""
    raw = sized + bytes((opcode,)) + (bytes((port,)) if c["immediate"] else b"")
    return Case(m, raw, system.port_access(bool(c["write"]), port, size))


FLAGS = Matrix(
    "CLI, STI, PUSHF, POPF",
    (
        Space("flags", moot_flags, mode=ALL, how=("cli", "sti", "pushf", "popf", "popf"), bits=(16, 32, 64),
              cpl=range(4),
              iopl=range(4), flags=(0, IF, VIF, VIP, AC | 0x8D5, VIF | VIP), vme=(0, 1), pvi=(0, 1),
              image=IMAGES),
    ),
    flags,
    2500,
)  # fmt: skip
CALLS = Matrix(
    "fast system calls",
    (
        Space("calls", moot_operands, mode=ALL, how=tuple(FAST), cpl=range(4), sce=(1, 1, 0), rcx=ADDRESSES,
              rdx=ADDRESSES, r11=(0x202, M64, 0), star=(CODE_SELECTOR[0], 0xFFFF, 0), fmask=(0, IF, M32 & ~2),
              cs=(CODE_SELECTOR[0], 0, 3, 0xFFFB), flags=(0, IF | IOPL | 0x8D5)),
    ),
    fast,
    2500,
)  # fmt: skip
STORES = Matrix(
    "descriptor-table registers",
    (
        Space("registers", one_level, mode=ALL, what=("sldt", "str", "smsw", "sgdt", "sidt", "lgdt", "lidt"),
              bits=(16, 32, 64), cpl=range(4), umip=(0, 1), register=(0, 1),
              table=(0x1234_5678_0FFF, 0xFFFF_8000_1234_5678_FFFF, 0x8000_0000_0000_0000_1234)),
    ),
    store,
    1500,
)  # fmt: skip
SINGLE = Matrix(
    "system instructions",
    (
        Space("single", moot_registers, mode=ALL, what=tuple(OTHERS), cpl=range(4), cr4=range(16), ts=(0,
              1), ac=(0, 1), rcx=(0, 1), rax=(0x7000, 1 << 47, 0xFFFF_8000_0000_0000, M64)),
    ),
    other,
    2500,
)  # fmt: skip
PORTS = Matrix(
    "IN and OUT",
    (
        Space("ports", moot_map, mode=ALL, write=(0, 1), size=(1, 2, 4), immediate=(0, 1),
              port=(0, 1, 6, 7, 8, 0x0F, 0x60, 0xFF, 0x1FE), cpl=range(4), iopl=range(4),
              base=("usual", "late", "none", "in the TSS"),
              limit=("large", "large", "one short", "exact", "no map"), bits=(0, 0, 1, 0x80, 0x7E, 0xFF),
              tss16=(0, 0, 1)),
    ),
    ports,
    1800,
)  # fmt: skip

MATRICES = (FLAGS, CALLS, STORES, SINGLE, PORTS)


@pytest.mark.parametrize("blocks", [False, True], ids=["step", "block"])
@pytest.mark.parametrize(
    ("matrix", "outcomes"),
    [
        (FLAGS, ("done", "#GP")), (CALLS, ("done", "#GP", "#UD")), (STORES, ("done", "#GP", "#UD")),
        (SINGLE, ("done", "#GP", "#UD")), (PORTS, ("done", "#GP")),
    ],
    ids=lambda value: getattr(value, "name", ""),
)  # fmt: skip
def test_system_instructions_follow_the_manual(
    matrix: Matrix, outcomes: tuple[str, ...], blocks: bool
) -> None:
    verify(matrix, *outcomes, blocks=blocks)
