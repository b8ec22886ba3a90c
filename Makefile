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

# A test, a benchmark: includes what it looks into (compiled with TESTING, so without main) and takes what else that needs from the programs' parts.
PARTS_OF = $(PROGRAMS:%=$(B)/%.a)
$(PARTS_OF): $(B)/%.a: $(OWN)
	rm -f $@ && $(AR) rcs $@ $^
$(B)/test_%: test/test_%.c $(wildcard *.c test/*.h) $(PARTS_OF) $(OBJECTS)
	$(CC) $(FLAGS) -DTESTING $(LDFLAGS) $< $(PARTS_OF) $(OBJECTS) -o $@ -lm

$(B):
	mkdir -p $(B)

demo: $(PROGRAMS)
	sh demo/run.sh

test: $(PROGRAMS) $(TESTS)
	python3 test/run.py $(B)

# Side by side with PyTorch, ONNX Runtime and llmlingua; needs the packages of test/requirements.txt in $(PYTHON).
PYTHON = python3
$(B)/%: bench/%.c bench/warm.h $(wildcard *.c) $(PARTS_OF) $(OBJECTS)
	$(CC) $(FLAGS) -DTESTING -Wno-unused-function $(LDFLAGS) $< $(PARTS_OF) $(OBJECTS) -o $@ -lm

bench: $(PROGRAMS) $(B)/forward $(B)/decode $(B)/kernel $(B)/functions
	$(PYTHON) bench/compare.py

# The programs find their models from their own place, so that what was installed may move as a whole; DESTDIR=/somewhere is where a package is put together.
PREFIX  = /usr/local
DESTDIR =
BIN     = $(DESTDIR)$(PREFIX)/bin
SHARE   = $(DESTDIR)$(PREFIX)/share
INSTALL = install
# Manual pages and completions are what the programs say of themselves.
PAGES   = $(foreach p,$(PROGRAMS),$(B)/$(p).1 $(B)/$(p).bash $(B)/_$(p) $(B)/$(p).fish)
$(B)/%.1: %
	./$< help --man >$@
$(B)/%.bash: %
	./$< help --completion bash >$@
$(B)/_%: %
	./$< help --completion zsh >$@
$(B)/%.fish: %
	./$< help --completion fish >$@

install: $(PROGRAMS) $(PAGES)
	$(INSTALL) -d $(BIN) $(SHARE)/lingua2/models $(SHARE)/man/man1 $(SHARE)/bash-completion/completions $(SHARE)/zsh/site-functions $(SHARE)/fish/vendor_completions.d
	$(INSTALL) $(PROGRAMS) $(BIN)
	$(INSTALL) -m 644 $(wildcard models/*.safetensors) models/README.md models/cl100k_base.LICENSE $(SHARE)/lingua2/models
	$(INSTALL) -m 644 $(PROGRAMS:%=$(B)/%.1) $(SHARE)/man/man1
	$(INSTALL) -m 644 $(PROGRAMS:%=$(B)/%.fish) $(SHARE)/fish/vendor_completions.d
	$(INSTALL) -m 644 $(PROGRAMS:%=$(B)/_%) $(SHARE)/zsh/site-functions
	for p in $(PROGRAMS); do $(INSTALL) -m 644 $(B)/$$p.bash $(SHARE)/bash-completion/completions/$$p || exit 1; done

uninstall:
	rm -f $(PROGRAMS:%=$(BIN)/%) $(PROGRAMS:%=$(SHARE)/man/man1/%.1) $(PROGRAMS:%=$(SHARE)/bash-completion/completions/%)
	rm -f $(PROGRAMS:%=$(SHARE)/zsh/site-functions/_%) $(PROGRAMS:%=$(SHARE)/fish/vendor_completions.d/%.fish)
	rm -rf $(SHARE)/lingua2

# Programs that need nothing of the system they run on, not even a libc: musl is inside. It has no OpenMP, so one thread.
# To install them: make install with the same variables.
static:
	rm -f $(PROGRAMS)
	$(MAKE) CC=musl-gcc OPENMP= LDFLAGS=-static B=build/static all

# The pack that a port is checked with, byte for byte as it stands in conformance/.
conformance: $(PROGRAMS)
	python3 test/make_conformance.py

# The files under models/ trained anew by the two programs, to the bit (models/README.md says how long it takes).
models: $(PROGRAMS)
	$(PYTHON) models/make.py models

# docs/RESULTS.md with its experiments.
results: $(PROGRAMS)
	$(PYTHON) models/make.py results

clean:
	rm -rf $(B) $(PROGRAMS)

.DELETE_ON_ERROR:
.PHONY: conformance models results all demo test bench install uninstall static clean
