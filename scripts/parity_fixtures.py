#!/usr/bin/env python3
"""Writes what transformers computes for small random models, so that a test without Python can compare.

    python3 -m venv /tmp/parity
    /tmp/parity/bin/pip install torch==2.15.0 transformers==5.23.0 safetensors numpy
    /tmp/parity/bin/python scripts/parity_fixtures.py            writes crates/model/tests/data/parity/
    /tmp/parity/bin/python scripts/parity_fixtures.py --check    compares with what is there, writes nothing

A fixture is a safetensors file: `log_probs` and `entropy` of every scored token, `loss`, and `grad.NAME` of the loss
for every parameter, all f32 and whole. Its metadata has the case: `config` (a config.json), `lengths`, `prompts`,
`temperature` and `seed`. Weights and tokens are not in it; both sides make them with the same generator:

    word(n)  = SplitMix64's finaliser of (n + 1) * 0x9e3779b97f4a7c15        (mod 2^64)
    unit(n)  = (word(n) >> 40) / 2^23 - 1                                    in [-1, 1), exact in f32

The stream of a case starts at seed * 2^32. The parameters, sorted by name, take their elements from it one after the
other: a matrix is unit * (1.5 / sqrt(columns)), the embedding unit * 0.7, a norm 1 + unit * 0.3, a bias unit * 0.3.
Then come a token each (word mod vocabulary, sequence after sequence), then a weight each for the scored tokens (unit).
The loss over N scored tokens is -(1/N) sum(weight * log_prob) - 0.01 * (1/N) sum(entropy), of softmax(z / temperature).

How transformers is given the sequences differs from case to case (`layout`): one at a time, padded to the right or to
the left with an attention mask, or packed into one row with a block-diagonal mask.
"""

import argparse
import json
import pathlib
import sys

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.models.qwen2 import Qwen2Config
from transformers.models.qwen3 import Qwen3Config

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "crates" / "model" / "tests" / "data" / "parity"
ENTROPY_BONUS = 0.01


def case(name, layout, lengths, prompts, seed, temperature=1.0, **config):
    assert len(lengths) == len(prompts)
    config = {
        "model_type": "qwen2",
        "num_hidden_layers": 2,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "rope_theta": 10000.0,
        **config,
    }
    return {
        "name": name,
        "layout": layout,
        "config": config,
        "lengths": lengths,
        "prompts": prompts,
        "temperature": temperature,
        "seed": seed,
    }


def shape(heads, key_value, dim, vocab, intermediate, tied, **others):
    """The keys of a model's size; `hidden_size` is that of the heads unless it is given."""
    return {
        "num_attention_heads": heads,
        "num_key_value_heads": key_value,
        "hidden_size": heads * dim,
        "vocab_size": vocab,
        "intermediate_size": intermediate,
        "tie_word_embeddings": tied,
        **others,
    }


def qwen3(heads, key_value, dim, vocab, intermediate, tied, hidden, **others):
    return shape(
        heads,
        key_value,
        dim,
        vocab,
        intermediate,
        tied,
        model_type="qwen3",
        hidden_size=hidden,
        head_dim=dim,
        **others,
    )


MILLION = 1000000.0
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
LINEAR = {"rope_type": "linear", "factor": 2.5}

CASES = [
    case("ratio-1-tied", "alone", [1, 2, 17], [1, 1, 5], 1, **shape(4, 4, 8, 61, 40, True)),
    case("ratio-2-untied", "right", [33, 1, 12, 90], [3, 1, 11, 40], 2, **shape(4, 2, 8, 50, 44, False)),
    case("ratio-6-tied", "left", [60, 25, 2], [20, 1, 1], 3, rope_theta=MILLION, **shape(6, 1, 6, 47, 52, True)),
    case("ratio-7-tied", "packed", [40, 7, 128], [9, 6, 64], 4, rope_theta=MILLION, **shape(7, 1, 6, 64, 36, True)),
    case("ratio-7-of-14", "alone", [100], [30], 5, rope_theta=MILLION, **shape(14, 2, 4, 53, 48, False)),
    case("ratio-6-of-12", "packed", [64, 65, 3], [32, 1, 2], 6, **shape(12, 2, 4, 40, 56, False)),
    case("long", "alone", [700], [100], 7, rope_theta=MILLION, **shape(4, 2, 8, 70, 40, True)),
    case("long-packed", "packed", [513, 187], [1, 100], 8, **shape(2, 1, 16, 59, 48, False)),
    case("temperature", "right", [80, 31], [10, 10], 9, temperature=0.6, **shape(4, 2, 8, 97, 40, True)),
    case("wide-heads", "left", [50, 300], [25, 150], 10, hidden_size=24, head_dim=16, **{k: v for k, v in shape(3, 1, 16, 45, 40, True).items() if k != "hidden_size"}),
    case("qwen3-tied", "right", [1, 70, 200], [1, 7, 50], 11, rope_theta=MILLION, **qwen3(4, 2, 8, 60, 40, True, 24)),
    case("qwen3-untied", "packed", [90, 33, 2], [30, 3, 1], 12, temperature=1.3, **qwen3(6, 1, 8, 48, 36, False, 32)),
    case("qwen3-bias", "left", [45, 128], [5, 100], 13, attention_bias=True, **qwen3(7, 1, 8, 51, 40, True, 28)),
    case("qwen3-long", "alone", [640], [1], 14, rope_theta=MILLION, num_hidden_layers=3, **qwen3(2, 2, 16, 44, 32, True, 20)),
    case("rope-linear", "alone", [200], [50], 15, rope_scaling=LINEAR, **shape(4, 1, 8, 43, 40, True)),
    case("rope-llama3", "packed", [150, 60], [50, 20], 16, rope_scaling=LLAMA3, **shape(2, 1, 16, 43, 40, True)),
    case("rope-yarn", "right", [400, 20], [100, 19], 17, rope_scaling=YARN, rope_theta=MILLION, **shape(2, 1, 16, 46, 40, True)),
]


