/* test_grammar.c - sets of characters byte by byte, states that are held and forgotten, and
 * failures of builders. Verdicts on texts are in test_grammar.py and test_schema.py. */
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "check.h"
#include "generate/gbnf.h"
#include "generate/matcher.h"
#include "generate/schema.h"

static Str str(const char *text)
{
    return (Str){text, strlen(text)};
}

/* Whether the grammar matches a whole text. */
static bool matches(Matcher *m, Str text)
{
    Err e = {0};
    MatchState s = matcher_begin(m);
    bool yes = matcher_bytes(m, &s, text, &e) == 1 && matcher_accepts(m, s);
    matcher_let_go(m, s);
    return yes;
}

/* Every code point, and every byte string of up to two bytes and some of three and four, against
 * what utf8_decode() says. */
static void test_characters(void)
{
    static const CharRange sets[][3] = {{{0, 0x7f}, {0x80, 0x80}, {0x7ff, 0x800}},
                                        {{0x20, 0x10ffff}, {0, 0}, {5, 9}},
                                        {{0xd7ff, 0xe000}, {0xfffe, 0x10001}, {0x10fffe, 0x10ffff}},
                                        {{0x3c0, 0x400}, {0x400, 0x43f}, {0x1f300, 0x1f5ff}}};
    for (int k = 0; k < 8; k++) {
        Err e = {0};
        Grammar g;
        Builder *b = builder_new();
        int root = builder_rule(b, str("root")), wrong = 0;
        bool negated = k >= 4;
        builder_define(b, root, expr_chars(b, sets[k % 4], 3, negated));
        CHECK(!grammar_compile(&g, b, root, &e), "%s", e.text);
        builder_free(b);
        Matcher *m = matcher_new(&g, NULL, &e);
        for (uint32_t c = 0; c <= 0x10ffff; c++) {
            char utf8[4];
            bool in = negated;
            for (int i = 0; i < 3; i++)
                if (c >= sets[k % 4][i].first && c <= sets[k % 4][i].last)
                    in = !negated;
            if (c >> 11 == 0xd800 >> 11)
                continue;
            wrong += matches(m, (Str){utf8, utf8_encode(c, utf8)}) != in;
        }
        CHECK(!wrong, "set %d: %d characters", k, wrong);
        wrong = 0;
        for (uint32_t x = 0; x < 1 << 24; x += x < 1 << 16 ? 1 : 251) {
            char bytes[4] = {(char)(x >> 8), (char)x, (char)(x >> 16), (char)0x80};
            uint32_t c;
            size_t len = x < 256 ? 1 : x < 1 << 16 ? 2 : 4;
            const char *p = x < 256 ? bytes + 1 : bytes;
            bool valid = utf8_decode(p, p + len, &c) == len && !(c & UTF8_INVALID);
            wrong += matches(m, (Str){p, len}) && !valid;
        }
        CHECK(!wrong, "set %d: %d invalid texts", k, wrong);
        matcher_free(m);
        grammar_free(&g);
    }
}

/* A text that visits more states than are kept, again and again: the verdicts stay, and so do
 * states that are held. */
static void test_forgetting(void)
{
    Err e = {0};
    Grammar g;
    Buf text = {0};
    CHECK(!gbnf_compile(&g, str("root ::= list\nlist ::= \"(\" (list | [a-z]){0,4000} \")\""), &e),
          "%s", e.text);
    Matcher *m = matcher_new(&g, NULL, &e);
    MatchState held = matcher_begin(m), end = matcher_begin(m);
    CHECK(matcher_bytes(m, &held, str("((ab(c"), &e) == 1, "%s", e.text);
    uint64_t random = 1;
    for (int round = 0; round < 220; round++) {
        MatchState s = matcher_begin(m);
        int depth = 0;
        text.len = 0;
        for (int i = 0; i < 4000; i++) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            char c = (char)('a' + (random >> 33) % 30);
            c = c > 'z' ? c < '}' && depth > 1 ? ')' : '(' : c;
            c = depth ? c : '(';
            depth += c == '(' ? 1 : c == ')' ? -1 : 0;
            buf_add(&text, &c, 1);
        }
        for (; depth; depth--)
            buf_text(&text, ")");
        CHECK(matcher_bytes(m, &s, (Str){text.ptr, text.len}, &e) == 1, "round %d: %s", round,
              e.text);
        CHECK(matcher_is_over(m, s), "round %d", round);
        matcher_let_go(m, s);
    }
    CHECK(!matcher_bytes(m, &held, str("))))"), &e), "too many brackets");
    CHECK(matcher_bytes(m, &held, str("d)))"), &e) == 1 && matcher_is_over(m, held), "held");
    CHECK(matcher_bytes(m, &end, str("()"), &e) == 1 && matcher_is_over(m, end), "begin");
    matcher_let_go(m, held);
    matcher_let_go(m, end);
    matcher_free(m);
    grammar_free(&g);
    buf_free(&text);
}

/* What a builder cannot do shows when it is compiled. */
static void test_failures(void)
{
    Err e = {0};
    Grammar g;
    Builder *b = builder_new();
    int root = builder_rule(b, str("root"));
    Expr x = expr_bytes(b, str("a"));
    for (int i = 0; i < 5000; i++)
        x = expr_optional(b, x);
    builder_define(b, root, x);
    CHECK(grammar_compile(&g, b, root, &e) && e.code == EXIT_USAGE, "too deep");
    builder_free(b);
    b = builder_new();
    builder_no_memory(b);
    CHECK(grammar_compile(&g, b, builder_rule(b, str("root")), &e) && e.code == EXIT_MEMORY,
          "memory");
    builder_free(b);
    CHECK(schema_compile(&g, str("{\"type\": \"strin\"}"), &e) && e.code == EXIT_USAGE, "schema");
    grammar_free(&g);
}

int main(void)
{
    test_characters();
    test_forgetting();
    test_failures();
    return check_done("test_grammar");
}
