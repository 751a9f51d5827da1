"""Typed errors of the hypervisor: axerrno's 43 kinds and axvm's variants. Never a fault of the guest.

`AxError` is the one exception users meet; `kind` says what sort of failure it is and `str(error)` is one
sentence. What a guest does wrong becomes a fault inside the guest and never comes here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Final, NoReturn

PROBLEMS_SHOWN: Final = 100  # a hostile file has a hundred thousand problems; nobody reads more than this


class AxErrorKind(IntEnum):
    """axerrno 0.2: the kinds in alphabetical order, numbered from 1."""

    AddrInUse = 1
    AlreadyConnected = 2
    AlreadyExists = 3
    ArgumentListTooLong = 4
    BadAddress = 5
    BadFileDescriptor = 6
    BadState = 7
    BrokenPipe = 8
    ConnectionRefused = 9
    ConnectionReset = 10
    CrossesDevices = 11
    DirectoryNotEmpty = 12
    FilesystemLoop = 13
    IllegalBytes = 14
    InProgress = 15
    Interrupted = 16
    InvalidData = 17
    InvalidExecutable = 18
    InvalidInput = 19
    Io = 20
    IsADirectory = 21
    NameTooLong = 22
    NoMemory = 23
    NoSuchDevice = 24
    NoSuchProcess = 25
    NotADirectory = 26
    NotASocket = 27
    NotATty = 28
    NotConnected = 29
    NotFound = 30
    OperationNotPermitted = 31
    OperationNotSupported = 32
    OutOfRange = 33
    PermissionDenied = 34
    ReadOnlyFilesystem = 35
    ResourceBusy = 36
    StorageFull = 37
    TimedOut = 38
    TooManyOpenFiles = 39
    UnexpectedEof = 40
    Unsupported = 41
    WouldBlock = 42
    WriteZero = 43

    def as_str(self) -> str:
        """The display text, as axerrno prints it."""
        return _KIND_FACTS[self][0]

    @property
    def linux_errno(self) -> int:
        """The positive Linux x86-64 errno; the host's own numbering plays no part."""
        return _KIND_FACTS[self][1]

    def __str__(self) -> str:
        return self.as_str()


# Display text and Linux errno (include/uapi/asm-generic/errno-base.h and errno.h). Numbers are written out
# because the host's `errno` module has other values on other systems.
_KIND_FACTS: Final[dict[AxErrorKind, tuple[str, int]]] = {
    AxErrorKind.AddrInUse: ("Address in use", 98),  # EADDRINUSE
    AxErrorKind.AlreadyConnected: ("Already connected", 106),  # EISCONN
    AxErrorKind.AlreadyExists: ("Entity already exists", 17),  # EEXIST
    AxErrorKind.ArgumentListTooLong: ("Argument list too long", 7),  # E2BIG
    AxErrorKind.BadAddress: ("Bad address", 14),  # EFAULT
    AxErrorKind.BadFileDescriptor: ("Bad file descriptor", 9),  # EBADF
    AxErrorKind.BadState: ("Bad internal state", 14),  # EFAULT
    AxErrorKind.BrokenPipe: ("Broken pipe", 32),  # EPIPE
    AxErrorKind.ConnectionRefused: ("Connection refused", 111),  # ECONNREFUSED
    AxErrorKind.ConnectionReset: ("Connection reset", 104),  # ECONNRESET
    AxErrorKind.CrossesDevices: ("Cross-device or cross-filesystem operation", 18),  # EXDEV
    AxErrorKind.DirectoryNotEmpty: ("Directory not empty", 39),  # ENOTEMPTY
    AxErrorKind.FilesystemLoop: ("Filesystem loop or indirection limit", 40),  # ELOOP
    AxErrorKind.IllegalBytes: ("Illegal byte sequence", 84),  # EILSEQ
    AxErrorKind.InProgress: ("Operation in progress", 115),  # EINPROGRESS
    AxErrorKind.Interrupted: ("Operation interrupted", 4),  # EINTR
    AxErrorKind.InvalidData: ("Invalid data", 22),  # EINVAL
    AxErrorKind.InvalidExecutable: ("Invalid executable format", 8),  # ENOEXEC
    AxErrorKind.InvalidInput: ("Invalid input parameter", 22),  # EINVAL
    AxErrorKind.Io: ("I/O error", 5),  # EIO
    AxErrorKind.IsADirectory: ("Is a directory", 21),  # EISDIR
    AxErrorKind.NameTooLong: ("Filename too long", 36),  # ENAMETOOLONG
    AxErrorKind.NoMemory: ("Out of memory", 12),  # ENOMEM
    AxErrorKind.NoSuchDevice: ("No such device", 19),  # ENODEV
    AxErrorKind.NoSuchProcess: ("No such process", 3),  # ESRCH
    AxErrorKind.NotADirectory: ("Not a directory", 20),  # ENOTDIR
    AxErrorKind.NotASocket: ("Not a socket", 88),  # ENOTSOCK
    AxErrorKind.NotATty: ("Inappropriate ioctl for device", 25),  # ENOTTY
    AxErrorKind.NotConnected: ("Not connected", 107),  # ENOTCONN
    AxErrorKind.NotFound: ("Entity not found", 2),  # ENOENT
    AxErrorKind.OperationNotPermitted: ("Operation not permitted", 1),  # EPERM
    AxErrorKind.OperationNotSupported: ("Operation not supported", 95),  # EOPNOTSUPP
    AxErrorKind.OutOfRange: ("Result out of range", 34),  # ERANGE
    AxErrorKind.PermissionDenied: ("Permission denied", 13),  # EACCES
    AxErrorKind.ReadOnlyFilesystem: ("Read-only filesystem", 30),  # EROFS
    AxErrorKind.ResourceBusy: ("Resource busy", 16),  # EBUSY
    AxErrorKind.StorageFull: ("No storage space", 28),  # ENOSPC
    AxErrorKind.TimedOut: ("Timed out", 110),  # ETIMEDOUT
    AxErrorKind.TooManyOpenFiles: ("Too many open files", 24),  # EMFILE
    AxErrorKind.UnexpectedEof: ("Unexpected end of file", 5),  # EIO
    AxErrorKind.Unsupported: ("Operation not supported", 38),  # ENOSYS
    AxErrorKind.WouldBlock: ("Operation would block", 11),  # EAGAIN
    AxErrorKind.WriteZero: ("Write zero", 5),  # EIO
}


