//! The CPU passes, and what is wrong is found wherever it is.

use super::*;
use candle_core::{CpuStorage, CustomOp1, Layout, Shape};

fn swiglu() -> Case {
    let mut all = cases();
    let index = all.iter().position(|case| case.op == "swiglu" && case.shape == "17 x 128").unwrap();
    all.swap_remove(index)
}

#[test]
fn the_grid_has_every_op_every_ratio_and_every_width() {
    let all = cases();
    for op in ["linear", "rms_norm", "rope", "swiglu", "attention", "log_prob", "embedding"] {
        assert!(all.iter().any(|case| case.op == op), "{op}");
    }
    let attention: Vec<&str> = all.iter().filter(|c| c.op == "attention").map(|c| c.shape.as_str()).collect();
    for heads in ["2/2", "2/1", "12/2", "7/1", "heads of 16", "heads of 64", "heads of 128", "[1]", "[1, 65, 0, 2, 33]"]
    {
        assert!(attention.iter().any(|shape| shape.contains(heads)), "{heads}");
    }
}

#[test]
fn every_op_passes_on_the_cpu() {
    for case in cases() {
        for dtype in types(&case, &Device::Cpu) {
            let finding = check(&case, dtype, &Device::Cpu);
            assert!(finding.passed(), "{finding:?}");
            assert!(finding.tolerance > 0.0 && !finding.place.is_empty(), "{finding:?}");
        }
    }
}

#[test]
fn a_wrong_value_is_found() {
    let right = swiglu();
    let wrong = Case { fused: Box::new(|x| crate::ops::swiglu(&x[1], &x[0])), ..swiglu() };
    assert!(check(&right, DType::F32, &Device::Cpu).passed());
    let finding = check(&wrong, DType::F32, &Device::Cpu);
    assert!(!finding.passed(), "{finding:?}");
    // A value off by a few parts in ten thousand is found too.
    let wrong = Case { fused: Box::new(|x| crate::ops::swiglu(&x[0], &x[1])? * 1.0003), ..swiglu() };
    assert!(!check(&wrong, DType::F32, &Device::Cpu).passed());
}

#[test]
fn one_wrong_element_at_the_end_is_found() {
    let last = |y: Tensor| -> Result<Tensor> {
        let mut ones = vec![1.0f32; y.elem_count()];
        ones[y.elem_count() - 1] = 0.0;
        &y * Tensor::from_vec(ones, y.dims(), y.device())?
    };
    let wrong = Case { fused: Box::new(move |x| last(crate::ops::swiglu(&x[0], &x[1])?)), ..swiglu() };
    assert!(!check(&wrong, DType::F32, &Device::Cpu).passed());
}

/// Twice its input, with a gradient of `factor`, or none.
struct Doubled(Option<f64>);

impl CustomOp1 for Doubled {
    fn name(&self) -> &'static str {
        "doubled"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = crate::ops::elements(x, layout, "doubled")?;
        Ok(crate::ops::output(x.iter().map(|x| 2.0 * x).collect(), layout.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        self.0.map(|factor| g * factor).transpose()
    }
}

fn doubled(factor: Option<f64>) -> Case {
    Case {
        op: "doubled",
        shape: "5 x 7".into(),
        inputs: vec![Input::activation("x", &[5, 7])],
        fused: Box::new(move |x| x[0].apply_op1(Doubled(factor))),
        composed: Box::new(|x| &x[0] * 2.0),
        tolerance: Tolerance { f32: 1e-5, bf16: 1e-2 },
        views: false,
    }
}

#[test]
fn a_wrong_gradient_and_a_missing_one_are_found() {
    assert!(check(&doubled(Some(2.0)), DType::F32, &Device::Cpu).passed());
    let finding = check(&doubled(Some(2.001)), DType::F32, &Device::Cpu);
    assert!(!finding.passed() && finding.place.starts_with("gradient of x"), "{finding:?}");
    let finding = check(&doubled(None), DType::F32, &Device::Cpu);
    assert_eq!(finding.failure.as_deref(), Some("x got no gradient"));
}

#[test]
fn a_kernel_that_is_not_repeatable_is_found() {
    let calls = std::sync::atomic::AtomicUsize::new(0);
    let noisy = move |x: &[Tensor]| -> Result<Tensor> {
        // One unit in the last place or so, from the second call on.
        let call = calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        &x[0] * (2.0 + if call == 0 { 0.0 } else { 5e-7 })
    };
    let finding = check(&Case { fused: Box::new(noisy), ..doubled(Some(2.0)) }, DType::F32, &Device::Cpu);
    assert_eq!(finding.failure.as_deref(), Some("value: a second run gave other bits"));
    assert!(!finding.passed());
}

#[test]
fn what_is_not_a_number_is_found_in_either() {
    assert_eq!(gap(&[f32::NAN, 1.0], &[1.0, 1.0]), f64::INFINITY);
    assert_eq!(gap(&[1.0], &[f32::NAN]), f64::INFINITY);
    assert_eq!(gap(&[1.0], &[1.0, 1.0]), f64::INFINITY);
    assert_eq!(gap(&[2.0, -4.5], &[2.0, -4.0]), 0.125);
    let finding = Finding::worst("x", "1", DType::F32, [("a".into(), f64::NAN, 1.0), ("b".into(), 0.5, 1.0)]);
    assert!(!finding.passed() && finding.place == "a");
    assert!(!Finding::worst("x", "1", DType::F32, []).passed(), "nothing compared is no pass");
}
