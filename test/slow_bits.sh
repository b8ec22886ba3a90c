#!/usr/bin/env bash
# The same bits from every compiler, optimisation level, processor, byte order and system at hand: builds both programs with each, runs them (under an
# emulator, or in Node), and compares: the manifests of the conformance pack, test_bits, a text compressed with the embedded model in both modes, and with some of them the weights after 50 training steps.
# usage: slow_bits.sh [NAME...]      only these builds, beside the first
# A compiler or emulator that is not installed is a line "skipped: ...". Outputs lie under build/bits/NAME/.
set -u
cd "$(dirname "$0")/.."
ROOT=$PWD OUT=build/bits
STRICT="-std=c11 -ffp-contract=off -D_XOPEN_SOURCE=700"
NUMERIC="$STRICT -fno-fast-math -fno-trapping-math -fno-math-errno"
only=${*:-all}
passed=0 failed=0 skipped=0

pass() { passed=$((passed + 1)); }
fail() { failed=$((failed + 1)); echo "failed: $*"; }
skip() { skipped=$((skipped + 1)); echo "skipped: $*"; }

# compile NAME COMPILER FLAGS LIBRARIES: all parts, then lingua2, mend and (where nothing stands in for POSIX) test_bits.
compile() {
    local dir=$OUT/$1 cc=$2 flags="$3 -I$ROOT" libraries=$4 parts="" c
    mkdir -p "$dir" && ln -sfn "$ROOT/models" "$dir/models"
    for c in *.c; do
        $cc $flags -c "$c" -o "$dir/${c%.c}.o" || return
        case $c in lingua2* | mend*) ;; *) parts="$parts $dir/${c%.c}.o" ;; esac
    done
    for c in lingua2 mend; do $cc $flags "$dir/$c"*.o $parts -o "$dir/$c" $libraries || return; done
    $cc $flags test/test_bits.c $parts -o "$dir/test_bits" $libraries || return
    case $1 in gcc-O0 | clang-O2 | aarch64 | s390x) $cc $flags -DTESTING test/test_training.c "$dir"/mend_*.o $parts -o "$dir/test_training" $libraries ;; esac
}

