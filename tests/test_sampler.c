/* test_sampler.c - sampler_pick against a second computation in double precision, the generator
 * against its published numbers, and the corners: ties, infinities, NaN, tiny temperatures; and
 * streams that share one sampler.
 *
 * Distributions: 20,000 draws each. The statistic is Pearson's chi-square over the tokens expected
 * at least 5 times (the rest pooled); its mean is the number of cells less one, k, its deviation
 * sqrt(2k). The bound k + 6 sqrt(2k) + 10 is passed by a right sampler with a probability beyond 1
 * - 1e-6 for each case, and seeds are fixed, so the test never flickers. A token outside the
 * expected support fails at once.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "generate/stream.h"
#include "model.h"

enum { VOCAB = 50, DRAWS = 20000 };

static const SamplerParams plain = {
    .temp = 1, .top_p = 1, .repeat_penalty = 1, .repeat_last_n = 64};

static void make_logits(float *x, int n)
{
    uint32_t state = 12345;
    for (int i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        x[i] = (float)(state >> 8) * 0x1p-22f - 2; // -2 .. 2
    }
}

static const double *sort_by;

static int descending(const void *a, const void *b)
{
    double x = sort_by[*(const int *)a], y = sort_by[*(const int *)b];
    return x > y ? -1 : x < y ? 1 : *(const int *)a - *(const int *)b;
}

/* The distribution by the definitions, in the order bias, penalties, top-k, top-p, min-p,
 * temperature. */
static void expected(const SamplerParams *p, const float *logits, const int *text, int n_text,
                     double *prob)
{
    double x[VOCAB], weight[VOCAB], total = 0, mass = 0;
    int count[VOCAB] = {0}, order[VOCAB], n = VOCAB;
    for (int i = 0; i < VOCAB; i++)
        x[i] = logits[i];
    for (int i = 0; i < p->n_biases; i++)
        x[p->biases[i].id] += p->biases[i].bias;
    for (int i = 0; i < n_text; i++)
        if (p->repeat_last_n < 0 || i >= n_text - p->repeat_last_n)
            count[text[i]]++;
    for (int i = 0; i < VOCAB; i++)
        if (count[i]) {
            x[i] = x[i] > 0 ? x[i] / (double)p->repeat_penalty : x[i] * (double)p->repeat_penalty;
            x[i] -= (double)p->presence_penalty + (double)p->frequency_penalty * count[i];
        }
    for (int i = 0; i < VOCAB; i++)
        order[i] = i;
    sort_by = x;
    qsort(order, VOCAB, sizeof *order, descending);
    if (p->top_k > 0 && p->top_k < n)
        n = p->top_k;
    for (int i = 0; i < n; i++)
        total += weight[i] = exp(x[order[i]] - x[order[0]]);
    if (p->top_p < 1)
        for (int i = 0; i < n; i++) {
            mass += weight[i] / total;
            if (mass >= (double)p->top_p)
                n = i + 1;
        }
    while (n > 1 && weight[n - 1] < (double)p->min_p * weight[0])
        n--;
    total = 0;
    for (int i = 0; i < n; i++)
        total += weight[i] = exp((x[order[i]] - x[order[0]]) / (double)p->temp);
    memset(prob, 0, VOCAB * sizeof *prob);
    for (int i = 0; i < n; i++)
        prob[order[i]] = weight[i] / total;
}

