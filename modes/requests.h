/* requests.h - lines of JSON or of text on their way from a file to lines of results.
 *
 * Lines are read as they come, wait in order for a place in the pool of texts that run together
 * (generate/parallel.h), and are written in order, or with --unordered as they finish. A line that
 * cannot be run gets an object with an error, and the others go on. What a line asks for and what
 * is written about it is the mode's business, in a RequestKind.
 *
 *     requests_open(q, o, kind, seed, e)      the model, the input and the output
 *     requests_start(q, seq_len, max_logits)  the session and the pool
 *     requests_run(q)                         until all lines are written
 *     return requests_close(q, rc)
 */
#ifndef REQUESTS_H
#define REQUESTS_H

#include "base/json.h"
#include "base/json_read.h"
#include "generate/parallel.h"
#include "modes/journal.h"
#include "modes/modes.h"

typedef enum { WAITING, RUNNING, DONE } RequestState;

/* A line. The mode's own struct begins with it. */
typedef struct Request Request;
struct Request {
    Request *next;
    int line; // from --first-line on; of a sample its number, from 0
    RequestState state;
    Str json;     // the line itself, owned; what is carried through points into it
    bool is_json; // an object
    Str id;       // its "id" as JSON, empty for none
    Err err;      // err.code other than EXIT_OK: it has failed
};

typedef struct Requests Requests;

typedef struct {
    size_t size; // of the mode's own struct

    /* Read what the line asks for: `d` is the line, an object or a string, or NULL with --lines.
     * Its strings may be taken from it. -1 and an Err: the line has failed. */
    int (*read)(Requests *q, JsonDoc *d, Request *r, Err *e);

    /* Whether the member is the mode's own, or one of its results: it is not carried through. */
    bool (*is_own)(Str member);

    /* Let the texts of a line in and set its state. False: it has to wait. */
    bool (*start)(Requests *q, Request *r);
    void (*text_done)(Requests *q, ParallelText *text); // with the pool

    /* Run what start() let in, q->n_running texts. NULL: these are in the pool, whose step it is.
     */
    int (*pass)(Requests *q);

    /* Put a line into an output of the mode's own, in its order; one with an error ends the run.
     * NULL: it becomes a JSON object of -o or standard output, with the members of write(). */
    int (*put)(Requests *q, const Request *r);
    void (*write)(Requests *q, const Request *r, Json *j);
    void (*free)(Requests *q, Request *r); // its own; the struct stays
} RequestKind;

struct Requests {
    const Options *o;
    const RequestKind *kind;
    Engine engine;
    Session session;
    Parallel texts;
    Lines lines;
    Journal journal; // of a file, else zeroed
    FILE *out;
    const char *out_path;  // for messages
    Request *first, **end; // in the order of the input
    Request *waiting;      // the first that waits
    int n_open;            // lines that are not written
    int n_running;         // texts that pass() will run
    int n_done, n_failed;
    size_t n_tokens; // of texts that are done, without their prompts
    double begin;
    bool progress;
    int seq_len; // the context of each text
    int rc;
    Err *e;
};

/* Open the model, the journal of the output and, unless the mode is MODE_GENERATE, the input; *seed
 * is the base of all seeds, which a run that is resumed takes from the journal. 0, or -1 and an
 * Err; requests_close() in either case. `q` and `e` stay where they are. */
int requests_open(Requests *q, const Options *o, const RequestKind *kind, uint64_t *seed, Err *e);

/* The session and the pool, and the output, for texts of at most seq_len tokens; max_logits: rows
 * of a pass with logits, 0 for one a text. 0, or -1 and an Err. */
int requests_start(Requests *q, int seq_len, int max_logits);

/* The same without session and pool, for a kind that has pass(). */
int requests_begin(Requests *q);

/* A new request for a line or a sample, with a copy of `json`; NULL when out of memory. */
Request *requests_new(const Requests *q, int line, Str json);

/* Put it at the end of the queue, which owns it from now on. One with an error is done. */
void requests_add(Requests *q, Request *r);

/* Run the lines of the input, and what was added before. */
void requests_run(Requests *q);

/* Free everything and close the files; a zeroed one is fine. `rc` other than 0: something has
 * failed before. 0; or -1 and an Err, also where lines have failed. */
int requests_close(Requests *q, int rc);

/* ---- reading members ------------------------------------------------------------------------- */

bool requests_is_one_of(Str name, const char *const *names, size_t n);

/* A list of token ids, appended to *out. `name` is for messages. */
int requests_read_ids(const Requests *q, const JsonDoc *d, const JsonNode *list, const char *name,
                      TokenList *out, Err *e);

/* Append the ids of a text, with the begin-of-text token where the flags and the model want it. */
int requests_encode(const Requests *q, Str text, TokenList *out, Err *e);

#endif
