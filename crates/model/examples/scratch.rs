#![allow(missing_docs)]
use model::kernels::packed::{Compute, Packed};
use std::time::Instant;
fn med(mut f: impl FnMut()) -> f64 {
    f();
    let mut t: Vec<f64> = (0..7)
        .map(|_| {
            let s = Instant::now();
            f();
            s.elapsed().as_secs_f64()
        })
        .collect();
    t.sort_by(f64::total_cmp);
    t[3]
}
fn main() {
    let v = |n: usize| (0..n).map(|i| ((i * 7919) % 1000) as f32 * 1e-3 - 0.5).collect::<Vec<f32>>();
    for (m, k, n) in [(1024, 896, 4864), (1024, 4864, 896), (1024, 896, 896), (4864, 1024, 896), (896, 1024, 4864)] {
        let (x, w) = (v(m * k), v(n * k));
        let mut y = vec![0.0; m * n];
        let flop = 2.0 * (m * k * n) as f64;
        let p32 = Packed::stack(&[&w], k);
        let p16 = Packed::stack_pairs(&[&w[..]], k);
        let a = med(|| p32.matmul(&x, &mut y));
        let b = med(|| p16.matmul(&x, &mut y));
        let c = med(|| {
            std::hint::black_box(Packed::stack(&[&w], k));
        });
        let d = med(|| {
            std::hint::black_box(Packed::stack_pairs(&[&w[..]], k));
        });
        let e = med(|| {
            std::hint::black_box(Packed::columns(&w[..], k, Compute::Bf16));
        });
        let p = Packed::stack_pairs(&[&w[..]], k);
        let t = med(|| p.matmul_transposed(&x, &mut y));
        println!("  columns {:.1} ms, transposed {:.1} ms", e * 1e3, t * 1e3);
        println!(
            "{m}x{k}x{n}: f32 {:.3} TF {:.1} ms, bf16 {:.3} TF {:.1} ms; pack f32 {:.1} ms, bf16 {:.1} ms",
            flop / a / 1e12,
            a * 1e3,
            flop / b / 1e12,
            b * 1e3,
            c * 1e3,
            d * 1e3
        );
    }
}
