//! Where the probability ratio is held: PPO's clip with its two bounds apart, and the dual clip.

/// The bounds of the probability ratio.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clip {
    /// The ratio is clipped at `1 - low` where the advantage is negative.
    pub low: f64,
    /// The ratio is clipped at `1 + high` where the advantage is positive.
    pub high: f64,
    /// Dual clip: the ratio is clipped at this (above 1) where the advantage is negative. `None` leaves it unbounded.
    pub dual: Option<f64>,
}

/// The bound that a ratio is held at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// `1 - low`.
    Low,
    /// `1 + high`.
    High,
    /// `dual`.
    Dual,
}

impl Clip {
    /// The side on which `ratio` is past its bound, if it is past the one towards which its advantage would push it
    /// further; a ratio exactly on a bound is free.
    ///
    /// The objective is PPO's `min(r A, clip(r, 1 - low, 1 + high) A)` (arXiv 1707.06347) with the two sides decoupled as
    /// in DAPO (arXiv 2503.14476), and for a negative advantage at least `dual A` (arXiv 1912.09729).
    #[must_use]
    pub fn held(&self, ratio: f64, advantage: f64) -> Option<Side> {
        if advantage > 0.0 && ratio > self.bound(Side::High) {
            return Some(Side::High);
        }
        if advantage < 0.0 && ratio < self.bound(Side::Low) {
            return Some(Side::Low);
        }
        (advantage < 0.0 && self.dual.is_some_and(|dual| ratio > dual)).then_some(Side::Dual)
    }

    /// The ratio at a side; infinite for a dual clip that is off.
    #[must_use]
    pub fn bound(&self, side: Side) -> f64 {
        match side {
            Side::Low => 1.0 - self.low,
            Side::High => 1.0 + self.high,
            Side::Dual => self.dual.unwrap_or(f64::INFINITY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIP: Clip = Clip { low: 0.2, high: 0.28, dual: Some(3.0) };

    #[test]
    fn a_ratio_is_held_only_where_moving_on_would_still_pay() {
        let cases = [
            (1.5, 1.0, Some(Side::High)),
            (1.5, -1.0, None),
            (0.5, 1.0, None),
            (0.5, -1.0, Some(Side::Low)),
            (3.5, -1.0, Some(Side::Dual)),
            (3.5, 1.0, Some(Side::High)),
            (9.0, 0.0, None),
        ];
        for (ratio, advantage, side) in cases {
            assert_eq!(CLIP.held(ratio, advantage), side, "ratio {ratio}, advantage {advantage}");
        }
        assert_eq!(Clip { dual: None, ..CLIP }.held(3.5, -1.0), None);
    }

    #[test]
    fn on_its_bound_a_ratio_is_free() {
        for (side, advantage) in [(Side::High, 1.0), (Side::Low, -1.0), (Side::Dual, -1.0)] {
            assert_eq!(CLIP.held(CLIP.bound(side), advantage), None, "{side:?}");
        }
    }

    /// Both forms of the objective agree on a grid.
    #[test]
    fn holding_by_side_is_the_minimum_of_the_papers() {
        for step in 0..80 {
            let ratio = 0.05 * f64::from(step);
            for advantage in [-2.0, -0.5, 0.0, 0.5, 2.0] {
                let held = CLIP.held(ratio, advantage).map_or(ratio, |side| CLIP.bound(side)) * advantage;
                let ppo = (ratio * advantage).min(ratio.clamp(0.8, 1.28) * advantage);
                let dual = if advantage < 0.0 { ppo.max(3.0 * advantage) } else { ppo };
                assert!((held - dual).abs() < 1e-12, "ratio {ratio}, advantage {advantage}: {held} is not {dual}");
            }
        }
    }
}
