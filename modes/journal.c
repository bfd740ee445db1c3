/* journal.c - see journal.h. */
#include "modes/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/json.h"
#include "base/json_read.h"

enum { LOCK_SECONDS = 2 }; // how long to wait for a run that is ending

/* ---- what a result depends on ---------------------------------------------------------------- */

/* Flags that change no result. */
static const char *const harmless[] = {"-b", "-t", "--parallel", "-o", "-v", "--resume"};

/* Whether a row of the table is recorded: a flag that the mode takes and that may change results.
 * The mode and the seed stand by themselves. */
static bool is_recorded(const Option *o, Mode mode)
{
    if (!o->names || !(o->modes >> mode & 1) || o->kind == OPT_SEED || o->kind == OPT_MODE)
        return false;
    for (size_t i = 0; i < sizeof harmless / sizeof *harmless; i++)
        if (options_find(harmless[i]) == o)
            return false;
    return true;
}

/* A file that a flag names, by what is in it, as far as that can be read twice. */
static void add_file(Json *j, const char *path)
{
    char hex[SHA256_HEX + 1];
    Sha256 hash;
    FileMap m;
    Err none;
    if (file_map(&m, path, "a file", false, &none)) {
        j->out->failed |= none.code == EXIT_MEMORY;
        json_text(j, path);
        return;
    }
    sha256_init(&hash);
    sha256_add(&hash, m.base, m.size);
    sha256_hex(&hash, hex);
    json_text(j, hex);
    file_unmap(&m);
}

static void add_biases(Json *j, const SamplerParams *p)
{
    char text[40];
    json_list(j);
    for (int i = 0; i < p->n_biases; i++) {
        snprintf(text, sizeof text, "%d%+.9g", p->biases[i].id, (double)p->biases[i].bias);
        json_text(j, text);
    }
    json_end(j);
}

static void add_texts(Json *j, const TextArg *list, int n)
{
    json_list(j);
    for (int i = 0; i < n; i++)
        json_buf(j, &list[i].text);
    json_end(j);
}

static void add_value(Json *j, const Option *row, const Options *o)
{
    const void *field = (const char *)o + row->offset;
    const char *text;
    switch (row->kind) {
    case OPT_FLAG: json_bool(j, *(const bool *)field); break;
    case OPT_INT: json_int(j, *(const int *)field); break;
    case OPT_FLOAT: json_number(j, (double)*(const float *)field); break;
    case OPT_CHOICE: json_text(j, row->choices[*(const int *)field]); break;
    case OPT_BIAS: add_biases(j, &o->sampler); break;
    case OPT_TEXTS:
    case OPT_FILES:
        add_texts(j, *(TextArg *const *)field, *(const int *)((const char *)o + row->count));
        break;
    case OPT_INPUT: // which form the input has; its name says nothing
        json_bool(j, *(const char *const *)field != NULL);
        break;
    case OPT_TEXT:
    case OPT_PATH:
        text = *(const char *const *)field;
        if (!text)
            json_null(j);
        else if (row->kind == OPT_PATH)
            add_file(j, text);
        else
            json_text(j, text);
        break;
    case OPT_MODE: // none of these is recorded
    case OPT_NAMES:
    case OPT_SEED: json_null(j); break;
    }
}

/* The journal's second line -> j->about. */
static int describe(Journal *j, const Options *o, const Engine *x, uint64_t seed, Err *e)
{
    char hex[SHA256_HEX + 1], number[24];
    Json json = {.out = &j->about};
    gguf_fingerprint(&x->model.file, hex);
    int len = snprintf(number, sizeof number, "%" PRIu64, seed);
    json_object(&json);
    json_text(json_key(&json, "version"), RUN_VERSION);
    json_text(json_key(&json, "model"), hex);
    json_text(json_key(&json, "RUN_CPU"), x->params.kernels->name);
    json_bool(json_key(&json, "--score"), o->mode == MODE_SCORE);
    json_bool(json_key(&json, "--chat"), o->chat);
    json_raw(json_key(&json, "--seed"), (Str){number, (size_t)len});
    for (int i = 0; i < n_options; i++) {
        const Option *row = &option_table[i];
        if (!is_recorded(row, o->mode))
            continue;
        add_value(json_key(&json, options_main_name(row).ptr), row, o);
    }
    json_end(&json);
    buf_text(&j->about, "\n");
    return j->about.failed ? err_set(e, EXIT_MEMORY, "out of memory for %s", j->path) : 0;
}

/* ---- the run before -------------------------------------------------------------------------- */

/* What could not be read, unless it was for lack of memory. */
static int damaged(const Journal *j, Err *e)
{
    return e->code == EXIT_MEMORY
             ? -1
             : err_set(e, EXIT_USAGE,
                       "%s: got a damaged file, want what was written beside %s; without --resume "
                       "both are replaced",
                       j->path, j->out);
}

/* A value for a message. */
static char *show(const JsonNode *n, char *out, size_t size)
{
    return str_escape(n->type == JSON_STRING ? n->string : n->raw, out, size);
}

