#!/usr/bin/env python3
"""Compares the program with transformers on a model folder: log-probs of texts, and greedy responses.

    python3 -m venv /tmp/parity
    /tmp/parity/bin/pip install torch==2.15.0 transformers==5.23.0 safetensors
    cargo build -p trainer
    /tmp/parity/bin/python scripts/parity_model.py FOLDER DATA.jsonl

Both compute in f32 on the CPU. `trainer score` scores every token but the first of the first --rows texts (a row's
question and answer, or a row that `trainer generate --data` wrote); `trainer generate --temperature 0` answers the first
--prompts questions, --new-tokens tokens each. With --other FOLDER, transformers loads that folder instead, say an export
of what FOLDER holds. Exits with 1 when a log-prob differs by more than --tolerance or a response differs at all.

    trainer generate --model CHECKPOINT --data countdown --problems 16 > samples.jsonl
    trainer export CHECKPOINT OUT --dtype f32 --file-bytes 1000000
    /tmp/parity/bin/python scripts/parity_model.py OUT samples.jsonl --prompts 0 --tolerance 1e-5
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROGRAM = pathlib.Path(__file__).resolve().parent.parent / "target" / "debug" / "trainer"


def first(row, keys):
    return next((row[key] for key in keys if isinstance(row.get(key), str)), "")


def lines(text):
    return [json.loads(line) for line in text.split("\n") if line]


def run(args, *arguments):
    done = subprocess.run([args.trainer, *map(str, arguments)], stdout=subprocess.PIPE, check=True)
    return lines(done.stdout.decode())


def token_ids(tokenizer, row):
    """A text to score: a question and its answer, or a prompt in its template and a response."""
    if "response" in row:
        message = [{"role": "user", "content": row["prompt"]}]
        prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"]
        return list(prompt) + tokenizer.encode(row["response"], add_special_tokens=False)
    return tokenizer.encode(f"{first(row, QUESTION)}\n{first(row, ANSWER)}", add_special_tokens=False)


QUESTION = ("problem", "question", "prompt")
ANSWER = ("solution", "answer", "gold")


def compare_log_probs(args, model, rows, scored):
    worst, total, count, where = 0.0, 0.0, 0, None
    for number, (row, ours) in enumerate(zip(rows, scored, strict=True)):
        ids = torch.tensor(row["prompt_ids"] + row["response_ids"])
        logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
        theirs = torch.log_softmax(logits, -1).gather(1, ids[1:, None])[:, 0].double()
        gap = (theirs - torch.tensor(ours["logprobs"], dtype=torch.float64)).abs()
        total, count = total + gap.sum().item(), count + len(gap)
        if gap.max() > worst:
            worst, where = gap.max().item(), (number, int(gap.argmax()), theirs[gap.argmax()].item())
    print(f"log-probs: {len(rows)} texts, {count} tokens; largest difference {worst:.2e}, mean {total / count:.2e}")
    if where:
        print(f"  the largest: text {where[0]}, token {where[1] + 1}, log-prob {where[2]:.3f}")
    return worst <= args.tolerance


def greedy_gives(model, tokenizer, prompt, row):
    """Whether each token of a response is transformers' likeliest one after those before it: one pass, the same answer
    as generating token by token."""
    response = tokenizer.encode(row["response"], add_special_tokens=False)
    # A special token at the end, or characters that two tokens share: only generating can tell.
    if len(response) + (row["finish"] == "stop") != row["tokens"]:
        return None
    logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0, len(prompt) - 1 :]
    likeliest = logits.argmax(-1).tolist()
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return likeliest[: len(response)] == response and (row["finish"] == "length" or likeliest[-1] in ends)


def compare_responses(args, model, tokenizer, generated):
    same = 0
    for row in generated:
        message = [{"role": "user", "content": row["prompt"]}]
        prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"]
        if greedy_gives(model, tokenizer, prompt, row):
            same += 1
            continue
        out = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=args.new_tokens)
        text = tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        same += text == row["response"]
        if text != row["response"]:
            print(f"response to {row['prompt']!r}:\n  ours         {row['response']!r}\n  transformers {text!r}")
    print(f"greedy: {same} of {len(generated)} responses of up to {args.new_tokens} tokens are the same text")
    return same == len(generated)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("data")
    parser.add_argument("--other", help="the folder that transformers loads, if another")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--trainer", default=PROGRAM)
    args = parser.parse_args()
    data = lines(pathlib.Path(args.data).read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(args.other or args.folder)
    with tempfile.TemporaryDirectory() as work:
        path = pathlib.Path(work) / "rows.jsonl"
        texts = [token_ids(tokenizer, row) for row in data[: args.rows]]
        rows = [{"prompt_ids": ids[:1], "response_ids": ids[1:]} for ids in texts]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        scored = run(args, "score", "--model", args.folder, "--device", "cpu", "--data", path)
        generated = []
        if args.prompts:
            path.write_text("".join(json.dumps(row) + "\n" for row in data[: args.prompts]))
            generate = ["generate", "--model", args.folder, "--device", "cpu", "--data", path, "--temperature", 0]
            generated = run(args, *generate, "--max-tokens", args.new_tokens)
    model = AutoModelForCausalLM.from_pretrained(args.other or args.folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        good = compare_log_probs(args, model, rows, scored)
        if generated:
            good &= compare_responses(args, model, tokenizer, generated)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
