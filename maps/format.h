/* format.h - attention files: the formats, and what opens, completes and closes a file of any of
 * them. docs/attention.md describes the files. */
#ifndef FORMAT_H
#define FORMAT_H

#include "base/file.h"
#include "maps/maps.h"
#include "maps/stats.h"

typedef struct MapFile MapFile;

/* One format. tile() runs on any thread and turns rows of a replay, w (n_rows, T), into bytes or
 * whatever rows() needs; rows() gets them in order. A format with line() gets its rows live, but
 * for rollout, which needs the whole text. */
typedef struct {
    const char *ending;
    bool seeks;                       // needs a regular file
    bool wants_stats;                 // MapFile.stats are to be made
    bool takes_top, takes_f16;        // has a use for --attn-top; for --attn-dtype f16
    double (*size)(const Maps *m);    // bytes, about or at most; m->n is known
    int (*begin)(MapFile *f, Err *e); // of a replay; NULL: nothing to do
    void (*tile)(const MapFile *f, int map, int row, int n_rows, const float *w,
                 Buf *out); // NULL: rows() needs none
    int (*rows)(MapFile *f, int map, int row, int n_rows, const float *w, const Buf *tile, Err *e);
    int (*line)(MapFile *f, int pos, int id, const float *w, size_t stride,
                Err *e);            // or NULL; map i of the row at pos: w + i * stride
    int (*end)(MapFile *f, Err *e); // NULL: nothing to do
    void (*release)(MapFile *f);    // what the state holds; NULL: nothing
} MapFormat;

struct MapFile {
    const MapFormat *format;
    const Maps *maps;
    const Stats *stats; // complete when end() is called
    OutFile out;
    void *state; // the format's own
};

extern const MapFormat format_npz, format_npy, format_jsonl, format_csv, format_svg, format_html;

/* 0, or -1; a file that was opened is closed with mapfile_close() in either case. */
int mapfile_open(MapFile *f, const char *path, const Maps *m, const Stats *s, Err *e);
bool mapfile_live(const MapFile *f);    // gets its rows by line(), not from a replay
int mapfile_finish(MapFile *f, Err *e); // end(): the file is complete
int mapfile_commit(MapFile *f, Err *e); // then the final name
void mapfile_close(MapFile *f);         // removes it if that was not given

/* For the formats: write bytes, or what a buffer holds, which is emptied. */
int mapfile_write(MapFile *f, const void *bytes, size_t len, Err *e);
int mapfile_write_buf(MapFile *f, Buf *b, Err *e);

#endif
