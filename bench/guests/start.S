/* The first instructions of every kernel, and its last one.
 *
 * In:  RDI, RSI, RDX: the kernel's arguments (size, input, work area); RCX: the result that it has to have;
 *      RSP: a stack, aligned to 16.
 * Out: HLT with the result in RAX if it is the one in RCX; UD2 if it is not.
 */
        .globl  start
        .section .text.start, "ax"
start:  push    %rcx
        sub     $8, %rsp
        call    kernel
        add     $8, %rsp
        pop     %rcx
        cmp     %rcx, %rax
        jne     wrong
        hlt
wrong:  ud2
