/* format.h - attention files: .npz .npy .jsonl .csv .svg .html. docs/attention.md describes them. */
#ifndef FORMAT_H
#define FORMAT_H

#include "base/file.h"
#include "maps/maps.h"
#include "maps/stats.h"

typedef struct MapFile MapFile;

/* One format. tile() runs on any thread and turns rows into bytes or whatever rows() needs; rows() gets them in order. */
typedef struct {
    const char *ending;
    bool seeks;                            // needs a regular file
    double (*size)(const Maps *m);         // bytes, about or at most; m->n is known
    int (*begin)(MapFile *f, Err *e);
    void (*tile)(const MapFile *f, int map, int row, int n_rows, const float *w, Buf *out);
    int (*rows)(MapFile *f, int map, int row, int n_rows, const float *w, const Buf *tile, Err *e);
    int (*end)(MapFile *f, Err *e);        // NULL: nothing to do
    void (*release)(MapFile *f);           // what the state holds; NULL: nothing
} MapFormat;

struct MapFile {
    const MapFormat *format;
    const Maps *maps;
    const Stats *stats; // complete when end() is called
    OutFile out;
    void *state;        // the format's own
};

extern const MapFormat format_html; // html.c

/* 0, or -1; a file that was opened is closed with mapfile_close() in either case. */
int mapfile_open(MapFile *f, const char *path, const Maps *m, const Stats *s, Err *e);
bool mapfile_live(const MapFile *f);           // gets its rows from mapfile_line(), not from a replay
int mapfile_finish(MapFile *f, Err *e);        // end(): the file is complete
int mapfile_commit(MapFile *f, Err *e);        // then the final name
void mapfile_close(MapFile *f);                // removes it if that was not given

/* A line of a .jsonl: weights of one query, map i at w + i * stride, pos + 1 of them. */
int mapfile_line(MapFile *f, int pos, int id, const float *w, size_t stride, Err *e);

#endif