class AxError(Exception):
    """A failed hypervisor operation: `kind` for programs, `message` (one sentence) for people.

    Where axvm returns `AxResult<T>`, this machine returns T or raises AxError. `kind` may be given by name,
    which is how errors of `devices/` carry it. Unlike axerrno's, the error keeps its message.
    """

    def __init__(self, kind: AxErrorKind | str, message: str = "") -> None:
        # args stay those of the constructor call, whatever the subclass: Exception.__new__ has stored them.
        self.kind: AxErrorKind = AxErrorKind[kind] if isinstance(kind, str) else AxErrorKind(kind)
        self.message: str = message or self.kind.as_str()

    @property
    def code(self) -> int:
        """The kind's number, 1 to 43."""
        return int(self.kind)

    @property
    def linux_errno(self) -> int:
        """The positive Linux errno of the kind."""
        return self.kind.linux_errno

    def __str__(self) -> str:
        return self.message

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.kind.name}, {self.message!r})"

    def __reduce__(self) -> tuple[object, ...]:
        # Exception would call the class with `args`, which loses keyword arguments; workers send errors home.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(cls: type[AxError], args: tuple[object, ...], fields: dict[str, object]) -> AxError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(fields)
    return error


def ax_err(kind: AxErrorKind | str, message: str = "") -> NoReturn:
    """Raise AxError, as the macro ax_err! returns it."""
    raise AxError(kind, message)


# --- axvm's own variants (AxVmError) ------------------------------------------------------------------------


class AxVmError(AxError):
    """Base of axvm's variants: `variant` is the name AxVmError gives it."""

    variant: ClassVar[str] = ""


class InvalidInput(AxVmError):
    """An argument makes no sense."""

    variant = "InvalidInput"

    def __init__(self, detail: str) -> None:
        super().__init__(AxErrorKind.InvalidInput, detail)


class InvalidConfig(AxVmError):
    """The configuration makes no sense."""

    variant = "InvalidConfig"

    def __init__(self, detail: str) -> None:
        super().__init__(AxErrorKind.InvalidInput, detail)


class InvalidState(AxVmError):
    """The operation is not possible in the present state."""

    variant = "InvalidState"

    def __init__(self, detail: str) -> None:
        super().__init__(AxErrorKind.BadState, detail)


class InvalidTransition(AxVmError):
    """A lifecycle has no such step: `action` would lead to `to`, but not from `from_`.

    `who` is the owner of the lifecycle, such as "VM[1]"; `allowed` names the states the action starts from.
    """

    variant = "InvalidTransition"

    def __init__(
        self, from_: str, to: str, action: str, *, who: str = "VM", allowed: Iterable[str] = ()
    ) -> None:
        self.from_ = from_
        self.to = to
        self.action = action
        self.who = who
        self.allowed = tuple(allowed)
        text = f'{who}: "{action}" cannot lead from {from_} to {to}'
        if self.allowed:
            text += f"; it starts from {' or '.join(self.allowed)}"
        super().__init__(AxErrorKind.BadState, text)


class VmNotFound(AxVmError):
    """No VM has this id."""

    variant = "VmNotFound"

    def __init__(self, vm_id: int) -> None:
        self.vm_id = vm_id
        super().__init__(AxErrorKind.NotFound, f"VM[{vm_id}] does not exist; `vm list` shows those that do")


