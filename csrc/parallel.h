/* parallel.h - threads for a loop, where the compiler has OpenMP; nothing where it has not.
 *
 *     PARALLEL_IF(work > WORTH_THREADS)                one loop
 *     PARALLEL_NESTED_IF(2, work > WORTH_THREADS)      two loops, one directly in the other
 *
 * Only for loops whose iterations write to different places: no sum is ever split between threads,
 * so their number changes no bit.
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

/* Below this many multiplications waking other threads costs more than it gives. */
#define WORTH_THREADS 50000

#endif
