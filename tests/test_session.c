/* test_session.c - the promise that bytes do not depend on how the rows came: chunks, threads,
 * reused prefixes, forks and batch neighbours; and the bookkeeping of cache blocks behind it.
 *
 * The models are random, tiny and of the architecture `gpt`, written to a temporary file: each
 * variant has another kind of position, mask and head sharing. Texts are 600 tokens, beyond the
 * spans of 256 positions that attention merges. Everything is compared bit for bit, and once with a
 * computation by the textbook.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "model.h"

enum {
    DIM = 24,
    VOCAB = 40,
    LAYERS = 2,
    HIDDEN = 40,
    KEY = 38,
    VALUE = 5,
    TEXT = 600,
    CONTEXT = 640
};

typedef struct {
    const char *name, *position;
    int heads, kv_heads, window; // window: of the first layer
    bool parallel;
    Mixer mixer; // of the first layer
} Variant;

static const Variant variants[] = {
    {"rope, grouped heads", "rope", 4, 2, 0, false, MIX_ATTENTION},
    {"rope, window 70, one key head", "rope", 3, 1, 70, true, MIX_ATTENTION},
    {"alibi", "alibi", 3, 3, 0, false, MIX_ATTENTION},
    {"learned, window 5", "learned", 4, 4, 5, false, MIX_ATTENTION},
};
static const Variant recurrent_variants[] = {
    {"short convolution", "rope", 4, 2, 0, false, MIX_SHORT_CONV},
    {"gated delta net", "rope", 4, 2, 0, false, MIX_DELTA_NET},
    {"Mamba-2", "rope", 4, 2, 0, false, MIX_MAMBA},
};
enum { TAPS = 4, STATES = 8, GROUPS = 2, STATE_DIM = 8, INNER = 64 }; // of the last two
enum { CONV = INNER + 2 * GROUPS * STATE_DIM };

/* ---- the file -------------------------------------------------------------------------------- */

static uint32_t state;

static float random_float(void) // -1 .. 1
{
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) * 0x1p-23f - 1;
}

/* Keys and tensors of a file; names and values lie in `pool`. */
typedef struct {
    GgufKey keys[64];
    GgufTensor tensors[3 + 12 * LAYERS];
    size_t n_keys, n_tensors, used;
    char pool[4096];
    Buf data;
} Parts;

static const char *keep(Parts *p, const void *bytes, size_t n)
{
    CHECK(p->used + n <= sizeof p->pool, "the pool holds %zu bytes", sizeof p->pool);
    p->used += n;
    return memcpy(p->pool + p->used - n, bytes, n);
}

/* A value, or an array of `n` of them. Strings are written as the file has them. */
static void add_key(Parts *p, const char *name, GgufType type, int n, const void *data,
                    size_t bytes)
{
    p->keys[p->n_keys++] = (GgufKey){.name = {name, strlen(name)},
                                     .type = type,
                                     .is_array = n > 0,
                                     .n = n > 0 ? (uint64_t)n : 1,
                                     .data = (const uint8_t *)keep(p, data, bytes),
                                     .bytes = bytes};
}

static void add_text(Parts *p, const char *name, const char *value)
{
    char bytes[32];
    uint64_t n = strlen(value);
    memcpy(bytes, &n, 8);
    memcpy(bytes + 8, value, n);
    add_key(p, name, GGUF_STRING, 0, bytes, 8 + n);
}

/* A matrix of values up to `size`, or with rows = 0 a vector of values that far from 1. */
static void add_tensor(Parts *p, const char *name, int rows, int cols, float size)
{
    size_t n = (size_t)(rows ? rows : 1) * (size_t)cols;
    p->tensors[p->n_tensors++] = (GgufTensor){.name = {keep(p, name, strlen(name)), strlen(name)},
                                              .type = TYPE_F32,
                                              .n_dims = rows ? 2 : 1,
                                              .shape = {(size_t)(rows ? rows : cols), (size_t)cols},
                                              .size = n * sizeof(float)};
    for (size_t i = 0; i < n; i++) {
        float v = rows ? size * random_float() : 1 + size * random_float();
        if (strstr(name, "ssm_a")) // states must not grow
            v = -0.1f * fabsf(v);
        buf_add(&p->data, &v, sizeof v);
    }
    CHECK(p->data.len % 32 == 0, "%s: the next tensor would need padding", name);
}

