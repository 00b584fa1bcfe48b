/* parallel.h - OpenMP threads for a loop; without OpenMP the loop is serial.
 *
 *     PARALLEL_IF(work > MIN_PARALLEL_WORK)              one loop
 *     PARALLEL_NESTED_IF(2, work > MIN_PARALLEL_WORK)    two loops, one directly inside the other
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

/* Multiplications below which starting threads costs more time than it saves. */
#define MIN_PARALLEL_WORK 50000

#endif
