/* model.h - the engine's structs and calls, and every shape.
 *
 * A Model is what the file says: weights in one or two stacks of layers, and a tokenizer. It is
 * immutable once open. A Session is one use of a stack: scratch memory, the Cache of the keys and
 * values of one or more sequences, and a team of threads that several sessions may share.
 * forward() is the only way through: prefill, decoding, parallel decoding, scoring and attention
 * maps are batches of spans.
 *
 * Shapes are written outermost first. The one matmul convention: W (d, n) @ x (T, n) -> y (T, d).
 */
#ifndef MODEL_H
#define MODEL_H

#include <limits.h>
#include <stdatomic.h>

#include "base/gguf.h"
#include "kernels/kernels.h"
#include "base/threads.h"
#include "tokenizer.h"

/* ---- configuration --------------------------------------------------------------------------- */

/* Whether a file has a tensor: never, as the file has it, or always. */
typedef enum { ABSENT, OPTIONAL, REQUIRED } Presence;
typedef enum { QK_NORM_NONE, QK_NORM_HEAD, QK_NORM_HEADS, QK_NORM_FULL } QkNorm;
typedef enum { POS_NONE, POS_ROPE, POS_LEARNED } PosType;
typedef enum { BIAS_NONE, BIAS_ALIBI, BIAS_TABLE } BiasType; // what a distance adds to a score
typedef enum { ROPE_INTERLEAVED, ROPE_HALF } RopePairing;    // pairs (2i, 2i+1) or (i, i + dim/2)
typedef enum { ROPE_PLAIN, ROPE_LINEAR, ROPE_YARN, ROPE_LONGROPE } RopeScaling;
typedef enum { MASK_CAUSAL, MASK_WINDOW, MASK_AROUND, MASK_NONE } Mask;

/* What is made of a text's last hidden states where one vector is wanted. */
typedef enum { POOL_NONE, POOL_MEAN, POOL_CLS, POOL_LAST } Pooling;

/* How a layer's rows learn of the rows before them: by attention to their keys and values, or by a
 * state that is handed from row to row (engine/recurrent.c). */
typedef enum { MIX_ATTENTION, MIX_SHORT_CONV, MIX_DELTA_NET, MIX_MAMBA, MIX_COUNT } Mixer;
extern const char *const mixer_names[MIX_COUNT]; // of one layer: "short convolution"

/* Whose keys and values a layer attends to: the rows' own text's, or another's (Session.memory). */
typedef enum { KV_FROM_SELF, KV_FROM_MEMORY } KvSource;

/* One set of rotation frequencies: base^(-2i / dim), scaled. */
typedef struct {
    int dim; // of each head's first values; even
    float base;
    RopeScaling scaling;
    float factor;      // context stretch of linear and yarn, 1 = none
    float attn_factor; // multiplies cos and sin (yarn's own 1 + 0.1 ln factor comes on top)
    float beta_fast, beta_slow; // yarn
    int orig_seq_len;           // of yarn and longrope
    bool truncate;              // yarn's ramp begins and ends at whole pairs
    float score_factor;         // multiplies scores, 1 but for yarn in DeepSeek's models
    bool use_factors;   // divide the frequencies by the tensors rope_freqs or rope_factors_*
    bool needs_factors; // rope_freqs must be there
} Rope;

enum { MAX_ROPES = 2 };

/* What makes probabilities of a router's logits. */
typedef enum { GATE_SOFTMAX, GATE_SIGMOID } Gate;

/* Experts of the layers that have them: a router chooses some for each row (engine/experts.c). */
typedef struct {
    int n, n_used; // 0: all layers are dense
    Gate gate;
    bool renormalise;     // the weights of the chosen are divided by their sum
    float sum_extra;      // and this is added to the sum first
    Presence choice_bias; // added to the router's probabilities for the choice alone
    Presence bias;        // of the router and of every expert's matrices
    bool shared_gate;     // the shared expert is multiplied by a sigmoid of its own
    bool beside;          // the dense FFN of such a layer stays, see Layer.dense_post_norm
    float logit_scale;    // multiplies the router's logits
    float weight_scale;   // multiplies the weights of the chosen in the end
    int n_groups;         // of experts that follow one another: only those of the best
    int n_groups_used;    // n_groups_used groups are chosen from
} Experts;

/* Latent attention (DeepSeek-V2): what all heads' keys and values are made of is one vector a row,
 * its latent. Only latents are cached, as the keys of one head, each with a rotated part behind it;
 * the beginning of such a key, the latent, is its value too. Each query head is multiplied by its
 * key matrix beforehand, and its result by its value matrix afterwards. */
typedef struct {
    int rank;      // width of the latent, 0: attention without one
    int q_rank;    // queries are made of so many numbers a row has been brought down to, 0: of the
                   // row itself
    int key_dim;   // of a query head before its key matrix, without the rotated part
    int value_dim; // of a head's result after its value matrix
} Latent;

/* The state of a recurrent layer: the last inputs of a convolution and, but for MIX_SHORT_CONV, a
 * matrix (key_dim, value_dim) for each head. */
