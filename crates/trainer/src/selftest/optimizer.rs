//! AdamW and the norm of a gradient on a device, beside the composed update there and the CPU's.

use anyhow::Result;
use candle_core::{DType, Device, Var};
use model::selftest::{Finding, gap, noise};

use crate::optimizer::{AdamW, AdamWSettings, Gradients};

/// Updates in a row: moments and their corrections show from the second on.
const STEPS: u64 = 5;
const RATE: f64 = 1e-2;
/// Sizes that do and do not fit a block of threads; the second variable is a norm, which does not decay.
const SHAPES: [(&str, &[usize]); 4] = [
    ("w.weight", &[33, 129]),
    ("input_layernorm.weight", &[129]),
    ("one.weight", &[1, 1]),
    ("large.weight", &[257, 1024]),
];

/// Values after [`STEPS`] updates, the last norm before clipping.
struct Trained {
    values: Vec<(&'static str, Vec<f32>)>,
    norm: f64,
}

/// AdamW and the gradient norm in `dtype`.
pub(super) fn check(dtype: DType, device: &Device) -> Vec<Finding> {
    let shape = format!("{} variables, {STEPS} steps", SHAPES.len());
    compare(dtype, device, &shape)
        .unwrap_or_else(|error| ["adamw", "gradient norm"].map(|op| Finding::failed(op, &shape, dtype, &error)).into())
}

fn compare(dtype: DType, device: &Device, shape: &str) -> Result<Vec<Finding>> {
    let fused = train(AdamW::new, dtype, device)?;
    let twin = train(AdamW::composed, dtype, device)?;
    let reference = train(AdamW::composed, dtype, &Device::Cpu)?;
    // The masters agree to f32's last bits; a value between two bf16 numbers may fall to either, 2^-8 of it apart.
    let tolerance = if dtype == DType::F32 { 1e-6 } else { 1.0 / 256.0 };
    let mut errors = Vec::new();
    for (other, whose) in [(&twin, "twin"), (&reference, "CPU")] {
        for ((name, a), (_, b)) in fused.values.iter().zip(&other.values) {
            errors.push((format!("{name}, {whose}"), gap(a, b), tolerance));
        }
    }
    let relative = |other: &Trained| (fused.norm - other.norm).abs() / other.norm;
    // The CPU sums in f64, a device may sum in f32.
    let norms = [("twin", &twin), ("CPU", &reference)].map(|(whose, other)| (whose.to_string(), relative(other), 1e-5));
    Ok(vec![Finding::worst("adamw", shape, dtype, errors), Finding::worst("gradient norm", shape, dtype, norms)])
}

/// [`AdamW::new`] or its twin.
type Make = fn(&[(String, Var)], AdamWSettings) -> Result<AdamW>;

fn train(make: Make, dtype: DType, device: &Device) -> Result<Trained> {
    let variables = SHAPES
        .iter()
        .zip(1..)
        .map(|((name, dims), seed)| {
            let value = noise(dims, seed, 1.0)?.to_dtype(dtype)?.to_device(device)?;
            Ok((name.to_string(), Var::from_tensor(&value)?))
        })
        .collect::<Result<Vec<_>>>()?;
    let mut optimizer = make(&variables, AdamWSettings { weight_decay: 0.1, ..AdamWSettings::default() })?;
    let mut norm = 0.0;
    for step in 1..=STEPS {
        let mut gradients = Gradients::new(&variables)?;
        for (index, (_, var)) in variables.iter().enumerate() {
            // The first update's gradient is not clipped, the others are.
            let scale = if step == 1 { 1e-4 } else { 1.0 };
            let gradient = noise(var.dims(), 100 * step + index as u64, scale)?.to_device(device)?;
            gradients.add(index, &gradient)?;
        }
        norm = optimizer.step(&gradients, RATE)?.grad_norm;
    }
    let value = |((name, _), (_, var)): (&(&'static str, _), &(String, Var))| {
        Ok((*name, var.as_detached_tensor().to_dtype(DType::F32)?.flatten_all()?.to_vec1()?))
    };
    Ok(Trained { values: SHAPES.iter().zip(&variables).map(value).collect::<Result<_>>()?, norm })
}
