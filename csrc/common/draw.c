/* draw.c - random numbers of sampling (xorshift64*), and a draw from a distribution. */
#ifndef DRAW_C
#define DRAW_C

#include <stdint.h>

/* The next xorshift64* number: the upper 24 of its upper 32 bits, as a float in [0, 1). */
static float next_coin(uint64_t *random)
{
    *random ^= *random >> 12;
    *random ^= *random << 25;
    *random ^= *random >> 27;
    const uint32_t word = (uint32_t)((*random * UINT64_C(0x2545F4914F6CDD1D)) >> 32);
    return (float)(word >> 8) / 16777216.0f;
}

/* The first id whose cumulative probability exceeds the coin; the last id if none does (NaN). */
static int32_t multinomial(const float *p, int32_t V, float coin)
{
    float sum = 0.0f;
    for (int32_t i = 0; i < V; i++) {
        sum += p[i];
        if (coin < sum) {
            return i;
        }
    }
    return V - 1;
}

#endif