typedef struct {
    int taps, conv_dim;       // rows that a result of the convolution is made of, and its width
    int n_heads, n_key_heads; // several heads may share queries and keys
    int key_dim, value_dim;
} Recurrence;

typedef struct {
    Mixer mixer;
    int n_heads, n_kv_heads; // 0 without attention, and so are the widths of a head
    Recurrence rec;          // without attention
    int hidden_dim;          // of the FFN; of a layer with experts: of the one that all rows share,
                             // 0 for none
    int expert_dim;          // of each expert, 0: a dense layer
    int key_dim, value_dim;  // widths of one head
    bool values_in_keys;     // a head's value is the beginning of its key
    bool values_are_keys;    // a head's value is what its key is before its norm and rotation
    KvSource kv_source;
    int kv_layer; // the layer there: itself or an earlier one; of a memory any with heads
                  // of the same number and widths
    Mask mask;    // MASK_NONE in encoders, and with a memory, whose positions are another text's
    int window;   // with MASK_WINDOW: a query at position p sees keys p - window + 1 .. p; with
                  // MASK_AROUND: p - window .. p + window
    int rope;     // index into Config.ropes, -1 for none in this layer
    float attn_scale; // multiplies q.k
    Xielu xielu;      // with ACT_XIELU
    Latent latent;    // key_dim is its rank and the rotated part, value_dim its rank
} LayerConfig;

typedef struct {
    char arch[64];
    int dim, n_layers, vocab_size, seq_len; // seq_len: the context the model was made for
    int n_skipped;   // layers of the file after these, which predict further tokens and do not run
    bool encoder;    // each row sees later ones too: a text is one span of one forward()
    Pooling pooling; // POOL_NONE where the file does not say it

    NormType norm;
    float norm_eps;
    bool norm_affine;         // norms have weights
    Presence norm_bias;       // and biases
    bool pre_norm, post_norm; // around attention and FFN; post: before the residual is added
    bool norm_residual;       // post_norm: after the residual was added, to the sum
    bool embd_norm, final_norm;
    bool plain_first;        // layer 0 may have no attn_norm
    QkNorm qk_norm;          // of type `norm`
    bool qk_norm_after_rope; // and not before it
    Presence qk_norm_weight, qk_norm_bias;
    bool value_norm;    // each head's values are normalised, without a weight
    Presence conv_bias; // of the convolutions of MIX_MAMBA
    bool attn_gate; // Wq makes of each head a query and a gate, whose sigmoid multiplies its result

    Presence qkv_bias, wo_bias, ffn_bias, output_bias;
    Presence output_weight; // where absent, the token embedding is the output's weight too
    Act act;
    bool gated, fused_gate_up; // fused: w_up's tensor holds the gate's rows, then its own
    bool parallel;             // attention and FFN read the same residual
    bool shared_norm;          // with parallel: attn_norm feeds the FFN too, there is no ffn_norm
    bool attn_norm_2; // Falcon: attn_norm_2, where present, feeds attention, and attn_norm the FFN

    bool seq_limit; // texts end at seq_len: after it positions would mean something else
    PosType pos;
    int pos_offset;       // row of position 0 in the learned table
    Presence token_types; // a table whose row 0 is added to each embedding
    float temperature;    // a query at position p is multiplied by 1 + this ln(1 + floor(p / L)), L
                          // the rope's orig_seq_len; 0: it is not
    RopePairing rope_pairing;
    Rope ropes[MAX_ROPES];
    int n_ropes; // how many of them the layers use
    BiasType bias;
    float alibi_max;
    int bias_reach; // of BIAS_TABLE: larger distances count as this one

    float embd_scale, residual_scale, logit_scale;
    float attn_soft_cap, logit_soft_cap, clamp_qkv; // 0 = none
    float swiglu_limit; // of gpt-oss's FFN, see activate_rows(); 0: as other FFNs
    bool sinks;         // each head has one more score, whose weight goes to no value
    Experts experts;
    Presence out_scale;  // a number that multiplies the residual stream after a layer
    int per_layer_dim;   // of what each layer gets of a token beside the stream, 0: nothing
    LayerConfig *layers; // (n_layers)
} Config;

/* Whether a layer makes keys and values of its own. */
static inline bool has_own_kv(const Config *c, int layer)
{
    const LayerConfig *l = &c->layers[layer];
    return l->mixer == MIX_ATTENTION && l->kv_source == KV_FROM_SELF && l->kv_layer == layer;
}

/* Widths of a layer's rows: queries, keys, values, and the results before Wo, of the heads or of a
 * recurrent layer. */
static inline size_t q_width(const LayerConfig *l)
{
    return (size_t)l->n_heads * (size_t)l->key_dim;
}
static inline size_t k_width(const LayerConfig *l)
{
    return (size_t)l->n_kv_heads * (size_t)l->key_dim;
}
static inline size_t v_width(const LayerConfig *l) // 0: there are no values beside the keys
{
    return l->values_in_keys ? 0 : (size_t)l->n_kv_heads * (size_t)l->value_dim;
}
static inline size_t heads_width(const LayerConfig *l)
{
    return l->mixer == MIX_ATTENTION  ? (size_t)l->n_heads * (size_t)l->value_dim
         : l->mixer == MIX_SHORT_CONV ? (size_t)l->rec.conv_dim
                                      : (size_t)l->rec.n_heads * (size_t)l->rec.value_dim;
}

