/* vocabulary.c - the tokenizer: a vocabulary file, text to token ids and token ids to text.
 *
 * File layout: int32 length of the longest piece, then V records of float32 score, int32 length
 * and `length` bytes.
 */
#ifndef VOCABULARY_C
#define VOCABULARY_C

#include "../common/reader.c"
#include "../common/shown.c"

enum { BOS = 1, EOS = 2, FIRST_BYTE_ID = 3 };

/* ---- file ---------------------------------------------------------------------------------- */

typedef struct {
    const unsigned char *text;  /* not NUL-terminated; any byte may occur */
    int32_t length, id;
    float score;
} piece;

typedef struct {
    const char *path;
    unsigned char *bytes;       /* the file; pieces point into it */
    piece *by_id, *by_text;
    int32_t size, longest;
} vocabulary;

static int compare_text(const unsigned char *a, int32_t a_length,
                        const unsigned char *b, int32_t b_length)
{
    const int order = memcmp(a, b, (size_t)(a_length < b_length ? a_length : b_length));
    return order != 0 ? order : (a_length > b_length) - (a_length < b_length);
}

static int compare_pieces(const void *left, const void *right)
{
    const piece *a = left, *b = right;
    const int order = compare_text(a->text, a->length, b->text, b->length);
    return order != 0 ? order : (a->id > b->id) - (a->id < b->id);
}

/* The record at byte `at`; refused if it is incomplete. */
static piece read_piece(const vocabulary *v, int64_t at, int64_t size, int32_t id)
{
    const unsigned char *record = v->bytes + at;
    const int64_t left = size - at;
    REFUSE_IF(left < 8,
              "%s: token %d of %d (byte %" PRId64 "): %" PRId64 " bytes left, its score and "
              "length need 8", v->path, id, v->size, at, left);
    piece p = {record + 8, int32_at(record + 4), id, 0.0f};
    memcpy(&p.score, record, sizeof p.score);
    REFUSE_IF(p.length < 1,
              "%s: token %d: length = %d (byte %" PRId64 "): must be at least 1", v->path, id,
              p.length, at + 4);
    REFUSE_IF(p.length > left - 8,
              "%s: token %d of %d: length = %d (byte %" PRId64 "): %" PRId64 " bytes left",
              v->path, id, v->size, p.length, at + 4, left - 8);
    REFUSE_IF(is_nan(p.score),
              "%s: token %d: score = nan (byte %" PRId64 "): must be a number", v->path, id, at);
    return p;
}

/* The first V pieces of the file: the file does not store their number. */
static vocabulary read_vocabulary(const char *path, int32_t V, const char *model_path)
{
    const source from = open_source(path);
    const int64_t size = from.size, most = size / 9;  /* a record has at least 9 bytes */
    vocabulary v = {path, allocate(size, 1, "the vocabulary"), NULL, NULL, V, 0};
    read_exactly(&from, v.bytes, size);
    fclose(from.file);
    refuse_if_another_kind(path, v.bytes, size);
    REFUSE_IF(size < 4, "%s: %" PRId64 " bytes: header needs 4", path, size);

    v.by_id = allocate(V < most ? V : most, sizeof(piece), "the vocabulary");
    int64_t at = 4;
    for (int32_t id = 0; id < V; id++) {
        REFUSE_IF(at == size, "%s: %d tokens, but %s expects %d", path, id, model_path, V);
        const piece p = read_piece(&v, at, size, id);
        v.by_id[id] = p;
        v.longest = p.length > v.longest ? p.length : v.longest;
        at += 8 + p.length;
    }
    const int32_t declared = int32_at(v.bytes);
    if (at < size) {
        warn("%s: %" PRId64 " bytes after token %d are ignored: made for another model?",
             path, size - at, V - 1);
    }
    if (declared < v.longest || (declared > v.longest && at == size)) {
        warn("%s: max_token_length = %d (byte 0): the longest piece has %d bytes",
             path, declared, v.longest);
    }
    v.by_text = allocate(V, sizeof(piece), "the vocabulary");
    memcpy(v.by_text, v.by_id, (size_t)V * sizeof(piece));
    qsort(v.by_text, (size_t)V, sizeof(piece), compare_pieces);
    return v;
}

