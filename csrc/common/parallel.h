/* parallel.h - OpenMP threads for a loop; without OpenMP the loop is serial.
 *
 *     PARALLEL_IF(work > MIN_PARALLEL_WORK)              one loop
 *     PARALLEL_NESTED_IF(2, work > MIN_PARALLEL_WORK)    two loops, one directly inside the other
 *     PARALLEL_FOR(i, n, work > MIN_PARALLEL_WORK, statement)      i from 0 to n - 1
 *
 * The last one enters no parallel region where there is little work. A region that `if` makes
 * serial costs 0.3 microseconds, and a small model has fifty of them per token.
 *
 * Only for loops whose iterations write to disjoint memory. No sum is split between threads, so
 * the number of threads does not change the result.
 */
#ifndef PARALLEL_H
#define PARALLEL_H

#ifdef _OPENMP
#define PARALLEL_TEXT(x) #x
#define PARALLEL_IF(enough_work) _Pragma(PARALLEL_TEXT(omp parallel for if (enough_work)))
#define PARALLEL_NESTED_IF(loops, enough_work) \
    _Pragma(PARALLEL_TEXT(omp parallel for collapse(loops) if (enough_work)))
#else
#define PARALLEL_IF(enough_work)
#define PARALLEL_NESTED_IF(loops, enough_work)
#endif

#define PARALLEL_FOR(i, n, enough_work, statement)          \
    if (enough_work) {                                      \
        PARALLEL_IF(1)                                      \
        for (int64_t i = 0; i < (n); i++) { statement; }    \
    } else {                                                \
        for (int64_t i = 0; i < (n); i++) { statement; }    \
    }

/* Multiplications below which starting threads costs more time than it saves. */
#define MIN_PARALLEL_WORK 50000

#endif
