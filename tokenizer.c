/* tokenizer.c - text to token ids and back: the order of the steps. Contracts are in tokenizer.h.
 *
 * A text is searched for special and user-defined tokens (text/added.c). What lies between them is
 * brought to the form of the pieces: byte-level BPE takes it in normal form C (text/nfc.c) and cuts
 * it by patterns (text/pattern.c), other kinds mark its spaces. Then its characters are joined to
 * tokens (text/bpe.c). text/vocab.c reads the file.
 */
#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "text/added.h"
#include "text/bpe.h"
#include "text/nfc.h"
#include "text/wordpiece.h"

/* What encoding needs and decoding does not. */
typedef struct {
    bool ready;
    Pieces pieces;
    Added added;
} Tables;

struct Tokenizer {
    Vocab vocab;
    Tables *tables;
};

Tokenizer *tokenizer_open(const Gguf *g, const TokenizerDefaults *defaults, Err *e)
{
    Tokenizer *t = mem_zalloc(1, sizeof *t);
    if (t)
        t->tables = mem_zalloc(1, sizeof *t->tables);
    if (!t || !t->tables)
        err_set(e, EXIT_MEMORY, "out of memory for the tokenizer");
    else if (vocab_open(&t->vocab, g, defaults, e) == 0)
        return t;
    tokenizer_close(t);
    return NULL;
}

void tokenizer_close(Tokenizer *t)
{
    if (!t)
        return;
    if (t->tables) {
        pieces_free(&t->tables->pieces);
        added_free(&t->tables->added);
    }
    free(t->tables);
    vocab_close(&t->vocab);
    free(t);
}

int tokenizer_vocab_size(const Tokenizer *t)
{
    return t->vocab.n;
}

int tokenizer_bos(const Tokenizer *t)
{
    return t->vocab.bos;
}

int tokenizer_eos(const Tokenizer *t)
{
    return t->vocab.eos;
}

bool tokenizer_adds_bos(const Tokenizer *t)
{
    return t->vocab.adds_bos;
}

bool tokenizer_is_end(const Tokenizer *t, int id)
{
    return id >= 0 && id < t->vocab.n && t->vocab.is_end[id];
}

Str tokenizer_piece(const Tokenizer *t, int id)
{
    return id >= 0 && id < t->vocab.n ? t->vocab.pieces[id] : (Str){"", 0};
}

TokenType tokenizer_type(const Tokenizer *t, int id)
{
    return vocab_type(&t->vocab, id);
}

static int build_tables(const Tokenizer *t, Err *e)
{
    Tables *x = t->tables;
    if (x->ready)
        return 0;
    pieces_free(&x->pieces); // an earlier attempt may have failed halfway
    added_free(&x->added);
    if (pieces_init(&x->pieces, &t->vocab, e) || added_init(&x->added, &t->vocab, e))
        return -1;
    x->ready = true;
    return 0;
}

int tokenizer_find(const Tokenizer *t, Str piece, Err *e)
{
    return build_tables(t, e) ? -2 : pieces_find(&t->tables->pieces, piece.ptr, piece.len);
}

/* ---- encoding -------------------------------------------------------------------------------- */

/* Steps that looking for tokens in a text may take: of the order of a second for a short text. */
enum { SEARCH_STEPS = 100000000, SEARCH_STEPS_PER_BYTE = 1000 };

/* One text on its way to tokens. */
typedef struct {
    const Vocab *vocab;
    const Added *added;
    const Pieces *pieces;
    Bpe *bpe;
    Cutter *cutter; // NULL until it is needed
    TokenList *out;
    size_t len;           // of the whole text
    int64_t search_steps; // left
    Special raw, later;   // as the two passes read the text's parts
    Buf marked;           // a text with its spaces marked
    size_t begin;         // of the text's own tokens in `out`
    bool begins_with_bos;
    bool continues; // no space is put at the text's very start
    Err *e;
} Encoder;

/* Whether a space is put before what begins at byte `from` of the text. */
static bool puts_space(const Encoder *c, size_t from)
{
    return c->vocab->space_prefix && !(c->continues && from == 0);
}

static int64_t search_budget(size_t len)
{
    return SEARCH_STEPS + SEARCH_STEPS_PER_BYTE * (int64_t)len;
}

