/* train_gpt2.c - train a GPT-2 on token shards, and print samples during training.
 *
 *   cc -O3 csrc/train_gpt2.c -lm -o train_gpt2
 *   ./train_gpt2
 *
 * Add -fopenmp for threads, -O2 -ffp-contract=off for the reference bits.
 * The log goes to stdout, everything else to stderr; every error is one line and exit code 1.
 *
 * Its parts: gpt2/training.c (both passes), common/adamw.c (the optimizer), gpt2/loader.c
 * (batches), gpt2/checkpoint.c, gpt2/initial.c (an untrained model), gpt2/vocabulary.c.
 */
#define PROGRAM "train_gpt2"
#include "common/reader.c"
#include "common/adamw.c"
#include "common/draw.c"
#include "gpt2/checkpoint.c"
#include "gpt2/initial.c"
#include "gpt2/loader.c"
#include "gpt2/training.c"
#include "gpt2/vocabulary.c"

#include <time.h>

enum { VALIDATE_EVERY = 10, VALIDATION_BATCHES = 5, SAMPLE_EVERY = 20, SAMPLER_SEED = 1337 };

/* ---- the trainer: model, optimizer and data ------------------------------------------------ */

typedef struct {
    gpt2_checkpoint model;
    gpt2_vocabulary vocab;
    loader train, validation;
    int64_t B, T;
    float learning_rate;
    float *grad, *m, *v;           /* (n,) each: gradient and moments of the parameters */
    gpt2_parameters grads;         /* tensors in grad */
    int64_t n_acts;
    float *act, *dact;             /* (n_acts,) each: activations and their gradients */
    gpt2_activations acts, dacts;  /* tensors in act and dact */
    int32_t *sampled;              /* (T,) generated tokens */
    uint64_t random;               /* state of xorshift64* for sampling */
} trainer;

static void allocate_buffers(trainer *t)
{
    const gpt2_config *config = &t->model.config;
    t->grad = allocate_zeros(t->model.n, "the gradient");
    t->m = allocate_zeros(t->model.n, "the optimizer");
    t->v = allocate_zeros(t->model.n, "the optimizer");
    gpt2_parameters_bind(&t->grads, config, t->grad);
    t->n_acts = gpt2_activation_floats(config, t->B, t->T);
    t->act = allocate(t->n_acts, sizeof(float), "a batch of activations (see -b, -t)");
    t->dact = allocate(t->n_acts, sizeof(float), "their gradient (see -b, -t)");
    gpt2_activations_bind(&t->dacts, config, t->dact, t->B, t->T);
    t->sampled = allocate(t->T, sizeof(int32_t), "a text");
}

/* The mean loss over the batch in a loader; leaves its activations in t->acts. */
static float forward(trainer *t, const loader *from)
{
    const int32_t *inputs = from->tokens, *targets = from->tokens + 1;
    gpt2_activations_bind(&t->acts, &t->model.config, t->act, t->B, t->T);
    gpt2_forward(&t->acts, &t->model.config, &t->model.params, inputs, targets, t->B, t->T);
    return gpt2_mean_loss(t->acts.losses, t->B * t->T);
}

/* The mean loss over the first VALIDATION_BATCHES batches, the same ones each time. */
static float validate(trainer *t)
{
    float sum = 0.0f;
    loader_reset(&t->validation);
    for (int i = 0; i < VALIDATION_BATCHES; i++) {
        loader_next(&t->validation);
        sum += forward(t, &t->validation);
    }
    return sum / (float)VALIDATION_BATCHES;
}

/* One update of all parameters. Returns the mean loss before it. step = 0, 1, 2, ... */
static float train_step(trainer *t, int64_t step)
{
    const float beta1 = 0.9f, beta2 = 0.999f, eps = 1e-8f, weight_decay = 0.0f;
    const float dloss = 1.0f / (float)(t->B * t->T);
    loader_next(&t->train);
    const float loss = forward(t, &t->train);
    memset(t->grad, 0, (size_t)t->model.n * sizeof(float));
    memset(t->dact, 0, (size_t)t->n_acts * sizeof(float));
    gpt2_backward(&t->grads, &t->dacts, &t->acts, &t->model.config, &t->model.params,
                  t->train.tokens, t->train.tokens + 1, dloss, t->B, t->T);
    adamw_update(t->model.floats, t->grad, t->m, t->v, t->model.n, step + 1, t->learning_rate,
                 beta1, beta2, eps, weight_decay, 1.0f);
    return loss;
}

