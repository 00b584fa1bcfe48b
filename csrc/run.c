/* run.c - generate text or chat with a Llama 2 checkpoint, float32 or int8.
 *
 *   cc -O3 csrc/run.c -lm -o run
 *   ./run model.bin -z tokenizer.bin -t 0.8 -i "Once upon a time"
 *
 * Add -fopenmp for threads, -O2 -ffp-contract=off for the reference bits.
 * Text goes to stdout, everything else to stderr; every error is one line and exit code 1.
 *
 * Its parts: llama2/model.c (the forward pass), llama2/checkpoint.c and llama2/vocabulary.c (the
 * two files), llama2/sampler.c (the choice of the next token).
 */
#include "common/reader.c"
#include "llama2/checkpoint.c"
#include "llama2/model.c"
#include "llama2/sampler.c"
#include "llama2/vocabulary.c"

#include <time.h>

/* ---- the engine: model, vocabulary and sampler ---------------------------------------------- */

enum { CHUNK = 64 };  /* maximum number of tokens per forward pass; bounds the buffers */

typedef struct {
    checkpoint model;
    vocabulary vocab;
    sampler sampler;
    llama2_cache cache;
    llama2_state state;
    float *memory;  /* of the cache, then of the state */
    float *logits;  /* (CHUNK, V) */
    int64_t steps;  /* maximum number of positions */
} engine;

/* Allocate for `steps` positions, not for the whole context: a header may claim any context. */
static void allocate_buffers(engine *e)
{
    const llama2_config *config = &e->model.config;
    const int64_t chunk = e->steps < CHUNK ? e->steps : CHUNK;
    char purpose[64];
    snprintf(purpose, sizeof purpose, "a cache of %" PRId64 " positions (see -n)", e->steps);
    const int64_t cached = llama2_cache_floats(config, e->steps);
    const int64_t floats = size_plus(cached, llama2_state_floats(config, e->steps, chunk));
    e->memory = allocate(floats, sizeof(float), purpose);
    llama2_cache_bind(&e->cache, config, e->memory, e->steps);
    llama2_state_bind(&e->state, config, e->memory + cached, e->steps, chunk);
    e->logits = allocate(chunk * config->vocab_size, sizeof(float), "the logits");
    e->sampler.candidates = allocate(config->vocab_size, sizeof(candidate), "the candidates");
}

static int32_t choose(engine *e, float *logits, int64_t pos)
{
    const int32_t V = e->model.config.vocab_size;
    for (int32_t i = 0; i < V; i++) {
        REFUSE_IF(!is_finite(logits[i]),
                  "%s: non-finite logits at position %" PRId64 " (id %d): damaged weights?",
                  e->model.path, pos, i);
    }
    return sample(&e->sampler, logits, V, pos);
}

static void print_id(const vocabulary *v, int32_t previous, int32_t id)
{
    const unsigned char *text;
    unsigned char one;
    const int32_t length = decode_one(v, previous, id, &text, &one);
    if (is_shown(text, length)) {
        fwrite(text, 1, (size_t)length, stdout);
    }
    fflush(stdout);
}

/* ---- mode generate ------------------------------------------------------------------------- */

static double milliseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
}

/* Process ids at positions from .. from+n-1, then choose the id that follows. */
static int32_t feed(engine *e, const int32_t *ids, int64_t n, int64_t from)
{
    for (int64_t i = 0; i < n; i += CHUNK) {
        const int64_t T = n - i < CHUNK ? n - i : CHUNK;
        float *logits = i + T == n ? e->logits : NULL;
        llama2_forward(logits, &e->state, &e->cache, &e->model.config, &e->model.weights, ids + i,
                       T, from + i, 0);
    }
    return choose(e, e->logits, from + n - 1);
}

/* The prompt is printed id by id. Its positions are processed all at once when the first new id is
 * needed: the logits at the earlier positions are not used. */
