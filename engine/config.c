/* config.c - GGUF keys and the row of the model's family -> a validated Config.
 *
 * A family's row (families.c) holds what its llama.cpp convention leaves to code; the keys of the
 * file say the rest. After config_read() every number is in range and every combination is one that
 * forward() can run.
 *
 * A key that a file leaves out has the value that llama.cpp gives it: its load_arch_hparams() of
 * the architecture, or for keys of all architectures load_hparams() in llama-model.cpp and the
 * initial values in llama-hparams.h.
 */
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "engine/families.h"

/* ---- keys ------------------------------------------------------------------------------------ */

/* Reads keys "ARCH.name". The first error stays in `e` and later reads do nothing, so that a list
 * of reads needs one check at its end. */
typedef struct {
    const Gguf *g;
    const char *arch;
    Err *e;
    bool failed;
    int n_skipped; // layers of the file that do not run, whose values arrays hold as well
} Keys;

const char *const mixer_names[MIX_COUNT] = {[MIX_ATTENTION] = "layer with attention",
                                            [MIX_SHORT_CONV] = "short convolution",
                                            [MIX_DELTA_NET] = "gated delta net",
                                            [MIX_MAMBA] = "Mamba-2 layer"};

static const char *key_name(const Keys *k, const char *name, char out[160])
{
    snprintf(out, 160, "%s.%s", k->arch, name);
    return out;
}

