/* svg.c - the attention file .svg: every map a picture, all of them on one sheet. docs/attention.md
 * describes it. */
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "maps/format.h"

enum { LEVELS = 256, FONT = 9 };

/* One map in the making: for each level the path of its cells. */
typedef struct {
    Buf paths[LEVELS];
    Buf out;
    int cell, label, step; // pixels of a cell, pixels for labels, cells from one label to the next
} Svg;

static double svg_size(const Maps *m)
{
    double labels = (double)map_layers(m) * map_heads(m) * (m->n + m->n_queries);
    return map_n_visible(m) * 12 + labels * 60 + 4096;
}

/* Viridis (van der Walt and Smith 2015) through nine of its colours. */
static void viridis(int level, char out[8])
{
    static const unsigned char points[9][3] = {
        {68, 1, 84},    {71, 45, 123}, {59, 82, 139},  {44, 114, 142}, {33, 145, 140},
        {40, 174, 128}, {94, 201, 98}, {173, 220, 48}, {253, 231, 37},
    };
    float at = (float)level / (LEVELS - 1) * 8;
    int i = at < 8 ? (int)at : 7, rgb[3];
    for (int k = 0; k < 3; k++)
        rgb[k] = (int)((float)points[i][k]
                       + (at - (float)i) * (float)(points[i + 1][k] - points[i][k]) + 0.5f);
    snprintf(out, 8, "#%02x%02x%02x", rgb[0] & 255, rgb[1] & 255, rgb[2] & 255);
}

/* Text for XML; spaces and newlines are shown, what a label has no room for is cut. */
static void add_label(Buf *out, const Buf *text, int max)
{
    int n = 0;
    for (size_t i = 0; i < text->len; n++) {
        uint32_t cp;
        const char *p = text->ptr + i;
        size_t len = utf8_decode(p, text->ptr + text->len, &cp);
        i += len;
        if (n == max) {
            buf_text(out, "\u2026");
            return;
        }
        if (cp == ' ')
            buf_text(out, "\u00b7");
        else if (cp == '\n' || cp == '\t' || cp == '\r')
            buf_text(out, cp == '\n' ? "\u21b5" : cp == '\t' ? "\u21e5" : "\u240d");
        else if (cp == '<' || cp == '>' || cp == '&' || cp == '"')
            buf_text(out, cp == '<' ? "&lt;" : cp == '>' ? "&gt;" : cp == '&' ? "&amp;" : "&quot;");
        else if (cp < 0x20 || (cp >= 0x7f && cp < 0xa0) || (cp & ~1u) == 0xfffe
                 || cp & UTF8_INVALID)
            buf_text(out, "\ufffd"); // not allowed in XML, or invisible
        else
            buf_add(out, p, len);
    }
}

