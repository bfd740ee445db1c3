/* fuzz_gguf.c - an input is a model file: opened, and if that goes well, used. */
#include "fuzz.h"
#include "hostile.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Model m;
    Err e = {0};
    if (model_open(&m, fuzz_file(data, size), true, &e)) {
        MUST(e.code == EXIT_MODEL || e.code == EXIT_MEMORY);
        return 0;
    }
    if (hostile_use(&m, &e))
        MUST(e.code && *e.text);
    model_close(&m);
    return 0;
}
