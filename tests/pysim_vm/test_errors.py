"""The error types: kinds, texts, errno, and what the sentences say."""

from __future__ import annotations

import copy
import pickle

import pytest

from pysim_vm import errors
from pysim_vm.errors import (
    PROBLEMS_SHOWN,
    AxError,
    AxErrorKind,
    AxVmError,
    ConfigError,
    ConfigProblem,
    DeviceFault,
    InvalidConfig,
    InvalidInput,
    InvalidState,
    InvalidTransition,
    OutOfMemory,
    ResourceConflict,
    ResourceUnavailable,
    Unsupported,
    VmBootError,
    VmHostError,
    VmInterruptError,
    VmMemoryError,
    VmNotFound,
    VmVcpuError,
    ax_err,
)


def test_there_are_43_kinds_numbered_in_alphabetical_order() -> None:
    names = [kind.name for kind in AxErrorKind]
    assert len(names) == 43
    assert names == sorted(names)
    assert [kind.value for kind in AxErrorKind] == list(range(1, 44))
    assert (AxErrorKind.AddrInUse, AxErrorKind.WriteZero) == (1, 43)


@pytest.mark.parametrize(
    ("kind", "text", "errno"),
    [
        (AxErrorKind.BadState, "Bad internal state", 14),
        (AxErrorKind.BadAddress, "Bad address", 14),
        (AxErrorKind.InvalidInput, "Invalid input parameter", 22),
        (AxErrorKind.InvalidData, "Invalid data", 22),
        (AxErrorKind.NoMemory, "Out of memory", 12),
        (AxErrorKind.NotFound, "Entity not found", 2),
        (AxErrorKind.Unsupported, "Operation not supported", 38),
        (AxErrorKind.OperationNotSupported, "Operation not supported", 95),
        (AxErrorKind.AlreadyExists, "Entity already exists", 17),
        (AxErrorKind.ResourceBusy, "Resource busy", 16),
        (AxErrorKind.WouldBlock, "Operation would block", 11),
        (AxErrorKind.OutOfRange, "Result out of range", 34),
        (AxErrorKind.NoSuchDevice, "No such device", 19),
    ],
)
def test_a_kind_has_axerrnos_text_and_linuxs_errno(kind: AxErrorKind, text: str, errno: int) -> None:
    assert kind.as_str() == str(kind) == text
    assert kind.linux_errno == errno


def test_every_kind_has_a_text_and_a_positive_errno() -> None:
    for kind in AxErrorKind:
        assert kind.as_str()
        assert 0 < kind.linux_errno < 134  # the last errno of asm-generic is EHWPOISON, 133


def test_an_error_without_a_message_says_its_kind() -> None:
    error = AxError(AxErrorKind.NotFound)
    assert str(error) == "Entity not found"
    assert (error.code, error.linux_errno) == (30, 2)


def test_an_error_keeps_its_message() -> None:
    error = AxError(AxErrorKind.InvalidInput, "Invalid vcpu_id 7")
    assert str(error) == "Invalid vcpu_id 7"
    assert repr(error) == "AxError(InvalidInput, 'Invalid vcpu_id 7')"


def test_a_kind_may_be_given_by_name_as_devices_do() -> None:
    assert AxError("NoMemory", "full").kind is AxErrorKind.NoMemory


def test_ax_err_raises() -> None:
    with pytest.raises(AxError, match=r"^VM\[1\] is already running$") as caught:
        ax_err(AxErrorKind.BadState, "VM[1] is already running")
    assert caught.value.kind is AxErrorKind.BadState


