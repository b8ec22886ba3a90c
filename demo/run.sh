#!/bin/sh
# What `make demo` shows: a transcript the model was not trained on, compressed to half and to a third of its tokens, with counts and time; then a
# small language model that answers queries with nothing before them, with 16 demonstrations, and with the vectors these were distilled into.
set -eu
cd "$(dirname "$0")/.."
for rate in 0.5 0.33; do
    start=$(date +%s%N)
    ./lingua2 compress --rate $rate --json demo/transcript.txt >build/demo.json
    end=$(date +%s%N)
    counts=$(sed 's/.*"origin_tokens": \([0-9]*\), "compressed_tokens": \([0-9]*\).*/\1 tokens -> \2/' build/demo.json)
    printf '==== rate %s: %s, %s ms, start and model included ====\n' "$rate" "$counts" $(((end - start) / 1000000))
    ./lingua2 compress --rate $rate demo/transcript.txt >build/demo.txt
    head -n 15 build/demo.txt
    echo ...
    echo
done
echo "The transcript is demo/transcript.txt ($(wc -w <demo/transcript.txt) words). Your own file: ./lingua2 compress --rate 0.5 FILE; what was dropped: ./lingua2 label --html page.html FILE"
echo

lm=models/mend-lm.safetensors distiller=models/mend-distiller.safetensors demos=demo/demonstrations.jsonl queries=demo/queries.jsonl
right() { # how many predictions, one a line on standard input, are the queries' outputs
    cut -f 2 | paste - build/demo.outputs | awk -F '\t' '$1 == $2 { n++ } END { printf "%d of %d right", n, NR }'
}
echo "==== MEND: $(wc -l <$demos | tr -d ' ') demonstrations of a task that only they explain, such as"
sed -n 's/.*"input": "\([^"]*\)", "output": "\([^"]*\)".*/    \1 -> \2/p' $demos | head -n 4
sed 's/.*"output": "\([^"]*\)".*/\1/' $queries >build/demo.outputs
./mend distill -q -m $distiller -l $lm -d $demos -o build/demo.vectors.safetensors
echo "nothing before the query:       $(./mend score -l $lm $queries | right)"
echo "the demonstrations before it:   $(./mend score -l $lm -d $demos $queries | right)"
echo "their distilled vectors:        $(./mend score -l $lm -v build/demo.vectors.safetensors $queries | right)"
./mend cost -l $lm -m $distiller -d $demos $queries
