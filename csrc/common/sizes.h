/* sizes.h - products and sums of non-negative sizes that saturate at INT64_MAX. */
#ifndef SIZES_H
#define SIZES_H

#include <stdint.h>

static inline int64_t size_times(int64_t a, int64_t b)
{
    return b != 0 && a > INT64_MAX / b ? INT64_MAX : a * b;
}

static inline int64_t size_plus(int64_t a, int64_t b)
{
    return a > INT64_MAX - b ? INT64_MAX : a + b;
}

#endif
