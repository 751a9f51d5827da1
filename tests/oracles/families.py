"""One face for the oracles: general-purpose, MMX and SSE, AVX, x87. It runs nothing by itself.

A family turns a seeded generator into cases, has this CPU and the host run them, and tells what differs.
`State` is what a case or an outcome has apart from the code, in one shape for all: what recording,
replaying and shrinking work on.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from isa.decode import code_names, disassemble
from isa.exits import VmExit
from tests.oracles import forms as general_forms
from tests.oracles import (
    general_model,
    image_cases,
    native,
    native_vector,
    native_x87,
    vector_cases,
    vector_forms,
    vector_model,
    x87_cases,
    x87_model,
)

FAULT_NAMES = ("vector", "error", "cr2")
GENERAL_NAMES = (*native.GPR, "flags", *native.SEGMENTS, "fsbase", "gsbase", *FAULT_NAMES)
VECTOR_NAMES = (*native.GPR, "flags", *(f"xmm{n}" for n in range(16)), *(f"st{n}" for n in range(8)),
                "control", "status", "tags", "mxcsr", *(f"ymmh{n}" for n in range(16)),
                *FAULT_NAMES)  # fmt: skip
IMAGE_NAMES = ("control", "status", "tags", "ip", "cs", "opcode", "dp", "ds")
X87_NAMES = (*(f"st{n}" for n in range(8)), *IMAGE_NAMES, "flags", "rax")
HOST_AT = native_x87.BASE + 20  # where the x87 worker puts the instruction


@dataclass(frozen=True, slots=True)
class State:
    """Registers by name, in the order of the family's names, and the data window."""

    registers: dict[str, int]
    memory: bytes


@dataclass(frozen=True, slots=True)
class Sample:
    """One case in the common shape. `form` is iced's Code name, `bits` the size of the code segment."""

    form: str
    bits: int
    code: bytes
    state: State


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a Sample. `signal` is Linux's number, 0 for none; `taken` that a branch was taken."""

    signal: int
    taken: bool
    state: State


class Family(Protocol):
    """One oracle. Keys are (form, bits, hint); the hint is the family's own."""

    name: str
    memory_at: int  # linear address of the window
    memory_size: int

    def every_form(self) -> list[tuple[str, int, Any]]:
        """Everything that can be generated, in a fixed order."""

    def make(self, rng: random.Random, key: tuple[str, int, Any]) -> Sample | None:
        """A case of a form, or None where this draw cannot be encoded."""

    def run(self, sample: Sample) -> Result:
        """This CPU's result."""

    def host(self, samples: Sequence[Sample]) -> list[Result]:
        """The host CPU's results; starts the worker at the first call. RuntimeError if the worker died."""

    def undefined(self, sample: Sample) -> int:
        """RFLAGS bits that the manual leaves undefined after this instruction."""

    def differences(self, sample: Sample, ours: Result, theirs: Result, ignored: int) -> list[str]:
        """What differs, each beginning with the name of what it is; `ignored` is a mask of RFLAGS."""

    def close(self) -> None:
        """End the worker."""


class General:
    """General-purpose instructions in 64-, 32- and 16-bit code."""

    name = "general"
    memory_at = native.WINDOW
    memory_size = native.WINDOW_SIZE

    def __init__(self) -> None:
        self.machines: dict[int, general_model.Machine] = {}
        self.worker: native.NativeCpu | None = None

    def every_form(self) -> list[tuple[str, int, Any]]:
        names = code_names()
        return [(names[code], bits, code) for bits in (64, 32, 16) for code in general_model.forms(bits)]

    def make(self, rng: random.Random, key: tuple[str, int, Any]) -> Sample | None:
        form, bits, code = key
        case = general_forms.make_case(rng, code, bits)
        if case is None:
            return None
        values = (*case.regs, case.flags, *general_model.initial_segments(bits), 0, 0, 0)
        state = State(dict(zip(GENERAL_NAMES, values, strict=True)), case.window)
        return Sample(form, bits, case.code, state)

    def _case(self, sample: Sample) -> native.Case:
        values = tuple(sample.state.registers.values())
        return native.Case(sample.code, values[:16], values[16], sample.state.memory, sample.bits)

    def _result(self, outcome: native.Outcome) -> Result:
        values = (*outcome.regs, outcome.flags, *outcome.segments, *outcome.fault)
        state = State(dict(zip(GENERAL_NAMES, values, strict=True)), outcome.window)
        return Result(outcome.signal, outcome.taken, state)

    def _outcome(self, result: Result) -> native.Outcome:
        values = tuple(result.state.registers.values())
        parts = (values[:16], values[16], result.state.memory, result.taken)
        return native.Outcome(result.signal, *parts, values[17:25], (values[25], values[26], values[27]))

    def run(self, sample: Sample) -> Result:
        if sample.bits not in self.machines:
            self.machines[sample.bits] = general_model.Machine(sample.bits)
        return self._result(self.machines[sample.bits].run(self._case(sample)))

    def host(self, samples: Sequence[Sample]) -> list[Result]:
        if self.worker is None:
            self.worker = native.NativeCpu().__enter__()
        return [self._result(outcome) for outcome in self.worker.run([self._case(s) for s in samples])]

    def undefined(self, sample: Sample) -> int:
        return general_model.undefined_flags(self._case(sample))

    def differences(self, sample: Sample, ours: Result, theirs: Result, ignored: int) -> list[str]:
        case = self._case(sample)
        if ignored and general_model.is_long_double_shift(case):
            return []
        host, guest = self._outcome(theirs), self._outcome(ours)
        text = general_model.difference(case, host, guest, ignored)
        return text.split("; ") if text else []

    def close(self) -> None:
        if self.worker is not None:
            self.worker.__exit__()
            self.worker = None


