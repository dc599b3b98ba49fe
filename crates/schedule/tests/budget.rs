//! The budget against numbers worked out by hand and against the formulas written a second time.

use std::f64::consts::PI;

use proptest::prelude::*;
use schedule::{Budget, Error, Kind, Mark, Phase, Settings};

fn settings(kind: Kind, cycles: usize, cycle_steps: usize, l_max: usize, l_min: usize) -> Settings {
    Settings { kind, cycles, cycle_steps, l_max, l_min, stages: Vec::new() }
}

fn lengths(settings: &Settings) -> Vec<usize> {
    let budget = Budget::new(settings).unwrap();
    (0..budget.total_steps()).map(|step| budget.length(step)).collect()
}

fn staged(stages: &[[usize; 2]]) -> Settings {
    Settings { stages: stages.to_vec(), ..settings(Kind::Staged, 2, 4, 0, 0) }
}

#[test]
fn constant_is_l_max() {
    assert_eq!(lengths(&settings(Kind::Constant, 2, 2, 448, 192)), [448; 4]);
}

#[test]
fn stair_compresses_first_and_longer_when_the_cycle_is_odd() {
    assert_eq!(lengths(&settings(Kind::Stair, 2, 5, 9, 3)), [3, 3, 3, 9, 9, 3, 3, 3, 9, 9]);
    assert_eq!(lengths(&settings(Kind::Stair, 1, 4, 9, 3)), [3, 3, 9, 9]);
}

#[test]
fn cosine_of_twelve_steps() {
    // amp 100 about 200: cos 30 degrees is 0.866, cos 60 is a half.
    let wave = [300, 287, 250, 200, 150, 113, 100, 113, 150, 200, 250, 287];
    assert_eq!(lengths(&settings(Kind::Cosine, 1, 12, 300, 100)), wave);
}

#[test]
fn cosine_of_an_odd_cycle_never_reaches_the_bottom() {
    // cos 0 = 1, cos 120 = cos 240 = -1/2: 200 + 100, 200 - 50, 200 - 50.
    assert_eq!(lengths(&settings(Kind::Cosine, 2, 3, 300, 100)), [300, 150, 150, 300, 150, 150]);
}

#[test]
fn halves_round_away_from_zero_on_both_sides_of_the_wave() {
    // mid = 192.5: in floating point cos(3π/2) is -1.8e-16, which must not push the half below itself.
    assert_eq!(lengths(&settings(Kind::Cosine, 1, 4, 320, 65)), [320, 193, 65, 193]);
    // mid = 10, amp = 1: 10 - 1/2 at a third of a turn.
    assert_eq!(lengths(&settings(Kind::Cosine, 1, 3, 11, 9)), [11, 10, 10]);
}

#[test]
fn stair_cosine_of_sixteen_steps() {
    // φ/π is step/8. Flat to 1/4, falls to 3/4, flat to 5/4, rises to 7/4; cos 45 degrees is 0.7071.
    let expected = [
        300, 300, // φ < π/4
        300, 271, 200, 129, // cos 0, 45, 90, 135 degrees
        100, 100, 100, 100, // the bottom
        100, 129, 200, 271, // cos 180, 225, 270, 315 degrees
        300, 300, // φ ≥ 7π/4
    ];
    assert_eq!(lengths(&settings(Kind::StairCosine, 1, 16, 300, 100)), expected);
}

#[test]
fn stages_hold_until_the_next_one() {
    assert_eq!(lengths(&staged(&[[0, 8], [3, 16], [6, 24]])), [8, 8, 8, 16, 16, 16, 24, 24]);
    assert_eq!(lengths(&staged(&[[0, 8], [100, 16]])), [8; 8]);
}

