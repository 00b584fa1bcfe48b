/* exponential.h - exp of a float, so that a loop over it becomes vectors.
 *
 * Only where VECTOR_EXP is defined, as for the library's fast build, and the processor has fused
 * multiply-add. Everywhere else it is expf.
 */
#ifndef EXPONENTIAL_H
#define EXPONENTIAL_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(VECTOR_EXP) && defined(__FP_FAST_FMAF)

/* e^x within 3 ulp: x = n ln 2 + r, a polynomial in r, and n added to the exponent.
 * Below -87.33, where results are no normal numbers, it is 0; above 88.72, just below where they
 * exceed float, infinity; NaN stays NaN.
 * fmaf is a promise to the optimiser too: it keeps the two parts of ln 2 apart. */
static inline float exponential(float x)
{
    const float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;  /* the first exact in 9 bits */
    const float bounded = x > -87.33f ? (x < 88.72f ? x : 88.72f) : -87.33f;
    const float n = rintf(bounded * 1.44269504f);
    const float r = fmaf(n, -ln2_low, fmaf(n, -ln2_high, bounded));
    float y = 1.0f / 720.0f;
    y = fmaf(y, r, 1.0f / 120.0f);
    y = fmaf(y, r, 1.0f / 24.0f);
    y = fmaf(y, r, 1.0f / 6.0f);
    y = fmaf(y, r, 0.5f);
    y = fmaf(y, r, 1.0f);
    y = fmaf(y, r, 1.0f);
    int32_t bits;
    memcpy(&bits, &y, sizeof bits);
    bits += (int32_t)n * (1 << 23);
    memcpy(&y, &bits, sizeof y);
    y = x < -87.33f ? 0.0f : y;
    y = x > 88.72f ? INFINITY : y;
    return x == x ? y : x;
}

#else

static inline float exponential(float x)
{
    return expf(x);
}

#endif

/* The largest of n > 0 numbers; NaN counts only where it comes first. Sixteen at a time: comparing
 * with one number only, each comparison would wait for the one before. */
static inline float largest_of(const float *x, int64_t n)
{
    enum { LANES = 16 };
    float lanes[LANES];
    for (int64_t i = 0; i < LANES; i++) {
        lanes[i] = x[0];
    }
    const int64_t whole = n / LANES * LANES;
    for (int64_t i = 0; i < whole; i += LANES) {
        for (int64_t j = 0; j < LANES; j++) {
            lanes[j] = x[i + j] > lanes[j] ? x[i + j] : lanes[j];
        }
    }
    float largest = lanes[0];
    for (int64_t i = 1; i < LANES; i++) {
        largest = lanes[i] > largest ? lanes[i] : largest;
    }
    for (int64_t i = whole; i < n; i++) {
        largest = x[i] > largest ? x[i] : largest;
    }
    return largest;
}

#endif
