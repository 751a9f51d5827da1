/* CRC-32 (IEEE 802.3) by table, one byte at a time; the table is made first, in the work area. */
#include <stdint.h>

uint64_t kernel(uint64_t size, const uint8_t *input, uint32_t *table)
{
    for (uint32_t n = 0; n < 256; n++) {
        uint32_t c = n;
        for (int bit = 0; bit < 8; bit++)
            c = c & 1 ? 0xEDB88320 ^ c >> 1 : c >> 1;
        table[n] = c;
    }
    uint32_t crc = 0xFFFFFFFF;
    for (uint64_t i = 0; i < size; i++)
        crc = table[(crc ^ input[i]) & 0xFF] ^ crc >> 8;
    return crc ^ 0xFFFFFFFF;
}
