/* grammar_driver.c - verdicts of the matcher, for tests.
 *
 *     grammar_driver gbnf|schema FILE [MODEL]
 *
 * Standard input has a command a line, and each gets one line of output.
 *
 * - "walk SEED": a random text of the grammar in hexadecimal digits, or "-" where it became too
 *   long.
 * - Hexadecimal digits, maybe none: a text. "ACCEPTED N": whether the grammar allows it (0 or 1)
 *   and how many of its bytes begin a text that the grammar allows. With a model two numbers more:
 *   how many tokens are in the masks of all places of the text, and for how many the mask differs
 *   from what their bytes say one after the other.
 *
 * A grammar that is refused is one line on standard error and an exit status as ./run has.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "modes/constraint.h"
#include "modes/modes.h"

enum { SOON = 60, MAX_WALK = 400 }; // bytes after which a walk goes for the end, and gives up

static int die(const Err *e)
{
    fprintf(stderr, "grammar_driver: %s\n", e->text);
    return e->code ? e->code : 1;
}

static uint32_t next_random(uint64_t *x)
{
    *x = *x * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*x >> 33);
}

/* Whether bytes may follow. */
static bool may_follow(Matcher *m, MatchState state, Str bytes)
{
    Err e = {0};
    matcher_hold(m, state);
    bool may = matcher_bytes(m, &state, bytes, &e) == 1;
    matcher_let_go(m, state);
    return may;
}

/* A byte that may follow, -1 for none: any, or soon one that closes something. */
static int choose_byte(Matcher *m, MatchState state, size_t len, uint64_t *random)
{
    static const char closing[] = "\"}])>,:.;!0Z";
    char list[256];
    int n = 0;
    bool closes = len > SOON && next_random(random) % 4;
    for (int i = 0; closes && closing[i]; i++)
        if (may_follow(m, state, (Str){&closing[i], 1}))
            list[n++] = closing[i];
    closes = n > 0;
    for (int i = 0; i < 256 && !closes; i++)
        if (may_follow(m, state, (Str){&(char){(char)i}, 1}))
            list[n++] = (char)i;
    return n ? (uint8_t)list[next_random(random) % (uint32_t)n] : -1;
}

static void walk(Matcher *m, uint64_t seed)
{
    Buf text = {0};
    Err e = {0};
    MatchState state = matcher_begin(m);
    uint64_t random = seed * 2 + 1;
    while (text.len < MAX_WALK) {
        if (matcher_accepts(m, state) && (text.len > SOON || next_random(&random) % 4 == 0))
            break;
        int byte = choose_byte(m, state, text.len, &random);
        if (byte < 0)
            break;
        char c = (char)byte;
        matcher_bytes(m, &state, (Str){&c, 1}, &e);
        buf_add(&text, &c, 1);
    }
    if (!matcher_accepts(m, state))
        printf("-");
    else
        for (size_t i = 0; i < text.len; i++)
            printf("%02x", (uint8_t)text.ptr[i]);
    printf("\n");
    matcher_let_go(m, state);
    buf_free(&text);
}

/* Compare the mask at a place with each token's own bytes. */
static int check_mask(Matcher *m, MatchState state, const Tokenizer *t, long *n_allowed,
                      long *n_wrong, Err *e)
{
    int n = tokenizer_vocab_size(t), n_seen = 0;
    float *logits = mem_zalloc((size_t)n, sizeof *logits);
    int said = matcher_mask(m, state, true, logits, n, e);
    for (int id = 0; id < n && said >= 0; id++) {
        Buf bytes = {0};
        tokenizer_bytes(t, id, false, &bytes);
        bool end = tokenizer_is_end(t, id);
        bool may = end ? matcher_accepts(m, state)
                       : bytes.len && may_follow(m, state, (Str){bytes.ptr, bytes.len});
        *n_wrong += may != !isinf(logits[id]);
        *n_allowed += may;
        n_seen += may && !end;
        buf_free(&bytes);
    }
    *n_wrong += n_seen != said;
    free(logits);
    return said < 0 ? -1 : 0;
}

static int check_text(Matcher *m, const char *hex, const Tokenizer *t, Err *e)
{
    MatchState state = matcher_begin(m);
    size_t n = 0, len = strlen(hex) / 2;
    long n_allowed = 0, n_wrong = 0;
    int rc = 0;
    for (;; n++) {
        unsigned byte;
        rc = t ? check_mask(m, state, t, &n_allowed, &n_wrong, e) : 0;
        if (rc || n == len)
            break;
        sscanf(hex + 2 * n, "%2x", &byte);
        char c = (char)byte;
        rc = matcher_bytes(m, &state, (Str){&c, 1}, e);
        if (rc != 1)
            break;
    }
    printf("%d %zu", n == len && matcher_accepts(m, state), n);
    if (t)
        printf(" %ld %ld", n_allowed, n_wrong);
    printf("\n");
    matcher_let_go(m, state);
    return rc < 0 ? -1 : 0;
}

static int run(char **argv, const char *model, Gguf *g, Tokenizer **t, Err *e)
{
    Buf text = {0};
    Constraints list = {0};
    Constraint *c = NULL;
    char *line = NULL;
    size_t cap = 0;
    bool schema = !strcmp(argv[1], "schema");
    int rc = file_read(argv[2], &stop_signal, &text, e);
    if (!rc && model) {
        rc = gguf_open(g, model, e);
        *t = rc ? NULL : model_tokenizer(g, e);
        list.tokenizer = *t;
        rc = *t ? 0 : -1;
    }
    if (!rc)
        c = constraints_get(&list, schema ? CONSTRAINT_SCHEMA : CONSTRAINT_GRAMMAR,
                            (Str){text.ptr ? text.ptr : "", text.len}, e);
    rc = c ? 0 : -1;
    while (!rc && getline(&line, &cap, stdin) > 0) {
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, "walk ", 5))
            walk(c->matcher, strtoull(line + 5, NULL, 10));
        else
            rc = check_text(c->matcher, line, *t, e);
        fflush(stdout);
    }
    free(line);
    constraints_close(&list);
    buf_free(&text);
    return rc;
}

int main(int argc, char **argv)
{
    Err e = {0};
    Gguf g = {0};
    Tokenizer *t = NULL;
    if (argc < 3) {
        fprintf(stderr, "usage: grammar_driver gbnf|schema FILE [MODEL]\n");
        return 2;
    }
    int rc = run(argv, argv[3], &g, &t, &e);
    tokenizer_close(t);
    gguf_close(&g);
    return rc ? die(&e) : 0;
}
