/* quantize.c - the mode --quantize, a model file to a smaller one: which tensor gets which type,
 * and the writing of it.
 *
 * Policy. Matrices named *.weight are changed; vectors, norms, tables of positions and token
 * types, routers of experts and convolutions stay as they are. The matrix that makes the logits
 * (output, or token_embd where there is none) gets Q6_K at least. The mixes *_k_m and *_k_s give
 * more bits to fused queries, keys and values and to ffn_down, that of experts too, in the layers
 * of has_more(), and Q6_K to the values of attention in all layers. mxfp4 is for the matrices of
 * experts, the others get Q8_0. Rows that are no multiple of 256 values cannot have a K type and
 * get the next larger type of 32, rows that are no multiple of 32 get F16. These are llama.cpp's
 * choices, so that a type's name means the same in both, but for the values: it leaves some of them
 * as small as the rest, and nowhere does a bit buy as much (examples/heads.md, section 3).
 *
 * A tensor is a sequence of blocks, whatever its shape, and is converted in pieces of PIECE values:
 * the bytes do not depend on the threads, and little of a file is in memory at a time.
 */
#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/threads.h"
#include "modes/modes.h"
#include "modes/outputs.h"

enum {
    PIECE = 4096,        // values that a thread takes at a time, a multiple of every block
    SLICE = 1024 * PIECE // values of a write
};

/* Which tensors get more bits: those of some layers, see has_more(), or all but experts. */
typedef enum { NOWHERE, SPREAD, FIRST, BUT_EXPERTS } Where;

typedef struct {
    const char *name;
    Type type;
    uint32_t file_type; // general.file_type, llama.cpp's numbers
    Where where;
    Type more; // the type of the tensors that get more bits
} Mix;

static const Mix mixes[] = {
    {"f32", TYPE_F32, 0, NOWHERE, 0},
    {"f16", TYPE_F16, 1, NOWHERE, 0},
    {"bf16", TYPE_BF16, 32, NOWHERE, 0},
    {"q8_0", TYPE_Q8_0, 7, NOWHERE, 0},
    {"q6_k", TYPE_Q6_K, 18, NOWHERE, 0},
    {"q5_k", TYPE_Q5_K, 16, NOWHERE, 0},
    {"q4_k", TYPE_Q4_K, 14, NOWHERE, 0},
    {"q5_1", TYPE_Q5_1, 9, NOWHERE, 0},
    {"q5_0", TYPE_Q5_0, 8, NOWHERE, 0},
    {"q4_1", TYPE_Q4_1, 3, NOWHERE, 0},
    {"q4_0", TYPE_Q4_0, 2, NOWHERE, 0},
    {"mxfp4", TYPE_MXFP4, 38, BUT_EXPERTS, TYPE_Q8_0},
    {"q5_k_m", TYPE_Q5_K, 17, SPREAD, TYPE_Q6_K},
    {"q4_k_m", TYPE_Q4_K, 15, SPREAD, TYPE_Q6_K},
    {"q4_k_s", TYPE_Q4_K, 14, FIRST, TYPE_Q5_K},
};

enum { N_MIXES = sizeof mixes / sizeof *mixes };

typedef struct {
    Str pattern;
    Type type;
    bool used;
} Override;

/* A tensor as it is read and as it is written: another type and size. */
typedef struct {
    GgufTensor in, out;
    Type want; // the type that was chosen, before the width of rows decided
} Item;

typedef struct {
    const Options *o;
    const Kernels *kernels;
    const Gguf *g;
    const Mix *mix;
    Override *overrides; // (o->n_quantize_types)
    Item *items;         // (g->n_tensors) in the file's order
    int n_layers;
    bool tied; // token_embd makes the logits
    OutFile file;
    uint8_t *slice; // (SLICE) values of any type, the widest of which has 8 bytes
    Threads threads;
    double bytes, bytes_done; // of the tensors that are read
    Err *e;
    int rc;
} Work;

static size_t bytes_of(uint32_t type, size_t count)
{
    return count / type_info(type)->block * type_info(type)->bytes;
}

static size_t count_of(const GgufTensor *t)
{
    return t->size / type_info(t->type)->bytes * type_info(t->type)->block;
}

static size_t width_of(const GgufTensor *t)
{
    return t->shape[t->n_dims - 1];
}

/* ---- names ----------------------------------------------------------------------------------- */

/* Whether a mix has the name of a type. */
static bool is_single(const Mix *m)
{
    return m->where == NOWHERE || m->where == BUT_EXPERTS;
}

static const Mix *find_mix(const char *name, bool single)
{
    for (int i = 0; i < N_MIXES; i++) {
        size_t k = 0;
        while (name[k] && tolower((unsigned char)name[k]) == mixes[i].name[k])
            k++;
        if (name[k] == mixes[i].name[k] && (is_single(&mixes[i]) || !single))
            return &mixes[i];
    }
    return NULL;
}

