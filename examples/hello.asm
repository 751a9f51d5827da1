; A guest for flat.toml and board.toml: greets on COM1 and ends the run through the debug-exit port.
; hello.bin is this text assembled with bits=16 and origin=0x8000 (docs/assembler.md).

        xor ax, ax
        mov ds, ax
        mov si, message
        cld
next:   lodsb
        test al, al
        jz done
        mov dx, 0x3f8           ; COM1, transmit register
        out dx, al
        jmp next
done:   mov al, 16
        out 0xf4, al            ; the run ends with exit code 2 * 16 + 1
        hlt
message: db "Hello from a configured machine", 10, 0
