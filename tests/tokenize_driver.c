/* tokenize_driver.c - many texts through one tokenizer, for tests/test_tokenizers.py.
 *
 * - MODEL FLAGS: each text becomes {"ids": [...], "bytes": "HEX"}, the bytes being the ids decoded.
 * - --parts MODEL FLAGS: the same; each text is followed by another that holds its parts: end and
 *   whether special, 4 bytes each.
 * - --split PATTERN...: [ends of the pieces in bytes].
 * - --nfc: "HEX".
 * - --rule NAME: {"flags": N, "patterns": [...]}, or null for an unknown name; reads nothing.
 * - --time MODEL FLAGS: one text becomes {"ids": count, "open": s, "first": s, "second": s},
 *   processor seconds of opening, encoding, and encoding again.
 *
 * Texts are read from standard input, each after its length as 4 bytes, little-endian; one line is
 * printed for each.
 */
#include "base/json.h"
#include "text/nfc.h"
#include "text/pretokenize.h"
#include "model.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

static int die(const Err *e)
{
    fprintf(stderr, "tokenize_driver: %s\n", e->text);
    return e->code;
}

static size_t number(const char *p)
{
    const unsigned char *b = (const unsigned char *)p;
    return b[0] | (size_t)b[1] << 8 | (size_t)b[2] << 16 | (size_t)b[3] << 24;
}

/* 1 and the text in *out, 0 at the end of the input. */
static int read_text(Buf *out)
{
    char head[4], byte[4096];
    out->len = 0;
    buf_add(out, "", 0);
    if (fread(head, 1, 4, stdin) != 4)
        return 0;
    size_t len = number(head);
    while (len) {
        size_t n = fread(byte, 1, len < sizeof byte ? len : sizeof byte, stdin);
        if (n == 0)
            return 0;
        buf_add(out, byte, n);
        len -= n;
    }
    return 1;
}

static void print_line(Buf *line)
{
    buf_add(line, "\n", 1);
    fwrite(line->ptr, 1, line->len, stdout);
    line->len = 0;
}

static int split(char **patterns, int n, Err *e)
{
    Str list[8];
    Buf text = {0}, line = {0};
    Cutter *c = NULL;
    for (int i = 0; i < n && i < 8; i++)
        list[i] = (Str){patterns[i], strlen(patterns[i])};
    Pretok *p = pretok_compile(list, (size_t)n, e);
    int rc = p ? 0 : -1;
    while (!rc && read_text(&text)) {
        size_t end;
        cutter_close(c);
        c = cutter_open(p, text.len, e);
        rc = c ? 0 : -1;
        if (c)
            cutter_start(c, text.ptr, text.len);
        Json j = {.out = &line};
        json_list(&j);
        while (c && (rc = cutter_next(c, &end, e)) == 1)
            json_int(&j, (int64_t)end);
        json_end(&j);
        print_line(&line);
    }
    cutter_close(c);
    pretok_free(p);
    buf_free(&text);
    buf_free(&line);
    return rc;
}

static int normalize(Err *e)
{
    Buf text = {0}, out = {0}, line = {0};
    int rc = 0;
    while (rc >= 0 && read_text(&text)) {
        out.len = 0;
        rc = nfc(text.ptr, text.len, &out, e);
        json_hex(&(Json){.out = &line}, rc == 1 ? &out : &text);
        print_line(&line);
    }
    buf_free(&text);
    buf_free(&out);
    buf_free(&line);
    return rc < 0 ? -1 : 0;
}

static int rule(const char *name)
{
    const PreRule *r = pre_rule((Str){name, strlen(name)});
    Buf line = {0};
    Json j = {.out = &line};
    json_object(&j);
    json_int(json_key(&j, "flags"), r ? (int64_t)r->flags : 0);
    json_list(json_key(&j, "patterns"));
    for (int i = 0; r && i < PRE_MAX_PATTERNS && r->patterns[i]; i++)
        json_text(&j, r->patterns[i]);
    json_end(&j);
    json_end(&j);
    if (!r) {
        line.len = 0;
        buf_text(&line, "null");
    }
    print_line(&line);
    buf_free(&line);
    return 0;
}

static double processor_seconds(void)
{
    return (double)clock() / CLOCKS_PER_SEC;
}

