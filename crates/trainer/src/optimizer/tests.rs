//! The optimiser against steps worked out by hand, its composed twin, and itself after a resume.

use super::*;
use candle_core::Device;
use model::backward::Sink;

fn var(name: &str, values: &[f32], shape: &[usize]) -> (String, Var) {
    let var = Var::from_slice(values, shape, &Device::Cpu).unwrap();
    (name.to_owned(), var)
}

fn gradients(vars: &[(String, Var)], values: &[&[f32]]) -> Gradients {
    let mut gradients = Gradients::new(vars).unwrap();
    for (index, values) in values.iter().enumerate() {
        let shape = vars[index].1.shape();
        let tensor = Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
        gradients.add(index, &tensor).unwrap();
    }
    gradients
}

fn values(var: &Var) -> Vec<f32> {
    let f32 = var.as_detached_tensor().to_dtype(DType::F32).unwrap();
    f32.flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_close(actual: &[f32], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len());
    for (a, e) in actual.iter().zip(expected) {
        assert!((f64::from(*a) - e).abs() < 1e-6, "{actual:?} is not {expected:?}");
    }
}

/// Short fractions, so that the arithmetic can be followed.
fn simple() -> AdamWSettings {
    AdamWSettings { beta1: 0.5, beta2: 0.75, epsilon: 1e-12, weight_decay: 0.5, max_grad_norm: 0.0, narrow: false }
}

/// Pseudo-random values in [-1, 1), the same everywhere.
fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

#[test]
fn two_steps_by_hand() {
    let vars = [
        var("layer.weight", &[1.0], &[1, 1]),
        var("layer.bias", &[1.0], &[1]),
        var("input_layernorm.weight", &[1.0], &[1]),
    ];
    for make in [AdamW::new, AdamW::composed] {
        for (_, var) in &vars {
            var.set(&var.ones_like().unwrap()).unwrap();
        }
        let mut optimizer = make(&vars, simple()).unwrap();
        // Step 1: m / (1 - 1/2) = g and v / (1 - 3/4) = g^2, so each moves by lr against the sign of g; only the matrix
        // first loses lr * decay = 0.05 of itself.
        optimizer.step(&gradients(&vars, &[&[4.0], &[4.0], &[-4.0]]), 0.1).unwrap();
        assert_close(&values(&vars[0].1), &[0.95 - 0.1]);
        assert_close(&values(&vars[1].1), &[0.9]);
        assert_close(&values(&vars[2].1), &[1.1]);
        // Step 2, g = 0: m = 2 / 2 = 1, corrected by 1 - 1/4: 4/3; v = 4 * 3/4 = 3, corrected by 1 - 9/16: 48/7; so
        // m / sqrt(v) = 4/3 sqrt(7/48) = sqrt(7/27).
        optimizer.step(&gradients(&vars, &[&[0.0], &[0.0], &[0.0]]), 0.1).unwrap();
        let moved = 0.1 * (7.0_f64 / 27.0).sqrt();
        assert_close(&values(&vars[0].1), &[0.85 * 0.95 - moved]);
        assert_close(&values(&vars[1].1), &[0.9 - moved]);
        assert_close(&values(&vars[2].1), &[1.1 + moved]);
        assert_eq!(optimizer.step_count(), 2);
    }
}

#[test]
fn clipping_scales_all_variables_by_one_norm() {
    let vars = [var("a", &[0.0], &[1]), var("b", &[0.0], &[1])];
    let settings = AdamWSettings { max_grad_norm: 1.0, epsilon: 1.0, ..simple() };
    let mut optimizer = AdamW::new(&vars, settings).unwrap();
    let report = optimizer.step(&gradients(&vars, &[&[3.0], &[4.0]]), 1.0).unwrap();
    assert_eq!((report.grad_norm, report.clip_scale), (5.0, 0.2));
    // g becomes 0.6 and 0.8, and the step g / (|g| + 1).
    assert_close(&values(&vars[0].1), &[-0.6 / 1.6]);
    assert_close(&values(&vars[1].1), &[-0.8 / 1.8]);
    let report = optimizer.step(&gradients(&vars, &[&[0.3], &[0.4]]), 1.0).unwrap();
    assert_eq!(report.clip_scale, 1.0);
}

#[test]
fn norms_and_biases_do_not_decay() {
    assert!(decays("model.embed_tokens.weight", 2));
    assert!(decays("model.layers.0.self_attn.q_proj.weight", 2));
    assert!(!decays("model.layers.0.self_attn.q_proj.bias", 1));
    assert!(!decays("model.norm.weight", 1));
    assert!(!decays("model.layers.0.input_layernorm.weight", 2));
    assert!(!decays("anything", 1));
}

