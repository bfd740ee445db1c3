/* pieces.c - see pieces.h. Pieces stay where they are in the file. */
#include "text/pieces.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

static uint64_t load(const char *p, size_t n)
{
    uint64_t v = 0;
    memcpy(&v, p, n);
    return v;
}

/* A quick hash of a few bytes; both halves of the result are well mixed. */
static uint64_t hash_bytes(const char *p, size_t len, uint64_t seed)
{
    const uint64_t k = HASH_MIX;
    uint64_t h = len * k ^ seed, v;
    if (len >= 8) {
        for (size_t i = 0; i + 8 < len; i += 8)
            h = ((h ^ load(p + i, 8)) * k) ^ (h >> 29);
        v = load(p + len - 8, 8);
    } else if (len >= 4)
        v = load(p, 4) | load(p + len - 4, 4) << 32;
    else
        v = len ? (uint64_t)(unsigned char)p[0] | (uint64_t)(unsigned char)p[len / 2] << 8
                      | (uint64_t)(unsigned char)p[len - 1] << 16
                : 0;
    h = (h ^ v) * k;
    h = (h ^ h >> 32) * k;
    return h ^ h >> 29;
}

/* The slot that holds `s`, or the empty one where it belongs. */
static uint64_t *find_slot(const Pieces *x, const char *s, size_t len, uint64_t hash)
{
    size_t i = hash & (x->n_slots - 1);
    for (; x->slots[i]; i = (i + 1) & (x->n_slots - 1)) {
        Str found = x->vocab->pieces[(uint32_t)x->slots[i] - 1];
        if (x->slots[i] >> 32 == hash >> 32 && found.len == len && memcmp(found.ptr, s, len) == 0)
            break;
    }
    return &x->slots[i];
}

int pieces_find(const Pieces *x, const char *s, size_t len)
{
    if (len > x->max_len)
        return -1;
    return (int)(uint32_t)*find_slot(x, s, len, hash_bytes(s, len, x->seed)) - 1;
}

/* An added token that is none of the model's pieces has the score -infinity in our exports: it is
 * only found as a whole. */
int pieces_find_text(const Pieces *x, const char *s, size_t len)
{
    const Vocab *v = x->vocab;
    int id = pieces_find(x, s, len);
    TokenType type = id >= 0 ? vocab_type(v, id) : TOKEN_CONTROL;
    if (type == TOKEN_USER_DEFINED && v->by_score && vocab_score(v, id) == -INFINITY)
        return -1;
    return type == TOKEN_NORMAL || type == TOKEN_UNDEFINED || type == TOKEN_USER_DEFINED ? id : -1;
}

static size_t table_size(size_t n)
{
    size_t size = 16;
    while (size < n + n / 2)
        size *= 2;
    return size;
}

/* All pieces by text. */
static int build_slots(Pieces *x, Err *e)
{
    const Vocab *v = x->vocab;
    x->n_slots = table_size((size_t)v->n);
    x->slots = mem_zalloc(x->n_slots, sizeof *x->slots);
    if (!x->slots)
        return err_set(e, EXIT_MEMORY, "out of memory for the tokenizer");
    enum { AHEAD = 16 }; // the slots of so many pieces are prefetched while others are stored
    uint64_t hashes[AHEAD];
    for (int id = 0; id < v->n + AHEAD; id++) {
        uint64_t *hash = &hashes[id % AHEAD];
        Str s = id < AHEAD ? (Str){"", 0} : v->pieces[id - AHEAD];
        if (s.len) {
            *find_slot(x, s.ptr, s.len, *hash) = *hash >> 32 << 32 | (uint32_t)(id - AHEAD + 1);
            x->max_len = s.len > x->max_len ? s.len : x->max_len;
        }
        if (id >= v->n)
            continue;
        *hash = hash_bytes(v->pieces[id].ptr, v->pieces[id].len, x->seed);
        __builtin_prefetch(&x->slots[*hash & (x->n_slots - 1)], 1);
    }
    return 0;
}

