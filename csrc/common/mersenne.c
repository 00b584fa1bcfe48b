/* mersenne.c - the Mersenne Twister MT19937 (Matsumoto & Nishimura 1998): words, floats, normal
 * variates and permutations, in the arrangement of PyTorch's CPU generator.
 *
 * A trainer shuffles its data and draws the initial weights with it.
 */
#ifndef MERSENNE_C
#define MERSENNE_C

#include <math.h>
#include <stdint.h>

enum { MERSENNE_WORDS = 624, MERSENNE_SHIFT = 397, NORMAL_BLOCK = 16 };

typedef struct {
    uint32_t word[MERSENNE_WORDS];
    int32_t next;  /* index of the next word; MERSENNE_WORDS: refill first */
} mersenne;

void mersenne_seed(mersenne *state, uint32_t seed)
{
    uint32_t *word = state->word;
    word[0] = seed;
    for (uint32_t j = 1; j < MERSENNE_WORDS; j++) {
        word[j] = UINT32_C(1812433253) * (word[j - 1] ^ (word[j - 1] >> 30)) + j;
    }
    state->next = MERSENNE_WORDS;
}

/* The next 624 words in place: word j from words j, j + 1 and j + 397, modulo 624. */
static void mersenne_refill(mersenne *state)
{
    uint32_t *word = state->word;
    for (int32_t j = 0; j < MERSENNE_WORDS; j++) {
        const uint32_t after = word[(j + 1) % MERSENNE_WORDS];
        const uint32_t joined = (word[j] & UINT32_C(0x80000000)) | (after & UINT32_C(0x7FFFFFFF));
        word[j] = word[(j + MERSENNE_SHIFT) % MERSENNE_WORDS] ^ (joined >> 1)
                ^ (after & 1 ? UINT32_C(0x9908B0DF) : 0);
    }
    state->next = 0;
}

uint32_t mersenne_u32(mersenne *state)
{
    if (state->next >= MERSENNE_WORDS) {
        mersenne_refill(state);
    }
    uint32_t y = state->word[state->next++];
    y ^= y >> 11;
    y ^= (y << 7) & UINT32_C(0x9D2C5680);
    y ^= (y << 15) & UINT32_C(0xEFC60000);
    return y ^ (y >> 18);
}

/* Two words; the first is the high half. */
uint64_t mersenne_u64(mersenne *state)
{
    const uint64_t high = mersenne_u32(state);
    return high << 32 | mersenne_u32(state);
}

/* Uniform in [0, 1), from the low 24 bits of a word. */
float mersenne_f32(mersenne *state)
{
    return (float)(mersenne_u32(state) & 0xFFFFFF) / 16777216.0f;
}

/* Uniform in [0, 1), from the low 53 bits of two words. */
double mersenne_f64(mersenne *state)
{
    return (double)(mersenne_u64(state) & UINT64_C(0x1FFFFFFFFFFFFF)) / 9007199254740992.0;
}

/* ---- normal variates: Box & Muller (1958), two uniforms to two normals ---------------------- */

static const double TWO_PI = 6.28318530717958647692;

/* 1e-12 keeps the logarithm finite for 1 - u = 0. */
static float normal_radius(float one_minus_u)
{
    return sqrtf(-2.0f * logf(one_minus_u + 1e-12f));
}

/* 16 uniforms to 16 normals in place: the first half gives the radii, the second the angles. */
static void normal_block(float *x, float mean, float std)
{
    enum { HALF = NORMAL_BLOCK / 2 };
    for (int t = 0; t < HALF; t++) {
        const float radius = normal_radius(1.0f - x[t]);
        const float angle = (float)(TWO_PI * (double)x[t + HALF]);
        x[t] = radius * cosf(angle) * std + mean;
        x[t + HALF] = radius * sinf(angle) * std + mean;
    }
}

/* n < 16: pairs from double uniforms. An odd n drops the second normal of the last pair. */
static void normal_pairs(float *out, int64_t n, float mean, float std, mersenne *state)
{
    for (int64_t i = 0; i < n; i += 2) {
        const float u1 = (float)mersenne_f64(state), u2 = (float)mersenne_f64(state);
        const float radius = normal_radius(1.0f - u2);
        const float angle = (float)(TWO_PI * (double)u1);
        out[i] = radius * cosf(angle) * std + mean;
        if (i + 1 < n) {  /* the second is scaled in double, as in PyTorch */
            const double z = radius * sinf(angle);
            out[i + 1] = (float)(z * (double)std + (double)mean);
        }
    }
}

/* n draws of N(mean, std). The values depend on n: one call is not two calls for its halves. */
void mersenne_normals(float *out, int64_t n, float mean, float std, mersenne *state)
{
    if (n < NORMAL_BLOCK) {
        normal_pairs(out, n, mean, std, state);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        out[i] = mersenne_f32(state);
    }
    for (int64_t i = 0; i + NORMAL_BLOCK <= n; i += NORMAL_BLOCK) {
        normal_block(out + i, mean, std);
    }
    if (n % NORMAL_BLOCK != 0) {  /* redraw the last 16 values, some of them a second time */
        float *last = out + n - NORMAL_BLOCK;
        for (int t = 0; t < NORMAL_BLOCK; t++) {
            last[t] = mersenne_f32(state);
        }
        normal_block(last, mean, std);
    }
}

/* ---- permutations ------------------------------------------------------------------------ */

/* Shuffle in place (Fisher & Yates), from the last item down. The modulo favours small indices
 * slightly, as in the original. */
void mersenne_shuffle(int32_t *items, int64_t n, mersenne *state)
{
    for (int64_t i = n - 1; i > 0; i--) {
        const int64_t j = mersenne_u32(state) % (uint32_t)(i + 1);
        const int32_t kept = items[i];
        items[i] = items[j];
        items[j] = kept;
    }
}

#endif
