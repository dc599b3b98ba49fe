//! Models from the Hugging Face Hub, through its usual cache and environment.
//!
//! Read are `HF_ENDPOINT`, `HF_TOKEN` (or the token file), `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`,
//! `HF_HUB_ETAG_TIMEOUT` and `HF_HUB_DOWNLOAD_TIMEOUT`, all as the Hub's own Python client reads them. Files lie in the
//! layout that it shares with other programs (see [`cache`]), and every blob is checked before it gets its name.

#![deny(clippy::indexing_slicing)]

mod answer;
pub mod cache;
mod checksum;
mod client;
mod download;
mod progress;
mod session;
mod settings;

pub use client::Patience;
pub use settings::{Hub, Token};
