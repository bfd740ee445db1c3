/* hostile_driver.c - many model files through the program's parts in one process, for
 * tests/test_hostile.py.
 *
 * Standard input: images of files, each after its length as 4 bytes, little-endian. For each one
 * the file FILE is written and opened, and if it opens a prompt is encoded, run and continued by a
 * few tokens. One line for each: "CODE TEXT", CODE being the exit status that ./run would have and
 * TEXT its error line.
 *
 *     hostile_driver FILE
 */
#include "hostile.h"

int main(int argc, char **argv)
{
    unsigned char head[4];
    if (argc != 2) {
        fprintf(stderr, "usage: see the head of tests/hostile_driver.c\n");
        return EXIT_USAGE;
    }
    while (fread(head, 1, 4, stdin) == 4) {
        size_t len = head[0] | (size_t)head[1] << 8 | (size_t)head[2] << 16 | (size_t)head[3] << 24;
        char *image = malloc(len + 1);
        unlink(argv[1]); // a new file is not written to the disk at once, an overwritten one is
        FILE *f = fopen(argv[1], "wb");
        Model m;
        Err e = {0};
        if (!image || !f || fread(image, 1, len, stdin) != len || fwrite(image, 1, len, f) != len
            || fclose(f))
            return EXIT_IO;
        free(image);
        int rc = model_open(&m, argv[1], true, &e);
        if (!rc) {
            rc = hostile_use(&m, &e);
            model_close(&m);
        }
        printf("%d %s\n", rc ? e.code : 0, rc ? e.text : "");
    }
    return 0;
}
