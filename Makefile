# MEND and LLMLingua-2 in plain C. `make demo` builds and compresses a transcript; `make test` runs the tests.
# As a packager would: make CC=clang OPT='-O2 -march=x86-64-v3' OPENMP=

CC     = cc
OPT    = -O3
# The numbers depend on these: ISO C, no contraction of a*b+c, never -ffast-math (tensor.c refuses to compile with it).
NUMERIC = -std=c11 -ffp-contract=off -fno-fast-math
# No bit depends on these: we read no exception flags and no errno of sqrt, which lets the compiler make vectors of comparisons.
NUMERIC += -fno-trapping-math -fno-math-errno
# On s390x gcc in ISO mode computes float in double, by an old custom; this makes float float again, as it is everywhere else.
MACHINE := $(shell $(CC) -dumpmachine 2>/dev/null)
NUMERIC += $(if $(filter s390%,$(MACHINE)),-fexcess-precision=fast)
WARN   = -Wall -Wextra -Wpedantic -Wshadow -Wconversion
# Threads, if the compiler has OpenMP; -fopenmp-simd alone (no library) if not. `make OPENMP=` builds without threads.
OPENMP := $(shell printf 'int main(void){return 0;}' | $(CC) -fopenmp -x c - -o /dev/null 2>/dev/null && echo -fopenmp)
SIMD   = $(if $(OPENMP),$(OPENMP),-fopenmp-simd)
CFLAGS =
LDFLAGS =
B      = build
FLAGS  = $(NUMERIC) $(OPT) $(WARN) $(SIMD) -D_XOPEN_SOURCE=700 -I. $(CFLAGS)

PROGRAMS = lingua2 mend
# lingua2_*.c are parts of lingua2, mend_*.c of mend; every other C file at the top is part of both.
PARTS   := $(filter-out $(PROGRAMS:%=%.c) $(wildcard $(PROGRAMS:%=%_*.c)),$(wildcard *.c))
OBJECTS  = $(PARTS:%.c=$(B)/%.o)
OWN      = $$(addprefix $(B)/,$$(subst .c,.o,$$(wildcard $$*_*.c)))
TESTS    = $(patsubst test/%.c,$(B)/%,$(wildcard test/test_*.c))

all: $(PROGRAMS)

.SECONDEXPANSION:
$(PROGRAMS): %: $(B)/%.o $(OWN) $(OBJECTS)
	$(CC) $(FLAGS) $(LDFLAGS) $^ -o $@ -lm

$(B)/%.o: %.c $(wildcard *.h) Makefile | $(B)
	$(CC) $(FLAGS) -c $< -o $@

# A test includes the program it tests (compiled with TESTING, so without its main) and links the rest of it, or links the parts alone.
$(B)/test_%: test/test_%.c $(wildcard test/*.h) $(OWN) $(OBJECTS) $(PROGRAMS:%=%.c)
	$(CC) $(FLAGS) -DTESTING $(LDFLAGS) $(filter-out $(PROGRAMS:%=%.c),$(filter %.c %.o,$^)) -o $@ -lm

$(B):
	mkdir -p $(B)

demo: $(PROGRAMS)
	sh demo/run.sh

test: $(PROGRAMS) $(TESTS)
	python3 test/run.py $(B)

# Side by side with PyTorch, ONNX Runtime and llmlingua; needs the packages of test/requirements.txt in $(PYTHON).
PYTHON = python3
$(B)/%: bench/%.c $(OBJECTS) lingua2.c mend.c
	$(CC) $(FLAGS) -Wno-unused-function $(LDFLAGS) $< $(OBJECTS) -o $@ -lm

bench: $(PROGRAMS) $(B)/forward $(B)/decode $(B)/kernel $(B)/functions
	$(PYTHON) bench/compare.py

clean:
	rm -rf $(B) $(PROGRAMS)

.PHONY: all demo test bench clean
