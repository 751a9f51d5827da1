"""CPUID: what this CPU offers, and the table that says which bit tells it. It changes no register.

Sources: SDM Vol. 2, "CPUID - CPU Identification"; x86-64 psABI, "Micro-Architecture Levels". Features carry
iced-x86's names, because the decoder tells by these names which feature an instruction needs: what is not
offered here is #UD there.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from isa.state import CR4_OSXSAVE, XCR0_AVX, XCR0_SSE, XCR0_X87

if TYPE_CHECKING:
    from isa.cpu import Cpu

Leaf = tuple[int, int, int, int]
EAX, EBX, ECX, EDX = range(4)
# Bytes of an XSAVE area: legacy region and header, then YMM0-15[255:128]
AREA_WITHOUT_AVX, AREA_WITH_AVX = 576, 832

# Feature -> (leaf, subleaf, register, bit)
FEATURE_BITS: dict[str, tuple[int, int, int, int]] = {
    "FPU": (1, 0, EDX, 0),
    "VME": (1, 0, EDX, 1),
    "DE": (1, 0, EDX, 2),
    "PSE": (1, 0, EDX, 3),
    "TSC": (1, 0, EDX, 4),
    "MSR": (1, 0, EDX, 5),
    "PAE": (1, 0, EDX, 6),
    "CX8": (1, 0, EDX, 8),
    "APIC": (1, 0, EDX, 9),
    "SEP": (1, 0, EDX, 11),
    "MTRR": (1, 0, EDX, 12),
    "PGE": (1, 0, EDX, 13),
    "CMOV": (1, 0, EDX, 15),
    "PAT": (1, 0, EDX, 16),
    "PSE36": (1, 0, EDX, 17),
    "CLFSH": (1, 0, EDX, 19),
    "MMX": (1, 0, EDX, 23),
    "FXSR": (1, 0, EDX, 24),
    "SSE": (1, 0, EDX, 25),
    "SSE2": (1, 0, EDX, 26),
    "SSE3": (1, 0, ECX, 0),
    "PCLMULQDQ": (1, 0, ECX, 1),
    "MONITOR": (1, 0, ECX, 3),
    "SSSE3": (1, 0, ECX, 9),
    "FMA": (1, 0, ECX, 12),
    "CMPXCHG16B": (1, 0, ECX, 13),
    "PCID": (1, 0, ECX, 17),
    "SSE4_1": (1, 0, ECX, 19),
    "SSE4_2": (1, 0, ECX, 20),
    "X2APIC": (1, 0, ECX, 21),
    "MOVBE": (1, 0, ECX, 22),
    "POPCNT": (1, 0, ECX, 23),
    "TSC_DEADLINE": (1, 0, ECX, 24),
    "AES": (1, 0, ECX, 25),
    "XSAVE": (1, 0, ECX, 26),
    "AVX": (1, 0, ECX, 28),
    "F16C": (1, 0, ECX, 29),
    "RDRAND": (1, 0, ECX, 30),
    "FSGSBASE": (7, 0, EBX, 0),
    "BMI1": (7, 0, EBX, 3),
    "AVX2": (7, 0, EBX, 5),
    "SMEP": (7, 0, EBX, 7),
    "BMI2": (7, 0, EBX, 8),
    "ERMS": (7, 0, EBX, 9),
    "INVPCID": (7, 0, EBX, 10),
    "RDSEED": (7, 0, EBX, 18),
    "ADX": (7, 0, EBX, 19),
    "SMAP": (7, 0, EBX, 20),
    "CLFLUSHOPT": (7, 0, EBX, 23),
    "CLWB": (7, 0, EBX, 24),
    "AVX512F": (7, 0, EBX, 16),
    "SHA": (7, 0, EBX, 29),
    "UMIP": (7, 0, ECX, 2),
    "VAES": (7, 0, ECX, 9),
    "VPCLMULQDQ": (7, 0, ECX, 10),
    "RDPID": (7, 0, ECX, 22),
    "FSRM": (7, 0, EDX, 4),
    "XSAVEOPT": (0xD, 1, EAX, 0),
    "XSAVEC": (0xD, 1, EAX, 1),
    "LAHF_SAHF_64": (0x8000_0001, 0, ECX, 0),
    "LZCNT": (0x8000_0001, 0, ECX, 5),
    "PREFETCHW": (0x8000_0001, 0, ECX, 8),
    "SYSCALL": (0x8000_0001, 0, EDX, 11),
    "NX": (0x8000_0001, 0, EDX, 20),
    "PDPE1GB": (0x8000_0001, 0, EDX, 26),
    "RDTSCP": (0x8000_0001, 0, EDX, 27),
    "X64": (0x8000_0001, 0, EDX, 29),
}

# What iced calls a requirement and CPUID has no bit for: there since the CPU that the name tells.
BASELINE = frozenset(
    ("INTEL8086", "INTEL8086_ONLY", "INTEL186", "INTEL286", "INTEL386", "INTEL486", "FPU287", "FPU387",
     "CPUID", "MULTIBYTENOP", "PAUSE", "SMM", "RDPMC")
)  # fmt: skip

# The least that boots Debian's kernel and user space; it tempts no guest into newer instructions
DEFAULT_FEATURES = (
    "FPU", "VME", "DE", "PSE", "TSC", "MSR", "PAE", "CX8", "SEP", "PGE", "CMOV", "CLFSH", "MMX", "FXSR",
    "SSE", "SSE2", "RDRAND", "ERMS", "SYSCALL", "NX", "X64", "LAHF_SAHF_64",
)  # fmt: skip

# What the silicon can do and a configuration may add
OPTIONAL_FEATURES = (
    "APIC", "X2APIC", "TSC_DEADLINE", "PAT", "MTRR", "PSE36", "CMPXCHG16B", "PCID", "INVPCID", "MOVBE",
    "POPCNT", "LZCNT", "BMI1", "BMI2", "ADX", "FSGSBASE", "SMEP", "SMAP", "UMIP", "RDSEED", "RDTSCP",
    "RDPID", "PDPE1GB", "CLFLUSHOPT", "CLWB", "PREFETCHW", "MONITOR", "FSRM",
    "SSE3", "SSSE3", "SSE4_1", "SSE4_2", "AES", "PCLMULQDQ", "SHA",
    "XSAVE", "XSAVEOPT", "XSAVEC", "AVX", "AVX2", "FMA", "F16C", "VAES", "VPCLMULQDQ",
)  # fmt: skip

_V2 = ("CMPXCHG16B", "LAHF_SAHF_64", "POPCNT", "SSE3", "SSSE3", "SSE4_1", "SSE4_2")
_V3 = ("AVX", "AVX2", "BMI1", "BMI2", "F16C", "FMA", "LZCNT", "MOVBE", "XSAVE")
# Microarchitecture levels of the x86-64 psABI -> what they add to the default features
LEVELS: dict[str, tuple[str, ...]] = {"v1": (), "v2": _V2, "v3": (*_V2, *_V3)}

_SPELLINGS = {"CX16": "CMPXCHG16B", "LM": "X64", "LAHF": "LAHF_SAHF_64", "ABM": "LZCNT", "SEP": "SEP",
              "SSE4.1": "SSE4_1", "SSE4.2": "SSE4_2", "CLFLUSH": "CLFSH", "PDPE1G": "PDPE1GB",
              "3DNOWPREFETCH": "PREFETCHW", "PSE_36": "PSE36",
              "PNI": "SSE3", "SHA_NI": "SHA"}  # fmt: skip

# Features that make no sense without another one
_NEEDS = {
    "SSE": ("FXSR",), "SSE2": ("SSE",), "SSE3": ("SSE2",), "SSSE3": ("SSE3",),
    "SSE4_1": ("SSSE3",), "SSE4_2": ("SSE4_1",), "AES": ("SSE2",), "PCLMULQDQ": ("SSE2",), "SHA": ("SSE2",),
    "XSAVE": ("FXSR",), "XSAVEOPT": ("XSAVE",), "XSAVEC": ("XSAVE",), "AVX": ("XSAVE", "SSE2"),
    "AVX2": ("AVX",), "FMA": ("AVX",), "F16C": ("AVX",), "VAES": ("AVX", "AES"),
    "VPCLMULQDQ": ("AVX", "PCLMULQDQ"),
    "X2APIC": ("APIC",), "TSC_DEADLINE": ("APIC", "TSC"),
    "INVPCID": ("PCID",), "RDPID": ("RDTSCP",), "X64": ("PAE", "MSR"), "SYSCALL": ("MSR",),
}  # fmt: skip


class UnknownFeature(ValueError):
    """A feature name that CPUID does not know or the silicon does not have; one sentence."""


def feature_set(changes: Iterable[str] = ()) -> frozenset[str]:
    """The default features with `changes` applied: "+popcnt", "-rdrand", just "popcnt", or a level, "v3".

    Raises UnknownFeature for a name that is unknown, not implemented, or needs a feature that is off.
    """
    features = set(DEFAULT_FEATURES)
    known = (*DEFAULT_FEATURES, *OPTIONAL_FEATURES)
    for change in changes:
        if change in LEVELS:
            features.update(LEVELS[change])
            continue
        name = change.lstrip("+-").upper().replace("-", "_")
        name = _SPELLINGS.get(name, name)
        if name not in known:
            if name in FEATURE_BITS and not change.startswith("-"):
                raise UnknownFeature(f"CPU feature {change!r} is not implemented by this CPU; leave it out")
            close = difflib.get_close_matches(name, known, 1)
            hint = f'; did you mean "{close[0].lower()}"?' if close else ""
            raise UnknownFeature(f"unknown CPU feature {change!r}{hint}")
        if change.startswith("-"):
            features.discard(name)
        else:
            features.add(name)
    for name in sorted(features):
        for needed in _NEEDS.get(name, ()):
            if needed not in features:
                raise UnknownFeature(
                    f'CPU feature "{name.lower()}" needs "{needed.lower()}"; switch both on or off'
                )
    return frozenset(features) | BASELINE


class CpuId:
    """The CPUID instruction's answers: callable as (cpu, leaf, subleaf) -> (eax, ebx, ecx, edx)."""

    def __init__(
        self,
        features: frozenset[str],
        *,
        vendor: str = "GenuineIntel",
        brand: str = "pysim_vm virtual CPU",
        signature: int = 0x6F1,
        tsc_hz: int = 1_000_000_000,
        apic_id: int = 0,
    ) -> None:
        self.vendor = vendor
        self.brand = brand
        self.signature = signature  # family 6, model 15, stepping 1
        self.tsc_hz = tsc_hz
        self.apic_id = apic_id
        self._words: dict[tuple[int, int], list[int]] = {}
        for name, (leaf, subleaf, register, bit) in FEATURE_BITS.items():
            if name in features:
                self._words.setdefault((leaf, subleaf), [0, 0, 0, 0])[register] |= 1 << bit
        self._features = features

    def __call__(self, cpu: Cpu, leaf: int, subleaf: int) -> Leaf:
        if 0x4000_0000 <= leaf <= 0x4000_00FF:
            return self._hypervisor(leaf)
        if leaf & 0x8000_0000:
            if leaf > 0x8000_0008:
                return self._basic(cpu, 0x16, 0)  # beyond the last leaf: as the highest basic leaf
            return self._extended(leaf)
        return self._basic(cpu, min(leaf, 0x16), subleaf)

    def _bits(self, leaf: int, subleaf: int, register: int) -> int:
        return self._words.get((leaf, subleaf), [0, 0, 0, 0])[register]

    def _basic(self, cpu: Cpu, leaf: int, subleaf: int) -> Leaf:
        match leaf:
            case 0:
                ebx, edx, ecx = _text(self.vendor, 3)
                return 0x16, ebx, ecx, edx
            case 1:
                ecx = self._bits(1, 0, ECX) | 1 << 31  # a hypervisor is present
                if cpu.cr4 & CR4_OSXSAVE:
                    ecx |= 1 << 27
                edx = self._bits(1, 0, EDX)
                clflush = 8 << 8 if "CLFSH" in self._features else 0  # 64-byte lines
                return self.signature, self.apic_id << 24 | 1 << 16 | clflush, ecx, edx
            case 2:
                return 0x01, 0, 0, 0
            case 4:
                return _cache(subleaf)
            case 5 if "MONITOR" in self._features:
                return 64, 64, 0, 0  # smallest and largest line in bytes; no extension of MWAIT
            case 7 if subleaf == 0:
                return 0, self._bits(7, 0, EBX), self._bits(7, 0, ECX), self._bits(7, 0, EDX)
            case 0xD:
                return self._extended_state(cpu, subleaf)
            case 0xB if "X2APIC" in self._features:
                level = {0: (0, 1, 1 << 8), 1: (0, 1, 2 << 8 | 1)}.get(subleaf, (0, 0, subleaf & 0xFF))
                return level[0], level[1], level[2], self.apic_id
            case 0x15:
                crystal = 25_000_000
                return 1, max(self.tsc_hz // crystal, 1), crystal, 0  # TSC = crystal * EBX / EAX
            case 0x16:
                mhz = self.tsc_hz // 1_000_000
                return mhz, mhz, 100, 0
        return 0, 0, 0, 0

    def _extended_state(self, cpu: Cpu, subleaf: int) -> Leaf:
        """What XSAVE manages: components, sizes of its area, where AVX state lies in it."""
        if "XSAVE" not in self._features:
            return 0, 0, 0, 0
        avx = XCR0_AVX if "AVX" in self._features else 0
        enabled = AREA_WITH_AVX if cpu.xcr0 & XCR0_AVX else AREA_WITHOUT_AVX
        match subleaf:
            case 0:
                return XCR0_X87 | XCR0_SSE | avx, enabled, AREA_WITH_AVX if avx else AREA_WITHOUT_AVX, 0
            case 1:
                return self._bits(0xD, 1, EAX), enabled, 0, 0
            case 2 if avx:
                return AREA_WITH_AVX - AREA_WITHOUT_AVX, AREA_WITHOUT_AVX, 0, 0
        return 0, 0, 0, 0

    def _extended(self, leaf: int) -> Leaf:
        match leaf:
            case 0x8000_0000:
                return 0x8000_0008, 0, 0, 0
            case 0x8000_0001:
                return 0, 0, self._bits(leaf, 0, ECX), self._bits(leaf, 0, EDX)
            case 0x8000_0002 | 0x8000_0003 | 0x8000_0004:
                words = _text(self.brand, 12)
                at = (leaf - 0x8000_0002) * 4
                return words[at], words[at + 1], words[at + 2], words[at + 3]
            case 0x8000_0006:
                return 0, 0, 0x0200_8140, 0  # L2: 512 KiB, 8-way, 64-byte lines
            case 0x8000_0008:
                return 48 << 8 | 48, 0, 0, 0  # linear and physical address bits
        return 0, 0, 0, 0

    @staticmethod
    def _hypervisor(leaf: int) -> Leaf:
        """x86_vcpu's hypervisor leaves."""
        if leaf == 0x4000_0000:
            ebx, ecx, edx = _text("RVMRVMRVMRVM", 3)
            return 0x4000_0001, ebx, ecx, edx
        return 0, 0, 0, 0


def _text(text: str, words: int) -> tuple[int, ...]:
    raw = text.encode("ascii", "replace")[: words * 4].ljust(words * 4, b"\0")
    return tuple(int.from_bytes(raw[n : n + 4], "little") for n in range(0, words * 4, 4))


def _cache(subleaf: int) -> Leaf:
    """Deterministic cache parameters: 32 KiB L1 data and instruction caches, 512 KiB L2; all 8-way."""
    caches = {0: (1, 1, 64), 1: (2, 1, 64), 2: (3, 2, 1024)}
    if subleaf not in caches:
        return 0, 0, 0, 0
    kind, level, sets = caches[subleaf]
    return kind | level << 5 | 1 << 8, 7 << 22 | 63, sets - 1, 0
