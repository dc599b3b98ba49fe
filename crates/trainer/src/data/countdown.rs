//! Countdown: combine three numbers with + - * / to reach a target; the embedded task and its two disjoint splits.
//!
//! Three numbers of 1 to 12 admit some twenty ways of combining them, so a problem can be solved by trying attempts
//! one after another. That makes the length of the reasoning a matter of style rather than of need.

use std::collections::HashSet;
use std::fmt;

use super::rng::{self, Rng};

/// The largest number that a problem gives.
pub const MAX_NUMBER: u32 = 12;
/// The largest intermediate value, result or target.
pub const MAX_VALUE: u32 = 100;

/// One of the four operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// `+`
    Add,
    /// `-`
    Subtract,
    /// `*`
    Multiply,
    /// `/`, exact only
    Divide,
}

impl Op {
    /// Every operation, in the order in which attempts are listed.
    pub const ALL: [Op; 4] = [Op::Add, Op::Subtract, Op::Multiply, Op::Divide];

    /// `left op right` if it is a whole number of `1..=MAX_VALUE` and, for a division, exact and by more than 1.
    pub fn apply(self, left: u32, right: u32) -> Option<u32> {
        let value = match self {
            Op::Add => left.checked_add(right)?,
            Op::Subtract => left.checked_sub(right)?,
            Op::Multiply => left.checked_mul(right)?,
            Op::Divide if right > 1 && left.is_multiple_of(right) => left / right,
            Op::Divide => return None,
        };
        (1..=MAX_VALUE).contains(&value).then_some(value)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Op::Add => "+",
            Op::Subtract => "-",
            Op::Multiply => "*",
            Op::Divide => "/",
        })
    }
}

/// One calculation, written `12-7=5`; the larger operand comes first, so that `a+b` and `b+a` are one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Step {
    /// The larger operand.
    pub left: u32,
    /// The operation.
    pub op: Op,
    /// The smaller operand.
    pub right: u32,
    /// The result, in `1..=MAX_VALUE`.
    pub value: u32,
}

impl Step {
    fn new(a: u32, op: Op, b: u32) -> Option<Self> {
        let (left, right) = (a.max(b), a.min(b));
        Some(Self { left, op, right, value: op.apply(left, right)? })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}={}", self.left, self.op, self.right, self.value)
    }
}

/// Two steps that use each of the three numbers once; displays as `12-7=5, 5*4=20`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Attempt {
    /// Two of the numbers, then that result with the third.
    pub steps: [Step; 2],
}

impl Attempt {
    /// The value reached.
    pub fn value(&self) -> u32 {
        self.steps[1].value
    }

    /// The same calculation as one expression, `(12-7)*4` or `20-(12-7)`.
    pub fn expression(&self) -> String {
        let [first, second] = self.steps;
        let inner = format!("({}{}{})", first.left, first.op, first.right);
        // When both operands equal the first result either may be it; the left one is taken.
        if second.left == first.value {
            format!("{inner}{}{}", second.op, second.right)
        } else {
            format!("{}{}{inner}", second.left, second.op)
        }
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.steps[0], self.steps[1])
    }
}

/// All distinct attempts, in a fixed order that depends only on the numbers as a set with repetitions.
///
/// From 5 (for `1, 1, 1`) to 43 of the 3 pairs x 4 operations x 4 operations; 22 on average over sorted triples.
pub fn attempts(numbers: [u32; 3]) -> Vec<Attempt> {
    let mut numbers = numbers;
    numbers.sort_unstable();
    let mut found: Vec<Attempt> = Vec::with_capacity(48);
    for (a, b, c) in [(0, 1, 2), (0, 2, 1), (1, 2, 0)] {
        for first in Op::ALL.iter().filter_map(|&op| Step::new(numbers[a], op, numbers[b])) {
            for second in Op::ALL.iter().filter_map(|&op| Step::new(first.value, op, numbers[c])) {
                let attempt = Attempt { steps: [first, second] };
                // Equal numbers lead to the same attempt by different pairs.
                if !found.contains(&attempt) {
                    found.push(attempt);
                }
            }
        }
    }
    found
}

