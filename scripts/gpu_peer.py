#!/usr/bin/env python3
"""The other side of scripts/gpu_check.sh: rollouts by transformers' generate and training steps in PyTorch.

Random weights of a config.json in bf16. Each command prints one JSON object to stdout: tokens, the seconds of each timed
repeat, and the most device memory that PyTorch reserved. What takes longer than --limit seconds ends early and says so.

    gpu_peer.py versions
    gpu_peer.py roof    --device cuda
    gpu_peer.py rollout --config config.json --device cuda --rows 256 --prompt 512 --new 2048
    gpu_peer.py train   --config config.json --device cuda --rows 4 --tokens 4096 --weights bf16|master
"""

import argparse
import json
import sys
import time


def versions():
    """What this Python has of what is needed; a missing package is null."""
    found = {"python": sys.version.split()[0]}
    for name in ("torch", "transformers"):
        try:
            found[name] = __import__(name).__version__
        except Exception:  # A package that cannot be imported, whatever the reason, is not there.
            found[name] = None
    return found


def synchronise(device):
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def peak(device):
    """Bytes that PyTorch's allocator held at its height; null where it keeps no count."""
    import torch

    return torch.cuda.max_memory_reserved() if device == "cuda" else None


def roof(arguments):
    """FLOP/s of a bf16 product of random matrices: the most that a program of products can reach here."""
    import torch

    n, repeats = (8192, 20) if arguments.device == "cuda" else (512, 3)
    a, b = (torch.randn(n, n, device=arguments.device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    synchronise(arguments.device)
    start = time.perf_counter()
    for _ in range(repeats):
        a @ b
    synchronise(arguments.device)
    seconds = time.perf_counter() - start
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu"
    return {"flops": 2 * n**3 * repeats / seconds, "size": n, "name": name}


def random_model(arguments, dtype):
    """A model of the configuration with fresh weights, and its SDPA attention."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(arguments.config)
    torch.manual_seed(1)
    torch.set_default_dtype(dtype)
    with torch.device(arguments.device):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype)
    torch.set_default_dtype(torch.float32)
    return model


def rollout(arguments):
    """Exactly --new tokens for each row, temperature 1, of the whole distribution; no token ends a response."""
    import torch

    start = time.perf_counter()
    model = random_model(arguments, torch.bfloat16).eval()
    ids = torch.randint(0, model.config.vocab_size, (arguments.rows, arguments.prompt), device=arguments.device)
    common = {
        "attention_mask": torch.ones_like(ids),
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    with torch.inference_mode():
        model.generate(ids, max_new_tokens=min(16, arguments.new), **common)
        synchronise(arguments.device)
        left = arguments.limit - (time.perf_counter() - start)
        timed = time.perf_counter()
        out = model.generate(ids, max_new_tokens=arguments.new, max_time=max(left, 1.0), **common)
        synchronise(arguments.device)
        seconds = time.perf_counter() - timed
    each = out.shape[1] - arguments.prompt
    ended = None if each == arguments.new else f"ended by the time limit after {each} of {arguments.new} tokens a row"
    return {
        "tokens": arguments.rows * each,
        "seconds": [seconds],
        "peak_device_bytes": peak(arguments.device),
        "note": ended,
    }


def train(arguments):
    """Forward, backward and fused AdamW with gradient checkpointing; each row is one sequence of --tokens tokens.

    --weights bf16 keeps weights, gradients and moments in bf16; master keeps them in f32 and computes in bf16 (autocast).
    """
    import torch

    start = time.perf_counter()
    master = arguments.weights == "master"
    model = random_model(arguments, torch.float32 if master else torch.bfloat16)
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-7, weight_decay=0.0, fused=True)
    ids = torch.randint(0, model.config.vocab_size, (arguments.rows, arguments.tokens), device=arguments.device)
    seconds, loss_values = [], []
    for repeat in range(arguments.repeats + 1):
        if repeat > 1 and time.perf_counter() - start > arguments.limit:
            break
        synchronise(arguments.device)
        began = time.perf_counter()
        with torch.autocast(arguments.device, dtype=torch.bfloat16, enabled=master):
            logits = model(ids, use_cache=False).logits[:, :-1]
        logits = logits.float().flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
        del logits
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss_values.append(loss.item())
        synchronise(arguments.device)
        # The first fills caches and allocates.
        if repeat > 0:
            seconds.append(time.perf_counter() - began)
    return {
        "tokens": arguments.rows * arguments.tokens,
        "seconds": seconds,
        "loss": loss_values[0],
        "peak_device_bytes": peak(arguments.device),
        "note": None,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["versions", "roof", "rollout", "train"])
    parser.add_argument("--config")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--weights", choices=["bf16", "master"], default="bf16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds")
    arguments = parser.parse_args()
    if arguments.command == "versions":
        print(json.dumps(versions()))
        return 0
    commands = {"roof": roof, "rollout": rollout, "train": train}
    print(json.dumps(commands[arguments.command](arguments)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
