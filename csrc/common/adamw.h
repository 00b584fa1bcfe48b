/* adamw.h - the AdamW optimizer, and the gradient norm for clipping.
 *
 * Arrays are flat and float32; arguments are in the order of pyllm2/training/ops.py. The functions
 * do not allocate, print or exit. They trust pointers and sizes.
 */
#ifndef ADAMW_H
#define ADAMW_H

#include <stdint.h>

/* One AdamW step on n parameters, in place on w, m and v; m and v are zero before the first step.
 * t = 1, 2, 3 ... is the number of the step; scale multiplies the gradient first. */
void adamw_update(float *w, const float *dw, float *m, float *v, int64_t n, int64_t t, float lr,
                  float beta1, float beta2, float eps, float weight_decay, float scale);

/* sqrt(sum of dw^2), accumulated in double. */
double adamw_global_norm(const float *dw, int64_t n);

/* The hash of the header that this library was built from. */
int64_t adamw_abi(void);

#endif
