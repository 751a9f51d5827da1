"""Whether tests may use KVM: `needs_kvm` skips one with the reason where /dev/kvm does not open."""

from __future__ import annotations

import pytest

from pysim_vm.kvm.binding import Kvm, KvmError


def reason() -> str:
    """Why KVM cannot be used here, or ""."""
    try:
        with Kvm() as kvm:
            kvm.create_vm().close()
    except KvmError as error:
        return str(error)
    return ""


REASON = reason()
needs_kvm = pytest.mark.skipif(bool(REASON), reason=REASON)
