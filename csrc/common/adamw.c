/* adamw.c - see adamw.h. Names and order are those of pyllm2/training/ops.py. */
#ifndef ADAMW_C
#define ADAMW_C

#include "adamw.h"
#include "abi.h"
#include "parallel.h"

#include <math.h>

/* g = scale * dw          m = beta1 m + (1 - beta1) g          v = beta2 v + (1 - beta2) g^2
 * w = w - lr * ( (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay * w ) */
void adamw_update(float *w, const float *dw, float *m, float *v, int64_t n, int64_t t, float lr,
                  float beta1, float beta2, float eps, float weight_decay, float scale)
{
    const float correction1 = 1.0f - powf(beta1, (float)t);
    const float correction2 = 1.0f - powf(beta2, (float)t);
    PARALLEL_IF(n > MIN_PARALLEL_WORK)
    for (int64_t i = 0; i < n; i++) {
        const float g = scale * dw[i];
        m[i] = beta1 * m[i] + (1.0f - beta1) * g;
        v[i] = beta2 * v[i] + (1.0f - beta2) * g * g;
        const float m_hat = m[i] / correction1;
        const float v_hat = v[i] / correction2;
        w[i] -= lr * (m_hat / (sqrtf(v_hat) + eps) + weight_decay * w[i]);
    }
}

double adamw_global_norm(const float *dw, int64_t n)
{
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++) {
        sum += (double)dw[i] * (double)dw[i];
    }
    return sqrt(sum);
}

int64_t adamw_abi(void)
{
    return PYLLM2_ABI;
}

#endif