/// Sizes around the chunk, so that the last one is short.
fn large_vars() -> Vec<(String, Var)> {
    let shapes: [&[usize]; 3] = [&[3, CHUNK / 2 + 7], &[129], &[2, 5]];
    let vars = shapes.iter().enumerate().map(|(i, shape)| {
        let count = shape.iter().product();
        var(&format!("v{i}"), &noise(i as u64 + 1, count), shape)
    });
    vars.collect()
}

fn noisy_gradients(vars: &[(String, Var)], seed: u64) -> Gradients {
    let all: Vec<Vec<f32>> = (0u64..).zip(vars).map(|(i, (_, var))| noise(seed * 100 + i, var.elem_count())).collect();
    gradients(vars, &all.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

fn train(optimizer: &mut AdamW, vars: &[(String, Var)], steps: std::ops::Range<u64>) {
    for step in steps {
        optimizer.step(&noisy_gradients(vars, step), 1e-2).unwrap();
    }
}

fn all_values(vars: &[(String, Var)]) -> Vec<Vec<f32>> {
    vars.iter().map(|(_, var)| values(var)).collect()
}

#[test]
fn the_fused_update_equals_the_composed_one() {
    let settings = AdamWSettings { weight_decay: 0.1, ..AdamWSettings::default() };
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let make = || -> Vec<(String, Var)> {
            let cast = |(name, var): (String, Var)| {
                let tensor = var.as_detached_tensor().to_dtype(dtype).unwrap();
                (name, Var::from_tensor(&tensor).unwrap())
            };
            large_vars().into_iter().map(cast).collect()
        };
        let (fused, composed) = (make(), make());
        train(&mut AdamW::new(&fused, settings).unwrap(), &fused, 0..5);
        train(&mut AdamW::composed(&composed, settings).unwrap(), &composed, 0..5);
        let spacing = if dtype == DType::F32 { 1e-6 } else { 8e-3 };
        for (a, b) in all_values(&fused).concat().iter().zip(all_values(&composed).concat()) {
            assert!((a - b).abs() <= spacing * (1.0 + b.abs()), "{dtype:?}: {a} is not {b}");
        }
        assert_ne!(all_values(&fused), all_values(&make()));
    }
}

#[test]
fn a_bf16_variable_adds_up_steps_below_its_spacing() {
    let one = Tensor::ones((1, 1), DType::BF16, &Device::Cpu).unwrap();
    let vars = [("w".to_owned(), Var::from_tensor(&one).unwrap())];
    let settings = AdamWSettings { weight_decay: 0.0, ..simple() };
    let mut optimizer = AdamW::new(&vars, settings).unwrap();
    // Each step is 1e-3; below 1 bf16 has a spacing of 1/256, so that one alone rounds back to 1.
    for step in 1..=10 {
        optimizer.step(&gradients(&vars, &[&[1.0]]), 1e-3).unwrap();
        if step == 1 {
            assert_eq!(values(&vars[0].1), [1.0]);
        }
    }
    // 0.99 between 253/256 and 254/256
    assert_eq!(values(&vars[0].1), [253.0 / 256.0]);
}

#[test]
fn a_detached_twin_sees_the_update() {
    let vars = [var("w", &[1.0, 1.0], &[1, 2])];
    let twin = vars[0].1.as_detached_tensor();
    let mut optimizer = AdamW::new(&vars, simple()).unwrap();
    optimizer.step(&gradients(&vars, &[&[1.0, -1.0]]), 0.1).unwrap();
    let seen: Vec<f32> = twin.flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(seen, values(&vars[0].1));
    assert_close(&seen, &[0.85, 1.05]);
}

#[test]
fn threads_do_not_change_a_bit() {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap().install(|| {
            let vars = large_vars();
            let settings = AdamWSettings::default();
            let mut optimizer = AdamW::new(&vars, settings).unwrap();
            train(&mut optimizer, &vars, 0..3);
            let norm = noisy_gradients(&vars, 9).global_norm().unwrap();
            (all_values(&vars), norm.to_bits())
        })
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn a_resumed_run_is_the_same_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let settings = AdamWSettings::default();
    for dtype in [DType::F32, DType::BF16] {
        for make in [AdamW::new, AdamW::composed] {
            let path = folder.path().join("optimizer.safetensors");
            let cast = |vars: Vec<(String, Var)>| -> Vec<(String, Var)> {
                let cast = |(name, var): (String, Var)| {
                    let tensor = var.as_detached_tensor().to_dtype(dtype).unwrap();
                    (name, Var::from_tensor(&tensor).unwrap())
                };
                vars.into_iter().map(cast).collect()
            };
            let whole = cast(large_vars());
            let mut optimizer = make(&whole, settings).unwrap();
            train(&mut optimizer, &whole, 0..2);
            optimizer.save(&path).unwrap();
            // What a model's file would hold; bf16 weights are also in the master copies, so those start from others.
            let resumed = if dtype == DType::F32 {
                let copy = |(name, var): &(String, Var)| {
                    let copied = var.as_detached_tensor().copy().unwrap();
                    (name.clone(), Var::from_tensor(&copied).unwrap())
                };
                whole.iter().map(copy).collect()
            } else {
                cast(large_vars())
            };
            train(&mut optimizer, &whole, 2..4);

            let mut optimizer = make(&resumed, settings).unwrap();
            optimizer.load(&path).unwrap();
            assert_eq!(optimizer.step_count(), 2);
            train(&mut optimizer, &resumed, 2..4);
            assert_eq!(all_values(&whole), all_values(&resumed), "{dtype:?}");
            let again = folder.path().join("again.safetensors");
            optimizer.save(&again).unwrap();
            let bytes = std::fs::read(&again).unwrap();
            optimizer.save(&path).unwrap();
            assert!(bytes == std::fs::read(&path).unwrap());
        }
    }
}

#[test]
fn a_foreign_or_torn_state_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("optimizer.safetensors");
    let vars = [var("w", &[1.0, 2.0], &[1, 2])];
    AdamW::new(&vars, simple()).unwrap().save(&path).unwrap();
    let refusal = |vars: &[(String, Var)]| {
        let error = AdamW::new(vars, simple()).unwrap().load(&path).unwrap_err();
        let message = format!("{error:#}");
        assert!(message.contains("optimizer.safetensors"), "{message}");
        message
    };
    assert!(refusal(&[var("w", &[1.0, 2.0], &[2, 1])]).contains("`w.first_moment` is [1, 2]"));
    assert!(refusal(&[var("x", &[1.0, 2.0], &[1, 2])]).contains("`x.first_moment` is missing"));
    let two = [vars[0].clone(), var("x", &[1.0], &[1])];
    AdamW::new(&two, simple()).unwrap().save(&path).unwrap();
    assert!(refusal(&vars).contains("`x.first_moment` is not one of this model"));

    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    assert!(refusal(&two).contains("torn"));
    std::fs::write(&path, &bytes[..5]).unwrap();
    assert!(refusal(&two).contains("torn"));
    let tensors = vec![("w", vars[0].1.as_detached_tensor())];
    safetensors::serialize_to_file(tensors, None, &path).unwrap();
    assert!(refusal(&vars).contains("not the state of an optimiser"));
}

