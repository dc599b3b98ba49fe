//! One step of the optimiser, the fused one and its twin of tensor operations: `cargo bench -p trainer --bench adamw`.
//! Items are parameters.

use candle_core::{DType, Device, Tensor, Var};
use divan::Bencher;
use divan::counter::ItemsCount;
use trainer::optimizer::{AdamW, AdamWSettings, Gradients};

fn main() {
    divan::main();
}

/// Two matrices of a 0.5B model's width.
fn variables(dtype: DType) -> Vec<(String, Var)> {
    let variable = |name: &str| {
        let values: Vec<f32> = (0..4864 * 896).map(|i| 0.02 * (i as f32 * 0.37).sin()).collect();
        let values = Tensor::from_vec(values, (4864, 896), &Device::Cpu).unwrap();
        (name.to_string(), Var::from_tensor(&values.to_dtype(dtype).unwrap()).unwrap())
    };
    vec![variable("up.weight"), variable("gate.weight")]
}

fn measure(bencher: Bencher, dtype: DType, composed: bool) {
    let variables = variables(dtype);
    let make = if composed { AdamW::composed } else { AdamW::new };
    let mut optimizer = make(&variables, AdamWSettings::default()).unwrap();
    let mut gradients = Gradients::new(&variables).unwrap();
    for index in 0..variables.len() {
        gradients.add(index, &Tensor::full(1e-3f32, (4864, 896), &Device::Cpu).unwrap()).unwrap();
    }
    let parameters = variables.iter().map(|(_, var)| var.elem_count()).sum::<usize>();
    bencher.counter(ItemsCount::new(parameters)).bench_local(|| optimizer.step(&gradients, 1e-6).unwrap());
}

#[divan::bench(args = ["f32", "bf16"], sample_count = 10, sample_size = 1)]
fn fused(bencher: Bencher, weights: &str) {
    measure(bencher, dtype(weights), false);
}

#[divan::bench(args = ["f32", "bf16"], sample_count = 3, sample_size = 1)]
fn composed(bencher: Bencher, weights: &str) {
    measure(bencher, dtype(weights), true);
}

fn dtype(name: &str) -> DType {
    if name == "bf16" { DType::BF16 } else { DType::F32 }
}