static int time_it(const char *path, unsigned flags, Err *e)
{
    Gguf g = {0};
    Buf text = {0};
    TokenList list = {0};
    if (gguf_open(&g, path, e))
        return -1;
    read_text(&text);
    double t0 = processor_seconds();
    Tokenizer *t = model_tokenizer(&g, e);
    double t1 = processor_seconds();
    int rc = t ? tokenizer_encode(t, text.ptr, text.len, flags, &list, e) : -1;
    double t2 = processor_seconds();
    list.n = 0;
    rc = rc ? rc : tokenizer_encode(t, text.ptr, text.len, flags, &list, e);
    double t3 = processor_seconds();
    if (!rc)
        printf("{\"ids\": %zu, \"open\": %.6f, \"first\": %.6f, \"second\": %.6f}\n", list.n,
               t1 - t0, t2 - t1, t3 - t2);
    tokens_free(&list);
    buf_free(&text);
    tokenizer_close(t);
    gguf_close(&g);
    return rc;
}

/* The next text's ids; `by_parts`: its parts follow it in the input. 1, 0 at the end of the input,
 * -1 on failure. */
static int encode_next(const Tokenizer *t, bool by_parts, unsigned flags, TokenList *list, Err *e)
{
    enum { MAX_PARTS = 64 };
    TextPart parts[MAX_PARTS];
    Buf text = {0}, packed = {0};
    int rc = read_text(&text) && (!by_parts || read_text(&packed));
    size_t n = packed.len / 8 < MAX_PARTS ? packed.len / 8 : MAX_PARTS;
    for (size_t i = 0; i < n; i++)
        parts[i] = (TextPart){number(packed.ptr + 8 * i), number(packed.ptr + 8 * i + 4) != 0};
    list->n = 0;
    if (rc && by_parts)
        rc = tokenizer_encode_parts(t, text.ptr, text.len, parts, n, flags, list, e) ? -1 : 1;
    else if (rc)
        rc = tokenizer_encode(t, text.ptr, text.len, flags, list, e) ? -1 : 1;
    buf_free(&text);
    buf_free(&packed);
    return rc;
}

static int tokenize(const char *path, bool by_parts, unsigned flags, Err *e)
{
    Gguf g = {0};
    Buf line = {0}, bytes = {0};
    TokenList list = {0};
    if (gguf_open(&g, path, e))
        return -1;
    Tokenizer *t = model_tokenizer(&g, e);
    int rc = t ? 1 : -1;
    while (rc > 0 && (rc = encode_next(t, by_parts, flags, &list, e)) > 0) {
        Decoder d;
        bytes.len = 0;
        decoder_init(&d, t, true, flags & ENCODE_SPECIAL);
        for (size_t i = 0; i < list.n; i++)
            decoder_feed(&d, list.ids[i], &bytes);
        decoder_flush(&d, &bytes);
        Json j = {.out = &line};
        json_object(&j);
        json_ints(json_key(&j, "ids"), list.ids, (int)list.n);
        json_hex(json_key(&j, "bytes"), &bytes);
        json_end(&j);
        print_line(&line);
    }
    tokens_free(&list);
    buf_free(&line);
    buf_free(&bytes);
    tokenizer_close(t);
    gguf_close(&g);
    return rc;
}

int main(int argc, char **argv)
{
    Err e = {0};
    int rc;
    if (argc >= 2 && strcmp(argv[1], "--split") == 0)
        rc = split(argv + 2, argc - 2, &e);
    else if (argc == 2 && strcmp(argv[1], "--nfc") == 0)
        rc = normalize(&e);
    else if (argc == 3 && strcmp(argv[1], "--rule") == 0)
        rc = rule(argv[2]);
    else if (argc == 4 && strcmp(argv[1], "--time") == 0)
        rc = time_it(argv[2], (unsigned)atoi(argv[3]), &e);
    else if (argc == 4 && strcmp(argv[1], "--parts") == 0)
        rc = tokenize(argv[2], true, (unsigned)atoi(argv[3]), &e);
    else if (argc == 3)
        rc = tokenize(argv[1], false, (unsigned)atoi(argv[2]), &e);
    else {
        fprintf(stderr, "usage: see the head of tests/tokenize_driver.c\n");
        return EXIT_USAGE;
    }
    return rc ? die(&e) : 0;
}
