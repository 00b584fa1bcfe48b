/* checkpoint.c - a model file, layout v0 (no magic) or v1, float32, little endian, in memory.
 *
 * read_checkpoint refuses every header that the engine could not trust, naming field and byte.
 */
#ifndef CHECKPOINT_C
#define CHECKPOINT_C

#include "reader.c"
#include "llama2.c"  /* for llama2.h, size_plus and size_times */

typedef struct {
    llama2_config config;
    llama2_weights weights;
    const char *path;
    unsigned char *bytes;  /* the file; the weights point into it */
} checkpoint;

/* ---- layouts ------------------------------------------------------------------------------- */

typedef enum {
    EMBEDDING, ATTENTION_NORM, WQ, WK, WV, WO, FFN_NORM, W1, W2, W3, FINAL_NORM,
    ROPE_COS, ROPE_SIN, CLASSIFIER, N_ARRAYS
} array;

static const char *const ARRAY_NAME[N_ARRAYS] = {
    "token_embedding", "attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3",
    "final_norm", "rope_cos", "rope_sin", "classifier",
};

enum { N_FIELDS = 7 };

static const char *const FIELD_NAME[N_FIELDS] = {
    "dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len",
};

/* A header size, where the seven fields begin in it, and the order of the arrays after it. */
typedef struct {
    int version, header, fields, n_arrays;
    array order[N_ARRAYS];
} layout;

static const layout V0 = {0, 28, 0, 14, {
    EMBEDDING, ATTENTION_NORM, WQ, WK, WV, WO, FFN_NORM, W1, W2, W3, FINAL_NORM,
    ROPE_COS, ROPE_SIN, CLASSIFIER,
}};
static const layout V1 = {1, 256, 8, 12, {
    ATTENTION_NORM, FFN_NORM, FINAL_NORM, EMBEDDING, WQ, WK, WV, WO, W1, W2, W3, CLASSIFIER,
}};

static const layout *recognise(const char *path, const unsigned char *head, int64_t size)
{
    const uint32_t magic = size < 4 ? 0 : (uint32_t)int32_at(head);
    const layout *kind = &V0;
    refuse_if_another_kind(path, head, size);
    REFUSE_IF(magic == 0x32346B61,
              "%s: magic = %08" PRIx32 " (byte 0): big-endian file, not supported", path, magic);
    if (magic == 0x616B3432) {
        kind = &V1;
        const int32_t version = size < 8 ? 1 : int32_at(head + 4);
        REFUSE_IF(version == 2,
                  "%s: version = 2 (byte 4): int8 checkpoints are not supported yet, only "
                  "float32 (versions 0 and 1)", path);
        REFUSE_IF(version != 1, "%s: version = %d (byte 4): must be 1", path, version);
    }
    if (size < kind->header) {
        const int64_t field = size < kind->fields ? 0 : (size - kind->fields) / 4;
        refuse("%s: %" PRId64 " bytes: header needs %d, ends before %s", path, size, kind->header,
               field < N_FIELDS ? FIELD_NAME[field] : "its last byte");
    }
    return kind;
}

/* ---- header -------------------------------------------------------------------------------- */

/* Header bytes to a config whose fields keep every relation that the engine relies on. */
static llama2_config read_config(const char *path, const layout *kind, const unsigned char *head)
{
    int32_t value[N_FIELDS], shared = head[36];
    for (int i = 0; i < N_FIELDS; i++) {
        const int at = kind->fields + 4 * i;
        value[i] = int32_at(head + at);
        if (i == 5 && kind == &V0) {  /* the sign tells whose matrix the classifier is */
            shared = value[i] > 0;
            REFUSE_IF(value[i] == INT32_MIN, "%s: vocab_size = %d (byte %d): magnitude exceeds "
                      "the file", path, value[i], at);
            REFUSE_IF(value[i] == 0, "%s: vocab_size = 0 (byte %d): must not be 0", path, at);
            value[i] = abs(value[i]);
        }
        REFUSE_IF(value[i] < 1,
                  "%s: %s = %d (byte %d): must be at least 1", path, FIELD_NAME[i], value[i], at);
    }
    REFUSE_IF(shared > 1, "%s: shared_classifier = %d (byte 36): must be 0 or 1", path, shared);
    const llama2_config c = {value[0], value[1], value[2], value[3], value[4], value[5], value[6],
                             shared};
    REFUSE_IF(c.dim % c.n_heads != 0,
              "%s: dim = %d (byte %d): must be a multiple of n_heads = %d", path, c.dim,
              kind->fields, c.n_heads);
    REFUSE_IF(c.n_heads % c.n_kv_heads != 0,
              "%s: n_kv_heads = %d (byte %d): must divide n_heads = %d", path, c.n_kv_heads,
              kind->fields + 16, c.n_heads);
    REFUSE_IF(c.dim / c.n_heads % 2 != 0,
              "%s: head size = %d (dim / n_heads, bytes %d and %d): RoPE needs an even size",
              path, c.dim / c.n_heads, kind->fields, kind->fields + 12);
    REFUSE_IF(c.vocab_size < 2,
              "%s: vocab_size = %d (byte %d): must be at least 2, every text starts with id 1",
              path, c.vocab_size, kind->fields + 20);
    return c;
}

