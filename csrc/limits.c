/* limits.c - how fast this machine reads memory, the limit of decoding. Used by `pyllm2 bench`. */
#include <stdint.h>

#ifdef _OPENMP
#include <omp.h>
#endif

/* One thread's share: the sum of n floats read in `streams` far places at once, a line of 16 at a
 * time from each. The processor fetches ahead better in several streams than in one. */
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

/* Read n floats with all threads; the sum, so that no compiler can leave the reading out. */
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

int32_t limits_abi(void)
{
    return 2;
}
