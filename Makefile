# make            build ./run (a C compiler and make are all it needs)
# make test       everything: virtual environment, unit tests, end-to-end tests (Python 3.11 or newer)
# make sanitize-test   the C parts again under address and undefined-behaviour sanitizers
# make OMP=0      without OpenMP

CC ?= cc
CFLAGS ?= -O3 -g
BUILD ?= build
RUN ?= run

BASE := -std=c11 -D_DEFAULT_SOURCE -ffp-contract=off -Wall -Wextra -Wshadow -Wvla -MMD -MP $(CFLAGS)
LDLIBS := -lm

# OpenMP is optional: try it once, with this compiler and these flags.
OMP ?= $(shell mkdir -p $(BUILD) && echo '#include <omp.h>' > $(BUILD)/probe.c && echo 'int main(void){return omp_get_max_threads()<1;}' \
	>> $(BUILD)/probe.c && $(CC) $(CFLAGS) -fopenmp $(BUILD)/probe.c -o $(BUILD)/probe $(LDFLAGS) 2>/dev/null && echo 1 || echo 0)
ifeq ($(OMP),1)
BASE += -fopenmp
else
BASE += -Wno-unknown-pragmas
$(info make: building without OpenMP (one thread))
endif

ARCH := $(shell $(CC) -dumpmachine | cut -d- -f1)
KERNELS := kernels.c
ifeq ($(ARCH),x86_64)
KERNELS += kernels_avx2.c kernels_avx512.c
endif
$(BUILD)/kernels_avx2.o: ISA := -mavx2 -mfma -mf16c
$(BUILD)/kernels_avx512.o: ISA := -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512

LIB := util.c gguf.c $(KERNELS) config.c weights.c session.c matmul.c ops.c attention.c forward.c pretokenize.c tokenizer.c \
	json.c sampler.c cpu.c npy.c
LIB_OBJ := $(LIB:%.c=$(BUILD)/%.o)

$(RUN): $(BUILD)/run.o $(BUILD)/options.o $(LIB_OBJ)
	$(CC) $(BASE) $^ -o $@ $(LDFLAGS) $(LDLIBS)

$(BUILD)/%.o: %.c | $(BUILD)
	$(CC) $(BASE) $(ISA) -c $< -o $@

$(BUILD)/%: tests/%.c $(LIB_OBJ) | $(BUILD)
	$(CC) $(BASE) -I. $< $(LIB_OBJ) -o $@ $(LDFLAGS) $(LDLIBS)

$(BUILD):
	mkdir -p $@

clean:
	rm -rf build build-* run

.PHONY: clean
-include $(wildcard $(BUILD)/*.d)