class Vector:
    """MMX and SSE in 64-bit code."""

    name = "vector"
    memory_at = native_vector.WINDOW
    memory_size = native_vector.WINDOW_SIZE

    def __init__(self) -> None:
        self.model: vector_model.Model | None = None
        self.worker: native_vector.NativeVectorCpu | None = None

    def every_form(self) -> list[tuple[str, int, Any]]:
        return [(code_names()[code], 64, code) for code in vector_forms.forms()]

    def make(self, rng: random.Random, key: tuple[str, int, Any]) -> Sample | None:
        form, bits, code = key
        case = vector_cases.make_case(rng, code)
        return Sample(form, bits, case.code, self._state(case, (0, 0, 0)))

    def _state(
        self, source: native_vector.Case | native_vector.Outcome, fault: tuple[int, int, int]
    ) -> State:
        fx = source.fx
        words = (fx.control, fx.status, fx.tags, fx.mxcsr)
        values = (*source.regs, source.flags, *fx.xmm, *fx.st, *words, *fx.ymmh, *fault)
        return State(dict(zip(VECTOR_NAMES, values, strict=True)), source.window)

    def _parts(self, state: State) -> tuple[tuple[int, ...], int, native_vector.FxState, bytes]:
        values = tuple(state.registers.values())
        control, status, tags, mxcsr = values[41:45]
        fx = native_vector.FxState(control, status, tags, mxcsr, values[33:41], values[17:33], values[45:61])
        return values[:16], values[16], fx, state.memory

    def _result(self, outcome: native_vector.Outcome) -> Result:
        return Result(outcome.signal, False, self._state(outcome, outcome.fault))

    def _outcome(self, result: Result) -> native_vector.Outcome:
        vector, error, cr2 = tuple(result.state.registers.values())[61:]
        return native_vector.Outcome(result.signal, *self._parts(result.state), (vector, error, cr2))

    def run(self, sample: Sample) -> Result:
        if self.model is None:
            self.model = vector_model.Model()
        return self._result(self.model.run(native_vector.Case(sample.code, *self._parts(sample.state))))

    def host(self, samples: Sequence[Sample]) -> list[Result]:
        if self.worker is None:
            self.worker = native_vector.NativeVectorCpu().__enter__()
        cases = [native_vector.Case(sample.code, *self._parts(sample.state)) for sample in samples]
        return [self._result(outcome) for outcome in self.worker.run(cases)]

    def undefined(self, sample: Sample) -> int:
        return 0

    def differences(self, sample: Sample, ours: Result, theirs: Result, ignored: int) -> list[str]:
        case = native_vector.Case(sample.code, *self._parts(sample.state))
        return vector_model.differences(sample.form, case, self._outcome(ours), self._outcome(theirs))

    def close(self) -> None:
        if self.worker is not None:
            self.worker.__exit__()
            self.worker = None


class Avx(Vector):
    """The VEX encodings of AVX, AVX2, FMA and F16C in 64-bit code."""

    name = "avx"

    def every_form(self) -> list[tuple[str, int, Any]]:
        return [(code_names()[code], 64, code) for code in vector_forms.vex_forms()]