static int no_memory(Encoder *c)
{
    return err_set(c->e, EXIT_MEMORY, "out of memory while tokenizing the text");
}

/* The error of a search for tokens that took too long. */
static int search_too_long(Encoder *c)
{
    return err_set(c->e, EXIT_MODEL,
                   "key tokenizer.ggml.tokens: user-defined or control tokens "
                   "take more than %lld steps to find in a text of %zu bytes; want shorter ones",
                   (long long)search_budget(c->len), c->len);
}

/* Tokens of one pre-token, or of a text whose spaces are marked. */
static int encode_piece(Encoder *c, const char *text, size_t len)
{
    return c->search_steps < 0 ? search_too_long(c) : bpe_encode(c->bpe, text, len);
}

static int add_parsed(Encoder *c, int id)
{
    c->begins_with_bos |= id == c->vocab->bos && c->out->n == c->begin;
    return tokens_add(c->out, id, c->e);
}

/* Tokens of a normalised text, piece by piece. */
static int cut_and_encode(Encoder *c, const char *text, size_t len)
{
    size_t from = 0, to;
    int rc;
    if (len >= INT32_MAX)
        return err_set(c->e, EXIT_USAGE, "text: got %zu bytes in form C, want less than 2 GB", len);
    if (!c->cutter && !(c->cutter = cutter_open(c->vocab->pretok, c->len, c->e)))
        return -1;
    cutter_start(c->cutter, text, len);
    while ((rc = cutter_next(c->cutter, &to, c->e)) == 1
           && !(rc = encode_piece(c, text + from, to - from)))
        from = to;
    return rc;
}

/* The text from `from` to `to`, between parsed tokens, byte-level BPE. */
static int encode_bytes(Encoder *c, const char *text, size_t from, size_t to)
{
    const Vocab *v = c->vocab;
    Buf prefixed = {0}, normal = {0};
    size_t len = to - from;
    text += from;
    if (puts_space(c, from) && *text != ' ') {
        buf_add(&prefixed, " ", 1);
        buf_add(&prefixed, text, len);
        text = prefixed.ptr;
        len = prefixed.len;
    }
    int rc = prefixed.failed ? no_memory(c) : v->nfc ? nfc(text, len, &normal, c->e) : 0;
    if (rc == 1) {
        buf_free(&prefixed);
        text = normal.ptr;
        len = normal.len;
    }
    rc = rc < 0 ? rc : cut_and_encode(c, text, len);
    buf_free(&prefixed);
    buf_free(&normal);
    return rc;
}

/* c->marked: a text with its spaces marked; `prefix`: after one more mark. */
static int mark_spaces(Encoder *c, const char *text, size_t len, bool prefix)
{
    c->marked.len = 0;
    if (prefix)
        buf_add(&c->marked, SPACE_MARK, 3);
    for (size_t i = 0, plain; i < len; i += plain) {
        const char *space = memchr(text + i, ' ', len - i);
        plain = space ? (size_t)(space - text) - i : len - i;
        buf_add(&c->marked, text + i, plain);
        if (space) {
            buf_add(&c->marked, SPACE_MARK, 3);
            while (++plain < len - i && c->vocab->remove_extra_spaces && text[i + plain] == ' ') {
            }
        }
    }
    return c->marked.failed ? no_memory(c)
         : c->marked.len < INT32_MAX
             ? 0
             : err_set(c->e, EXIT_USAGE, "text: got %zu bytes, want less than 700 MB", len);
}

/* The text from `from` to `to`, between parsed tokens, where a normalizer marks the spaces: later
 * tokens are looked for in what it made. */
static int encode_normalized(Encoder *c, const char *text, size_t from, size_t to)
{
    const Vocab *v = c->vocab;
    bool squeeze = v->remove_extra_spaces, prefix = puts_space(c, from);
    while (squeeze && to > from && text[to - 1] == ' ')
        to--;
    while (squeeze && to > from && text[from] == ' ' && !(c->continues && from == 0))
        from++;
    if (to == from)
        return 0;
    if (mark_spaces(c, text + from, to - from, prefix))
        return -1;
    Search s = {.pass = &c->added->later,
                .special = &c->later,
                .text = c->marked.ptr,
                .len = c->marked.len,
                .source = text,
                .raw = from,
                .front = prefix ? 3 : 0,
                .squeeze = squeeze,
                .steps = &c->search_steps};
    for (size_t i = 0; i < s.len; i = s.at) {
        const AddedToken *found;
        size_t end = search_next(&s, &found);
        if ((end > i && encode_piece(c, s.text + i, end - i))
            || (found && add_parsed(c, found->id)))
            return -1;
    }
    return 0;
}

