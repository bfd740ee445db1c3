/* modes.c - what the modes share. Contracts are in modes.h. */
#include "modes/modes.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/file.h"

atomic_int stop_signal;

int modes_print_failed(Err *e)
{
    return err_set(e, EXIT_IO, "standard output: cannot write: %s", strerror(errno));
}

int modes_print(const char *bytes, size_t n, Err *e)
{
    return (n && fwrite(bytes, 1, n, stdout) != n) || fflush(stdout) ? modes_print_failed(e) : 0;
}

int modes_read_json(const char *path, Buf *text, JsonDoc *d, Err *e)
{
    if (file_read(path, &stop_signal, text, e))
        return -1;
    Str whole = {text->ptr ? text->ptr : "", text->len};
    return json_parse(d, whole, e) ? err_prefix(e, file_shown(path)) : 0;
}

int modes_threads(const Options *o)
{
    const char *env = getenv("OMP_NUM_THREADS");
    int n = o->n_threads ? o->n_threads : env ? atoi(env) : 0;
#ifndef _OPENMP
    n = 1;
#endif
    return n > 0 && n <= 1024 ? n : cpu_threads();
}

unsigned modes_encode_flags(const Options *o)
{
    return (o->no_bos ? 0 : ENCODE_BOS) | (o->special_files ? ENCODE_SPECIAL : 0)
         | (o->mode == MODE_EMBED ? ENCODE_EOS : 0);
}

void modes_note_context(const Options *o, const Config *c, int seq_len)
{
    if (seq_len > c->seq_len && (o->verbose || isatty(STDERR_FILENO)))
        fprintf(stderr, "%s: -c %d is more than the %d tokens that the model was made for\n",
                program_name(), seq_len, c->seq_len);
}

int modes_context(const Options *o, const Config *c)
{
    return o->seq_len ? o->seq_len : c->seq_len < USUAL_CONTEXT ? c->seq_len : USUAL_CONTEXT;
}

static int keep_stops(Engine *x, const Options *o, Err *e)
{
    x->stops = mem_alloc((size_t)o->n_stops, sizeof *x->stops);
    if (!x->stops)
        return err_set(e, EXIT_MEMORY, "out of memory for the text");
    for (; x->n_stops < o->n_stops; x->n_stops++) {
        const Buf *text = &o->stops[x->n_stops].text;
        x->stops[x->n_stops] = (Str){text->ptr, text->len};
    }
    return 0;
}

int modes_open(Engine *x, const Options *o, bool needs_tokenizer, Err *e)
{
    double begin = clock_seconds(), bytes = 0;
    size_t free_memory = cpu_free_memory();
    *x = (Engine){.params = {.max_batch = o->batch,
                             .kv_type = o->kv_type,
                             .exact = o->exact,
                             .threads = &x->threads,
                             .kernels = kernels_select(getenv("RUN_CPU"), e),
                             .kv_cut = &x->kv_cut}};
    threads_init(&x->threads, modes_threads(o), &stop_signal);
    if (!x->params.kernels || model_open(&x->model, o->model, needs_tokenizer, e))
        return -1;
    const Model *m = &x->model;
    const Config *c = &model_stack(m)->config;
    if (!m->decoder.layers && o->mode != MODE_EMBED)
        return err_set(e, EXIT_USAGE,
                       "%s: %s is an encoder, which makes no text; --embed gives vectors", o->model,
                       c->arch);
    const LayerConfig *heads = c->layers; // of the first layer with attention
    for (int i = 0; i < c->n_layers && heads->mixer != MIX_ATTENTION; i++)
        heads = &c->layers[i];
    for (int i = 0; i < m->file.n_maps; i++)
        bytes += (double)m->file.maps[i].file.size;
    char kinds[200];
    bool recurrent = *config_recurrent(c, kinds, sizeof kinds);
    if (o->verbose)
        fprintf(stderr,
                "model: %s, %.1f M parameters, %.1f MB, %d layers%s%s%s, dim %d, "
                "%d heads (%d key/value), vocabulary %d, loaded in %.0f ms\n",
                c->arch, (double)m->n_params / 1e6, bytes / 1e6, c->n_layers, recurrent ? " (" : "",
                kinds, recurrent ? ")" : "", c->dim, heads->n_heads, heads->n_kv_heads,
                c->vocab_size, 1e3 * (clock_seconds() - begin));
    if (free_memory && bytes > (double)free_memory)
        fprintf(stderr,
                "%s: %s: %.1f GB are more than the %.1f GB of memory that are free; it is read "
                "from the disk again and again\n",
                program_name(), o->model, bytes / 1e9, (double)free_memory / 1e9);
    x->constraints.tokenizer = m->tokenizer;
    return keep_stops(x, o, e)
                || constraints_of_options(&x->constraints, o, &stop_signal, &x->constraint, e)
             ? -1
             : 0;
}

int modes_close(Engine *x, int rc)
{
    if (!rc && atomic_load(&x->kv_cut))
        fprintf(stderr,
                "%s: keys or values beyond 65504 were cut off in the f16 cache; "
                "--kv f32 keeps them whole\n",
                program_name());
    constraints_close(&x->constraints);
    free(x->stops);
    threads_free(&x->threads);
    model_close(&x->model);
    return rc ? -1 : 0;
}

void modes_sizes(SessionParams *p, int seq_len, int rows, int max_logits)
{
    assert(seq_len > 0 && rows > 0 && max_logits > 0);
    p->seq_len = seq_len;
    p->n_seqs = 1;
    p->max_batch = p->max_batch < rows ? p->max_batch : rows;
    p->max_logits = max_logits < p->max_batch ? max_logits : p->max_batch;
}

SamplerParams modes_sampler_params(const Options *o)
{
    SamplerParams p = o->sampler;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (!o->has_seed)
        p.seed = ((uint64_t)now.tv_sec * 1000000007u ^ (uint64_t)now.tv_nsec
                  ^ (uint64_t)getpid() << 40)
               % SEED_LIMIT;
    return p;
}

StreamParams modes_stream_params(const Options *o, const Engine *x, int seq_len)
{
    int vocab = x->model.decoder.config.vocab_size;
    return (StreamParams){.tokenizer = x->model.tokenizer,
                          .sampling = o->sampler,
                          .n_predict = o->n_predict,
                          .seq_len = seq_len,
                          .stops = x->stops,
                          .n_stops = x->n_stops,
                          .ignore_eos = o->ignore_eos,
                          .special = o->special,
                          .matcher = x->constraint ? x->constraint->matcher : NULL,
                          .logprobs = o->logprobs < vocab ? o->logprobs : vocab};
}

int modes_check_biases(const Options *o, const Config *c, Err *e)
{
    const SamplerParams *p = &o->sampler;
    for (int i = 0; i < p->n_biases; i++)
        if (p->biases[i].id >= c->vocab_size)
            return err_set(e, EXIT_USAGE, "--logit-bias: got token %d, want 0 to %d",
                           p->biases[i].id, c->vocab_size - 1);
    return 0;
}
