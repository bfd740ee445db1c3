/* bpe.c - see bpe.h.
 *
 * One loop serves both kinds of byte-pair encoding: the best pair of neighbours is joined first,
 * the leftmost among equals. What differs is how the first symbols are made (bytes, or UTF-8
 * characters) and what a pair is worth: its rank in the merge list, or the score of the piece it
 * makes. Long texts are cut where no piece could lie across the cut, and a stretch that cannot be
 * cut takes some 8 bytes a symbol.
 */
#include "text/bpe.h"

#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

/* A symbol is what stands at a place of the text: a token's id, or a character that is no token
 * (yet): LONE with its code point, or with LONE_BYTE and the byte where it is no UTF-8. */
#define LONE 0x80000000u
#define LONE_BYTE 0x40000000u
#define NO_RANK UINT32_MAX

/* What two neighbours make. */
typedef struct {
    uint32_t left1, right; // the left symbol + 1, 0 for an empty entry; the right symbol
    uint32_t rank, made;   // the smallest rank goes first; NO_RANK: nothing. The joined token
} Pair;

enum {
    FANOUT = 16,
    N_LEVELS = 9,   // of the tree of ranks; FANOUT^(N_LEVELS - 1) symbols
    N_PAIRS = 4096, // remembered ones, a power of two
    NEIGHBOUR_BITS = 21,
    LONG_TEXT = 100000 // bytes; from here on cuts are worth a pass over the vocabulary
};

struct Bpe {
    const Vocab *vocab;
    const Pieces *pieces;
    TokenList *out;
    Err *e;
    size_t len;        // of the whole text
    uint32_t *symbols; // (n) of a stretch that is joined on its own
    size_t n, cap;
    uint32_t last_char; // of the stretch
    bool last_unknown;  // the last symbol of the piece became the unknown token
    /* ranks[0] (n): of each symbol with its right neighbour, NO_RANK where they make nothing;
     * ranks[k + 1]: the smallest of each FANOUT of ranks[k], up to a single one at `top`. Padded
     * with NO_RANK. */
    uint32_t *ranks[N_LEVELS];
    size_t cap_ranks;
    int top;
    uint64_t *alive; // (n / 64) bits: not joined to a symbol on its left
    size_t cap_alive;
    Pair *pairs;          // (N_PAIRS) by hash
    uint64_t *neighbours; // (2^NEIGHBOUR_BITS / 64) by hash; NULL until a long text comes
    char *joined;         // (max_len) the text of two symbols
    Buf mapped;           // a piece in byte-level characters
};

static int no_memory(Bpe *b)
{
    return err_set(b->e, EXIT_MEMORY, "out of memory while tokenizing the text");
}

Bpe *bpe_open(const Pieces *pieces, size_t len, TokenList *out, Err *e)
{
    Bpe *b = mem_zalloc(1, sizeof *b);
    if (b) {
        *b = (Bpe){.vocab = pieces->vocab, .pieces = pieces, .out = out, .len = len, .e = e};
        b->pairs = mem_zalloc(N_PAIRS, sizeof *b->pairs);
        b->joined = mem_alloc(pieces->max_len, 1);
    }
    if (b && b->pairs && b->joined)
        return b;
    bpe_close(b);
    err_set(e, EXIT_MEMORY, "out of memory while tokenizing the text");
    return NULL;
}

void bpe_close(Bpe *b)
{
    if (!b)
        return;
    free(b->symbols);
    free(b->ranks[0]);
    free(b->alive);
    free(b->pairs);
    free(b->neighbours);
    free(b->joined);
    buf_free(&b->mapped);
    free(b);
}

/* ---- what may join --------------------------------------------------------------------------- */

/* A number that sorts like the score, the highest first. */
static uint32_t score_rank(const Vocab *v, int id)
{
    float score = vocab_score(v, id) + 0.0f; // -0 is 0
    uint32_t u;
    memcpy(&u, &score, 4);
    u = ~(u >> 31 ? ~u : u | 0x80000000u);
    return u < NO_RANK ? u : NO_RANK - 1;
}

