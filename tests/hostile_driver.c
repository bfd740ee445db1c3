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
    int more;
    if (argc != 2) {
        fprintf(stderr, "usage: see the head of tests/hostile_driver.c\n");
        return EXIT_USAGE;
    }
    while ((more = hostile_next(argv[1])) > 0) {
        Model m;
        Err e = {0};
        int rc = model_open(&m, argv[1], true, &e);
        if (!rc) {
            rc = hostile_use(&m, &e);
            model_close(&m);
        }
        printf("%d %s\n", rc ? e.code : 0, rc ? e.text : "");
    }
    return more ? EXIT_IO : EXIT_OK;
}
