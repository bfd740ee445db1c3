/* test_tokenizer.c - what test_tokenizers.py cannot see: streaming, end tokens, JSON strings; and
 * hostile input, which must end in an error or in some result but never in a crash (meant to be run
 * under the sanitizers as well). */
#include "base/json.h"
#include "base/utf8.h"
#include "text/nfc.h"
#include "text/pattern.h"
#include "model.h"
#include "check.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static uint64_t random_state = 42;

static uint32_t random_below(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % n;
}

/* ---- vocabulary files ------------------------------------------------------------------------ */

static void add_u32(Buf *b, uint32_t v)
{
    buf_add(b, &v, 4);
}

static void add_u64(Buf *b, uint64_t v)
{
    buf_add(b, &v, 8);
}

static void add_string(Buf *b, const char *s)
{
    add_u64(b, strlen(s));
    buf_add(b, s, strlen(s));
}

static void add_text_key(Buf *b, const char *name, const char *value)
{
    add_string(b, name);
    add_u32(b, GGUF_STRING);
    add_string(b, value);
}

static void add_array_head(Buf *b, const char *name, GgufType type, size_t n)
{
    add_string(b, name);
    add_u32(b, GGUF_ARRAY);
    add_u32(b, type);
    add_u64(b, n);
}

static void add_list(Buf *b, const char *name, const char *const *items, size_t n)
{
    add_array_head(b, name, GGUF_STRING, n);
    for (size_t i = 0; i < n; i++)
        add_string(b, items[i]);
}

#define COUNT(a) (sizeof(a) / sizeof *(a))

/* Byte-level BPE: a few letters, the bytes of U+1F600 and of e-acute, an end token, a user-defined
 * one. */
static const char *const bpe_tokens[] = {"a",
                                         "b",
                                         "ab",
                                         "\xc4\xa0",
                                         ("\xc4\xa0"
                                          "ab"),
                                         "\xc3\xb0",
                                         "\xc5\x81",
                                         "\xc4\xba",
                                         "\xc4\xa2",
                                         "\xc3\x83",
                                         "\xc2\xa9",
                                         "<|im_end|>",
                                         "<tag>",
                                         "1",
                                         "11"};
static const int32_t bpe_types[] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 3, 4, 1, 1};
static const char *const bpe_merges[] = {"a b", "\xc4\xa0 ab", "1 1"};

static void bpe_file(Buf *b)
{
    buf_add(b, "GGUF", 4);
    add_u32(b, 3);
    add_u64(b, 0);
    add_u64(b, 6);
    add_text_key(b, "general.architecture", "gpt2");
    add_text_key(b, "tokenizer.ggml.model", "gpt2");
    add_text_key(b, "tokenizer.ggml.pre", "qwen2");
    add_list(b, "tokenizer.ggml.tokens", bpe_tokens, COUNT(bpe_tokens));
    add_list(b, "tokenizer.ggml.merges", bpe_merges, COUNT(bpe_merges));
    add_array_head(b, "tokenizer.ggml.token_type", GGUF_I32, COUNT(bpe_types));
    buf_add(b, bpe_types, sizeof bpe_types);
}

#define MARK "\xe2\x96\x81"
static const char *const sp_tokens[] = {"<unk>",   "<s>",    "</s>", "<0x0A>", "<0xE4>", "<0xBD>",
                                        "<0xA0>",  MARK,     "a",    "b",      MARK "a", "ab",
                                        MARK "ab", MARK "b", "  ",   "sym",    "[PAD16]"};
static const int32_t sp_types[] = {2, 3, 3, 6, 6, 6, 6, 1, 1, 1, 1, 1, 1, 1, 4, 4, 5};
static const float sp_scores[] = {0, 0, 0, 0, 0, 0, 0, -9, -8, -7, -2, -1, -3, -4, 0, 0, -1000};