/* What a recurrent layer's products give: the convolution's input (of a short convolution three
 * times as much), gates, and two numbers for each head. */
static inline size_t conv_in_width(const LayerConfig *l)
{
    return (l->mixer == MIX_SHORT_CONV ? 3 : 1) * (size_t)l->rec.conv_dim;
}
/* What Wo reads, and of latent attention the wider of a row's queries before their key matrices and
 * its results after their value matrices. */
static inline size_t wo_width(const LayerConfig *l)
{
    return l->latent.rank ? (size_t)l->n_heads * (size_t)l->latent.value_dim : heads_width(l);
}
static inline size_t head_key_width(const LayerConfig *l) // of a query before its key matrix
{
    return (size_t)(l->latent.key_dim + l->key_dim - l->latent.rank);
}
static inline size_t expanded_width(const LayerConfig *l)
{
    size_t queries = (size_t)l->n_heads * head_key_width(l), results = wo_width(l);
    return !l->latent.rank ? 0 : queries > results ? queries : results;
}
static inline size_t q_latent_width(const LayerConfig *l)
{
    return (size_t)l->latent.q_rank;
}
static inline size_t mix_in_width(const LayerConfig *l)
{
    size_t heads = (size_t)l->rec.n_heads;
    return conv_in_width(l) + heads * (size_t)l->rec.value_dim + 2 * heads;
}

/* n floats of scratch, rounded up so that what follows them begins where a vector does. */
static inline size_t align16(size_t n)
{
    return (n + 15) & ~(size_t)15;
}

/* Floats of the state that a layer hands from row to row, see recurrent.c: (taps - 1, conv_dim)
 * inputs of the convolution; from state_matrices() on (n_heads, state_strips(), key_dim,
 * STATE_COLS): the heads' matrices in strips of columns, the last of which may be wider than what
 * is left. */
static inline size_t state_strips(const LayerConfig *l)
{
    return ((size_t)l->rec.value_dim + STATE_COLS - 1) / STATE_COLS;
}
static inline size_t state_matrices(const LayerConfig *l)
{
    return l->rec.taps ? align16((size_t)(l->rec.taps - 1) * (size_t)l->rec.conv_dim) : 0;
}
static inline size_t state_width(const LayerConfig *l)
{
    return state_matrices(l)
         + (size_t)l->rec.n_heads * state_strips(l) * (size_t)l->rec.key_dim * STATE_COLS;
}

/* The largest `width` of any layer. */
static inline size_t layers_max(const Config *c, size_t (*width)(const LayerConfig *))
{
    size_t max = 0;
    for (int i = 0; i < c->n_layers; i++)
        max = width(&c->layers[i]) > max ? width(&c->layers[i]) : max;
    return max;
}

/* "2 short convolutions, 3 gated delta nets": a stack's recurrent layers, "" for none; returns out.
 */
const char *config_recurrent(const Config *c, char *out, size_t size);

/* Read and check everything. The Config is freed with config_free(), also after an error. */
int config_read(Config *c, const Gguf *g, Err *e);
void config_free(Config *c);

/* ---- weights --------------------------------------------------------------------------------- */

/* A matrix in the file's own type, or several of one shape that follow one another, as the weights
 * of experts do. */
typedef struct {
    const void *data; // NULL: absent
    Type type;
    size_t rows, cols; // (d, n)
    size_t row_bytes;
    size_t n_matrices;   // (n_matrices, d, n); a product takes one
    size_t matrix_bytes; // from one of them to the next
} Tensor;

/* A file's tensor of up to three dimensions, checked by gguf_open(), in place; a vector is a matrix
 * of one row. */
Tensor tensor_of(const GgufTensor *t);

/* Matrix i of several, and rows first .. first + n - 1 of one, in place. */
Tensor tensor_view(const Tensor *t, size_t i);
Tensor tensor_rows(const Tensor *t, size_t first, size_t n);

typedef struct {
    Tensor w;       // (d, n)
    const float *b; // (d,) or NULL
} Linear;

typedef struct {
    bool on;            // false: the identity
    const float *w, *b; // (n,) or NULL
} Norm;

