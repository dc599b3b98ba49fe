#!/usr/bin/env python3
"""One training step in plain PyTorch, written from the formulas of docs/numerics.md and from nothing else.

    python3 scripts/training_step.py        writes tests/data/training_step/ (needs torch and safetensors)

The folder holds a tiny Qwen2 and a reference model, recorded rollouts (tokens, rewards, the sampler's log-probs), and for
each case the settings, the figures of the step, the weights after it and the first moments of AdamW, all computed in
float64. `cargo test -p trainer training_step` runs `trainer score --update` on the same files and compares.

Float64 here, because two float32 programs would differ by their rounding and not say which is right. The inputs are
float32 values, so both sides start from the same numbers.
"""

import json
import math
import pathlib

import torch
from safetensors.torch import save_file
from torch.nn.functional import linear, silu

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "training_step"

CONFIG = {
    "model_type": "qwen2",
    "vocab_size": 24,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "eos_token_id": 1,
}

# What every case starts from. Keys and values are those of `--set`.
BASE = {
    "sampler.temperature": 1.0,
    "schedule.l_max": 32,
    "schedule.l_min": 16,
    "reference.kl_beta": 0.0,
    "reference.track": 0.5,
    "loss.clip_low": 0.2,
    "loss.clip_high": 0.28,
    "loss.dual_clip": "none",
    "loss.aggregation": "token",
    "loss.advantage": "group",
    "loss.entropy_bonus": 0.0,
    "loss.importance_cap": "none",
    "optimizer.learning_rate": 3e-3,
    "optimizer.warmup_steps": 0,
    "optimizer.weight_decay": 0.0,
    "optimizer.beta1": 0.9,
    "optimizer.beta2": 0.99,
    "optimizer.epsilon": 1e-8,
    "optimizer.max_grad_norm": 1000.0,
    "optimizer.updates_per_step": 1,
    "model.micro_batch_tokens": 40,
}

# One option a case, then all of them together.
CASES = {
    "base": {},
    "clip": {"loss.clip_low": 0.05, "loss.clip_high": 0.5},
    "dual_clip": {"loss.dual_clip": 1.2},
    "aggregation_sequence": {"loss.aggregation": "sequence"},
    "aggregation_constant": {"loss.aggregation": "constant"},
    "advantage_group_mean": {"loss.advantage": "group-mean"},
    "advantage_batch": {"loss.advantage": "batch"},
    "advantage_leave_one_out": {"loss.advantage": "leave-one-out"},
    "kl_beta": {"reference.kl_beta": 0.2, "reference.track": 1.0},
    "no_reference": {"reference.track": 0.0},
    "entropy_bonus": {"loss.entropy_bonus": 0.05},
    "importance_cap": {"loss.importance_cap": 1.2},
    "importance_cap_two_updates": {"loss.importance_cap": 1.2, "optimizer.updates_per_step": 2},
    "two_updates": {"optimizer.updates_per_step": 2},
    "five_updates_for_four_groups": {"optimizer.updates_per_step": 5},
    "warm_up": {"optimizer.warmup_steps": 4, "optimizer.updates_per_step": 2},
    "weight_decay": {"optimizer.weight_decay": 0.5},
    "gradient_clipping": {"optimizer.max_grad_norm": 0.01, "optimizer.epsilon": 1e-3},
    "no_gradient_clipping": {"optimizer.max_grad_norm": 1000.0, "optimizer.epsilon": 1e-3},
    "betas": {"optimizer.beta1": 0.5, "optimizer.beta2": 0.75, "optimizer.updates_per_step": 3},
    "temperature": {"sampler.temperature": 0.7},
    "one_micro_batch": {"model.micro_batch_tokens": 4096},
    "a_micro_batch_a_sequence": {"model.micro_batch_tokens": 1},
    "recompute": {"model.recompute": True},
    "all": {
        "sampler.temperature": 0.8,
        "reference.kl_beta": 0.1,
        "reference.track": 1.0,
        "loss.clip_low": 0.1,
        "loss.clip_high": 0.3,
        "loss.dual_clip": 2.0,
        "loss.aggregation": "sequence",
        "loss.advantage": "leave-one-out",
        "loss.entropy_bonus": 0.01,
        "loss.importance_cap": 2.0,
        "optimizer.warmup_steps": 4,
        "optimizer.weight_decay": 0.1,
        "optimizer.max_grad_norm": 0.2,
        "optimizer.updates_per_step": 3,
        "optimizer.epsilon": 1e-6,
    },
}


