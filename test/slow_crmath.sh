#!/usr/bin/env bash
# The correctly rounded functions against MPFR: every 61st of the 2^32 float32 inputs, or all of them with the argument `all` (minutes).
set -eu
cd "$(dirname "$0")/.."
mkdir -p build
${CC:-cc} -std=c11 -O3 -ffp-contract=off -fno-trapping-math -fopenmp -D_XOPEN_SOURCE=700 -I. crmath.c isa.c test/cr_proof.c -o build/cr_proof -lmpfr -lgmp -lm
build/cr_proof "$([ "${1:-}" = all ] && echo 1 || echo 61)"
