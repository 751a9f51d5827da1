/* Matrix multiply in SSE2 doubles: C = A * B, `size` by `size`. C goes to the work area, row by row; the result
 * is the exclusive or of its bit patterns, each rotated by one against the one before. */
#include <stdint.h>

uint64_t kernel(uint64_t size, const double *a, double *c)
{
    const double *b = a + size * size;
    for (uint64_t i = 0; i < size; i++)
        for (uint64_t j = 0; j < size; j++) {
            double sum = 0;
            for (uint64_t k = 0; k < size; k++)
                sum += a[i * size + k] * b[k * size + j];
            c[i * size + j] = sum;
        }
    uint64_t check = 0;
    for (uint64_t i = 0; i < size * size; i++) {
        uint64_t bits;
        __builtin_memcpy(&bits, c + i, sizeof bits);
        check = (check << 1 | check >> 63) ^ bits;
    }
    return check;
}