/* Text of a symbol; of one that is no token in `lone`. */
static Str symbol_text(const Vocab *v, uint32_t symbol, char lone[4])
{
    if (symbol < LONE)
        return v->pieces[symbol];
    if (!(symbol & LONE_BYTE))
        return (Str){lone, utf8_encode(symbol & ~LONE, lone)};
    *lone = (char)(symbol & 0xff);
    return (Str){lone, 1};
}

/* What two neighbours make; remembered, since the same ones come again and again. */
static const Pair *pair_of(Bpe *b, uint32_t left, uint32_t right)
{
    const Vocab *v = b->vocab;
    Pair *p = &b->pairs[((left * 0x9e3779b1u) ^ (right * 0x85ebca6bu)) >> 20 & (N_PAIRS - 1)];
    if (p->left1 == left + 1 && p->right == right)
        return p;
    *p = (Pair){.left1 = left + 1, .right = right, .rank = NO_RANK};
    if (v->by_score) {
        char lone[2][4];
        Str x = symbol_text(v, left, lone[0]), y = symbol_text(v, right, lone[1]);
        int id = -1;
        if (x.len + y.len <= b->pieces->max_len) {
            memcpy(b->joined, x.ptr, x.len);
            memcpy(b->joined + x.len, y.ptr, y.len);
            id = pieces_find_text(b->pieces, b->joined, x.len + y.len);
        }
        if (id >= 0)
            *p = (Pair){left + 1, right, score_rank(v, id), (uint32_t)id};
    } else if (left < LONE && right < LONE) {
        const Merge *m = pieces_merge(b->pieces, left, right);
        if (m)
            *p = (Pair){left + 1, right, m->rank, m->id1 - 1};
    }
    return p;
}

static uint64_t neighbour_bit(uint32_t left, uint32_t right)
{
    return (((uint64_t)left << 32 | right) * HASH_MIX) >> (64 - NEIGHBOUR_BITS);
}

/* Which characters stand next to each other in a piece (and, where hashes agree, some others).
 * Whatever is joined lies in one piece, so a text may be cut between any other two: what is left of
 * the cut and what is right of it join as they would have without it, each best pair in its
 * turn. */
static int build_neighbours(Bpe *b)
{
    const Vocab *v = b->vocab;
    b->neighbours = mem_zalloc(((size_t)1 << NEIGHBOUR_BITS) / 64, sizeof *b->neighbours);
    if (!b->neighbours)
        return no_memory(b);
    for (int id = 0; id < v->n; id++) {
        Str s = v->pieces[id];
        uint32_t last = 0, cp;
        for (size_t i = 0, n; i < s.len; i += n, last = cp) {
            n = utf8_decode(s.ptr + i, s.ptr + s.len, &cp);
            uint64_t bit = neighbour_bit(last, cp);
            if (i)
                b->neighbours[bit / 64] |= (uint64_t)1 << (bit % 64);
        }
    }
    return 0;
}

static bool may_join(const Bpe *b, uint32_t left, uint32_t right)
{
    uint64_t bit = neighbour_bit(left, right);
    return b->neighbours[bit / 64] >> (bit % 64) & 1;
}

/* ---- joining --------------------------------------------------------------------------------- */

static size_t round_up(size_t n, size_t multiple)
{
    return (n + multiple - 1) / multiple * multiple;
}

/* Room for what is known of b->n symbols, all alive and without ranks. */
static int begin_join(Bpe *b)
{
    size_t need = 0, words = round_up(b->n, 64) / 64, offset[N_LEVELS];
    b->top = -1;
    for (size_t n = b->n;; n = round_up(n, FANOUT) / FANOUT) {
        offset[++b->top] = need;
        need += round_up(n, FANOUT);
        if (n == 1)
            break;
    }
    if (need > b->cap_ranks) {
        free(b->ranks[0]); // nothing in it is kept
        b->cap_ranks = 0;
        b->ranks[0] = mem_alloc(need, sizeof *b->ranks[0]);
        if (!b->ranks[0])
            return no_memory(b);
        b->cap_ranks = need;
    }
    if (!mem_room(&b->alive, words, &b->cap_alive, sizeof *b->alive))
        return no_memory(b);
    for (int k = 1; k <= b->top; k++)
        b->ranks[k] = b->ranks[0] + offset[k];
    memset(b->ranks[0], 0xff, need * sizeof *b->ranks[0]);
    memset(b->alive, 0xff, words * sizeof *b->alive);
    return 0;
}