typedef struct {
    Norm attn_norm;      // (dim)
    Linear wq, wk, wv;   // (n_heads * key_dim, dim), (n_kv_heads * key_dim, dim), (n_kv_heads *
                         // value_dim, dim); no wk and wv without has_own_kv(). With attn_gate wq
                         // is (n_heads, 2, key_dim, dim): each head's query, then its gate
    Norm q_norm, k_norm; // (key_dim), (heads, key_dim) or (heads * key_dim) by Config.qk_norm
    const float *bias;   // (n_heads, 2 bias_reach + 1) by distance from -bias_reach on, or NULL
    const float *sinks;  // (n_heads) scores of no key, or NULL
    /* Of a recurrent layer, N heads of V values. */
    Linear conv_in;          // (conv_in_width(), dim)
    const float *conv;       // (taps, conv_dim) weights of the convolution, of the newest row last
    const float *conv_bias;  // (conv_dim) or NULL
    Linear mix_gate;         // (N * V, dim), as the others from here on not of MIX_SHORT_CONV
    Linear mix_beta, mix_dt; // (N, dim); beta of MIX_DELTA_NET only
    const float *decay;      // (N) below 0: a state falls by exp(decay * dt)
    const float *skip;       // (N) of MIX_MAMBA: how much of its input a head gives beside the rest
    Norm mix_norm;           // (V), or of MIX_MAMBA (N * V)
    Linear wo;               // (dim, wo_width())
    Norm attn_post_norm;     // (dim)
    Norm ffn_norm;           // (dim); off with a shared norm
    Linear w_gate, w_up;     // (hidden_dim, dim): the FFN, or the expert that all rows share
    Linear w_down;           // (dim, hidden_dim)
    Linear router;           // (n_experts, dim)
    const float *choice_bias;  // (n_experts) or NULL
    Linear shared_gate;        // (1, dim) or absent
    Tensor gate_exps, up_exps; // (n_experts, expert_dim, dim); without up_exps those of gate_exps
                               // are twice as high, and the lower halves are up's
    Tensor down_exps;          // (n_experts, dim, expert_dim)
    const float *gate_exps_b, *up_exps_b, *down_exps_b; // (n_experts, rows of a matrix) or NULL
    Norm ffn_post_norm;                                 // (dim)
    /* With Experts.beside: norms of the FFN's result, of what the router and the experts read, and
     * of their result, all (dim). */
    Norm dense_post_norm, router_norm, experts_norm, experts_post_norm;
    const float *expert_scale; // (n_experts) multiplies the experts' weights, or NULL
    /* With per_layer_dim, P. */
    Linear per_layer_gate, per_layer_proj; // (P, dim), (dim, P)
    Norm per_layer_post_norm;              // (dim)
    const float *out_scale;                // (1) or NULL
    /* Of latent attention, which has no wk and wv; with q_down wq is (n_heads * head_key_width(),
     * q_rank), and wo (dim, wo_width()). */
    Linear q_down, kv_down;             // (q_rank, dim), (rank + rotated part, dim)
    Norm q_latent_norm, kv_latent_norm; // (q_rank), (rank)
    Tensor key_up, value_up;            // (n_heads, rank, latent.key_dim), (n_heads,
                                        // latent.value_dim, rank)
} Layer;

/* Embeddings, layers and output: a decoder or, when there are encoders, an encoder. */
typedef struct {
    Config config;
    Tensor token_embd;            // (vocab_size, dim)
    Tensor pos_embd;              // (rows, dim) or absent
    const float *token_type;      // (dim) or NULL
    Tensor per_layer_embd;        // (vocab_size, n_layers * per_layer_dim) or absent
    Linear per_layer_proj;        // (n_layers * per_layer_dim, dim) or absent
    Norm per_layer_norm;          // (per_layer_dim)
    Norm embd_norm, final_norm;   // (dim)
    Linear output;                // (vocab_size, dim)
    const float *rope_factors[2]; // (rope dim / 2): short (or the only one) and long; NULL: absent
    Layer *layers;                // (n_layers)
} Stack;

typedef struct {
    Gguf file;
    Tokenizer *tokenizer;   // NULL where the file has none, see model_open()
    Stack encoder, decoder; // either may be absent: without layers
    float **owned;          // vectors that were converted to float
    size_t n_owned;
    size_t n_params;
} Model;

/* Open a model file; a file without a tokenizer is an error for a caller that needs one. 0, or -1
 * with nothing left open. */
int model_open(Model *m, const char *path, bool needs_tokenizer, Err *e);
void model_close(Model *m);

/* What a text goes into: the encoder where there is one, else the decoder. */
static inline const Stack *model_stack(const Model *m)
{
    return m->encoder.layers ? &m->encoder : &m->decoder;
}

/* The tokenizer of a file, which need not have tensors or be of an architecture that the engine
 * runs: tokenizer_open() with what the architecture's row in families.c says. */
Tokenizer *model_tokenizer(const Gguf *g, Err *e);

/* Fill in a stack from tensors named prefix + "blk.0.attn_q.weight" and so on. Tensors that were
 * found are marked in used (n_tensors of m->file). -1 and an Err that names the tensor. */
int stack_bind(Model *m, Stack *s, const char *prefix, bool *used, Err *e);

/* ---- cache ----------------------------------------------------------------------------------- */

enum { KV_BLOCK = 64 }; // positions in a block
enum { KV_LAYOUT = 1 }; // of blocks in files: to be raised when keys and values lie otherwise
enum { KV_GROUP = 32 }; // values of a key that share a scale in bytes: keys have outliers
typedef enum { KV_F16, KV_F32, KV_Q8 } KvType;
extern const char *const kv_names[]; // by KvType, NULL past the last