# ---- the model: one sequence at a time, nothing packed, logits at full length


def shapes():
    h, i = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    kv = h // CONFIG["num_attention_heads"] * CONFIG["num_key_value_heads"]
    found = {"model.embed_tokens.weight": (CONFIG["vocab_size"], h), "model.norm.weight": (h,)}
    for layer in range(CONFIG["num_hidden_layers"]):
        block = {
            "input_layernorm.weight": (h,),
            "self_attn.q_proj.weight": (h, h),
            "self_attn.q_proj.bias": (h,),
            "self_attn.k_proj.weight": (kv, h),
            "self_attn.k_proj.bias": (kv,),
            "self_attn.v_proj.weight": (kv, h),
            "self_attn.v_proj.bias": (kv,),
            "self_attn.o_proj.weight": (h, h),
            "post_attention_layernorm.weight": (h,),
            "mlp.gate_proj.weight": (i, h),
            "mlp.up_proj.weight": (i, h),
            "mlp.down_proj.weight": (h, i),
        }
        found |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    return found


def rms_norm(x, weight):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + CONFIG["rms_norm_eps"]) * weight


def rope(x):
    """x: [heads, time, dim]; the pair (i, i + dim / 2) turns by position * base^(-2i / dim)."""
    time, dim = x.shape[-2:]
    frequency = CONFIG["rope_theta"] ** (-torch.arange(0, dim, 2, dtype=x.dtype) / dim)
    angle = torch.arange(time, dtype=x.dtype)[:, None] * frequency
    a, b = x[..., : dim // 2], x[..., dim // 2 :]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def log_softmax(weights, tokens, temperature):
    """Log-probs of the next token after each of `tokens`, [time, vocabulary]."""
    heads, kv_heads = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"]
    time, dim = len(tokens), CONFIG["hidden_size"] // heads
    x = weights["model.embed_tokens.weight"][torch.tensor(tokens)]
    future = torch.ones(time, time).triu(1).bool()
    for layer in range(CONFIG["num_hidden_layers"]):

        def of(name):
            return weights[f"model.layers.{layer}.{name}"]

        y = rms_norm(x, of("input_layernorm.weight"))
        q, k, v = (
            linear(y, of(f"self_attn.{p}_proj.weight"), of(f"self_attn.{p}_proj.bias")).view(time, -1, dim).transpose(0, 1)
            for p in "qkv"
        )
        k, v = (t.repeat_interleave(heads // kv_heads, 0) for t in (rope(k), v))
        scores = (rope(q) @ k.transpose(1, 2) / math.sqrt(dim)).masked_fill(future, -math.inf)
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(time, -1)
        x = x + linear(mixed, of("self_attn.o_proj.weight"))
        y = rms_norm(x, of("post_attention_layernorm.weight"))
        gate, up = linear(y, of("mlp.gate_proj.weight")), linear(y, of("mlp.up_proj.weight"))
        x = x + linear(silu(gate) * up, of("mlp.down_proj.weight"))
    logits = linear(rms_norm(x, weights["model.norm.weight"]), weights["model.embed_tokens.weight"])
    return torch.log_softmax(logits / temperature, -1)


def score(weights, rollout, temperature):
    """Log-prob and entropy of each response token, [response]."""
    prompt, response = rollout["prompt_ids"], rollout["response_ids"]
    table = log_softmax(weights, prompt + response, temperature)[len(prompt) - 1 : -1]
    return table.gather(1, torch.tensor(response)[:, None])[:, 0], -(table.exp() * table).sum(-1)


# ---- the step


def k3(gap):
    return gap.exp() - gap - 1


def advantages(kind, groups):
    """One list of advantages a group, of all its rollouts."""
    rewards = [torch.tensor([row["reward"] for row in group], dtype=torch.float64) for group in groups]
    centred = [r - r.mean() for r in rewards]
    if kind == "group":
        return [(c / r.std(correction=1)).tolist() for c, r in zip(centred, rewards)]
    if kind == "group-mean":
        return [c.tolist() for c in centred]
    if kind == "batch":
        return [(c / torch.cat(centred).std(correction=1)).tolist() for c in centred]
    assert kind == "leave-one-out"
    return [[(x - (r.sum() - x) / (len(r) - 1)).item() for x in r] for r in rewards]


def training_step(settings, weights, reference, groups):
    """Figures of the step, new weights and first moments."""
    temperature, beta = settings["sampler.temperature"], settings["reference.kl_beta"]
    used = [g for g in groups if len({row["reward"] for row in g}) > 1 and any(row["kept"] for row in g)]
    for group, values in zip(used, advantages(settings["loss.advantage"], used)):
        for row, advantage in zip(group, values):
            row["advantage"] = advantage
    with torch.no_grad():
        kl = measured_kl(settings, reference, groups)
        for row in (row for group in used for row in group if row["kept"]):
            row["old"] = row["sampled"]
            row["importance"] = torch.ones_like(row["sampled"])
            if settings["loss.importance_cap"] != "none":
                row["old"] = score(weights, row, temperature)[0]
                row["importance"] = (row["old"] - row["sampled"]).exp().clamp(max=settings["loss.importance_cap"])
            row["reference"] = score(reference, row, temperature)[0]
    parameters = {name: value.clone().requires_grad_() for name, value in weights.items()}
    optimizer = adamw(settings, parameters)
    count = min(settings["optimizer.updates_per_step"], len(used))
    updates, tokens, gap = [], [], None
    for i in range(count):
        share = used[len(used) * i // count : len(used) * (i + 1) // count]
        rows = [row for group in share for row in group if row["kept"]]
        loss, figures = policy_loss(settings, parameters, rows)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.sqrt(sum((p.grad**2).sum() for p in parameters.values()))
        well_conditioned(all(p.grad.abs().min() > 3e-7 * norm for p in parameters.values()) or i > 0)
        for p in parameters.values():
            p.grad *= min(1.0, settings["optimizer.max_grad_norm"] / norm.item())
        rate = learning_rate(settings, i)
        for part in optimizer.param_groups:
            part["lr"] = rate
        optimizer.step()
        updates.append((loss.item(), norm.item()))
        tokens += figures
        gap = gap or mean(abs(t["new"] - t["sampled"]) for t in figures)
    well_conditioned(abs(mean(loss for loss, _ in updates)) > 0.03)
    clipped = {side: sum(t["side"] == side for t in tokens) for side in ("low", "high", "dual")}
    figures = {
        "entropy": mean(t["entropy"] for t in tokens),
        "kl": kl,
        "clip_fraction": sum(clipped.values()) / len(tokens),
        "loss": mean(loss for loss, _ in updates),
        "grad_norm": mean(norm for _, norm in updates),
        "learning_rate": rate,
        "groups_used": len(used),
        "logprob_gap": gap,
        "updates": len(updates),
        "response_tokens": len(tokens),
        **{f"clipped_{side}": count for side, count in clipped.items()},
        "ratio": mean(t["ratio"] for t in tokens),
        "ratio_max": max(t["ratio"] for t in tokens),
        "policy_kl": mean(t["ratio"] - math.log(t["ratio"]) - 1 for t in tokens),
        "reference_kl": mean(t["k3"] for t in tokens) if beta > 0 else 0.0,
        "importance": mean(t["importance"] for t in tokens),
    }
    moments = {name: optimizer.state[p]["exp_avg"] for name, p in parameters.items()}
    return figures, {name: p.detach() for name, p in parameters.items()}, moments


def measured_kl(settings, reference, groups):
    """Of the first rollouts of every group, those that are not used included."""
    track = 1.0 if settings["reference.kl_beta"] > 0 else settings["reference.track"]
    rows = [row for group in groups for row in group[: math.ceil(track * len(group))]]
    if not rows:
        return None
    gaps = [score(reference, row, settings["sampler.temperature"])[0] - row["sampled"] for row in rows]
    return k3(torch.cat(gaps)).mean().item()


def policy_loss(settings, parameters, rows):
    """The loss of an update over all of its kept rollouts, and the figures of each of its tokens."""
    low, high, dual = 1 - settings["loss.clip_low"], 1 + settings["loss.clip_high"], settings["loss.dual_clip"]
    losses, figures = [], []
    for row in rows:
        new, entropy = score(parameters, row, settings["sampler.temperature"])
        ratio, advantage = (new - row["old"]).exp(), row["advantage"]
        objective = torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
        if dual != "none" and advantage < 0:
            objective = objective.clamp(min=dual * advantage)
        penalty = k3(row["reference"] - new)
        losses.append(
            -row["importance"] * objective
            + settings["reference.kl_beta"] * penalty
            - settings["loss.entropy_bonus"] * entropy
        )
        for t in range(len(new)):
            r = ratio[t].item()
            well_conditioned(all(abs(r / bound - 1) > 1e-4 for bound in (low, high, dual) if bound != "none"))
            figures.append(
                {
                    "new": new[t].item(),
                    "sampled": row["sampled"][t].item(),
                    "entropy": entropy[t].item(),
                    "ratio": r,
                    "k3": penalty[t].item(),
                    "importance": row["importance"][t].item(),
                    "side": side(r, advantage, low, high, dual),
                }
            )
    kind = settings["loss.aggregation"]
    if kind == "token":
        return torch.cat(losses).mean(), figures
    if kind == "sequence":
        return torch.stack([loss.mean() for loss in losses]).mean(), figures
    assert kind == "constant"
    return torch.stack([loss.sum() / settings["schedule.l_max"] for loss in losses]).mean(), figures


def side(ratio, advantage, low, high, dual):
    """Which bound holds a token."""
    if advantage > 0:
        return "high" if ratio > high else None
    if advantage < 0 and ratio < low:
        return "low"
    return "dual" if advantage < 0 and dual != "none" and ratio > dual else None


class IllConditioned(Exception):
    """A result that hangs on a rounding error."""


def well_conditioned(holds):
    """Refuses rollouts on which float32 and float64 may differ for no fault of either: a ratio that is almost on a bound,
    a loss that is almost zero, or a gradient so small that its sign, which is all of Adam's first step, is uncertain."""
    if not holds:
        raise IllConditioned


def learning_rate(settings, update):
    warmup, peak = settings["optimizer.warmup_steps"], settings["optimizer.learning_rate"]
    return peak * (update + 1) / warmup if update < warmup else peak


def adamw(settings, parameters):
    matrices = [p for p in parameters.values() if p.dim() == 2]
    others = [p for p in parameters.values() if p.dim() == 1]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": settings["optimizer.weight_decay"]}, {"params": others, "weight_decay": 0.0}],
        betas=(settings["optimizer.beta1"], settings["optimizer.beta2"]),
        eps=settings["optimizer.epsilon"],
    )


def mean(values):
    values = list(values)
    return sum(values) / len(values)


# ---- the recorded rollouts


def random_weights(generator):
    """Large enough that the distributions are far from flat; norms and biases off their usual start."""

    def tensor(name, shape):
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        if name.endswith("norm.weight"):
            return 1 + 0.2 * noise
        return noise if "embed" in name else 0.3 * noise

    return {name: rounded(tensor(name, shape)) for name, shape in shapes().items()}


def rounded(tensor):
    return tensor.float().double()


def rollouts(weights, generator):
    """Eight groups of four: five with a signal, of which one is cut off as a whole, one all right and two all wrong."""
    rewards = [[1, 0, 0, 1], [1, 1, 1, 1], [0.4, 0, 1, 0.7], [0, 0, 0, 0], [0, 0, 0, 1], [1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]]
    dropped = {(2, 1), (5, 3), (6, 0), (6, 1), (6, 2), (6, 3)}
    rows = []

    def below(limit):
        return int(torch.randint(limit, (1,), generator=generator))

    def ids(count):
        return [below(CONFIG["vocab_size"]) for _ in range(count)]

    for g, values in enumerate(rewards):
        prompt = ids(2 + below(4))
        for i, reward in enumerate(values):
            row = {"group": g, "prompt_ids": prompt, "response_ids": ids(1 + below(14)), "reward": reward}
            row["kept"] = (g, i) not in dropped
            # The sampler's policy was another one: most ratios are near 1, one in five is not.
            log_probs = score(weights, row, 1.0)[0]
            noise, far = torch.randn(2, len(log_probs), generator=generator, dtype=torch.float64)
            rare = torch.rand(len(log_probs), generator=generator) < 0.2
            log_probs = torch.minimum(log_probs + 0.15 * noise + rare * far, torch.tensor(-0.01))
            row["logprobs"] = rounded(log_probs).tolist()
            rows.append(row)
    return rows


def write_model(folder, weights):
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", CONFIG)
    vocabulary = {f"t{i}": i for i in range(CONFIG["vocab_size"])}
    word_level = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "t0"}
    write_json(folder / "tokenizer.json", {"version": "1.0", "added_tokens": [], "model": word_level})
    save_file({name: value.float() for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n")


def main():
    torch.set_num_threads(1)
    for seed in range(100):
        try:
            weights, reference, rows = recorded(seed)
            results = {name: run_case(BASE | changes, weights, reference, rows) for name, changes in CASES.items()}
        except IllConditioned:
            continue
        print(f"seed {seed}")
        return write(weights, reference, rows, results)
    raise SystemExit("no seed gives well-conditioned rollouts")


def recorded(seed):
    generator = torch.Generator().manual_seed(seed)
    weights = random_weights(generator)
    reference = {name: rounded(w + 0.03 * torch.randn(w.shape, generator=generator)) for name, w in weights.items()}
    return weights, reference, rollouts(weights, generator)


def run_case(settings, weights, reference, rows):
    rows = [row | {"sampled": torch.tensor(row["logprobs"], dtype=torch.float64)} for row in rows]
    groups = [[row for row in rows if row["group"] == g] for g in sorted({row["group"] for row in rows})]
    return training_step(settings, weights, reference, groups)


def write(weights, reference, rows, results):
    write_model(FOLDER / "policy", weights)
    write_model(FOLDER / "reference", reference)
    (FOLDER / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cases, tensors = [], {}
    for name, (figures, after, moments) in results.items():
        cases.append({"name": name, "settings": BASE | CASES[name], "figures": figures})
        for key in weights:
            tensors[f"{name}/{key}"] = after[key].float()
            tensors[f"{name}/{key}.first_moment"] = moments[key].float()
        print(f"{name:28} loss {figures['loss']:+.6f}  gradient {figures['grad_norm']:.4f}  "
              f"clipped {figures['clipped_low']}+{figures['clipped_high']}+{figures['clipped_dual']}")
    write_json(FOLDER / "cases.json", cases)
    save_file(tensors, FOLDER / "expected.safetensors")


if __name__ == "__main__":
    main()