/* The smallest of FANOUT ranks. */
static uint32_t smallest(const uint32_t *ranks)
{
    uint32_t best = ranks[0];
    for (int i = 1; i < FANOUT; i++)
        best = ranks[i] < best ? ranks[i] : best;
    return best;
}

/* ranks[0][i] or one beside it was changed. */
static void update_ranks(Bpe *b, size_t i)
{
    for (int k = 0; k < b->top; k++) {
        i /= FANOUT;
        uint32_t best = smallest(b->ranks[k] + i * FANOUT);
        if (b->ranks[k + 1][i] == best)
            return;
        b->ranks[k + 1][i] = best;
    }
}

/* The living symbol before i, SIZE_MAX if there is none. */
static size_t symbol_before(const Bpe *b, size_t i)
{
    size_t word = i / 64;
    uint64_t bits = b->alive[word] & (((uint64_t)1 << (i % 64)) - 1);
    while (!bits && word)
        bits = b->alive[--word];
    return bits ? word * 64 + 63 - (size_t)__builtin_clzll(bits) : SIZE_MAX;
}

/* The living symbol after i, b->n if there is none. */
static size_t symbol_after(const Bpe *b, size_t i)
{
    size_t word = ++i / 64, n_words = round_up(b->n, 64) / 64;
    uint64_t bits = i < b->n ? b->alive[word] >> (i % 64) << (i % 64) : 0;
    while (!bits && ++word < n_words)
        bits = b->alive[word];
    i = bits ? word * 64 + (size_t)__builtin_ctzll(bits) : b->n;
    return i < b->n ? i : b->n;
}

static uint32_t rank_of(Bpe *b, size_t left, size_t right)
{
    return pair_of(b, b->symbols[left], b->symbols[right])->rank;
}

/* Join the symbols as far as they go: the pair of the smallest rank first, the leftmost of
 * those. */
static int join_symbols(Bpe *b)
{
    if (begin_join(b))
        return -1;
    for (size_t i = 0; i + 1 < b->n; i++)
        b->ranks[0][i] = rank_of(b, i, i + 1);
    size_t count = b->n;
    for (int k = 0; k < b->top; k++) {
        count = round_up(count, FANOUT) / FANOUT;
        for (size_t i = 0; i < count; i++)
            b->ranks[k + 1][i] = smallest(b->ranks[k] + i * FANOUT);
    }
    for (uint32_t best; (best = *b->ranks[b->top]) != NO_RANK;) {
        size_t i = 0;
        for (int k = b->top; k-- > 0;)
            for (i *= FANOUT; b->ranks[k][i] != best; i++) {
            }
        size_t joined = symbol_after(b, i), right = symbol_after(b, joined);
        size_t left = symbol_before(b, i);
        b->symbols[i] = pair_of(b, b->symbols[i], b->symbols[joined])->made;
        b->alive[joined / 64] &= ~((uint64_t)1 << (joined % 64));
        b->ranks[0][joined] = NO_RANK;
        b->ranks[0][i] = right < b->n ? rank_of(b, i, right) : NO_RANK;
        if (left != SIZE_MAX)
            b->ranks[0][left] = rank_of(b, left, i);
        update_ranks(b, i);
        if (joined / FANOUT != i / FANOUT)
            update_ranks(b, joined);
        if (left != SIZE_MAX && left / FANOUT != i / FANOUT)
            update_ranks(b, left);
    }
    return 0;
}

/* Add a character that is no token: its bytes where the vocabulary has them, else the unknown
 * token, one for a run. */