static int unknown_type(const char *flag, const char *value, const char *want, bool single, Err *e)
{
    char seen[80], names[160] = "";
    for (int i = 0; i < N_MIXES; i++)
        if (is_single(&mixes[i]) || !single)
            snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", i ? ", " : "",
                     mixes[i].name);
    return err_set(e, EXIT_USAGE, "%s: got \"%s\", want %s%s", flag,
                   str_escape((Str){value, strlen(value)}, seen, sizeof seen), want, names);
}

static int read_overrides(Work *w)
{
    for (int i = 0; i < w->o->n_quantize_types; i++) {
        const char *text = w->o->quantize_types[i], *equals = strrchr(text, '=');
        const Mix *m = equals && equals > text ? find_mix(equals + 1, true) : NULL;
        if (!m)
            return unknown_type("--quantize-type", text,
                                "NAME=TYPE such as attn_v=q8_0, TYPE one of ", true, w->e);
        w->overrides[i] = (Override){{text, (size_t)(equals - text)}, m->type, false};
    }
    return 0;
}

/* Whether `part` is in a tensor's name; as whole components between dots, where asked: attn_v in
 * blk.3.attn_v.weight. */
static bool has_part(Str name, Str part, bool whole)
{
    for (size_t i = 0, end = part.len; end <= name.len; i++, end++)
        if (!memcmp(name.ptr + i, part.ptr, part.len)
            && (!whole
                || ((!i || name.ptr[i - 1] == '.') && (end == name.len || name.ptr[end] == '.'))))
            return true;
    return false;
}

static bool has(Str name, const char *component)
{
    return has_part(name, (Str){component, strlen(component)}, true);
}

/* The number in blk.N., -1 if there is none. */
static int layer_of(Str name)
{
    int n = -1;
    for (size_t i = 4; i < name.len && !memcmp(name.ptr, "blk.", 4)
                       && isdigit((unsigned char)name.ptr[i]) && n < 1 << 20;
         i++)
        n = 10 * (n < 0 ? 0 : n) + name.ptr[i] - '0';
    return n;
}

/* ---- policy ---------------------------------------------------------------------------------- */

static bool is_matrix(const GgufTensor *t)
{
    static const char *const kept[] = {
        "_norm.",     "position_embd",   "token_types",         "ffn_gate_inp",
        "ssm_conv1d", "shortconv.conv.", "per_layer_model_proj"};
    size_t rows = count_of(t) / width_of(t);
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
        if (has_part(t->name, (Str){kept[i], strlen(kept[i])}, false))
            return false;
    return rows > 1 && width_of(t) > 1 && t->name.len > 7
        && !memcmp(t->name.ptr + t->name.len - 7, ".weight", 7);
}

/* SPREAD: the first and the last eighth and every third layer between. FIRST: the first eighth, of
 * fused matrices the first four. */
static bool has_more(Where where, int layer, int n, bool fused)
{
    if (where == SPREAD)
        return layer < n / 8 || layer >= 7 * n / 8 || (layer - n / 8) % 3 == 2;
    return where == FIRST && layer < (fused ? 4 : n / 8);
}

/* Of a dense FFN, of experts, or of one that all rows share. */
static bool is_ffn_down(Str name)
{
    return has(name, "ffn_down") || has(name, "ffn_down_exps") || has(name, "ffn_down_shexp");
}

static Type type_by_policy(const Work *w, Str name)
{
    const Mix *m = w->mix;
    int layer = layer_of(name);
    bool fused = has(name, "attn_qkv");
    if (m->where == BUT_EXPERTS)
        return has_part(name, (Str){"_exps.", 6}, false) ? m->type : m->more;
    if (str_eq(name, w->tied ? "token_embd.weight" : "output.weight"))
        return type_info(m->type)->block == 1 || m->type == TYPE_Q8_0 ? m->type : TYPE_Q6_K;
    if (m->where != NOWHERE
        && (has(name, "attn_v") || has(name, "attn_v_b") || has(name, "attn_kv_b")))
        return TYPE_Q6_K;
    return layer >= 0 && (fused || is_ffn_down(name))
                && has_more(m->where, layer, w->n_layers, fused)
             ? m->more
             : m->type;
}

static Type type_for_width(Type type, size_t width)
{
    if (width % type_info(type)->block)
        type = type == TYPE_Q4_K ? TYPE_Q5_0
             : type == TYPE_Q5_K ? TYPE_Q5_1
             : type == TYPE_Q6_K ? TYPE_Q8_0
                                 : TYPE_F16;
    return width % type_info(type)->block ? TYPE_F16 : type;
}