static void generate_story(engine *e, const char *prompt)
{
    int64_t n, pos = 0;
    int32_t *ids = encode(&e->vocab, prompt, &n);
    int32_t token = ids[0];
    double start = 0.0;
    if (n > e->steps) {
        warn("the prompt has %" PRId64 " ids and there are %" PRId64 " steps: it is cut and "
             "nothing is generated", n, e->steps);
    }
    while (pos < e->steps) {
        const int32_t next = pos + 1 < n ? ids[pos + 1]
                           : pos + 1 == n ? feed(e, ids, n, 0) : feed(e, &token, 1, pos);
        pos++;
        if (next == BOS) {
            break;
        }
        print_id(&e->vocab, token, next);
        token = next;
        if (pos == 1) {
            start = milliseconds();  /* the first id is not timed: it includes warming up */
        }
    }
    putchar('\n');
    if (pos > 1) {
        double spent = milliseconds() - start;
        spent = spent > 0.0 ? spent : 1e-6;
        fprintf(stderr, "achieved tok/s: %f\n", (double)(pos - 1) / spent * 1e3);
    }
    free(ids);
}

/* ---- mode chat ----------------------------------------------------------------------------- */

enum { LINE = 512 };  /* bytes read per answer, NUL included; the rest is the next answer */

/* Read an answer into line. Returns 0 and leaves line unchanged at the end of input. */
static int ask(const char *question, char line[LINE])
{
    char answer[LINE];
    fputs(question, stdout);
    fflush(stdout);
    if (fgets(answer, LINE, stdin) == NULL) {
        return 0;
    }
    answer[strcspn(answer, "\n")] = '\0';
    memcpy(line, answer, LINE);
    return 1;
}

static char *chat_prompt(const char *system_text, const char *user)
{
    static const char *const with = "[INST] <<SYS>>\n%s\n<</SYS>>\n\n%s [/INST]";
    static const char *const without = "[INST] %s%s [/INST]";
    const char *form = system_text[0] != '\0' ? with : without;
    const size_t capacity = strlen(with) + strlen(system_text) + strlen(user) + 1;
    char *text = allocate((int64_t)capacity, 1, "the prompt");
    snprintf(text, capacity, form, system_text, user);
    return text;
}

typedef struct {
    const char *system_text, *first_user;  /* from the command line, or NULL */
    const char *user;                      /* the latest message, or NULL */
    char line[LINE];                       /* its text if it was typed */
} speaker;

/* The ids of the user's next turn, or NULL if input ends before any message. */
static int32_t *next_turn(const vocabulary *v, speaker *s, int is_first, int64_t *n)
{
    char system_line[LINE] = "";
    const char *system_text = is_first && s->system_text != NULL ? s->system_text : system_line;
    if (is_first && s->system_text == NULL) {
        ask("Enter system prompt (optional): ", system_line);
    }
    if (is_first && s->first_user != NULL) {
        s->user = s->first_user;
    } else if (ask("User: ", s->line)) {
        s->user = s->line;
    }
    if (s->user == NULL) {
        return NULL;
    }
    char *text = chat_prompt(system_text, s->user);  /* at end of input the latest message again */
    int32_t *ids = encode(v, text, n);
    free(text);
    return ids;
}

/* An id is chosen after every position, also inside the prompt, as in the original: each draw
 * advances the random generator, and a drawn EOS prints a newline anywhere. */
static void chat(engine *e, const char *first_user, const char *system_text)
{
    const int32_t V = e->model.config.vocab_size;
    speaker user = {system_text, first_user, NULL, ""};
    int32_t *ids = NULL, next = BOS;
    int64_t n = 0, k = 0, pos = 0;  /* k of the n ids of this turn are processed */
    int users_turn = 1;

    while (pos < e->steps) {
        if (users_turn) {
            free(ids);
            ids = next_turn(&e->vocab, &user, pos == 0, &n);
            if (ids == NULL) {
                break;
            }
            k = 0;
            users_turn = 0;
            fputs("Assistant: ", stdout);
        }
        /* the rest of the prompt, up to an EOS, or the id chosen last */
        const int32_t reply = next;
        const int32_t *fed = k < n ? ids + k : &reply;
        int64_t T = 1;
        while (k + T < n && T < CHUNK && pos + T < e->steps && fed[T - 1] != EOS) {
            T++;
        }
        llama2_forward(e->logits, &e->state, &e->cache, &e->model.config, &e->model.weights, fed,
                       T, pos, 1);
        for (int64_t t = 0; t < T; t++) {
            k += k < n;
            next = choose(e, e->logits + t * V, pos++);
            if (next == EOS) {
                putchar('\n');
            } else if (k == n) {
                print_id(&e->vocab, fed[t], next);
            }
        }
        users_turn = fed[T - 1] == EOS;  /* one step late, as in the original */
    }
    putchar('\n');
    if (pos == e->steps) {
        fflush(stdout);
        warn("all %" PRId64 " positions are used, the chat ends here (see -n)", e->steps);
    }
    free(ids);
}

