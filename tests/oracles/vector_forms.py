"""Which forms the vector oracles generate: MMX and SSE, VEX encodings, state images. It makes no case."""

from __future__ import annotations

from functools import cache

from iced_x86 import Code, EncodingKind

from isa.decode import code_names, form_features, opcode_info

FAMILIES = frozenset(("MMX", "SSE", "SSE2", "SSE3", "SSSE3", "SSE4_1", "SSE4_2", "AES", "PCLMULQDQ", "SHA"))
VEX_FAMILIES = frozenset(("AVX", "AVX2", "FMA", "F16C", "VAES", "VPCLMULQDQ"))
# No vector register in sight, or state that the oracle does not carry
NOT_HERE = ("FISTTP", "PREFETCH", "LFENCE", "MFENCE", "SFENCE", "CRC32")
# What FXSAVE and XSAVE store and load
IMAGES = ("FXSAVE", "FXRSTOR", "XSAVE", "XRSTOR")


@cache
def forms() -> tuple[int, ...]:
    """Every legacy form of the vector families, by iced Code number."""
    found = []
    for code in code_names():
        info = opcode_info(code)
        if info.encoding == EncodingKind.LEGACY and info.is_instruction and info.mode64:
            name = code_names()[code]
            if not FAMILIES.isdisjoint(form_features(code)) and not name.startswith(NOT_HERE):
                found.append(code)
    return (*found, Code.WAIT)


@cache
def image_forms() -> tuple[int, ...]:
    """Every form of FXSAVE, FXRSTOR, XSAVE and its kin that user code can run, by iced Code number."""
    found = []
    for code in code_names():
        info = opcode_info(code)
        if info.is_instruction and info.mode64 and info.cpl3 and code_names()[code].startswith(IMAGES):
            found.append(code)
    return tuple(found)


@cache
def vex_forms() -> tuple[int, ...]:
    """Every VEX form of AVX, AVX2, FMA, F16C, VAES and VPCLMULQDQ, by iced Code number."""
    found = []
    for code in code_names():
        info = opcode_info(code)
        if info.encoding == EncodingKind.VEX and info.is_instruction and info.mode64:
            features = form_features(code)
            vex = not VEX_FAMILIES.isdisjoint(features) and set(features) <= VEX_FAMILIES | FAMILIES
            if vex:
                found.append(code)
    return tuple(found)
