/* format.h - attention files: the formats, and one set of calls for a file of any of them.
 * docs/attention.md describes the files. */
#ifndef FORMAT_H
#define FORMAT_H

#include "base/file.h"
#include "maps/maps.h"
#include "maps/routing.h"
#include "maps/stats.h"

typedef struct MapFile MapFile;

/* One format: what it needs and its part of each call below; a call that is NULL has nothing to
 * do. */
typedef struct {
    const char *ending;
    bool live;                     // rows are written while the text is made
    bool needs_seek;               // and so a regular file
    bool wants_stats;              // MapFile.stats are to be made
    bool takes_top, takes_f16;     // has a use for --attn-top; for --attn-dtype f16
    double (*size)(const Maps *m); // bytes, about or at most; m->n is known
    int (*begin)(MapFile *f, Err *e);
    void (*tile)(const MapFile *f, int map, int row, int n_rows, const float *w, Buf *out);
    int (*rows)(MapFile *f, int map, int row, int n_rows, const float *w, const Buf *tile, Err *e);
    int (*line)(MapFile *f, int pos, int id, const float *w, size_t stride, Err *e);
    // of a format that --dump-routing may write: all that its file holds, but for end()
    int (*routes)(MapFile *f, const int *ids, int first, int n, Err *e);
    int (*end)(MapFile *f, Err *e);
    void (*release)(MapFile *f); // what the state holds
} MapFormat;

struct MapFile {
    const MapFormat *format;
    bool live; // gets its rows while the session runs: of a live format, but for rollout, which
               // needs all rows
    const Maps *maps;
    const Stats *stats;   // complete when end() is called
    const Routes *routes; // of a file of --dump-routing, which has no maps; else NULL
    OutFile out;
    void *state; // the format's own
};

extern const MapFormat format_npz, format_npy, format_jsonl, format_csv, format_svg, format_html;

/* 0, or -1; a file that was opened is closed with mapfile_close() in either case. */
int mapfile_open(MapFile *f, const char *path, const Maps *m, const Stats *s, const Routes *r,
                 Err *e);

/* A row of a live file, all maps of it: weights of map i at w + i * stride. Other files do nothing.
 */
int mapfile_line(MapFile *f, int pos, int id, const float *w, size_t stride, Err *e);

/* The replay, of which live files do nothing: its beginning; then map by map rows of weights,
 * w (n_rows, T), from position `row` on: _tile() makes of them what the file needs and runs on any
 * thread, _rows() gets that in order. */
int mapfile_begin(MapFile *f, Err *e);
void mapfile_tile(const MapFile *f, int map, int row, int n_rows, const float *w, Buf *out);
int mapfile_rows(MapFile *f, int map, int row, int n_rows, const float *w, const Buf *tile, Err *e);

/* The experts of n tokens with these ids, from position `first` on: for a live file those of a
 * forward(), otherwise those of the whole text. A file of maps does nothing. */
int mapfile_routes(MapFile *f, const int *ids, int first, int n, Err *e);

int mapfile_finish(MapFile *f, Err *e); // the file is complete
int mapfile_commit(MapFile *f, Err *e); // then it gets its final name
void mapfile_close(MapFile *f);         // removes it if it did not get that

/* For the formats: write bytes, or what a buffer holds, which is emptied. */
int mapfile_write(MapFile *f, const void *bytes, size_t len, Err *e);
int mapfile_write_buf(MapFile *f, Buf *b, Err *e);

#endif
