//! Every kernel against its composed twin, on the CPU.

use super::gpu::{Gpu, Scalar, View};
use super::host::{Host, HostMemory};
use super::*;
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
fn rms_norm_equals_its_twin() -> Result<()> {
    let Some(host) = Host::new() else { return Ok(()) };
    for scalar in SCALARS {
        for (rows, width) in [(1, 4), (5, 128), (600, 33), (3, 1536), (2, 1025)] {
            let (x, xs) = held(&variable(&[rows, width], 1), scalar);
            let (w, ws) = held(&variable(&[width], 2), scalar);
            let (g, gs) = held(&variable(&[rows, width], 3), scalar);
            let norm =
                rms_norm::Norm { x: View::all(&*x), w: View::all(&*w), scalar, rows, width, eps: 1e-6 };
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
        let f = adamw::Factors {
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