static void add_keys(Parts *p, const Variant *v)
{
    const struct {
        const char *name;
        int value;
    } sizes[] = {{"gpt.embedding_length", DIM},
                 {"gpt.block_count", LAYERS},
                 {"gpt.context_length", CONTEXT},
                 {"gpt.feed_forward_length", HIDDEN},
                 {"gpt.attention.head_count", v->heads},
                 {"gpt.attention.head_count_kv", v->kv_heads},
                 {"gpt.attention.key_length", KEY},
                 {"gpt.attention.value_length", VALUE},
                 {"gpt.shortconv.l_cache", TAPS},
                 {"gpt.ssm.conv_kernel", TAPS},
                 {"gpt.ssm.time_step_rank", STATES},
                 {"gpt.ssm.group_count", GROUPS},
                 {"gpt.ssm.state_size", STATE_DIM},
                 {"gpt.ssm.inner_size", INNER},
                 {"gpt.attention.sliding_window", v->window}}; // 0 is none
    const struct {
        const char *name;
        bool value;
    } flags[] = {{"gpt.norm.affine", true},
                 {"gpt.norm.bias", false},
                 {"gpt.norm.pre", true},
                 {"gpt.norm.post", false},
                 {"gpt.norm.embedding", false},
                 {"gpt.norm.final", true},
                 {"gpt.attention.bias", false},
                 {"gpt.attention.output_bias", false},
                 {"gpt.ffn.bias", false},
                 {"gpt.ffn.gated", false},
                 {"gpt.tied", true}};
    const struct {
        const char *name, *value;
    } texts[] = {{"general.architecture", "gpt"},
                 {"gpt.norm.type", "rms"},
                 {"gpt.attention.qk_norm", "none"},
                 {"gpt.ffn.activation", "gelu"},
                 {"gpt.residual", v->parallel ? "parallel" : "sequential"},
                 {"gpt.position", v->position},
                 {"gpt.rope.pairing", "half"},
                 {"tokenizer.ggml.model", "llama"}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        add_key(p, sizes[i].name, GGUF_U32, 0, &sizes[i].value, 4);
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        add_key(p, flags[i].name, GGUF_BOOL, 0, &flags[i].value, 1);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        add_text(p, texts[i].name, texts[i].value);
    add_key(p, "gpt.norm.epsilon", GGUF_F32, 0, &(float){1e-5f}, 4);
    add_key(p, "gpt.attention.max_alibi_bias", GGUF_F32, 0, &(float){8}, 4);
    add_key(p, "gpt.attention.sliding_window_pattern", GGUF_BOOL, LAYERS, (bool[LAYERS]){true},
            LAYERS);
    static const char *const kinds[] = {[MIX_SHORT_CONV] = "gpt.shortconv.layers",
                                        [MIX_DELTA_NET] = "gpt.delta_net.layers",
                                        [MIX_MAMBA] = "gpt.mamba.layers"};
    if (v->mixer)
        add_key(p, kinds[v->mixer], GGUF_BOOL, LAYERS, (bool[LAYERS]){true}, LAYERS);
    char tokens[VOCAB][8 + 3];
    for (int i = 0; i < VOCAB; i++) {
        memcpy(tokens[i], &(uint64_t){3}, 8);
        memcpy(tokens[i] + 8, (char[]){'a', (char)('a' + i / 26), (char)('a' + i % 26)}, 3);
    }
    add_key(p, "tokenizer.ggml.tokens", GGUF_STRING, VOCAB, tokens, sizeof tokens);
    add_key(p, "tokenizer.ggml.scores", GGUF_F32, VOCAB, (float[VOCAB]){0}, 4 * VOCAB);
}

static void write_model(const Variant *v, const char *path)
{
    static Parts p;
    Buf head = {0};
    Err e = {0};
    p = (Parts){0};
    state = 1;
    add_keys(&p, v);
    add_tensor(&p, "token_embd.weight", VOCAB, DIM, 1);
    add_tensor(&p, "output_norm.weight", 0, DIM, 0.3f);
    if (!strcmp(v->position, "learned"))
        add_tensor(&p, "position_embd.weight", CONTEXT, DIM, 1);
    enum { ANY = -1 };
    for (int i = 0; i < LAYERS; i++) {
        const struct {
            const char *name;
            int rows, cols, mixer; // of layers of one kind only, or of ANY
        } parts[] = {{"attn_norm.weight", 0, DIM, ANY},
                     {"attn_q.weight", v->heads * KEY, DIM, MIX_ATTENTION},
                     {"attn_k.weight", v->kv_heads * KEY, DIM, MIX_ATTENTION},
                     {"attn_v.weight", v->kv_heads * VALUE, DIM, MIX_ATTENTION},
                     {"attn_output.weight", DIM, v->heads * VALUE, MIX_ATTENTION},
                     {"shortconv.in_proj.weight", 3 * DIM, DIM, MIX_SHORT_CONV},
                     {"shortconv.conv.weight", DIM, TAPS, MIX_SHORT_CONV},
                     {"shortconv.out_proj.weight", DIM, DIM, MIX_SHORT_CONV},
                     {"attn_qkv.weight", CONV, DIM, MIX_DELTA_NET},
                     {"attn_gate.weight", INNER, DIM, MIX_DELTA_NET},
                     {"ssm_alpha.weight", STATES, DIM, MIX_DELTA_NET},
                     {"ssm_beta.weight", STATES, DIM, MIX_DELTA_NET},
                     {"ssm_conv1d.weight", CONV, TAPS, MIX_DELTA_NET},
                     {"ssm_dt.bias", 0, STATES, MIX_DELTA_NET},
                     {"ssm_a", 0, STATES, MIX_DELTA_NET},
                     {"ssm_norm.weight", 0, INNER / STATES, MIX_DELTA_NET},
                     {"ssm_out.weight", DIM, INNER, MIX_DELTA_NET},
                     {"ssm_in.weight", INNER + CONV + STATES, DIM, MIX_MAMBA},
                     {"ssm_conv1d.weight", CONV, TAPS, MIX_MAMBA},
                     {"ssm_dt.bias", 0, STATES, MIX_MAMBA},
                     {"ssm_a", STATES, 1, MIX_MAMBA},
                     {"ssm_d", STATES, 1, MIX_MAMBA},
                     {"ssm_norm.weight", GROUPS, INNER / GROUPS, MIX_MAMBA},
                     {"ssm_out.weight", DIM, INNER, MIX_MAMBA},
                     {"ffn_norm.weight", 0, DIM, ANY},
                     {"ffn_up.weight", HIDDEN, DIM, ANY},
                     {"ffn_down.weight", DIM, HIDDEN, ANY}};
        int mixer = i == 0 ? (int)v->mixer : MIX_ATTENTION;
        for (size_t j = 0; j < sizeof parts / sizeof *parts; j++) {
            if (parts[j].mixer != ANY && parts[j].mixer != mixer)
                continue;
            char name[64];
            snprintf(name, sizeof name, "blk.%d.%s", i, parts[j].name);
            add_tensor(&p, name, parts[j].rows, parts[j].cols, 0.5f);
        }
    }
    Gguf g = {.keys = p.keys, .n_keys = p.n_keys, .alignment = 32};
    CHECK(!gguf_header(&g, p.tensors, p.n_tensors, NULL, 0, &head, &e), "%s", e.text);
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(head.ptr, 1, head.len, f) == head.len
              && fwrite(p.data.ptr, 1, p.data.len, f) == p.data.len && !fclose(f),
          "%s", path);
    buf_free(&head);
    buf_free(&p.data);
}

/* ---- helpers --------------------------------------------------------------------------------- */

static Model model;
static int text[TEXT], other[TEXT];   // two texts, without a common beginning
static float *want;                   // (TEXT, VOCAB) logits of `text` after one prefill
static const Kernels *kernels, *only; // only: when given no other is tested
static KvType kv_type;
static char label[96];
static Threads team; // of the session that is open

static void open_session(Session *s, int n_seqs, int n_threads)
{
    Err e = {0};
    SessionParams p = {.seq_len = CONTEXT,
                       .n_seqs = n_seqs,
                       .max_batch = TEXT,
                       .max_logits = TEXT,
                       .threads = &team,
                       .kv_type = kv_type,
                       .kernels = kernels};
    threads_free(&team);
    threads_init(&team, n_threads, NULL);
    CHECK(!session_init(s, &model.decoder, &p, &e), "%s: %s", label, e.text);
    size_t bytes = session_bytes(&model.decoder, &p);
    CHECK(bytes == s->arena.size, "%s: session_bytes says %zu, it is %zu", label, bytes,
          s->arena.size);
}

/* forward() of n tokens of one sequence. */
static int forward_tokens(Session *s, int seq, const int *ids, int n, Want want_rows, Err *e)
{
    return forward_span(s, &(Span){.seq = seq, .n = n, .tokens = ids, .want = want_rows}, e);
}

/* Run tokens of one sequence, all logits wanted, in chunks. */
static void run(Session *s, int seq, const int *ids, int n, int chunk, float *out)
{
    Err e = {0};
    for (int i = 0; i < n; i += chunk) {
        int rows = n - i < chunk ? n - i : chunk;
        int got = forward_tokens(s, seq, ids + i, rows, WANT_ALL, &e);
        CHECK(got == rows, "%s: %d rows of logits, want %d: %s", label, got, rows, e.text);
        if (out && got > 0)
            memcpy(out + (size_t)i * VOCAB, s->logits, (size_t)got * VOCAB * sizeof *out);
    }
}

/* Run text[from, to) and compare with the reference. */
static void check_run(Session *s, int seq, int from, int to, int chunk, const char *what)
{
    static float out[TEXT * VOCAB];
    run(s, seq, text + from, to - from, chunk, out);
    for (int i = from; i < to; i++)
        if (memcmp(out + (size_t)(i - from) * VOCAB, want + (size_t)i * VOCAB,
                   VOCAB * sizeof *out)) {
            CHECK(false, "%s: %s: position %d differs", label, what, i);
            return;
        }
    CHECK(s->cache.seqs[seq].n_pos == to, "%s: %s: the sequence has %d positions, want %d", label,
          what, s->cache.seqs[seq].n_pos, to);
}

