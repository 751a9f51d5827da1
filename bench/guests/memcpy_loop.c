/* memcpy by a loop: byte by byte, as libraries do it that care for size. The result is the last word. */
#include <stddef.h>
#include <stdint.h>

__attribute__((noinline)) static void *copy(void *to, const void *from, size_t size)
{
    unsigned char *d = to;
    const unsigned char *s = from;
    while (size--)
        *d++ = *s++;
    return to;
}

uint64_t kernel(uint64_t size, const void *input, void *work)
{
    copy(work, input, size);
    return *(uint64_t *)((char *)work + size - 8);
}
