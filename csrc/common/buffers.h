/* buffers.h - float buffers laid out one after the other in one block of memory. */
#ifndef BUFFERS_H
#define BUFFERS_H

#include "sizes.h"

/* n[0] + n[1] + ... floats; INT64_MAX if that overflows. */
static inline int64_t total_floats(const int64_t n[], int count)
{
    int64_t total = 0;
    for (int i = 0; i < count; i++) {
        total = size_plus(total, n[i]);
    }
    return total;
}

/* Point *buffer[i] to n[i] floats of memory, in order; returns the first float after them. */
static inline float *bind_buffers(float **buffer[], const int64_t n[], int count, float *memory)
{
    for (int i = 0; i < count; i++) {
        *buffer[i] = memory;
        memory += n[i];
    }
    return memory;
}

#endif