/* Print T-1 tokens, each drawn after a forward pass over those before it, the first of which is
 * end-of-text. The original computes all (B, T) positions each time; neither other rows nor later
 * positions affect this one, so the bits are the same. */
static void print_sample(trainer *t)
{
    const gpt2_config *config = &t->model.config;
    const int32_t V = config->vocab_size;
    t->sampled[0] = t->vocab.end_of_text;
    for (int64_t n = 1; n < t->T; n++) {
        gpt2_activations_bind(&t->acts, config, t->act, 1, n);
        gpt2_forward(&t->acts, config, &t->model.params, t->sampled, NULL, 1, n);
        const float *probs = t->acts.probs + (n - 1) * config->padded_vocab_size;
        t->sampled[n] = multinomial(probs, V, next_coin(&t->random));
        print_token(&t->vocab, t->sampled[n]);
        fflush(stdout);
    }
}

/* ---- the log ------------------------------------------------------------------------------- */

static void print_model(const trainer *t)
{
    const gpt2_config *c = &t->model.config;
    const int64_t batch = t->B * t->T;
    printf("[GPT-2]\n");
    printf("max_seq_len: %d\n", c->max_seq_len);
    printf("vocab_size: %d\n", c->vocab_size);
    printf("padded_vocab_size: %d\n", c->padded_vocab_size);
    printf("num_layers: %d\n", c->num_layers);
    printf("num_heads: %d\n", c->num_heads);
    printf("channels: %d\n", c->channels);
    printf("num_parameters: %" PRId64 "\n", t->model.n);
    printf("train dataset num_batches: %" PRId64 "\n", t->train.num_tokens / batch);
    printf("val dataset num_batches: %" PRId64 "\n", t->validation.num_tokens / batch);
    printf("num_activations: %" PRId64 "\n", t->n_acts);
}

static double milliseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
}

/* A non-finite loss ends the training: the next update would make every parameter NaN. */
static void refuse_unless_finite(const char *what, float loss, int64_t step)
{
    fflush(stdout);
    REFUSE_IF(!is_finite(loss), "step %" PRId64 ": %s = %f: must be finite (see -l)", step, what,
              (double)loss);
}

static void train(trainer *t, int64_t steps)
{
    print_model(t);
    for (int64_t step = 0; step < steps; step++) {
        if (step % VALIDATE_EVERY == 0) {
            const float loss = validate(t);
            printf("val loss %f\n", (double)loss);
            refuse_unless_finite("val loss", loss, step);
        }
        if (step > 0 && step % SAMPLE_EVERY == 0) {
            printf("generating:\n---\n");
            print_sample(t);
            printf("\n---\n");
        }
        const double start = milliseconds();
        const float loss = train_step(t, step);
        printf("step %" PRId64 ": train loss %f (took %f ms)\n", step, (double)loss,
               milliseconds() - start);
        refuse_unless_finite("train loss", loss, step);
    }
}

/* ---- command line -------------------------------------------------------------------------- */

static const char *const SHAKESPEARE_TRAIN = "dev/data/tinyshakespeare/tiny_shakespeare_train.bin";
static const char *const SHAKESPEARE_VAL = "dev/data/tinyshakespeare/tiny_shakespeare_val.bin";
static const char *const STORIES_TRAIN = "dev/data/tinystories/TinyStories_train.bin";
static const char *const STORIES_VAL = "dev/data/tinystories/TinyStories_val.bin";

NEVER_RETURNS static void usage(void)
{
    fputs("usage: train_gpt2 [-e MODEL] [-z TOKENIZER] [-i TRAIN] [-j VAL] [-o OUTPUT]\n"
          "                  [-b B] [-t T] [-x STEPS] [-l LEARNING_RATE]\n"
          "  -e  default gpt2_124M.bin; d6, d12, d24 ...: an untrained GPT-2 of that many layers\n"
          "  -z  default gpt2_tokenizer.bin\n"
          "  -i  pattern of training shards; default: tiny Shakespeare or TinyStories, in dev/data\n"
          "  -j  pattern of validation shards, likewise\n"
          "  -o  file for the trained model; default: none\n"
          "  -b  default 4; rows per batch\n"
          "  -t  default 64; tokens per row\n"
          "  -x  default 41; updates\n"
          "  -l  default 1e-4; learning rate\n"
          "example: train_gpt2 -i 'shards/*_train_*.bin' -j 'shards/*_val_*.bin'\n", stderr);
    exit(EXIT_FAILURE);
}