/* The same where Hugging Face's Metaspace marks the spaces of what is left between all tokens. */
static int encode_metaspace(Encoder *c, const char *text, size_t from, size_t to)
{
    const Vocab *v = c->vocab;
    Search s = {.pass = &c->added->later,
                .special = &c->later,
                .text = text,
                .at = from,
                .raw = from,
                .len = to,
                .steps = &c->search_steps};
    for (size_t i = from; i < to; i = s.at) {
        const AddedToken *found;
        size_t end = search_next(&s, &found);
        bool marked = text[i] == ' ' || (end - i >= 3 && memcmp(text + i, SPACE_MARK, 3) == 0);
        bool wanted = (v->marking == MARK_ALWAYS || (v->marking == MARK_FIRST && i == 0))
                   && !(c->continues && i == 0);
        if (end > i && mark_spaces(c, text + i, end - i, wanted && !marked))
            return -1;
        if (end > i && encode_piece(c, c->marked.ptr, c->marked.len))
            return -1;
        if (found && add_parsed(c, found->id))
            return -1;
    }
    return 0;
}

/* The text from `from` to `to`, between parsed tokens, WordPiece. */
static int encode_words(Encoder *c, const char *text, size_t from, size_t to)
{
    return wordpiece_encode(c->pieces, text + from, to - from, c->out, c->e);
}

/* Ids of a text without what is added before and after. */
static int encode_text(Encoder *c, const char *text, size_t len)
{
    const Vocab *v = c->vocab;
    int (*encode)(Encoder *c, const char *text, size_t from,
                  size_t to) = v->byte_level  ? encode_bytes
                             : v->wordpiece   ? encode_words
                             : v->marks_early ? encode_normalized
                                              : encode_metaspace;
    Search s = {.pass = &c->added->raw,
                .special = &c->raw,
                .text = text,
                .len = len,
                .steps = &c->search_steps};
    for (size_t i = 0; i < len; i = s.at) {
        const AddedToken *found;
        size_t end = search_next(&s, &found);
        if ((end > i && encode(c, text, i, end)) || (found && add_parsed(c, found->id)))
            return -1;
    }
    return 0;
}

int tokenizer_encode_parts(const Tokenizer *t, const char *text, size_t len, const TextPart *parts,
                           size_t n_parts, unsigned flags, TokenList *out, Err *e)
{
    const Vocab *v = &t->vocab;
    size_t before = out->n;
    if (len >= INT32_MAX)
        return err_set(e, EXIT_USAGE, "text: got %zu bytes, want less than 2 GB", len);
    if (build_tables(t, e))
        return -1;
    Special special = {.parts = parts, .n = n_parts};
    Encoder c = {.vocab = v,
                 .added = &t->tables->added,
                 .pieces = &t->tables->pieces,
                 .bpe = v->wordpiece ? NULL : bpe_open(&t->tables->pieces, len, out, e),
                 .out = out,
                 .len = len,
                 .search_steps = search_budget(len),
                 .raw = special,
                 .later = special,
                 .continues = flags & ENCODE_CONTINUE,
                 .e = e};
    bool adds_bos = flags & ENCODE_BOS && v->adds_bos;
    int rc = c.bpe || v->wordpiece ? 0 : -1;
    if (!rc && adds_bos)
        rc = tokens_add(out, v->bos, e);
    c.begin = out->n;
    rc = rc ? rc : encode_text(&c, text, len);
    if (!rc && c.search_steps < 0)
        rc = search_too_long(&c);
    if (!rc && adds_bos && c.begins_with_bos) // the text's own one is enough
        memmove(out->ids + before, out->ids + before + 1, (--out->n - before) * sizeof *out->ids);
    if (!rc && flags & ENCODE_EOS && v->adds_eos)
        rc = tokens_add(out, v->eos, e);
    bpe_close(c.bpe);
    cutter_close(c.cutter);
    buf_free(&c.marked);
    out->n = rc ? before : out->n;
    return rc;
}

