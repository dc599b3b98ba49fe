#!/usr/bin/env bash
# Draws where the time of a rollout and of a training step goes: docs/flame-rollout.svg and docs/flame-train.svg.
# Needs perf (Linux) and inferno (cargo install inferno). Arguments go to both benches, such as --dtype bf16.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT

# What the program does, without who calls it: generic arguments, the frames of the thread pool, of the standard library and of
# iterators go, and what the system does in a call is one frame.
plain() {
    sed -E -e 's/::h[0-9a-f]{16}//g' \
        -e ':as' -e 's/<([^<>;]+) as [^<>;]+>/\1/g' -e 's/<[^<>;]*>//g' -e 'tas' \
        -e 's/;(entry_SYSCALL|asm_|ret_from_fork)[^ ]* ([0-9]+)$/;kernel \2/' \
        -e ':drop' -e 's/;(\[unknown\]|(rayon|rayon_core|std|core|alloc|crossbeam_[a-z]+)::[^; ]*|impl [^;]*|_start|main|clone3?|start_thread|__libc_[^; ]*|thread_start|[^; ]*\{closure[^; ]*|::[^; ]*)(;| )/\3/' -e 'tdrop'
}

cargo build -p trainer
for kind in rollout train; do
    # A prime number of samples a second, so that they do not keep step with the program. The stacks are unwound by the tables
    # that every build has.
    perf record --quiet -F 499 --call-graph dwarf,8192 -o "$folder/perf.data" -- \
        target/debug/trainer bench "$kind" --model embedded --batch 64 --prompt-tokens 16 --new-tokens 128 --repeats 20 "$@" \
        >"$folder/figures.json"
    perf script --no-inline -i "$folder/perf.data" 2>/dev/null | inferno-collapse-perf | plain |
        inferno-flamegraph --minwidth 0.3 --title "trainer bench $kind" --countname "ns" >"docs/flame-$kind.svg"
done