/* ---- command line -------------------------------------------------------------------------- */

NEVER_RETURNS static void usage(void)
{
    fputs("usage: run CHECKPOINT [-t TEMPERATURE] [-p TOP_P] [-s SEED] [-n STEPS] [-i PROMPT]\n"
          "           [-z VOCABULARY] [-m generate|chat] [-y SYSTEM_PROMPT]\n"
          "  -t  default 1.0; 0 takes the likeliest id every time\n"
          "  -p  default 0.9; sample among the likeliest ids that add up to this, 0 or 1: all\n"
          "  -s  default 0: from the clock\n"
          "  -n  default 256; positions to fill, prompt included, 0: the whole context\n"
          "  -z  default tokenizer.bin\n"
          "example: run stories.bin -n 256 -i \"Once upon a time\"\n", stderr);
    exit(EXIT_FAILURE);
}

/* As the original reads numbers: the longest prefix, 0 without one, the low 32 bits. */
static int32_t whole_number(const char *text)
{
    return (int32_t)(uint32_t)strtoll(text, NULL, 10);
}

int main(int argc, char **argv)
{
    float temperature = 1.0f, topp = 0.9f;
    int32_t seed = 0, steps = 256;
    const char *prompt = NULL, *vocabulary_path = "tokenizer.bin";
    const char *mode = "generate", *system_prompt = NULL;

    if (argc < 2) {
        usage();
    }
    for (int i = 2; i < argc; i += 2) {
        if (i + 1 == argc || argv[i][0] != '-' || strlen(argv[i]) != 2) {
            usage();
        }
        const char *value = argv[i + 1];
        switch (argv[i][1]) {
        case 't': temperature = (float)atof(value); break;
        case 'p': topp = (float)atof(value); break;
        case 's': seed = whole_number(value); break;
        case 'n': steps = whole_number(value); break;
        case 'i': prompt = value; break;
        case 'z': vocabulary_path = value; break;
        case 'm': mode = value; break;
        case 'y': system_prompt = value; break;
        default: usage();
        }
    }
    temperature = temperature < 0.0f ? 0.0f : temperature;
    topp = topp < 0.0f || topp > 1.0f ? 0.9f : topp;  /* as in the original: not clamped */
    REFUSE_IF(temperature != 0.0f && is_nan(topp), "-p = nan: must be a number");
    REFUSE_IF(is_nan(temperature) && topp > 0.0f && topp < 1.0f,
              "-t = nan: must be a number (or -p 1, which then always takes the last id)");

    engine e = {.steps = steps};
    e.model = read_checkpoint(argv[1]);
    if (steps <= 0 || steps > e.model.config.seq_len) {
        e.steps = e.model.config.seq_len;
    }
    e.vocab = read_vocabulary(vocabulary_path, e.model.config.vocab_size, argv[1]);
    e.sampler.temperature = temperature;
    e.sampler.topp = topp;
    e.sampler.random = seed != 0 ? (uint64_t)(int64_t)seed : (uint32_t)time(NULL);
    const int chatting = strcmp(mode, "chat") == 0;
    REFUSE_IF(!chatting && strcmp(mode, "generate") != 0,
              "-m = %s: must be generate or chat", mode);
    allocate_buffers(&e);

    if (chatting) {
        chat(&e, prompt, system_prompt);
    } else {
        generate_story(&e, prompt != NULL ? prompt : "");
    }
    REFUSE_IF(fflush(stdout) != 0 || ferror(stdout), "stdout: %s", strerror(errno));
    free(e.sampler.candidates);
    free(e.logits);
    free(e.memory);
    free(e.vocab.by_text);
    free(e.vocab.by_id);
    free(e.vocab.bytes);
    free(e.model.floats);
    free(e.model.bytes);
    return EXIT_SUCCESS;
}