static void sp_keys(Buf *b, size_t n_keys)
{
    buf_add(b, "GGUF", 4);
    add_u32(b, 3);
    add_u64(b, 0);
    add_u64(b, n_keys);
    add_text_key(b, "general.architecture", "llama");
    add_text_key(b, "tokenizer.ggml.model", "llama");
    add_list(b, "tokenizer.ggml.tokens", sp_tokens, COUNT(sp_tokens));
    add_array_head(b, "tokenizer.ggml.scores", GGUF_F32, COUNT(sp_scores));
    buf_add(b, sp_scores, sizeof sp_scores);
    add_array_head(b, "tokenizer.ggml.token_type", GGUF_I32, COUNT(sp_types));
    buf_add(b, sp_types, sizeof sp_types);
}

static void sp_file(Buf *b)
{
    sp_keys(b, 5);
}

/* The same with the normalizers Prepend and Replace, and tokens that are looked for after them. */
static void prepend_file(Buf *b)
{
    static const int32_t later[] = {2, 15};
    sp_keys(b, 7);
    add_text_key(b, "tokenizer.attnc.space_prefix", "prepend");
    add_array_head(b, "tokenizer.attnc.normalized_tokens", GGUF_I32, COUNT(later));
    buf_add(b, later, sizeof later);
}

/* Open what `b` holds through a temporary file. */
static Tokenizer *open_bytes(const Buf *b, Gguf *g, Err *e)
{
    char path[] = "/tmp/attnc-test-XXXXXX";
    int fd = mkstemp(path);
    Tokenizer *t = NULL;
    *g = (Gguf){0};
    if (fd < 0 || write(fd, b->ptr, b->len) != (ssize_t)b->len) {
        CHECK(false, "cannot write %s", path);
        return NULL;
    }
    close(fd);
    if (gguf_open(g, path, e) == 0)
        t = model_tokenizer(g, e);
    unlink(path);
    return t;
}

/* ---- tests ----------------------------------------------------------------------------------- */

/* Ids of a text, as text. */
static const char *ids_of(const Tokenizer *t, const char *text, unsigned flags, char out[200])
{
    TokenList list = {0};
    Err e = {0};
    size_t n = 0;
    CHECK(tokenizer_encode(t, text, strlen(text), flags, &list, &e) == 0, "%s", e.text);
    out[0] = 0;
    for (size_t i = 0; i < list.n && n < 180; i++)
        n += (size_t)snprintf(out + n, 200 - n, i ? " %d" : "%d", list.ids[i]);
    tokens_free(&list);
    return out;
}

static void check_ids(const Tokenizer *t, const char *text, unsigned flags, const char *want)
{
    char got[200];
    ids_of(t, text, flags, got);
    CHECK(strcmp(got, want) == 0, "\"%s\": got %s, want %s", text, got, want);
}

static void test_byte_level(void)
{
    Buf b = {0}, out = {0};
    Gguf g;
    Err e = {0};
    bpe_file(&b);
    Tokenizer *t = open_bytes(&b, &g, &e);
    CHECK(t != NULL, "%s", e.text);
    if (!t)
        return;
    check_ids(t, "ab ab", 0, "2 4");
    check_ids(t, "ab<tag>a<|im_end|>", 0, "2 12 0"); // as text it is bytes that have no token
    check_ids(t, "ab<|im_end|>", ENCODE_SPECIAL, "2 11");
    check_ids(t, "111", 0, "13 13 13");   // qwen2 cuts every digit
    check_ids(t, "e\xcc\x81", 0, "9 10"); // NFC makes it one character
    CHECK(tokenizer_is_end(t, 11) && !tokenizer_is_end(t, 12) && !tokenizer_is_end(t, -1)
              && !tokenizer_is_end(t, 99),
          "end tokens");
    CHECK(tokenizer_bos(t) == -1 && !tokenizer_adds_bos(t), "no BOS");
    CHECK(tokenizer_find(t, (Str){"<tag>", 5}, &e) == 12
              && tokenizer_find(t, (Str){"nope", 4}, &e) == -1,
          "find");
    CHECK(tokenizer_piece(t, 99).len == 0 && tokenizer_type(t, 99) == TOKEN_UNDEFINED,
          "out of range");

    Decoder d;
    decoder_init(&d, t, true, false);
    for (int id = 5; id < 8; id++)
        decoder_feed(&d, id, &out);
    CHECK(out.len == 0, "three of four bytes are held back, got %zu", out.len);
    decoder_feed(&d, 11, &out); // a CONTROL token prints nothing and completes nothing
    CHECK(out.len == 0 && d.n_held == 3, "still held back");
    decoder_feed(&d, 8, &out);
    CHECK(out.len == 4 && memcmp(out.ptr, "\xf0\x9f\x98\x80", 4) == 0, "the whole character");
    out.len = 0;
    decoder_feed(&d, 5, &out);
    decoder_feed(&d, 0, &out); // not what completes it: both go out as they are
    CHECK(out.len == 2
              && memcmp(out.ptr,
                        "\xf0"
                        "a",
                        2)
                     == 0,
          "invalid bytes pass");
    out.len = 0;
    decoder_feed(&d, 9, &out);
    decoder_flush(&d, &out);
    CHECK(out.len == 1 && *out.ptr == '\xc3' && d.n_held == 0, "flush");
    out.len = 0;
    decoder_init(&d, t, true, true);
    decoder_feed(&d, 11, &out);
    CHECK(out.len == 10, "CONTROL tokens by name");
    tokenizer_close(t);
    gguf_close(&g);
    buf_free(&b);
    buf_free(&out);
}