#[test]
fn state_in_bf16_moves_as_in_f32_on_average_and_resumes_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("optimizer.safetensors");
    let narrow = AdamWSettings { narrow: true, ..AdamWSettings::default() };
    let steps = |optimizer: &mut AdamW, vars: &[(String, Var)], steps: std::ops::Range<u64>| {
        // Kept from step to step, as a run does; one that goes on begins with others.
        let mut sums = Gradients::kept(vars, optimizer.settings.narrow).unwrap();
        for step in steps {
            sums.begin(optimizer.step_count()).unwrap();
            for (index, (_, var)) in vars.iter().enumerate() {
                // Half of it by a store, half where it is summed.
                let half: Vec<f32> =
                    noise(step * 100 + index as u64, var.elem_count()).iter().map(|g| g / 2.0).collect();
                sums.add(index, &Tensor::from_slice(&half, var.shape(), &Device::Cpu).unwrap()).unwrap();
                sums.host(var.as_tensor()).unwrap().add(0, &half);
            }
            optimizer.step(&sums, 1e-2).unwrap();
        }
    };
    let (wide, vars, again) = (large_vars(), large_vars(), large_vars());
    steps(&mut AdamW::new(&wide, AdamWSettings::default()).unwrap(), &wide, 0..6);
    let mut optimizer = AdamW::new(&vars, narrow).unwrap();
    steps(&mut optimizer, &vars, 0..3);
    optimizer.save(&path).unwrap();
    for ((_, from), (_, to)) in vars.iter().zip(&again) {
        to.set(&from.as_detached_tensor().copy().unwrap()).unwrap();
    }
    steps(&mut optimizer, &vars, 3..6);
    let mut resumed = AdamW::new(&again, narrow).unwrap();
    resumed.load(&path).unwrap();
    steps(&mut resumed, &again, 3..6);
    assert_eq!(all_values(&vars), all_values(&again), "a resumed run is another");

    let (wide, narrow) = (all_values(&wide).concat(), all_values(&vars).concat());
    let differences = || wide.iter().zip(&narrow).map(|(a, b)| f64::from(a - b));
    let mean = differences().sum::<f64>() / wide.len() as f64;
    let spread = (differences().map(|d| d * d).sum::<f64>() / wide.len() as f64).sqrt();
    // A step is 1e-2; what is rounded is up to 1/128 of it.
    assert!(spread > 0.0 && spread < 1e-3, "{spread}");
    assert!(mean.abs() < 6.0 * spread / (wide.len() as f64).sqrt(), "{mean} beside {spread}");
}

