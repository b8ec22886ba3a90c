#!/bin/sh
# What `make demo` shows: a transcript the model was not trained on, compressed to half and to a third of its tokens, with counts and time.
set -eu
cd "$(dirname "$0")/.."
for rate in 0.5 0.33; do
    start=$(date +%s%N)
    ./lingua2 compress --compat --rate $rate --json demo/transcript.txt >build/demo.json
    end=$(date +%s%N)
    counts=$(sed 's/.*"origin_tokens": \([0-9]*\), "compressed_tokens": \([0-9]*\).*/\1 tokens -> \2/' build/demo.json)
    printf '==== rate %s: %s, %s ms, start and model included ====\n' "$rate" "$counts" $(((end - start) / 1000000))
    ./lingua2 compress --compat --rate $rate demo/transcript.txt | cut -c1-1200
    echo
done
echo "The transcript is demo/transcript.txt ($(wc -w <demo/transcript.txt) words). Your own file: ./lingua2 compress --compat --rate 0.5 FILE"
