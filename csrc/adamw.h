/* adamw.h - the optimizer of the training half: AdamW, and the norm that clipping needs.
 *
 * Arrays are flat and float32; arguments stand in the order of pyllm2/training/ops.py. Nothing here
 * allocates, prints or exits; pointers and sizes are trusted.
 */
#ifndef ADAMW_H
#define ADAMW_H

#include <stdint.h>

/* One step of AdamW on n parameters. w, m and v are changed in place; m and v are zero before the
 * first step; t = 1, 2, 3 ...; scale multiplies the gradient first (1: as it is). */
void adamw_update(float *w, const float *dw, float *m, float *v, int64_t n, int64_t t, float lr,
                  float beta1, float beta2, float eps, float weight_decay, float scale);

/* sqrt(sum of dw^2), summed in double. */
double adamw_global_norm(const float *dw, int64_t n);

/* Changes whenever a prototype above does. */
int32_t adamw_abi(void);

#endif