static void test_sentencepiece(void)
{
    Buf b = {0}, out = {0};
    Gguf g;
    Err e = {0};
    sp_file(&b);
    Tokenizer *t = open_bytes(&b, &g, &e);
    CHECK(t != NULL, "%s", e.text);
    if (!t)
        return;
    check_ids(t, "", ENCODE_BOS, "1");
    check_ids(t, "ab", ENCODE_BOS, "1 12");
    check_ids(t, "a b", 0, "10 13");
    check_ids(t, "sym a", 0, "7 15 10");
    check_ids(t, "x\xe4\xbd\xa0yz", 0,
              "7 0 4 5 6 0"); // unknown ones that follow each other are one
    check_ids(t, "\xe4\xbd", 0, "7 4 5");
    check_ids(t, "a</s>b", ENCODE_SPECIAL, "10 2 13");
    check_ids(t, "[PAD16]", 0, "7 0"); // a name that no text has
    CHECK(tokenizer_type(t, 16) == TOKEN_UNUSED && tokenizer_piece(t, 16).len == 7, "padding");
    tokenizer_bytes(t, 16, true, &out);
    CHECK(out.len == 0, "padding prints nothing, got \"%.*s\"", (int)out.len, out.ptr);
    CHECK(tokenizer_adds_bos(t) && tokenizer_eos(t) == 2 && tokenizer_is_end(t, 2),
          "defaults of SentencePiece");

    Decoder d;
    decoder_init(&d, t, true, false);
    decoder_feed(&d, 1, &out);
    decoder_feed(&d, 10, &out);
    decoder_feed(&d, 13, &out);
    CHECK(out.len == 3 && memcmp(out.ptr, "a b", 3) == 0, "the first space goes, got \"%.*s\"",
          (int)out.len, out.ptr);
    out.len = 0;
    decoder_init(&d, t, false, false);
    decoder_feed(&d, 10, &out);
    decoder_feed(&d, 3, &out);
    CHECK(out.len == 3 && memcmp(out.ptr, " a\n", 3) == 0, "in mid-text it stays");
    tokenizer_close(t);
    gguf_close(&g);
    buf_free(&b);
    buf_free(&out);
}

/* Names end a text where they are CONTROL tokens; <|end|> does not beside the ends of a call and of
 * a turn, as in the formats harmony and solar. */
