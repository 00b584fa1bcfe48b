/* limits.c - memory read bandwidth, the limit of decoding speed; for `pyllm2 bench`. */
#include "common/abi.h"

#include <stdint.h>

#ifdef _OPENMP
#include <omp.h>
#endif

/* One thread's share: the sum of n floats, read as `streams` distant streams, one cache line of 16
 * floats from each in turn. Hardware prefetches several streams better than one. */
static float read_share(const float *data, int64_t n, int64_t streams)
{
    const int64_t length = n / streams / 16 * 16;
    float sums[16] = {0};
    for (int64_t i = 0; i < length; i += 16) {
        for (int64_t s = 0; s < streams; s++) {
            const float *line = data + s * length + i;
#ifdef __GNUC__
            __builtin_prefetch(line + 192);
#endif
            for (int64_t k = 0; k < 16; k++) {
                sums[k] += line[k];
            }
        }
    }
    float total = 0.0f;
    for (int64_t k = 0; k < 16; k++) {
        total += sums[k];
    }
    return total;
}

/* Read n floats with all threads. Returns their sum, so that the loads are not optimised away. */
float limits_read(const float *data, int64_t n, int64_t streams)
{
    float total = 0.0f;
#ifdef _OPENMP
#pragma omp parallel reduction(+ : total)
    {
        const int64_t tid = omp_get_thread_num(), nt = omp_get_num_threads();
        total += read_share(data + n / nt * tid, n / nt, streams);
    }
#else
    total = read_share(data, n, streams);
#endif
    return total;
}

int64_t limits_abi(void)
{
    return PYLLM2_ABI;
}