/* Blocks that n positions take, for any n from 0 to INT_MAX. */
static inline int kv_blocks_of(int n)
{
    return n / KV_BLOCK + (n % KV_BLOCK != 0);
}

typedef struct {
    int n_pos;    // positions held
    bool is_long; // longer than longrope's original context: its keys are rotated by long factors
    bool flipped; // the second of its two states is that after n_pos positions
    int *blocks;  // (max_blocks) indices into the pool, -1 where none
} Sequence;

/* Keys and values of sequences: a pool of blocks, each with every layer's keys and values of 64
 * positions of one sequence. How they lie in a block is cache.c's business.
 *
 * Beside them the states of recurrent layers. A state is that of all these layers after some
 * positions of a sequence. A forward() reads the one after n_pos positions and writes another, so
 * that a failure changes nothing. It cannot be taken back, so a sequence keeps those after every
 * state_step positions, and can be cut there. After no position a state is all zeros. */
typedef struct {
    const Config *config;
    const Kernels *k;
    KvType type;
    bool pairs;       // products are made in pairs of bf16
    atomic_bool *cut; // set when a key or value beyond 65504 was cut off for f16; or NULL
    int seq_len;      // positions each sequence can hold
    Sequence *seqs;   // (n_seqs)
    int n_seqs;
    int max_blocks; // of one sequence
    int n_blocks;   // in the pool
    int *refs;      // (n_blocks) sequences that hold the block
    char *pool;     // (n_blocks, block_bytes)
    char *adopted;  // (n_adopted, block_bytes) memory of others in place of the first ones
    int n_adopted;
    size_t block_bytes;
    size_t *layer_offset; // (n_layers) bytes from a block's start

    size_t state_floats;  // 0: no layer is recurrent
    size_t *state_offset; // (n_layers) floats from a state's start
    float *states;        // (n_seqs, 2, state_floats)
    int state_step;       // a multiple of KV_BLOCK
    int n_kept;           // states that a sequence of seq_len positions keeps
    float *kept;          // (n_seqs, n_kept, state_floats) after state_step positions, twice that..
    bool *has_kept;       // (n_seqs, n_kept) those that are there, up to n_pos
} Cache;

/* Keep the first n positions of a sequence (n = 0 empties it), or with recurrent layers as many of
 * them as end where a state was kept. Returns the number of positions held now. */
int cache_truncate(Cache *c, int seq, int n);

/* Say how long the text of a sequence is, in positions, before rows are run that make it longer:
 * longrope rotates all keys of a text by the factors for its length. Returns the position of the
 * first row to run: the number of positions held, or 0 where these were emptied, since their keys
 * were made for a text of the other kind. */
int cache_expect(Cache *c, int seq, int n);

/* Make `dst` (emptied first) begin with the first n positions of `src`, or with as many as
 * cache_truncate() would keep: full blocks are shared, a part is copied. -1 when the pool has no
 * block left. */
int cache_fork(Cache *c, int dst, int src, int n);

/* A block of a sequence as it lies in memory, block_bytes, to be kept in a file. */
const void *cache_block(const Cache *c, int seq, int block);

/* Which states belong to the first n positions of a sequence that was run in one go: how many, in
 * bytes each, a multiple of 64. The last is the one after all n, where that is none of those kept
 * on the way. */
int cache_n_states(const Cache *c, int n);
size_t cache_state_bytes(const Cache *c);

/* One of these states of a sequence, to be kept in a file. */
const void *cache_nth_state(const Cache *c, int seq, int i);

/* Fill sequence 0 of a cache in which nothing is held with n positions (at most seq_len) whose
 * blocks and states were kept so, in their order. The memory of the blocks is used as it is,
 * changed, and stays the caller's; the states are copied. */
void cache_adopt(Cache *c, void *blocks, const void *states, int n, bool is_long);

/* For forward(): get blocks for positions up to n (exclusive), copying a shared last block first.
 * -1 and an Err when the context or the pool is full; blocks got so far stay in reserve. */
int cache_grow(Cache *c, int seq, int n, Err *e);

/* For forward(): a layer's part of the state of a sequence, before and after its rows; and of the
 * one to keep after position n - 1, NULL where none is to be kept. */
const float *cache_state(const Cache *c, int layer, int seq);
float *cache_next_state(const Cache *c, int layer, int seq);
float *cache_kept_state(const Cache *c, int layer, int seq, int n);

/* For forward(), when its rows are through: the sequence holds n positions. */
void cache_advance(Cache *c, int seq, int n);

/* Store one position's keys (n_kv_heads, key_dim) and values (n_kv_heads, value_dim), which are not
 * looked at where they are in the keys. */
void cache_store(Cache *c, int layer, int seq, int pos, const float *k, const float *v);

/* Keys (key_dim, KV_BLOCK) and values (KV_BLOCK, value_dim) of one head of one block as f32,
 * whatever the type. */
