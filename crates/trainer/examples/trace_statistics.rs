//! Prints how long Countdown traces are in tokens of the embedded policy, and how much of that is redundant.
//!
//! `cargo run -p trainer --example trace_statistics [TRACES]`

use tokenizers::Tokenizer;
use trainer::data::countdown::{Split, held_out, problem};
use trainer::data::rng::Rng;
use trainer::data::traces::{TraceStyle, trace};

const TOKENIZER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../model/embedded/tokenizer.json");

/// Token counts of `traces` training traces, ascending, their `wait`s, and how many end with a wrong answer.
fn measure(tokenizer: &Tokenizer, style: &TraceStyle, traces: u64) -> (Vec<usize>, usize, usize) {
    let (mut tokens, mut waits, mut gave_up) = (Vec::new(), 0, 0);
    for index in 0..traces {
        let problem = problem(0, index, Split::Train);
        let text = trace(&problem, style, &mut Rng::keyed(&[0, 1, index])) + "<|end|>";
        tokens.push(tokenizer.encode(text.as_str(), false).expect("any text encodes").len());
        waits += text.matches("wait ").count();
        gave_up += usize::from(!text.contains(" yes\n"));
    }
    tokens.sort_unstable();
    (tokens, waits, gave_up)
}

fn main() {
    let traces = std::env::args().nth(1).map_or(5_000, |count| count.parse().expect("a number of traces"));
    let tokenizer = Tokenizer::from_file(TOKENIZER).expect("the embedded tokenizer loads");
    println!("{} held-out problems, {traces} training traces, the end token counted", held_out(0).len());
    let base = TraceStyle::default();
    let styles = [
        ("default", base.clone()),
        ("direct", TraceStyle::direct()),
        ("direct, closeness 2", TraceStyle { closeness: 2.0, ..TraceStyle::direct() }),
        ("direct, closeness 5", TraceStyle { closeness: 5.0, ..TraceStyle::direct() }),
        ("default, closeness 2", TraceStyle { closeness: 2.0, ..base.clone() }),
        ("default, closeness 5", TraceStyle { closeness: 5.0, ..base }),
    ];
    for (name, style) in styles {
        let (tokens, waits, gave_up) = measure(&tokenizer, &style, traces);
        let share = |count: usize| 100.0 * count as f64 / tokens.len() as f64;
        let over = |limit: usize| share(tokens.iter().filter(|&&length| length > limit).count());
        println!(
            "{name:21} mean {:6.1}  p50 {:4}  p90 {:4}  max {:4}  over 448/224/192: {:4.1}% {:4.1}% {:4.1}%  \
             waits {:5.2}  gave up {:4.1}%",
            tokens.iter().sum::<usize>() as f64 / tokens.len() as f64,
            tokens[tokens.len() / 2],
            tokens[tokens.len() * 9 / 10],
            tokens[tokens.len() - 1],
            over(448),
            over(224),
            over(192),
            waits as f64 / tokens.len() as f64,
            share(gave_up),
        );
    }
}