/* The slot that holds a pair, or the empty one where it belongs. */
static Merge *find_merge(const Pieces *x, uint32_t left, uint32_t right)
{
    uint64_t h = (((uint64_t)left << 32 | right) ^ x->seed) * HASH_MIX;
    h = (h ^ h >> 32) * HASH_MIX;
    size_t i = (h ^ h >> 32) & (x->n_merge_slots - 1);
    while (x->merges[i].id1 && (x->merges[i].left != left || x->merges[i].right != right))
        i = (i + 1) & (x->n_merge_slots - 1);
    return &x->merges[i];
}

const Merge *pieces_merge(const Pieces *x, uint32_t left, uint32_t right)
{
    const Merge *m = find_merge(x, left, right);
    return m->id1 ? m : NULL;
}

/* A line of the merge list, "left right"; `joined` has room for a piece. False if it is none. */
static bool read_merge(const Pieces *x, Str line, char *joined, uint32_t rank, Merge *out)
{
    const char *space = line.len > 2 ? memchr(line.ptr + 1, ' ', line.len - 2) : NULL;
    if (!space || line.len - 1 > x->max_len)
        return false;
    size_t n_left = (size_t)(space - line.ptr), n_right = line.len - n_left - 1;
    memcpy(joined, line.ptr, n_left);
    memcpy(joined + n_left, space + 1, n_right);
    int left = pieces_find(x, line.ptr, n_left), right = pieces_find(x, space + 1, n_right);
    int id = pieces_find(x, joined, n_left + n_right);
    *out = (Merge){(uint32_t)left, (uint32_t)right, rank, (uint32_t)id + 1};
    return left >= 0 && right >= 0 && id >= 0;
}

/* The merge list as pairs of ids; of equal pairs the last counts, as in Hugging Face's BPE. */
static int build_merges(Pieces *x, Err *e)
{
    const GgufKey *merges = x->vocab->merges;
    Str *list = gguf_strings(merges);
    size_t n = (size_t)merges->n;
    x->n_merge_slots = table_size(n);
    x->merges = mem_zalloc(x->n_merge_slots, sizeof *x->merges);
    char *joined = mem_alloc(x->max_len, 1);
    int rc = list && x->merges && joined
               ? 0
               : err_set(e, EXIT_MEMORY, "out of memory for the tokenizer");
    for (size_t i = 0; i < n && !rc; i++) {
        Merge m;
        char shown[80];
        if (read_merge(x, list[i], joined, (uint32_t)i, &m))
            *find_merge(x, m.left, m.right) = m;
        else
            rc = err_set(e, EXIT_MODEL,
                         "key tokenizer.ggml.merges: got \"%s\" at %zu, want two tokens that join "
                         "to a third",
                         str_escape(list[i], shown, sizeof shown), i);
    }
    free(joined);
    free(list);
    return rc;
}

/* The token of a byte, -1 if there is none. */
static int byte_token(const Pieces *x, int b)
{
    char name[8];
    if (x->vocab->byte_level)
        return pieces_find(x, name, utf8_encode(piece_byte_to_char(b), name));
    snprintf(name, sizeof name, "<0x%02X>", (unsigned)b);
    int id = pieces_find(x, name, 6);
    return id >= 0 && vocab_type(x->vocab, id) == TOKEN_BYTE ? id : -1;
}

int pieces_init(Pieces *x, const Vocab *v, Err *e)
{
    double now = clock_seconds();
    *x = (Pieces){.vocab = v};
    memcpy(&x->seed, &now, sizeof x->seed);
    x->seed = (x->seed ^ (uintptr_t)x) * HASH_MIX;
    if (build_slots(x, e) || (!v->by_score && !v->wordpiece && build_merges(x, e)))
        return -1;
    for (int b = 0; b < 256; b++)
        x->bytes[b] = byte_token(x, b);
    for (int b = 0; b < 128; b++)
        x->ascii[b] = pieces_find_text(x, &(char){(char)b}, 1);
    return 0;
}

void pieces_free(Pieces *x)
{
    free(x->slots);
    free(x->merges);
    *x = (Pieces){0};
}