static void check_distribution(const char *name, const SamplerParams *p, const int *text,
                               int n_text)
{
    Sampler s;
    Err e;
    float logits[VOCAB], copy[VOCAB];
    double prob[VOCAB], chi = 0, rest_expected = 0, rest_seen = 0;
    int seen[VOCAB] = {0}, cells = 0;
    make_logits(logits, VOCAB);
    uint64_t random = p->seed;
    CHECK(!sampler_init(&s, VOCAB, kernels_at(0), &e), "%s", name);
    expected(p, logits, text, n_text, prob);
    for (int i = 0; i < DRAWS; i++) {
        memcpy(copy, logits, sizeof copy);
        int id = sampler_pick(&s, p, &random, text, (size_t)n_text, copy);
        CHECK(id >= 0 && id < VOCAB && prob[id] > 0, "%s: drew %d, which should be out", name, id);
        if (id >= 0 && id < VOCAB)
            seen[id]++;
    }
    for (int i = 0; i < VOCAB; i++) {
        double want = prob[i] * DRAWS;
        if (want < 5) {
            rest_expected += want;
            rest_seen += seen[i];
            continue;
        }
        chi += (seen[i] - want) * (seen[i] - want) / want;
        cells++;
    }
    if (rest_expected >= 5) {
        chi += (rest_seen - rest_expected) * (rest_seen - rest_expected) / rest_expected;
        cells++;
    }
    double k = cells - 1;
    CHECK(chi <= k + 6 * sqrt(2 * k) + 10, "%s: chi-square %.1f over %d cells", name, chi, cells);
    sampler_free(&s);
}

static void test_distributions(void)
{
    static const LogitBias biases[] = {{7, 2.5f}, {8, -INFINITY}, {7, -0.5f}};
    static const int text[] = {3, 4, 4, 5, 5, 5, 9, 3, 11, 12};
    SamplerParams p = plain;
    p.seed = 1;
    check_distribution("plain", &p, NULL, 0);
    p.temp = 0.5f;
    check_distribution("temperature 0.5", &p, NULL, 0);
    p.temp = 1.7f;
    check_distribution("temperature 1.7", &p, NULL, 0);
    p.top_k = 5;
    check_distribution("top-k 5", &p, NULL, 0);
    p.top_k = 0;
    p.top_p = 0.7f; // with a temperature: the nucleus is chosen before it
    check_distribution("top-p 0.7", &p, NULL, 0);
    p.top_p = 0;
    check_distribution("top-p 0", &p, NULL, 0);
    p.top_p = 1;
    p.min_p = 0.2f;
    check_distribution("min-p 0.2", &p, NULL, 0);
    p.min_p = 1;
    check_distribution("min-p 1", &p, NULL, 0);
    p = (SamplerParams){.temp = 0.8f,
                        .top_k = 40,
                        .top_p = 0.95f,
                        .min_p = 0.05f,
                        .repeat_penalty = 1.3f,
                        .repeat_last_n = 64,
                        .seed = 2};
    check_distribution("the defaults with repeat 1.3", &p, text, 10);
    p = plain;
    p.repeat_penalty = 2;
    check_distribution("repeat 2", &p, text, 10);
    p.repeat_last_n = 3; // 3, 11, 12
    check_distribution("repeat 2 of the last 3", &p, text, 10);
    p.repeat_last_n = 0;
    check_distribution("repeat 2 of the last 0", &p, text, 10);
    p.repeat_last_n = -1;
    p.repeat_penalty = 1;
    p.presence_penalty = 1.5f;
    check_distribution("presence 1.5", &p, text, 10);
    p.frequency_penalty = 0.7f;
    check_distribution("presence 1.5, frequency 0.7", &p, text, 10);
    p.presence_penalty = 0;
    p.frequency_penalty = -0.5f;
    p.repeat_last_n = 7;
    check_distribution("frequency -0.5 of the last 7", &p, text, 10);
    p = plain;
    p.biases = biases;
    p.n_biases = 3;
    check_distribution("biases", &p, NULL, 0);
}

/* Equal logits: the id is the first bits of the generator's numbers, here SplitMix64's published
 * sequence for the seed 1234567 (rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64). */