/* The first thing in which the run before and this one differ, in an Err. */
static int compare(const Journal *j, const JsonDoc *before, Err *e)
{
    JsonDoc now;
    char got[80], want[80];
    if (json_parse(&now, (Str){j->about.ptr, j->about.len}, e))
        return -1;
    int rc = 0;
    for (const JsonNode *n = json_first(&now, now.nodes); n && !rc;
         n = json_next(&now, now.nodes, n)) {
        snprintf(got, sizeof got, "%.*s", (int)n->key.len, n->key.ptr);
        const JsonNode *old = json_member(before, before->nodes, got);
        if (!old)
            rc = damaged(j, e);
        else if (str_cmp(old->raw, n->raw))
            rc = err_set(e, EXIT_USAGE, "--resume: %.*s: got %s, want %s, which %s was begun with",
                         (int)n->key.len, n->key.ptr, show(n, got, sizeof got),
                         show(old, want, sizeof want), j->out);
    }
    json_doc_free(&now);
    return rc;
}

/* The first line: how many lines were read, and their hash. */
static bool read_progress(Journal *j, Str line, Err *e)
{
    JsonDoc d;
    int64_t n;
    if (json_parse(&d, line, e))
        return false;
    const JsonNode *count = json_member(&d, d.nodes, "lines");
    const JsonNode *hash = json_member(&d, d.nodes, "sha256");
    bool ok = count && json_integer(count, 0, INT32_MAX - 1, &n) && hash
           && hash->type == JSON_STRING && hash->string.len == SHA256_HEX;
    if (ok) {
        j->n_before = (int)n;
        snprintf(j->before, sizeof j->before, "%.*s", SHA256_HEX, hash->string.ptr);
    }
    json_doc_free(&d);
    return ok;
}

/* The second line: its seed, where -s is not given, and whether all of it fits. */
static int read_about(Journal *j, Str line, const Options *o, const Engine *x, uint64_t *seed,
                      Err *e)
{
    JsonDoc d;
    if (json_parse(&d, line, e))
        return damaged(j, e);
    const JsonNode *old = json_member(&d, d.nodes, "--seed");
    char number[24] = "";
    if (old && old->type == JSON_NUMBER)
        snprintf(number, sizeof number, "%.*s", (int)(old->raw.len < 23 ? old->raw.len : 23),
                 old->raw.ptr);
    if (!o->has_seed)
        *seed = strtoull(number, NULL, 10);
    int rc = *number ? describe(j, o, x, *seed, e) || compare(j, &d, e) : damaged(j, e);
    json_doc_free(&d);
    return rc ? -1 : 0;
}

static int read_journal(Journal *j, const Options *o, const Engine *x, uint64_t *seed, Err *e)
{
    enum { MOST = 1 << 24 };
    Buf text = {0};
    char bytes[1 << 12];
    ssize_t n;
    while (text.len < MOST && (n = read(j->fd, bytes, sizeof bytes)) > 0)
        buf_add(&text, bytes, (size_t)n);
    char *first = text.len ? memchr(text.ptr, '\n', text.len) : NULL;
    char *second = first ? memchr(first + 1, '\n', text.len - (size_t)(first + 1 - text.ptr))
                         : NULL;
    int rc = text.failed ? err_set(e, EXIT_MEMORY, "out of memory for %s", j->path)
           : !second || !read_progress(j, (Str){text.ptr, (size_t)(first - text.ptr)}, e)
               ? damaged(j, e)
               : read_about(j, (Str){first + 1, (size_t)(second - first - 1)}, o, x, seed, e);
    buf_free(&text);
    return rc;
}

/* One whole line of OUT: whether it is one that the run before can have written there. */
static bool read_result(Journal *j, Str line, const Options *o, Err *e)
{
    JsonDoc d;
    int64_t n = 0, before = o->first_line - 1;
    if (json_parse(&d, line, e))
        return false;
    const JsonNode *number = json_member(&d, d.nodes, "line");
    bool fits = number && json_integer(number, before + 1, before + j->n_before, &n);
    n -= before;
    fits = fits && !(j->done[n / 8] >> n % 8 & 1) && (o->unordered || n == j->n_done + 1);
    if (fits) {
        j->done[n / 8] |= (unsigned char)(1 << n % 8);
        j->n_done++;
        j->n_failed += json_member(&d, d.nodes, "error") != NULL;
    }
    json_doc_free(&d);
    return fits;
}

/* Which lines are in OUT, and where the last whole one ends. */
static int read_results(Journal *j, const Options *o, Err *e)
{
    Lines l;
    Str line;
    int rc;
    j->done = mem_zalloc((size_t)j->n_before / 8 + 1, 1);
    if (!j->done)
        return err_set(e, EXIT_MEMORY, "out of memory for %s", j->path);
    if (lines_open(&l, j->out, &stop_signal, e))
        return -1;
    while ((rc = lines_next(&l, true, &line, e)) > 0 && l.whole) {
        if (!read_result(j, line, o, e)) {
            rc = e->code == EXIT_MEMORY ? -1
                                        : err_set(e, EXIT_USAGE,
                                                  "%s: line %d of it is none that the run before "
                                                  "can have written there; "
                                                  "without --resume the file is replaced",
                                                  j->out, l.n);
            break;
        }
        j->end = l.end;
    }
    lines_close(&l);
    return rc < 0 || stop_signal ? -1 : 0;
}

