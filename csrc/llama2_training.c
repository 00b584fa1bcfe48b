/* llama2_training.c - see llama2_training.h. Read it beside training.py: forward and backward are
 * written side by side, block by block; the second is the first read from below.
 */
#ifndef LLAMA2_TRAINING_C
#define LLAMA2_TRAINING_C

#include "llama2_training.h"
#include "llama2.c"
#include "llama2_backward.c"

#include <string.h>

typedef struct {
    int64_t B, T, N, C, F, L, NH, NKV, hs, KV, V;
} sizes;

static sizes sizes_of(const llama2_config *config, int64_t B, int64_t T)
{
    const int64_t hs = config->dim / config->n_heads;
    const sizes n = {
        B, T, B * T, config->dim, config->hidden_dim, config->n_layers, config->n_heads,
        config->n_kv_heads, hs, config->n_kv_heads * hs, config->vocab_size,
    };
    return n;
}

/* The part of layer l of every array that has layers. */
static llama2_parameters parameters_of_layer(const llama2_parameters *params, int64_t l, sizes n)
{
    llama2_parameters p = *params;
    p.attention_norm += l * n.C;
    p.wq += l * n.C * n.C;
    p.wk += l * n.KV * n.C;
    p.wv += l * n.KV * n.C;
    p.wo += l * n.C * n.C;
    p.ffn_norm += l * n.C;
    p.w1 += l * n.F * n.C;
    p.w2 += l * n.C * n.F;
    p.w3 += l * n.F * n.C;
    return p;
}

static llama2_activations activations_of_layer(const llama2_activations *acts, int64_t l, sizes n)
{
    llama2_activations a = *acts;
    a.x += l * n.N * n.C;
    a.attention_in += l * n.N * n.C;
    a.q += l * n.N * n.C;
    a.k += l * n.N * n.KV;
    a.v += l * n.N * n.KV;
    a.att += l * n.B * n.NH * n.T * n.T;
    a.attention_out += l * n.N * n.C;
    a.middle += l * n.N * n.C;
    a.ffn_in += l * n.N * n.C;
    a.gate += l * n.N * n.F;
    a.up += l * n.N * n.F;
    a.hidden += l * n.N * n.F;
    return a;
}

/* ---- one layer ----------------------------------------------------------------------------- */

/* a, p: of this layer. a->x: (N, C)  ->  out: (N, C) */
static void block_forward(float *out, const llama2_activations *a, const llama2_parameters *p,
                          sizes n)
{
    llama2_rmsnorm(a->attention_in, a->x, p->attention_norm, n.N, n.C);
    llama2_matmul(a->q, a->attention_in, p->wq, n.N, n.C, n.C);
    llama2_matmul(a->k, a->attention_in, p->wk, n.N, n.C, n.KV);
    llama2_matmul(a->v, a->attention_in, p->wv, n.N, n.C, n.KV);
    llama2_rope(a->q, a->q, a->cos, a->sin, n.N, n.NH, n.hs);
    llama2_rope(a->k, a->k, a->cos, a->sin, n.N, n.NKV, n.hs);
    llama2_attention_forward(a->attention_out, a->att, a->q, a->k, a->v, NULL,
                             n.B, n.T, n.NH, n.NKV, n.hs);
    llama2_matmul(a->branch, a->attention_out, p->wo, n.N, n.C, n.C);
    llama2_residual(a->middle, a->x, a->branch, n.N, n.C);

    llama2_rmsnorm(a->ffn_in, a->middle, p->ffn_norm, n.N, n.C);
    llama2_matmul(a->gate, a->ffn_in, p->w1, n.N, n.C, n.F);
    llama2_matmul(a->up, a->ffn_in, p->w3, n.N, n.C, n.F);
    llama2_swiglu(a->hidden, a->gate, a->up, n.N, n.F);
    llama2_matmul(a->branch, a->hidden, p->w2, n.N, n.F, n.C);
    llama2_residual(out, a->middle, a->branch, n.N, n.C);
}

