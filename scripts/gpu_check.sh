#!/usr/bin/env bash
# Everything that is to be known of a machine with an NVIDIA GPU, within 25 minutes: does it compute right, and how fast is
# it beside PyTorch and transformers on the same GPU in the same run. Needs a built `trainer`, bash and python3; no Rust, and
# no network if python3 (or --python) has torch and transformers. What cannot be run is left out, and the table says so.
#
#   scripts/gpu_check.sh --trainer target/release/trainer --out gpu-check
#   scripts/gpu_check.sh --trainer trainer --out gpu-check --part rollout          one part, within 10 minutes
#   scripts/gpu_check.sh --trainer trainer --out t --device cpu --tiny             the script itself, in a minute or two
#
# Parts, in their order: selftest, train-4x4096, train-1x16384, rollout, embedded, gsm8k (with --model and --data).
# In --out: table.md, results.jsonl (what the table is made of; parts that ran apart add to it) and raw.txt (everything that
# was printed). The table is written anew after each part, so that it is there whenever the machine is taken away.
set -uo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
trainer=trainer out=gpu-check device=cuda part=all python=python3 peers=yes
model="" data="" config="" total=1500
rows=256 prompt=512 new=2048 trains="4x4096 1x16384" rounds=3 repeats=5

usage() {
    sed -n '2,14s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    cat <<TEXT

  --trainer FILE   the program ($trainer)
  --out DIR        where results go ($out)
  --device D       cuda or cpu ($device)
  --part NAME      one part alone ($part)
  --python FILE    a python3 with torch and transformers ($python); where they are missing and there is a network, they
                   are installed into a virtual environment in --out
  --no-peers       no PyTorch, no transformers
  --config FILE    config.json of the random model (that of DeepSeek-R1-Distill-Qwen-1.5B)
  --model DIR      a real model, such as a Qwen2.5-0.5B, for gsm8k
  --data FILE      GSM8K's training problems as .jsonl, for gsm8k
  --rows, --prompt, --new N   sizes of rollouts ($rows, $prompt, $new)
  --train LIST     sizes of training steps, rows x tokens ("$trains")
  --rounds N       both sides take turns so often, time permitting ($rounds)
  --total SECONDS  for everything ($total; 570 with --part)
  --tiny           sizes for a CPU
TEXT
}

while [ $# -gt 0 ]; do
    case $1 in
    --trainer) trainer=$2 && shift 2 ;;
    --out) out=$2 && shift 2 ;;
    --device) device=$2 && shift 2 ;;
    --part) part=$2 total=570 && shift 2 ;;
    --python) python=$2 && shift 2 ;;
    --no-peers) peers=no && shift ;;
    --config) config=$2 && shift 2 ;;
    --model) model=$2 && shift 2 ;;
    --data) data=$2 && shift 2 ;;
    --rows) rows=$2 && shift 2 ;;
    --prompt) prompt=$2 && shift 2 ;;
    --new) new=$2 && shift 2 ;;
    --train) trains=$2 && shift 2 ;;
    --rounds) rounds=$2 && shift 2 ;;
    --total) total=$2 && shift 2 ;;
    --tiny) tiny=yes rows=4 prompt=8 new=24 trains="2x32 1x64" rounds=1 repeats=2 && shift ;;
    -h | --help) usage && exit 0 ;;
    *) echo "error: $1: no such option (see --help)" >&2 && exit 2 ;;
    esac
done
parts="selftest"
for size in $trains; do parts+=" train-$size"; done
parts+=" rollout embedded gsm8k"
if [ "$part" != all ] && [[ " $parts " != *" $part "* ]]; then
    echo "error: --part $part: must be one of: $parts" >&2
    exit 2
fi
if ! command -v "$trainer" >/dev/null; then
    echo "error: --trainer $trainer: no such program" >&2
    exit 2
fi
trainer="$(command -v "$trainer")"
if ! mkdir -p "$out"; then
    echo "error: --out $out: cannot be made" >&2
    exit 2
