//! The grid: every operation at sizes that do and do not fit a block, a warp or a vector.

use super::{Case, Input, Tolerance};
use crate::kernels::packed::Compute;
use crate::ops::attention::Form;
use crate::ops::log_prob::Scored;
use crate::ops::{self, Heads, RopeTable};
use candle_core::{DType, Result, Tensor};
use std::sync::Arc;

/// Between two roundings to bf16 (at most 2^-9 each) and the rounding of what comes between.
const ELEMENTWISE: Tolerance = Tolerance { f32: 1e-5, bf16: 1.0 / 128.0 };
/// Sums over rows or over what is rounded already.
const SUMMED: Tolerance = Tolerance { f32: 2e-5, bf16: 1.0 / 64.0 };

/// Query heads for each key-value head, key-value heads, and the width of a head: one of each, the ratios and widths
/// of the embedded policy, Qwen2 and Qwen3.
const HEADS: [(usize, usize, usize); 9] =
    [(1, 1, 16), (2, 2, 16), (2, 2, 32), (2, 1, 64), (6, 2, 64), (7, 1, 64), (1, 3, 128), (6, 1, 128), (7, 2, 16)];

/// Every operation at every size.
pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for views in [false, true] {
        for sizes in [(1, 1, 1), (1, 64, 48), (7, 33, 17), (65, 128, 96), (129, 96, 257)] {
            all.push(linear(sizes, true, views));
        }
        all.push(linear((33, 1536, 256), false, views));
        // Of width 1 the gradient is zero but for rounding.
        for sizes in [(1, 3), (1, 16), (3, 33), (5, 64), (300, 129), (17, 128), (33, 1536)] {
            all.push(rms_norm(sizes, views));
        }
        for (heads, dim) in [(1, 16), (3, 16), (7, 64), (2, 128)] {
            all.push(rope(heads, dim, views));
        }
        for sizes in [(1, 1), (3, 33), (17, 128), (5, 8960)] {
            all.push(swiglu(sizes, views));
        }
        for lengths in [&[1][..], &[7], &[1, 65, 0, 2, 33], &[130]] {
            all.extend(HEADS.map(|heads| attention(heads, lengths, views)));
        }
        for sizes in [(1, 8, 2), (9, 33, 101), (40, 64, 1000), (33, 64, 5003)] {
            all.extend([1.0, 0.6].map(|temperature| log_prob(sizes, temperature, views)));
        }
    }
    // Longer than any block of keys, and as many tokens as a real vocabulary has.
    all.push(attention((6, 2, 128), &[515], false));
    all.push(attention((2, 1, 64), &[1025], false));
    all.push(log_prob((5, 32, 151_936), 1.0, false));
    all.extend([(1, 7, 5), (40, 33, 64), (300, 11, 16)].map(embedding));
    all
}

fn views_in(shape: String, views: bool) -> String {
    if views { shape + ", views" } else { shape }
}

/// `tokens`, `in`, `out`.
fn linear((tokens, inner, out): (usize, usize, usize), biased: bool, views: bool) -> Case {
    let scale = 1.0 / (inner as f32).sqrt();
    let mut inputs = vec![Input::activation("x", &[tokens, inner]), Input::weight("w", &[out, inner], scale)];
    if biased {
        inputs.push(Input::weight("b", &[out], 1.0));
    }
    Case {
        op: "linear",
        shape: views_in(format!("{tokens} x {inner} to {out}{}", if biased { ", bias" } else { "" }), views),
        inputs,
        fused: Box::new(|x: &[Tensor]| ops::linear(&x[0], &x[1], x.get(2), Compute::F32)),
        composed: Box::new(|x: &[Tensor]| ops::linear::composed(&x[0], &x[1], x.get(2), Compute::F32)),
        tolerance: SUMMED,
        views,
    }
}

fn rms_norm((tokens, width): (usize, usize), views: bool) -> Case {
    Case {
        op: "rms_norm",
        shape: views_in(format!("{tokens} x {width}"), views),
        inputs: vec![Input::activation("x", &[tokens, width]), Input::weight("w", &[width], 1.0)],
        fused: Box::new(|x: &[Tensor]| ops::rms_norm(&x[0], &x[1], 1e-6)),
        composed: Box::new(|x: &[Tensor]| ops::rms_norm::composed(&x[0], &x[1], 1e-6)),
        tolerance: SUMMED,
        views,
    }
}

fn rope(heads: usize, dim: usize, views: bool) -> Case {
    let positions: Arc<[u32]> = [0, 1, 2, 3, 0, 1, 699, 4095, 2, 0, 257].into();
    let table = RopeTable::new(dim, 10_000.0, 4096);
    let (other_table, other_positions) = (table.clone(), positions.clone());
    Case {
        op: "rope",
        shape: views_in(format!("{} tokens, {heads} heads of {dim}", positions.len()), views),
        inputs: vec![Input::activation("x", &[positions.len(), heads * dim])],
        fused: Box::new(move |x: &[Tensor]| ops::rope(&x[0], &table, &positions)),
        composed: Box::new(move |x: &[Tensor]| ops::rope::composed(&x[0], &other_table, &other_positions)),
        tolerance: ELEMENTWISE,
        views,
    }
}

