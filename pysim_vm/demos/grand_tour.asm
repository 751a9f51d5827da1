; grand_tour: the guest of `pysim-vm demo`, from the first real-mode instruction to the power switch.
;
; A flat image at 0x7C00, entered in real mode with CS base 0, on the PC board with one more device on it, the
; calculator of pysim_vm/demo.py:
;
;   port 0x2A0         a dword, "CALC"
;   memory 0xFEB00000  qwords: +0 operand A, +8 operand B, +16 their product (read only)
;   MSR 0x4B560000     how many products were read
;
; grand_tour.bin is this file, assembled; tests/pysim_vm/test_demo.py holds the two together:
;
;   python -m pysim_vm.demo --assemble

bits 16
org 0x7C00

COM1        equ 0x3F8           ; 16550A: transmit holding register
COM1_LSR    equ 0x3FD           ; line status register
LSR_THRE    equ 0x20            ; transmit holding register empty
PIC_COMMAND equ 0x20            ; 8259A
PIC_DATA    equ 0x21
PIT_COUNTER equ 0x40            ; 8254 counter 0
PIT_CONTROL equ 0x43
PM1A_CNT    equ 0x604           ; ACPI PM1a control register
SLEEP_S5    equ 0x2000          ; SLP_EN, sleep type 0
CALC_PORT   equ 0x2A0
CALC_BASE   equ 0xFEB00000
CALC_MSR    equ 0x4B560000
IA32_EFER   equ 0xC0000080

PML4        equ 0x10000         ; four page tables of 4 KiB
PDPT        equ 0x11000
PD_LOW      equ 0x12000         ; 0 to 1 GiB
PD_HIGH     equ 0x13000         ; 3 to 4 GiB
IDT         equ 0x14000
STACK_TOP   equ 0x7C00
TIMER       equ 0x20            ; vector of IRQ 0
PIT_DIVISOR equ 11932           ; 1,193,182 Hz / 11,932: 100 interrupts a second

; ---- real mode ------------------------------------------------------------------------------------------------

start:
        cli
        xor ax, ax
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov sp, STACK_TOP
        cld
        mov si, in_real_mode
        call print16

        lgdt [gdt_pointer]
        mov eax, cr0
        or al, 1                ; CR0.PE
        mov cr0, eax
        jmp dword 0x08:protected

print16:                        ; DS:SI: text that ends with a zero byte
        lodsb
        test al, al
        jz .done
        mov bl, al
        mov dx, COM1_LSR
.busy:
        in al, dx
        test al, LSR_THRE
        jz .busy
        mov dx, COM1
        mov al, bl
        out dx, al
        jmp print16
.done:
        ret

; ---- protected mode -------------------------------------------------------------------------------------------

bits 32
protected:
        mov ax, 0x10
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov esp, STACK_TOP
        mov esi, in_protected_mode
        call print32

        xor eax, eax            ; page tables and IDT: five pages of zeros
        mov edi, PML4
        mov ecx, 5 * 4096 / 4
        rep stosd
        mov dword [PML4], PDPT + 3              ; present, writable
        mov dword [PDPT], PD_LOW + 3
        mov dword [PDPT + 3 * 8], PD_HIGH + 3
        mov dword [PD_LOW], 0x83                ; 2 MiB page: the first 2 MiB onto themselves
        mov dword [PD_HIGH + (CALC_BASE >> 21 & 511) * 8], (CALC_BASE & 0xFFE00000) + 0x93  ; uncached

        mov eax, cr4
        or eax, 1 << 5          ; CR4.PAE
        mov cr4, eax
        mov eax, PML4
        mov cr3, eax
        mov ecx, IA32_EFER
        rdmsr
        or eax, 1 << 8          ; EFER.LME
        wrmsr
        mov eax, cr0
        or eax, 1 << 31         ; CR0.PG: from here on EFER.LMA is set
        mov cr0, eax
        jmp 0x18:long_mode

print32:                        ; ESI: text that ends with a zero byte
        lodsb
        test al, al
        jz .done
        mov bl, al
        mov edx, COM1_LSR
.busy:
        in al, dx
        test al, LSR_THRE
        jz .busy
        mov edx, COM1
        mov al, bl
        out dx, al
        jmp print32
.done:
        ret

; ---- long mode ------------------------------------------------------------------------------------------------

