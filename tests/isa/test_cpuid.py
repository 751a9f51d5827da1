"""CPUID: each feature has one bit, absent ones read as zero, and a wrong name is one sentence."""

from __future__ import annotations

import pytest

from isa.cpuid import (
    BASELINE,
    DEFAULT_FEATURES,
    FEATURE_BITS,
    OPTIONAL_FEATURES,
    CpuId,
    UnknownFeature,
    feature_set,
)
from isa.decode import feature_names
from isa.state import CR4_OSXSAVE
from tests.isa.machine import make_cpu, run_one

EVERYTHING = feature_set(OPTIONAL_FEATURES)


def ask(leaf: int, subleaf: int = 0, features: frozenset[str] = EVERYTHING) -> tuple[int, int, int, int]:
    """EAX, EBX, ECX, EDX of a leaf."""
    return CpuId(features)(make_cpu(64), leaf, subleaf)


@pytest.mark.parametrize("name", [*DEFAULT_FEATURES, *OPTIONAL_FEATURES])
def test_each_feature_shows_in_its_bit_and_only_there(name: str) -> None:
    leaf, subleaf, register, bit = FEATURE_BITS[name]
    rest = frozenset(EVERYTHING - {name})
    with_it, without = ask(leaf, subleaf, EVERYTHING), ask(leaf, subleaf, rest)
    expected = list(with_it)
    expected[register] ^= 1 << bit
    if name == "CLFSH":
        expected[1] &= ~0xFF00  # the line size goes with it
    assert without == tuple(expected)
    assert with_it[register] >> bit & 1


def test_no_two_features_share_a_bit() -> None:
    assert len(set(FEATURE_BITS.values())) == len(FEATURE_BITS)


def test_every_feature_that_the_decoder_may_ask_for_by_name_is_spelled_as_iced_spells_it() -> None:
    ours_alone = {
        "VME",
        "DE",
        "PSE",
        "PAE",
        "APIC",
        "SEP",
        "MTRR",
        "PGE",
        "PAT",
        "PSE36",
        "PCID",
        "X2APIC",
        "TSC_DEADLINE",
        "LAHF_SAHF_64",
        "NX",
        "PDPE1GB",
        "ERMS",
        "FSRM",
        "SMEP",
        "UMIP",
    }
    names = set(feature_names().values())
    assert FEATURE_BITS.keys() - names <= ours_alone
    assert names >= BASELINE


def test_identification_leaves() -> None:
    eax, ebx, ecx, edx = ask(0)
    vendor = b"".join(word.to_bytes(4, "little") for word in (ebx, edx, ecx))
    assert (vendor, eax) == (b"GenuineIntel", 0x16)
    brand = b"".join(
        word.to_bytes(4, "little") for leaf in range(0x8000_0002, 0x8000_0005) for word in ask(leaf)
    )
    assert brand.rstrip(b"\0") == b"pysim_vm virtual CPU"
    assert ask(1)[0] == 0x6F1
    assert ask(0x8000_0000)[0] == 0x8000_0008
    assert ask(0x8000_0008)[0] == 48 << 8 | 48


def test_leaves_beyond_the_last_answer_as_the_highest_basic_leaf() -> None:
    assert ask(0x17) == ask(0x7FFF_FFFF) == ask(0x8000_0009) == ask(0xFFFF_FFFF) == ask(0x16)


def test_hypervisor_leaves_are_x86_vcpus() -> None:
    eax, ebx, ecx, edx = ask(0x4000_0000)
    assert eax == 0x4000_0001
    assert b"".join(word.to_bytes(4, "little") for word in (ebx, ecx, edx)) == b"RVMRVMRVMRVM"
    assert ask(0x4000_0001) == (0, 0, 0, 0)
    assert ask(1)[2] >> 31  # a hypervisor is present


def test_osxsave_mirrors_cr4() -> None:
    cpu = make_cpu(64)
    answers = CpuId(EVERYTHING)
    assert not answers(cpu, 1, 0)[2] >> 27 & 1
    cpu.cr4 |= CR4_OSXSAVE
    assert answers(cpu, 1, 0)[2] >> 27 & 1


def test_caches_are_enumerated_until_a_null_entry() -> None:
    kinds = [ask(4, n)[0] & 0x1F for n in range(5)]
    assert kinds == [1, 2, 3, 0, 0]
    sizes = [
        ((ebx >> 22) + 1) * ((ebx & 0xFFF) + 1) * (ecx + 1)
        for _, ebx, ecx, _ in (ask(4, n) for n in range(3))
    ]
    assert sizes == [32 << 10, 32 << 10, 512 << 10]


def test_the_tsc_frequency_follows_from_leaf_15() -> None:
    eax, ebx, ecx, _ = CpuId(EVERYTHING, tsc_hz=2_000_000_000)(make_cpu(64), 0x15, 0)
    assert ecx * ebx // eax == 2_000_000_000


def test_topology_leaf_exists_with_x2apic_only() -> None:
    assert ask(0xB, 0)[2] == 1 << 8 and ask(0xB, 1)[2] == 2 << 8 | 1 and ask(0xB, 2)[:3] == (0, 0, 2)
    assert ask(0xB, 0, feature_set()) == (0, 0, 0, 0)


def test_the_instruction_uses_eax_and_ecx_and_clears_the_upper_halves() -> None:
    cpu = make_cpu(64, None, EVERYTHING, rax=0xDEAD_0000_0000_0004, rcx=0xBEEF_0000_0000_0001, rbx=1 << 63)
    cpu.cpuid = CpuId(EVERYTHING)
    run_one(cpu, "cpuid", bytes.fromhex("0fa2"))
    assert (cpu.rax, cpu.rbx, cpu.rcx, cpu.rdx) == ask(4, 1)


@pytest.mark.parametrize(
    ("changes", "on", "off"),
    [
        (["popcnt"], {"POPCNT"}, set()), (["+sse4.2", "+sse4_1", "+ssse3", "sse3"], {"SSE4_2"}, set()),
        (["-rdrand"], set(), {"RDRAND"}), (["+pse-36"], {"PSE36"}, set()), (["tsc-deadline", "apic"],
        {"TSC_DEADLINE"}, set()), (["+cx16", "+lahf", "+abm"], {"CMPXCHG16B", "LZCNT"}, set()),
    ],
)  # fmt: skip
def test_changes_are_applied_to_the_default_features(changes: list[str], on: set[str], off: set[str]) -> None:
    features = feature_set(changes)
    assert on <= features and not off & features
    assert features - on >= feature_set() - off - on - {"LAHF_SAHF_64"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("+popcount", 'did you mean "popcnt"'),
        ("+avx512f", "not implemented by this CPU"),
        ("-x", "unknown CPU"),
        ("+x2apic", 'needs "apic"'),
        ("-sse", 'CPU feature "sse2" needs "sse"'),
        ("", "unknown CPU feature"),
    ],
)
def test_a_wrong_feature_is_one_sentence(change: str, words: str) -> None:
    with pytest.raises(UnknownFeature) as caught:
        feature_set([change])
    assert words in str(caught.value) and "\n" not in str(caught.value)