static int plan_tensor(Work *w, Item *it)
{
    char name[96];
    GgufTensor *t = &it->out;
    it->want = (Type)t->type;
    if (!is_matrix(t))
        return 0;
    it->want = type_by_policy(w, t->name);
    for (int i = 0; i < w->o->n_quantize_types; i++)
        if (has_part(t->name, w->overrides[i].pattern, true)) {
            it->want = w->overrides[i].type;
            w->overrides[i].used = true;
        }
    t->type = type_for_width(it->want, width_of(t));
    str_escape(t->name, name, sizeof name);
    if (t->type != it->in.type && !w->kernels->dequantize[it->in.type])
        return err_set(w->e, EXIT_MODEL, "tensor %s: got type %s, which is not supported", name,
                       type_info(it->in.type)->name);
    if (!size_mul(count_of(&it->in) / type_info(t->type)->block, type_info(t->type)->bytes,
                  &t->size))
        return err_set(w->e, EXIT_MODEL, "tensor %s: its size does not fit this machine", name);
    return 0;
}

static int plan(Work *w)
{
    char seen[80];
    GgufTensor *tensors = gguf_file_order(w->g);
    int rc = tensors ? 0 : err_set(w->e, EXIT_MEMORY, "out of memory");
    w->tied = !gguf_tensor(w->g, "output.weight");
    for (size_t i = 0; i < w->g->n_tensors && !rc; i++) {
        int layer = layer_of(tensors[i].name);
        w->n_layers = layer >= w->n_layers ? layer + 1 : w->n_layers;
    }
    for (size_t i = 0; i < w->g->n_tensors && !rc; i++) {
        w->items[i] = (Item){.in = tensors[i], .out = tensors[i]};
        w->bytes += (double)tensors[i].size;
        rc = plan_tensor(w, &w->items[i]);
    }
    free(tensors);
    for (int i = 0; i < w->o->n_quantize_types && !rc; i++)
        if (!w->overrides[i].used)
            rc = err_set(w->e, EXIT_USAGE,
                         "--quantize-type: got \"%s\", want parts of a matrix's name such as "
                         "attn_v, blk.3 or blk.3.attn_v",
                         str_escape(w->overrides[i].pattern, seen, sizeof seen));
    return rc;
}

/* -v: a line a tensor, then the sum. */
static void describe(const Work *w)
{
    char name[96];
    double bytes = 0, values = 0;
    int again = 0;
    for (size_t i = 0; i < w->g->n_tensors; i++) {
        const Item *it = &w->items[i];
        const TypeInfo *in = type_info(it->in.type), *out = type_info(it->out.type),
                       *want = type_info(it->want);
        fprintf(stderr, "%s: %s%s%s", str_escape(it->in.name, name, sizeof name), in->name,
                in == out ? ", kept" : " to ", in == out ? "" : out->name);
        if (want != out)
            fprintf(stderr, " (rows of %zu do not fit %s)", width_of(&it->in), want->name);
        fprintf(stderr, "\n");
        bytes += (double)it->out.size;
        values += (double)count_of(&it->in);
        again += in->block > 1 && in != out;
    }
    fprintf(stderr, "%zu tensors, %.1f MB to %.1f MB, %.2f bits a weight\n", w->g->n_tensors,
            w->bytes / 1e6, bytes / 1e6, values > 0 ? 8 * bytes / values : 0.0);
    if (again)
        fprintf(stderr, "%d tensors were quantised before; the error of that stays in them\n",
                again);
}

/* ---- writing --------------------------------------------------------------------------------- */

/* Values of a tensor on their way to its new type. */
typedef struct {
    const Kernels *k;
    const Item *it;
    size_t first, count;
    uint8_t *out;
    atomic_bool bad; // one that the type cannot hold
} Job;

/* The largest value that a type holds; the scales of most blocks are f16. */
static float limit_of(uint32_t type)
{
    return type == TYPE_F32 || type == TYPE_BF16 || type == TYPE_MXFP4 ? 0x1.fep127f : 65504.0f;
}

static void convert(void *context, int from, int to, int thread)
{
    Job *j = context;
    uint32_t in = j->it->in.type, out = j->it->out.type;
    float x[PIECE], limit = limit_of(out);
    (void)thread;
    for (int i = from; i < to; i++) {
        size_t at = (size_t)i * PIECE, n = j->count - at < PIECE ? j->count - at : PIECE,
               outside = 0;
        j->k->dequantize[in]((const uint8_t *)j->it->in.data + bytes_of(in, j->first + at), x, n);
        for (size_t v = 0; v < n; v++)
            outside += !(fabsf(x[v]) <= limit);
        if (outside)
            atomic_store(&j->bad, true);
        else
            j->k->quantize[out](x, j->out + bytes_of(out, at), n);
    }
}

static int put(Work *w, const void *bytes, size_t n)
{
    return fwrite(bytes, 1, n, w->file.f) == n ? 0 : out_error(&w->file, w->e);
}

