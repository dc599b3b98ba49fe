#!/usr/bin/env python3
"""The table of scripts/gpu_check.sh in Markdown, from its results.jsonl.

    python3 scripts/gpu_table.py gpu-check/results.jsonl [MORE.jsonl...]

Files of parts that ran apart are put together. Speeds are medians over the rounds, with the least and the most of them.
FLOPs are those of the model, recomputation not counted: 6 for each weight of a product and token, and of attention
6 times layers, width of the queries and the sum of the squared lengths (half of the square is masked).
"""

import json
import statistics
import sys


def read(paths):
    rows = []
    for path in paths:
        with open(path, encoding="utf-8") as lines:
            rows += [json.loads(line) for line in lines if line.strip()]
    return rows


def speed(row):
    """Tokens a second of one run, and None of one that printed nothing."""
    printed = row.get("printed") or {}
    if "tokens_per_second" in printed:
        return printed["tokens_per_second"]
    if printed.get("seconds") and "tokens" in printed:
        return printed["tokens"] / statistics.median(printed["seconds"])
    return None


def gib(number):
    return f"{number / 2**30:.1f} GiB" if isinstance(number, int) and number > 0 else "not told"


def own_peak(row):
    printed = row.get("printed") or {}
    return printed.get("peak_device_memory_bytes") or printed.get("peak_device_bytes")


def flops_per_token(config, length):
    heads = config["num_attention_heads"]
    head = config.get("head_dim", config["hidden_size"] // heads)
    h, f, q, k = config["hidden_size"], config["intermediate_size"], heads * head, config["num_key_value_heads"] * head
    weights = config["num_hidden_layers"] * (h * (2 * q + 2 * k) + 3 * h * f) + config["vocab_size"] * h
    return 6 * weights + 6 * config["num_hidden_layers"] * q * length


def machine(rows):
    lines = []
    for row in rows:
        if row.get("side") == "sizes":
            gpu = row.get("gpu") or row["device"]
            line = f"{row['trainer']} on {gpu}; rollouts of {row['rows']} rows, prompt {row['prompt']}, {row['new']} new tokens"
            if line not in lines:
                lines.append(line)
        elif row.get("side") == "versions" and row.get("printed"):
            line = ", ".join(f"{name} {version}" for name, version in row["printed"].items())
            if line not in lines:
                lines.append(line)
        elif row.get("side") == "roof" and (row.get("printed") or {}).get("flops"):
            printed = row["printed"]
            lines.append(f"bf16 product of {printed['size']}^3: {printed['flops'] / 1e12:.4g} TFLOP/s ({printed['name']})")
    return lines


def selftest(rows):
    lines = []
    for row in rows:
        if row.get("part") != "selftest":
            continue
        printed = row.get("printed")
        if not printed:
            lines.append(f"selftest: no result ({row.get('note') or row.get('status')})")
            continue
        verdict = "passed" if printed["passed"] else "**MISSED**"
        total, missed = printed["comparisons"], printed["missed"]
        lines.append(f"selftest on {printed['device']}: {verdict}, {missed} of {total} missed, {printed['seconds']:.0f} s")
        for finding in printed["findings"]:
            if not finding["passed"]:
                what = finding["failure"] or f"{finding['error']} at {finding['place']}, at most {finding['tolerance']}"
                lines.append(f"  - {finding['op']} ({finding['shape']}, {finding['dtype']}): {what}")
    return lines


def work(rows, config):
    """A line for each part and side that was measured or left out."""
    groups = {}
    for row in rows:
        part = row.get("part", "")
        if (part == "rollout" or part.startswith("train-")) and "side" in row:
            groups.setdefault((part, row["side"]), []).append(row)
    table = []
    first = {}
    for (part, side), runs in groups.items():
        speeds = [s for s in map(speed, runs) if s]
        notes = {(r.get("printed") or {}).get("note") or r.get("note") for r in runs} - {None, ""}
        if not speeds:
            table.append(f"| {part} | {side} | no result | | | | {'; '.join(sorted(notes))} |")
            continue
        median = statistics.median(speeds)
        first.setdefault(part, median if side == "bellows" else None)
        ratio = f"{first[part] / median:.2f}" if first[part] and side != "bellows" else ""
        flops = ""
        if part.startswith("train-") and config:
            length = int(part.split("x")[1])
            flops = f"{median * flops_per_token(config, length) / 1e12:.4g}"
        peaks = [own_peak(r) for r in runs if own_peak(r)]
        used = [r["device_bytes"] for r in runs if isinstance(r.get("device_bytes"), int)]
        memory = f"{gib(max(peaks, default=0))} / {gib(max(used, default=0))}"
        span = f"{median:,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f}, {len(speeds)} rounds)"
        table.append(f"| {part} | {side} | {span} | {flops} | {memory} | {ratio} | {'; '.join(sorted(notes))} |")
    if not table:
        return []
    head = [
        "| work | side | tokens/s | TFLOP/s | memory: its own count / of the GPU | Bellows over it | note |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    return head + table


def runs(rows):
    lines = []
    for row in rows:
        if row.get("side") != "run":
            continue
        steps, evaluations = row["steps"], row["evaluations"]
        if not steps:
            lines.append(f"{row['part']}: no step was made")
            continue
        mean = lambda key: statistics.fmean(step[key] for step in steps if step.get(key) is not None)
        gap = max(step.get("logprob_gap") or 0.0 for step in steps)
        lines.append(
            f"{row['part']}: {len(steps)} steps in {sum(s['seconds'] for s in steps):.0f} s, rollouts "
            f"{mean('rollout_tokens_per_second'):,.0f} tokens/s, training {mean('train_tokens_per_second'):,.0f} tokens/s, "
            f"largest log-prob gap {gap:.2g}, accuracy of the first step {steps[0]['accuracy']:.3f}, of the last "
            f"{steps[-1]['accuracy']:.3f}"
        )
        for row in evaluations:
            name = row.get("name") or f"step {row['step']}"
            lines.append(f"  - {name}: accuracy {row['pass_at_1']:.3f}, {row['response_tokens']:.0f} tokens")
    for row in rows:
        if row.get("part") in ("embedded", "gsm8k") and row.get("side") == "bellows" and row.get("status") != 0:
            status = row.get("status")
            ended = "ended by its time limit" if status in (124, 137) else f"status {status}: {row.get('note') or 'no reason given'}"
            lines.append(f"{row['part']}: {ended}")
    return lines


def main():
    rows = read(sys.argv[1:])
    configs = [json.loads(row["config"]) for row in rows if row.get("config")]
    sections = [
        ("The machine", machine(rows)),
        ("Correctness", selftest(rows)),
        ("Speed, random weights in bf16", work(rows, configs[0] if configs else None)),
        ("Runs", runs(rows)),
    ]
    print("# GPU check")
    for title, lines in sections:
        if lines:
            print(f"\n## {title}\n")
            for line in lines:
                print(line if line.startswith(("|", "  -")) else f"- {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
