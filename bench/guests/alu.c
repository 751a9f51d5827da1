/* ALU loop: shifts, rotates, multiply, add and exclusive or on three registers; no memory at all. */
#include <stdint.h>

uint64_t kernel(uint64_t rounds)
{
    uint64_t a = 0x9E3779B97F4A7C15, b = 0xBF58476D1CE4E5B9, c = 1;
    for (uint64_t i = 0; i < rounds; i++) {
        a ^= a << 13;
        a ^= a >> 7;
        a ^= a << 17;
        b = (b << 31 | b >> 33) + a;
        c = c * 0x94D049BB133111EB + (b & 0xFFFF);
    }
    return a ^ b ^ c;
}