fn swiglu((tokens, width): (usize, usize), views: bool) -> Case {
    let input = |name| Input { scale: 3.0, ..Input::activation(name, &[tokens, width]) };
    Case {
        op: "swiglu",
        shape: views_in(format!("{tokens} x {width}"), views),
        inputs: vec![input("gate"), input("up")],
        fused: Box::new(|x: &[Tensor]| ops::swiglu(&x[0], &x[1])),
        composed: Box::new(|x: &[Tensor]| ops::swiglu::composed(&x[0], &x[1])),
        tolerance: ELEMENTWISE,
        views,
    }
}

/// Sequences of `lengths`, packed; `ratio` query heads for each of `key_value` heads.
fn attention((ratio, key_value, dim): (usize, usize, usize), lengths: &[usize], views: bool) -> Case {
    let heads = Heads { query: ratio * key_value, key_value, dim };
    let ends = lengths.iter().scan(0, |end, length| {
        *end += length;
        Some(*end)
    });
    let offsets: Arc<[usize]> = std::iter::once(0).chain(ends).collect();
    let tokens: usize = lengths.iter().sum();
    let others = offsets.clone();
    let form = Form { heads, compute: Compute::F32 };
    let keys = [tokens, key_value * dim];
    // Larger queries make some weights large: a flat softmax would hide a wrong one.
    let q = Input { scale: 4.0, ..Input::activation("q", &[tokens, heads.query * dim]) };
    Case {
        op: "attention",
        shape: views_in(format!("{lengths:?} tokens, {}/{key_value} heads of {dim}", heads.query), views),
        inputs: vec![q, Input::activation("k", &keys), Input::activation("v", &keys)],
        fused: Box::new(move |x: &[Tensor]| ops::attention(&x[0], &x[1], &x[2], form, &offsets)),
        composed: Box::new(move |x: &[Tensor]| ops::attention::composed(&x[0], &x[1], &x[2], heads, &others)),
        tolerance: SUMMED,
        views,
    }
}

/// `tokens`, `hidden`, `vocabulary`; some tokens scored twice, some not at all.
fn log_prob((tokens, width, vocab): (usize, usize, usize), temperature: f32, views: bool) -> Case {
    let rows: Arc<[u32]> = (0..tokens as u32).map(|i| i * 3 % tokens as u32).collect();
    let targets: Arc<[u32]> = (0..tokens as u32).map(|i| i * 7919 % vocab as u32).collect();
    let scored = Scored { rows, targets, temperature, compute: Compute::F32 };
    let other = scored.clone();
    let stacked = |scores: ops::HeadScores| -> Result<Tensor> { Tensor::stack(&[scores.log_probs, scores.entropy], 0) };
    let scale = 3.0 / (width as f32).sqrt();
    Case {
        op: "log_prob",
        shape: views_in(format!("{tokens} x {width}, vocabulary {vocab}, temperature {temperature}"), views),
        inputs: vec![Input::activation("hidden", &[tokens, width]), Input::weight("head", &[vocab, width], scale)],
        fused: Box::new(move |x: &[Tensor]| stacked(ops::log_prob(&x[0], &x[1], &scored)?)),
        composed: Box::new(move |x: &[Tensor]| ops::log_prob::composed(&x[0], &x[1], &other)),
        tolerance: SUMMED,
        views,
    }
}

/// Rows of an embedding, some of them several times, against the product with ones.
fn embedding((tokens, vocab, width): (usize, usize, usize)) -> Case {
    let ids: Arc<[u32]> = (0..tokens as u32).map(|i| i * i % vocab as u32).collect();
    let others = ids.clone();
    let product = move |x: &[Tensor]| {
        let mut ones = vec![0.0f32; tokens * vocab];
        others.iter().enumerate().for_each(|(row, &id)| ones[row * vocab + id as usize] = 1.0);
        let ones = Tensor::from_vec(ones, (tokens, vocab), x[0].device())?;
        ones.matmul(&x[0].to_dtype(DType::F32)?)?.to_dtype(x[0].dtype())
    };
    Case {
        op: "embedding",
        shape: format!("{tokens} tokens of {vocab} x {width}"),
        inputs: vec![Input::weight("w", &[vocab, width], 1.0)],
        fused: Box::new(move |x: &[Tensor]| ops::embedding(&x[0], &ids)),
        composed: Box::new(product),
        tolerance: SUMMED,
        views: false,
    }
}