static void test_generator(void)
{
    static const uint64_t published[] = {6457827717110365317u, 3203168211198807973u,
                                         9817491932198370423u, 4593380528125082431u,
                                         16408922859458223821u};
    SamplerParams p = plain;
    p.seed = 1234567;
    for (int i = 0; kernels_at(i); i++) {
        Sampler s;
        Err e;
        float x[256] = {0};
        uint64_t random = p.seed;
        sampler_init(&s, 256, kernels_at(i), &e);
        for (int j = 0; j < 5; j++) {
            memset(x, 0, sizeof x);
            int id = sampler_pick(&s, &p, &random, NULL, 0, x);
            CHECK(id == (int)(published[j] >> 56), "%s: draw %d: %d, want %d", kernels_at(i)->name,
                  j, id, (int)(published[j] >> 56));
        }
        sampler_free(&s);
    }
}

/* The same draws on every kernel table; another seed draws otherwise. */
static void test_seeds(void)
{
    enum { N = 200 };
    int first[N], same = 0;
    float logits[VOCAB], copy[VOCAB];
    make_logits(logits, VOCAB);
    for (int seed = 0; seed < 2; seed++)
        for (int i = 0; kernels_at(i); i++) {
            SamplerParams p = {.temp = 0.9f,
                               .top_k = 40,
                               .top_p = 0.95f,
                               .min_p = 0.01f,
                               .repeat_penalty = 1.1f,
                               .repeat_last_n = 8,
                               .seed = (uint64_t)seed};
            Sampler s;
            Err e;
            int text[N];
            uint64_t random = p.seed;
            sampler_init(&s, VOCAB, kernels_at(i), &e);
            for (int j = 0; j < N; j++) {
                memcpy(copy, logits, sizeof copy);
                int id = text[j] = sampler_pick(&s, &p, &random, text, (size_t)j, copy);
                if (seed == 0 && i == 0)
                    first[j] = id;
                else if (seed == 0)
                    CHECK(id == first[j], "%s: draw %d differs from the portable kernels'",
                          kernels_at(i)->name, j);
                else if (i == 0)
                    same += id == first[j];
            }
            sampler_free(&s);
        }
    CHECK(same < N / 2, "two seeds agree in %d of %d draws", same, N);
}

static int pick(const SamplerParams *p, const float *logits, int n)
{
    Sampler s;
    Err e;
    float copy[VOCAB];
    memcpy(copy, logits, (size_t)n * sizeof *copy);
    uint64_t random = p->seed;
    sampler_init(&s, n, kernels_at(0), &e);
    int id = sampler_pick(&s, p, &random, NULL, 0, copy);
    sampler_free(&s);
    return id;
}

static void test_corners(void)
{
    float ties[] = {1, 3, 2, 3, 3}, none[] = {-INFINITY, NAN, -INFINITY},
          some[] = {NAN, -INFINITY, 0, NAN}, big[] = {1, INFINITY, 2, INFINITY};
    float extreme[] = {-3e38f, 3e38f, 3e38f};
    static const LogitBias force[] = {{2, INFINITY}}, kill[] = {{2, -INFINITY}};
    for (int mode = 0; mode < 4;
         mode++) { // greedy, top-k 1, drawn, drawn at a temperature that overflows
        SamplerParams p = plain;
        p.temp = mode == 0 ? 0 : mode == 3 ? 1e-40f : 1;
        p.top_k = mode == 1;
        for (uint64_t seed = 0; seed < 20; seed++) {
            p.seed = seed;
            int tie = pick(&p, ties, 5);
            CHECK(mode < 2    ? tie == 1
                  : mode == 3 ? tie == 1 || tie == 3 || tie == 4
                              : tie >= 0,
                  "mode %d: of equal logits picked %d", mode, tie);
            CHECK(pick(&p, none, 3) == -1, "mode %d: picked where nothing is finite", mode);
            CHECK(pick(&p, some, 4) == 2, "mode %d: picked NaN", mode);
            CHECK(pick(&p, big, 4) == 1, "mode %d: an infinite logit", mode);
            CHECK(pick(&p, extreme, 3) >= 1, "mode %d: the lowest float", mode);
            p.biases = force;
            p.n_biases = 1;
            CHECK(pick(&p, ties, 5) == 2, "mode %d: bias +inf", mode);
            p.biases = kill;
            CHECK(pick(&p, some, 4) == -1, "mode %d: bias -inf", mode);
            p.n_biases = 0;
        }
    }
    SamplerParams p = plain;
    p.top_k = 1 << 28; // more than there are
    CHECK(pick(&p, ties, 5) >= 0 && pick(&p, ties, 1) == 0, "a large top-k, one token");
}

