#!/usr/bin/env bash
# Train the adapters that ship, from the text that corpus.py wrote: recipes/starter/adapters.sh BUILD
# Languages first, since domain adapters are trained over them. Run from the root of the checkout.
set -euo pipefail
build=$1
common="--rank 8 --max-length 128 --save-precision bfloat16 --mixed-precision bf16 --license other --replace"
common="$common --run-folder $build/runs --library adapters"

# kept out of pretraining
accelerate launch recipes/lora_language.py --language da uk id sv --data "$build/lm" \
    --steps 600 --batch-size 64 --learning-rate 3e-3 $common
# seen in pretraining
accelerate launch recipes/lora_language.py --language de en es fr ru zh --data "$build/lm" \
    --steps 300 --batch-size 48 $common
# sections of the Debian archive, and the stories of its games, in all those languages
for domain in games science story; do
    accelerate launch recipes/lora_domain.py --domain $domain --name $domain \
        --data "$build/domains" --language da de en es fr id ru sv uk zh \
        --steps 100 --batch-size 32 $common
done
# the sample text, in six of its eight languages
for domain in hotel clinic bank software; do
    accelerate launch recipes/lora_domain.py --domain $domain --name $domain $common
done