bits 64
long_mode:
        mov rsp, STACK_TOP
        mov rsi, in_long_mode
        call print

        ; The calculator, by port, by memory and by register.
        mov rsi, device_says
        call print
        mov edx, CALC_PORT
        in eax, dx
        mov [device_name], eax
        mov rsi, device_name
        call print
        mov rsi, six_times_seven
        call print
        mov rbx, CALC_BASE
        mov qword [rbx], 6
        mov qword [rbx + 8], 7
        mov rax, [rbx + 16]
        call print_number
        mov rsi, register_says
        call print
        mov ecx, CALC_MSR
        rdmsr
        call print_number
        mov rsi, new_line
        call print

        ; A timer interrupt: one gate, the 8259A, the 8254.
        mov rax, on_timer
        mov rdi, IDT + TIMER * 16
        mov [rdi], ax
        mov dword [rdi + 2], 0x18 + (0x8E00 << 16)      ; 64-bit code, present 64-bit interrupt gate
        shr rax, 16
        mov [rdi + 6], ax
        lidt [idt_pointer]
        mov al, 0x11            ; ICW1: edge triggered, cascaded, ICW4 follows
        out PIC_COMMAND, al
        mov al, TIMER           ; ICW2: first vector
        out PIC_DATA, al
        mov al, 4               ; ICW3: a slave on IR2
        out PIC_DATA, al
        mov al, 1               ; ICW4: 8086 mode
        out PIC_DATA, al
        mov al, 0xFE            ; all masked but IR0
        out PIC_DATA, al
        mov al, 0x34            ; counter 0, both bytes, mode 2: rate generator
        out PIT_CONTROL, al
        mov al, PIT_DIVISOR & 0xFF
        out PIT_COUNTER, al
        mov al, PIT_DIVISOR >> 8
        out PIT_COUNTER, al
        mov rsi, asleep
        call print
        sti
.sleep:
        hlt
        cmp dword [ticks], 3
        jb .sleep
        cli
        mov rsi, awake
        call print

        mov edx, PM1A_CNT
        mov eax, SLEEP_S5
        out dx, ax
.off:
        hlt                     ; never reached: the power is off
        jmp .off

on_timer:
        push rax
        push rbx
        push rdx
        push rsi
        mov rsi, tick
        call print
        inc dword [ticks]
        mov al, 0x20            ; OCW2: end of interrupt
        out PIC_COMMAND, al
        pop rsi
        pop rdx
        pop rbx
        pop rax
        iretq

print_number:                   ; RAX, in decimal
        mov rsi, digits_end
        mov rcx, 10
.digit:
        xor edx, edx
        div rcx
        add dl, '0'
        dec rsi
        mov [rsi], dl
        test rax, rax
        jnz .digit              ; falls through into print

print:                          ; RSI: text that ends with a zero byte
        lodsb
        test al, al
        jz .done
        mov bl, al
        mov edx, COM1_LSR
.busy:
        in al, dx
        test al, LSR_THRE
        jz .busy
        mov edx, COM1
        mov al, bl
        out dx, al
        jmp print
.done:
        ret

; ---- data -----------------------------------------------------------------------------------------------------

in_real_mode:      db "real mode       16 bits, a segment is an address divided by 16", 13, 10, 0
in_protected_mode: db "protected mode  32 bits, a segment is an entry of the GDT", 13, 10, 0
in_long_mode:      db "long mode       64 bits, an address goes through four page tables", 13, 10, 0
device_says:       db "your device     port 0x2a0 says ", 0
six_times_seven:   db ", memory 0xfeb00000 says 6 * 7 = ", 0
register_says:     db ", MSR 0x4b560000 says ", 0
asleep:            db "timer           HLT until the 8254 interrupts:", 0
tick:              db " tick", 0
awake:             db 13, 10, "power off       0x2000 to port 0x604", 13, 10, 0
new_line:          db 13, 10, 0
digits:            times 20 db 0
digits_end:        db 0
device_name:       dd 0
                   db 0
ticks:             dd 0

align 8
gdt:
        dq 0
        dq 0x00CF9A000000FFFF   ; 0x08: 32-bit code, base 0, 4 GiB
        dq 0x00CF92000000FFFF   ; 0x10: data, base 0, 4 GiB
        dq 0x00AF9A000000FFFF   ; 0x18: 64-bit code
gdt_pointer:
        dw gdt_pointer - gdt - 1
        dd gdt
idt_pointer:
        dw (TIMER + 1) * 16 - 1
        dq IDT
