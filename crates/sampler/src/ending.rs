//! Ends of responses that no single token tells, such as a stop string that several tokens spell.

use crate::engine::Result;
use std::fmt;
use std::sync::Arc;

/// Watches one response: is told its tokens, each once and in order, and says whether the response ends with this one.
pub type Ending = Box<dyn FnMut(u32) -> Result<bool>>;

/// Makes an [`Ending`] for each response. The sampler knows tokens only; what they say is known to whoever gives this.
///
/// What an ending answers has to follow from the tokens alone, so that a rollout depends on nothing else. It goes with its
/// response when that is sent back to the queue, and is not told again what it has seen.
#[derive(Clone)]
pub struct Endings(Arc<dyn Fn() -> Ending + Send + Sync>);

impl Endings {
    /// Endings that `make` makes, one a response.
    pub fn new(make: impl Fn() -> Ending + Send + Sync + 'static) -> Self {
        Self(Arc::new(make))
    }

    /// The ending of one response.
    pub fn start(&self) -> Ending {
        (self.0)()
    }
}

impl fmt::Debug for Endings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Endings")
    }
}