/* Every block is counted once for each sequence that holds it. */
static void check_blocks(const Session *s, const char *what)
{
    int held[256] = {0};
    for (int i = 0; i < s->params.n_seqs; i++)
        for (int b = 0; b < s->cache.max_blocks; b++) {
            int id = s->cache.seqs[i].blocks[b];
            if (id >= 0)
                held[id]++;
            CHECK(id >= 0 || b * KV_BLOCK >= s->cache.seqs[i].n_pos,
                  "%s: %s: sequence %d lacks block %d", label, what, i, b);
        }
    for (int i = 0; i < s->cache.n_blocks; i++)
        CHECK(held[i] == s->cache.refs[i], "%s: %s: block %d has count %d, is held %d times", label,
              what, i, s->cache.refs[i], held[i]);
}

/* ---- the same by the textbook ---------------------------------------------------------------- */

static void ref_linear(const Tensor *w, const double *x, double *y)
{
    const float *row = w->data;
    for (size_t r = 0; r < w->rows; r++, row += w->cols) {
        y[r] = 0;
        for (size_t i = 0; i < w->cols; i++)
            y[r] += row[i] * x[i];
    }
}

static void ref_norm(const Norm *n, const double *x, double *y)
{
    double sum = 0;
    for (int i = 0; i < DIM; i++)
        sum += x[i] * x[i];
    for (int i = 0; i < DIM; i++)
        y[i] = x[i] / sqrt(sum / DIM + 1e-5) * n->w[i];
}

static void ref_rope(double *x, int heads, int pos)
{
    for (int h = 0; h < heads; h++, x += KEY)
        for (int i = 0; i < KEY / 2; i++) {
            double angle = pos * pow(10000, -2.0 * i / KEY), a = x[i], b = x[i + KEY / 2];
            x[i] = a * cos(angle) - b * sin(angle);
            x[i + KEY / 2] = b * cos(angle) + a * sin(angle);
        }
}

/* One query row: softmax(q.k / sqrt(KEY) + bias) v over the keys that it sees, without tiles or
 * spans. */
static void ref_attend(const Variant *v, int layer, int pos, const double *q, const double *k,
                       const double *values, double *out)
{
    static const double slopes[] = {1.0 / 16, 1.0 / 256,
                                    1.0 / 4}; // of three heads, Press et al. 2022
    static double weight[TEXT];
    int from = layer == 0 && v->window && pos >= v->window ? pos - v->window + 1 : 0;
    for (int h = 0; h < v->heads; h++) {
        int kv = h / (v->heads / v->kv_heads);
        double sum = 0;
        for (int j = from; j <= pos; j++) {
            double score = 0;
            for (int i = 0; i < KEY; i++)
                score += q[h * KEY + i] * k[(j * v->kv_heads + kv) * KEY + i];
            score = score / sqrt(KEY) + (strcmp(v->position, "alibi") ? 0 : slopes[h] * (j - pos));
            sum += weight[j] = exp(score); // small models: no overflow
        }
        for (int i = 0; i < VALUE; i++) {
            out[h * VALUE + i] = 0;
            for (int j = from; j <= pos; j++)
                out[h * VALUE + i] += weight[j] / sum * values[(j * v->kv_heads + kv) * VALUE + i];
        }
    }
}

static void ref_ffn(const Layer *l, const double *x, double *out)
{
    double h[DIM], up[HIDDEN];
    ref_norm(&l->ffn_norm, x, h);
    ref_linear(&l->w_up.w, h, up);
    for (int i = 0; i < HIDDEN; i++)
        up[i] *= 0.5 * (1 + erf(up[i] / sqrt(2)));
    ref_linear(&l->w_down.w, up, out);
}

/* Compare `want` with every position in double precision. Each layer's sums have at most 600 terms
 * and float's rounding of 2^-24; measured are 7.4e-5 of logits of up to 10; the bound is ten times
 * that. Halves and bytes round keys and values: 0.0095 and 0.2 were measured, the bounds are three
 * times that. */
static void check_reference(const Variant *v)
{
    static const double limits[] = {[KV_F32] = 7.4e-4, [KV_F16] = 0.03, [KV_Q8] = 0.6};
    static double k[LAYERS][TEXT * 4 * KEY], values[LAYERS][TEXT * 4 * VALUE];
    const float *embd = model.decoder.token_embd.data, *learned = model.decoder.pos_embd.data;
    bool rope = !strcmp(v->position, "rope");
    double worst = 0;
    for (int pos = 0; pos < TEXT; pos++) {
        double x[DIM], h[DIM], q[4 * KEY], att[4 * VALUE], a[DIM], f[DIM], logits[VOCAB];
        for (int i = 0; i < DIM; i++)
            x[i] = embd[text[pos] * DIM + i] + (learned ? learned[pos * DIM + i] : 0);
        for (int n = 0; n < LAYERS; n++) {
            const Layer *l = &model.decoder.layers[n];
            double *own = k[n] + pos * v->kv_heads * KEY;
            ref_norm(&l->attn_norm, x, h);
            ref_linear(&l->wq.w, h, q);
            ref_linear(&l->wk.w, h, own);
            ref_linear(&l->wv.w, h, values[n] + pos * v->kv_heads * VALUE);
            if (rope) {
                ref_rope(q, v->heads, pos);
                ref_rope(own, v->kv_heads, pos);
            }
            ref_attend(v, n, pos, q, k[n], values[n], att);
            ref_linear(&l->wo.w, att, a);
            ref_ffn(l, x, f); // parallel: of the same x
            for (int i = 0; i < DIM; i++)
                x[i] += a[i];
            if (!v->parallel)
                ref_ffn(l, x, f);
            for (int i = 0; i < DIM; i++)
                x[i] += f[i];
        }
        ref_norm(&model.decoder.final_norm, x, h);
        ref_linear(&model.decoder.token_embd, h, logits);
        for (int i = 0; i < VOCAB; i++) { // no fmax(): GCC 12 for AArch64 fails at a loop of it
            double error = fabs(logits[i] - want[pos * VOCAB + i]);
            worst = error > worst ? error : worst;
        }
    }
    // where attention rounds to the 8 bits of bfloat16 instead of the 11 of halves, eight times as
    // much
    double limit = limits[kv_type] + (kernels->bf16 && kv_type != KV_F32 ? 7 * limits[KV_F16] : 0);
    CHECK(worst < limit, "%s: a logit is %g from the textbook's", label, worst);
}

/* ---- tests ----------------------------------------------------------------------------------- */

/* Keys and values of `count` numbers as they were stored and are read back: floats exactly, halves
 * to 11 bits, bytes to half a step of their group's scale; a number that is not finite makes its
 * group NaN. */
static void check_group(const float *x, const float *got, size_t stride, int count,
                        const char *what)
{
    double max = 0;
    for (int i = 0; i < count; i++)
        max = fmax(max, isfinite(x[i]) ? fabs(x[i]) : INFINITY);
    for (int i = 0; i < count; i++) {
        double step = kv_type == KV_F32 ? 0
                    : kv_type == KV_F16 ? fabs(x[i]) * 0x1p-11 + 0x1p-25
                                        : max / 127 * 0.50001,
               y = got[(size_t)i * stride];
        CHECK(kv_type == KV_Q8 && max == INFINITY ? y != y : fabs(x[i] - y) <= step,
              "%s: %s: %g came back as %g", label, what, x[i], y);
    }
}

