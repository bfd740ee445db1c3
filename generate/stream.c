/* stream.c - generated tokens to bytes, up to a stop text. Contracts are in stream.h. */
#include "generate/stream.h"

#include <string.h>

/* What a byte of the generated text is: printed, or of a control token's name, which is not. Stop
 * texts may hold such names, as a whole or not at all. */
enum { BYTE_SHOWN, BYTE_HIDDEN, BYTE_HIDDEN_ON }; // HIDDEN begins a name, HIDDEN_ON goes on with it

/* Mark what was appended to the text. */
static void add_marks(Printer *p, char first, char others)
{
    for (char mark = first; p->marks.len < p->text.len && !p->marks.failed; mark = others)
        buf_add(&p->marks, &mark, 1);
}

void printer_feed(Printer *p, int id)
{
    const Tokenizer *t = p->decoder.t;
    TokenType type = tokenizer_type(t, id);
    if ((type == TOKEN_CONTROL || type == TOKEN_UNKNOWN) && !p->special) {
        Str name = tokenizer_piece(t, id);
        buf_add(&p->text, name.ptr, name.len);
        add_marks(p, BYTE_HIDDEN, BYTE_HIDDEN_ON);
    } else {
        decoder_feed(&p->decoder, id, &p->text);
        add_marks(p, BYTE_SHOWN, BYTE_SHOWN);
    }
}

void printer_end(Printer *p)
{
    decoder_flush(&p->decoder, &p->text);
    add_marks(p, BYTE_SHOWN, BYTE_SHOWN);
}

/* Whether a stop text may begin or end before byte `at`. */
static bool is_boundary(const Printer *p, size_t at)
{
    return at == p->text.len || p->marks.ptr[at] != BYTE_HIDDEN_ON;
}

/* The first stop text: where it begins, or text.len if there is none. */
static size_t find_stop(Printer *p)
{
    size_t first = p->text.len;
    for (int i = 0; i < p->n_stops; i++) {
        const Str *stop = &p->stops[i];
        for (size_t at = 0; at + stop->len <= p->text.len && at < first; at++)
            if (!memcmp(p->text.ptr + at, stop->ptr, stop->len) && is_boundary(p, at)
                && is_boundary(p, at + stop->len)) {
                first = at;
                p->stop = i;
            }
    }
    return first;
}

/* How many bytes at the end could be the beginning of a stop text. */
static size_t held_back(const Printer *p)
{
    size_t most = 0, len = p->text.len;
    for (int i = 0; i < p->n_stops; i++) {
        const Str *stop = &p->stops[i];
        for (size_t n = stop->len - 1; n > most; n--)
            if (n <= len && !memcmp(p->text.ptr + len - n, stop->ptr, n) && is_boundary(p, len - n))
                most = n;
    }
    return most;
}

void printer_init(Printer *p, const Tokenizer *t, const Str *stops, int n_stops, bool at_start,
                  bool special)
{
    *p = (Printer){.stops = stops, .n_stops = n_stops, .special = special};
    decoder_init(&p->decoder, t, at_start, special);
}

void printer_free(Printer *p)
{
    buf_free(&p->text);
    buf_free(&p->marks);
}

int printer_take(Printer *p, bool at_end, Buf *out, Err *e)
{
    Buf *text = &p->text, *marks = &p->marks;
    if (text->failed || marks->failed)
        return err_set(e, EXIT_MEMORY, "out of memory for the text");
    if (!text->len)
        return 0;
    size_t stop = find_stop(p), n = stop;
    bool met = stop < text->len;
    if (!met && !at_end)
        n -= held_back(p);
    for (size_t i = 0; i < n; i++)
        if (marks->ptr[i] == BYTE_SHOWN)
            buf_add(out, text->ptr + i, 1);
    if (out->failed)
        return err_set(e, EXIT_MEMORY, "out of memory for the text");
    memmove(text->ptr, text->ptr + n, text->len - n);
    memmove(marks->ptr, marks->ptr + n, marks->len - n);
    text->len -= n;
    marks->len -= n;
    return met;
}