/* ---- arrays -------------------------------------------------------------------------------- */

/* Floats of one array; INT64_MAX if past counting. */
static int64_t array_floats(array a, const llama2_config *c)
{
    const int64_t C = c->dim, F = c->hidden_dim, L = c->n_layers, V = c->vocab_size;
    const int64_t hs = C / c->n_heads, KV = hs * c->n_kv_heads;
    switch (a) {
    case EMBEDDING: return V * C;
    case ATTENTION_NORM: case FFN_NORM: return L * C;
    case WQ: case WO: return size_times(L, C * C);
    case WK: case WV: return size_times(L, KV * C);
    case W1: case W2: case W3: return size_times(L, F * C);
    case FINAL_NORM: return C;
    case ROPE_COS: case ROPE_SIN: return c->seq_len * (hs / 2);
    case CLASSIFIER: return c->shared_classifier ? 0 : V * C;
    default: return 0;
    }
}

/* Where each array begins, all multiples of 4, and how many bytes of the file to read: all that
 * the header asks for, or what there is if only the two RoPE tables, which nobody reads, lack. */
static int64_t lay_out(int64_t start[N_ARRAYS], const source *from, const layout *kind,
                       const llama2_config *config)
{
    int64_t need = kind->header;
    int cut = N_ARRAYS;  /* the first array that the file is too short for */
    for (int i = 0; i < kind->n_arrays; i++) {
        const array a = kind->order[i];
        start[a] = need;
        need = size_plus(need, size_times(array_floats(a, config), 4));
        cut = need > from->size && cut == N_ARRAYS ? (int)a : cut;
    }
    REFUSE_IF(need == INT64_MAX,
              "%s: %" PRId64 " bytes, but its header needs over 2^63: damaged header?",
              from->path, from->size);
    const int64_t missing = need - from->size;
    if (missing > 0) {
        const int only_rope = cut == ROPE_COS || cut == ROPE_SIN;
        REFUSE_IF(!only_rope || !config->shared_classifier,
                  "%s: %" PRId64 " bytes, but its header needs %" PRId64 " (%" PRId64 " missing, "
                  "from inside %s on): download incomplete?", from->path, from->size, need,
                  missing, ARRAY_NAME[cut]);
        warn("%s: %" PRId64 " bytes of the RoPE tables are missing; they are not needed",
             from->path, missing);
        return from->size;
    }
    if (missing < 0) {
        warn("%s: %" PRId64 " bytes after the last array are ignored", from->path, -missing);
    }
    return need;
}

static checkpoint read_checkpoint(const char *path)
{
    unsigned char head[256] = {0};
    const source from = open_source(path);
    read_exactly(&from, head, from.size < 256 ? from.size : 256);
    const layout *kind = recognise(path, head, from.size);
    const llama2_config config = read_config(path, kind, head);

    int64_t start[N_ARRAYS] = {0};
    const int64_t bytes = lay_out(start, &from, kind, &config);
    unsigned char *file = allocate(bytes, 1, "the checkpoint");
    rewind(from.file);
    read_exactly(&from, file, bytes);
    fclose(from.file);

    const float *at[N_ARRAYS];
    for (int a = 0; a < N_ARRAYS; a++) {
        at[a] = (const float *)(const void *)(file + (start[a] < bytes ? start[a] : 0));
    }
    const llama2_weights weights = {
        at[EMBEDDING], at[ATTENTION_NORM], at[WQ], at[WK], at[WV], at[WO], at[FFN_NORM],
        at[W1], at[W2], at[W3], at[FINAL_NORM], at[CLASSIFIER],
    };
    const checkpoint model = {config, weights, path, file};
    return model;
}

#endif