static void test_cache(void)
{
    enum { N = 130, MOST = 4 };
    static float k[N][MOST][KEY], v[N][MOST][VALUE], keys[KEY][KV_BLOCK], values[KV_BLOCK][VALUE];
    int heads = model.decoder.config.layers[1].n_kv_heads;
    Session s;
    Err e = {0};
    open_session(&s, 2, 1);
    CHECK(!cache_grow(&s.cache, 1, N, &e), "%s: %s", label, e.text);
    for (int pos = 0; pos < N; pos++) {
        float flat[MOST * (KEY + VALUE)], size = ldexpf(1, pos % 20 - 10);
        for (int i = 0; i < heads * KEY; i++)
            k[pos][i / KEY][i % KEY] = flat[i] = random_float() * size * (i % 5 ? 1 : 20);
        for (int i = 0; i < heads * VALUE; i++)
            v[pos][i / VALUE][i % VALUE] = flat[heads * KEY + i] = pos == 3 ? 0
                                                                            : random_float() * size;
        if (kv_type == KV_Q8 && pos == 70)
            k[pos][0][33] = flat[33] = NAN,
            v[pos][heads - 1][2] = flat[heads * (KEY + VALUE) - VALUE + 2] = INFINITY;
        cache_store(&s.cache, 1, 1, pos, flat, flat + heads * KEY);
    }
    for (int pos = 0; pos < N; pos++)
        for (int h = 0; h < heads; h++) {
            cache_read(&s.cache, 1, h, 1, pos / KV_BLOCK, keys[0], values[0]);
            for (int i = 0; i < KEY; i += KV_GROUP)
                check_group(k[pos][h] + i, &keys[i][pos % KV_BLOCK], KV_BLOCK,
                            KEY - i < KV_GROUP ? KEY - i : KV_GROUP, "a key");
            check_group(v[pos][h], values[pos % KV_BLOCK], 1, VALUE, "a value");
        }
    session_free(&s);
}

static void test_chunks(void)
{
    static const int chunks[] = {1, 4, 7, 32, 64, 100}; // up to 4 rows attention takes another way
    for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++) {
        Session s;
        char what[40];
        int threads = 1 + 2 * (int)(i % 2);
        open_session(&s, 1, threads);
        snprintf(what, sizeof what, "chunks of %d, %d threads", chunks[i], threads);
        check_run(&s, 0, 0, TEXT, chunks[i], what);
        session_free(&s);
    }
}

static void test_truncate(void)
{
    static const int points[] = {0, 1, 63, 64, 65, 512, 599};
    Session s;
    open_session(&s, 1, 2);
    check_run(&s, 0, 0, TEXT, TEXT, "at once");
    for (size_t i = 0; i < sizeof points / sizeof *points; i++) {
        int n = points[i];
        cache_truncate(&s.cache, 0, n);
        CHECK(s.cache.seqs[0].n_pos == n, "%s: truncated to %d, want %d", label,
              s.cache.seqs[0].n_pos, n);
        run(&s, 0, other, TEXT - n < 90 ? TEXT - n : 90, 90,
            NULL); // leaves other keys and values behind
        cache_truncate(&s.cache, 0, n);
        check_blocks(&s, "truncated");
        check_run(&s, 0, n, TEXT, 64, "prefix kept");
        cache_truncate(&s.cache, 0, TEXT + 5); // more than there is: nothing happens
        CHECK(s.cache.seqs[0].n_pos == TEXT, "%s: truncating upwards", label);
        check_blocks(&s, "truncated upwards");
    }
    session_free(&s);
}

static void test_fork(void)
{
    static const int points[] = {0, 1, 64, 130, 511, 600};
    for (size_t i = 0; i < sizeof points / sizeof *points; i++) {
        int n = points[i], half = n / 2, end = n + 100 < TEXT ? n + 100 : TEXT;
        Session s;
        open_session(&s, 3, 2);
        check_run(&s, 0, 0, n, TEXT, "the source");
        run(&s, 1, other, 150, 150, NULL); // forking empties it
        CHECK(!cache_fork(&s.cache, 1, 0, n) && s.cache.seqs[1].n_pos == n, "%s: fork at %d", label,
              n);
        check_blocks(&s, "forked");
        int shared = 0;
        for (int b = 0; b < n / KV_BLOCK; b++)
            shared += s.cache.seqs[0].blocks[b] == s.cache.seqs[1].blocks[b];
        CHECK(shared == n / KV_BLOCK, "%s: fork at %d shares %d blocks", label, n, shared);
        run(&s, 1, other, end - n, 50, NULL); // must not reach the source
        check_blocks(&s, "the fork went on");
        check_run(&s, 0, n, end, 64, "the source after its fork went on");
        cache_truncate(&s.cache, 1, n);
        check_run(&s, 1, n, end, 50, "the fork");

        CHECK(!cache_fork(&s.cache, 2, 0, n), "%s: second fork at %d", label, n);
        cache_truncate(&s.cache, 2, half); // its last block may be shared now: writing must copy it
        run(&s, 2, other, 30, 30, NULL);
        check_blocks(&s, "a shared block was written");
        cache_truncate(&s.cache, 0, n);
        check_run(&s, 0, n, end, TEXT, "the source after a shared block was written");
        cache_truncate(&s.cache, 0, half); // the source gives up blocks that others hold
        run(&s, 0, other, 30, 30, NULL);
        cache_truncate(&s.cache, 1, n);
        check_run(&s, 1, n, end, TEXT, "the fork after its source was rewritten");
        CHECK(!cache_fork(&s.cache, 0, 1, TEXT + 1) && s.cache.seqs[0].n_pos == end,
              "%s: fork of more than there is", label);
        CHECK(!cache_fork(&s.cache, 0, 0, 3) && s.cache.seqs[0].n_pos == end, "%s: fork of itself",
              label);
        for (int q = 0; q < 3; q++)
            cache_truncate(&s.cache, q, 0);
        check_blocks(&s, "emptied");
        for (int b = 0; b < s.cache.n_blocks; b++)
            CHECK(s.cache.refs[b] == 0, "%s: block %d is still counted", label, b);
        session_free(&s);
    }
}

/* Three sequences at different positions advance in the same calls; the middle one runs another
 * text. In the second round of calls all have few rows and several splits of keys. */
static void test_neighbours(const int starts[3], const int rows[3])
{
    for (int threads = 1; threads <= 3; threads += 2) {
        Session s;
        int at[3];
        Span spans[3];
        Err e = {0};
        open_session(&s, 3, threads);
        for (int q = 0; q < 3; q++) {
            at[q] = starts[q];
            run(&s, q, q == 1 ? other : text, starts[q], 100, NULL);
        }
        for (int round = 0; round < 8; round++) {
            const float *logits = s.logits;
            int n = 0;
            for (int q = 0; q < 3; q++) {
                const int *ids = (q == 1 ? other : text) + at[q];
                spans[q] = (Span){.seq = q, .n = rows[q], .tokens = ids, .want = WANT_ALL};
                n += rows[q];
            }
            CHECK(forward(&s, &(Batch){spans, 3}, &e) == n, "%s: %s", label, e.text);
            for (int q = 0; q < 3; at[q] += rows[q], logits += rows[q] * VOCAB, q++)
                CHECK(q == 1
                          || !memcmp(logits, want + (size_t)at[q] * VOCAB,
                                     (size_t)rows[q] * VOCAB * sizeof *want),
                      "%s: a neighbour changed sequence %d at %d", label, q, at[q]);
        }
        session_free(&s);
    }
}