void cache_read(const Cache *c, int layer, int kv_head, int seq, int block, float *keys,
                float *values);

/* The form in which a tile's keys and values are multiplied: as they are cached, converted to f32,
 * or as pairs of bf16. */
typedef enum { KV_AS_F16, KV_AS_F32, KV_AS_BYTES, KV_AS_BF16_PAIRS } KvFormat;

/* The queries of some rows and one head's keys and values of a sequence, block by block. */
typedef struct {
    const Cache *cache;
    int layer, kv_head, seq, rows;
    int key_dim, value_dim;
    KvFormat format;
    float *q;             // (rows, key_dim), as f32 or as bf16 with an even number of values a row
    float *part;          // (rows, KV_BLOCK) scratch
    float *keys, *values; // (key_dim, KV_BLOCK), (KV_BLOCK, value_dim) scratch for a block that is
                          // converted
} KvTile;

/* Set a tile up in scratch of kv_tile_floats() floats; returns what lies after them. */
size_t kv_tile_floats(const LayerConfig *l, size_t rows);
float *kv_tile_init(KvTile *t, const Cache *c, int layer, int kv_head, int seq, int rows,
                    float *scratch);

/* The query (key_dim) of a row. */
void kv_tile_query(KvTile *t, int row, const float *q);

/* scores[r][j] = q_r . k_j for the block's keys j < n_keys, before scale, bias and mask; scores
 * (rows, KV_BLOCK). n_keys is rounded up to a multiple of 16; the surplus scores are garbage that
 * the mask overwrites. */
void kv_tile_scores(KvTile *t, int block, int n_keys, float *scores);

/* out (rows, value_dim) += weights (rows, KV_BLOCK) times the block's first n_keys values. The
 * weights are changed. */
void kv_tile_add_values(KvTile *t, int block, int n_keys, float *weights, float *out);

/* ---- session --------------------------------------------------------------------------------- */

typedef struct {
    int seq_len;      // positions each sequence can hold
    int n_seqs;       // sequences, at least 1
    int n_blocks;     // of 64 positions in the cache; 0: as many as all sequences can hold
    int max_batch;    // rows of one forward()
    int max_rows;     // of them in half a layer at a time, 0: all; fewer need less memory
    int max_logits;   // rows of one forward() with logits
    Threads *threads; // shared by sessions that run one after the other
    KvType kv_type;
    bool keep_softmax; // Session.softmax is wanted
    bool exact;        // multiply with float activations, and attention in floats
    const Kernels *kernels;
    atomic_bool *kv_cut; // set when a key or value beyond 65504 was cut off for the f16 cache; or
                         // NULL
} SessionParams;

/* Which rows' logits are wanted. */
typedef enum { WANT_LAST, WANT_ALL, WANT_NONE } Want;

/* Rows of one sequence in a batch: its next n positions. */
typedef struct {
    int seq, n;
    const int *tokens;  // (n) ids, or NULL where vectors are given:
    const float *embd;  // (n, dim)
    Want want;          // rows whose logits are wanted, unless
    const bool *wanted; // (n) says it for each
} Span;

/* A batch: spans of different sequences. */
typedef struct {
    const Span *spans;
    int n_spans;
} Batch;

typedef struct Session Session;

/* Where a hook sees the rows of a forward(), in this order. A hook may change what it sees. */
typedef enum {
    HOOK_EMBEDDED,  // (n, dim) the residual stream before the first layer
    HOOK_QUERIES,   // (n, n_heads, key_dim), normalised and rotated
    HOOK_KEYS,      // (n, n_kv_heads, key_dim), normalised and rotated, not yet in the cache
    HOOK_VALUES,    // (n, n_kv_heads, value_dim), not yet in the cache
    HOOK_HEADS,     // (n, wo_width()) each head's result, before Wo
    HOOK_ATTENTION, // (n, dim) what attention, or a recurrent layer in its place, is about to add
                    // to the residual stream; such a layer has none of the four before
    HOOK_FFN,       // (n, dim) what the FFN is about to add
    HOOK_LAYER,     // (n, dim) the residual stream after the layer; all rows of the batch at once
    HOOK_POINTS
} HookPoint;

/* What a hook gets: rows first .. first + n - 1 of the batch. */
typedef struct {
    Session *s;
    HookPoint point;
    int layer; // -1 with HOOK_EMBEDDED
    int first, n;
    size_t width;
    float *x; // (n, width)
} HookRows;

/* Called inside the team of threads, by its first thread. Anything but 0 ends the forward(), which
 * then fails; the hook has filled its Err. */
typedef struct {
    HookPoint point;
    int (*fn)(void *context, const HookRows *rows);
    void *context;
} Hook;

enum { MAX_HOOKS = 16 };

/* Where the rows of a span lie in the running batch. */
typedef struct {
    int seq, pos;             // position of its first row
    int row, n;               // rows row .. row + n - 1 of the batch
    int first_item, n_splits; // attention's plan for the layer that is running, see attention.c
    float *partial;
} SpanRows;