#[test]
fn lines_run_from_end_to_end() {
    assert_eq!(lengths(&settings(Kind::Linear, 1, 5, 9, 1)), [9, 7, 5, 3, 1]);
    assert_eq!(lengths(&settings(Kind::LinearUp, 1, 5, 9, 1)), [1, 3, 5, 7, 9]);
    assert_eq!(lengths(&settings(Kind::Linear, 1, 3, 4, 1)), [4, 3, 1], "2.5 rounds up");
    assert_eq!(lengths(&settings(Kind::Linear, 1, 1, 9, 1)), [9]);
    let budget = Budget::new(&settings(Kind::LinearUp, 1, 5, 9, 1)).unwrap();
    assert_eq!(budget.length(50), 9, "flat after the end");
}

#[test]
fn the_paper_settings() {
    let budget = Budget::new(&settings(Kind::Cosine, 3, 640, 16384, 8192)).unwrap();
    assert_eq!(budget.total_steps(), 1920);
    assert_eq!([0, 160, 320, 480, 640].map(|step| budget.length(step)), [16384, 12288, 8192, 12288, 16384]);
    // 12288 + 4096 cos(2π/640), cos 0.0098175 = 0.99995181.
    assert_eq!(budget.length(1), 16384);
    // 12288 + 4096 cos(2π 80/640), cos 45 degrees = 0.70710678.
    assert_eq!(budget.length(80), 15184);
    assert_eq!((budget.largest(), budget.smallest()), (16384, 8192));
}

#[test]
fn phases_and_cycles_of_an_odd_cycle() {
    let budget = Budget::new(&settings(Kind::Cosine, 2, 3, 9, 3)).unwrap();
    let phases: String = (0..6).map(|step| if budget.phase(step) == Phase::Compress { 'c' } else { 'e' }).collect();
    assert_eq!(phases, "ccecce");
    assert_eq!((0..6).map(|step| budget.cycle(step)).collect::<Vec<_>>(), [1, 1, 1, 2, 2, 2]);
}

#[test]
fn marks_count_updates_done() {
    let budget = Budget::new(&settings(Kind::Cosine, 2, 24, 448, 192)).unwrap();
    let marks = [Mark { cycle: 1, low: 12, high: 24 }, Mark { cycle: 2, low: 36, high: 48 }];
    assert_eq!(budget.marks(), marks);
    let odd = Budget::new(&settings(Kind::Cosine, 1, 7, 448, 192)).unwrap();
    assert_eq!(odd.marks(), [Mark { cycle: 1, low: 4, high: 7 }]);
    let shortest = Budget::new(&settings(Kind::Cosine, 1, 1, 448, 192)).unwrap();
    assert_eq!(shortest.marks(), [Mark { cycle: 1, low: 1, high: 1 }]);
}

#[test]
fn nonsense_is_refused_by_name_and_value() {
    let good = settings(Kind::Cosine, 3, 24, 448, 192);
    let cases = [
        (Settings { cycles: 0, ..good.clone() }, "schedule.cycles = 0"),
        (Settings { cycle_steps: 0, ..good.clone() }, "schedule.cycle_steps = 0"),
        (Settings { l_max: 0, ..good.clone() }, "schedule.l_max = 0"),
        (Settings { l_min: 0, ..good.clone() }, "schedule.l_min = 0"),
        (Settings { l_min: 449, ..good.clone() }, "schedule.l_min = 449: must not be above schedule.l_max = 448"),
        (Settings { l_max: usize::MAX, ..good.clone() }, "schedule.l_max = 18446744073709551615"),
        (Settings { cycles: 1 << 20, cycle_steps: 1 << 20, ..good.clone() }, "schedule.cycles = 1048576 times"),
        (Settings { stages: vec![[0, 8]], ..good.clone() }, "not \"cosine\""),
        (staged(&[]), "schedule.stages = []"),
        (staged(&[[1, 8]]), "starts at step 1: the first stage must start at step 0"),
        (staged(&[[0, 8], [5, 9], [5, 10]]), "schedule.stages[2] starts at step 5"),
        (staged(&[[0, 8], [5, 0]]), "schedule.stages[1] has length 0"),
        (staged(&[[0, usize::MAX]]), "schedule.stages[0] has length 18446744073709551615"),
    ];
    for (settings, expected) in cases {
        let message = Budget::new(&settings).unwrap_err().to_string();
        assert!(message.contains(expected) && !message.contains('\n'), "{message:?} lacks {expected:?}");
    }
    assert_eq!(Budget::new(&staged(&[])), Err(Error::NoStages));
}

