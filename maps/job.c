/* job.c - one run's maps: the selection, its files and its files of statistics, from the check of
 * the disk to the final names. The rows come from live.c and replay.c. Contracts are in job.h.
 */
#include "maps/job.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

int maps_check_disk(const MapJob *j, bool replay, Err *e)
{
    const Maps *m = &j->maps;
    for (int i = 0; i < m->o.n_files; i++) {
        struct statvfs v;
        struct stat a, b;
        const OutFile *out = &j->files[i].out;
        double need = 0, mine = j->files[i].format->size(m);
        if (!out->temporary || stat(out->temporary, &a) || statvfs(out->temporary, &v))
            continue;
        for (int k = 0; k < m->o.n_files; k++) {
            const char *other = j->files[k].out.temporary;
            if (other && !(replay && j->files[k].live) && !stat(other, &b) && b.st_dev == a.st_dev)
                need += j->files[k].format->size(m);
        }
        double room = (double)v.f_bavail * (double)v.f_frsize;
        if (need <= room)
            continue;
        err_set(e, EXIT_IO,
                "got %.1f MB of maps to write (%.1f MB in all), want at most the "
                "%.1f MB that the disk has; --attn-layers, --attn-heads, --attn-queries, "
                "--attn-reduce%s make them smaller",
                mine / 1e6, need / 1e6, room / 1e6,
                j->files[i].format->takes_top                 ? " or --attn-top"
                : j->files[i].format->takes_f16 && !m->o.half ? " or --attn-dtype f16"
                                                              : "");
        return err_prefix(e, out->path);
    }
    return 0;
}

/* A flag that none of the formats has a use for is refused. */
static int check_flags(const MapJob *j, Err *e)
{
    const MapOptions *o = &j->maps.o;
    bool top = false, f16 = false;
    for (int i = 0; i < o->n_files; i++) {
        top |= j->files[i].format->takes_top;
        f16 |= j->files[i].format->takes_f16;
    }
    if (o->top && !top)
        return err_set(e, EXIT_USAGE, "--attn-top needs a .csv or .jsonl file to write");
    if (o->half && !f16)
        return err_set(e, EXIT_USAGE, "--attn-dtype f16 needs a .npz or .npy file to write");
    return 0;
}

MapJob *maps_open(const MapOptions *o, const Model *model, const char *model_path, int n_prompt,
                  int n, Err *e)
{
    MapJob *j = mem_zalloc(1, sizeof *j);
    MapFile *files = mem_zalloc((size_t)(o->n_files + o->n_routing), sizeof *files);
    OutFile *stats_files = mem_zalloc((size_t)o->n_stats, sizeof *stats_files);
    if (!j || !files || !stats_files) {
        free(j);
        free(files);
        free(stats_files);
        err_set(e, EXIT_MEMORY, "out of memory for attention maps");
        return NULL;
    }
    j->files = files;
    j->n_files = o->n_files + o->n_routing;
    j->stats_files = stats_files;
    j->maps = (Maps){.model = model, .model_path = model_path, .o = *o, .n_prompt = n_prompt};
    j->wants_stats = o->n_stats > 0;
    int rc = o->n_files || o->n_stats ? maps_select(&j->maps, e) : 0;
    if (!rc && o->n_routing)
        rc = routes_init(&j->routes, map_config(&j->maps), e);
    maps_set_text(&j->maps, NULL, n);
    for (int i = 0; !rc && i < o->n_files; i++) {
        rc = mapfile_open(&j->files[i], o->files[i], &j->maps, &j->stats, NULL, e);
        j->wants_stats |= !rc && j->files[i].format->wants_stats;
    }
    for (int i = 0; !rc && i < o->n_routing; i++)
        rc = mapfile_open(&j->files[o->n_files + i], o->routing[i], &j->maps, NULL, &j->routes, e);
    if (!rc)
        rc = check_flags(j, e) || maps_check_disk(j, false, e) ? -1 : 0;
    for (int i = 0; !rc && i < o->n_stats; i++)
        rc = out_open(&j->stats_files[i], o->stats[i], e);
    if (!rc && j->wants_stats)
        rc = stats_init(&j->stats, &j->maps, e);
    if (!rc)
        return j;
    maps_close(j);
    return NULL;
}

/* One file of statistics; its name says in which form. */
static int write_stats(const MapJob *j, OutFile *file, Err *e)
{
    const char *path = file->path;
    Buf out = {0};
    size_t n = strlen(path);
    if (!strcmp(path, "-"))
        stats_table(&j->stats, &out);
    else if (n > 5 && !strcmp(path + n - 5, ".json"))
        stats_json(&j->stats, &out);
    else
        stats_csv(&j->stats, &out);
    int rc = out.failed ? err_set(e, EXIT_MEMORY, "out of memory for the statistics")
           : fwrite(out.ptr, 1, out.len, file->f) != out.len ? out_error(file, e)
                                                             : out_finish(file, e);
    buf_free(&out);
    return rc;
}

int maps_finish(MapJob *j, const int *ids, int n, Err *e)
{
    maps_set_text(&j->maps, ids, n);
    for (int i = 0; i < j->n_files; i++)
        if ((!j->files[i].live && mapfile_routes(&j->files[i], ids, 0, n, e))
            || mapfile_finish(&j->files[i], e))
            return -1;
    for (int i = 0; i < j->maps.o.n_stats; i++)
        if (write_stats(j, &j->stats_files[i], e))
            return -1;
    for (int i = 0; i < j->n_files; i++) // all are complete before one gets its name
        if (mapfile_commit(&j->files[i], e))
            return -1;
    for (int i = 0; i < j->maps.o.n_stats; i++)
        if (out_commit(&j->stats_files[i], e))
            return -1;
    return 0;
}

void maps_close(MapJob *j)
{
    if (!j)
        return;
    for (int i = 0; i < j->n_files; i++)
        mapfile_close(&j->files[i]);
    routes_free(&j->routes);
    for (int i = 0; i < j->maps.o.n_stats; i++)
        out_discard(&j->stats_files[i]);
    stats_free(&j->stats);
    free(j->files);
    free(j->stats_files);
    free(j->maps.layers);
    free(j->maps.heads);
    free(j->maps.sink_mass);
    free(j->heads);
    free(j->live);
    free(j);
}