static void test_end_names(void)
{
    static const char *const call[] = {"<|call|>", "<|calls|>"}, *const turn[] = {"<|return|>",
                                                                                  "<|flush|>"};
    for (int i = 0; i < 16; i++) {
        const char *names[] = {"a",
                               "<|end|>",
                               i & 1 ? call[i >> 2 & 1] : "x",
                               i & 2 ? turn[i >> 3] : "y",
                               "</s>",
                               "<EOT>",
                               "</s",
                               "[e~["};
        static const int32_t types[] = {1, 3, 3, 3, 3, 1, 3, 3};
        Buf b = {0};
        Gguf g;
        Err e = {0};
        buf_add(&b, "GGUF", 4);
        add_u32(&b, 3);
        add_u64(&b, 0);
        add_u64(&b, 6);
        add_text_key(&b, "general.architecture", "gpt2");
        add_text_key(&b, "tokenizer.ggml.model", "gpt2");
        add_text_key(&b, "tokenizer.ggml.pre", "gpt-2");
        add_list(&b, "tokenizer.ggml.tokens", names, COUNT(names));
        add_list(&b, "tokenizer.ggml.merges", names, 0);
        add_array_head(&b, "tokenizer.ggml.token_type", GGUF_I32, COUNT(types));
        buf_add(&b, types, sizeof types);
        Tokenizer *t = open_bytes(&b, &g, &e);
        CHECK(t != NULL, "%s", e.text);
        const bool want[] = {false, (i & 3) != 3, i & 1, (i & 2) != 0, true, false, false, true};
        for (int id = 0; t && id < (int)COUNT(want); id++)
            CHECK(tokenizer_is_end(t, id) == want[id], "case %d: \"%s\" ends a text: %d", i,
                  names[id], !want[id]);
        tokenizer_close(t);
        gguf_close(&g);
        buf_free(&b);
    }
}

static void test_json(void)
{
    static const char *const want[] = {
        "{\"a\": [\"a\\\"\\\\\\n\\u0001\\u007f\\u0000\xef\xbf\xbd\xc3\xa9\"], \"b\": {}, \"c\": "
        "[1, 2],\n "
        "\"d\": [[],\n {\"e\": true},\n 0.100000001, null\n], \"f\": -9223372036854775808, \"g\": "
        "\"00ff\"}",
        "{\"a\":[\"a\\\"\\\\\\n\\u0001\\u007f\\u0000\xef\xbf\xbd\xc3\xa9\"],\"b\":{},\"c\":[1, "
        "2],\n"
        "\"d\":[[],\n{\"e\":true},\n0.100000001,null\n],\"f\":-9223372036854775808,\"g\":"
        "\"00ff\"}"};
    const char text[] = "a\"\\\n\x01\x7f\0\xff\xc3\xa9";
    for (int compact = 0; compact < 2; compact++) {
        Buf b = {0}, bytes = {.ptr = (char[]){0, (char)0xff}, .len = 2};
        Json j = {.out = &b, .compact = compact};
        json_object(&j);
        json_list(json_key(&j, "a"));
        json_string(&j, (Str){text, sizeof text - 1});
        json_end(&j);
        json_object(json_key(&j, "b"));
        json_end(&j);
        json_ints(json_key(&j, "c"), (int[]){1, 2}, 2);
        json_list(json_key(json_break(&j), "d"));
        json_list(&j);
        json_end(&j);
        json_object(json_break(&j));
        json_bool(json_key(&j, "e"), true);
        json_end(&j);
        json_number(json_break(&j), (double)0.1f);
        json_number(&j, 1.0 / 0.0);
        json_end(json_break(&j));
        json_int(json_key(&j, "f"), INT64_MIN);
        json_hex(json_key(&j, "g"), &bytes);
        json_end(&j);
        CHECK(strcmp(b.ptr, want[compact]) == 0, "got %s", b.ptr);
        buf_free(&b);
    }
}

/* Encode and decode whatever comes; results are not looked at. */
static void use(const Tokenizer *t)
{
    static const char *const texts[] = {"ab ab <tag> 111 <|im_end|>",
                                        "\xff\xe4\xbd\xa0 e\xcc\x81\xcc\xa3 sym  </s>x </s>",
                                        "   \n\n a\tb  ", ""};
    Buf out = {0};
    Err e;
    for (size_t i = 0; i < COUNT(texts); i++) {
        TokenList list = {0};
        Decoder d;
        if (tokenizer_encode(t, texts[i], strlen(texts[i]), random_below(8), &list, &e) == 0) {
            decoder_init(&d, t, true, random_below(2));
            for (size_t k = 0; k < list.n; k++) {
                CHECK(list.ids[k] >= 0 && list.ids[k] < tokenizer_vocab_size(t), "id %d",
                      list.ids[k]);
                decoder_feed(&d, list.ids[k], &out);
            }
            decoder_flush(&d, &out);
        }
        tokens_free(&list);
    }
    for (int id = -2; id < tokenizer_vocab_size(t) + 2 && id < 50; id++) {
        tokenizer_bytes(t, id, true, &out);
        tokenizer_is_end(t, id);
    }
    buf_free(&out);
}