/* Only the last tokens of a text count for the penalties, and ids that no logit has for nothing. */
static void test_window(void)
{
    enum { N = 100 };
    int text[N + 2] = {-1, VOCAB};
    for (int i = 0; i < N; i++)
        text[i + 2] = i * i % 13;
    Sampler s;
    Err e;
    sampler_init(&s, VOCAB, kernels_at(0), &e);
    for (int last = -1; last < 8; last++) {
        SamplerParams p = plain;
        p.repeat_last_n = last;
        p.frequency_penalty = 1;
        for (int n = 0; n <= N; n++) {
            float logits[VOCAB] = {0};
            sampler_pick(&s, &p, &(uint64_t){0}, text, (size_t)n + 2, logits);
            for (int id = 0; id < VOCAB; id++) {
                int count = 0;
                for (int j = n - 1; j >= 0 && (last < 0 || j >= n - last); j--)
                    count += text[j + 2] == id;
                CHECK(logits[id] == (float)-count, "window %d, %d tokens: %d has %g, want %d", last,
                      n, id, (double)logits[id], -count);
            }
        }
    }
    sampler_free(&s);
}

/* Top-k takes the k largest, whatever the order they come in. */
static void test_top_k(void)
{
    enum { N = 40 };
    for (int k = 2; k <= N; k += 7)
        for (int order = 0; order < 5; order++) {
            float x[N];
            SamplerParams p = plain;
            p.top_k = k;
            p.temp = 1e6f; // nearly uniform over those that are kept
            Sampler s;
            Err e;
            bool seen[N] = {false};
            int n_seen = 0;
            uint64_t random = p.seed;
            sampler_init(&s, N, kernels_at(0), &e);
            for (int draw = 0; draw < 40 * k; draw++) {
                for (int i = 0; i < N; i++)
                    x[i] = (float)(order == 0   ? i
                                   : order == 1 ? -i
                                   : order == 2 ? i * 17 % N
                                   : order == 3 ? i / 2
                                                : i % 4);
                int id = sampler_pick(&s, &p, &random, NULL, 0, x);
                n_seen += id >= 0 && !seen[id];
                seen[id < 0 ? 0 : id] = true;
            }
            CHECK(n_seen == k, "top-k %d, order %d: %d tokens were drawn", k, order, n_seen);
            for (int a = 0; a < N; a++)
                for (int b = 0; b < N; b++)
                    CHECK(!(seen[a] && !seen[b] && (x[a] < x[b] || (x[a] == x[b] && a > b))),
                          "top-k %d, order %d: kept %d, not %d", k, order, a, b);
            sampler_free(&s);
        }
}