static int write_tensor(Work *w, const Item *it)
{
    char name[96];
    bool changed = it->in.type != it->out.type, progress = isatty(STDERR_FILENO);
    size_t count = count_of(&it->in), n;
    for (size_t i = 0; i < count && !threads_stopped(&w->threads); i += n) {
        n = count - i < SLICE ? count - i : SLICE;
        Job j = {.k = w->kernels, .it = it, .first = i, .count = n, .out = w->slice};
        if (changed)
            threads_run(&w->threads, (int)((n + PIECE - 1) / PIECE), 1, convert, &j);
        else // copied: writing from the map of a file that was cut would fail as a bad address
            memcpy(w->slice, (const uint8_t *)it->in.data + bytes_of(it->in.type, i),
                   bytes_of(it->in.type, n));
        if (atomic_load(&j.bad))
            return err_set(w->e, EXIT_MODEL,
                           "tensor %s: got NaN or a value beyond %.9g, want what %s can hold",
                           str_escape(it->in.name, name, sizeof name),
                           (double)limit_of(it->out.type), type_info(it->out.type)->name);
        if (put(w, w->slice, bytes_of(it->out.type, n)))
            return -1;
        w->bytes_done += (double)bytes_of(it->in.type, n);
        if (progress)
            fprintf(stderr, "\rquantize: %.0f of %.0f MB ", w->bytes_done / 1e6, w->bytes / 1e6);
    }
    for (size_t i = it->out.size; i % w->g->alignment; i++)
        if (putc(0, w->file.f) == EOF)
            return out_error(&w->file, w->e);
    return 0;
}

static void write_tensors(void *context)
{
    Work *w = context;
    for (size_t i = 0; i < w->g->n_tensors && !w->rc && !threads_stopped(&w->threads); i++)
        w->rc = write_tensor(w, &w->items[i]);
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "\r\033[K");
}

static int write_header(Work *w)
{
    Buf header = {0};
    GgufTensor *tensors = mem_alloc(w->g->n_tensors, sizeof *tensors);
    const uint32_t version = 2;
    GgufKey set[] = {gguf_u32_key("general.file_type", &w->mix->file_type),
                     gguf_u32_key("general.quantization_version", &version)};
    if (!tensors)
        return err_set(w->e, EXIT_MEMORY, "out of memory");
    for (size_t i = 0; i < w->g->n_tensors; i++)
        tensors[i] = w->items[i].out;
    int rc = gguf_header(w->g, tensors, w->g->n_tensors, set, 2, &header, w->e)
          || put(w, header.ptr, header.len);
    buf_free(&header);
    free(tensors);
    return rc ? -1 : 0;
}

static int write_file(Work *w)
{
    if (read_overrides(w) || plan(w))
        return -1;
    if (w->o->verbose)
        describe(w);
    if (out_open(&w->file, w->o->output, w->e) || write_header(w))
        return -1;
    threads_team(&w->threads, write_tensors, w);
    return w->rc || threads_stopped(&w->threads) ? w->rc : out_commit(&w->file, w->e);
}

/* Write the model `g` with its matrices in other types. The same bytes for any number of threads
 * and any kernels. A signal ends it early and leaves no file. An unknown type, and an override that
 * matches nothing, set EXIT_USAGE. */
static int quantize_file(const Gguf *g, const Options *o, const Kernels *kernels, Err *e)
{
    Work w = {.o = o, .kernels = kernels, .g = g, .mix = find_mix(o->quantize, false), .e = e};
    threads_init(&w.threads, threads_granted(modes_threads(o)), &stop_signal);
    if (!w.mix)
        return unknown_type("--quantize", o->quantize, "one of ", false, e);
    if (outputs_check(o, g, e))
        return -1;
    w.overrides = mem_alloc((size_t)o->n_quantize_types, sizeof *w.overrides);
    w.items = mem_alloc(g->n_tensors, sizeof *w.items);
    w.slice = mem_alloc(SLICE, sizeof(double));
    int rc = w.overrides && w.items && w.slice ? write_file(&w)
                                               : err_set(e, EXIT_MEMORY, "out of memory");
    out_discard(&w.file);
    free(w.overrides);
    free(w.items);
    free(w.slice);
    return rc ? -1 : 0;
}

int quantize_mode(const Options *o, Err *e)
{
    Gguf file;
    const Kernels *kernels = kernels_select(getenv("RUN_CPU"), e);
    if (!strcmp(o->output, "-") && isatty(STDOUT_FILENO))
        return err_set(e, EXIT_USAGE, "-o: got a terminal, want a file or a pipe for the model");
    if (!kernels || gguf_open(&file, o->model, e))
        return -1;
    int rc = quantize_file(&file, o, kernels, e);
    if (rc && e->code == EXIT_MODEL)
        err_prefix(e, o->model);
    gguf_close(&file);
    return rc;
}