class Image(Vector):
    """FXSAVE, FXRSTOR, XSAVE and its kin in 64-bit code, for the components x87, SSE and AVX."""

    name = "image"
    memory_at = native_vector.DATA + 0x1000 - image_cases.IMAGE_WINDOW // 2
    memory_size = image_cases.IMAGE_WINDOW

    def every_form(self) -> list[tuple[str, int, Any]]:
        return [(code_names()[code], 64, code) for code in vector_forms.image_forms()]

    def make(self, rng: random.Random, key: tuple[str, int, Any]) -> Sample | None:
        form, bits, code = key
        case = image_cases.make_image_case(rng, code)
        return Sample(form, bits, case.code, self._state(case, (0, 0, 0)))


class X87:
    """x87 in 64-bit code, exceptions pending but not delivered. "rax" of a state is AX afterwards."""

    name = "x87"
    memory_at = native_x87.WINDOW
    memory_size = native_x87.WINDOW_SIZE

    def __init__(self) -> None:
        self.cpu = x87_model.machine()
        self.worker: native_x87.NativeX87 | None = None
        self.numbers = {code: n for n, (code, _, _) in enumerate(x87_model.ENCODINGS)}

    def every_form(self) -> list[tuple[str, int, Any]]:
        return [(form, 64, code) for code, form, _ in x87_model.ENCODINGS]

    def make(self, rng: random.Random, key: tuple[str, int, Any]) -> Sample | None:
        form, bits, code = key
        case = x87_cases.make_case(rng, code, form)
        return Sample(form, bits, case.code, self._state(case.image, case.flags, 0, case.window))

    def _state(self, image: native_x87.Image, flags: int, ax: int, window: bytes) -> State:
        values = (*image.registers, *(getattr(image, name) for name in IMAGE_NAMES), flags, ax)
        return State(dict(zip(X87_NAMES, values, strict=True)), window)

    def _image(self, state: State) -> native_x87.Image:
        values = [state.registers[name] for name in X87_NAMES]
        control, status, tags, ip, cs, opcode, dp, ds = values[8:16]
        return native_x87.Image(control, status, tags, ip, cs, opcode, dp, ds, tuple(values[:8]))

    def _case(self, sample: Sample) -> native_x87.Case:
        state = sample.state
        return native_x87.Case(
            sample.code, self._image(state), state.registers["flags"], state.memory
        )  # fmt: skip

    def _outcome(self, state: State) -> native_x87.Outcome:
        registers = state.registers
        return native_x87.Outcome(self._image(state), registers["flags"], state.memory, registers["rax"])

    def run(self, sample: Sample) -> Result:
        case = self._case(sample)
        code = sample.code if sample.code in self.numbers else sample.code[1:]  # without the prefix
        out = x87_model.run(self.cpu, self.numbers[code], case, HOST_AT)
        return Result(0, False, self._state(out.image, out.flags, out.ax, out.window))

    def host(self, samples: Sequence[Sample]) -> list[Result]:
        if self.worker is None:
            self.worker = native_x87.NativeX87().__enter__()
            assert self.worker.at == HOST_AT
        outcomes = self.worker.run([self._case(sample) for sample in samples])
        return [
            Result(0, False, self._state(out.image, out.flags, out.ax, out.window)) for out in outcomes
        ]  # fmt: skip

    def undefined(self, sample: Sample) -> int:
        return 0

    def differences(self, sample: Sample, ours: Result, theirs: Result, ignored: int) -> list[str]:
        guest, host = self._outcome(ours.state), self._outcome(theirs.state)
        if sample.form.partition("_")[0] in x87_model.TRANSCENDENTAL:
            guest = x87_model.forgive_rounding(guest, host)
        return x87_model.difference(self._case(sample), guest, host)

    def close(self) -> None:
        if self.worker is not None:
            self.worker.__exit__()
            self.worker = None


FAMILIES: dict[str, type[General | Vector | Avx | Image | X87]] = {
    "general": General, "vector": Vector, "avx": Avx, "image": Image, "x87": X87,
}  # fmt: skip


def differences(family: Family, sample: Sample, theirs: Result, ignored: int) -> list[str]:
    """What this CPU does differently; anything it raises but a fault is a difference too."""
    try:
        ours = family.run(sample)
    except VmExit as event:
        return [f"exit {event.reason}"]
    except Exception as error:  # whatever it is, it is the finding
        return [f"{type(error).__name__} {error}"]
    return [] if ours == theirs else family.differences(sample, ours, theirs, ignored)


def describe(family: Family, sample: Sample) -> str:
    """The instruction of a sample as text and bytes."""
    text = disassemble(sample.code, sample.bits, native.CODE if family.name == "general" else 0)
    return f"{sample.form} in {sample.bits}-bit code: {text} [{sample.code.hex(' ')}]"
