//! Every kernel against its composed twin, on the CPU.

use super::gpu::{Gpu, Scalar, View};
use super::host::{Host, HostMemory};
use super::*;
use crate::ops::sample::Distribution;
use crate::ops::testing::variable;
use candle_core::{DType, Device, Result, Tensor, Var};
use std::sync::Arc;

const SCALARS: [Scalar; 2] = [Scalar::F32, Scalar::Bf16];

/// Largest difference over the largest magnitude that a type is allowed: bf16 keeps eight bits.
fn tolerance(scalar: Scalar) -> f64 {
    match scalar {
        Scalar::F32 => 1e-5,
        Scalar::Bf16 => 6e-3,
    }
}

/// What the device holds of a tensor, and the tensor of exactly those values.
fn held(tensor: &Tensor, scalar: Scalar) -> (Arc<HostMemory>, Var) {
    let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
    match scalar {
        Scalar::F32 => (Host::f32s(&values), Var::from_tensor(tensor).unwrap()),
        Scalar::Bf16 => {
            let rounded = tensor.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
            (Host::bf16s(&values), Var::from_tensor(&rounded).unwrap())
        }
    }
}

/// A tensor of what the device holds.
fn read(memory: &HostMemory, scalar: Scalar, shape: &[usize]) -> Tensor {
    let n = shape.iter().product();
    let values = match scalar {
        Scalar::F32 => memory.f32s(n),
        Scalar::Bf16 => memory.bf16s(n),
    };
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn assert_close(name: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    let (a, b): (Vec<f32>, Vec<f32>) =
        (got.flatten_all().unwrap().to_vec1().unwrap(), want.flatten_all().unwrap().to_vec1().unwrap());
    assert_eq!(a.len(), b.len());
    let scale = b.iter().fold(1e-3f64, |m, v| m.max(v.abs().into()));
    for (i, (x, y)) in a.iter().zip(&b).enumerate() {
        let gap = f64::from((x - y).abs()) / scale;
        assert!(gap < tolerance, "{name}: {x} for {y} at {i} of {:?}, {gap} of the largest", got.dims());
    }
}

/// Gradients of a function of these variables for the gradient `g` of its value.
fn gradients(value: &Tensor, g: &Tensor, variables: &[&Var]) -> Vec<Tensor> {
    let store = (value * g).unwrap().sum_all().unwrap().backward().unwrap();
    variables.iter().map(|v| store.get(v.as_tensor()).unwrap().clone()).collect()
}

#[test]
fn pointers_keep_their_address_space() {
    // The first that cannot be checked ends it.
    let _ = super::gpu::Library::all().try_for_each(|library| super::host::check_address_spaces(&library));
}

#[test]
fn rms_norm_equals_its_twin() -> Result<()> {
    let Some(host) = Host::new() else { return Ok(()) };
    for scalar in SCALARS {
        for (rows, width) in [(1, 4), (5, 128), (600, 33), (3, 1536), (2, 1025)] {
            let (x, xs) = held(&variable(&[rows, width], 1), scalar);
            let (w, ws) = held(&variable(&[width], 2), scalar);
            let (g, gs) = held(&variable(&[rows, width], 3), scalar);
            let norm = rms_norm::Norm { x: View::all(&*x), w: View::all(&*w), scalar, rows, width, eps: 1e-6 };
            let want = crate::ops::rms_norm::composed(&xs, &ws, 1e-6)?;
            assert_close("y", &read(&*norm.forward(&host)?, scalar, &[rows, width]), &want, tolerance(scalar));
            let got = norm.backward(&host, View::all(&*g))?;
            let want = gradients(&want, &gs, &[&xs, &ws]);
            assert_close("dx", &read(&got.x, scalar, &[rows, width]), &want[0], tolerance(scalar));
            assert_close("dw", &read(&got.w, scalar, &[width]), &want[1], tolerance(scalar));
        }
    }
    Ok(())
}

#[test]
fn swiglu_equals_its_twin() -> Result<()> {
    let Some(host) = Host::new() else { return Ok(()) };
    for scalar in SCALARS {
        for (rows, width) in [(1, 5), (7, 384)] {
            let scaled = |seed| (variable(&[rows, width], seed).as_detached_tensor() * 8.0).unwrap();
            let (gate, gates) = held(&scaled(1), scalar);
            let (up, ups) = held(&scaled(2), scalar);
            let (g, gs) = held(&variable(&[rows, width], 3), scalar);
            let op = swiglu::Gate { gate: View::all(&*gate), up: View::all(&*up), scalar, count: rows * width };
            let want = crate::ops::swiglu::composed(&gates, &ups)?;
            assert_close("y", &read(&*op.forward(&host)?, scalar, &[rows, width]), &want, tolerance(scalar));
            let got = op.backward(&host, View::all(&*g))?;
            for (got, want) in got.iter().zip(gradients(&want, &gs, &[&gates, &ups])) {
                assert_close("gradient", &read(got, scalar, &[rows, width]), &want, tolerance(scalar));
            }
        }
    }
    Ok(())
}

#[test]
fn rope_equals_its_twin() -> Result<()> {
    let Some(host) = Host::new() else { return Ok(()) };
    for scalar in SCALARS {
        for (heads, dim) in [(3, 32), (1, 10), (2, 128)] {
            let table = crate::ops::RopeTable::new(dim, 10_000.0, 700);
            let positions = [0, 1, 2, 699, 5, 0, 31];
            let (x, xs) = held(&variable(&[7, heads * dim], 1), scalar);
            let (cosines, sines) = (Host::f32s(&table.cos), Host::f32s(&table.sin));
            let places = host.upload(&positions)?;
            let rotation = |sign| rope::Rotation {
                cosines: View::all(&*cosines),
                sines: View::all(&*sines),
                positions: View::all(&*places),
                tokens: 7,
                heads,
                half: dim / 2,
                sign,
            };
            let want = crate::ops::rope::composed(&xs, &table, &positions)?;
            let got = rotation(1.0).apply(&host, View::all(&*x), scalar)?;
            assert_close("y", &read(&got, scalar, &[7, heads * dim]), &want, tolerance(scalar));
            let (g, gs) = held(&variable(&[7, heads * dim], 3), scalar);
            let got = rotation(-1.0).apply(&host, View::all(&*g), scalar)?;
            let want = &gradients(&want, &gs, &[&xs])[0];
            assert_close("dx", &read(&got, scalar, &[7, heads * dim]), want, tolerance(scalar));
        }
    }
    Ok(())
}

/// `[n]` of f32 on the device, and the values.
fn floats(n: usize, seed: u64) -> (Arc<HostMemory>, Vec<f32>) {
    let values: Vec<f32> = variable(&[n], seed).to_vec1().unwrap();
    (Host::f32s(&values), values)
}

#[test]
fn the_norm_is_that_of_64_bit_sums() -> Result<()> {
    let Some(host) = Host::new() else { return Ok(()) };
    let sums = host.allocate(3 * 4)?;
    let mut want = Vec::new();
    for (place, n) in [1, 16_384, 50_001].into_iter().enumerate() {
        let (memory, values) = floats(n, 5 + place as u64);
        norm::squares(&host, View::all(&*memory), n, View::all(&*sums), place)?;
        want.push(values.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>());
    }
    for (got, want) in sums.f32s(3).into_iter().zip(want) {
        assert!((f64::from(got) / want - 1.0).abs() < 1e-6, "{got} for {want}");
    }
    Ok(())
}

#[test]
fn adamw_follows_its_formula() -> Result<()> {
    let Some(host) = Host::new() else { return Ok(()) };
    let n = 300;
    for scalar in SCALARS {
        let (first, mut m) = floats(n, 1);
        let (gradient, g) = floats(n, 2);
        let squared: Vec<f32> = m.iter().map(|v| v * v).collect();
        let (second, mut v) = (Host::f32s(&squared), squared);
        let (masters, mut p) = floats(n, 3);
        let values = if scalar == Scalar::F32 { masters.clone() } else { Host::bf16s(&p) };
        let update = adamw::Update {
            values: View::all(&*values),
            masters: (scalar == Scalar::Bf16).then(|| View::all(&*masters)),
            first: View::all(&*first),
            second: View::all(&*second),
            gradient: View::all(&*gradient),
            scalar,
            count: n,
        };
        let f = crate::ops::adamw::Factors {
            grad_scale: 0.5,
            beta1: 0.9,
            one_minus_beta1: 0.1,
            beta2: 0.95,
            one_minus_beta2: 0.05,
            step_size: 0.01,
            second_scale: 1.5,
            epsilon: 1e-6,
            keep: 0.99,
        };
        for _ in 0..3 {
            update.apply(&host, f)?;
            for i in 0..n {
                let g = g[i] * f.grad_scale;
                m[i] = f.beta1 * m[i] + f.one_minus_beta1 * g;
                v[i] = f.beta2 * v[i] + f.one_minus_beta2 * g * g;
                p[i] = f.keep * p[i] - f.step_size * m[i] / (f.second_scale * v[i].sqrt() + f.epsilon);
            }
        }
        let wanted = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
        for (name, got, want) in [("m", &first, &m), ("v", &second, &v), ("p", &masters, &p)] {
            assert_close(name, &wanted(&got.f32s(n)), &wanted(want), 1e-6);
        }
        assert_close("value", &read(&values, scalar, &[n]), &wanted(&p), tolerance(scalar));
    }
    Ok(())
}

#[test]
fn attention_equals_its_twin() -> Result<()> {
    let Some(host) = Host::new() else { return Ok(()) };
    let offsets = [0, 1, 40, 40, 73];
    let shapes = [(1, 1, 8), (4, 2, 32), (3, 1, 64), (2, 1, 80), (2, 2, 128)];
    for (scalar, (query, key_value, dim)) in SCALARS.into_iter().flat_map(|s| shapes.map(|shape| (s, shape))) {
        let heads = crate::ops::Heads { query, key_value, dim };
        assert!(attention::fits(heads));
        let (wide, narrow) = ([73, query * dim], [73, key_value * dim]);
        let (q, qs) = held(&(variable(&wide, 1).as_detached_tensor() * 3.0)?, scalar);
        let (k, ks) = held(&variable(&narrow, 2), scalar);
        let (v, vs) = held(&variable(&narrow, 3), scalar);
        let (g, gs) = held(&variable(&wide, 4), scalar);
        let [q, k, v, g] = [&q, &k, &v, &g].map(|memory| View::all(&**memory));
        let op = attention::Attention { q, k, v, scalar, heads, offsets: &offsets };
        let got = op.forward(&host)?;
        let want = crate::ops::attention::composed(&qs, &ks, &vs, heads, &offsets)?;
        assert_close(&format!("{heads:?}"), &read(&got.out, scalar, &wide), &want, tolerance(scalar));
        let got = op.backward(&host, View::all(&*got.out), View::all(&*got.lse), g)?;
        let want = gradients(&want, &gs, &[&qs, &ks, &vs]);
        // The outputs that the backward reads were rounded.
        let allowed = 2.0 * tolerance(scalar);
        for ((name, shape), (got, want)) in
            [("dq", wide), ("dk", narrow), ("dv", narrow)].iter().zip(got.iter().zip(want))
        {
            assert_close(&format!("{name} of {heads:?}"), &read(got, scalar, shape), &want, allowed);
        }
    }
    Ok(())
}

#[test]
fn scores_of_rows_and_logit_gradients_equal_their_twin() -> Result<()> {
    let Some(host) = Host::new() else { return Ok(()) };
    for scalar in SCALARS {
        // The logits are the head's product with unit vectors.
        for (vocab, temperature) in [(5, 1.0), (700, 0.7)] {
            let rows = 6;
            let (z, zs) = held(&(variable(&[rows, vocab], 1).as_detached_tensor() * 6.0)?, scalar);
            let units = Tensor::eye(vocab, DType::F32, &Device::Cpu)?;
            let targets: Vec<u32> = (0..rows).map(|i| (i * 97 % vocab) as u32).collect();
            let scored = crate::ops::log_prob::Scored {
                rows: (0..rows as u32).collect(),
                targets: targets.as_slice().into(),
                temperature,
                compute: crate::kernels::packed::Compute::F32,
            };
            let want = crate::ops::log_prob::composed(&zs, &units, &scored)?;
            let places = host.upload(&targets)?;
            let (scores, targets) = (Host::f32s(&vec![f32::NAN; 2 * rows]), View::all(&*places));
            let part = |first: usize, rows| log_prob::Logits {
                logits: View { memory: &*z, offset: first * vocab * scalar.bytes() },
                scalar,
                rows,
                vocab,
                targets,
                first,
                all: 6,
                temperature,
            };
            let (g, gs) = held(&variable(&[2, rows], 3), Scalar::F32);
            for (first, rows) in [(0, 4), (4, 2)] {
                part(first, rows).score(&host, View::all(&*scores))?;
            }
            assert_close("scores", &read(&scores, Scalar::F32, &[2, rows]), &want, 1e-5);
            let want = &gradients(&want, &gs, &[&zs])[0];
            for (first, rows) in [(0, 4), (4, 2)] {
                part(first, rows).differentiate(&host, View::all(&*g))?;
            }
            assert_close("gradient", &read(&z, scalar, &[rows, vocab]), want, tolerance(scalar));
            let (sum, before) = floats(rows * vocab, 9);
            log_prob::add_to(&host, View::all(&*sum), View::all(&*z), scalar, rows * vocab)?;
            let before = Tensor::from_vec(before, (rows, vocab), &Device::Cpu)?;
            assert_close("sum", &read(&sum, Scalar::F32, &[rows, vocab]), &(before + want)?, tolerance(scalar));
        }
    }
    Ok(())
}

#[test]
fn decode_attention_reads_what_was_written() -> Result<()> {
    let Some(host) = Host::new() else { return Ok(()) };
    for scalar in SCALARS {
        for (query, key_value, dim) in [(2, 2, 10), (6, 2, 32), (7, 1, 64), (2, 1, 128)] {
            let heads = crate::ops::Heads { query, key_value, dim };
            assert!(decode_attention::fits(heads));
            // Two sequences over blocks in any order; all tokens are fed at once.
            let (lengths, width) = ([37, 5], 3);
            let tables = [4, 0, 2, 1, 0, 0];
            let tokens = lengths.iter().sum();
            let places = |length: usize| (0..length as u32).collect::<Vec<_>>();
            let positions: Vec<u32> = lengths.iter().flat_map(|&n| places(n)).collect();
            let owners: Vec<u32> = lengths.iter().enumerate().flat_map(|(i, &n)| vec![i as u32; n]).collect();
            let slot = |(&owner, &p): (&u32, &u32)| tables[owner as usize * width + p as usize / 16] * 16 + p % 16;
            let slots: Vec<u32> = owners.iter().zip(&positions).map(slot).collect();
            let (q, qs) = held(&variable(&[tokens, query * dim], 1), scalar);
            let (k, ks) = held(&variable(&[tokens, key_value * dim], 2), scalar);
            let (v, vs) = held(&variable(&[tokens, key_value * dim], 3), scalar);
            let bytes = 5 * 16 * key_value * dim * scalar.bytes();
            let (keys, values) = (host.allocate(bytes)?, host.allocate(bytes)?);
            let [slots, places, owners, table] =
                [&slots[..], &positions, &owners, &tables].map(|numbers| host.upload(numbers).unwrap());
            let cache = decode_attention::Cache {
                keys: View::all(&*keys),
                values: View::all(&*values),
                scalar,
                heads,
                tokens,
                slots: View::all(&*slots),
                positions: View::all(&*places),
            };
            let of = decode_attention::Tables { tables: View::all(&*table), width, owners: View::all(&*owners) };
            let angles = crate::ops::RopeTable::new(dim, 10_000.0, 40);
            let (cosines, sines) = (Host::f32s(&angles.cos), Host::f32s(&angles.sin));
            let on_device = decode_attention::Angles { cosines: View::all(&*cosines), sines: View::all(&*sines) };
            cache.write(&host, View::all(&*k), View::all(&*v), &on_device)?;
            let ks = crate::ops::rope::composed(&ks, &angles, &positions)?;
            let want = crate::ops::attention::composed(&qs, &ks, &vs, heads, &[0, 37, 42])?;
            let got = cache.attend(&host, View::all(&*q), &of)?;
            assert_close(
                &format!("{heads:?}"),
                &read(&got, scalar, &[tokens, query * dim]),
                &want,
                2.0 * tolerance(scalar),
            );
        }
    }
    Ok(())
}

/// Weights that top-k and top-p leave, by sorting, and their sum.
fn kept(z: &[f32], from: Distribution) -> (Vec<f64>, f64) {
    let highest = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |z: f32| (f64::from(z - highest) / from.temperature).exp();
    let mut order: Vec<usize> = (0..z.len()).collect();
    order.sort_by(|&a, &b| z[b].total_cmp(&z[a]).then(a.cmp(&b)));
    if from.top_k > 0 {
        order.truncate(from.top_k);
    }
    let within: f64 = order.iter().map(|&i| weight(z[i])).sum();
    let (mut weights, mut sum) = (vec![0.0; z.len()], 0.0);
    for i in order {
        if sum > 0.0 && sum >= from.top_p * within {
            break;
        }
        weights[i] = weight(z[i]);
        sum += weights[i];
    }
    (weights, sum)
}

#[test]
fn tokens_are_drawn_from_what_top_k_and_top_p_leave() -> Result<()> {
    let Some(host) = Host::new() else { return Ok(()) };
    let numbers: Vec<f64> = (0..7).map(|i| (f64::from(i) + 0.37) / 7.0).chain([0.0, 0.999_999_999]).collect();
    for (scalar, vocab) in [(Scalar::F32, 5), (Scalar::F32, 1100), (Scalar::Bf16, 300)] {
        // Many equal logits, so that ties matter.
        let ties = (variable(&[2, vocab], 7).as_detached_tensor() * 6.0)?.round()?;
        let (z, zs) = held(&(ties * 0.5)?, scalar);
        let rows_of: Vec<u32> = (0..numbers.len()).map(|i| i as u32 % 2).collect();
        for (temperature, top_p, top_k) in
            [(1.0, 1.0, 0), (0.7, 1.0, 3), (1.3, 0.6, 0), (0.8, 0.5, 40), (1.0, 1.0, 1), (1.0, 0.01, 4), (0.0, 1.0, 0)]
        {
            let from = Distribution { temperature, top_p, top_k };
            let logits = (View::all(&*z), scalar, vocab);
            let drawn = sample::draw(&host, logits, (&rows_of, &numbers), from)?;
            let (tokens, log_probs) = (drawn.tokens.u32s(numbers.len()), drawn.log_probs.f32s(numbers.len()));
            let rows = zs.to_vec2::<f32>()?;
            for ((&row, &u), (&token, &log_prob)) in rows_of.iter().zip(&numbers).zip(tokens.iter().zip(&log_probs)) {
                let (z, token) = (&rows[row as usize], token as usize);
                let said = format!("token {token} with {log_prob} at {u} of {from:?}");
                if temperature == 0.0 {
                    let first = z.iter().position(|v| z.iter().all(|w| w <= v)).unwrap();
                    assert_eq!((token, log_prob), (first, 0.0), "{said}");
                    continue;
                }
                let (weights, sum) = kept(z, from);
                assert!(weights[token] > 0.0, "{said} is not kept");
                assert!((f64::from(log_prob) - (weights[token] / sum).ln()).abs() < 1e-4, "{said}");
                let before: f64 = weights[..token].iter().sum::<f64>() / sum;
                let behind = before + weights[token] / sum;
                assert!(before - 1e-5 <= u && u <= behind + 1e-5, "{said} covers {before}..{behind}");
            }
        }
    }
    Ok(())
}

#[test]
fn columns_are_summed_over_blocks_of_rows() -> Result<()> {
    let Some(host) = Host::new() else { return Ok(()) };
    for (scalar, (rows, width)) in SCALARS.into_iter().flat_map(|s| [(1, 3), (256, 65), (700, 130)].map(|x| (s, x))) {
        let (x, xs) = held(&variable(&[rows, width], 1), scalar);
        let got = rows::column_sums(&host, (View::all(&*x), scalar), rows, width)?;
        assert_close("sums", &read(&got, scalar, &[width]), &xs.sum(0)?, tolerance(scalar));
    }
    Ok(())
}

#[test]
fn gathered_sums_are_the_gradient_of_picking_rows() -> Result<()> {
    let Some(host) = Host::new() else { return Ok(()) };
    let rows: Vec<u32> = (0..50).map(|i| i * 7 % 20).collect();
    for scalar in SCALARS {
        let (parts, values) = held(&variable(&[50, 33], 1), scalar);
        let op = rows::Picked { parts: View::all(&*parts), scalar, width: 33, rows: &rows };
        let got = op.gather_sums(&host, 23)?;
        let picked = Tensor::new(rows.as_slice(), &Device::Cpu)?;
        let want = Tensor::zeros((23, 33), DType::F32, &Device::Cpu)?.index_add(&picked, &values, 0)?;
        assert_close("sums", &read(&got, scalar, &[23, 33]), &want, tolerance(scalar));
        let (sums, before) = floats(23 * 33, 5);
        op.add_to(&host, View::all(&*sums), 23)?;
        let want = (want + Tensor::from_vec(before, (23, 33), &Device::Cpu)?)?;
        assert_close("added", &read(&sums, Scalar::F32, &[23, 33]), &want, 1e-5);
        assert!(op.gather_sums(&host, 19).is_err() && op.add_to(&host, View::all(&*sums), 19).is_err());
    }
    Ok(())
}
