# %% [markdown]
# # From an address to a page fault
#
# In 64-bit mode every address goes through four tables before it reaches memory. This notebook follows one
# address through them, takes a permission away, and watches the guest's handler get the page fault, print a
# message and repair the table.

# %% [markdown]
# ## The guest
#
# It starts in 64-bit mode with the first 4 GiB mapped onto themselves. It puts the address of `handler` into
# the interrupt table, makes the 2 MiB page at `0x200000` read-only, and writes to it.

# %%
from pysim_vm import AxVM

GUEST = """
        mov rax, cr0
        bts rax, 16                     ; CR0.WP: read-only holds for the kernel too
        mov cr0, rax

        mov edi, 0x10000 + 14 * 16      ; gate 14 of the interrupt table at 0x10000: #PF
        lea rax, [handler]
        mov [rdi], ax
        mov word [rdi + 2], 0x10        ; the code segment
        mov word [rdi + 4], 0x8e00      ; present, interrupt gate
        shr rax, 16
        mov [rdi + 6], ax
        lidt [pointer]

        mov rbx, cr3
        mov rbx, [rbx]                  ; down the tables: PML4 ...
        and rbx, -0x1000
        mov rbx, [rbx]                  ; ... page-directory pointers ...
        and rbx, -0x1000
        add rbx, 8                      ; ... and the directory entry of 0x200000
        and byte [rbx], 0xfd            ; no longer writable
        invlpg [0x200000]
        mov ecx, 42
        mov [0x200010], ecx             ; #PF
        hlt

handler:
        lea rsi, [message]
        mov edi, 0xb8000
        mov ah, 0x4f                    ; white on red
next:   lodsb
        test al, al
        jz repair
        stosw
        jmp next
repair: or byte [rbx], 2                ; writable again
        invlpg [0x200000]
        add rsp, 8                      ; the error code
        iretq

pointer:
        dw 0xfff
        dq 0x10000
message:
        db ' Page fault: repaired, going on. ', 0
"""
vm = AxVM.from_asm(GUEST, memory="8M", platform="pc")
vm.show.registers()

# %% [markdown]
# ## Four levels, three entries
#
# The page walk of `0x200010` as the tables are now. The directory entry maps a page of 2 MiB, so the fourth
# table is not needed. The walk is the CPU's, but leaves no trace: not even the accessed bits are set.

# %%
vm.show.page_walk(0x200010)

# %% [markdown]
# ## The descriptor tables
#
# The segments of 64-bit mode hardly do anything, but they have to be there.

# %%
vm.show.gdt()

# %% [markdown]
# The guest runs its first instructions, up to the store. Now gate 14 leads to the handler:

# %%
for moment in vm.steps(100):
    if moment.rcx == 42:
        break
vm.show.idt()

# %% [markdown]
# ## The page is read-only
#
# The same walk again. An instruction of the kernel may still read and fetch, and a write says what will
# come: the error code, and the check that fails.

# %%
walk = vm.show.page_walk(0x200010)
walk

# %%
vm.show.disassembly(count=4)

# %% [markdown]
# ## The page fault
#
# Four steps further the CPU is in the handler. RSP went down by 48 bytes: SS, RSP, RFLAGS, CS, RIP and the
# error code are on the stack; CR2 holds the address.

# %%
before = vm.show.registers()
with vm.record(instructions=True):
    vm.run(4)
vm.show.registers(since=before)

# %% [markdown]
# Why? The CPU remembers the check that failed, and the record tells it step by step.

# %%
print(vm.why())

# %%
vm.last_exception

# %%
vm.trace.instructions

# %% [markdown]
# ## The handler does its work
#
# It prints on the screen and makes the page writable again; IRETQ goes back to the store, which now succeeds.

# %%
vm.run(1_000)

# %%
vm.show.screen()

# %%
vm.show.page_walk(0x200010)

# %%
vm.show.memory(0x200000, 32)

# %% [markdown]
# ## Without a handler
#
# A fault that cannot be delivered is a double fault, and one that cannot be delivered either is the end: a
# *triple fault*. The exit tells the whole story, each check that failed in turn, and so does the record.

# %%
lost = AxVM.from_asm("mov rax, [0x200000000]")
with lost.record():
    reason = lost.run(10)
reason

# %%
lost.trace.events

# %%
lost.show.page_walk(0x200000000)
