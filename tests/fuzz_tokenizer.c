/* fuzz_tokenizer.c - an input is a text and the keys of a vocabulary, from which a file is made
 * whose lengths and counts are right, so that changes get as far as the tokenizer.
 *
 * Records end with a byte FF, their fields with FE. The first is flags as a number, and a text to
 * encode; each other is a key's name, its type as a letter, and its value. Letters: s text, i and u
 * 32-bit integers, f float, b bool; S, I, U, F, B are arrays, with an item in each field.
 */
#include "fuzz.h"
#include "hostile.h"

static Str field(Str *rest)
{
    const char *end = rest->len ? memchr(rest->ptr, 0xfe, rest->len) : NULL;
    Str s = {rest->ptr, end ? (size_t)(end - rest->ptr) : rest->len};
    rest->ptr += s.len + (end != NULL);
    rest->len -= s.len + (end != NULL);
    return s;
}

static double number(Str s)
{
    char text[32];
    snprintf(text, sizeof text, "%.*s", s.len < 31 ? (int)s.len : 31, s.ptr);
    return strtod(text, NULL);
}

static uint32_t whole(Str s)
{
    double v = number(s);
    return v > -2147483649.0 && v < 4294967296.0 ? (uint32_t)(int64_t)v : 0;
}

static void add_u32(Buf *b, uint32_t v)
{
    buf_add(b, &v, sizeof v);
}

static void add_text(Buf *b, Str s)
{
    uint64_t len = s.len;
    buf_add(b, &len, sizeof len);
    buf_add(b, s.ptr, s.len);
}

static void add_item(Buf *b, GgufType type, Str s)
{
    float f = (float)number(s);
    if (type == GGUF_STRING)
        add_text(b, s);
    else if (type == GGUF_BOOL)
        buf_add(b, whole(s) ? "\1" : "", 1);
    else if (type == GGUF_F32)
        buf_add(b, &f, sizeof f);
    else
        add_u32(b, whole(s));
}

static void add_key(Buf *b, Str record)
{
    static const char letters[] = "siufbSIUFB";
    static const GgufType types[] = {GGUF_STRING, GGUF_I32, GGUF_U32, GGUF_F32, GGUF_BOOL};
    Str name = field(&record), letter = field(&record);
    const char *found = letter.len && *letter.ptr ? strchr(letters, *letter.ptr) : NULL;
    size_t kind = found ? (size_t)(found - letters) : 0;
    Buf items = {0};
    uint64_t n = 0;
    add_text(b, name);
    if (kind >= 5) {
        for (; record.len; n++)
            add_item(&items, types[kind - 5], field(&record));
        add_u32(b, GGUF_ARRAY);
    } else {
        add_item(&items, types[kind], record);
    }
    add_u32(b, types[kind % 5]);
    if (kind >= 5)
        buf_add(b, &n, sizeof n);
    buf_add(b, items.ptr, items.len);
    buf_free(&items);
}

/* The file; *flags and *text: the first record. */
static Buf image(Str input, unsigned *flags, Str *text)
{
    Buf b = {0}, keys = {0};
    uint64_t counts[2] = {0, 0}; // tensors, keys
    for (bool first = true; input.len; first = false) {
        const char *end = memchr(input.ptr, 0xff, input.len);
        Str record = {input.ptr, end ? (size_t)(end - input.ptr) : input.len};
        input.ptr += record.len + (end != NULL);
        input.len -= record.len + (end != NULL);
        if (first) {
            *flags = whole(field(&record)) & 7;
            *text = record;
        } else {
            add_key(&keys, record);
            counts[1]++;
        }
    }
    buf_text(&b, "GGUF");
    add_u32(&b, 3);
    buf_add(&b, counts, sizeof counts);
    buf_add(&b, keys.ptr, keys.len);
    buf_free(&keys);
    return b;
}

/* Encode twice, the second time in two parts of which the second is special, and decode. */
static void use(const Tokenizer *t, Str text, unsigned flags)
{
    TokenList ids = {0};
    Buf out = {0};
    Decoder d;
    Err e = {0};
    TextPart parts[] = {{text.len / 2, false}, {text.len, true}};
    int rc = tokenizer_encode(t, text.ptr, text.len, flags, &ids, &e);
    if (!rc)
        rc = tokenizer_encode_parts(t, text.ptr, text.len, parts, 2, flags, &ids, &e);
    MUST(!rc || (e.code && *e.text));
    decoder_init(&d, t, true, flags & ENCODE_SPECIAL);
    for (size_t i = 0; i < ids.n; i++) {
        MUST(ids.ids[i] >= 0 && ids.ids[i] < tokenizer_vocab_size(t));
        decoder_feed(&d, ids.ids[i], &out);
        tokenizer_text(t, ids.ids[i], &out);
    }
    decoder_flush(&d, &out);
    for (int id = -1; id <= tokenizer_vocab_size(t); id++) {
        Str piece = tokenizer_piece(t, id);
        tokenizer_bytes(t, id, true, &out);
        int found = rc ? -1 : tokenizer_find(t, piece, &e);
        MUST(found < tokenizer_vocab_size(t));
    }
    buf_free(&out);
    tokens_free(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    unsigned flags = 0;
    Str text = {"", 0};
    Buf file = image((Str){(const char *)data, size}, &flags, &text);
    Gguf g = {0};
    Err e = {0};
    if (gguf_open(&g, fuzz_file(file.ptr, file.len), &e)) {
        MUST(e.code == EXIT_MODEL);
        buf_free(&file);
        return 0;
    }
    Tokenizer *t = model_tokenizer(&g, &e);
    MUST(t || (e.code == EXIT_MODEL && *e.text));
    if (t)
        use(t, text, flags);
    tokenizer_close(t);
    gguf_close(&g);
    buf_free(&file);
    return 0;
}
