"""A small guest with hot code, for the tests of what is kept of it and what is shown of it."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

from pysim_vm.translation_cache import TranslationCache
from pysim_vm.vm import AxVM

# 300 bytes are summed up, 40 times over; after each round the sum goes to port 0x80.
SUMS = """
    mov ebp, 40
round:
    mov rsi, 0x100000
    mov ecx, 300
    xor eax, eax
next:
    movzx edx, byte [rsi]
    add eax, edx
    mov byte [rsi], al
    call fold
    inc rsi
    dec ecx
    jnz next
    out 0x80, eax
    dec ebp
    jnz round
    hlt
fold:
    mov ebx, eax
    shr ebx, 7
    xor eax, ebx
    ret
"""
BUDGET = 1_000_000


def sums(cache: Path | str | None = None, **pysim: object) -> AxVM:
    """The guest, about to start, with its translations kept in the directory `cache`."""
    setting = {} if cache is None else {"translation_cache": str(cache)}
    return AxVM.from_asm(SUMS, engine="block", missing_device="ones", **setting, **pysim)


def cache_of(vm: AxVM) -> TranslationCache:
    """The VM's cache, which has to be there."""
    assert vm.translation_cache is not None
    return vm.translation_cache


def finished(vm: AxVM) -> tuple[list[tuple[int, int, str]], str]:
    """Run to the end, write the cache; every exit and a digest of the machine's state."""
    exits: list[tuple[int, int, str]] = []
    vm.on_exit = lambda vcpu, reason: exits.append((vcpu.cpu.retired, vcpu.cpu.rip, repr(reason)))
    reason = vm.run(BUDGET)
    vm.keep_translations()
    cpu = vm.vcpu(0).cpu
    state = blake2b(vm.read_from_guest(0, 0x200000))
    registers = [cpu.rax, cpu.rbx, cpu.rcx, cpu.rdx, cpu.rsi, cpu.rbp, cpu.rsp, cpu.rip, cpu.rflags()]
    state.update(repr((registers, cpu.retired, reason)).encode())
    return exits, state.hexdigest()