static void test_mutated_files(int n)
{
    int opened = 0;
    for (int i = 0; i < n; i++) {
        Buf b = {0};
        Gguf g;
        Err e = {0};
        (i % 4 == 1 ? sp_file : i % 4 == 3 ? prepend_file : bpe_file)(&b);
        for (uint32_t k = 1 + random_below(4); k > 0; k--) {
            size_t at = random_below((uint32_t)b.len);
            b.ptr[at] = (char)(random_below(3) ? (uint32_t)b.ptr[at] ^ 1u << random_below(8)
                                               : random_below(256));
        }
        if (random_below(8) == 0)
            b.len = random_below((uint32_t)b.len);
        Tokenizer *t = open_bytes(&b, &g, &e);
        opened += t != NULL;
        if (t)
            use(t);
        else
            CHECK(e.code == EXIT_MODEL && e.text[0] && !strchr(e.text, '\n'), "code %d: %s", e.code,
                  e.text);
        tokenizer_close(t);
        gguf_close(&g);
        buf_free(&b);
    }
    CHECK(opened > n / 20,
          "only %d of %d files opened: the mutations are too coarse to test anything", opened, n);
}

static void test_random_patterns(int n)
{
    static const char *const parts[] = {
        "a",    "b", " ",  ".",        "\\s",  "\\S",   "\\p{L}", "\\P{N}", "\\d", "[^a",
        "[a-z", "]", "(",  "(?:",      "(?=",  "(?!",   "(?>",    "(?i:",   ")",   ")",
        "|",    "?", "*",  "+",        "{2}",  "{0,3}", "{2,}",   "++",     "*?",  "\\b",
        "^",    "$", "\\", "\xc3\xa9", "\xff", "-",     "&&"};
    int compiled = 0;
    for (int i = 0; i < n; i++) {
        Buf pattern = {0};
        char text[64];
        Err e = {0};
        for (uint32_t k = 1 + random_below(8); k > 0; k--) {
            const char *part = parts[random_below(COUNT(parts))];
            buf_add(&pattern, part, strlen(part));
        }
        for (size_t k = 0; k < sizeof text; k++)
            text[k] = random_below(5) ? "aabbc  \n1\xc3\xa9"[random_below(11)]
                                      : (char)random_below(256);
        Pretok *p = pretok_compile(&(Str){pattern.ptr, pattern.len}, 1, &e);
        compiled += p != NULL;
        Cutter *c = p ? cutter_open(p, sizeof text, &e) : NULL;
        if (c) {
            size_t end = 0, last = 0;
            bool rising = true;
            cutter_start(c, text, sizeof text);
            for (; cutter_next(c, &end, &e) == 1; last = end)
                rising = rising && end > last;
            CHECK(rising && last == sizeof text, "pieces of \"%s\" do not make up the text",
                  pattern.ptr);
        }
        cutter_close(c);
        pretok_free(p);
        buf_free(&pattern);
    }
    CHECK(compiled > n / 20, "only %d of %d patterns compiled", compiled, n);
}

static void test_runaway_pattern(void)
{
    const char *pattern = "(?:(?:a|aa)+)+b";
    char text[2000];
    size_t end;
    Err e = {0};
    memset(text, 'a', sizeof text);
    Pretok *p = pretok_compile(&(Str){pattern, strlen(pattern)}, 1, &e);
    Cutter *c = p ? cutter_open(p, sizeof text, &e) : NULL;
    if (c)
        cutter_start(c, text, sizeof text);
    CHECK(c && cutter_next(c, &end, &e) == -1 && e.code == EXIT_MODEL, "stopped: %s", e.text);
    cutter_close(c);
    pretok_free(p);
}

