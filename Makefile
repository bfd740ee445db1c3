# make            build ./run with a C compiler; V=1 shows the commands, OMP=0 is without OpenMP
# make check      build, unit tests and a smoke run: under a minute on a quiet machine
# make test       everything; it makes a virtual environment with Python 3.11 or newer
# make arm-test   the program for AArch64 under qemu
# make sanitize-test   the C parts under address and undefined-behaviour sanitizers
# make tsan       the team of threads, and each mode that has one, under the thread sanitizer
# make fuzz       damaged inputs to every reader, a minute each: make fuzz SECONDS=900 FUZZ=json
# make debug      ./run-debug without optimisation, for a debugger
# make format     lay out the C sources as .clang-format says
# make bench      speed of the machine, the kernels and models: make bench MODEL="a.gguf b.gguf"
# make install    as `attn`, with man page and completions: make install PREFIX=/usr/local DESTDIR=
# make uninstall  remove what make install installed
# make clean      remove what was built

CC ?= cc
CFLAGS ?= -O3 -g
BUILD ?= build
RUN ?= run

BASE := -std=c11 -D_DEFAULT_SOURCE -ffp-contract=off -Wall -Wextra -Wshadow -Wvla -MMD -MP $(CFLAGS)
LDLIBS := -lm

# OpenMP is optional: whether this compiler, with these flags, makes a program with it.
probe_omp = mkdir -p $(BUILD) \
	&& printf '\043include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n' \
	| $(1) -fopenmp -x c - -o $(BUILD)/probe $(LDFLAGS) 2> /dev/null
OMP ?= $(shell $(call probe_omp,$(CC) $(CFLAGS)) && echo 1 || echo 0)
ifeq ($(OMP),1)
BASE += -fopenmp
else
$(info make: building without OpenMP (one thread))
endif

# Every room's files, but of kernels/ only those for this kind of processor.
ROOMS := base text engine generate maps modes
ARCH := $(shell $(CC) -dumpmachine | cut -d- -f1)
KERNELS := select portable
ifeq ($(ARCH),x86_64)
KERNELS += avx2 avx512
ifeq ($(shell echo | $(CC) -mavx512bf16 -E - > /dev/null 2>&1 && echo 1),1) # GCC 10, clang 9
KERNELS += bf16
$(BUILD)/kernels/select.o: BASE += -DHAVE_BF16
endif
else ifeq ($(ARCH),aarch64)
KERNELS += neon dotprod
endif
AVX512 := -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni \
	-mprefer-vector-width=512
$(BUILD)/kernels/avx2.o: ISA := -mavx2 -mfma -mf16c
$(BUILD)/kernels/avx512.o: ISA := $(AVX512)
$(BUILD)/kernels/bf16.o: ISA := $(AVX512) -mavx512bf16
$(BUILD)/kernels/dotprod.o: ISA := -march=armv8.2-a+dotprod
# Nobody reads floating-point exceptions. Without regard to them compilers turn choices into vector
# operations.
$(BUILD)/kernels/%.o: BASE += -fno-trapping-math -fno-math-errno
# What only the tables of vector instructions are built with.
$(filter-out %/portable.o,$(KERNELS:%=$(BUILD)/kernels/%.o)): BASE += $(VECTOR)

