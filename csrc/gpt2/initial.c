/* initial.c - an untrained model: a shape of the GPT-2 family with random weights. */
#ifndef GPT2_INITIAL_C
#define GPT2_INITIAL_C

#include "checkpoint.c"
#include "../common/mersenne.c"

/* Shapes by depth; all have 1024 positions and the vocabulary of GPT-2. */
static const struct {
    int32_t num_layers, num_heads, channels;
} GPT2_SHAPES[] = {
    {6, 6, 384}, {12, 12, 768}, {24, 16, 1024}, {36, 20, 1280},
    {48, 25, 1600}, {60, 30, 1920}, {72, 30, 2880}, {84, 36, 3456},
};

/* The shape named "d12" for 12 layers, and so on. Returns 0 for any other name. */
static int find_shape(const char *name, gpt2_config *config)
{
    for (size_t i = 0; i < sizeof GPT2_SHAPES / sizeof GPT2_SHAPES[0]; i++) {
        char shape_name[16];
        snprintf(shape_name, sizeof shape_name, "d%d", GPT2_SHAPES[i].num_layers);
        if (strcmp(name, shape_name) == 0) {
            *config = (gpt2_config){1024, 50257, GPT2_SHAPES[i].num_layers,
                                    GPT2_SHAPES[i].num_heads, GPT2_SHAPES[i].channels, 50304};
            return 1;
        }
    }
    return 0;
}

static void ones(float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        x[i] = 1.0f;
    }
}

/* Draw the matrices in the order of PyTorch's modules, one call per matrix. Layernorm weights are
 * 1, biases 0. The std of matrices that write to the residual stream is divided by sqrt(2 L). */
static void draw_parameters(const gpt2_parameters *p, const gpt2_config *config)
{
    const int64_t L = config->num_layers, C = config->channels;
    const float std = 0.02f, residual_std = std * (1.0f / sqrtf(2.0f * (float)L));
    mersenne random;
    mersenne_seed(&random, 42);
    mersenne_normals(p->wte, config->vocab_size * C, 0.0f, std, &random);
    mersenne_normals(p->wpe, config->max_seq_len * C, 0.0f, std, &random);
    for (int64_t l = 0; l < L; l++) {
        mersenne_normals(p->qkvw + l * 3 * C * C, 3 * C * C, 0.0f, std, &random);
        mersenne_normals(p->attprojw + l * C * C, C * C, 0.0f, residual_std, &random);
        mersenne_normals(p->fcw + l * 4 * C * C, 4 * C * C, 0.0f, std, &random);
        mersenne_normals(p->fcprojw + l * 4 * C * C, 4 * C * C, 0.0f, residual_std, &random);
    }
    ones(p->ln1w, L * C);
    ones(p->ln2w, L * C);
    ones(p->lnfw, C);
}

static gpt2_checkpoint random_gpt2(const gpt2_config *config)
{
    gpt2_checkpoint model = {.config = *config, .n = gpt2_parameter_floats(config)};
    model.floats = allocate_zeros(model.n, "the model");
    gpt2_parameters_bind(&model.params, config, model.floats);
    draw_parameters(&model.params, config);
    return model;
}

#endif
