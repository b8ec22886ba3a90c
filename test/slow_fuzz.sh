#!/usr/bin/env bash
# Damaged model files, so many for each program (or as many as the argument says), opened and used under the address and undefined-behaviour sanitizers.
set -eu
cd "$(dirname "$0")/.."
seeds=$(mktemp -d)
trap 'rm -rf "$seeds"' EXIT
mkdir -p build
python3 test/make_fuzz_seeds.py "$seeds"
compile="${CC:-cc} -std=c11 -O1 -g -ffp-contract=off -fno-fast-math -fno-trapping-math -fno-math-errno -fsanitize=address,undefined -fno-sanitize-recover=all -Wall -Wextra -Wpedantic
    -Wshadow -Wconversion -fopenmp-simd -D_XOPEN_SOURCE=700 -DTESTING -I."
for part in $(ls ./*.c | grep -v -e /lingua2 -e /mend); do $compile -c "$part" -o "$seeds/$(basename "$part" .c).o"; done
passed=0 failed=0
for name in model mend; do
    program=$([ $name = mend ] && echo mend || echo lingua2)
    rest=$(ls ./${program}_*.c | grep -v -F -f <(grep -o '[a-z0-9_]*\.c"' test/fuzz_$name.c | tr -d '"')) # what it does not include
    $compile test/fuzz_$name.c $rest "$seeds"/*.o -o build/fuzz_$name -lm
    build/fuzz_$name "$seeds" "${1:-5000}" | tee "$seeds/log" || true
    read -r p f < <(tail -n 1 "$seeds/log" | sed 's/[^0-9]\+/ /g')
    passed=$((passed + p)) failed=$((failed + f))
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