LIB := tokenizer.c $(wildcard $(ROOMS:%=%/*.c)) $(KERNELS:%=kernels/%.c)
LIB_OBJ := $(LIB:%.c=$(BUILD)/%.o)

# Commands are shown with V=1, else in short.
say = $(if $(V),,@echo "$(1) $(2)";)

$(RUN): $(BUILD)/run.o $(LIB_OBJ)
	$(call say,LD,$@)$(CC) $(BASE) $^ -o $@ $(LDFLAGS) $(LDLIBS)

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(call say,CC,$<)$(CC) $(BASE) -I. $(ISA) -c $< -o $@

# The page as C strings, one a line.
$(BUILD)/viewer.inc: maps/viewer.html
	@mkdir -p $(@D)
	$(call say,GEN,$@)sed 's/\\/\\\\/g; s/"/\\"/g; s/^/"/; s/$$/\\n",/' $< > $@
$(BUILD)/maps/html.o: ISA := -I$(BUILD)
$(BUILD)/maps/html.o: $(BUILD)/viewer.inc

$(BUILD)/%: tests/%.c $(LIB_OBJ)
	$(call say,CC,$<)$(CC) $(BASE) -I. $< $(LIB_OBJ) -o $@ $(LDFLAGS) $(LDLIBS)

$(BUILD)/%: models/%.c $(LIB_OBJ)
	$(call say,CC,$<)$(CC) $(BASE) -I. $< $(LIB_OBJ) -o $@ $(LDFLAGS) $(LDLIBS)

$(BUILD)/%_bench: bench/%.c $(LIB_OBJ)
	$(call say,CC,$<)$(CC) $(BASE) -I. $< $(LIB_OBJ) -o $@ $(LDFLAGS) $(LDLIBS)

# For LD_PRELOAD.
$(BUILD)/%.so: tests/%.c
	@mkdir -p $(@D)
	$(call say,CC,$<)$(CC) -O1 -g -Wall -Wextra -shared -fPIC $< -o $@ -ldl

# ---- install -------------------------------------------------------------------------------------

PREFIX ?= /usr/local
ATTN := $(DESTDIR)$(PREFIX)/bin/attn
SHARE := $(DESTDIR)$(PREFIX)/share
MAN := $(SHARE)/man/man1/attn.1
BASH := $(SHARE)/bash-completion/completions/attn
ZSH := $(SHARE)/zsh/site-functions/_attn
FISH := $(SHARE)/fish/vendor_completions.d/attn.fish

# The program prints the texts, under the name that it has there.
install: $(RUN)
	install -D $(RUN) "$(ATTN)"
	install -Dm644 /dev/null "$(MAN)" && "$(ATTN)" --man > "$(MAN)"
	install -Dm644 /dev/null "$(BASH)" && "$(ATTN)" --completion bash > "$(BASH)"
	install -Dm644 /dev/null "$(ZSH)" && "$(ATTN)" --completion zsh > "$(ZSH)"
	install -Dm644 /dev/null "$(FISH)" && "$(ATTN)" --completion fish > "$(FISH)"

uninstall:
	rm -f "$(ATTN)" "$(MAN)" "$(BASH)" "$(ZSH)" "$(FISH)"

# ---- bench ---------------------------------------------------------------------------------------

MODEL ?= models/tales.bin

bench: $(BUILD)/kernels_bench
	$< $(MODEL)

# ---- tests ---------------------------------------------------------------------------------------

PYTHON ?= python3
VENV := .venv
UNIT := $(patsubst tests/%.c,%,$(wildcard tests/test_*.c))
DRIVERS := $(patsubst tests/%.c,$(BUILD)/%,$(wildcard tests/*_driver.c)) $(BUILD)/synthesise
SANITIZE := BUILD=build-sanitize RUN=build-sanitize/run OMP=0 \
	CFLAGS="-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"

# torch comes first: its CPU build then satisfies what the rest asks for.
$(VENV)/done: requirements.txt requirements-test.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check $$(grep ^torch== requirements.txt)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements-test.txt
	touch $@

test: $(VENV)/done variants unit-test arm-test sanitize-test tsan fuzz-test $(RUN) $(DRIVERS)
	$(VENV)/bin/python -m pytest -q -rs tests

unit-test: $(UNIT:%=$(BUILD)/%)
	@for t in $^; do $$t || exit 1; done

# test_session alone takes longer than all the rest: of it one table with half of its variants.
check: $(RUN) $(UNIT:%=$(BUILD)/%)
	@for t in $(filter-out test_session,$(UNIT)); do $(BUILD)/$$t || exit 1; done
	@$(BUILD)/test_session scalar 0
	@./$(RUN) models/tales.bin -i "Once upon a time" -s 33 -n 20 \
		| grep -q "there lived a little rabbit" && echo "smoke run: as expected"

debug:
	@$(MAKE) --no-print-directory BUILD=build-debug RUN=run-debug CFLAGS="-O0 -g3" run-debug

# All but generated tables.
format: $(VENV)/done
	$(VENV)/bin/clang-format -i \
		$(filter-out build% text/unicode_tables.h kernels/grids.h,\
			$(wildcard *.[ch] */*.[ch] */*.inc))

help:
	@sed -n 's/^# \(make.*\)/\1/p' Makefile

# Say what is left out and why. Under CI, which must have everything, it is a failure.
left_out = { echo "make: left out: $(1)"; test -z "$$CI"; }

ARM_CC := aarch64-linux-gnu-gcc
arm-test: $(RUN)
	@if command -v $(ARM_CC) > /dev/null && command -v qemu-aarch64 > /dev/null; then \
		$(MAKE) --no-print-directory CC=$(ARM_CC) BUILD=build-arm RUN=build-arm/run \
			CFLAGS="-O3 -Werror" build-arm/run $(UNIT:%=build-arm/%) > /dev/null \
		&& tests/arm.sh; \
	else $(call left_out,arm-test (it needs $(ARM_CC) and qemu-aarch64)); fi

# pytest runs the hostile inputs against build-sanitize/run as well.
sanitize-test:
	$(MAKE) $(SANITIZE) build-sanitize/run $(DRIVERS:$(BUILD)/%=build-sanitize/%) unit-test

# With clang, whose OpenMP tells the sanitizer what waits for what (Archer, a part of it).
TSAN := CC=clang OMP=1 BUILD=build-tsan RUN=build-tsan/run CFLAGS="-O1 -g -fsanitize=thread"
RUN_TSAN := env TSAN_OPTIONS="ignore_noninstrumented_modules=1 halt_on_error=1" build-tsan
TSAN_RUNS := '-f tests/passage.txt -c 800 -n 0 --kv q8' '--perplexity tests/passage.txt' \
	'-i Once -n 16 --dump-attn build-tsan/x.npz --dump-attn build-tsan/x.jsonl' \
	'--bench --pp 70 --tg 3 --runs 1' '--quantize q4_k_m -o build-tsan/x.gguf' \
	'--lines tests/passage.txt -c 800 -n 9' '--score --lines tests/passage.txt -c 800'
tsan:
	@if { $(call probe_omp,clang -fsanitize=thread); } 2> /dev/null; then \
		$(MAKE) --no-print-directory $(TSAN) build-tsan/run build-tsan/test_threads > /dev/null \
		&& $(RUN_TSAN)/test_threads && for flags in $(TSAN_RUNS); do \
			$(RUN_TSAN)/run models/tales.bin -t 3 $$flags > /dev/null || exit 1; done; \
	else $(call left_out,tsan (it needs clang with OpenMP and the thread sanitizer)); fi

# libFuzzer's targets, tests/fuzz_NAME.c, each from its own corpus; an input that fails is named in
# the last lines. Kernels are the portable ones: the sanitizers take minutes to compile the others.
FUZZ := $(patsubst tests/fuzz_%.c,%,$(wildcard tests/fuzz_*.c))
SECONDS ?= 60
FUZZ_BUILD := CC=clang OMP=0 BUILD=build-fuzz VECTOR=-fno-sanitize=all LDFLAGS=-fsanitize=fuzzer \
	CFLAGS="-O1 -g -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all"
FUZZ_FLAGS := -rss_limit_mb=2048 -timeout=20 -verbosity=0 -print_final_stats=1
# New inputs of interest go to build-fuzz/$(1)/NAME; $(2): flags that say how long.
fuzz_each = for t in $(FUZZ); do echo "fuzz $$t" && mkdir -p build-fuzz/$(1)/$$t \
	&& RUN_CPU=scalar build-fuzz/fuzz_$$t $(FUZZ_FLAGS) -artifact_prefix=build-fuzz/$$t- $(2) \
		build-fuzz/$(1)/$$t build-fuzz/seeds/$$t || exit 1; done
fuzz: $(VENV)/done
	@$(MAKE) --no-print-directory fuzz-build
	@$(call fuzz_each,found,-max_total_time=$(SECONDS))

fuzz-build:
	@$(MAKE) --no-print-directory $(FUZZ_BUILD) $(FUZZ:%=build-fuzz/fuzz_%) > /dev/null
	@$(VENV)/bin/python tests/fuzz_corpus.py build-fuzz/seeds

# A few thousand executions of each.
fuzz-test: $(VENV)/done
	@mkdir -p build; if echo 'int LLVMFuzzerTestOneInput(void *p, long n) { return !p && n; }' \
		| clang -fsanitize=fuzzer,address -x c - -o build/probe 2> /dev/null; then \
		$(MAKE) --no-print-directory fuzz-build && rm -rf build-fuzz/test \
		&& { ($(call fuzz_each,test,-seed=1 -runs=4000)) > build-fuzz/log 2>&1 \
			|| { cat build-fuzz/log; exit 1; }; }; \
	else $(call left_out,fuzz-test (it needs clang with libFuzzer)); fi

# Every compiler that is here, with and without OpenMP: no warnings.
variants:
	@for cc in gcc clang; do for omp in 0 1; do \
		if ! command -v $$cc > /dev/null; then \
			$(call left_out,the build with $$cc and OMP=$$omp (there is no $$cc)) || exit 1; \
			continue; fi; \
		if [ $$omp = 1 ] && ! { $(call probe_omp,$$cc); }; then \
			$(call left_out,the build with $$cc and OMP=1 (no libgomp or libomp-dev)) || exit 1; \
			continue; fi; \
		$(MAKE) --no-print-directory CC=$$cc OMP=$$omp BUILD=build-$$cc-$$omp \
			RUN=build-$$cc-$$omp/run CFLAGS="-O1 -Werror" > /dev/null \
		|| { echo "make: warnings or errors with $$cc, OMP=$$omp"; exit 1; }; done; done

clean:
	rm -rf build build-* run run-debug

.PHONY: install uninstall bench test check unit-test arm-test sanitize-test tsan fuzz \
	fuzz-build fuzz-test variants debug format help clean
-include $(wildcard $(BUILD)/*.d $(BUILD)/*/*.d)
