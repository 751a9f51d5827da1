; A guest for sweep.toml: throws three dice with RDRAND, prints them on COM1 and switches the machine off.

        mov cx, 3
throw:  rdrand eax              ; from the seed of the machine
        jnc throw
        xor edx, edx
        mov ebx, 6
        div ebx
        mov al, dl
        add al, '1'
        mov dx, 0x3f8           ; COM1, transmit register
        out dx, al
        loop throw
        mov al, 10
        out dx, al
        mov dx, 0x604           ; ACPI power management control
        mov ax, 0x2000
        out dx, ax
