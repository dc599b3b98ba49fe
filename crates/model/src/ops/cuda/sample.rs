//! Launches of `sample.cu`.

use super::{Argument, Grid, Kernel, Machine, View};
use crate::ops::sample::Distribution;
use candle_core::{Result, bail};

/// Threads of a block, as the kernel has them.
const THREADS: usize = 256;

/// The words of a draw: rows of the logits, then the low and the high words of the numbers that the distribution is inverted at.
pub(crate) fn words(draws: &[(u32, f64)]) -> Vec<u32> {
    let rows = draws.iter().map(|&(row, _)| row);
    let low = draws.iter().map(|(_, u)| u.to_bits() as u32);
    let high = draws.iter().map(|(_, u)| (u.to_bits() >> 32) as u32);
    rows.chain(low).chain(high).collect()
}

/// Draws a token at each of `draws`, as [`words`] lays them out, from the rows of `logits: [rows, vocab]` in f32. `result` are
/// tokens, then the bits of their log-probs.
pub(crate) fn draw<M: Machine>(
    machine: &M,
    from: &Distribution,
    logits: View<'_, M::Memory>,
    draws: View<'_, M::Memory>,
    result: &mut M::Memory,
    vocab: usize,
) -> Result<()> {
    let count = draws.len / 3;
    if vocab == 0 || !logits.len.is_multiple_of(vocab) {
        bail!("sample: {} logits of a vocabulary of {vocab}", logits.len);
    }
    let inverse = if from.temperature <= 0.0 { 0.0 } else { 1.0 / from.temperature as f32 };
    let top_p = from.top_p.to_bits();
    let arguments = &mut [
        Argument::Read(logits),
        Argument::Read(draws),
        Argument::Write(result, 0),
        Argument::size(count)?,
        Argument::size(vocab)?,
        Argument::F32(inverse),
        Argument::size(from.top_k.min(vocab))?,
        Argument::U32(top_p as u32),
        Argument::U32((top_p >> 32) as u32),
    ];
    let kernel = Kernel { file: "sample", name: "sample_draw" };
    // SAFETY: `sample_draw(logits, draws, result, count, vocab, inverse, top_k, top_p)`; a block takes one draw, whose row is
    // the caller's, and writes two words of the caller's `result`.
    unsafe { machine.launch(kernel, Grid::line(count, THREADS), arguments) }
}

#[cfg(test)]
mod tests {
    use super::super::shim::shim;
    use super::*;
    use crate::ops::sample::sample;
    use candle_core::{CpuStorage, DType};

    /// What the kernel draws from rows of logits.
    fn drawn(from: &Distribution, logits: &[Vec<f32>], draws: &[(u32, f64)]) -> Option<Vec<(u32, f32)>> {
        let shim = shim()?;
        let vocab = logits[0].len();
        let (values, words) = (CpuStorage::F32(logits.concat()), CpuStorage::U32(words(draws)));
        let mut result = shim.allocate(DType::U32, 2 * draws.len()).unwrap();
        let logits = View::whole(&values, DType::F32, logits.len() * vocab);
        draw(&shim, from, logits, View::whole(&words, DType::U32, 3 * draws.len()), &mut result, vocab).unwrap();
        let CpuStorage::U32(result) = result else { panic!("results of another type") };
        let (tokens, bits) = result.split_at(draws.len());
        Some(tokens.iter().copied().zip(bits.iter().map(|&bits| f32::from_bits(bits))).collect())
    }

    fn of(temperature: f64, top_p: f64, top_k: usize) -> Distribution {
        Distribution { temperature, top_p, top_k }
    }

    #[test]
    fn draws_what_the_cpu_draws() {
        let row = |vocab: usize, seed: usize| -> Vec<f32> {
            (0..vocab).map(|i| ((i * 7919 + seed * 104_729) as f32 * 0.618).sin() * 4.0).collect()
        };
        for vocab in [1, 2, 7, 255, 257, 9001] {
            let logits = vec![row(vocab, 1), row(vocab, 2)];
            let draws: Vec<(u32, f64)> = (0..12).map(|i| (i % 2, (f64::from(i) + 0.37) / 12.0)).collect();
            for from in [of(1.0, 1.0, 0), of(0.7, 0.9, 0), of(1.3, 1.0, 5), of(0.5, 0.6, 40), of(0.0, 0.5, 3)] {
                let Some(got) = drawn(&from, &logits, &draws) else { return };
                for (&(row, u), (token, log_prob)) in draws.iter().zip(got) {
                    let (want, p) = sample(&mut logits[row as usize].clone(), &from, u);
                    assert_eq!(token, want, "{from:?} at {u} of {vocab}");
                    assert!((log_prob - p).abs() < 2e-6, "{from:?}: {log_prob}, not {p}");
                }
            }
        }
    }

    #[test]
    fn ties_at_a_cut_go_to_the_lower_id() {
        let logits = vec![vec![0.0; 5000]];
        for (from, kept) in [(of(1.0, 1.0, 5), 5), (of(1.0, 0.5, 0), 2500), (of(1.0, 0.5, 8), 4)] {
            let Some(got) = drawn(&from, &logits, &[(0, 0.0), (0, 0.999_999)]) else { return };
            assert_eq!((got[0].0, got[1].0), (0, kept - 1), "{from:?}");
            assert!((f64::from(got[1].1).exp() * f64::from(kept) - 1.0).abs() < 1e-5);
        }
    }

    #[test]
    fn the_impossible_is_never_drawn() {
        let mut logits = vec![f32::NEG_INFINITY; 4500];
        (logits[4200], logits[13]) = (1.0, f32::NAN);
        for from in [of(1.0, 1.0, 0), of(1.0, 0.9, 0), of(1.0, 1.0, 3), of(0.0, 1.0, 0)] {
            let Some(got) = drawn(&from, &[logits.clone()], &[(0, 0.0), (0, 0.999_999_9)]) else { return };
            assert_eq!(got, [(4200, 0.0); 2], "{from:?}");
        }
    }
}