class Stream:
    """The generator of the docstring, from a place on."""

    def __init__(self, seed):
        self.place = seed << 32

    def words(self, count):
        n = np.arange(self.place + 1, self.place + 1 + count, dtype=np.uint64)
        self.place += count
        with np.errstate(over="ignore"):
            z = n * np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            return z ^ (z >> np.uint64(31))

    def units(self, count):
        return (self.words(count) >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)


def weight(stream, name, dims):
    unit = stream.units(int(np.prod(dims))).reshape(dims)
    if name.endswith("norm.weight"):
        return np.float32(1) + unit * np.float32(0.3)
    if name.endswith("bias"):
        return unit * np.float32(0.3)
    if name.endswith("embed_tokens.weight"):
        return unit * np.float32(0.7)
    return unit * (np.float32(1.5) / np.sqrt(np.float32(dims[1])))


def build(case, stream):
    kind = {"qwen2": Qwen2Config, "qwen3": Qwen3Config}[case["config"]["model_type"]]
    config = kind(**{key: value for key, value in case["config"].items() if key != "model_type"})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).train()
    named = sorted(model.named_parameters())
    with torch.no_grad():
        for name, parameter in named:
            parameter.copy_(torch.from_numpy(weight(stream, name, tuple(parameter.shape))))
    return model, named


def hidden_logits(model, layout, sequences):
    """Logits `[time, vocab]` of each sequence, by the layout's way of putting them together."""
    lengths = [len(s) for s in sequences]
    if layout == "alone":
        return [model(input_ids=s[None], use_cache=False).logits[0] for s in sequences]
    if layout == "packed":
        ids = torch.cat(sequences)
        positions = torch.cat([torch.arange(n) for n in lengths])
        owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        time = torch.arange(len(ids))
        seen = (owner[:, None] == owner[None]) & (time[:, None] >= time[None])
        mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]
        logits = model(input_ids=ids[None], attention_mask=mask, position_ids=positions[None], use_cache=False).logits[0]
        return list(torch.split(logits, lengths))
    longest = max(lengths)
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    starts = [longest - n if layout == "left" else 0 for n in lengths]
    for row, (start, s) in enumerate(zip(starts, sequences)):
        ids[row, start : start + len(s)] = s
        mask[row, start : start + len(s)] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return [logits[row, start : start + n] for row, (start, n) in enumerate(zip(starts, lengths))]


def compute(case):
    stream = Stream(case["seed"])
    model, named = build(case, stream)
    vocab = case["config"]["vocab_size"]
    sequences = [torch.from_numpy((stream.words(n) % np.uint64(vocab)).astype(np.int64)) for n in case["lengths"]]
    log_probs, entropies = [], []
    for logits, tokens, prompt in zip(hidden_logits(model, case["layout"], sequences), sequences, case["prompts"]):
        log_p = torch.log_softmax(logits[prompt - 1 : -1].float() / case["temperature"], -1)
        log_probs.append(log_p.gather(1, tokens[prompt:, None])[:, 0])
        entropies.append(-(log_p.exp() * log_p).sum(-1))
    log_probs, entropies = torch.cat(log_probs), torch.cat(entropies)
    weights = torch.from_numpy(stream.units(len(log_probs)))
    loss = -(weights * log_probs).mean() - ENTROPY_BONUS * entropies.mean()
    loss.backward()
    found = {"log_probs": log_probs, "entropy": entropies, "loss": loss[None]}
    found.update({f"grad.{name}": parameter.grad for name, parameter in named})
    return {name: value.detach().numpy().copy() for name, value in found.items()}


def gap(found, wanted):
    if found.keys() != wanted.keys():
        return float("inf")
    return max(np.abs(found[k] - v).max() / max(np.abs(v).max(), 1e-9) for k, v in wanted.items() if v.size)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the files that are there")
    check = parser.parse_args().check
    torch.manual_seed(0)
    worst = 0.0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        path = FOLDER / f"{case['name']}.safetensors"
        found = compute(case)
        if check:
            this = gap(load_file(path), found)
            print(f"{case['name']}: largest relative difference {this:.1e}")
            worst = max(worst, this)
            continue
        metadata = {key: json.dumps(value) for key, value in case.items()}
        save_file(found, path, metadata)
        print(f"{path.name}: {path.stat().st_size} bytes, {found['log_probs'].size} scored, loss {found['loss'][0]:.4f}")
    if worst > 1e-4:
        sys.exit("the fixtures are not what this transformers computes")


if __name__ == "__main__":
    main()
