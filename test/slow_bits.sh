#!/usr/bin/env bash
# The same bits from every compiler, optimisation level and processor at hand: builds test_bits and lingua2 with each and compares what they print.
# usage: slow_bits.sh [NAME...]      only these builds, beside the first
# A compiler or emulator that is not installed is a line "skipped: ...". Outputs lie under build/bits/NAME/.
set -u
cd "$(dirname "$0")/.."
ROOT=$PWD OUT=build/bits
NUMERIC="-std=c11 -ffp-contract=off -fno-fast-math -fno-trapping-math -fno-math-errno -D_XOPEN_SOURCE=700"
SOURCES=$(ls ./*.c | grep -v -e /lingua2 -e /mend)
only=${*:-all}
passed=0 failed=0 skipped=0

pass() { passed=$((passed + 1)); }
fail() { failed=$((failed + 1)); echo "failed: $*"; }
skip() { skipped=$((skipped + 1)); echo "skipped: $*"; }

# compile NAME COMPILER FLAGS: the parts, then build/bits/NAME/test_bits and build/bits/NAME/lingua2.
compile() {
    local dir=$OUT/$1 cc=$2 flags="$3 -I$ROOT" objects="" c
    mkdir -p "$dir" && ln -sfn "$ROOT/models" "$dir/models"
    for c in $SOURCES; do
        $cc $flags -c "$c" -o "$dir/$(basename "$c" .c).o" || return
        objects="$objects $dir/$(basename "$c" .c).o"
    done
    $cc $flags lingua2*.c $objects -o "$dir/lingua2" -lm && $cc $flags test/test_bits.c $objects -o "$dir/test_bits" -lm
}

# observe NAME EMULATOR: all that one build says, in one file. The program runs on one and on three threads; an emulator on one alone.
observe() {
    local dir=$OUT/$1 emulator=$2 math threads
    $emulator "$dir/test_bits" || return
    for math in fast reference; do
        for threads in 1 3; do
            [ -n "$emulator" ] && [ "$threads" != 1 ] && continue
            $emulator "$dir/lingua2" compress --compat --json --math $math --threads $threads $OUT/text >"$dir/compress.$math.$threads" || return
            $emulator "$dir/lingua2" classify --json --math $math --threads $threads $OUT/text >"$dir/classify.$math.$threads" || return
        done
    done
}

# build NAME COMPILER FLAGS [EMULATOR]
build() {
    local name=$1 start=$SECONDS emulator=${4:-} state=compile
    mkdir -p "$OUT/$name"
    if compile "$name" "$2" "$3" >"$OUT/$name/compile.log" 2>&1; then
        "$OUT/$name/test_bits" plain >/dev/null 2>&1 && emulator="" # an x86-64 kernel runs i686 as it is
        state=run
        observe "$name" "$emulator" >"$OUT/$name/run.log" 2>&1 && state=done
    fi
    echo $state >"$OUT/$name/state"
    echo "$((SECONDS - start))" >"$OUT/$name/seconds"
}

# want NAME COMPILER FLAGS [EMULATOR]: build it if its tools are there, two builds at a time.
names=""
want() {
    local tool
    case " $first $only " in *" $1 "* | *" all "*) ;; *) return ;; esac
    for tool in "$2" ${4:-}; do
        command -v "$tool" >/dev/null || { skip "$1: no $tool"; return; }
    done
    [ "$(jobs -rp | wc -l)" -lt 2 ] || wait -n
    names="$names $1"
    build "$@" &
}

# judge NAME: every check of test_bits passed (its own hash among them) and every result of the program is that of the first build.
judge() {
    local name=$1 dir=$OUT/$1 hash file
    if [ "$(cat "$dir/state")" != "done" ]; then
        fail "$name: $(cat "$dir/state") failed"
        tail -n 5 "$dir/compile.log" "$dir/run.log" 2>/dev/null | sed 's/^/    /'
        return
    fi
    hash=$(sed -n 's/^hash //p' "$dir/run.log")
    if [ "$hash" = "$(sed -n 's/^hash //p' "$OUT/$first/run.log")" ] && [ -n "$hash" ]; then pass; else fail "$name: test_bits: hash $hash"; fi
    for file in "$dir"/compress.* "$dir"/classify.*; do
        if cmp "$file" "$OUT/$first/$(basename "${file%.*}").1"; then pass; else fail "$name: $(basename "$file") differs from that of $first"; fi
    done
    printf '%-16s hash %s, classify %s %s  %4d s\n' "$name" "$hash" "$(cksum <"$dir/classify.fast.1" | cut -d' ' -f1)" \
        "$(cksum <"$dir/classify.reference.1" | cut -d' ' -f1)" "$(cat "$dir/seconds")"
}

# refused NAME WORD COMPILER FLAGS: a build that would change bits must not compile, and must say why.
refused() {
    command -v "$3" >/dev/null || { skip "$1: no $3"; return; }
    if $3 $4 -I. -c tensor.c -o "$OUT/refused.o" 2>"$OUT/refused.log"; then fail "$1 compiles"
    elif grep -q -e "$2" "$OUT/refused.log"; then pass
    else fail "$1 does not compile, but not for its arithmetic: $(head -n 1 "$OUT/refused.log")"; fi
}

rm -rf "$OUT" && mkdir -p "$OUT"
head -n 3 demo/transcript.txt | cut -c1-120 >"$OUT/text" # short: an emulator needs up to a second a word

omp=-fopenmp simd=-fopenmp-simd first=gcc-O3
want gcc-O3 gcc "$NUMERIC -O3 $omp"
want s390x s390x-linux-gnu-gcc "$NUMERIC -O2 $omp -static -fexcess-precision=fast" qemu-s390x
want aarch64 aarch64-linux-gnu-gcc "$NUMERIC -O2 $omp -static" qemu-aarch64
want i686 i686-linux-gnu-gcc "$NUMERIC -O2 $omp -static -msse2 -mfpmath=sse" qemu-i386
want gcc-O0 gcc "$NUMERIC -O0 $omp"
want gcc-O1 gcc "$NUMERIC -O1 $omp"
want gcc-O2 gcc "$NUMERIC -O2 $omp"
want gcc-O3-serial gcc "$NUMERIC -O3 $simd"
want gcc-O2-plain gcc "-std=c11 -ffp-contract=off -D_XOPEN_SOURCE=700 -O2"
want clang-O0 clang "$NUMERIC -O0 $omp"
want clang-O2 clang "$NUMERIC -O2 $omp"
want clang-O3 clang "$NUMERIC -O3 $omp"
want clang-O3-serial clang "$NUMERIC -O3 $simd"
if grep -q -w avx2 /proc/cpuinfo 2>/dev/null; then
    want gcc-O3-v3 gcc "$NUMERIC -O3 $omp -march=x86-64-v3"
    want clang-O2-v3 clang "$NUMERIC -O2 $omp -march=x86-64-v3"
else skip "x86-64-v3: this processor has no AVX2"; fi
want musl-O2 musl-gcc "$NUMERIC -O2 $simd -static"
want tcc tcc "-std=c11 -D_XOPEN_SOURCE=700"
wait
if [ -e "$OUT/$first/run.log" ]; then
    for name in $names; do judge "$name"; done
else fail "no gcc: nothing to compare with"; fi
refused "gcc -Ofast" ffast-math gcc "-std=c11 -Ofast -D_XOPEN_SOURCE=700"
refused "clang -ffast-math" ffast-math clang "-std=c11 -O2 -ffast-math -D_XOPEN_SOURCE=700"
refused "s390x in ISO mode" excess-precision=fast s390x-linux-gnu-gcc "-std=c11 -O2 -D_XOPEN_SOURCE=700"
refused "i686 with x87" mfpmath=sse i686-linux-gnu-gcc "-std=c11 -O2 -mfpmath=387 -D_XOPEN_SOURCE=700"

echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
