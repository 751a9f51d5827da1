"""A homework checker: runs a student's routine on many inputs, counts instructions, and stops runaways.

    python examples/grade_homework.py

The budget counts instructions, not seconds, so a slow computer gives nobody a worse mark.
"""

from dataclasses import dataclass

from pysim_vm import AxVM, Budget, Halt, Unimplemented

GOOD = """
        xor eax, eax            ; EAX := number of bits set in EDI
next:   test edi, edi
        jz done
        lea ecx, [rdi - 1]
        and edi, ecx
        inc eax
        jmp next
done:   hlt
"""
ENDLESS = """
        xor eax, eax
next:   inc eax
        jmp next
"""


@dataclass(frozen=True, slots=True)
class Mark:
    """What came of one routine."""

    passed: int
    failed: int
    instructions: int
    remark: str


def grade(source: str, budget: int = 1000) -> Mark:
    """Try a routine that has to count the bits of EDI into EAX and halt."""
    passed = failed = instructions = 0
    remark = "fine"
    for number in (0, 1, 0xFF, 0x8000_0001, 0xFFFF_FFFF):
        vm = AxVM.from_asm(source)
        vm.vcpu(0).regs.edi = number
        reason = vm.run(budget)
        instructions += vm.vcpu(0).retired
        if isinstance(reason, Halt) and vm.vcpu(0).regs.eax == number.bit_count():
            passed += 1
            continue
        failed += 1
        match reason:
            case Halt():
                remark = f"{number:#x} gives {vm.vcpu(0).regs.eax}, not {number.bit_count()}"
            case Budget():
                remark = f"does not end within {budget} instructions"
            case Unimplemented():
                remark = f"uses {reason.text}"
            case _:
                remark = f"ends with {reason}"
    return Mark(passed, failed, instructions, remark)


def main() -> tuple[Mark, Mark]:
    good, endless = grade(GOOD), grade(ENDLESS)
    for name, mark in (("good", good), ("endless", endless)):
        print(
            f"{name:<8} {mark.passed} passed, {mark.failed} failed, "
            f"{mark.instructions} instructions: {mark.remark}"
        )
    return good, endless


if __name__ == "__main__":
    main()