/* ---- opening --------------------------------------------------------------------------------- */

/* Whether no other run has the file. One that was just killed has it until its memory is gone, and
 * a script that begins it again at once must not fail. */
static bool lock(int fd)
{
    const struct timespec pause = {.tv_nsec = 20000000};
    double end = clock_seconds() + LOCK_SECONDS;
    while (flock(fd, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK) {
        if (stop_signal || clock_seconds() > end)
            return false;
        nanosleep(&pause, NULL);
    }
    return true;
}

/* Open the journal itself. Two runs at once would spoil one another's files. */
static int open_file(Journal *j, int flags, Err *e)
{
    j->fd = open(j->path, O_RDWR | O_CLOEXEC | flags, 0666);
    if (j->fd < 0 && errno == ENOENT && j->resumed)
        return err_set(e, EXIT_USAGE,
                       "--resume: %s is not there, which says how %s was made; without --resume "
                       "the file is replaced",
                       j->path, j->out);
    if (j->fd < 0)
        return err_errno(e, j->path);
    if (!lock(j->fd))
        return err_set(e, EXIT_USAGE, "%s: another run is writing this file", j->out);
    return 0;
}

int journal_open(Journal *j, const Options *o, const Engine *x, uint64_t *seed, Err *e)
{
    static const char ending[] = ".run";
    struct stat st;
    size_t n = strlen(o->output);
    *j = (Journal){.out = o->output, .path = mem_alloc(n + sizeof ending, 1), .fd = -1};
    sha256_init(&j->hash);
    if (!j->path)
        return err_set(e, EXIT_MEMORY, "out of memory for the file's name");
    memcpy(j->path, o->output, n);
    memcpy(j->path + n, ending, sizeof ending);
    j->resumed = o->resume && !stat(o->output, &st) && st.st_size > 0;
    if (!j->resumed)
        return describe(j, o, x, *seed, e);
    return open_file(j, 0, e) || read_journal(j, o, x, seed, e) || read_results(j, o, e) ? -1 : 0;
}

void journal_close(Journal *j)
{
    if (j->path && j->fd >= 0)
        close(j->fd);
    free(j->path);
    free(j->done);
    buf_free(&j->about);
    *j = (Journal){0};
}

int journal_check_input(const Journal *j, Err *e)
{
    char hex[SHA256_HEX + 1];
    sha256_hex(&j->hash, hex);
    if (j->n < j->n_before)
        return err_set(e, EXIT_USAGE, "--resume: input: got %d lines, want the %d that %s is from",
                       j->n, j->n_before, j->out);
    if (strcmp(hex, j->before))
        return err_set(e, EXIT_USAGE,
                       "--resume: input: its first %d lines are not those that %s is from", j->n,
                       j->out);
    return 0;
}

/* ---- writing --------------------------------------------------------------------------------- */

static int write_progress(Journal *j, Err *e)
{
    char hex[SHA256_HEX + 1], line[128];
    sha256_hex(&j->hash, hex);
    int n = snprintf(line, sizeof line, "{\"lines\": %10d, \"sha256\": \"%s\"}\n", j->n, hex);
    if (pwrite(j->fd, line, (size_t)n, 0) != n)
        return err_errno(e, j->path);
    j->saved = j->n;
    return n;
}

/* A new journal, for an output that is empty. */
static int write_new(Journal *j, Err *e)
{
    int n = ftruncate(j->fd, 0) ? err_errno(e, j->path) : write_progress(j, e);
    if (n < 0)
        return -1;
    if (pwrite(j->fd, j->about.ptr, j->about.len, n) != (ssize_t)j->about.len)
        return err_errno(e, j->path);
    return 0;
}

FILE *journal_begin(Journal *j, Err *e)
{
    if (!j->resumed && open_file(j, O_CREAT, e))
        return NULL;
    FILE *out = fopen(j->out, j->resumed ? "r+" : "w");
    if (!out) {
        err_errno(e, j->out);
        return NULL;
    }
    if (j->resumed && (ftruncate(fileno(out), j->end) || fseeko(out, j->end, SEEK_SET)))
        err_errno(e, j->out);
    else if (j->resumed || !write_new(j, e))
        return out;
    fclose(out);
    return NULL;
}

bool journal_line(Journal *j, int n, Str line)
{
    if (!j->path)
        return true;
    if (n > j->n) {
        sha256_add(&j->hash, line.ptr, line.len);
        sha256_add(&j->hash, "\n", 1);
        j->n = n;
    }
    return n > j->n_before || !(j->done[n / 8] >> n % 8 & 1);
}

int journal_save(Journal *j, Err *e)
{
    return j->path && j->n > j->saved && write_progress(j, e) < 0 ? -1 : 0;
}
