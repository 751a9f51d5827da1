/* Sieve of Eratosthenes over one byte a number. The result is the number of primes below the limit. */
#include <stdint.h>

uint64_t kernel(uint64_t limit, const void *input, uint8_t *composite)
{
    (void)input;
    for (uint64_t i = 0; i < limit; i++)
        composite[i] = 0;
    uint64_t primes = 0;
    for (uint64_t i = 2; i < limit; i++) {
        if (composite[i])
            continue;
        primes++;
        for (uint64_t j = i * i; j < limit; j += i)
            composite[j] = 1;
    }
    return primes;
}
