/* format.c - attention files: the table of formats, and what all of them share: opening, completing
 * and naming a file. docs/attention.md describes the formats; each has a source file of its own.
 *
 * A file is written under a temporary name and renamed when it is complete; pipes and devices are
 * written directly. */
#include "maps/format.h"

#include <stdlib.h>
#include <string.h>

static const MapFormat *const formats[] = {
    &format_npz, &format_npy, &format_jsonl, &format_csv, &format_svg, &format_html,
};

enum { N_FORMATS = sizeof formats / sizeof *formats };

/* The format of the name's ending, one that has routes() where `routing`; for a pipe or a device
 * without an ending the first live format. NULL: none. */
static const MapFormat *find_format(const char *path, bool direct, bool routing)
{
    size_t n = strlen(path);
    for (int i = 0; i < N_FORMATS; i++) {
        size_t len = strlen(formats[i]->ending);
        if (n > len && !strcmp(path + n - len, formats[i]->ending))
            return routing && !formats[i]->routes ? NULL : formats[i];
    }
    for (int i = 0; direct && i < N_FORMATS; i++)
        if (formats[i]->live)
            return formats[i];
    return NULL;
}

static int bad_ending(const char *path, bool routing, Err *e)
{
    char seen[200];
    int n = 0, left;
    Buf list = {0}; // ".a, .b or .c"
    for (int i = 0; i < N_FORMATS; i++)
        n += !routing || formats[i]->routes;
    left = n;
    for (int i = 0; i < N_FORMATS; i++)
        if (!routing || formats[i]->routes) {
            buf_text(&list, left == n ? "" : left > 1 ? ", " : " or ");
            buf_text(&list, formats[i]->ending);
            left--;
        }
    err_set(e, EXIT_USAGE, "%s: got \"%s\", want a name ending in %.*s",
            routing ? "--dump-routing" : "--dump-attn",
            str_escape((Str){path, strlen(path)}, seen, sizeof seen), (int)list.len,
            list.len ? list.ptr : "");
    buf_free(&list);
    return -1;
}

int mapfile_open(MapFile *f, const char *path, const Maps *m, const Stats *s, const Routes *r,
                 Err *e)
{
    bool direct = out_is_direct(path);
    *f = (MapFile){
        .format = find_format(path, direct, r != NULL), .maps = m, .stats = s, .routes = r};
    if (!f->format)
        return bad_ending(path, r != NULL, e);
    if (f->format->needs_seek && direct) { // not opened: that could wait for a reader
        err_set(e, EXIT_IO, "got a pipe or device, want a regular file for %s", f->format->ending);
        return err_prefix(e, path);
    }
    f->live = f->format->live && (r || m->o.reduce != REDUCE_ROLLOUT);
    return out_open(&f->out, path, e);
}

int mapfile_line(MapFile *f, int pos, int id, const float *w, size_t stride, Err *e)
{
    return f->live ? f->format->line(f, pos, id, w, stride, e) : 0;
}

int mapfile_begin(MapFile *f, Err *e)
{
    return f->format->begin && !f->live ? f->format->begin(f, e) : 0;
}

void mapfile_tile(const MapFile *f, int map, int row, int n_rows, const float *w, Buf *out)
{
    if (f->format->tile && !f->live)
        f->format->tile(f, map, row, n_rows, w, out);
}

int mapfile_rows(MapFile *f, int map, int row, int n_rows, const float *w, const Buf *tile, Err *e)
{
    if (tile->failed)
        return err_set(e, EXIT_MEMORY, "out of memory for attention maps");
    return f->live ? 0 : f->format->rows(f, map, row, n_rows, w, tile, e);
}

int mapfile_routes(MapFile *f, const int *ids, int first, int n, Err *e)
{
    return f->routes ? f->format->routes(f, ids, first, n, e) : 0;
}

int mapfile_finish(MapFile *f, Err *e)
{
    return (f->format->end && f->format->end(f, e)) || out_finish(&f->out, e) ? -1 : 0;
}

int mapfile_commit(MapFile *f, Err *e)
{
    return out_commit(&f->out, e);
}

void mapfile_close(MapFile *f)
{
    out_discard(&f->out);
    if (f->format && f->format->release)
        f->format->release(f);
    free(f->state);
    *f = (MapFile){0};
}

int mapfile_write(MapFile *f, const void *bytes, size_t len, Err *e)
{
    return fwrite(bytes, 1, len, f->out.f) == len ? 0 : out_error(&f->out, e);
}

int mapfile_write_buf(MapFile *f, Buf *b, Err *e)
{
    if (b->failed)
        return err_set(e, EXIT_MEMORY, "out of memory for attention maps");
    int rc = b->len ? mapfile_write(f, b->ptr, b->len, e) : 0;
    b->len = 0;
    return rc;
}
