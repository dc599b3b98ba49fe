#!/usr/bin/env python3
"""Writes the tokenizer, chat template and configuration of the embedded policy in Hugging Face layout.

    python3 scripts/embedded_tokenizer.py            writes crates/model/embedded/
    python3 scripts/embedded_tokenizer.py --check    exits with 1 if a file there differs

One token a character, and one for each word that the Countdown task repeats, so that a trace can be read and counted
by eye. Nothing is merged or normalised, so every text of printable ASCII decodes to itself. Standard library only.

The pre-tokenizer and decoder are byte-level because transformers 5 puts Qwen2's own, which are, in the place of
those in tokenizer.json for every model of type qwen2; white space is therefore spelt as in GPT-2's alphabet.
"""

import json
import pathlib
import sys

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "crates" / "model" / "embedded"

PAD, END, USER, ASSISTANT, UNKNOWN = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|unk|>"
SPECIAL = [PAD, END, USER, ASSISTANT, UNKNOWN]
WORDS = ["<think>\n", "</think>\n", "\\boxed{", "Make ", " from ", " vs ", " yes\n", " no\n", "wait ", ", "]
TASK_CHARACTERS = "0123456789+-*/=(),.} \n"
OTHER_CHARACTERS = "\t" + "".join(chr(code) for code in range(32, 127) if chr(code) not in TASK_CHARACTERS)
BYTE_LEVEL = str.maketrans({" ": "\u0120", "\n": "\u010a", "\t": "\u0109"})
TOKENS = SPECIAL + WORDS + list((TASK_CHARACTERS + OTHER_CHARACTERS).translate(BYTE_LEVEL))
# Rows of the embedding; a multiple of 16 keeps the output head's product free of a remainder.
VOCAB_SIZE = (len(TOKENS) + 15) // 16 * 16
MAX_POSITIONS = 1024

CHAT_TEMPLATE = """\
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- '<|user|>' + message['content'] }}
    {%- elif message['role'] == 'assistant' %}
        {{- '<|assistant|>' + message['content'] + '<|end|>' }}
    {%- else %}
        {{- raise_exception('the embedded policy knows the roles user and assistant, not ' + message['role']) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|><think>\\n' }}
{%- endif %}
"""


def added_token(identity, content):
    return {
        "id": identity,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": content in SPECIAL,
    }


def byte_level():
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def tokenizer():
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(i, token) for i, token in enumerate(SPECIAL + WORDS)],
        "normalizer": None,
        "pre_tokenizer": byte_level(),
        "post_processor": None,
        "decoder": byte_level(),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": UNKNOWN,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(TOKENS)},
            "merges": [],
        },
    }


def tokenizer_config():
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_POSITIONS,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": None,
        "eos_token": END,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "chat_template": CHAT_TEMPLATE,
    }


def model_config():
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_POSITIONS,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        # Trained on exact angles: a key of ours, see model/src/scaling.rs.
        "rope_angles": "float64",
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "use_cache": True,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "bos_token_id": None,
        "eos_token_id": TOKENS.index(END),
        "pad_token_id": TOKENS.index(PAD),
        "torch_dtype": "bfloat16",
    }


def generation_config():
    return {
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "max_new_tokens": 448,
        "eos_token_id": TOKENS.index(END),
        "pad_token_id": TOKENS.index(PAD),
    }


def files():
    def text(value):
        return json.dumps(value, indent=2, ensure_ascii=False) + "\n"

    return {
        "tokenizer.json": text(tokenizer()),
        "tokenizer_config.json": text(tokenizer_config()),
        "chat_template.jinja": CHAT_TEMPLATE,
        "config.json": text(model_config()),
        "generation_config.json": text(generation_config()),
    }


def main():
    if sys.argv[1:] not in ([], ["--check"]):
        sys.exit(f"usage: {sys.argv[0]} [--check]")
    stale = []
    for name, content in files().items():
        path = FOLDER / name
        if not sys.argv[1:]:
            FOLDER.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode())
        elif not path.exists() or path.read_bytes() != content.encode():
            stale.append(str(path))
    if stale:
        sys.exit("stale, run scripts/embedded_tokenizer.py: " + ", ".join(stale))


if __name__ == "__main__":
    main()