/* Refuse the file; the first reason counts. */
static void refuse(Keys *k, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void refuse(Keys *k, const char *fmt, ...)
{
    char text[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (!k->failed)
        err_set(k->e, EXIT_MODEL, "%s", text);
    k->failed = true;
}

static void key_missing(Keys *k, const char *key, const char *want)
{
    refuse(k, "key %s: missing, want %s", key, want);
}

/* An integer in [lo, hi]; without the key `fallback`, or an error when that is outside the range.
 */
static int key_int(Keys *k, const char *name, int lo, int hi, int fallback)
{
    char key[160];
    uint32_t v = 0;
    int rc = k->failed ? 0 : gguf_u32(k->g, key_name(k, name, key), &v, k->e);
    if (k->failed || rc < 0) {
        k->failed = true;
        return lo;
    }
    if (!rc && fallback >= lo && fallback <= hi)
        return fallback;
    if (!rc) {
        key_missing(k, key, "an integer");
    } else if (v < (uint32_t)lo || v > (uint32_t)hi) {
        refuse(k, "key %s: got %u, want %d to %d", key, v, lo, hi);
    } else {
        return (int)v;
    }
    return lo;
}

/* A float; NAN as fallback makes it required. */
static float key_float(Keys *k, const char *name, float fallback)
{
    char key[160];
    float v = fallback;
    if (!k->failed && gguf_f32(k->g, key_name(k, name, key), &v, k->e) < 0)
        k->failed = true;
    if (!k->failed && isnan(v))
        key_missing(k, key, "a number");
    return k->failed ? 1 : v;
}

/* A factor; where it is absent and `fallback` is 0, 1, and where that is NAN, an error. 0 counts as
 * 1, as in llama.cpp (its graphs test these numbers before they multiply by them). */
static float key_scale(Keys *k, const char *name, float fallback)
{
    float v = key_float(k, name, fallback);
    return v == 0 ? 1 : v;
}

static bool key_present(const Keys *k, const char *name)
{
    char key[160];
    return gguf_key(k->g, key_name(k, name, key)) != NULL;
}

/* fallback < 0 makes it required. */
static bool key_flag(Keys *k, const char *name, int fallback)
{
    char key[160];
    bool v = fallback > 0;
    int rc = k->failed ? 1 : gguf_bool(k->g, key_name(k, name, key), &v, k->e);
    if (rc < 0)
        k->failed = true;
    else if (!rc && fallback < 0)
        key_missing(k, key, "true or false");
    return v;
}

/* The same for tensors that are there or not. */
static Presence key_presence(Keys *k, const char *name, int fallback)
{
    return key_flag(k, name, fallback) ? REQUIRED : ABSENT;
}

/* One of the names in `choices` (NULL-terminated): its index. fallback < 0 makes it required. */
static int key_choice(Keys *k, const char *name, const char *const *choices, int fallback)
{
    char key[160], seen[64], want[160] = "";
    Str v;
    if (k->failed)
        return 0;
    int rc = gguf_str(k->g, key_name(k, name, key), &v, k->e);
    if (rc < 0)
        k->failed = true;
    if (rc <= 0 && (k->failed || fallback >= 0))
        return fallback < 0 ? 0 : fallback;
    for (int i = 0; choices[i]; i++) {
        if (rc && str_eq(v, choices[i]))
            return i;
        snprintf(want + strlen(want), sizeof want - strlen(want), "%s%s", i ? ", " : "one of ",
                 choices[i]);
    }
    if (!rc)
        key_missing(k, key, want);
    else
        refuse(k, "key %s: got \"%s\", want %s", key, str_escape(v, seen, sizeof seen), want);
    return 0;
}

/* Value `i` of a key that is a number for all layers or an array with one for each; NAN when it is
 * absent. */
static double key_layer(Keys *k, const char *name, int i, int n_layers)
{
    char key[160];
    const GgufKey *found = k->failed ? NULL : gguf_key(k->g, key_name(k, name, key));
    if (!found)
        return NAN;
    if (found->type == GGUF_STRING
        || (found->is_array && found->n != (uint64_t)n_layers + (uint64_t)k->n_skipped)) {
        refuse(k, "key %s: got %llu items, want a number or an array of %d numbers", key,
               (unsigned long long)found->n, n_layers + k->n_skipped);
        return NAN;
    }
    double v = gguf_number(found, found->is_array ? (uint64_t)i : 0);
    if (isnan(v))
        refuse(k, "key %s: got NaN, want a number", key);
    return v;
}

static int key_layer_int(Keys *k, const char *name, int i, int n_layers, int lo, int hi,
                         int fallback)
{
    char key[160];
    double v = key_layer(k, name, i, n_layers);
    if (isnan(v) && !k->failed && fallback >= lo && fallback <= hi)
        return fallback;
    if (k->failed || (v >= lo && v <= hi && v == floor(v)))
        return k->failed ? lo : (int)v;
    if (isnan(v)) {
        key_missing(k, key_name(k, name, key), "an integer");
    } else {
        refuse(k, "key %s: got %g for layer %d, want an integer from %d to %d",
               key_name(k, name, key), v, i, lo, hi);
    }
    return lo;
}

/* ---- the parts of a Config ------------------------------------------------------------------- */

enum {
    MAX_DIM = 1 << 18,
    MAX_HEADS = 4096,
    MAX_HEAD_DIM = 8192,
    MAX_CONTEXT = 1 << 28,
    MAX_LAYERS = 4096,
    MAX_REACH = 1 << 20,
    MAX_EXPERTS = 4096,
    MAX_TAPS = 256
};

static void from_family(Config *c, const Family *f, Keys *k)
{
    c->norm_eps = key_float(k,
                            c->norm == NORM_RMS ? "attention.layer_norm_rms_epsilon"
                                                : "attention.layer_norm_epsilon",
                            NAN);
    c->output_weight = OPTIONAL;
    if (f->gate_tensor)
        c->fused_gate_up = !gguf_tensor(k->g, "blk.0.ffn_gate.weight");
    if (f->parallel_key)
        c->parallel = key_flag(k, "use_parallel_residual", 1);
    if (f->parallel_without_ffn_norm)
        c->parallel = c->shared_norm = !gguf_tensor(k->g, "blk.0.ffn_norm.weight");
    if (c->bias == BIAS_ALIBI) {
        c->alibi_max = c->alibi_max > 0 ? c->alibi_max
                                        : key_float(k, "attention.max_alibi_bias", 0);
        if (c->alibi_max == 0) { // MPT without ALiBi has a table of positions
            c->bias = BIAS_NONE;
            c->pos = POS_LEARNED;
        }
    }
    c->embd_scale = f->embd_scale_sqrt_dim ? sqrtf((float)c->dim)
                                           : key_scale(k, "embedding_scale", f->embd_scale);
    c->logit_scale = key_scale(k, "logit_scale",
                               f->logit_width     ? (float)c->dim / (float)f->logit_width
                               : f->divide_logits ? NAN
                                                  : 1);
    if (f->divide_logits)
        c->logit_scale = 1 / c->logit_scale;
}

/* An architecture without a convention: everything is a key (docs/gpt-keys.md). */
static void from_keys(Config *c, Keys *k)
{
    static const char *const norms[] = {"rms", "layer", NULL};
    static const char *const acts[] = {"silu",  "gelu",  "gelu_tanh", "relu",
                                       "relu2", "xielu", NULL};                    // as Act
    static const char *const qk_norms[] = {"none", "head", "heads", "full", NULL}; // as QkNorm
    static const char *const positions[] = {"none", "rope", "learned", "alibi", "relative", NULL};
    static const struct {
        PosType pos;
        BiasType bias;
    } kinds[] = {{POS_NONE, BIAS_NONE},
                 {POS_ROPE, BIAS_NONE},
                 {POS_LEARNED, BIAS_NONE},
                 {POS_NONE, BIAS_ALIBI},
                 {POS_NONE, BIAS_TABLE}}; // as `positions`
    static const char *const pairings[] = {"interleaved", "half", NULL};
    static const char *const residuals[] = {"sequential", "parallel", NULL};
    char key[160];

    c->norm = (NormType)key_choice(k, "norm.type", norms, -1);
    c->norm_eps = key_float(k, "norm.epsilon", NAN);
    c->norm_affine = key_flag(k, "norm.affine", -1);
    c->norm_bias = key_presence(k, "norm.bias", -1);
    c->pre_norm = key_flag(k, "norm.pre", -1);
    c->post_norm = key_flag(k, "norm.post", -1);
    c->norm_residual = key_flag(k, "norm.residual", 0);
    c->embd_norm = key_flag(k, "norm.embedding", -1);
    c->plain_first = key_flag(k, "norm.plain_first", 0);
    c->token_types = key_int(k, "token_types", 0, MAX_DIM, 0) ? REQUIRED : ABSENT;
    c->final_norm = key_flag(k, "norm.final", -1);
    c->qk_norm = (QkNorm)key_choice(k, "attention.qk_norm", qk_norms, -1);
    c->qk_norm_weight = c->qk_norm == QK_NORM_NONE ? ABSENT : REQUIRED;
    c->qk_norm_bias = key_presence(k, "attention.qk_norm_bias", 0);
    c->value_norm = key_flag(k, "attention.value_norm", 0);
    c->conv_bias = key_presence(k, "mamba.conv_bias", 0);
    c->attn_gate = key_flag(k, "attention.output_gate", 0);
    c->out_scale = key_presence(k, "layer_output_scale", 0);
    c->qk_norm_after_rope = key_flag(k, "attention.qk_norm_after_rope", 0);
    c->qkv_bias = key_presence(k, "attention.bias", -1);
    c->sinks = key_flag(k, "attention.sinks", 0);
    c->wo_bias = key_presence(k, "attention.output_bias", -1);
    c->ffn_bias = key_presence(k, "ffn.bias", -1);
    c->output_bias = key_presence(k, "output_bias", 0);
    c->output_weight = key_flag(k, "tied", -1) ? ABSENT : REQUIRED;
    c->gated = key_flag(k, "ffn.gated", -1);
    c->swiglu_limit = key_float(k, "ffn.swiglu_limit", 0);
    c->act = (Act)key_choice(k, "ffn.activation", acts, -1);
    bool swiglu = c->gated && c->act == ACT_SILU;
    if (!(c->swiglu_limit >= 0 && (swiglu || c->swiglu_limit == 0)))
        refuse(k, "key %s: got %g, want a number above 0, a gated FFN and silu",
               key_name(k, "ffn.swiglu_limit", key), (double)c->swiglu_limit);
    c->parallel = key_choice(k, "residual", residuals, -1) == 1;
    c->shared_norm = key_flag(k, "residual.shared_norm", 0);
    c->embd_scale = key_scale(k, "embedding_scale", 1);
    c->logit_scale = key_scale(k, "logit_scale", 1);
    int kind = key_choice(k, "position", positions, -1);
    c->pos = kinds[kind].pos;
    c->bias = kinds[kind].bias;
    c->pos_offset = key_int(k, "position.offset", 0, MAX_CONTEXT, 0);
    if (c->pos == POS_ROPE)
        c->rope_pairing = (RopePairing)key_choice(k, "rope.pairing", pairings, -1);
    if (c->bias == BIAS_ALIBI)
        c->alibi_max = key_float(k, "attention.max_alibi_bias", NAN);
    if (c->bias == BIAS_TABLE)
        c->bias_reach = key_int(k, "position.reach", 0, MAX_REACH, -1);
    if (c->norm_residual && (c->parallel || !c->post_norm))
        refuse(k, "key %s.norm.residual: got true, want a sequential residual and norm.post",
               k->arch);
    if (!c->pre_norm && c->shared_norm) {
        char shared[160], pre[160];
        refuse(k, "key %s: got true without %s, want a norm to share",
               key_name(k, "residual.shared_norm", shared), key_name(k, "norm.pre", pre));
    }
}

/* Widths of a head in some layers. */
typedef struct {
    int key_dim, value_dim;
} HeadWidths;

static int key_rope_dim(Keys *k, const char *name, int key_dim, int fallback)
{
    char key[160];
    int dim = key_int(k, name, 2, key_dim, fallback);
    if (dim % 2)
        refuse(k, "key %s: got %d, want an even number", key_name(k, name, key), dim);
    return dim;
}

/* ropes[0] for layers that see everything, ropes[1] for windowed ones. */
static void read_rope(Config *c, const Family *f, Keys *k, const HeadWidths *w,
                      const HeadWidths *windowed)
{
    static const char *const scalings[] = {"none", "linear", "yarn", "longrope",
                                           NULL}; // as RopeScaling
    char key[160];
    Rope *r = &c->ropes[0];
    r->dim = key_rope_dim(k, "rope.dimension_count", w->key_dim, w->key_dim);
    r->base = key_float(k, "rope.freq_base", 10000);
    // llama.cpp's Phi-3 files have no key for longrope, only its factors
    bool two_sets = gguf_tensor(k->g, "rope_factors_long.weight");
    r->scaling = (RopeScaling)key_choice(k, "rope.scaling.type", scalings,
                                         two_sets ? ROPE_LONGROPE : ROPE_LINEAR);
    r->factor = key_float(k, "rope.scaling.factor", key_float(k, "rope.scale_linear", 1));
    if (r->factor == 0)
        r->factor = 1;
    r->attn_factor = key_float(k, "rope.scaling.attn_factor", 1);
    float log_multiplier = key_float(k, "rope.scaling.yarn_log_multiplier", 0);
    r->score_factor = 1;
    if (r->scaling == ROPE_YARN && r->factor > 1 && f->latent && log_multiplier != 0) {
        // llama.cpp's files have a tenth of mscale_all_dim; mscale, which they lack, is the same
        r->attn_factor /= (float)(1 + 0.1 * log(r->factor));
        r->score_factor = (float)pow(1 + log_multiplier * log(r->factor), 2);
    } else if (r->scaling == ROPE_YARN && r->factor > 1) {
        r->attn_factor /= (float)(1 + 0.1 * log_multiplier * log(r->factor));
    }
    r->beta_fast = key_float(k, "rope.scaling.yarn_beta_fast", 32);
    r->beta_slow = key_float(k, "rope.scaling.yarn_beta_slow", 1);
    r->truncate = key_flag(k, "rope.scaling.yarn_truncate", !f->yarn_untruncated);
    r->orig_seq_len = key_int(k, "rope.scaling.original_context_length", 1, MAX_CONTEXT,
                              c->seq_len);
    r->use_factors = true; // where the tensors exist
    r->needs_factors = f->needs_rope_freqs;
    if (!(r->base > 1) || !(r->factor > 0))
        refuse(k, "rope: got base %g and factor %g, want a base above 1 and a factor above 0",
               r->base, r->factor);
    if (!(log_multiplier >= 0))
        refuse(k, "key %s: got %g, want 0 or more",
               key_name(k, "rope.scaling.yarn_log_multiplier", key), log_multiplier);
    static const char *const refused[] = {"rope.scaling.yarn_ext_factor",
                                          "rope.scaling.yarn_attn_factor", "rope.scaling.alpha",
                                          "rope.dimension_sections", NULL};
    for (int i = 0; refused[i] && !k->failed && !(i == 3 && f->has_sections); i++)
        if (key_present(k, refused[i]))
            refuse(k, "key %s: ropes of this kind are not supported yet",
                   key_name(k, refused[i], key));
    c->ropes[1] = *r;
    c->ropes[1].dim = key_rope_dim(k, "rope.dimension_count_swa", windowed->key_dim,
                                   r->dim < windowed->key_dim ? r->dim : windowed->key_dim);
    c->ropes[1].base = key_float(k, "rope.freq_base_swa",
                                 f->local_rope_base > 0 ? f->local_rope_base : r->base);
    if (f->plain_local_rope || (f->plain_own_base && key_present(k, "rope.freq_base_swa"))) {
        c->ropes[1].scaling = ROPE_PLAIN;
        c->ropes[1].factor = c->ropes[1].attn_factor = c->ropes[1].score_factor = 1;
        c->ropes[1].use_factors = false;
    }
}

/* Latent attention, and what it caches as keys and values. Older files of DeepSeek's models have
 * the widths of heads as they are before and after their matrices, key_length and value_length,
 * newer ones those of the cache, with key_length_mla and value_length_mla beside them. */
static Latent read_latent(const Config *c, const Family *f, Keys *k, HeadWidths *w,
                          HeadWidths *windowed)
{
    char key[160];
    Latent x = {
        .rank = key_int(k, "attention.kv_lora_rank", f->latent, MAX_HEAD_DIM, f->latent ? -1 : 0)};
    if (!x.rank)
        return x;
    key_name(k, "attention.kv_lora_rank", key);
    if (c->pos != POS_ROPE || c->qk_norm != QK_NORM_NONE || c->value_norm || c->clamp_qkv != 0
        || c->attn_gate)
        refuse(k,
               "key %s: got %d without rope, or with norms, a clamp or gates of heads, want none",
               key, x.rank);
    bool cached = f->all_keys || key_present(k, "attention.key_length_mla");
    int turning = c->ropes[0].dim;
    int head = cached ? key_int(k, "attention.key_length_mla", 1, MAX_HEAD_DIM, -1) : w->key_dim;
    x.value_dim = cached ? key_int(k, "attention.value_length_mla", 1, MAX_HEAD_DIM, -1)
                         : w->value_dim;
    x.q_rank = key_int(k, "attention.q_lora_rank", 0, MAX_DIM, 0);
    x.key_dim = head - turning;
    if (cached && (w->key_dim != x.rank + turning || w->value_dim != x.rank))
        refuse(k, "key %s: got %d with keys of %d and values of %d, want %d and %d", key, x.rank,
               w->key_dim, w->value_dim, x.rank + turning, x.rank);
    if (memcmp(w, windowed, sizeof *w) != 0 || c->ropes[1].dim != turning)
        refuse(k, "key %s: got %d with other widths in windowed layers, want the same", key,
               x.rank);
    if (x.key_dim < 1)
        refuse(k, "key %s: got %d, want fewer than the %d values of a head",
               key_name(k, "rope.dimension_count", key), turning, head);
    *w = *windowed = (HeadWidths){x.rank + turning, x.rank};
    return x;
}

/* The layer whose keys and values layer i attends to. The last `n_shared` layers have none of their
 * own and take those of the last layer before them that has the same mask, as Gemma 3n and Gemma 4
 * do in transformers. -1 where there is no such layer. */
static int kv_layer(const Config *c, int i, int n_shared)
{
    int own = c->n_layers - n_shared, from = own - 1;
    if (i < own)
        return i;
    while (from >= 0 && c->layers[from].mask != c->layers[i].mask)
        from--;
    return from;
}

/* Layers that share keys and values must agree about their shape. */
static void share_kv(Config *c, Keys *k)
{
    int n_shared = key_int(k, "attention.shared_kv_layers", 0, c->n_layers - 1, 0);
    for (int i = 0; i < c->n_layers && !k->failed; i++) {
        LayerConfig *l = &c->layers[i];
        if (n_shared && l->latent.rank)
            refuse(k, "layer %d: got shared keys with latent attention, want its own", i);
        l->kv_layer = kv_layer(c, i, n_shared);
        const LayerConfig *from = l->kv_layer < 0 ? NULL : &c->layers[l->kv_layer];
        if (!from || from->n_kv_heads != l->n_kv_heads || from->key_dim != l->key_dim
            || from->value_dim != l->value_dim)
            refuse(k,
                   "layer %d: got no layer before the last %d with its mask and the widths of its "
                   "keys and values, want one to share them with",
                   i, n_shared);
    }
}

/* Whether a layer makes values of the same projection as keys: the architecture `gpt` has a key for
 * it, in others such a layer has no attn_v. */
static bool values_are_keys(const Family *f, Keys *k, int i, int n_layers)
{
    char name[40];
    if (f->all_keys)
        return key_layer(k, "attention.keys_as_values", i, n_layers) > 0;
    snprintf(name, sizeof name, "blk.%d.attn_v.weight", i);
    bool has_values = gguf_tensor(k->g, name) != NULL;
    snprintf(name, sizeof name, "blk.%d.attn_qkv.weight", i);
    return f->keys_as_values && !has_values && !gguf_tensor(k->g, name);
}

/* The activation of one layer. Its keys have no architecture in front, and what two of them hold
 * goes through softplus to be above 0. */
static Xielu read_xielu(Keys *k, int i, int n_layers)
{
    Keys own = {k->g, "xielu", k->e, k->failed, 0};
    double positive = key_layer(&own, "alpha_p", i, n_layers),
           negative = key_layer(&own, "alpha_n", i, n_layers),
           beta = key_layer(&own, "beta", i, n_layers), eps = key_layer(&own, "eps", i, n_layers);
    k->failed = own.failed;
    Xielu a = {(float)log1p(exp(positive)), (float)(beta + log1p(exp(negative))), (float)beta,
               (float)eps};
    if (!isfinite(a.positive) || !isfinite(a.negative) || !isfinite(a.eps))
        refuse(k, "layer %d: got xielu.alpha_p, alpha_n, beta, eps of %g, %g, %g, %g, want numbers",
               i, positive, negative, beta, eps);
    return a;
}

/* The width of an FFN. Files whose layers all have experts need not have the key. */
static int key_hidden_dim(Keys *k, const Family *f, int i, int n_layers)
{
    int least = f->experts != REQUIRED;
    return key_layer_int(k, "feed_forward_length", i, n_layers, least, MAX_DIM * 4, least ? -1 : 0);
}

static Recurrence read_short_conv(const Config *c, Keys *k)
{
    return (Recurrence){.taps = key_int(k, "shortconv.l_cache", 2, MAX_TAPS, -1),
                        .conv_dim = c->dim};
}

/* The heads of a gated delta net or of Mamba-2, in llama.cpp's names of Mamba's sizes: the
 * convolution runs over all queries, keys and values. */
static Recurrence read_matrices(Keys *k)
{
    Recurrence r = {.taps = key_int(k, "ssm.conv_kernel", 2, MAX_TAPS, -1),
                    .n_heads = key_int(k, "ssm.time_step_rank", 1, MAX_HEADS, -1),
                    .n_key_heads = key_int(k, "ssm.group_count", 1, MAX_HEADS, -1),
                    .key_dim = key_int(k, "ssm.state_size", 1, MAX_HEAD_DIM, -1)};
    int inner = key_int(k, "ssm.inner_size", 1, MAX_DIM * 4, -1);
    if (r.n_heads % r.n_key_heads || inner % r.n_heads)
        refuse(k,
               "key %s.ssm.time_step_rank: got %d heads for %d values and %d key heads, want a "
               "divisor of the first and a multiple of the second",
               k->arch, r.n_heads, inner, r.n_key_heads);
    r.value_dim = inner / r.n_heads;
    r.conv_dim = inner + 2 * r.n_key_heads * r.key_dim;
    return r;
}

/* A layer without heads, whose FFN is as in others. */
static void read_recurrent(const Config *c, const Family *f, Mixer mixer, Keys *k, int i)
{
    c->layers[i] = (LayerConfig){
        .mixer = mixer,
        .hidden_dim = key_hidden_dim(k, f, i, c->n_layers),
        .rec = mixer == MIX_SHORT_CONV ? read_short_conv(c, k) : read_matrices(k),
        .rope = -1,
    };
    if (c->act == ACT_XIELU)
        c->layers[i].xielu = read_xielu(k, i, c->n_layers);
}

/* What layer i is: the architecture gpt has a key for each kind of recurrent layers, others have
 * one kind and a convention. */
static Mixer read_mixer(const Config *c, const Family *f, Keys *k, int i)
{
    static const struct {
        Mixer mixer;
        const char *key;
    } keys[] = {{MIX_SHORT_CONV, "shortconv.layers"},
                {MIX_DELTA_NET, "delta_net.layers"},
                {MIX_MAMBA, "mamba.layers"}};
    int n = c->n_layers;
    for (size_t j = 0; f->all_keys && j < sizeof keys / sizeof *keys; j++)
        if (key_layer(k, keys[j].key, i, n) > 0)
            return keys[j].mixer;
    if (f->headless && key_layer(k, "attention.head_count_kv", i, n) == 0)
        return f->headless;
    if (!f->between)
        return MIX_ATTENTION;
    double named = key_layer(k, "attention.recurrent_layers", i, n);
    int interval = key_int(k, "full_attention_interval", 1, MAX_LAYERS, 4);
    return (isnan(named) ? (i + 1) % interval != 0 : named != 0) ? f->between : MIX_ATTENTION;
}

/* Per-layer numbers; heads of layers that see everything and of windowed ones. */
static void read_layers(Config *c, const Family *f, Keys *k, const HeadWidths *whole,
                        const HeadWidths *windowed_heads, const Latent *latent)
{
    int n = c->n_layers;
    bool pattern_array = false;
    char key[160];
    const GgufKey *pattern = gguf_key(k->g, key_name(k, "attention.sliding_window_pattern", key));
    int period = f->window_period;
    if (pattern && pattern->is_array)
        pattern_array = true;
    else if (pattern)
        period = key_int(k, "attention.sliding_window_pattern", 0, MAX_LAYERS, period);
    int window = key_int(k, "attention.sliding_window", 0, MAX_CONTEXT, f->window);
    bool rope = c->pos == POS_ROPE && (!f->rope_key || key_flag(k, "rope.scaling.finetuned", 1));
    for (int i = 0; i < n; i++) {
        LayerConfig *l = &c->layers[i];
        Mixer mixer = read_mixer(c, f, k, i);
        if (mixer != MIX_ATTENTION && c->encoder)
            refuse(k, "layer %d: got a recurrent layer, want attention in an encoder", i);
        if (mixer != MIX_ATTENTION) {
            read_recurrent(c, f, mixer, k, i);
            continue;
        }
        l->n_heads = key_layer_int(k, "attention.head_count", i, n, 1, MAX_HEADS, -1);
        l->n_kv_heads = key_layer_int(k, "attention.head_count_kv", i, n, 1, MAX_HEADS, l->n_heads);
        l->hidden_dim = key_hidden_dim(k, f, i, n);
        if (l->n_heads % l->n_kv_heads)
            refuse(k, "layer %d: got %d heads over %d key/value heads, want a multiple", i,
                   l->n_heads, l->n_kv_heads);
        bool windowed = window > 0;
        if (windowed && pattern_array)
            windowed = key_layer(k, "attention.sliding_window_pattern", i, n) != 0;
        else if (windowed && period)
            windowed = f->global_first ? i % period > 0 : i % period < period - 1;
        l->mask = windowed ? (c->encoder ? MASK_AROUND : MASK_WINDOW)
                           : (c->encoder ? MASK_NONE : MASK_CAUSAL);
        l->window = !windowed ? 0 : c->encoder ? window / 2 : window;
        l->key_dim = windowed ? windowed_heads->key_dim : whole->key_dim;
        l->value_dim = windowed ? windowed_heads->value_dim : whole->value_dim;
        l->latent = *latent;
        l->n_kv_heads = latent->rank ? 1 : l->n_kv_heads;
        l->values_in_keys = latent->rank
                         || (f->all_keys && key_flag(k, "attention.values_in_keys", 0));
        if (l->values_in_keys && l->value_dim > l->key_dim)
            refuse(k, "layer %d: got values of %d in keys of %d, want no more", i, l->value_dim,
                   l->key_dim);
        l->values_are_keys = values_are_keys(f, k, i, n);
        if (l->values_are_keys && (l->values_in_keys || l->value_dim != l->key_dim))
            refuse(k, "layer %d: got keys as values of %d and %d, want one width", i, l->key_dim,
                   l->value_dim);

        if (c->attn_gate && l->key_dim != l->value_dim)
            refuse(k, "layer %d: got gates of %d for values of %d, want one width", i, l->key_dim,
                   l->value_dim);

        bool roped = rope && !(f->no_rope_period && (i + 1) % f->no_rope_period == 0)
                  && !(f->only_local_rope && window > 0 && !windowed);
        double on = key_layer(k, "rope.layers", i, n);
        if (!isnan(on))
            roped = roped && on != 0;
        l->rope = !roped ? -1 : windowed;
        c->n_ropes = l->rope + 1 > c->n_ropes ? l->rope + 1 : c->n_ropes;

        double own = key_layer(k, "attention.scale", i, n);
        int width = f->big_layers == n ? c->dim / (l->n_heads > 0 ? l->n_heads : 1)
                                       : (int)head_key_width(l);
        float usual = f->attn_scale > 0 ? f->attn_scale : 1.0f / sqrtf((float)width);
        if (l->rope >= 0)
            usual *= c->ropes[l->rope].score_factor;
        l->attn_scale = isnan(own) || own == 0 ? usual : (float)own;
        if (c->act == ACT_XIELU)
            l->xielu = read_xielu(k, i, n);
        if (!isfinite(l->attn_scale))
            refuse(k, "layer %d: got an attention scale of %g, want a finite number", i, own);
    }
    share_kv(c, k);
}

/* Groups of experts: a choice is limited to some of them. */
static void read_groups(Experts *x, Keys *k)
{
    char key[160];
    int least = x->gate == GATE_SIGMOID ? 2 : 1; // see group_worth()
    x->n_groups = key_int(k, "expert_group_count", 0, INT_MAX, 0);
    if (x->n_groups <= 1 || k->failed)
        return;
    if (x->n % x->n_groups || x->n / x->n_groups < least)
        refuse(k, "key %s: got %d groups of %d experts, want a divisor, and groups of %d or more",
               key_name(k, "expert_group_count", key), x->n_groups, x->n, least);
    x->n_groups_used = key_int(k, "expert_group_used_count", 1, x->n_groups, -1);
    if (!k->failed && x->n_used > x->n_groups_used * (x->n / x->n_groups))
        refuse(k, "key %s: got %d, want groups with %d experts or more",
               key_name(k, "expert_group_used_count", key), x->n_groups_used, x->n_used);
}

/* Whether some layer's choice of experts has a bias. */
static bool has_choice_bias(const Config *c, const Keys *k)
{
    char name[40];
    for (int i = 0; i < c->n_layers; i++) {
        snprintf(name, sizeof name, "blk.%d.exp_probs_b.bias", i);
        if (gguf_tensor(k->g, name))
            return true;
    }
    return false;
}

/* Which layers have experts, and how wide these are. llama.cpp's architectures with experts that
 * are known here take the softmax of the router's logits unless a key of theirs, or a bias for the
 * choice, says otherwise. */
static void read_experts(Config *c, const Family *f, Keys *k)
{
    Experts *x = &c->experts;
    char key[160];
    x->n = key_int(k, "expert_count", f->experts == REQUIRED, MAX_EXPERTS,
                   f->experts == REQUIRED ? -1 : 0);
    if (x->n && f->experts == ABSENT)
        refuse(k, "key %s: mixtures of experts in this architecture are not supported yet",
               key_name(k, "expert_count", key));
    if (!x->n || k->failed)
        return;
    x->n_used = key_int(k, "expert_used_count", 1, x->n, -1);
    x->renormalise = key_flag(k, "expert_weights_norm", f->all_keys || x->renormalise);
    if (f->all_keys) {
        x->choice_bias = key_presence(k, "expert_choice_bias", 0);
        x->shared_gate = key_flag(k, "expert_shared_gate", 0);
        x->bias = key_presence(k, "expert_bias", 0);
        x->beside = key_flag(k, "expert_beside_ffn", 0);
    }
    x->logit_scale = x->beside ? 1 / sqrtf((float)c->dim) : 1;
    if (x->beside && c->parallel)
        refuse(k, "key %s: got true with a parallel residual, want it sequential",
               key_name(k, "expert_beside_ffn", key));
    bool has_gates = f->gate_key || f->all_keys;
    int gate = key_int(k, "expert_gating_func", 0, INT_MAX,
                       !f->gate_key            ? 0
                       : !f->gate_by_bias      ? -1
                       : has_choice_bias(c, k) ? 2
                                               : 1);
    if (gate > 1 + has_gates)
        refuse(k, "key %s: got %d, want 1 (softmax)%s", key_name(k, "expert_gating_func", key),
               gate, has_gates ? " or 2 (sigmoid)" : "");
    x->gate = gate == 2 ? GATE_SIGMOID : GATE_SOFTMAX;
    read_groups(x, k);
    x->weight_scale = key_scale(k, "expert_weights_scale", 1);
    if (!isfinite(x->weight_scale))
        refuse(k, "key %s: got %g, want a finite number", key_name(k, "expert_weights_scale", key),
               x->weight_scale);
    int n_shared = f->shared_count ? key_int(k, "expert_shared_count", 0, MAX_EXPERTS, 0) : 0;
    int n = c->n_layers, n_dense = key_int(k, "leading_dense_block_count", 0, n, 0);
    int step = key_int(k, "interleave_moe_layer_step", 1, n, 1);
    for (int i = 0; i < n && !k->failed; i++) {
        LayerConfig *l = &c->layers[i];
        if (i < n_dense || (i + 1) % step || key_layer(k, "expert_layers", i, n) == 0) {
            if (!l->hidden_dim)
                key_missing(k, key_name(k, "feed_forward_length", key), "an integer");
            continue;
        }
        int whole = l->hidden_dim, usual = f->split_hidden ? whole / x->n_used : whole;
        l->expert_dim = key_layer_int(k, "expert_feed_forward_length", i, n, 1, MAX_DIM * 4, usual);
        if (x->beside)
            continue;
        if ((double)n_shared * l->expert_dim > MAX_DIM * 4)
            refuse(k, "layer %d: got %d shared experts of %d, want at most %d values together", i,
                   n_shared, l->expert_dim, MAX_DIM * 4);
        l->hidden_dim = key_int(k, "expert_shared_feed_forward_length", 0, MAX_DIM * 4,
                                k->failed ? 0 : n_shared * l->expert_dim);
        if (!l->hidden_dim && f->shared_expert == REQUIRED)
            l->hidden_dim = whole;
        if (c->ffn_bias == REQUIRED)
            refuse(k, "key %s: got true, want false with experts", key_name(k, "ffn.bias", key));
    }
}

/* ---- config_read ----------------------------------------------------------------------------- */

/* Keys that llama.cpp reads for every architecture and that say what this engine cannot do. */
static void refuse_keys(Keys *k)
{
    static const struct {
        const char *name, *what;
    } without[] = {
        {"nextn_predict_layers", "layers that predict several tokens"},
    };
    for (size_t i = 0; i < sizeof without / sizeof *without; i++)
        if (key_int(k, without[i].name, 0, MAX_CONTEXT, 0) != k->n_skipped)
            refuse(k, "key %s.%s: %s are not supported yet", k->arch, without[i].name,
                   without[i].what);
}

/* The vocabulary's size is the embedding's number of rows. */
static int vocab_size(const Gguf *g, int dim, Err *e)
{
    const GgufTensor *t = gguf_tensor(g, "token_embd.weight");
    if (!t)
        return err_set(e, EXIT_MODEL,
                       "tensor token_embd.weight: missing (a vocabulary-only file?)");
    size_t rows = t->n_dims > 1 ? t->shape[0] : 1, cols = t->shape[t->n_dims - 1];
    if (t->n_dims > 2 || cols != (size_t)dim || rows > 1 << 24)
        return err_set(e, EXIT_MODEL,
                       "tensor token_embd.weight: got shape (%zu, %zu), want (at most %d, %d)",
                       rows, cols, 1 << 24, dim);
    return (int)rows;
}

int config_read(Config *c, const Gguf *g, Err *e)
{
    *c = (Config){0};
    Str arch;
    int rc = gguf_str(g, "general.architecture", &arch, e);
    if (rc == 0)
        err_set(e, EXIT_MODEL, "key general.architecture: missing, want the model's architecture");
    const Family *f = rc > 0 ? family_find(arch, e) : NULL;
    if (!f)
        return -1;
    *c = f->config;
    snprintf(c->arch, sizeof c->arch, "%s", f->name);
    Keys k = {g, f->name, e, false, 0};

    c->dim = key_int(&k, "embedding_length", 1, MAX_DIM, -1);
    c->n_layers = key_int(&k, "block_count", 1, MAX_LAYERS, -1);
    c->seq_len = key_int(&k, "context_length", 1, MAX_CONTEXT, -1);
    if (k.failed)
        return -1;
    if (f->skips_extra && c->n_layers > 1)
        k.n_skipped = c->n_skipped = key_int(&k, "nextn_predict_layers", 0, c->n_layers - 1, 0);
    c->n_layers -= c->n_skipped;
    c->layers = mem_zalloc((size_t)c->n_layers, sizeof *c->layers);
    if (!c->layers)
        return err_set(e, EXIT_MEMORY, "out of memory for %d layers", c->n_layers);
    c->vocab_size = vocab_size(g, c->dim, e);
    if (c->vocab_size < 0)
        return -1;

    int heads = key_layer_int(&k, "attention.head_count", 0, c->n_layers, 1, MAX_HEADS, -1);
    int width = !k.failed && c->dim % heads == 0 ? c->dim / heads
                                                 : -1; // no default where it does not divide
    HeadWidths whole, windowed;
    whole.key_dim = key_int(&k, "attention.key_length", 1, MAX_HEAD_DIM, width);
    whole.value_dim = key_int(&k, "attention.value_length", 1, MAX_HEAD_DIM, width);
    windowed.key_dim = key_int(&k, "attention.key_length_swa", 1, MAX_HEAD_DIM, whole.key_dim);
    windowed.value_dim = key_int(&k, "attention.value_length_swa", 1, MAX_HEAD_DIM,
                                 whole.value_dim);
    if (f->all_keys)
        from_keys(c, &k);
    else
        from_family(c, f, &k);
    c->residual_scale = key_scale(&k, "residual_scale",
                                  f->residual_depth / sqrtf((float)c->n_layers));
    c->seq_limit = key_flag(&k, "context_limit", 0);
    c->attn_soft_cap = key_float(&k, "attn_logit_softcapping", c->attn_soft_cap);
    c->logit_soft_cap = key_float(&k, "final_logit_softcapping", c->logit_soft_cap);
    c->clamp_qkv = key_float(&k, "attention.clamp_kqv", 0);
    c->temperature = key_float(&k, "attention.temperature_scale", 0);
    c->encoder = !key_flag(&k, "attention.causal", !f->config.encoder);
    int pooling = key_int(&k, "pooling_type", 0, 4, c->pooling);
    if (pooling > POOL_LAST)
        refuse(&k, "key %s.pooling_type: got %d (rank), want 0 to %d", k.arch, pooling, POOL_LAST);
    c->pooling = (Pooling)pooling;
    if (f->config.encoder && !c->encoder)
        refuse(&k, "key %s.attention.causal: got true, want false", k.arch);
    if (c->pos == POS_ROPE && !k.failed)
        read_rope(c, f, &k, &whole, &windowed);
    Latent latent = {0};
    if (f->latent || f->all_keys)
        latent = read_latent(c, f, &k, &whole, &windowed);
    read_layers(c, f, &k, &whole, &windowed, &latent);
    read_experts(c, f, &k);
    if (f->per_layer_inputs || f->all_keys)
        c->per_layer_dim = key_int(&k, "embedding_length_per_layer_input", 0, MAX_DIM, 0);
    if (c->temperature != 0 && c->pos != POS_ROPE)
        refuse(&k, "key %s.attention.temperature_scale: got %g without rope, want 0", k.arch,
               c->temperature);
    if (c->act == ACT_XIELU && (c->gated || c->experts.n || c->per_layer_dim))
        refuse(&k,
               "key %s.ffn.activation: got \"xielu\" with a gate or experts or inputs per layer, "
               "want none",
               k.arch);
    if (!k.failed
        && (c->norm_eps < 0 || c->attn_soft_cap < 0 || c->logit_soft_cap < 0 || c->clamp_qkv < 0
            || c->alibi_max < 0))
        return err_set(e, EXIT_MODEL,
                       "got a negative epsilon, soft cap, clamp or ALiBi bias, want none below 0");
    refuse_keys(&k);
    return k.failed ? -1 : 0;
}

const char *config_recurrent(const Config *c, char *out, size_t size)
{
    *out = '\0';
    for (int kind = MIX_ATTENTION + 1; kind < MIX_COUNT; kind++) {
        int n = 0;
        for (int i = 0; i < c->n_layers; i++)
            n += (int)c->layers[i].mixer == kind;
        if (n)
            snprintf(out + strlen(out), size - strlen(out), "%s%d %s%s", *out ? ", " : "", n,
                     mixer_names[kind], n > 1 ? "s" : "");
    }
    return out;
}

void config_free(Config *c)
{
    free(c->layers);
    c->layers = NULL;
}