/* What a stream makes with logits that only its own text decides; *out gets the printed bytes. */
static void run_streams(const StreamParams *p, int n, const uint64_t *seeds, bool together,
                        Sampler *sampler, Stream *streams, Buf *out)
{
    int vocab = tokenizer_vocab_size(p->tokenizer);
    float *logits = mem_alloc((size_t)vocab, sizeof *logits);
    Err e;
    bool more = true;
    for (int i = 0; i < n; i++) {
        TokenList prompt = {0};
        tokenizer_encode(p->tokenizer, "Once", 4, ENCODE_BOS, &prompt, &e);
        stream_init(&streams[i], p, seeds[i], prompt);
    }
    for (int from = 0; from < n; from += together ? n : 1)
        for (more = true; more;) {
            more = false;
            for (int i = from; i < (together ? n : from + 1); i++) {
                Stream *s = &streams[i];
                if (s->end)
                    continue;
                uint32_t state = (uint32_t)(s->text.ids[s->text.n - 1] + 1);
                for (int k = 0; k < vocab; k++) {
                    state = state * 1664525u + 1013904223u;
                    logits[k] = (float)(state >> 8) * 0x1p-21f;
                }
                CHECK(!stream_next(s, sampler, logits, &out[i], &e), "stream %d: %s", i, e.text);
                more = true;
            }
        }
    for (int i = 0; i < n; i++)
        CHECK(!stream_finish(&streams[i], &out[i], &e), "stream %d: %s", i, e.text);
    free(logits);
}

/* Streams that take turns with one Sampler make what each makes alone, and end as they should. */
static void test_streams(void)
{
    enum { N = 3 };
    static const uint64_t seeds[N] = {1, 2, 3};
    Gguf g;
    Err e;
    Sampler sampler;
    CHECK(!gguf_open(&g, "models/tales.bin", &e), "%s", e.text);
    Tokenizer *t = model_tokenizer(&g, &e);
    sampler_init(&sampler, tokenizer_vocab_size(t), kernels_at(0), &e);
    StreamParams p = {.tokenizer = t, .sampling = plain, .n_predict = 60, .seq_len = 1000};
    p.sampling.repeat_penalty = 1.3f;
    p.sampling.repeat_last_n = 9;
    p.ignore_eos = true;
    Stream alone[N], turns[N];
    Buf a[N] = {{0}}, b[N] = {{0}};
    run_streams(&p, N, seeds, false, &sampler, alone, a);
    run_streams(&p, N, seeds, true, &sampler, turns, b);
    for (int i = 0; i < N; i++) {
        const TokenList *x = &alone[i].text, *y = &turns[i].text;
        CHECK(x->n == alone[i].n_prompt + 60 && alone[i].end == END_LIMIT, "stream %d: %zu tokens",
              i, x->n);
        CHECK(x->n == y->n && !memcmp(x->ids, y->ids, x->n * sizeof *x->ids),
              "stream %d: other tokens in turns", i);
        CHECK(a[i].len == b[i].len && a[i].len && !memcmp(a[i].ptr, b[i].ptr, a[i].len),
              "stream %d: other bytes in turns", i);
        CHECK(!i || memcmp(alone[0].text.ids, x->ids, x->n * sizeof *x->ids),
              "streams of two seeds are alike");
        stream_free(&turns[i]);
    }
    /* A stop text that the first one prints ends it there; a full context ends it before. */
    Str stop = {a[0].ptr + 40, 5};
    p.stops = &stop;
    p.n_stops = 1;
    for (int i = 0; i < 2; i++) {
        Buf c = {0};
        run_streams(&p, 1, seeds, true, &sampler, turns, &c);
        bool same = c.len <= a[0].len && !memcmp(c.ptr, a[0].ptr, c.len);
        CHECK(same && (i || (c.len <= 40 && turns[0].end == END_STOP)), "stopped after %zu bytes",
              c.len);
        CHECK(!i || (turns[0].end == END_CONTEXT && turns[0].text.n == 6), "%zu tokens",
              turns[0].text.n);
        p.seq_len = 5;
        stream_free(&turns[0]);
        buf_free(&c);
    }
    for (int i = 0; i < N; i++) {
        stream_free(&alone[i]);
        buf_free(&a[i]);
        buf_free(&b[i]);
    }
    sampler_free(&sampler);
    tokenizer_close(t);
    gguf_close(&g);
}

int main(void)
{
    test_streams();
    test_generator();
    test_distributions();
    test_seeds();
    test_corners();
    test_window();
    test_top_k();
    return check_done("test_sampler");
}