static int64_t whole_number(const char *flag, const char *text, int64_t least)
{
    char *end;
    errno = 0;
    const long long value = strtoll(text, &end, 10);
    REFUSE_IF(text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0 || value < least
              || value > INT32_MAX,
              "%s = %s: must be a whole number from %" PRId64 " to %d", flag, text, least,
              INT32_MAX);
    return value;
}

static float positive_number(const char *flag, const char *text)
{
    char *end;
    const float value = strtof(text, &end);
    const int begins = text[0] == '.' || (text[0] >= '0' && text[0] <= '9');
    REFUSE_IF(!begins || *end != '\0' || !is_finite(value), "%s = %s: must be a number from 0 on",
              flag, text);
    return value;
}

static const char *first_that_exists(const char *path, const char *otherwise)
{
    struct stat info;
    return stat(path, &info) == 0 ? path : otherwise;
}

int main(int argc, char **argv)
{
    const char *model = "gpt2_124M.bin", *tokenizer = "gpt2_tokenizer.bin", *output = NULL;
    const char *shards = NULL, *validation_shards = NULL;
    trainer t = {.B = 4, .T = 64, .learning_rate = 1e-4f, .random = SAMPLER_SEED};
    int64_t steps = 41;

    for (int i = 1; i < argc; i += 2) {
        if (i + 1 == argc || argv[i][0] != '-' || strlen(argv[i]) != 2) {
            usage();
        }
        const char *flag = argv[i], *value = argv[i + 1];
        switch (flag[1]) {
        case 'e': model = value; break;
        case 'z': tokenizer = value; break;
        case 'i': shards = value; break;
        case 'j': validation_shards = value; break;
        case 'o': output = value; break;
        case 'b': t.B = whole_number(flag, value, 1); break;
        case 't': t.T = whole_number(flag, value, 1); break;
        case 'x': steps = whole_number(flag, value, 0); break;
        case 'l': t.learning_rate = positive_number(flag, value); break;
        default: usage();
        }
    }
    shards = shards != NULL ? shards : first_that_exists(SHAKESPEARE_TRAIN, STORIES_TRAIN);
    validation_shards = validation_shards != NULL ? validation_shards
                      : first_that_exists(SHAKESPEARE_VAL, STORIES_VAL);

    gpt2_config shape;
    t.model = find_shape(model, &shape) ? random_gpt2(&shape) : read_gpt2_checkpoint(model);
    const gpt2_config *config = &t.model.config;
    REFUSE_IF(t.T > config->max_seq_len,
              "%s: max_seq_len = %d (byte 8): must be at least T = %" PRId64 " (see -t)", model,
              config->max_seq_len, t.T);
    t.vocab = read_gpt2_vocabulary(tokenizer, config->vocab_size, model);
    t.train = (loader){.B = t.B, .T = t.T, .processes = 1, .shuffle = 1,
                       .vocab_size = config->vocab_size};
    t.validation = t.train;
    t.validation.shuffle = 0;
    open_loader(&t.train, shards);
    open_loader(&t.validation, validation_shards);
    if (output != NULL) {
        try_to_write(output);
    }
    allocate_buffers(&t);

    train(&t, steps);
    if (output != NULL) {
        write_gpt2_checkpoint(output, &t.model);
    }
    REFUSE_IF(fflush(stdout) != 0 || ferror(stdout), "stdout: %s", strerror(errno));
    close_loader(&t.train);
    close_loader(&t.validation);
    free(t.vocab.token);
    free(t.vocab.bytes);
    free(t.model.floats);
    free(t.grad);
    free(t.m);
    free(t.v);
    free(t.act);
    free(t.dact);
    free(t.sampled);
    return EXIT_SUCCESS;
}