#[test]
fn only_kinds_that_read_the_lower_bound_check_it() {
    for l_min in [0, 449, usize::MAX] {
        let flat = Budget::new(&settings(Kind::Constant, 1, 4, 448, l_min)).unwrap();
        assert_eq!((flat.smallest(), flat.largest()), (448, 448));
        for kind in [Kind::Stair, Kind::Cosine, Kind::StairCosine, Kind::Linear, Kind::LinearUp] {
            assert!(Budget::new(&settings(kind, 1, 4, 448, l_min)).is_err(), "{kind} with l_min {l_min}");
        }
    }
    assert_eq!(settings(Kind::Constant, 1, 4, 0, 8).problems(), [Error::Zero { key: "l_max" }]);
}

#[test]
fn all_problems_of_a_schedule_are_found_at_once() {
    let good = settings(Kind::Cosine, 3, 24, 448, 192);
    assert_eq!(good.problems(), []);
    let several = Settings { cycles: 0, l_max: 0, stages: vec![[0, 8]], ..good.clone() };
    let unused = Error::StagesUnused { count: 1, kind: Kind::Cosine };
    assert_eq!(several.problems(), [Error::Zero { key: "cycles" }, Error::Zero { key: "l_max" }, unused]);
    // The bounds are compared, and the steps multiplied, where each is sound by itself.
    let many = Settings { cycles: 1 << 20, cycle_steps: 1 << 20, l_min: 449, ..good };
    let steps = Error::TooManySteps { cycles: 1 << 20, cycle_steps: 1 << 20, limit: 10_000_000 };
    assert_eq!(many.problems(), [steps, Error::BoundsSwapped { l_min: 449, l_max: 448 }]);
    let stages = [Error::FirstStage { step: 1 }, Error::StageLength { index: 1 }];
    let order = Error::StageOrder { index: 2, step: 5, previous: 5 };
    assert_eq!(staged(&[[1, 8], [5, 0], [5, 9]]).problems(), [stages.as_slice(), &[order]].concat());
}

/// The stair-cosine as the paper writes it, in angles; `None` where the angle is too near a border or the value too near
/// a half for floating point to decide.
fn stair_cosine_in_angles(step: usize, settings: &Settings) -> Option<usize> {
    let angle = 2.0 * PI * (step % settings.cycle_steps) as f64 / settings.cycle_steps as f64;
    if [1.0, 3.0, 5.0, 7.0].iter().any(|odd| (angle - odd * PI / 4.0).abs() < 1e-9) {
        return None;
    }
    let half_sum = (settings.l_max + settings.l_min) as f64 / 2.0;
    let half_gap = (settings.l_max - settings.l_min) as f64 / 2.0;
    let value = match angle / (PI / 4.0) {
        eighth if !(1.0..7.0).contains(&eighth) => half_sum + half_gap,
        eighth if eighth < 3.0 => half_sum + half_gap * (2.0 * (angle - PI / 4.0)).cos(),
        eighth if eighth < 5.0 => half_sum - half_gap,
        _ => half_sum + half_gap * (2.0 * (angle - 3.0 * PI / 4.0)).cos(),
    };
    ((value.fract() - 0.5).abs() > 1e-6).then_some(value.round() as usize)
}

fn any_settings(kind: Kind) -> impl Strategy<Value = Settings> {
    (1usize..6, 1usize..200, 1usize..20_000, 0usize..20_000)
        .prop_map(move |(cycles, steps, l_min, gap)| settings(kind, cycles, steps, l_min + gap, l_min))
}

fn any_kind() -> impl Strategy<Value = Settings> {
    prop::sample::select(Kind::ALL.into_iter().filter(|&kind| kind != Kind::Staged).collect::<Vec<_>>())
        .prop_flat_map(any_settings)
}