/// Which of the two disjoint sets a problem belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// Problems to train on, three quarters of all.
    Train,
    /// Problems never trained on, a quarter of all.
    HeldOut,
}

/// Three numbers and a target that at least one attempt reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Problem {
    /// Ascending, each in `1..=MAX_NUMBER`.
    pub numbers: [u32; 3],
    /// In `1..=MAX_VALUE`.
    pub target: u32,
}

impl Problem {
    /// What the user message says: `Make 19 from 3, 7, 12.`
    pub fn prompt(&self) -> String {
        format!("Make {}.", self.gold())
    }

    /// What the verifier reads: `19 from 3, 7, 12`.
    pub fn gold(&self) -> String {
        let [a, b, c] = self.numbers;
        format!("{} from {a}, {b}, {c}", self.target)
    }

    /// The split is a function of the problem itself, so that no seed and no index can leak one into the other.
    pub fn split(&self) -> Split {
        let [a, b, c] = self.numbers.map(u64::from);
        match rng::hash(&[a, b, c, u64::from(self.target)]) % 4 {
            0 => Split::HeldOut,
            _ => Split::Train,
        }
    }
}

/// The problem at `index` of a split's endless sequence under `seed`; it depends on no other index.
///
/// Numbers are uniform, the target is the value of a uniformly drawn attempt. Training problems are drawn anew at
/// each index and may repeat; held-out ones are those of [`held_out`], which start over after the last.
pub fn problem(seed: u64, index: u64, split: Split) -> Problem {
    match split {
        Split::Train => train_problem(seed, index),
        Split::HeldOut => {
            let problems = held_out(seed);
            problems[(index % problems.len() as u64) as usize]
        }
    }
}

fn train_problem(seed: u64, index: u64) -> Problem {
    let mut rng = Rng::keyed(&[seed, index]);
    // One attempt exists for any numbers and three in four problems are for training: this ends after a few rounds.
    loop {
        let mut numbers = [0; 3].map(|_: u32| 1 + rng.below(MAX_NUMBER as usize) as u32);
        numbers.sort_unstable();
        let attempts = attempts(numbers);
        let problem = Problem { numbers, target: attempts[rng.below(attempts.len())].value() };
        if problem.split() == Split::Train {
            return problem;
        }
    }
}