/* Which rows have logits, vectors instead of tokens, and calls that must fail without changing
 * anything. */
static void test_calls(void)
{
    Session s;
    Err e = {0};
    bool some[TEXT] = {false};
    static float vectors[70 * DIM];
    open_session(&s, 2, 1);
    some[3] = some[69] = true;
    CHECK(forward_span(&s, &(Span){.n = 70, .tokens = text, .wanted = some}, &e) == 2,
          "%s: two rows wanted", label);
    CHECK(!memcmp(s.logits, want + 3 * VOCAB, VOCAB * sizeof *want)
              && !memcmp(s.logits + VOCAB, want + 69 * VOCAB, VOCAB * sizeof *want),
          "%s: the wanted rows", label);
    CHECK(forward_tokens(&s, 0, text + 70, 30, WANT_LAST, &e) == 1, "%s: the last row", label);
    CHECK(!memcmp(s.logits, want + 99 * VOCAB, VOCAB * sizeof *want), "%s: the last row's logits",
          label);
    CHECK(forward_tokens(&s, 0, text + 100, 28, WANT_NONE, &e) == 0, "%s: no row wanted", label);

    static const int bad[] = {1, 2, VOCAB, 4}, worse[] = {1, -1};
    const Span one = {.seq = 0, .n = 2, .tokens = text};
    CHECK(forward_tokens(&s, 0, bad, 4, WANT_LAST, &e) == -1 && e.code == EXIT_USAGE,
          "%s: token %d", label, VOCAB);
    CHECK(forward_tokens(&s, 0, worse, 2, WANT_LAST, &e) == -1, "%s: token -1", label);
    CHECK(forward_tokens(&s, 1, bad, 4, WANT_LAST, &e) == -1,
          "%s: a bad token in an empty sequence", label);
    CHECK(forward(&s, &(Batch){(Span[]){one, one}, 2}, &e) == -1 && e.code == EXIT_USAGE,
          "%s: two spans of one sequence", label);
    CHECK(forward_tokens(&s, 2, text, 2, WANT_LAST, &e) == -1, "%s: a sequence too many", label);
    CHECK(s.cache.seqs[0].n_pos == 128 && s.cache.seqs[1].n_pos == 0,
          "%s: a failed call moved a sequence", label);
    CHECK(!cache_fork(&s.cache, 1, 0, 100), "%s: fork after a failed call", label);
    check_blocks(&s, "after failed calls");
    cache_truncate(&s.cache, 1, 0);
    CHECK(forward_tokens(&s, 0, text, 0, WANT_LAST, &e) == -1, "%s: no rows", label);
    CHECK(forward_tokens(&s, 0, text, TEXT + 1, WANT_LAST, &e) == -1, "%s: too many rows", label);
    check_run(&s, 0, 128, TEXT, TEXT, "after failed calls");
    CHECK(forward_tokens(&s, 0, text, CONTEXT - TEXT + 1, WANT_LAST, &e) == -1
              && e.code == EXIT_USAGE,
          "%s: a full context", label);
    CHECK(s.cache.seqs[0].n_pos == TEXT, "%s: a full context moved the sequence", label);
    CHECK(forward_tokens(&s, 0, text, CONTEXT - TEXT, WANT_LAST, &e) == 1, "%s: the last place",
          label);
    Span two[] = {{.seq = 1, .n = 1, .tokens = text}, one};
    CHECK(forward(&s, &(Batch){two, 2}, &e) == -1, "%s: one of two contexts is full", label);
    CHECK(s.cache.seqs[1].n_pos == 0, "%s: a neighbour's full context moved a sequence", label);

    for (int i = 0; i < 70; i++)
        memcpy(vectors + i * DIM, (const float *)model.decoder.token_embd.data + text[i] * DIM,
               DIM * sizeof *vectors);
    cache_truncate(&s.cache, 0, 0);
    CHECK(forward_span(&s, &(Span){.n = 70, .embd = vectors, .want = WANT_ALL}, &e) == 70, "%s: %s",
          label, e.text);
    CHECK(!memcmp(s.logits, want, 70 * VOCAB * sizeof *want), "%s: vectors and tokens differ",
          label);
    session_free(&s);
    session_free(&s); // a freed one is fine
}

/* Sizes that the caller chooses: rows with logits, positions that were learned, blocks. */
static void test_sizes(void)
{
    Session s;
    Err e = {0};
    SessionParams p = {.seq_len = CONTEXT,
                       .n_seqs = 2,
                       .n_blocks = 3,
                       .max_batch = 8,
                       .max_logits = 2,
                       .threads = &team,
                       .kv_type = kv_type,
                       .kernels = kernels};
    CHECK(!session_init(&s, &model.decoder, &p, &e), "%s: %s", label, e.text);
    CHECK(forward_tokens(&s, 0, text, 3, WANT_ALL, &e) == -1,
          "%s: more logits than there is room for", label);
    for (int i = 0; i < 128; i += 8)
        CHECK(forward_tokens(&s, 0, text + i, 8, WANT_NONE, &e) == 0, "%s: %s", label, e.text);
    CHECK(forward_tokens(&s, 1, text, 8, WANT_NONE, &e) == 0, "%s: the last block", label);
    CHECK(forward_tokens(&s, 0, text, 1, WANT_NONE, &e) == -1 && e.code == EXIT_MEMORY,
          "%s: no block is left", label);
    check_blocks(&s, "no block is left");
    cache_truncate(&s.cache, 1, 0);
    CHECK(forward_tokens(&s, 0, text + 128, 1, WANT_LAST, &e) == 1
              && !memcmp(s.logits, want + 128 * VOCAB, VOCAB * sizeof *want),
          "%s: a neighbour's block", label);
    session_free(&s);
    p.n_blocks = 0;
    p.seq_len = CONTEXT + 1;
    bool fits = !session_init(&s, &model.decoder, &p, &e);
    CHECK(fits == !model.decoder.pos_embd.data, "%s: a context beyond the learned positions",
          label);
    if (fits)
        session_free(&s);
}

/* Without a mask every row sees all keys of its sequence, those of its own batch included: the same
 * as the textbook's attention over all of them. Checked on one head of the weights: each row of a
 * map sums to 1 over all keys, and the result is independent of the rows in a step (max_rows). */