int tokenizer_encode(const Tokenizer *t, const char *text, size_t len, unsigned flags,
                     TokenList *out, Err *e)
{
    TextPart whole = {len, flags & ENCODE_SPECIAL};
    return tokenizer_encode_parts(t, text, len, &whole, 1, flags, out, e);
}

/* ---- decoding -------------------------------------------------------------------------------- */

void tokenizer_bytes(const Tokenizer *t, int id, bool special, Buf *out)
{
    const Vocab *v = &t->vocab;
    Str s = tokenizer_piece(t, id);
    TokenType type = tokenizer_type(t, id);
    const char *end = s.ptr + s.len;
    size_t before = out->len;
    bool by_name = type == TOKEN_CONTROL || type == TOKEN_UNKNOWN;
    if (type == TOKEN_UNUSED || (by_name && !special) || !s.len)
        return;
    if (v->marking == MARK_PREPEND && v->later && v->later[id])
        buf_add(out, " ", 1); // it was found with one
    if (by_name) {
        buf_add(out, s.ptr, s.len);
    } else if (v->byte_level && type != TOKEN_USER_DEFINED) {
        for (const char *p = s.ptr; p < end;) {
            uint32_t cp;
            p += utf8_decode(p, end, &cp);
            int b = piece_char_to_byte(cp);
            if (b < 0) { // a piece that is not in byte-level characters stands for itself
                out->len = before;
                buf_add(out, s.ptr, s.len);
                return;
            }
            buf_add(out, &(char){(char)b}, 1);
        }
    } else if (!v->byte_level && type == TOKEN_BYTE && piece_named_byte(s) >= 0)
        buf_add(out, &(char){(char)piece_named_byte(s)}, 1);
    else if (v->byte_level)
        buf_add(out, s.ptr, s.len);
    else
        for (const char *p = s.ptr; p < end;) {
            bool mark = end - p >= 3 && memcmp(p, SPACE_MARK, 3) == 0;
            buf_add(out, mark ? " " : p, 1);
            p += mark ? 3 : 1;
        }
}

void tokenizer_text(const Tokenizer *t, int id, Buf *out)
{
    Buf bytes = {0};
    tokenizer_bytes(t, id, true, &bytes);
    out->failed |= bytes.failed;
    for (size_t i = 0; i < bytes.len && !bytes.failed;) {
        uint32_t cp;
        char hex[8];
        size_t n = utf8_decode(bytes.ptr + i, bytes.ptr + bytes.len, &cp);
        if (cp & UTF8_INVALID || !cp) // NumPy would drop a zero
            buf_add(out, hex, (size_t)snprintf(hex, sizeof hex, "\\x%02X", (unsigned)(cp & 0xff)));
        else
            buf_add(out, bytes.ptr + i, n);
        i += n;
    }
    buf_free(&bytes);
}

void decoder_init(Decoder *d, const Tokenizer *t, bool at_start, bool special)
{
    *d = (Decoder){.t = t,
                   .special = special,
                   .at_start = at_start && t->vocab.space_prefix && !t->vocab.byte_level};
}

void decoder_feed(Decoder *d, int id, Buf *out)
{
    size_t from = out->len;
    decoder_flush(d, out);
    size_t fresh = out->len;
    tokenizer_bytes(d->t, id, d->special, out);
    if (out->failed)
        return;
    if (d->at_start && out->len > fresh) {
        d->at_start = false;
        if (out->ptr[fresh] == ' ') {
            memmove(out->ptr + fresh, out->ptr + fresh + 1, out->len - fresh - 1);
            out->len--;
        }
    }
    size_t ready = utf8_complete(out->ptr + from, out->len - from);
    d->n_held = out->len - from - ready;
    memcpy(d->held, out->ptr + from + ready, d->n_held);
    out->len = from + ready;
}

void decoder_flush(Decoder *d, Buf *out)
{
    buf_add(out, d->held, d->n_held);
    d->n_held = 0;
}