/* y (n_rows, d) = x (n_rows, n) W^T + b. */
typedef struct {
    const Linear *w;
    const float *x;
    int n_rows;
    float *y;
    size_t packed_at; // matmul's own: where the packed copy of x begins, in values
} Product;

/* Which experts the rows at hand go to, R = max_rows at most, and scratch for them. */
typedef struct {
    float *probs, *ranks; // (R, n_experts) the router's probabilities; what the choice goes by
    int *chosen;          // (R, n_used) the experts of each row, ascending
    float *weights;       // (R, n_used)
    float *shared;        // (R) what the shared expert's result is multiplied by
    int *first;           // (n_experts + 1) rows first[e] .. first[e + 1] - 1 of x are expert e's
    int *slots;           // (R, n_used) the row of x that is a copy for chosen[i]
    uint64_t *load;       // (n_layers, n_experts) rows that each has had in this session
    float *x, *y;         // (R * n_used, dim) copies of rows, ordered by expert; results for them
    float *hidden, *gate; // (R * n_used, expert_dim)
    Linear *matrices;     // (2 * n_experts) of the experts that have rows
    Product *products;    // (2 * n_experts)
} Routing;

struct Session {
    const Stack *stack;
    SessionParams params;
    const Kernels *k;
    Threads *threads;
    Arena arena;
    Cache cache;
    const Cache *memory; // for layers with KV_FROM_MEMORY: the cache of another session, with a
                         // sequence for each of ours; the caller sets it, and keeps it open
    Hook hooks[MAX_HOOKS];
    int n_hooks;

    /* Activations of one forward(): T = max_batch rows, R = max_rows at a time. */
    int *pos;             // (T) position of each row
    int *span_of;         // (T) and its span, an index into `spans`
    SpanRows *spans;      // (n_seqs) the batch's spans
    float *x, *xn;        // (T, dim) residual stream; (R or max_logits, dim) its normalised copy
    float *q;             // (T, n_heads * key_dim)
    float *k_new, *v_new; // (R, n_kv_heads * key_dim), (R, n_kv_heads * value_dim)
    float *q_and_gate;    // (R, 2 * n_heads * key_dim) with attn_gate: what Wq gives
    float *attn_gate;     // (T, n_heads * key_dim) and sigmoids of the gates
    float *mix_in;        // (R, mix_in_width()) what a recurrent layer's products give
    float *conv_out;      // (R, conv_dim) and its convolution
    float *heads;         // (R, heads_width()) attention's results, or a recurrent layer's
    float *attn_out;      // (R, dim)
    float *hidden, *gate; // (R, hidden_dim or per_layer_dim)
    float *per_layer;     // (T, n_layers, per_layer_dim) what each layer gets of a row's token
    Routing routing;      // of the last layer with experts
    PackedBlock *x8;      // (packed_size / 32) matmul's inputs as bytes
    uint16_t *x16;        // (packed_size) the same in bf16
    size_t packed_size;   // R or max_logits rows of the widest input, or R * n_used of an expert's
    float *softmax;  // (T, max_heads, 2) each row's largest score and sum of exp(score - largest);
                     // NULL without keep_softmax
    float *logits;   // (max_logits, vocab_size): of the rows that wanted them, in batch order
    float *inv_freq; // (MAX_ROPES, 2, rope dim / 2) in a short and in a long sequence
    float *cos_sin;  // (MAX_ROPES, T, rope dim / 2, 2)
    float *rope_scale;   // (MAX_ROPES) multiplies cos and sin
    int max_rope_dim;    // of any set of frequencies
    int max_heads;       // of any layer
    float *alibi_slopes; // (n_layers, max_heads)
    float *partial; // (partial_floats) attention's results per split of the keys, see attention.c
    size_t partial_floats;

    /* Of latent attention: what queries are made of, (R, q_rank); queries before their key matrices
     * and results after their value matrices, (R, expanded_width()); these matrices of a layer and
     * the products with them, (max_heads). */
    float *q_latent, *expanded;
    Linear *head_matrices;
    Product *head_products;

    int n_rows;         // of the forward() that is running
    int n_spans;        // and its spans
    atomic_int bad_row; // its first row that has met a number that is not finite, INT_MAX for none
};

/* 0, or -1 with nothing left allocated (EXIT_MEMORY). The threads' scratch is grown to what the
 * session needs. */
int session_init(Session *s, const Stack *stack, const SessionParams *p, Err *e);
void session_free(Session *s);

/* Bytes that session_init would reserve (most of it touched only when used). */
size_t session_bytes(const Stack *stack, const SessionParams *p);

/* Have fn(context, rows) called at a point, after the hooks that are there. */
void session_hook(Session *s, HookPoint point, int (*fn)(void *context, const HookRows *rows),
                  void *context);

/* For session.c: set the sizes of a cache, and reserve its memory (twice, see Arena). */
void cache_size(Cache *c, const Config *config, const SessionParams *p);
void cache_plan(Cache *c, Arena *a);

/* ---- forward --------------------------------------------------------------------------------- */