static void test_no_mask(void)
{
    static float first[90 * VOCAB];
    LayerConfig *layers = model.decoder.config.layers, kept[LAYERS];
    memcpy(kept, layers, sizeof kept);
    for (int i = 0; i < LAYERS; i++)
        layers[i].mask = MASK_NONE;
    for (int rows = 90; rows > 6; rows /= 3) {
        Session s;
        Err e = {0};
        SessionParams p = {.seq_len = CONTEXT,
                           .n_seqs = 1,
                           .max_batch = 90,
                           .max_rows = rows,
                           .max_logits = 90,
                           .threads = &team,
                           .kv_type = kv_type,
                           .kernels = kernels};
        CHECK(!session_init(&s, &model.decoder, &p, &e), "%s: %s", label, e.text);
        CHECK(forward_tokens(&s, 0, text, 90, WANT_ALL, &e) == 90, "%s: %s", label, e.text);
        if (rows == 90)
            memcpy(first, s.logits, sizeof first);
        CHECK(!memcmp(first, s.logits, sizeof first), "%s: no mask: %d rows at a time differ",
              label, rows);
        session_free(&s);
    }
    CHECK(memcmp(first, want, sizeof first), "%s: without a mask nothing changes", label);
    memcpy(layers, kept, sizeof kept);
}

enum { MAP_SIZE = TEXT * TEXT, WATCHED = 1 };

typedef struct {
    float *maps; // (heads, TEXT, TEXT) of layer WATCHED
    int n_calls, ends_at;
} Watch;

/* The weights of the rows that are running, into their places. */
static int watch(void *context, const HookRows *rows)
{
    Watch *w = context;
    Session *s = rows->s;
    int pos = s->cache.seqs[0].n_pos, layer = rows->layer;
    w->n_calls++;
    for (int h = 0; layer == WATCHED && h < model.decoder.config.layers[layer].n_heads; h++)
        for (int i = 0, n; i < s->n_rows; i += n) {
            n = s->n_rows - i < MAP_ROWS ? s->n_rows - i : MAP_ROWS;
            attention_weights(s, layer, h, i, n,
                              w->maps + (size_t)h * MAP_SIZE + (size_t)(pos + i) * TEXT, TEXT, 0);
        }
    return layer == w->ends_at;
}

/* A few rows at a time in a layer, watched: the same logits; the same weights as row by row; rows
 * that sum to 1. */
static void test_watch(void)
{
    size_t n_heads = (size_t)model.decoder.config.layers[WATCHED].n_heads;
    float *maps = calloc(2 * n_heads * MAP_SIZE, sizeof *maps);
    for (int i = 0; i < 2; i++) {
        Session s;
        Err e = {0};
        Watch w = {maps + (size_t)i * n_heads * MAP_SIZE, 0, -1};
        SessionParams p = {.seq_len = CONTEXT,
                           .n_seqs = 1,
                           .max_batch = TEXT,
                           .max_rows = 37,
                           .max_logits = TEXT,
                           .threads = &team,
                           .kv_type = kv_type,
                           .keep_softmax = true,
                           .kernels = kernels};
        CHECK(!session_init(&s, &model.decoder, &p, &e), "%s: %s", label, e.text);
        session_hook(&s, HOOK_LAYER, watch, &w);
        check_run(&s, 0, 0, TEXT, i ? TEXT : 1, "watched");
        CHECK(w.n_calls == LAYERS * (i ? 1 : TEXT), "%s: watched %d times", label, w.n_calls);
        w.ends_at = 0;
        cache_truncate(&s.cache, 0, 500);
        CHECK(forward_tokens(&s, 0, text, 9, WANT_LAST, &e) == -1, "%s: the watch did not end it",
              label);
        CHECK(s.cache.seqs[0].n_pos == 500, "%s: an ended call moved the sequence", label);
        session_free(&s);
    }
    CHECK(!memcmp(maps, maps + n_heads * MAP_SIZE, n_heads * MAP_SIZE * sizeof *maps),
          "%s: weights depend on the batch", label);
    double worst = 0;
    for (size_t row = 0; row < n_heads * TEXT; row++) {
        double sum = -1;
        for (size_t k = 0; k < TEXT; k++)
            sum += maps[row * TEXT + k];
        worst = fabs(sum) > worst ? fabs(sum) : worst;
    }
    CHECK(worst < 1e-5, "%s: a row of weights sums to 1 %+g", label,
          worst); // 600 floats, each rounded once
    free(maps);
}

enum { MEMORY = 130, LOOKING = 1 };

/* How far the heads' results of layer LOOKING are from the textbook's sum in double precision over
 * all keys and values of the session's memory, as these are read back from it. */
static int compare_heads(void *context, const HookRows *rows)
{
    static float keys[MEMORY / KV_BLOCK + 1][KEY][KV_BLOCK];
    static float values[MEMORY / KV_BLOCK + 1][KV_BLOCK][VALUE];
    const Session *s = rows->s;
    const LayerConfig *l = &s->stack->config.layers[LOOKING];
    double *worst = context;
    for (int h = 0; rows->layer == LOOKING && h < l->n_heads; h++) {
        for (int b = 0; b * KV_BLOCK < MEMORY; b++)
            cache_read(s->memory, l->kv_layer, h / (l->n_heads / l->n_kv_heads), 0, b, keys[b][0],
                       values[b][0]);
        for (int row = 0; row < rows->n; row++) {
            const float *q = s->q + ((rows->first + row) * l->n_heads + h) * KEY;
            const float *got = rows->x + (row * l->n_heads + h) * VALUE;
            double sum = 0, out[VALUE] = {0};
            for (int t = 0; t < MEMORY; t++) {
                double score = 0;
                for (int i = 0; i < KEY; i++)
                    score += (double)q[i] * keys[t / KV_BLOCK][i][t % KV_BLOCK];
                double weight = exp(score * l->attn_scale);
                sum += weight;
                for (int i = 0; i < VALUE; i++)
                    out[i] += weight * values[t / KV_BLOCK][t % KV_BLOCK][i];
            }
            for (int i = 0; i < VALUE; i++) {
                double error = fabs(out[i] / sum - got[i]);
                *worst = error > *worst ? error : *worst;
            }
        }
    }
    return 0;
}

/* A layer whose keys and values are those of layer kv_layer of a memory, the cache of another
 * session: its rows see all keys there, and the layer has none of its own. Only the products'
 * rounding is left: 1e-4 for f32 sums of 130 weights, 0.02 where they are made of bf16 pairs, which
 * keep 8 bits. */
static void test_memory(int kv_layer)
{
    enum { N_ROWS = 70 };
    double worst = 0, limit = kernels->bf16 && kv_type != KV_F32 ? 0.02 : 1e-4;
    LayerConfig layers[LAYERS];
    Stack looking = model.decoder;
    Session memory, s;
    Threads own;
    Err e = {0};
    open_session(&memory, 1, 1);
    run(&memory, 0, text, MEMORY, 50, NULL);
    memcpy(layers, looking.config.layers, sizeof layers);
    layers[LOOKING].kv_source = KV_FROM_MEMORY;
    layers[LOOKING].kv_layer = kv_layer;
    layers[LOOKING].mask = MASK_NONE;
    looking.config.layers = layers;
    threads_init(&own, 2, NULL);
    SessionParams p = memory.params;
    p.threads = &own;
    p.max_rows = 40;
    CHECK(!session_init(&s, &looking, &p, &e), "%s: %s", label, e.text);
    CHECK(s.cache.block_bytes < memory.cache.block_bytes, "%s: room for keys that are elsewhere",
          label);
    s.memory = &memory.cache;
    session_hook(&s, HOOK_HEADS, compare_heads, &worst);
    CHECK(forward_tokens(&s, 0, other, 1, WANT_NONE, &e) == 0, "%s: %s", label, e.text);
    CHECK(forward_tokens(&s, 0, other + 1, N_ROWS, WANT_NONE, &e) == 0, "%s: %s", label, e.text);
    CHECK(worst > 0 && worst < limit, "%s: a result is %g from the textbook's", label, worst);
    session_free(&s);
    session_free(&memory);
    threads_free(&own);
}

