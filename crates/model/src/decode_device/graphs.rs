//! Which steps are captured, and when: a step that comes a second time in the same layout is captured, and replayed from
//! then on. The first time it is launched as it is, so that a capture finds every kernel loaded.

use super::kernels::Layout;
use crate::error::Result;
use crate::ops::sample::Distribution;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// What can be done with a step that was sent to a device.
pub(crate) trait Steps {
    /// A captured step.
    type Graph;

    /// Launches its kernels one by one.
    fn launch(&mut self) -> Result<()>;

    /// Captures them instead, without running any.
    fn capture(&mut self) -> Result<Self::Graph>;

    /// Runs what was captured.
    fn replay(&mut self, graph: &Self::Graph) -> Result<()>;
}

/// Captured steps by their layout.
pub(crate) struct Graphs<G> {
    known: HashMap<Layout, Option<G>>,
    from: Option<Distribution>,
    replayed: usize,
    failure: Option<String>,
}

impl<G> Default for Graphs<G> {
    fn default() -> Self {
        Self { known: HashMap::new(), from: None, replayed: 0, failure: None }
    }
}

impl<G> Graphs<G> {
    /// Forgets what was captured, where memory has moved.
    pub fn forget(&mut self) {
        self.known.clear();
    }

    /// Steps that were replayed so far.
    pub fn replayed(&self) -> usize {
        self.replayed
    }

    /// Why no more steps are captured, where the driver has refused one.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Runs a step, captured if it can be.
    ///
    /// # Errors
    /// When it cannot be launched. A capture that fails is no error: the step is launched, as are all after it, and
    /// [`Graphs::failure`] says why.
    pub fn run(&mut self, layout: Layout, from: &Distribution, steps: &mut impl Steps<Graph = G>) -> Result<()> {
        // What is drawn from is captured too; tables grow with the sequences, and the narrower ones do not come back soon.
        let narrower = self.known.keys().any(|known| known.width() != layout.width());
        if self.from.as_ref() != Some(from) || narrower {
            self.known.clear();
            self.from = Some(*from);
        }
        if self.failure.is_some() {
            return steps.launch();
        }
        match self.known.entry(layout) {
            Entry::Vacant(entry) => {
                entry.insert(None);
                steps.launch()
            }
            Entry::Occupied(mut entry) => {
                if entry.get().is_none() {
                    match steps.capture() {
                        Ok(graph) => *entry.get_mut() = Some(graph),
                        Err(error) => {
                            self.failure = Some(error.to_string());
                            return steps.launch();
                        }
                    }
                }
                let Some(graph) = entry.get() else { return steps.launch() };
                self.replayed += 1;
                steps.replay(graph)
            }
        }
    }
}

/// So many rows, or more, of which few different numbers are captured: a multiple of 8 up to 64, of 32 beyond.
pub(crate) fn padded(rows: usize) -> usize {
    match rows {
        0..=4 => rows.next_power_of_two(),
        5..=64 => rows.next_multiple_of(8),
        _ => rows.next_multiple_of(32),
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::Plan;
    use super::*;
    use crate::error::Error;

    #[derive(Default)]
    struct Log {
        said: Vec<String>,
        refuses: bool,
    }

    impl Steps for Log {
        type Graph = usize;

        fn launch(&mut self) -> Result<()> {
            self.said.push("launch".into());
            Ok(())
        }

        fn capture(&mut self) -> Result<usize> {
            if self.refuses {
                return Err(Error::Unsupported("the driver refused".into()));
            }
            self.said.push("capture".into());
            Ok(self.said.len())
        }

        fn replay(&mut self, graph: &usize) -> Result<()> {
            self.said.push(format!("replay {graph}"));
            Ok(())
        }
    }

    fn layout(rows: usize, width: usize) -> Layout {
        Layout::new(&Plan { width, ..Plan::default() }, rows, Some(rows))
    }

    const FROM: Distribution = Distribution { temperature: 1.0, top_p: 1.0, top_k: 0 };

    #[test]
    fn a_layout_is_launched_then_captured_then_replayed() {
        let (mut graphs, mut log) = (Graphs::default(), Log::default());
        for rows in [8, 8, 16, 8, 16] {
            graphs.run(layout(rows, 4), &FROM, &mut log).unwrap();
        }
        assert_eq!(log.said, ["launch", "capture", "replay 2", "launch", "replay 2", "capture", "replay 6"]);
        assert_eq!(graphs.replayed(), 3);
        log.said.clear();
        // Memory that moved, another distribution and wider tables: nothing of before holds.
        graphs.forget();
        graphs.run(layout(8, 4), &FROM, &mut log).unwrap();
        graphs.run(layout(8, 4), &Distribution { top_k: 3, ..FROM }, &mut log).unwrap();
        graphs.run(layout(8, 8), &Distribution { top_k: 3, ..FROM }, &mut log).unwrap();
        assert_eq!(log.said, ["launch"; 3]);
    }

    #[test]
    fn a_refused_capture_is_said_and_steps_go_on() {
        let (mut graphs, mut log) = (Graphs::default(), Log { refuses: true, ..Log::default() });
        for _ in 0..3 {
            graphs.run(layout(8, 4), &FROM, &mut log).unwrap();
        }
        assert_eq!(log.said, ["launch"; 3]);
        assert_eq!((graphs.failure(), graphs.replayed()), (Some("the driver refused"), 0));
    }

    #[test]
    fn few_numbers_of_rows_are_captured() {
        let different: std::collections::BTreeSet<usize> = (1..=256).map(padded).collect();
        assert!((1..=256).all(|rows| padded(rows) >= rows) && different.len() <= 17, "{different:?}");
    }
}