fi
# CUDA's libraries need not be where the loader looks: they may be the toolkit's, or come with Python's torch.
if ! "$trainer" --version >/dev/null 2>&1; then
    for folder in /usr/local/cuda/lib64 $("$python" -c '
import glob, site, sys
for place in [*site.getsitepackages(), *sys.path]:
    print(*glob.glob(place + "/nvidia/*/lib"), sep="\n")' 2>/dev/null | sort -u); do
        export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder"
    done
fi
if ! started="$("$trainer" --version 2>&1)"; then
    echo "error: --trainer $trainer does not start: $(tail -n 1 <<<"$started")" >&2
    exit 2
fi
work="$(mktemp -d)"
trap 'rm -rf "$work"; kill $(jobs -p) 2>/dev/null' EXIT
began=$SECONDS

# The shape of DeepSeek-R1-Distill-Qwen-1.5B, or a toy of the same kind.
if [ -z "$config" ]; then
    config="$work/config.json"
    if [ -n "${tiny-}" ]; then
        sizes='"vocab_size": 503, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2,
  "num_attention_heads": 6, "num_key_value_heads": 1, "max_position_embeddings": 512,'
    else
        sizes='"vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
  "num_attention_heads": 12, "num_key_value_heads": 2, "max_position_embeddings": 131072,'
    fi
    cat >"$config" <<JSON
{
  "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", $sizes
  "rope_theta": 10000.0, "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": false
}
JSON
fi

say() { echo "== $*" | tee -a "$out/raw.txt" >&2; }
left() { echo $((total - (SECONDS - began))); }

# Adds a row of results: a JSON object of names and values, and of the JSON that a program printed into a file, if any.
record() { # FILE NAME=VALUE...
    python3 - "$@" >>"$out/results.jsonl" <<'PY'
import json, sys
row = {}
for pair in sys.argv[2:]:
    name, value = pair.split("=", 1)
    row[name] = int(value) if value.lstrip("-").isdigit() else value
try:
    row["printed"] = json.load(open(sys.argv[1]))
except (OSError, ValueError):
    row["printed"] = None
print(json.dumps(row))
PY
}

# The most memory in use on the GPU, by everyone, while a command runs: one yardstick for both sides. In bytes, or nothing.
watch_memory() {
    command -v nvidia-smi >/dev/null && [ "$device" = cuda ] || return 0
    local most=0 now
    while now="$(nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits --id=0 2>/dev/null)"; do
        [ "$now" -gt "$most" ] 2>/dev/null && most=$now && echo $((most << 20)) >"$1"
        sleep 0.2
    done
}

# Runs a command for at most so many seconds, notes what it prints and how it ends, and adds a row.
measure() { # SECONDS SIDE ROUND COMMAND...
    local limit=$1 side=$2 round=$3 status=0 start=$SECONDS watcher
    shift 3
    [ "$limit" -gt "$(left)" ] && limit="$(left)"
    if [ "$limit" -lt 5 ]; then
        say "$now_part: no time left for $side"
        record /dev/null part="$now_part" side="$side" round="$round" status=skipped note="no time left"
        return 1
    fi
    say "$now_part, $side, round $round, at most $limit s: $*"
    rm -f "$work/memory"
    watch_memory "$work/memory" &
    watcher=$!
    timeout -k 10 "$limit" "$@" >"$work/stdout" 2>"$work/stderr" || status=$?
    kill "$watcher" 2>/dev/null
    wait "$watcher" 2>/dev/null
    { cat "$work/stdout" && tail -n 40 "$work/stderr"; } >>"$out/raw.txt"
    say "$now_part, $side: status $status after $((SECONDS - start)) s"
    local note=""
    [ "$status" -eq 0 ] || note="$(grep -v '^ *$' "$work/stderr" | tail -n 1)"
    [ "$status" -eq 124 ] && note="stopped after $limit s"
    record "$work/stdout" part="$now_part" side="$side" round="$round" status="$status" wall=$((SECONDS - start)) \
        device_bytes="$(cat "$work/memory" 2>/dev/null)" note="$note"
    table
    return "$status"
}

skip() { # SIDE WHY
    say "$now_part: $1 left out: $2"
    record /dev/null part="$now_part" side="$1" round=0 status=skipped note="$2"
}

table() { python3 "$here/gpu_table.py" "$out/results.jsonl" >"$work/table.md" && cp "$work/table.md" "$out/table.md"; }

# Whether a python has what the peers need; says what it has.
has_peers() { "$1" "$here/gpu_peer.py" versions 2>/dev/null | grep -q '"torch": "[^"]*", "transformers": "'; }

find_peers() {
    [ "$peers" = yes ] || { without="--no-peers" && return; }
    if ! has_peers "$python" && [ "$(left)" -gt 900 ]; then
        say "$python has no torch or transformers; trying to install them"
        if timeout 300 bash -c '"$0" -m venv "$1/venv" && "$1/venv/bin/pip" install -q torch transformers' \
            "$python" "$out" >>"$out/raw.txt" 2>&1; then
            python="$out/venv/bin/python"
        fi
    fi
    if ! has_peers "$python"; then
        peers=no without="$python has no torch and transformers, and they could not be installed"
    fi
}

# Ours and theirs in turns, as long as another turn is likely to fit.
in_turns() { # SECONDS THEIRS-NAMES... ; runs `ours` and `theirs NAME LIMIT`
    local each=$1 round longest=0 start until name
    # A round at three quarters of what it may take at most, or several that are faster.
    until=$((SECONDS + each * ($# + 1) * 3 / 4))
    shift
    for ((round = 1; round <= rounds; round++)); do
        start=$SECONDS
        ours "$each" "$round"
        for name in "$@"; do
            if [ "$peers" = yes ]; then
                theirs "$name" "$each" "$round"
            elif [ "$round" -eq 1 ]; then
                skip "$name" "$without"
            fi
        done
        [ $((SECONDS - start)) -gt "$longest" ] && longest=$((SECONDS - start))
        # Another round needs as long as the longest so far.
        if [ $((SECONDS + longest)) -gt "$until" ] || [ "$longest" -gt "$(left)" ]; then break; fi
    done
}

run_selftest() {
    measure 240 bellows 1 "$trainer" selftest --device "$device" --json
}

run_rollout() {
    ours() {
        measure "$1" bellows "$2" "$trainer" bench rollout --model "random:$config" --dtype bf16 --device "$device" \
            --batch "$rows" --prompt-tokens "$prompt" --new-tokens "$new" --warm-up-tokens 16 --repeats 1
    }
    theirs() {
        measure "$2" "$1" "$3" "$python" "$here/gpu_peer.py" rollout --config "$config" --device "$device" \
            --rows "$rows" --prompt "$prompt" --new "$new" --limit $(($2 - 20))
    }
    in_turns 220 "transformers generate"
}

run_train() { # 4x4096
    local count=${1%x*} tokens=${1#*x}
    ours() {
        measure "$1" bellows "$2" "$trainer" bench train --model "random:$config" --dtype bf16 --device "$device" \
            --batch "$count" --prompt-tokens 1 --new-tokens $((tokens - 1)) --repeats "$repeats" \
            --micro-batch-tokens $((count * tokens))
    }
    theirs() {
        local weights=bf16
        [[ $1 == *f32* ]] && weights=master
        measure "$2" "$1" "$3" "$python" "$here/gpu_peer.py" train --config "$config" --device "$device" \
            --rows "$count" --tokens "$tokens" --weights "$weights" --repeats "$repeats" --limit $(($2 - 30))
    }
    in_turns 90 "PyTorch, all in bf16" "PyTorch, f32 masters"
}

run_embedded() {
    local cycles=(--cycles 1)
    [ -n "${tiny-}" ] && cycles+=(--set schedule.cycle_steps=2 --set sampler.prompts_per_step=4 --set evaluate.problems=8)
    rm -rf "$work/embedded"
    measure 150 bellows 1 "$trainer" "${cycles[@]}" --device "$device" --out "$work/embedded"
    record_run "$work/embedded"
}

run_gsm8k() {
    if [ -z "$model" ] || [ -z "$data" ]; then
        skip bellows "needs --model and --data"
        return
    fi
    cat >"$work/gsm8k.toml" <<TOML
[run]
device = "$device"
[model]
path = "$(cd "$model" && pwd)"
[data]
train = "$(cd "$(dirname "$data")" && pwd)/$(basename "$data")"
eval = "$(cd "$(dirname "$data")" && pwd)/$(basename "$data")"
max_prompt_tokens = 256
[schedule]
kind = "constant"
cycles = 1
cycle_steps = 200
l_max = 512
l_min = 256
[sampler]
prompts_per_step = 32
group_size = 8
max_rows = 256
[evaluate]
problems = 64
samples = 1
[checkpoint]
every = 0
TOML
    rm -rf "$work/gsm8k"
    local limit
    limit="$(left)"
    # It is stopped by the limit as a rule; a kill, so that no checkpoint of gigabytes is written on the way.
    [ "$limit" -gt 400 ] && limit=400
    measure "$limit" bellows 1 timeout -s KILL $((limit - 15)) "$trainer" --config "$work/gsm8k.toml" --out "$work/gsm8k"
    record_run "$work/gsm8k"
}

# What a run has written so far, whether it came to its end or not.
record_run() {
    python3 - "$1" "$now_part" >>"$out/results.jsonl" <<'PY'
import json, pathlib, sys
folder, part = pathlib.Path(sys.argv[1]), sys.argv[2]
def rows(name):
    try:
        lines = (folder / name).read_text().splitlines()
    except OSError:
        return []
    return [json.loads(line) for line in lines if line.endswith("}")]
print(json.dumps({"part": part, "side": "run", "steps": rows("metrics.jsonl"), "evaluations": rows("eval.jsonl")}))
PY
    for name in metrics.jsonl eval.jsonl; do cat "$1/$name" >>"$out/raw.txt" 2>/dev/null; done
    table
}

now_part=machine
{ nvidia-smi 2>/dev/null || echo "no nvidia-smi"; } >>"$out/raw.txt"
"$trainer" doctor --device "$device" >"$work/stdout" 2>&1
cat "$work/stdout" >>"$out/raw.txt"
without=""
find_peers
if [ "$peers" = yes ]; then
    "$python" "$here/gpu_peer.py" versions >"$work/versions"
    record "$work/versions" part=machine side=versions
    measure 60 roof 1 "$python" "$here/gpu_peer.py" roof --device "$device"
fi
record /dev/null part=machine side=sizes rows="$rows" prompt="$prompt" new="$new" device="$device" \
    trainer="$("$trainer" --version)" gpu="$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n 1)" \
    config="$(tr -d '\n' <"$config")"
failed=0
for now_part in $parts; do
    [ "$part" = all ] || [ "$part" = "$now_part" ] || continue
    case $now_part in
    train-*) run_train "${now_part#train-}" ;;
    *) "run_$now_part" ;;
    esac
    # A self-test that does not say that it passed is a failure of the script; a slow or missing figure stands in the table.
    [ "$now_part" = selftest ] && [ "$(tail -n 1 "$out/results.jsonl" | grep -c '"passed": true, "comparisons"')" -eq 0 ] && failed=1
done
table
cat "$out/table.md"
exit "$failed"