def test_every_axvm_variant_maps_to_a_kind() -> None:
    expected: list[tuple[AxVmError, str, AxErrorKind, str]] = [
        (InvalidInput("x"), "InvalidInput", AxErrorKind.InvalidInput, "x"),
        (InvalidConfig("x"), "InvalidConfig", AxErrorKind.InvalidInput, "x"),
        (InvalidState("x"), "InvalidState", AxErrorKind.BadState, "x"),
        (ResourceUnavailable("x"), "ResourceUnavailable", AxErrorKind.ResourceBusy, "x"),
        (ResourceConflict("x"), "ResourceConflict", AxErrorKind.AlreadyExists, "x"),
        (Unsupported("x"), "Unsupported", AxErrorKind.Unsupported, "x"),
        (OutOfMemory("map"), "OutOfMemory", AxErrorKind.NoMemory, "out of memory during map"),
        (DeviceFault("uart burns"), "Device", AxErrorKind.Io, "uart burns"),
        (
            VmMemoryError("map", "no RAM"),
            "Memory",
            AxErrorKind.BadAddress,
            "VM memory operation map failed: no RAM",
        ),
        (VmVcpuError("bind", "busy"), "Vcpu", AxErrorKind.BadState, "VM vCPU operation bind failed: busy"),
        (
            VmInterruptError("inject", "off"),
            "Interrupt",
            AxErrorKind.InvalidInput,
            "VM interrupt operation inject failed: off",
        ),
        (VmHostError("reserve", "no"), "Host", AxErrorKind.Io, "VM host operation reserve failed: no"),
        (VmBootError("load", "bad"), "Boot", AxErrorKind.InvalidData, "VM boot operation load failed: bad"),
    ]
    for error, variant, kind, text in expected:
        assert (error.variant, error.kind, str(error)) == (variant, kind, text)


def test_vm_not_found_names_the_vm() -> None:
    error = VmNotFound(7)
    assert error.vm_id == 7
    assert error.kind is AxErrorKind.NotFound
    assert "VM[7]" in str(error)


def test_an_invalid_transition_names_from_to_and_action() -> None:
    error = InvalidTransition("Stopped", "Paused", "pause", who="VM[3]", allowed=["Running"])
    assert str(error) == 'VM[3]: "pause" cannot lead from Stopped to Paused; it starts from Running'
    assert (error.from_, error.to, error.action, error.kind) == (
        "Stopped",
        "Paused",
        "pause",
        AxErrorKind.BadState,
    )


def test_errors_survive_pickle_and_copy_with_their_fields() -> None:
    problem = ConfigProblem("a.toml", 3, "base.id", "missing")
    for error in (
        AxError("NotFound"),
        VmNotFound(2),
        InvalidTransition("A", "B", "go", who="VM[9]", allowed=["C"]),
        VmMemoryError("map", "x", kind="NoMemory"),
        ConfigError([problem]),
    ):
        for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert type(twin) is type(error)
            assert (str(twin), twin.kind, vars(twin)) == (str(error), error.kind, vars(error))


def test_a_config_problem_reads_file_line_key_message_hint() -> None:
    problem = ConfigProblem("vm.toml", 4, "base.nmae", "unknown key", "name")
    assert str(problem) == 'vm.toml:4: base.nmae: unknown key; did you mean "name"?'


def test_a_config_problem_of_the_whole_file_has_no_line_and_no_key() -> None:
    assert str(ConfigProblem("vm.toml", 0, "", "cannot be read")) == "vm.toml: cannot be read"


def test_one_problem_is_one_line_and_several_are_a_list() -> None:
    one = ConfigProblem("a.toml", 1, "x", "bad")
    two = ConfigProblem("a.toml", 2, "y", "worse")
    assert str(ConfigError([one])) == "a.toml:1: x: bad"
    assert str(ConfigError([one, two])) == "2 errors in a.toml:\n  a.toml:1: x: bad\n  a.toml:2: y: worse"
    assert ConfigError([one, two]).problems == (one, two)


def test_a_config_error_lists_a_bounded_number_of_problems() -> None:
    error = ConfigError(ConfigProblem("a.toml", n, "x", "bad") for n in range(PROBLEMS_SHOWN + 5))
    assert len(error.problems) == PROBLEMS_SHOWN + 5
    assert str(error).splitlines()[-1] == "  and 5 more"
    assert len(str(error).splitlines()) == PROBLEMS_SHOWN + 2


def test_a_config_error_is_an_invalid_config_of_kind_invalid_input() -> None:
    error = ConfigError([ConfigProblem("a.toml", 1, "x", "bad")])
    assert isinstance(error, InvalidConfig)
    assert error.kind is AxErrorKind.InvalidInput


def test_every_public_variant_is_an_ax_error() -> None:
    classes = [each for each in vars(errors).values() if isinstance(each, type)]
    variants = [each for each in classes if issubclass(each, AxVmError) and each is not AxVmError]
    assert len(variants) >= 15
    assert all(issubclass(each, AxError) for each in variants)
