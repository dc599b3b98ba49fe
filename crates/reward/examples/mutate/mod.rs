//! Random edits of texts, and what the command line asks for: what the fuzz targets of this workspace share.

/// `MINUTES [NAME...] [--seed N]`.
pub struct Wanted {
    /// How long to look for a finding.
    pub minutes: f64,
    /// Where the random numbers begin; 1 unless told.
    pub seed: u64,
    /// What else there was.
    pub names: Vec<String>,
}

impl Wanted {
    /// Reads the command line; `None` where it does not begin with a number.
    pub fn parse() -> Option<Self> {
        let mut names: Vec<String> = std::env::args().skip(1).collect();
        let mut seed = 1;
        if let Some(at) = names.iter().position(|argument| argument == "--seed") {
            seed = names.get(at + 1).and_then(|number| number.parse().ok()).unwrap_or(seed);
            names.drain(at..(at + 2).min(names.len()));
        }
        let minutes = names.first()?.parse().ok()?;
        names.remove(0);
        Some(Self { minutes, seed, names })
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014).
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 where there is none.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// One of some.
    pub fn pick<'a, T: ?Sized>(&mut self, items: &'a [&'a T]) -> &'a T {
        items[self.below(items.len())]
    }
}

/// A place between two characters.
fn place(text: &str, random: &mut Random) -> usize {
    let mut at = random.below(text.len() + 1);
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// A text a few edits away from `text`: pieces put in, parts taken out, repeated, or taken from another text.
pub fn mutate(text: &str, corpus: &[String], pieces: &[&str], random: &mut Random) -> String {
    let mut text = text.to_owned();
    for _ in 0..=random.below(6) {
        let (a, b) = (place(&text, random), place(&text, random));
        let (from, to) = (a.min(b), a.max(b));
        match random.below(6) {
            0 => text.insert_str(from, random.pick(pieces)),
            1 => text.replace_range(from..to, ""),
            2 => {
                let piece = random.pick(pieces).repeat(1 << random.below(9));
                text.insert_str(from, &piece);
            }
            3 => {
                let part = text[from..to].repeat(1 + random.below(8));
                text.insert_str(to, &part);
            }
            4 => {
                let other = &corpus[random.below(corpus.len())];
                let start = place(other, random);
                text.insert_str(from, &other[start..]);
            }
            _ => text.insert(from, char::from_u32(random.below(0x3000) as u32).unwrap_or('\u{fffd}')),
        }
        if text.len() > 20_000 {
            text.truncate(place(&text, random));
        }
    }
    text
}
