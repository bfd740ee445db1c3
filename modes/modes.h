/* modes.h - what the program can do, one call a mode, and what the modes share. */
#ifndef MODES_H
#define MODES_H

#include <stdatomic.h>

#include "generate/stream.h"
#include "base/json_read.h"
#include "modes/constraint.h"
#include "modes/options.h"

/* Each does what its flag asks for and prints the results on standard output. 0, or -1 and an Err;
 * where stop_signal is set the Err may be empty. */
int complete_mode(const Options *o, Err *e); // the prompt and what the model makes of it
int batch_mode(const Options *o, Err *e);    // many prompts, a JSON object for each
int score_mode(const Options *o, Err *e); // how likely given texts are, a JSON object for each line
int embed_mode(const Options *o, Err *e); // a vector for each text
int tokenize_mode(const Options *o, Err *e);
int info_mode(const Options *o, Err *e);
int render_mode(const Options *o, Err *e);
int chat_mode(const Options *o, Err *e); // a conversation by the model's chat template
int perplexity_mode(const Options *o, Err *e);
int bench_mode(const Options *o, Err *e);
int quantize_mode(const Options *o, Err *e);
int help_mode(const Options *o, Err *e); // this and the rest need no model
int version_mode(const Options *o, Err *e);
int man_mode(const Options *o, Err *e);
int completion_mode(const Options *o, Err *e);

/* The signal that asked us to stop, 0 for none. run.c's handlers set it. A mode that still has
 * something to write may clear it for that time, so that the next signal is noticed too. */
extern atomic_int stop_signal;

/* The threads to use: -t, else OMP_NUM_THREADS, else the cores that we may use. */
int modes_threads(const Options *o);

/* A model and what its sessions need. */
typedef struct {
    Model model;
    Threads threads;
    SessionParams params; // but for the sizes, see modes_sizes(); max_batch is -b
    atomic_bool kv_cut;   // keys or values did not fit the f16 cache of a session
    Constraints constraints;
    Constraint *constraint; // what the flags ask for, NULL: any text will do
    Str *stops;             // (n_stops) the texts of --stop, which the Options own
    int n_stops;
} Engine;

/* Open the model, with a tokenizer where one is needed; with -v standard error gets a line about
 * it. 0, or -1 with an Err and nothing left open. *x must stay where it is. */
int modes_open(Engine *x, const Options *o, bool needs_tokenizer, Err *e);

/* Close what modes_open() opened or, zeroed before, failed to. A run that succeeded (rc = 0) has a
 * warning where keys or values were cut off, the one line that it may print on standard error.
 * Returns rc ? -1 : 0. */
int modes_close(Engine *x, int rc);

/* Seeds that are chosen for the user are below this: programs that read JSON numbers as doubles
 * would round larger ones. */
#define SEED_LIMIT ((uint64_t)1 << 53)

/* The sampler's parameters, with a seed of the moment where none is given. */
SamplerParams modes_sampler_params(const Options *o);

/* What the flags say of how a text is generated. */
StreamParams modes_stream_params(const Options *o, const Engine *x, int seq_len);

/* How a whole text is tokenized: for its vector the end-of-text token belongs to it. */
unsigned modes_encode_flags(const Options *o);

/* --logit-bias names tokens that there are. */
int modes_check_biases(const Options *o, const Config *c, Err *e);

/* The context of a text: -c, else the model's, at most USUAL_CONTEXT. */
int modes_context(const Options *o, const Config *c);

/* Sizes of a session for one text of seq_len tokens: passes of at most `rows` rows, at most
 * max_logits of them with logits. */
void modes_sizes(SessionParams *p, int seq_len, int rows, int max_logits);

/* A line on standard error where a context of seq_len tokens is beyond what the model was made for;
 * told to people only. */
void modes_note_context(const Options *o, const Config *c, int seq_len);

/* Read a file, "-" being standard input, that is one JSON text; both *text and *d are freed by the
 * caller in either case. */
int modes_read_json(const char *path, Buf *text, JsonDoc *d, Err *e);

/* Write n bytes to standard output at once. 0, or -1 and an Err. */
int modes_print(const char *bytes, size_t n, Err *e);

/* Standard output cannot be written, for the reason in errno: an Err; returns -1. */
int modes_print_failed(Err *e);

#endif