/* What a hook has seen of one forward(), and what it does to the rows. */
typedef struct {
    int rows[HOOK_POINTS], wrong;
    float factor; // what it multiplies rows of `at` by
    HookPoint at;
} Seen;

static int see_rows(void *context, const HookRows *rows)
{
    Seen *seen = context;
    const LayerConfig *l = &model.decoder.config.layers[rows->layer < 0 ? 0 : rows->layer];
    const size_t widths[] = {[HOOK_EMBEDDED] = DIM,
                             [HOOK_QUERIES] = q_width(l),
                             [HOOK_KEYS] = k_width(l),
                             [HOOK_VALUES] = v_width(l),
                             [HOOK_HEADS] = heads_width(l),
                             [HOOK_ATTENTION] = DIM,
                             [HOOK_FFN] = DIM,
                             [HOOK_LAYER] = DIM};
    seen->wrong += rows->width != widths[rows->point]
                || (rows->layer < 0) != (rows->point == HOOK_EMBEDDED)
                || rows->first != (rows->point == HOOK_LAYER ? 0 : seen->rows[rows->point] % 90);
    seen->rows[rows->point] += rows->n;
    for (size_t i = 0; rows->point == seen->at && i < (size_t)rows->n * rows->width; i++)
        rows->x[i] *= seen->factor;
    return 0;
}

/* Hooks see every row once a layer at every point and change nothing by looking. What they write is
 * used: without what attention and the FFN add, a layer is the identity, and without values
 * attention adds nothing. */
static void test_hooks(void)
{
    static float identity[90 * VOCAB];
    memset(identity, 1, sizeof identity); // like no logits, until they are known
    for (int point = -1; point < HOOK_POINTS; point++) {
        Session s;
        Err e = {0};
        Seen seen = {.factor = 0, .at = (HookPoint)point}, also = {.factor = 0, .at = HOOK_FFN};
        SessionParams p = {.seq_len = CONTEXT,
                           .n_seqs = 1,
                           .max_batch = 90,
                           .max_rows = 40,
                           .max_logits = 90,
                           .threads = &team,
                           .kv_type = kv_type,
                           .kernels = kernels};
        CHECK(!session_init(&s, &model.decoder, &p, &e), "%s: %s", label, e.text);
        for (int i = 0; i < HOOK_POINTS; i++)
            session_hook(&s, (HookPoint)i, see_rows, &seen);
        if (point >= 0)
            session_hook(&s, HOOK_FFN, see_rows, &also);
        CHECK(forward_tokens(&s, 0, text, 90, WANT_ALL, &e) == 90, "%s: %s", label, e.text);
        for (int i = 0; i < HOOK_POINTS; i++)
            CHECK(seen.rows[i] == (i == HOOK_EMBEDDED ? 1 : LAYERS) * 90,
                  "%s: point %d saw %d rows", label, i, seen.rows[i]);
        CHECK(!seen.wrong, "%s: %d calls of hooks with wrong widths or rows", label, seen.wrong);
        if (point == HOOK_VALUES)
            memcpy(identity, s.logits, sizeof identity);
        bool same = !memcmp(s.logits, point < 0 ? want : identity, sizeof identity);
        bool is_identity = point == HOOK_VALUES || point == HOOK_HEADS || point == HOOK_ATTENTION;
        CHECK(same == (point < 0 || is_identity), "%s: point %d of a hook that writes", label,
              point);
        session_free(&s);
    }
}

/* longrope: the length that a text is expected to have chooses its factors, its neighbours' lengths
 * do not, and a text that crosses the original length starts again. */
static void test_longrope(void)
{
    enum { ORIGINAL = 150 };
    static float factors[2][KEY / 2], shorter[TEXT * VOCAB], longer[TEXT * VOCAB],
        out[TEXT * VOCAB];
    Rope plain = model.decoder.config.ropes[0];
    Session s;
    Err e = {0};
    for (int i = 0; i < KEY / 2; i++) {
        factors[0][i] = 1 + 0.1f * (float)i;
        factors[1][i] = 1 + 0.7f * (float)i;
    }
    model.decoder.config.ropes[0].scaling = ROPE_LONGROPE;
    model.decoder.config.ropes[0].orig_seq_len = ORIGINAL;
    model.decoder.config.ropes[0].use_factors = true;
    model.decoder.rope_factors[0] = factors[0];
    model.decoder.rope_factors[1] = factors[1];

    open_session(&s, 2, 2);
    CHECK(cache_expect(&s.cache, 0, TEXT) == 0, "%s: an empty sequence", label);
    run(&s, 0, text, TEXT, TEXT, longer);
    CHECK(cache_expect(&s.cache, 0, TEXT) == TEXT, "%s: nothing changed", label);
    CHECK(cache_expect(&s.cache, 0, ORIGINAL) == 0 && s.cache.seqs[0].n_pos == 0,
          "%s: the text became short", label);
    run(&s, 0, text, ORIGINAL, 40, shorter);
    CHECK(memcmp(shorter, longer, ORIGINAL * VOCAB * sizeof *out), "%s: the factors do not matter",
          label);
    CHECK(cache_expect(&s.cache, 0, ORIGINAL) == ORIGINAL, "%s: at the border", label);
    CHECK(!cache_fork(&s.cache, 1, 0, 100) && cache_expect(&s.cache, 1, ORIGINAL) == 100,
          "%s: a fork keeps its kind", label);
    run(&s, 1, text + 100, ORIGINAL - 100, 7, out);
    CHECK(!memcmp(out, shorter + 100 * VOCAB, (ORIGINAL - 100) * VOCAB * sizeof *out),
          "%s: a fork of a short text", label);
    CHECK(cache_expect(&s.cache, 1, ORIGINAL + 1) == 0 && cache_expect(&s.cache, 0, 1) == ORIGINAL,
          "%s: one crosses the border", label);

    cache_truncate(&s.cache, 0, 0);
    CHECK(cache_expect(&s.cache, 0, ORIGINAL) == 0 && cache_expect(&s.cache, 1, TEXT) == 0,
          "%s: both are empty", label);
    Span both[] = {{.seq = 0, .n = ORIGINAL, .tokens = text, .want = WANT_ALL},
                   {.seq = 1, .n = ORIGINAL, .tokens = text, .want = WANT_ALL}};
    CHECK(forward(&s, &(Batch){both, 2}, &e) == 2 * ORIGINAL, "%s: %s", label, e.text);
    CHECK(!memcmp(s.logits, shorter, ORIGINAL * VOCAB * sizeof *out),
          "%s: a short text beside a long one", label);
    CHECK(!memcmp(s.logits + ORIGINAL * VOCAB, longer, ORIGINAL * VOCAB * sizeof *out),
          "%s: a long text beside a short one", label);
    session_free(&s);
    model.decoder.config.ropes[0] = plain;
    model.decoder.rope_factors[0] = model.decoder.rope_factors[1] = NULL;
}

