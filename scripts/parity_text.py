#!/usr/bin/env python3
"""Compares tokens and chat prompts with transformers, over every text of some files.

    python3 -m venv /tmp/parity
    /tmp/parity/bin/pip install transformers==5.23.0 jinja2
    cargo build -p model --example prompts
    /tmp/parity/bin/python scripts/parity_text.py FOLDER DATA.jsonl...

FOLDER has a tokenizer.json and, where there is one, a tokenizer_config.json and a chat_template.jinja. Of every row of
the data, each field that is text is compared: its tokens (no special ones added), the text they decode to, the prompt
that the chat template makes of it as a user's message with `add_generation_prompt`, and the prompt's tokens. Exits with
1 at any difference, and shows the first ones.
"""

import argparse
import json
import pathlib
import subprocess
import sys

from transformers import AutoTokenizer, PreTrainedTokenizerFast

PROGRAM = pathlib.Path(__file__).resolve().parent.parent / "target" / "debug" / "examples" / "prompts"
SHOWN = 5


def load(folder):
    """The tokenizer by its own files, without a class that transformers guesses from the model's type."""
    path = pathlib.Path(folder)
    settings = {}
    if (path / "tokenizer_config.json").is_file():
        settings = json.loads((path / "tokenizer_config.json").read_text())
    token = lambda value: value["content"] if isinstance(value, dict) else value
    special = {key: token(settings[key]) for key in ("bos_token", "eos_token", "pad_token") if settings.get(key)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"), **special)
    template = path / "chat_template.jinja"
    tokenizer.chat_template = template.read_text() if template.is_file() else settings.get("chat_template")
    return tokenizer


def texts(files):
    for file in files:
        for line in pathlib.Path(file).read_text(encoding="utf-8").splitlines():
            if line.strip():
                yield from (value for value in json.loads(line).values() if isinstance(value, str))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("data", nargs="+")
    parser.add_argument("--auto", action="store_true", help="use AutoTokenizer instead of the tokenizer's own files")
    parser.add_argument("--program", default=PROGRAM, help="the built example `prompts`")
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.folder) if args.auto else load(args.folder)
    print(f"transformers' class: {type(tokenizer).__name__}")
    wanted = list(texts(args.data))
    rows = "".join(json.dumps({"text": text}) + "\n" for text in wanted)
    run = subprocess.run([args.program, args.folder], input=rows.encode(), stdout=subprocess.PIPE, check=True)
    first, *found = [json.loads(line) for line in run.stdout.decode().split("\n") if line]
    print(f"stop tokens {first['stop_ids']}, the prompt opens a thought: {first['opens_thought']}")
    if len(found) != len(wanted):
        sys.exit(f"{len(wanted)} texts went in, {len(found)} came out")
    wrong = {key: 0 for key in ("ids", "decoded", "prompt", "prompt_ids")}
    tokens = 0
    for text, row in zip(wanted, found):
        ids = tokenizer.encode(text, add_special_tokens=False)
        message = [{"role": "user", "content": text}]
        prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        expected = {
            "ids": ids,
            "decoded": tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False),
            "prompt": prompt,
            "prompt_ids": list(
                tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"]
            ),
        }
        tokens += len(ids)
        for key, value in expected.items():
            if row[key] != value:
                wrong[key] += 1
                if wrong[key] <= SHOWN:
                    print(f"{key} of {text!r}:\n  ours         {row[key]!r}\n  transformers {value!r}")
    print(f"{len(wanted)} texts, {tokens} tokens; different: {wrong}")
    sys.exit(1 if any(wrong.values()) else 0)


if __name__ == "__main__":
    main()
