/* Quicksort of 32-bit numbers in place: Hoare's partition, the smaller part by recursion.
 * The result is the sum of value times place, which tells the order. */
#include <stdint.h>

static void sort(uint32_t *low, uint32_t *high)
{
    while (low < high) {
        uint32_t pivot = low[(high - low) >> 1];
        uint32_t *i = low - 1, *j = high + 1;
        for (;;) {
            do
                i++;
            while (*i < pivot);
            do
                j--;
            while (*j > pivot);
            if (i >= j)
                break;
            uint32_t kept = *i;
            *i = *j;
            *j = kept;
        }
        if (j - low < high - j) {
            sort(low, j);
            low = j + 1;
        } else {
            sort(j + 1, high);
            high = j;
        }
    }
}

uint64_t kernel(uint64_t count, uint32_t *numbers)
{
    sort(numbers, numbers + count - 1);
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++)
        sum += numbers[i] * (i + 1);
    return sum;
}