static void test_variant(int number)
{
    const Variant *v = &variants[number];
    char path[] = "/tmp/test_session.XXXXXX";
    Err e = {0};
    int fd = mkstemp(path);
    CHECK(fd >= 0, "%s", path);
    write_model(v, path);
    CHECK(!model_open(&model, path, true, &e), "%s", e.text);
    for (int i = 0; (kernels = kernels_at(i)); i++)
        for (int kv = 0; kv_names[kv] && model.decoder.layers; kv++) {
            Session s;
            if (only && (kernels != only || kv != (number + 2) % 3))
                continue;
            kv_type = (KvType)kv;
            snprintf(label, sizeof label, "%s, %s, %s", v->name, kernels->name, kv_names[kv]);
            open_session(&s, 1, 1);
            run(&s, 0, text, TEXT, TEXT, want);
            CHECK(memcmp(want, want + VOCAB, VOCAB * sizeof *want) && want[0] == want[0],
                  "%s: the logits say nothing", label);
            session_free(&s);
            check_reference(v);
            test_cache();
            test_chunks();
            if (model.decoder.config.pos == POS_ROPE && !v->window)
                test_longrope();
            if ((!only && kernels_at(i + 1))
                || kv == number % 3) // the bookkeeping is the same for all kernels
                continue;
            test_truncate();
            test_fork();
            test_neighbours((int[]){0, 100, 513}, (int[]){9, 5, 1});
            test_neighbours((int[]){520, 513, 300}, (int[]){4, 4, 3});
            test_calls();
            test_sizes();
            test_no_mask();
            test_hooks();
            for (int layer = 0; layer < LAYERS; layer++)
                test_memory(layer);
            test_watch();
        }
    model_close(&model);
    close(fd);
    unlink(path);
}

/* test_session [TABLE [HALF]]: where time is short, one kernel table with one cache type a variant,
 * and half of the variants, 0 or 1, with one of the recurrent ones. */
/* ---- recurrent layers ------------------------------------------------------------------------ */

static int end_at_layer(void *context, const HookRows *rows)
{
    return rows->layer == *(const int *)context ? -1 : 0;
}

/* A state cannot be taken back: sequences are cut and forked where one was kept, every 64 positions
 * here. */
static void test_states(void)
{
    static const int points[] = {0, 1, 63, 64, 65, 128, 300, 512, 599, TEXT};
    Session s;
    Err e = {0};
    open_session(&s, 3, 2);
    CHECK(s.cache.state_step == KV_BLOCK, "states are kept every %d positions", s.cache.state_step);
    check_run(&s, 0, 0, TEXT, TEXT, "at once");
    for (size_t i = 0; i < sizeof points / sizeof *points; i++) {
        int n = points[i], kept = n == TEXT ? n : n / KV_BLOCK * KV_BLOCK;
        int got = cache_truncate(&s.cache, 0, n);
        CHECK(got == kept && s.cache.seqs[0].n_pos == kept, "cut to %d: %d are left", n, got);
        run(&s, 0, other, kept < TEXT ? 90 < TEXT - kept ? 90 : TEXT - kept : 0, 41, NULL);
        CHECK(cache_truncate(&s.cache, 0, n) == kept, "cut again to %d", n);
        check_run(&s, 0, kept, TEXT, 37, "after a cut");

        run(&s, 1, other, 150, 150, NULL); // forking empties it
        CHECK(!cache_fork(&s.cache, 1, 0, n) && s.cache.seqs[1].n_pos == kept, "fork at %d", n);
        run(&s, 1, other, CONTEXT - kept < 70 ? CONTEXT - kept : 70, 70, NULL);
        int at = kept % KV_BLOCK ? 0 : kept; // where the fork began
        CHECK(cache_truncate(&s.cache, 1, kept) == at, "a fork cut at %d", kept);
        check_run(&s, 1, at, at + 20, 20, "a fork after a cut");
        CHECK(!cache_fork(&s.cache, 1, 0, n), "a second fork at %d", n);
        check_run(&s, 1, kept, kept + 65 < TEXT ? kept + 65 : TEXT, 9, "a fork");
        CHECK(cache_truncate(&s.cache, 1, kept ? kept - 1 : 0) == 0, "a fork cut before %d", kept);
        check_run(&s, 1, 0, 70, 70, "a fork from the start");
        check_blocks(&s, "recurrent");
    }
    int end_at = 1;
    session_hook(&s, HOOK_LAYER, end_at_layer, &end_at);
    cache_truncate(&s.cache, 0, 320);
    CHECK(forward_tokens(&s, 0, other, 70, WANT_LAST, &e) == -1 && s.cache.seqs[0].n_pos == 320,
          "a hook did not end it");
    end_at = LAYERS;
    check_run(&s, 0, 320, TEXT, 64, "after a call that failed");
    session_free(&s);
}

/* Fewer rows at a time than a batch has, some fewer than the taps. */
static void test_few_rows(void)
{
    for (int rows = 1; rows <= 5; rows += 2) {
        Session s;
        Err e = {0};
        SessionParams p = {.seq_len = CONTEXT,
                           .n_seqs = 1,
                           .max_batch = TEXT,
                           .max_rows = rows,
                           .max_logits = TEXT,
                           .threads = &team,
                           .kv_type = kv_type,
                           .kernels = kernels};
        CHECK(!session_init(&s, &model.decoder, &p, &e), "%s", e.text);
        check_run(&s, 0, 0, 130, 50, "few rows at a time");
        cache_truncate(&s.cache, 0, 127);
        check_run(&s, 0, 64, TEXT, TEXT, "few rows after a cut");
        session_free(&s);
    }
}

static void test_recurrent(const Variant *v)
{
    char path[] = "/tmp/test_session.XXXXXX";
    Err e = {0};
    int fd = mkstemp(path);
    write_model(v, path);
    CHECK(!model_open(&model, path, true, &e), "%s", e.text);
    kernels = only ? only : kernels_at(0);
    kv_type = KV_F16;
    snprintf(label, sizeof label, "%s, %s", v->name, kernels->name);
    Session s;
    open_session(&s, 1, 1);
    run(&s, 0, text, TEXT, TEXT, want);
    session_free(&s);
    test_chunks();
    test_states();
    test_few_rows();
    test_neighbours((int[]){0, 100, 513}, (int[]){9, 5, 1});
    test_neighbours((int[]){520, 513, 300}, (int[]){4, 4, 3});
    model_close(&model);
    close(fd);
    unlink(path);
}

int main(int argc, char **argv)
{
    Err e = {0};
    if (argc > 1)
        CHECK((only = kernels_select(argv[1], &e)), "%s", e.text);
    want = malloc(TEXT * VOCAB * sizeof *want);
    state = 7;
    for (int i = 0; i < TEXT; i++) {
        text[i] = (int)((random_float() + 1) * 0.4999f * VOCAB);
        other[i] = (text[i] + 1 + i % 5) % VOCAB;
    }
    for (int i = 0; i < (int)(sizeof variants / sizeof *variants); i++)
        if (argc < 3 || i / 2 == atoi(argv[2]))
            test_variant(i);
    for (int i = 0; i < (int)(sizeof recurrent_variants / sizeof *recurrent_variants); i++)
        if (argc < 3 || i == atoi(argv[2]))
            test_recurrent(&recurrent_variants[i]);
    free(want);
    return check_done("test_session");
}
