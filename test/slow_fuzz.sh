#!/usr/bin/env bash
# 10,000 damaged model files (or as many as the argument says) opened and used under the address and undefined-behaviour sanitizers.
set -eu
cd "$(dirname "$0")/.."
seeds=$(mktemp -d)
trap 'rm -rf "$seeds"' EXIT
mkdir -p build
python3 test/make_fuzz_seeds.py "$seeds"
parts=$(ls ./*.c | grep -v -e /lingua2 -e /mend)
${CC:-cc} -std=c11 -O1 -g -ffp-contract=off -fno-fast-math -fno-trapping-math -fno-math-errno -fsanitize=address,undefined -fno-sanitize-recover=all -Wall -Wextra -Wpedantic -Wshadow -Wconversion \
    -fopenmp-simd -D_XOPEN_SOURCE=700 -DTESTING -I. test/fuzz_model.c $parts -o build/fuzz_model -lm
build/fuzz_model "$seeds" "${1:-10000}"
