# %% [markdown]
# # A guest that talks to a device
#
# A virtual machine runs its guest on the CPU until the guest touches something that is not memory: then it
# *exits*, somebody answers, and the guest goes on. This notebook builds a device, watches one such exit, and
# counts all of them.
#
# Run it here, open it in Jupyter (with Jupytext), or make a page of it:
# `pysim-vm notebook examples/notebooks/exits.py`.

# %% [markdown]
# ## A device
#
# A thermometer with two registers. A write to register 0 starts a measurement, register 4 gives the result in
# tenths of a degree. `offset` counts from the place where the device sits, `width` is in bytes.

# %%
from pysim_vm import AxVM, Device
from pysim_vm.trace.stat import stat


class Thermometer(Device):
    name = "thermometer"
    measured = 0

    def write(self, offset: int, width: int, value: int) -> None:
        if offset == 0:
            self.measured += 1

    def read(self, offset: int, width: int) -> int:
        return 215 + 7 * self.measured if offset == 4 else 0


# %% [markdown]
# ## A guest
#
# Five measurements, kept in memory from `0x8000` on, and a star on the serial port for each. The thermometer
# is in memory, at `0xfeb00000`; the serial port is where every PC has it.

# %%
GUEST = """
        mov ebx, 0xfeb00000     ; the thermometer
        mov edi, 0x8000         ; where the results go
        mov ecx, 5
again:  mov dword [rbx], 1      ; measure
        mov eax, [rbx + 4]      ; the result
        mov [rdi], eax
        add edi, 4
        mov dx, 0x3f8
        mov al, '*'
        out dx, al
        loop again
        hlt
"""
vm = AxVM.from_asm(GUEST, platform="pc")
vm.get_devices().add_mmio_dev(Thermometer(), 0xFEB00000, 0x1000)
vm.show.disassembly(count=12)

# %% [markdown]
# ## One exit
#
# Three instructions only move numbers. The fourth is the store to the thermometer: it leaves the guest, and
# `step` returns why.

# %%
vcpu = vm.vcpu(0)
for _ in range(3):
    vcpu.step()
before = vm.show.registers()
vcpu.step()

# %% [markdown]
# The next instruction loads the result: another exit. The answer of the device, 0xde or 22.2 degrees, is in
# RAX now. What changed since `before` is marked.

# %%
vcpu.step()
vm.show.registers(since=before)

# %% [markdown]
# ## Step by step
#
# The rest of the first round, with what each instruction changed.

# %%
vm.show.steps([vm.show.registers(), *vm.steps(6)])

# %% [markdown]
# ## All of them
#
# From here on every exit is recorded, at no cost to the guest's time. `Halt` comes when the guest sleeps and
# nothing will wake it.

# %%
with vm.record():
    reason = vm.run(1_000)
reason

# %%
vm.trace

# %% [markdown]
# A trace can be asked: by device, by address, by time.

# %%
vm.trace.where(device="thermometer", direction="read")

# %%
vm.trace[0]

# %% [markdown]
# ## Statistics
#
# The table of `perf kvm stat`. In this machine an answer takes no time, so the times are from one exit to the
# next: how long the guest ran in between.

# %%
stat(vm.trace)

# %%
stat(vm.trace, by="rip")

# %% [markdown]
# ## What is left of it
#
# The results in memory, four bytes each, lowest byte first; and what the guest printed.

# %%
vm.show.memory(0x8000, 32)

# %%
vm.show.console()
