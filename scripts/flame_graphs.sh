#!/usr/bin/env bash
# Draws where the time of a rollout and of a training step goes: docs/flame-rollout.svg and docs/flame-train.svg.
# Needs perf (Linux) and inferno (cargo install inferno). Arguments go to both benches, such as --model DIR --dtype bf16.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT

cargo build -p trainer
for kind in rollout train; do
    # A prime number of samples a second, so that they do not keep step with the program. The stacks are unwound by the tables
    # that every build has.
    perf record --quiet -F 199 --call-graph dwarf,8192 -o "$folder/perf.data" -- \
        target/debug/trainer bench "$kind" --model embedded --batch 64 --prompt-tokens 16 --new-tokens 128 --repeats 20 "$@"
    # Frames of the thread pool, the standard library's plumbing and generic arguments say nothing about the work.
    perf script --no-inline -i "$folder/perf.data" 2>/dev/null | inferno-collapse-perf |
        sed -E 's/;(rayon|rayon_core|std|core|__|_?start|clone|main|\[)[^;]*//g; s/<[^;]*>//g; s/::h[0-9a-f]{16}//g' |
        inferno-flamegraph --minwidth 0.5 --title "trainer bench $kind" --countname samples >"docs/flame-$kind.svg"
done