/* Run the batch's rows; their keys and values are appended to their sequences. Returns the number
 * of logit rows now in s->logits, or -1: a full context or pool, a token out of range, two spans of
 * one sequence, a row whose numbers are not finite (EXIT_IO), a hook, or a signal (EXIT_OK), which
 * is heard within a layer. After a failure no sequence has moved. A sequence that becomes longer
 * than cache_expect() was told keeps the factors of longrope that it has. Never allocates. */
int forward(Session *s, const Batch *b, Err *e);

/* forward() of one span. */
static inline int forward_span(Session *s, const Span *span, Err *e)
{
    return forward(s, &(Batch){span, 1}, e);
}

/* Logits of n rows x (n, dim) of the residual stream, n <= max_logits -> s->logits. x is only read.
 * Inside the team of threads. */
void output_logits(Session *s, const float *x, int n);

/* The last hidden states of the rows of the forward() that has just run: normed in place, so to be
 * called once -> (n_rows, dim). */
float *output_hidden(Session *s);

/* ---- the parts of forward, one file each ----------------------------------------------------- */

/* Floats after each row of an unpacked panel, which keep rows of 2,048 values out of one another's
 * cache sets. */
enum { PANEL_PAD = 16 };

/* Several products as one parallel job. An x that consecutive products share is packed once;
 * together the different ones have at most Session.packed_size values. */
void matmul(Session *s, Product *products, int n_products);

/* The same where rows of x lie x_stride floats apart, and rows of y y_stride. */
void matmul_strided(Session *s, Product *products, int n_products, size_t x_stride,
                    size_t y_stride);
size_t matmul_scratch(size_t widest_input); // floats of scratch for one thread

/* Keys from .. to - 1. */
typedef struct {
    int from, to;
} KeyRange;

/* The one mask: which of a sequence's n_keys keys the query at position pos of a layer sees. */
KeyRange visible(const LayerConfig *l, int pos, int n_keys);

/* Attention of rows first .. first + n - 1 of the running batch: s->q -> s->heads (n, n_heads,
 * value_dim) and, where it is kept, s->softmax. Keys and values are those that the layer's
 * kv_source and kv_layer say. */
void attention(Session *s, int layer, int first, int n);

/* A recurrent layer's results for rows first .. first + n - 1 of the running batch, h (n, dim) ->
 * s->heads (n, heads_width()). The states of their sequences move on. */
void recurrent(Session *s, int layer, const float *h, int first, int n);

enum { MAP_ROWS = 64 };

/* The weights that attention() used: of one head, for rows first .. first + n - 1 (at most
 * MAP_ROWS) of the running batch, all of one span, from s->q and s->softmax -> out (n, n_keys), 0
 * for keys that are not visible. Runs on the calling thread, number `thread`. */
void attention_weights(Session *s, int layer, int head, int first, int n, float *out, int n_keys,
                       int thread);
/* The weight that a row of the running batch gave to a head's sink, in a model that has them. */
float attention_sink(const Session *s, int layer, int head, int row);

size_t attention_scratch(const Config *c);              // floats of scratch for one thread
size_t attention_partial(const Config *c, int seq_len); // floats of Session.partial

enum { ROW_GRAIN = 4 }; // rows of light work, such as a norm, that are worth another thread

/* y (n_rows, width) = norm(x); y may be x. */
void norm_rows(Session *s, const Norm *n, float *y, const float *x, int n_rows, int width);

/* hidden (n_rows, width) = act(hidden), or act(gate) * hidden where the FFN is gated; with a
 * swiglu_limit L, g sigmoid(1.702 g) (u + 1) of g = min(gate, L) and u = hidden within +-L. Any act
 * but ACT_XIELU, for which there is the second function. */
void activate_rows(Session *s, float *hidden, float *gate, int n_rows, int width);
void xielu_rows(Session *s, const Xielu *a, float *hidden, int n_rows, int width);

/* x = 1 / (1 + exp(-x)) */
void sigmoid(const Kernels *k, float *x, size_t n);

/* Choose the experts of a layer for n rows from what its router reads, h (n, dim) -> s->routing. */
void experts_choose(Session *s, int layer, const float *h, int n);

/* Keep copies of what these rows' experts read, h (n, dim), in s->routing. */
void experts_gather(Session *s, const float *h, int n);

/* y (n, dim) = the sum of the chosen experts' results, times their weights; where there is a shared
 * expert, y holds its result, which becomes part of the sum. */
void experts_sum(Session *s, int layer, float *y, int n);

/* Frequencies (dim / 2) of ropes[index], and what cos and sin are multiplied by. `is_long`:
 * longrope's long factors, for a text that is longer than the original context. */
void rope_init(const Stack *stack, int index, bool is_long, float *inv_freq, float *scale);

/* Rotate the first rope_dim values of each head of x (n_heads, head_dim) by cos_sin (rope_dim / 2,
 * 2). */
void rope_rotate(float *x, const float *cos_sin, int n_heads, int head_dim, int rope_dim,
                 RopePairing pairing);

#endif