class ResourceUnavailable(AxVmError):
    """Something the operation needs is in use or not there."""

    variant = "ResourceUnavailable"

    def __init__(self, detail: str) -> None:
        super().__init__(AxErrorKind.ResourceBusy, detail)


class ResourceConflict(AxVmError):
    """Two owners want one thing; the text names both."""

    variant = "ResourceConflict"

    def __init__(self, detail: str) -> None:
        super().__init__(AxErrorKind.AlreadyExists, detail)


class Unsupported(AxVmError):
    """This machine cannot do that."""

    variant = "Unsupported"

    def __init__(self, detail: str) -> None:
        super().__init__(AxErrorKind.Unsupported, detail)


class OutOfMemory(AxVmError):
    """Host or guest memory ran out during `operation`."""

    variant = "OutOfMemory"

    def __init__(self, operation: str) -> None:
        self.operation = operation
        super().__init__(AxErrorKind.NoMemory, f"out of memory during {operation}")


class _OperationFailed(AxVmError):
    """An operation of one part of the VM failed: `operation` names it, `detail` says why."""

    part: ClassVar[str]
    default_kind: ClassVar[AxErrorKind]

    def __init__(self, operation: str, detail: str, kind: AxErrorKind | str | None = None) -> None:
        self.operation = operation
        self.detail = detail
        text = f"VM {self.part} operation {operation} failed: {detail}"
        super().__init__(self.default_kind if kind is None else kind, text)


class VmMemoryError(_OperationFailed):
    """AxVmError::Memory: guest memory could not be mapped, translated or reached."""

    variant = "Memory"
    part = "memory"
    default_kind = AxErrorKind.BadAddress


class DeviceFault(AxVmError):
    """AxVmError::Device: a device failed an access, or no device answers; the VM stays usable.

    The DeviceError is the cause (`__cause__`).
    """

    variant = "Device"

    def __init__(self, detail: str, kind: AxErrorKind | str = AxErrorKind.Io) -> None:
        super().__init__(kind, detail)


class VmVcpuError(_OperationFailed):
    """AxVmError::Vcpu: a vCPU could not be made, bound or run."""

    variant = "Vcpu"
    part = "vCPU"
    default_kind = AxErrorKind.BadState


class VmInterruptError(_OperationFailed):
    """AxVmError::Interrupt: an interrupt could not be delivered."""

    variant = "Interrupt"
    part = "interrupt"
    default_kind = AxErrorKind.InvalidInput


class VmHostError(_OperationFailed):
    """AxVmError::Host: the HAL refused."""

    variant = "Host"
    part = "host"
    default_kind = AxErrorKind.Io


class VmBootError(_OperationFailed):
    """AxVmError::Boot: the guest could not be loaded or started."""

    variant = "Boot"
    part = "boot"
    default_kind = AxErrorKind.InvalidData


# --- configuration ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One remark about a configuration file, an error or a warning.

    `line` counts from 1, 0 for the file as a whole; `key` is a dotted path such as
    `kernel.memory_regions[0].size`, empty for the file as a whole; `hint` is the "did you mean" word;
    `variant` is the name AxVmConfigError has for it, where it has one.
    """

    source: str
    line: int
    key: str
    message: str
    hint: str = ""
    variant: str = ""

    def __str__(self) -> str:
        where = f"{self.source}:{self.line}" if self.line else self.source
        key = f" {self.key}:" if self.key else ""
        hint = f'; did you mean "{self.hint}"?' if self.hint else ""
        return f"{where}:{key} {self.message}{hint}"


class ConfigError(InvalidConfig):
    """A configuration cannot be used. `problems` holds every error found, in the order of the file.

    One problem reads as one line; more are listed one a line under a headline, at most PROBLEMS_SHOWN of
    them.
    """

    def __init__(self, problems: Iterable[ConfigProblem]) -> None:
        self.problems: tuple[ConfigProblem, ...] = tuple(problems)
        if len(self.problems) == 1:
            text = str(self.problems[0])
        else:
            sources = sorted({problem.source for problem in self.problems})
            lines = [f"{len(self.problems)} errors in {', '.join(sources)}:"]
            lines += [f"  {problem}" for problem in self.problems[:PROBLEMS_SHOWN]]
            if len(self.problems) > PROBLEMS_SHOWN:
                lines.append(f"  and {len(self.problems) - PROBLEMS_SHOWN} more")
            text = "\n".join(lines)
        super().__init__(text)


class LoadError(AxError):
    """A guest file, or what was asked of it, cannot be booted; the text is one sentence with the remedy.

    Its kind is always InvalidInput.
    """

    def __init__(self, message: str) -> None:
        super().__init__(AxErrorKind.InvalidInput, message)
