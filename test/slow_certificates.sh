#!/usr/bin/env bash
# The certificates of the correctly rounded functions, conformance/functions: every 64th block of 2^23 inputs computed again, or all with the argument `all`
# (a minute or two for each function). To write one anew: build/make_certificates exp > conformance/functions/exp.txt
set -u
cd "$(dirname "$0")/.."
mkdir -p build
step=64 passed=0 failed=0
[ "${1:-}" != all ] || step=1
${CC:-cc} -std=c11 -O3 -ffp-contract=off -fno-trapping-math -fno-math-errno -fopenmp-simd -D_XOPEN_SOURCE=700 -I. test/make_certificates.c crmath.c isa.c -o build/make_certificates -lm || exit 1
for file in conformance/functions/*.txt; do
    name=$(basename "$file" .txt)
    wrong=$(build/make_certificates "$name" $step | grep -v -x -F -f "$file" | tr '\n' ';')
    if [ "$(wc -l <"$file")" = 512 ] && [ -z "$wrong" ]; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "failed: $name: $wrong"; fi
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
