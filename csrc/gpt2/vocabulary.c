/* vocabulary.c - the texts of GPT-2's tokens, for printing generated text.
 *
 * File layout: the header, whose third number is the number of tokens and whose fourth (since
 * version 2) the end-of-text id, then for each token a length byte and that many bytes.
 */
#ifndef GPT2_VOCABULARY_C
#define GPT2_VOCABULARY_C

#include "header.c"
#include "../common/shown.c"

enum { GPT2_END_OF_TEXT = 50256, GPT2_TOKENS = 50257 };

typedef struct {
    unsigned char *bytes;         /* the file after its header, or NULL without a file */
    const unsigned char **token;  /* (size,): the length, then the text */
    int32_t size, end_of_text;
} gpt2_vocabulary;

/* Index the tokens; refused unless all are complete and nothing follows the last. */
static void find_tokens(gpt2_vocabulary *v, const source *from)
{
    int64_t at = 0;
    const int64_t size = from->size - HEADER_BYTES;
    for (int32_t id = 0; id < v->size; id++) {
        const int64_t byte = HEADER_BYTES + at, left = size - at - 1;
        REFUSE_IF(left < 0, "%s: ends before token %d of %d (byte %" PRId64 ")", from->path, id,
                  v->size, byte);
        const int length = v->bytes[at];
        REFUSE_IF(length < 1, "%s: token %d: length = 0 (byte %" PRId64 "): must be at least 1",
                  from->path, id, byte);
        REFUSE_IF(length > left,
                  "%s: token %d of %d: length = %d (byte %" PRId64 "): %" PRId64 " bytes left",
                  from->path, id, v->size, length, byte, left);
        v->token[id] = v->bytes + at;
        at += 1 + length;
    }
    REFUSE_IF(at < size, "%s: %" PRId64 " bytes (byte %" PRId64 ") after the last of %d tokens",
              from->path, size - at, HEADER_BYTES + at, v->size);
}

/* The vocabulary of a model with V tokens. Without a file, ids are printed instead of texts, and
 * the end-of-text id is the last one, as in GPT-2. */
static gpt2_vocabulary read_gpt2_vocabulary(const char *path, int32_t V, const char *model_path)
{
    struct stat info;
    gpt2_vocabulary v = {NULL, NULL, V, V > GPT2_TOKENS ? GPT2_END_OF_TEXT : V - 1};
    if (stat(path, &info) != 0 && errno == ENOENT) {
        warn("%s: %s: token numbers are printed instead of text", path, strerror(ENOENT));
        return v;
    }
    const source from = open_source(path);
    int32_t field[HEADER_FIELDS];
    read_header(field, &from, MAGIC_TOKENIZER);
    REFUSE_IF(field[1] != 1 && field[1] != 2, "%s: version = %d (byte 4): must be 1 or 2", path,
              field[1]);
    const int64_t most = (from.size - HEADER_BYTES) / 2;  /* a token has at least 2 bytes */
    v.size = field[2];
    v.end_of_text = field[1] == 1 ? GPT2_END_OF_TEXT : field[3];
    REFUSE_IF(field[1] == 1 && v.size != GPT2_TOKENS,
              "%s: tokens = %d (byte 8): must be %d in version 1", path, v.size, GPT2_TOKENS);
    REFUSE_IF(v.size < V, "%s: tokens = %d (byte 8): must be at least %d, the vocab_size of %s",
              path, v.size, V, model_path);
    REFUSE_IF(v.size > most, "%s: tokens = %d (byte 8): at most %" PRId64 " fit in the file",
              path, v.size, most);
    REFUSE_IF(v.end_of_text < 0 || v.end_of_text >= V,
              "%s: end_of_text = %d (byte 12): must be from 0 to %d, a token of %s", path,
              v.end_of_text, V - 1, model_path);
    v.bytes = allocate(from.size - HEADER_BYTES, 1, "the tokenizer");
    v.token = allocate(v.size, sizeof *v.token, "the tokenizer");
    read_exactly(&from, v.bytes, from.size - HEADER_BYTES);
    fclose(from.file);
    find_tokens(&v, &from);
    return v;
}

/* The printed text of a token: sets *text and returns its length. It ends at the first NUL. */
static int32_t shown_text(const gpt2_vocabulary *v, int32_t id, const unsigned char **text)
{
    const int32_t length = v->token[id][0];
    *text = v->token[id] + 1;
    const unsigned char *nul = memchr(*text, 0, (size_t)length);
    const int32_t n = nul != NULL ? (int32_t)(nul - *text) : length;
    return is_shown(*text, n) ? n : 0;
}

static void print_token(const gpt2_vocabulary *v, int32_t id)
{
    if (v->bytes == NULL) {
        printf("%d ", id);
    } else {
        const unsigned char *text;
        const int32_t n = shown_text(v, id, &text);
        fwrite(text, 1, (size_t)n, stdout);
    }
}

#endif