/* The id of the piece with this text, the lowest one if several match, or -1. */
static int32_t find_piece(const vocabulary *v, const unsigned char *text, int32_t length)
{
    int32_t low = 0, high = v->size;
    while (low < high) {
        const int32_t middle = low + (high - low) / 2;
        const piece *p = &v->by_text[middle];
        if (compare_text(p->text, p->length, text, length) < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (low == v->size
        || compare_text(v->by_text[low].text, v->by_text[low].length, text, length) != 0) {
        return -1;
    }
    return v->by_text[low].id;
}

/* ---- text to ids --------------------------------------------------------------------------- */

/* The ids of a text form a linked list. A heap holds every adjacent pair that can merge, the best
 * first: highest score, then leftmost. A pair that another merge has invalidated stays in the heap
 * and is skipped when popped, because its ids no longer match the list. */
typedef struct {
    float score;
    int64_t left;                       /* index of the left id */
    int32_t left_id, right_id, merged_id;
} pair;

typedef struct {
    const vocabulary *v;
    int32_t *id;                        /* -1: merged into its left neighbour */
    int64_t *next, *before;             /* -1: none */
    pair *heap;
    int64_t heap_size;
    unsigned char *joined;              /* (longest,) workspace */
} merger;

static int comes_first(const pair *a, const pair *b)
{
    return a->score > b->score || (a->score == b->score && a->left < b->left);
}

static void push_pair(merger *m, int64_t left)
{
    const int64_t right = left < 0 ? -1 : m->next[left];
    if (right < 0) {
        return;
    }
    const piece *a = &m->v->by_id[m->id[left]], *b = &m->v->by_id[m->id[right]];
    if (a->length > m->v->longest - b->length) {
        return;
    }
    memcpy(m->joined, a->text, (size_t)a->length);
    memcpy(m->joined + a->length, b->text, (size_t)b->length);
    const int32_t merged = find_piece(m->v, m->joined, a->length + b->length);
    if (merged < 0 || !(m->v->by_id[merged].score > -1e10f)) {
        return;
    }
    const pair p = {m->v->by_id[merged].score, left, a->id, b->id, merged};
    int64_t i = m->heap_size++;
    while (i > 0 && comes_first(&p, &m->heap[(i - 1) / 2])) {
        m->heap[i] = m->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    m->heap[i] = p;
}

static pair pop_pair(merger *m)
{
    const pair best = m->heap[0], last = m->heap[--m->heap_size];
    int64_t i = 0;
    for (;;) {
        int64_t child = 2 * i + 1;
        if (child + 1 < m->heap_size && comes_first(&m->heap[child + 1], &m->heap[child])) {
            child++;
        }
        if (child >= m->heap_size || !comes_first(&m->heap[child], &last)) {
            break;
        }
        m->heap[i] = m->heap[child];
        i = child;
    }
    m->heap[i] = last;
    return best;
}

/* Merge pairs of ids into the id of their joined text until no pair can; returns the new count. */
static int64_t merge_ids(const vocabulary *v, int32_t *ids, int64_t n)
{
    merger m = {v, ids, NULL, NULL, NULL, 0, NULL};
    m.next = allocate(n, sizeof(int64_t), "the prompt");
    m.before = allocate(n, sizeof(int64_t), "the prompt");
    m.heap = allocate(3 * n, sizeof(pair), "the prompt");  /* n-1 pairs, two more per merge */
    m.joined = allocate(v->longest, 1, "the prompt");
    for (int64_t i = 0; i < n; i++) {
        m.next[i] = i + 1 < n ? i + 1 : -1;
        m.before[i] = i - 1;
    }
    for (int64_t i = 0; i < n; i++) {
        push_pair(&m, i);
    }
    while (m.heap_size > 0) {
        const pair p = pop_pair(&m);
        const int64_t right = m.next[p.left];
        if (ids[p.left] != p.left_id || right < 0 || ids[right] != p.right_id) {
            continue;
        }
        ids[p.left] = p.merged_id;
        ids[right] = -1;
        m.next[p.left] = m.next[right];
        if (m.next[right] >= 0) {
            m.before[m.next[right]] = p.left;
        }
        push_pair(&m, m.before[p.left]);
        push_pair(&m, p.left);
    }
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++) {
        if (ids[i] >= 0) {
            ids[kept++] = ids[i];
        }
    }
    free(m.next);
    free(m.before);
    free(m.heap);
    free(m.joined);
    return kept;
}

/* BOS, then the ids of a space and the text; only BOS for an empty text. The caller frees the ids.
 * Example: "a" -> 1, id of " a" (if that is a piece) */
static int32_t *encode(const vocabulary *v, const char *text, int64_t *n)
{
    const int64_t length = (int64_t)strlen(text);
    int32_t *ids = allocate(length + 3, sizeof(int32_t), "the prompt");
    *n = 0;
    ids[(*n)++] = BOS;
    if (length == 0) {
        return ids;
    }
    const int32_t space = find_piece(v, (const unsigned char *)" ", 1);
    REFUSE_IF(space < 0,
              "%s: the prompt needs a space token and there is none among the first %d", v->path,
              v->size);
    ids[(*n)++] = space;

    const unsigned char *unit = (const unsigned char *)text;
    while (*unit != 0) {
        int32_t bytes = 1;  /* one UTF-8 character: at most 3 continuation bytes */
        while (bytes < 4 && (unit[bytes] & 0xC0) == 0x80) {
            bytes++;
        }
        const int32_t id = find_piece(v, unit, bytes);
        if (id >= 0) {
            ids[(*n)++] = id;
        }
        for (int32_t i = 0; i < bytes && id < 0; i++) {
            REFUSE_IF(unit[i] + FIRST_BYTE_ID >= v->size,
                      "%s: byte 0x%02X of the prompt has no token among the first %d", v->path,
                      unit[i], v->size);
            ids[(*n)++] = unit[i] + FIRST_BYTE_ID;
        }
        unit += bytes;
    }
    *n = merge_ids(v, ids, *n);
    return ids;
}

/* ---- ids to text --------------------------------------------------------------------------- */

/* The byte that a piece such as <0x0A> encodes, or -1 for ordinary text. Whitespace and a sign may
 * precede the digits and anything may follow them, as with the original's sscanf. */
static int raw_byte(const unsigned char *text, int32_t length)
{
    int32_t i = 3, width = 2, digits = 0;
    int value = 0, minus = 0;
    if (length < 3 || memcmp(text, "<0x", 3) != 0) {
        return -1;
    }
    while (i < length && isspace(text[i])) {
        i++;
    }
    if (i < length && (text[i] == '-' || text[i] == '+')) {
        minus = text[i++] == '-';
        width--;
    }
    for (; i < length && digits < width && isxdigit(text[i]); i++, digits++) {
        value = value * 16 + (isdigit(text[i]) ? text[i] - '0' : tolower(text[i]) - 'a' + 10);
    }
    return digits == 0 ? -1 : (minus ? 256 - value : value) % 256;
}

/* The text of `id` after `previous`: sets *text, returns its length. `one` holds a raw byte. */
static int32_t decode_one(const vocabulary *v, int32_t previous, int32_t id,
                          const unsigned char **text, unsigned char *one)
{
    const piece *p = &v->by_id[id];
    const int32_t skip = previous == BOS && p->text[0] == ' ';
    const int byte = raw_byte(p->text + skip, p->length - skip);
    if (byte >= 0) {
        *one = (unsigned char)byte;
        *text = one;
        return byte != 0;
    }
    *text = p->text + skip;
    return p->length - skip;
}

#endif