static void add_format(Buf *out, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void add_format(Buf *out, const char *fmt, ...)
{
    char text[400];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    buf_add(out, text, (size_t)n < sizeof text ? (size_t)n : sizeof text - 1);
}

static int svg_begin(MapFile *f, Err *e)
{
    const Maps *m = f->maps;
    Svg *s = f->state = mem_zalloc(1, sizeof *s);
    if (!s)
        return err_set(e, EXIT_MEMORY, "out of memory for attention maps");
    s->cell = m->n <= 48 ? 12 : m->n <= 120 ? 8 : m->n <= 400 ? 3 : 1;
    s->step = (FONT + 1 + s->cell - 1) / s->cell;
    s->label = 84;
    Buf *out = &s->out, name = {0};
    int panel_w = s->label + m->n * s->cell + 24, panel_h = 26 + m->n_queries * s->cell + s->label;
    int width = map_heads(m) * panel_w + 24, height = map_layers(m) * panel_h + 64;
    width = width < 480 ? 480 : width; // room for the title and the scale
    buf_add(&name, map_model_name(m), strlen(map_model_name(m)));
    add_format(out,
               "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
               "viewBox=\"0 0 %d %d\" "
               "font-family=\"sans-serif\" font-size=\"%d\" fill=\"#222\">\n"
               "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n",
               width, height, width, height, FONT);
    buf_text(out, "<text x=\"12\" y=\"20\" font-size=\"13\">");
    add_label(out, &name, 60);
    buf_text(out, "</text>\n"
                  "<text x=\"12\" y=\"34\" fill=\"#666\">rows: queries, columns: keys</text>\n");
    int bar = width - 252;
    buf_text(out, "<linearGradient id=\"scale\">\n");
    for (int i = 0; i < 9; i++) {
        char colour[8];
        viridis(i * (LEVELS - 1) / 8, colour);
        add_format(out, "<stop offset=\"%g\" stop-color=\"%s\"/>\n", i / 8.0, colour);
    }
    add_format(out,
               "</linearGradient>\n"
               "<rect x=\"%d\" y=\"12\" width=\"230\" height=\"10\" fill=\"url(#scale)\"/>\n",
               bar);
    for (int i = 0; i < 3; i++)
        add_format(out, "<text x=\"%g\" y=\"34\" text-anchor=\"middle\">%s</text>\n",
                   bar + i * 115.0, (const char *[]){"0", "0.5", "1"}[i]);
    out->failed |= name.failed;
    buf_free(&name);
    return mapfile_write_buf(f, out, e);
}

static void svg_begin_map(Svg *s, const Maps *m, int map)
{
    Buf *out = &s->out, text = {0};
    int layer = map / map_heads(m), head = map % map_heads(m), cell = s->cell;
    int x = 12 + head * (s->label + m->n * cell + 24) + s->label;
    int y = 70 + layer * (26 + m->n_queries * cell + s->label);
    char label[64], *comma;
    map_label(m, map, label, sizeof label);
    comma = strchr(label, ',');
    char kind[64] = "";
    if (map_kind(m))
        snprintf(kind, sizeof kind, "data-kind=\"%s\" data-first-query=\"%d\" ", map_kind(m),
                 m->first);
    *comma = 0;
    comma[strlen(comma + 1)] = 0; // the last comma
    add_format(out,
               "<g class=\"map\" data-layer=\"%s\" data-head=\"%s\" %s"
               "transform=\"translate(%d %d)\">\n"
               "<text y=\"-8\" font-size=\"11\">layer %s, head %s</text>\n",
               label, comma + 1, kind, x, y, label, comma + 1);
    for (int axis = 0; axis < 2; axis++) // keys below, queries on the left
        for (int i = 0; i < (axis ? m->n_queries : m->n); i += s->step) {
            double at = (i + 0.5) * cell + FONT * 0.35;
            if (axis)
                add_format(out, "<text x=\"-4\" y=\"%g\" text-anchor=\"end\">", at);
            else
                add_format(out,
                           "<text transform=\"translate(%g %d) rotate(-90)\" "
                           "text-anchor=\"end\">",
                           at, m->n_queries * cell + 4);
            text.len = 0;
            map_token_text(m, m->ids[axis ? m->first + i : i], &text);
            add_label(out, &text, 14);
            buf_text(out, "</text>\n");
        }
    add_format(out,
               "<g transform=\"scale(%d)\" shape-rendering=\"crispEdges\">\n"
               "<rect width=\"%d\" height=\"%d\" fill=\"#f2f2f2\"/>\n",
               cell, m->n, m->n_queries);
    out->failed |= text.failed;
    buf_free(&text);
}

static void svg_row(Svg *s, int y, const float *w, int n)
{
    for (int k = 0, run; k < n; k += run) {
        int level = (int)lrintf(w[k] * (LEVELS - 1));
        level = level < 0 ? 0 : level > LEVELS - 1 ? LEVELS - 1 : level;
        for (run = 1; k + run < n && (int)lrintf(w[k + run] * (LEVELS - 1)) == level; run++)
            ;
        add_format(&s->paths[level], "M%d %dh%dv1h-%dz", k, y, run, run);
    }
}

static int svg_rows(MapFile *f, int map, int row, int n_rows, const float *w, const Buf *tile,
                    Err *e)
{
    const Maps *m = f->maps;
    Svg *s = f->state;
    (void)tile;
    if (row == m->first)
        svg_begin_map(s, m, map);
    for (int r = 0; r < n_rows; r++)
        svg_row(s, row - m->first + r, w + (size_t)r * (size_t)m->n, map_keys(m, row + r));
    if (row + n_rows < m->first + m->n_queries)
        return 0;
    for (int level = 0; level < LEVELS; level++) {
        char colour[8];
        viridis(level, colour);
        s->out.failed |= s->paths[level].failed;
        if (!s->paths[level].len)
            continue;
        add_format(&s->out, "<path data-level=\"%d\" fill=\"%s\" d=\"", level, colour);
        buf_add(&s->out, s->paths[level].ptr, s->paths[level].len);
        s->paths[level].len = 0;
        buf_text(&s->out, "\"/>\n");
    }
    buf_text(&s->out, "</g></g>\n");
    return mapfile_write_buf(f, &s->out, e);
}

static int svg_end(MapFile *f, Err *e)
{
    return mapfile_write(f, "</svg>\n", 7, e);
}

static void svg_release(MapFile *f)
{
    Svg *s = f->state;
    for (int i = 0; s && i < LEVELS; i++)
        buf_free(&s->paths[i]);
    if (s)
        buf_free(&s->out);
}

const MapFormat format_svg = {
    .ending = ".svg",
    .size = svg_size,
    .begin = svg_begin,
    .rows = svg_rows,
    .end = svg_end,
    .release = svg_release,
};
