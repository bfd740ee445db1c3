/* wordpiece.c - BERT's tokenizer. Contracts are in wordpiece.h.
 *
 * In a file, as llama.cpp writes it, a piece that begins a word has SPACE_MARK in front, and one
 * that goes on with it has nothing, where vocab.txt has nothing and "##".
 */
#include "text/wordpiece.h"

#include <string.h>

#include "base/utf8.h"
#include "text/nfc.h"
#include "text/unicode.h"

enum { MAX_WORD = 100, MARK_LEN = sizeof SPACE_MARK - 1 };

typedef struct {
    const Pieces *pieces;
    const Vocab *vocab;
    TokenList *out;
    Buf word; // behind a SPACE_MARK
    size_t n_chars;
    Err *e;
} Words;

static int no_memory(Err *e)
{
    return err_set(e, EXIT_MEMORY, "out of memory while tokenizing the text");
}

/* The longest piece that the word goes on with at byte `at`: its length, 0 for none. */
static size_t longest_piece(const Words *w, size_t at, int *id)
{
    const char *rest = w->word.ptr + at;
    size_t least = at ? 1 : MARK_LEN + 1, n = w->word.len - at;
    n = n < w->pieces->max_len ? n : w->pieces->max_len;
    if (at && n >= MARK_LEN && !memcmp(rest, SPACE_MARK, MARK_LEN))
        return 0; // that would find pieces that begin words
    for (; n >= least; n--)
        if ((*id = pieces_find_text(w->pieces, rest, n)) >= 0)
            return n;
    return 0;
}

static int end_word(Words *w)
{
    size_t n_chars = w->n_chars, before = w->out->n, len = w->word.len;
    int id, rc = 0;
    if (w->word.failed)
        return no_memory(w->e);
    for (size_t at = 0, n; n_chars && n_chars <= MAX_WORD && at < len && !rc; at += n) {
        n = longest_piece(w, at, &id);
        n_chars = n ? n_chars : SIZE_MAX;
        rc = n ? tokens_add(w->out, id, w->e) : 0;
    }
    if (n_chars > MAX_WORD) {
        w->out->n = before;
        rc = rc ? rc : w->vocab->unknown >= 0 ? tokens_add(w->out, w->vocab->unknown, w->e) : 0;
    }
    w->n_chars = w->word.len = 0;
    return rc;
}

/* Characters beyond MAX_WORD are counted, not kept. */
static void add_char(Words *w, uint32_t cp)
{
    char utf8[4];
    if (!w->n_chars)
        buf_add(&w->word, SPACE_MARK, MARK_LEN);
    if (w->n_chars++ < MAX_WORD)
        buf_add(&w->word, utf8, utf8_encode(cp, utf8));
}

/* CJK ideographs by the ranges of Hugging Face's BertNormalizer, each of which is a word. */
static bool is_ideograph(uint32_t cp)
{
    static const uint32_t ranges[][2] = {{0x3400, 0x4dbf},   {0x4e00, 0x9fff},   {0xf900, 0xfaff},
                                         {0x20000, 0x2a6df}, {0x2a700, 0x2b81f}, {0x2b920, 0x2ceaf},
                                         {0x2f800, 0x2fa1f}};
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
        if (cp >= ranges[i][0] && cp <= ranges[i][1])
            return true;
    return false;
}

/* White space becomes a space, ideographs get spaces around them, and what is nothing is dropped.
 */
static int clean(const char *text, size_t len, Buf *out, Err *e)
{
    for (size_t i = 0, n; i < len; i += n) {
        uint32_t cp;
        n = utf8_decode(text + i, text + len, &cp);
        if (unicode_bert_space(cp))
            buf_add(out, " ", 1);
        else if (cp & UTF8_INVALID || unicode_bert(cp) == BERT_DROPPED)
            continue;
        else if (is_ideograph(cp)) {
            buf_add(out, " ", 1);
            buf_add(out, text + i, n);
            buf_add(out, " ", 1);
        } else
            buf_add(out, text + i, n);
    }
    return out->failed ? no_memory(e) : 0;
}

/* The words of a clean text. */
static int split(Words *w, const char *text, size_t len)
{
    const Vocab *v = w->vocab;
    for (size_t i = 0; i < len;) {
        uint32_t cp, lower[3];
        i += utf8_decode(text + i, text + len, &cp);
        if (v->strip_accents && unicode_bert(cp) == BERT_ACCENT)
            continue;
        *lower = cp;
        int n = v->lowercase ? unicode_bert_lower(cp, lower) : 1;
        for (int k = 0; k < n; k++) {
            bool alone = unicode_bert(lower[k]) == BERT_PUNCTUATION;
            if ((alone || lower[k] == ' ') && end_word(w))
                return -1;
            if (lower[k] != ' ')
                add_char(w, lower[k]);
            if (alone && end_word(w))
                return -1;
        }
    }
    return end_word(w);
}

int wordpiece_encode(const Pieces *pieces, const char *text, size_t len, TokenList *out, Err *e)
{
    Words w = {.pieces = pieces, .vocab = pieces->vocab, .out = out, .e = e};
    Buf cleaned = {0}, decomposed = {0};
    const Buf *normal = &cleaned;
    int rc = clean(text, len, &cleaned, e);
    if (!rc && pieces->vocab->strip_accents) {
        rc = nfd(cleaned.ptr, cleaned.len, &decomposed, e);
        normal = &decomposed;
    }
    rc = rc || !normal->len ? rc : split(&w, normal->ptr, normal->len);
    buf_free(&cleaned);
    buf_free(&decomposed);
    buf_free(&w.word);
    return rc;
}
