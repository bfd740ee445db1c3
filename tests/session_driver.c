/* session_driver.c - many session files through one model, for tests/test_session_files.py.
 *
 * Standard input: session files, each after its length as 4 bytes, little-endian. Each is written
 * to FILE and loaded, and if it loads a token is run after its text. One line for each: "CODE
 * TEXT", CODE being the exit status that ./run would have and TEXT its error line.
 *
 *     session_driver MODEL FILE
 */
#include "hostile.h"

int main(int argc, char **argv)
{
    int more;
    Model m;
    Err e = {0};
    if (argc != 3 || model_open(&m, argv[1], false, &e)) {
        fprintf(stderr, "session_driver: %s\n", argc == 3 ? e.text : "see the head of its source");
        return EXIT_USAGE;
    }
    while ((more = hostile_next(argv[2])) > 0) {
        e = (Err){0};
        int rc = hostile_load(&m, argv[2], 0, &e);
        printf("%d %s\n", rc ? e.code : 0, rc ? e.text : "");
    }
    model_close(&m);
    return more ? EXIT_IO : EXIT_OK;
}
