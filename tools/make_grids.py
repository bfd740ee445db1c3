"""Write kernels/grids.h: python tools/make_grids.py > kernels/grids.h

The grids of the tensor types IQ1_S to IQ3_S are read off the `gguf` package, whose numbers are
those of llama.cpp. An entry of 4 or 8 values becomes one number of 16 bits: four or two bits a
value, the first one lowest."""
import sys
from importlib.metadata import version

import numpy as np
from gguf import quants

# IQ1_M has the grid of IQ1_S.
GRIDS = {"iq1": quants.IQ1_S, "iq2_xxs": quants.IQ2_XXS, "iq2_xs": quants.IQ2_XS,
         "iq2_s": quants.IQ2_S, "iq3_xxs": quants.IQ3_XXS, "iq3_s": quants.IQ3_S}
COLUMNS = 100


def numbers(grid):
    grid.init_grid()
    entries = grid.grid.reshape(grid.grid_shape)
    which = np.argmax(entries[..., None] == np.array(grid.grid_map, np.float32), axis=-1)
    assert np.array_equal(np.array(grid.grid_map, np.float32)[which], entries)
    bits = 16 // entries.shape[1]
    assert len(grid.grid_map) <= 1 << bits
    return (which << np.arange(0, 16, bits)).sum(axis=1).tolist()


def main():
    print(f"/* grids.h - made by tools/make_grids.py from gguf {version('gguf')}; do not edit.\n"
          " *\n"
          " * An entry is eight codes of two bits, in iq3_* four of four bits, the first one\n"
          " * lowest; kernels/expand.inc says which values the codes are. */")
    for name, grid in GRIDS.items():
        values = numbers(grid)
        print(f"\nstatic const uint16_t {name}_grid[{len(values)}] = {{")
        line = "   "
        for v in values:
            if len(line) + len(str(v)) + 2 > COLUMNS:
                print(line)
                line = "   "
            line += f" {v},"
        print(line + "\n};")


if __name__ == "__main__":
    sys.exit(main())