/// Every held-out problem once, in an order given by `seed`.
///
/// The order is that of a draw from the training distribution without its repetitions (one ticket for each ordered
/// triple and attempt), so that the first few hundred are as hard as the training problems.
pub fn held_out(seed: u64) -> Vec<Problem> {
    let mut tickets = Vec::new();
    for code in 0..MAX_NUMBER.pow(3) {
        let mut numbers = [code / (MAX_NUMBER * MAX_NUMBER), code / MAX_NUMBER % MAX_NUMBER, code % MAX_NUMBER];
        numbers = numbers.map(|number| number + 1);
        numbers.sort_unstable();
        let all = attempts(numbers).into_iter().map(|attempt| Problem { numbers, target: attempt.value() });
        tickets.extend(all.filter(|problem| problem.split() == Split::HeldOut));
    }
    Rng::keyed(&[seed]).shuffle(&mut tickets);
    let mut seen = HashSet::new();
    tickets.retain(|problem| seen.insert(*problem));
    tickets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_two_three_is_enumerated_by_hand() {
        let listed: Vec<String> =
            attempts([3, 1, 2]).iter().map(|attempt| format!("{attempt} {}", attempt.expression())).collect();
        let expected = [
            // 1 and 2, then 3; 2/1 is a division by 1 and 3-3 is 0.
            "2+1=3, 3+3=6 (2+1)+3",
            "2+1=3, 3*3=9 (2+1)*3",
            "2+1=3, 3/3=1 (2+1)/3",
            "2-1=1, 3+1=4 3+(2-1)",
            "2-1=1, 3-1=2 3-(2-1)",
            "2-1=1, 3*1=3 3*(2-1)",
            "2*1=2, 3+2=5 3+(2*1)",
            "2*1=2, 3-2=1 3-(2*1)",
            "2*1=2, 3*2=6 3*(2*1)",
            // 1 and 3, then 2.
            "3+1=4, 4+2=6 (3+1)+2",
            "3+1=4, 4-2=2 (3+1)-2",
            "3+1=4, 4*2=8 (3+1)*2",
            "3+1=4, 4/2=2 (3+1)/2",
            "3-1=2, 2+2=4 (3-1)+2",
            "3-1=2, 2*2=4 (3-1)*2",
            "3-1=2, 2/2=1 (3-1)/2",
            "3*1=3, 3+2=5 (3*1)+2",
            "3*1=3, 3-2=1 (3*1)-2",
            "3*1=3, 3*2=6 (3*1)*2",
            // 2 and 3, then 1.
            "3+2=5, 5+1=6 (3+2)+1",
            "3+2=5, 5-1=4 (3+2)-1",
            "3+2=5, 5*1=5 (3+2)*1",
            "3-2=1, 1+1=2 (3-2)+1",
            "3-2=1, 1*1=1 (3-2)*1",
            "3*2=6, 6+1=7 (3*2)+1",
            "3*2=6, 6-1=5 (3*2)-1",
            "3*2=6, 6*1=6 (3*2)*1",
        ];
        assert_eq!(listed, expected);
    }

    #[test]
    fn equal_numbers_give_each_attempt_once_and_values_stay_in_range() {
        for numbers in [[1, 1, 1], [3, 3, 5], [12, 12, 12]] {
            let all = attempts(numbers);
            let distinct: HashSet<_> = all.iter().collect();
            assert!(!all.is_empty());
            assert_eq!(distinct.len(), all.len());
            assert!(all.iter().flat_map(|attempt| attempt.steps).all(|step| (1..=MAX_VALUE).contains(&step.value)));
        }
    }

    #[test]
    fn prompt_and_gold_have_the_agreed_wording() {
        let problem = Problem { numbers: [3, 7, 12], target: 19 };
        assert_eq!(problem.prompt(), "Make 19 from 3, 7, 12.");
        assert_eq!(problem.gold(), "19 from 3, 7, 12");
    }

    #[test]
    fn splits_are_disjoint_and_every_problem_is_solvable() {
        let held_out: HashSet<Problem> = held_out(0).into_iter().collect();
        for index in 0..5_000 {
            let problem = problem(0, index, Split::Train);
            assert!(!held_out.contains(&problem));
            assert!(attempts(problem.numbers).iter().any(|attempt| attempt.value() == problem.target));
        }
        for problem in &held_out {
            assert_eq!(problem.split(), Split::HeldOut);
            assert!(attempts(problem.numbers).iter().any(|attempt| attempt.value() == problem.target));
        }
    }

    #[test]
    fn numbers_admit_5_to_43_attempts() {
        let mut counts = Vec::new();
        for (a, b, c) in (0..12 * 12 * 12).map(|code| (code / 144, code / 12 % 12, code % 12)) {
            counts.push(attempts([a + 1, b + 1, c + 1]).len());
        }
        assert_eq!((counts.iter().min(), counts.iter().max()), (Some(&5), Some(&43)));
        assert_eq!(attempts([1, 1, 1]).len(), 5);
    }

    #[test]
    fn held_out_problems_are_many_and_distinct() {
        let problems = held_out(3);
        // A different number means a different hash, and problems that change sides.
        assert_eq!(problems.len(), 1184);
        assert_eq!(problems.iter().collect::<HashSet<_>>().len(), problems.len());
        assert_eq!(problem(3, 5, Split::HeldOut), problems[5]);
        assert_eq!(problem(3, 5 + problems.len() as u64, Split::HeldOut), problems[5]);
        let mut other = held_out(4);
        assert_ne!(other, problems);
        let mut problems = problems;
        other.sort_unstable();
        problems.sort_unstable();
        assert_eq!(other, problems);
    }

    #[test]
    fn an_index_decides_its_problem_alone() {
        let forward: Vec<Problem> = (0..50).map(|index| problem(9, index, Split::Train)).collect();
        let backward: Vec<Problem> = (0..50).rev().map(|index| problem(9, index, Split::Train)).collect();
        assert!(forward.iter().eq(backward.iter().rev()));
        assert!((0..50).any(|index| problem(9, index, Split::Train) != problem(10, index, Split::Train)));
    }
}
