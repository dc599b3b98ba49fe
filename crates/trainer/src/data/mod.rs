//! Problems to train and evaluate on, and the traces of the supervised warm start.
//!
//! ```text
//! "countdown" | "a.jsonl" | "a.parquet" | "org/name"  --Source-->  load  --Problems-->  batch(step)
//! ```

pub mod countdown;
mod error;
mod jsonl;
mod parquet;
mod problems;
pub mod rng;
mod row;
mod source;
pub mod traces;

pub use error::DataError;
pub use jsonl::next_line;
pub use problems::{Loaded, Problems, Reading, Use, load};
pub use row::{BadRows, Places};
pub use source::Source;