#[test]
fn micro_batches_accumulate_and_merge_alike() {
    let vars = [var("w", &[1.0, 2.0], &[1, 2]), var("b", &[3.0], &[1])];
    let add = |sums: &mut Gradients, x: f64| {
        let product = (vars[0].1.sum_all().unwrap() * vars[1].1.sum_all().unwrap()).unwrap();
        let store = (product * x).unwrap().backward().unwrap();
        for (_, var) in &vars {
            Sink::add(sums, var.as_tensor(), store.get(var.as_tensor()).unwrap()).unwrap();
        }
    };
    let mut accumulated = Gradients::new(&vars).unwrap();
    let mut merged = Gradients::new(&vars).unwrap();
    for x in [1.0, 0.1, -3.0] {
        add(&mut accumulated, x);
        let mut part = Gradients::new(&vars).unwrap();
        add(&mut part, x);
        merged.merge(&part).unwrap();
    }
    let other = var("other", &[1.0], &[1]).1;
    assert!(Sink::add(&mut merged, other.as_tensor(), &other.as_detached_tensor()).is_err());
    // The sum of x is -1.9; d/dw = b = 3, d/db = sum of w = 3.
    let norm = accumulated.global_norm().unwrap();
    assert!((norm - 5.7 * 3.0_f64.sqrt()).abs() < 1e-5);
    assert_eq!(norm.to_bits(), merged.global_norm().unwrap().to_bits());
    assert!(merged.missing().is_empty());
    merged.begin(1).unwrap();
    assert_eq!(merged.global_norm().unwrap(), 0.0);
    assert_eq!(merged.missing(), ["w", "b"]);
    // A gradient that is not laid out in order.
    let wide = Tensor::new(&[[1.0_f32], [2.0]], &Device::Cpu).unwrap();
    merged.add(0, &wide.t().unwrap()).unwrap();
    assert_eq!(merged.global_norm().unwrap(), 5.0_f64.sqrt());
}

#[test]
fn what_would_spoil_the_weights_is_refused() {
    let vars = [var("w", &[1.0], &[1]), var("b", &[1.0], &[1])];
    let mut optimizer = AdamW::new(&vars, simple()).unwrap();
    let mut refuse = |gradients: &Gradients, learning_rate, message: &str| {
        let error = optimizer.step(gradients, learning_rate).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    };
    refuse(&gradients(&vars, &[&[1.0]]), 0.1, "no gradient reached 1 of 2 variables: b");
    refuse(&gradients(&vars, &[&[1.0], &[f32::NAN]]), 0.1, "`b` is not finite");
    refuse(&gradients(&vars, &[&[1.0], &[1.0]]), f64::NAN, "learning rate");
    refuse(&gradients(&vars[..1], &[&[1.0]]), 0.1, "1 variables");
    let renamed = [vars[1].clone(), vars[0].clone()];
    refuse(&gradients(&renamed, &[&[1.0], &[1.0]]), 0.1, "`b` was given for `w`");
    assert_eq!(optimizer.step_count(), 0);
    assert_eq!(all_values(&vars), [[1.0], [1.0]]);

    let twice = [vars[0].clone(), vars[0].clone()];
    assert!(AdamW::new(&twice, simple()).is_err());
    assert!(AdamW::new(&[], simple()).is_err());
    let bad = AdamWSettings { beta2: 1.0, ..simple() };
    assert!(AdamW::new(&vars, bad).unwrap_err().to_string().contains("optimizer.beta2 is 1"));
    let mut sums = Gradients::new(&vars).unwrap();
    let wrong = Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap();
    assert!(sums.add(0, &wrong).is_err());
    assert!(sums.add(2, &wrong).is_err());
}