# observe NAME EMULATOR: what one build says, in files.
observe() {
    local dir=$OUT/$1 emulator=$2 name program rest
    while read -r name program rest; do
        $emulator "$dir/$program" $rest --threads 1 --hash-only -o "$dir/$name" || return
    done <$OUT/runs
    cat "$dir"/*.taps | sha256sum | cut -c1-16 >"$dir/manifests"
    $emulator "$dir/test_bits" || return
    [ ! -e "$dir/test_training" ] || $emulator "$dir/test_training" || return
    case $1 in wasm) return ;; esac
    $emulator "$dir/lingua2" compress --compat --json --threads 1 $OUT/text >"$dir/compressed" && $emulator "$dir/lingua2" compress --json --return-word-label --threads 1 $OUT/text >>"$dir/compressed"
}

# build NAME COMPILER FLAGS EMULATOR LIBRARIES
build() {
    local name=$1 start=$SECONDS emulator=$4 state=compile
    mkdir -p "$OUT/$name"
    if compile "$name" "$2" "$3" "$5" >"$OUT/$name/compile.log" 2>&1; then
        state=run
        "$OUT/$name/test_bits" plain >/dev/null 2>&1 && emulator="" # an x86-64 kernel runs i686 as it is
        case $name in
        windows*) state=linked ;;
        *) observe "$name" "$emulator" >"$OUT/$name/run.log" 2>&1 && state=done ;;
        esac
    fi
    echo $state >"$OUT/$name/state"
    echo "$((SECONDS - start))" >"$OUT/$name/seconds"
}

# want NAME COMPILER FLAGS [EMULATOR [LIBRARIES]]: build it if its tools are there, two builds at a time.
names=""
want() {
    local tool
    case " $first $only " in *" $1 "* | *" all "*) ;; *) return ;; esac
    for tool in "$2" ${4:+"${4%% *}"}; do
        command -v "$tool" >/dev/null || { skip "$1: no $tool"; return; }
    done
    [ "$(jobs -rp | wc -l)" -lt 2 ] || wait -n
    names="$names $1"
    build "$1" "$2" "$3" "${4:-}" "${5:--lm}" &
}

# same NAME FILE: what a build wrote is what the first build wrote.
same() {
    if cmp "$OUT/$1/$2" "$OUT/$first/$2"; then pass; else fail "$1: $2 differs from that of $first"; fi
}

judge() {
    local name=$1 dir=$OUT/$1 state hash
    state=$(cat "$dir/state")
    if [ "$state" = linked ]; then
        pass
        printf '%-16s compiled and linked; not run  %4d s\n' "$name" "$(cat "$dir/seconds")"
        return
    elif [ "$state" != "done" ]; then
        fail "$name: $state failed"
        tail -n 5 "$dir/compile.log" "$dir/run.log" 2>/dev/null | sed 's/^/    /'
        return
    fi
    hash=$(sed -n 's/^hash //p' "$dir/run.log")
    if [ "$hash" = "$(sed -n 's/^hash //p' "$OUT/$first/run.log")" ] && [ -n "$hash" ]; then pass; else fail "$name: test_bits: hash $hash"; fi
    same "$name" manifests
    [ ! -e "$dir/compressed" ] || same "$name" compressed
    printf '%-16s manifests %s  test_bits %s  %4d s\n' "$name" "$(cat "$dir/manifests")" "$hash" "$(cat "$dir/seconds")"
}

# refused NAME WORD COMPILER FLAGS: a build that would change bits must not compile, and must say why.
refused() {
    command -v "$3" >/dev/null || { skip "$1: no $3"; return; }
    if $3 $4 -I. -c tensor.c -o "$OUT/refused.o" 2>"$OUT/refused.log"; then fail "$1 compiles"
    elif grep -q -e "$2" "$OUT/refused.log"; then pass
    else fail "$1 does not compile, but not for its arithmetic: $(head -n 1 "$OUT/refused.log")"; fi
}

rm -rf "$OUT" && mkdir -p "$OUT"
head -n 1 demo/transcript.txt | cut -c1-40 >"$OUT/text" # short: an emulator needs up to a second a word
python3 test/make_conformance.py --commands >"$OUT/runs"

omp=-fopenmp simd=-fopenmp-simd first=gcc-O3
wasi="-D_WASI_EMULATED_MMAN -D_WASI_EMULATED_SIGNAL -D_WASI_EMULATED_GETPID -D_WASI_EMULATED_PROCESS_CLOCKS"
want gcc-O3 gcc "$NUMERIC -O3 $omp"
want s390x s390x-linux-gnu-gcc "$NUMERIC -O1 $simd -static -fexcess-precision=fast" qemu-s390x
want aarch64 aarch64-linux-gnu-gcc "$NUMERIC -O1 $simd -static" qemu-aarch64
want armhf arm-linux-gnueabihf-gcc "$NUMERIC -O1 $simd -static" qemu-arm
want riscv64 riscv64-linux-gnu-gcc "$NUMERIC -O1 $simd -static" qemu-riscv64
want powerpc64le powerpc64le-linux-gnu-gcc "$NUMERIC -O1 $simd -static" qemu-ppc64le
want i686 i686-linux-gnu-gcc "$NUMERIC -O1 $simd -static -msse2 -mfpmath=sse" qemu-i386
want wasm clang "--target=wasm32-wasi $NUMERIC -O2 $simd $wasi" "node --no-warnings test/wasi.js" "-lm -lwasi-emulated-mman -lwasi-emulated-signal -lwasi-emulated-getpid -lwasi-emulated-process-clocks"
want windows x86_64-w64-mingw32-gcc "$NUMERIC -O1 $simd" "" "-lpthread -lm"
want gcc-O0 gcc "$NUMERIC -O0 $simd"
want gcc-O2-plain gcc "$STRICT -O2"
want clang-O0 clang "$NUMERIC -O0 $simd"
want clang-O2 clang "$NUMERIC -O2 $omp"
if grep -q -w avx2 /proc/cpuinfo 2>/dev/null; then
    want gcc-O2-v3 gcc "$NUMERIC -O2 $simd -march=x86-64-v3"
    want clang-O2-v3 clang "$NUMERIC -O2 $simd -march=x86-64-v3"
else skip "x86-64-v3: this processor has no AVX2"; fi
if grep -q -w avx512vl /proc/cpuinfo 2>/dev/null; then want gcc-O2-v4 gcc "$NUMERIC -O2 $simd -march=x86-64-v4"
else skip "x86-64-v4: this processor has no AVX-512"; fi
want musl-O2 musl-gcc "$NUMERIC -O2 $simd -static"
want tcc tcc "-std=c11 -D_XOPEN_SOURCE=700"
wait
if [ -e "$OUT/$first/run.log" ]; then
    for name in $names; do judge "$name"; done
    if cat conformance/*.taps | sha256sum | cut -c1-16 | cmp - "$OUT/$first/manifests"; then pass; else fail "the manifests are not those of conformance/"; fi
else fail "no gcc: nothing to compare with"; fi
refused "gcc -Ofast" ffast-math gcc "-std=c11 -Ofast -D_XOPEN_SOURCE=700"
refused "clang -ffast-math" ffast-math clang "-std=c11 -O2 -ffast-math -D_XOPEN_SOURCE=700"
refused "s390x in ISO mode" excess-precision=fast s390x-linux-gnu-gcc "-std=c11 -O2 -D_XOPEN_SOURCE=700"
refused "i686 with x87" mfpmath=sse i686-linux-gnu-gcc "-std=c11 -O2 -mfpmath=387 -D_XOPEN_SOURCE=700"

echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