proptest! {
    #[test]
    fn the_budget_stays_within_its_bounds(settings in any_kind(), step in 0usize..10_000) {
        let length = Budget::new(&settings).unwrap().length(step);
        prop_assert!(settings.l_min <= length && length <= settings.l_max);
    }

    #[test]
    fn waves_repeat_every_cycle(
        settings in prop::sample::select(vec![Kind::Stair, Kind::Cosine, Kind::StairCosine]).prop_flat_map(any_settings),
        step in 0usize..1_000,
    ) {
        let budget = Budget::new(&settings).unwrap();
        prop_assert_eq!(budget.length(step), budget.length(step + settings.cycle_steps));
        prop_assert_eq!(budget.phase(step), budget.phase(step + settings.cycle_steps));
        prop_assert_eq!(budget.cycle(step) + 1, budget.cycle(step + settings.cycle_steps));
    }

    #[test]
    fn cosine_starts_at_the_top_and_mirrors_about_the_middle(settings in any_settings(Kind::Cosine), step in 0usize..200) {
        let budget = Budget::new(&settings).unwrap();
        prop_assert_eq!(budget.length(0), settings.l_max);
        let step = step % settings.cycle_steps;
        prop_assert_eq!(budget.length(step), budget.length(settings.cycle_steps - step));
        if settings.cycle_steps % 2 == 0 {
            prop_assert_eq!(budget.length(settings.cycle_steps / 2), settings.l_min);
        }
    }

    #[test]
    fn cosine_equals_its_formula(settings in any_settings(Kind::Cosine), step in 0usize..1_000) {
        let angle = 2.0 * PI * step as f64 / settings.cycle_steps as f64;
        let value = (settings.l_max + settings.l_min) as f64 / 2.0
            + (settings.l_max - settings.l_min) as f64 / 2.0 * angle.cos();
        prop_assume!((value.fract() - 0.5).abs() > 1e-6);
        prop_assert_eq!(Budget::new(&settings).unwrap().length(step), value.round() as usize);
    }

    #[test]
    fn stair_equals_its_definition(settings in any_settings(Kind::Stair), step in 0usize..1_000) {
        let first_half = ((step % settings.cycle_steps) as f64) < settings.cycle_steps as f64 / 2.0;
        let expected = if first_half { settings.l_min } else { settings.l_max };
        prop_assert_eq!(Budget::new(&settings).unwrap().length(step), expected);
    }

    #[test]
    fn stair_cosine_equals_its_pieces(settings in any_settings(Kind::StairCosine), step in 0usize..1_000) {
        let budget = Budget::new(&settings).unwrap();
        prop_assert_eq!(budget.length(0), settings.l_max);
        if let Some(expected) = stair_cosine_in_angles(step, &settings) {
            prop_assert_eq!(budget.length(step), expected);
        }
    }

    #[test]
    fn equal_bounds_leave_one_length(settings in any_kind(), step in 0usize..1_000) {
        let flat = Settings { l_min: settings.l_max, ..settings };
        prop_assert_eq!(Budget::new(&flat).unwrap().length(step), flat.l_max);
    }

    #[test]
    fn lines_are_monotone(settings in any_settings(Kind::Linear)) {
        let down = lengths(&settings);
        prop_assert!(down.is_sorted_by(|a, b| a >= b));
        prop_assert_eq!(down.last().copied(), Some(if down.len() == 1 { settings.l_max } else { settings.l_min }));
        let up = lengths(&Settings { kind: Kind::LinearUp, ..settings });
        prop_assert!(up.is_sorted());
    }

    #[test]
    fn marks_close_their_phases(settings in any_kind()) {
        let budget = Budget::new(&settings).unwrap();
        for mark in budget.marks() {
            let start = (mark.cycle - 1) * settings.cycle_steps;
            let compressed = (start..mark.high).filter(|&step| budget.phase(step) == Phase::Compress).count();
            prop_assert_eq!(mark.low, start + compressed);
            prop_assert_eq!(budget.cycle(mark.high - 1), mark.cycle);
        }
        prop_assert_eq!(budget.marks().last().unwrap().high, budget.total_steps());
    }
}