static int add_lone(Bpe *b, uint32_t symbol)
{
    const Vocab *v = b->vocab;
    char lone[4];
    Str s = symbol_text(v, symbol, lone);
    bool bytes = true;
    for (size_t i = 0; i < s.len; i++)
        bytes = bytes && b->pieces->bytes[(unsigned char)s.ptr[i]] >= 0;
    for (size_t i = 0; bytes && i < s.len; i++)
        if (tokens_add(b->out, b->pieces->bytes[(unsigned char)s.ptr[i]], b->e))
            return -1;
    if (!bytes && v->unknown >= 0 && !b->last_unknown && tokens_add(b->out, v->unknown, b->e))
        return -1;
    b->last_unknown = !bytes;
    return 0;
}

static int add_symbol(Bpe *b, uint32_t symbol)
{
    if (symbol >= LONE)
        return add_lone(b, symbol);
    b->last_unknown = false;
    return tokens_add(b->out, (int)symbol, b->e);
}

/* Join the stretch, add its tokens, and begin another one. */
static int end_stretch(Bpe *b)
{
    size_t n = b->n;
    if (n > 1 && join_symbols(b))
        return -1;
    for (size_t i = 0; i < n; i = n > 1 ? symbol_after(b, i) : n)
        if (add_symbol(b, b->symbols[i]))
            return -1;
    b->n = 0;
    return 0;
}

/* Append a character to the stretch, or begin another one with it. */
static int put(Bpe *b, uint32_t symbol, uint32_t character, bool cuts)
{
    if (cuts && b->n && !may_join(b, b->last_char, character) && end_stretch(b))
        return -1;
    if (!mem_room(&b->symbols, b->n + 1, &b->cap, sizeof *b->symbols))
        return no_memory(b);
    b->symbols[b->n++] = symbol;
    b->last_char = character;
    return 0;
}

/* A whole pre-token as one token, without joining: 1 and *id, 0 if it is none, -1 when out of
 * memory. */
static int find_whole(Bpe *b, const char *text, size_t len, int *id)
{
    b->mapped.len = 0;
    if (len > b->pieces->max_len)
        return 0;
    for (size_t i = 0; i < len; i++) {
        char utf8[4];
        buf_add(&b->mapped, utf8, utf8_encode(piece_byte_to_char((unsigned char)text[i]), utf8));
    }
    if (b->mapped.failed)
        return no_memory(b);
    *id = pieces_find_text(b->pieces, b->mapped.ptr, b->mapped.len);
    return *id >= 0 && vocab_type(b->vocab, *id) != TOKEN_USER_DEFINED;
}

/* Append the text's bytes, or its characters. */
static int put_all(Bpe *b, const char *text, size_t len, bool cuts)
{
    const Vocab *v = b->vocab;
    for (size_t i = 0, n; i < len; i += n) {
        unsigned char byte = (unsigned char)text[i];
        uint32_t cp = byte;
        int id;
        n = byte < 0x80 || v->byte_level ? 1 : utf8_decode(text + i, text + len, &cp);
        if (v->byte_level)
            id = b->pieces->bytes[byte];
        else
            id = byte < 0x80 ? b->pieces->ascii[byte] : pieces_find_text(b->pieces, text + i, n);
        if (id < 0 && v->byte_level)
            continue; // a byte without a token is left out, as in Hugging Face's BPE
        uint32_t lone = cp & UTF8_INVALID ? LONE | LONE_BYTE | byte : LONE | cp;
        if (put(b, id < 0 ? lone : (uint32_t)id, v->byte_level ? piece_byte_to_char(byte) : cp,
                cuts))
            return -1;
    }
    return 0;
}

int bpe_encode(Bpe *b, const char *text, size_t len)
{
    const Vocab *v = b->vocab;
    if (v->ignore_merges && v->byte_level) {
        int id = -1, rc = find_whole(b, text, len, &id);
        if (rc)
            return rc < 0 ? -1 : tokens_add(b->out, id, b->e);
    }
    bool cuts = (v->byte_level ? len : b->len) >= LONG_TEXT; // pre-tokens are short as it is
    if (cuts && !b->neighbours && build_neighbours(b))
        return -1;
    b->last_unknown = false;
    return put_all(b, text, len, cuts) || end_stretch(b) ? -1 : 0;
}