/* g: gradients of p. d->x: of the stream after this layer, then of the stream before it. */
static void block_backward(const llama2_parameters *g, const llama2_gradients *d,
                           const llama2_activations *a, const llama2_parameters *p, sizes n)
{
    llama2_matmul_backward(d->hidden, g->w2, d->x, a->hidden, p->w2, n.N, n.F, n.C);
    llama2_swiglu_backward(d->gate, d->up, d->hidden, a->gate, a->up, n.N * n.F);
    llama2_matmul_backward(d->normal, g->w1, d->gate, a->ffn_in, p->w1, n.N, n.C, n.F);
    llama2_matmul_backward(d->part, g->w3, d->up, a->ffn_in, p->w3, n.N, n.C, n.F);
    llama2_residual(d->normal, d->normal, d->part, n.N, n.C);
    llama2_rmsnorm_backward(d->part, g->ffn_norm, d->normal, a->middle, p->ffn_norm, n.N, n.C);
    llama2_residual(d->x, d->x, d->part, n.N, n.C);

    llama2_matmul_backward(d->normal, g->wo, d->x, a->attention_out, p->wo, n.N, n.C, n.C);
    llama2_attention_backward(d->q, d->k, d->v, d->att, d->normal, a->q, a->k, a->v, a->att, NULL,
                              n.B, n.T, n.NH, n.NKV, n.hs);
    llama2_rope_backward(d->q, d->q, a->cos, a->sin, n.N, n.NH, n.hs);
    llama2_rope_backward(d->k, d->k, a->cos, a->sin, n.N, n.NKV, n.hs);
    llama2_matmul_backward(d->normal, g->wq, d->q, a->attention_in, p->wq, n.N, n.C, n.C);
    llama2_matmul_backward(d->part, g->wk, d->k, a->attention_in, p->wk, n.N, n.C, n.KV);
    llama2_residual(d->normal, d->normal, d->part, n.N, n.C);
    llama2_matmul_backward(d->part, g->wv, d->v, a->attention_in, p->wv, n.N, n.C, n.KV);
    llama2_residual(d->normal, d->normal, d->part, n.N, n.C);
    llama2_rmsnorm_backward(d->part, g->attention_norm, d->normal, a->x, p->attention_norm,
                            n.N, n.C);
    llama2_residual(d->x, d->x, d->part, n.N, n.C);
}

/* ---- the model ----------------------------------------------------------------------------- */

void llama2_training_forward(llama2_activations *acts, const llama2_config *config,
                             const llama2_parameters *params, const int32_t *tokens,
                             const int32_t *targets, int64_t B, int64_t T)
{
    const sizes n = sizes_of(config, B, T);
    const int64_t table = T * (n.hs / 2);

    for (int64_t b = 0; b < B; b++) {  /* every sequence begins at position 0 */
        llama2_rope_tables(acts->cos + b * table, acts->sin + b * table, T, n.hs);
    }
    llama2_embedding(acts->x, tokens, params->token_embedding, n.N, n.C);
    for (int64_t l = 0; l < n.L; l++) {
        const llama2_parameters p = parameters_of_layer(params, l, n);
        const llama2_activations a = activations_of_layer(acts, l, n);
        block_forward(a.x + n.N * n.C, &a, &p, n);
    }
    llama2_rmsnorm(acts->final, acts->x + n.L * n.N * n.C, params->final_norm, n.N, n.C);
    llama2_matmul(acts->logits, acts->final, params->token_embedding, n.N, n.C, n.V);
    llama2_crossentropy_forward(acts->losses, acts->probs, acts->logits, targets, n.N, n.V);
}

void llama2_training_backward(llama2_parameters *grads, llama2_gradients *scratch,
                              const llama2_activations *acts, const llama2_config *config,
                              const llama2_parameters *params, const int32_t *tokens,
                              const int32_t *targets, float dloss, int64_t B, int64_t T)
{
    const sizes n = sizes_of(config, B, T);
    const llama2_gradients *d = scratch;

    for (int64_t i = 0; i < n.N; i++) {
        d->losses[i] = dloss;
    }
    llama2_crossentropy_backward(d->logits, d->losses, acts->probs, targets, n.N, n.V);
    llama2_matmul_backward(d->normal, grads->token_embedding,
                           d->logits, acts->final, params->token_embedding, n.N, n.C, n.V);
    llama2_rmsnorm_backward(d->x, grads->final_norm,
                            d->normal, acts->x + n.L * n.N * n.C, params->final_norm, n.N, n.C);
    for (int64_t l = n.L - 1; l >= 0; l--) {
        const llama2_parameters p = parameters_of_layer(params, l, n);
        const llama2_parameters g = parameters_of_layer(grads, l, n);
        const llama2_activations a = activations_of_layer(acts, l, n);
        block_backward(&g, d, &a, &p, n);
    }
    llama2_embedding_backward(grads->token_embedding, d->x, tokens, n.N, n.C);
}

int32_t llama2_training_abi(void)
{
    return 1;
}

#endif
