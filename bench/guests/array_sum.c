/* Array sum: `passes` times the sum of 4096 64-bit numbers; the total is rotated between the passes. */
#include <stdint.h>

enum { NUMBERS = 4096 };

uint64_t kernel(uint64_t passes, const uint64_t *numbers)
{
    uint64_t total = 0;
    for (uint64_t pass = 0; pass < passes; pass++) {
        for (int i = 0; i < NUMBERS; i++)
            total += numbers[i];
        total = total << 1 | total >> 63;
    }
    return total;
}