static void test_nfc_bytes(int n)
{
    for (int i = 0; i < n; i++) {
        Buf text = {0}, once = {0}, twice = {0};
        Err e;
        for (uint32_t k = random_below(40); k > 0; k--) {
            char c[4];
            uint32_t cp = random_below(4) ? 0x300 + random_below(0x100) : random_below(0xd800);
            buf_add(&text, c, random_below(8) ? utf8_encode(cp, c) : 1);
        }
        buf_add(&text, "a", 1);
        int changed = nfc(text.ptr, text.len, &once, &e);
        if (changed == 1 && nfc(once.ptr, once.len, &twice, &e) == 1)
            CHECK(once.len == twice.len && memcmp(once.ptr, twice.ptr, once.len) == 0,
                  "NFC twice is not NFC once");
        buf_free(&text);
        buf_free(&once);
        buf_free(&twice);
    }
}

/* One budget of steps for all texts of a cutter: what one of them may take is refused later on. */
static void test_steps_of_many_texts(void)
{
    const char *pattern = "(?:(?:a|aa)+)+b", *text = "aaaaaaaaaaaaaa";
    size_t len = strlen(text), end = 0, cut = 0;
    Err e = {0};
    Pretok *p = pretok_compile(&(Str){pattern, strlen(pattern)}, 1, &e);
    Cutter *c = p ? cutter_open(p, 1000 * len, &e) : NULL;
    int rc = c ? 1 : -1;
    for (; rc == 1 && cut < 1000; cut++) {
        cutter_start(c, text, len);
        rc = cutter_next(c, &end, &e);
        CHECK(rc == -1 || end == len, "nothing is cut, got a piece that ends at %zu", end);
    }
    CHECK(rc == -1 && e.code == EXIT_MODEL && cut > 1, "text %zu: %d %s", cut, rc, e.text);
    cutter_close(c);
    pretok_free(p);
}

#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif

/* Tables for so many pieces do not fit into what the process has already; the sanitizer's own
 * memory would not do with the limit. */
static void test_find_without_memory(void)
{
#ifndef SANITIZED
    enum { N = 100000 };
    static char names[N][8];
    static const char *tokens[N], *none[] = {"1 2"};
    Buf b = {0};
    Gguf g;
    Err e = {0};
    for (int i = 0; i < N; i++) {
        snprintf(names[i], sizeof names[i], "%d", i);
        tokens[i] = names[i];
    }
    buf_add(&b, "GGUF", 4);
    add_u32(&b, 3);
    add_u64(&b, 0);
    add_u64(&b, 5);
    add_text_key(&b, "general.architecture", "gpt2");
    add_text_key(&b, "tokenizer.ggml.model", "gpt2");
    add_text_key(&b, "tokenizer.ggml.pre", "gpt-2");
    add_list(&b, "tokenizer.ggml.tokens", tokens, N);
    add_list(&b, "tokenizer.ggml.merges", none, 1);
    Tokenizer *t = open_bytes(&b, &g, &e);
    CHECK(t != NULL, "%s", e.text);
    struct rlimit old, tight;
    getrlimit(RLIMIT_AS, &old);
    tight = (struct rlimit){1 << 20, old.rlim_max};
    setrlimit(RLIMIT_AS, &tight);
    void *more = malloc(1 << 26);
    int id = t && !more ? tokenizer_find(t, (Str){"12", 2}, &e) : 0;
    setrlimit(RLIMIT_AS, &old);
    free(more); // qemu's user mode grants it whatever the limit
    CHECK(more || (id == -2 && e.code == EXIT_MEMORY), "got %d, code %d", id, e.code);
    CHECK(t && tokenizer_find(t, (Str){"12", 2}, &e) == 12, "and with memory it works");
    CHECK(t && tokenizer_find(t, (Str){"x", 1}, &e) == -1, "a piece that is not there");
    tokenizer_close(t);
    gguf_close(&g);
    buf_free(&b);
#endif
}

int main(int argc, char **argv)
{
    int n = argc > 1 ? atoi(argv[1]) : 4000;
    test_byte_level();
    test_sentencepiece();
    test_end_names();
    test_json();
    test_mutated_files(n);
    test_random_patterns(4 * n);
    test_runaway_pattern();
    test_steps_of_many_texts();
    test_find_without_memory();
    test_nfc_bytes(n);
    return check_done("test_tokenizer") != 0;
}
