/* session_driver.c - many session files through one model, for tests/test_session_files.py.
 *
 * Standard input: session files, each after its length as 4 bytes, little-endian. Each is written
 * to FILE and loaded, and if it loads a token is run after its text. One line for each: "CODE
 * TEXT", the exit status that ./run would have and its error line.
 *
 *     session_driver MODEL FILE
 */
#include <stdlib.h>
#include <string.h>

#include "engine/session_file.h"

static int use(const Model *m, SessionParams p, const char *path, Err *e)
{
    SessionFile f;
    Session s = {0};
    int id = 3;
    if (session_file_open(&f, path, m, &p, e))
        return -1;
    p.seq_len = (int)f.header.n_ids + 1;
    int rc = session_init(&s, &m->decoder, &p, e);
    if (!rc) {
        session_file_attach(&f, &s);
        rc = forward_span(&s, &(Span){.n = 1, .tokens = &id}, e) < 0 ? -1 : 0;
    }
    session_free(&s);
    session_file_close(&f);
    return rc;
}

int main(int argc, char **argv)
{
    unsigned char head[4];
    Model m;
    Err e = {0};
    Threads threads;
    SessionParams p = {.n_seqs = 1,
                       .max_batch = 1,
                       .max_logits = 1,
                       .threads = &threads,
                       .kernels = kernels_select(NULL, &e)};
    threads_init(&threads, 1, NULL);
    if (argc != 3 || model_open(&m, argv[1], false, &e))
        return EXIT_USAGE;
    while (fread(head, 1, 4, stdin) == 4) {
        size_t len = head[0] | (size_t)head[1] << 8 | (size_t)head[2] << 16 | (size_t)head[3] << 24;
        char *bytes = malloc(len + 1);
        FILE *out = fopen(argv[2], "wb");
        if (!bytes || !out || fread(bytes, 1, len, stdin) != len
            || fwrite(bytes, 1, len, out) != len || fclose(out))
            return EXIT_IO;
        e = (Err){0};
        int rc = use(&m, p, argv[2], &e);
        printf("%d %s\n", rc ? e.code : 0, rc ? e.text : "");
        free(bytes);
    }
    threads_free(&threads);
    model_close(&m);
    return EXIT_OK;
}
