//! The load laboratory: what `cargo xtask bench serve` (`benches/serve.rs`) is made of. A trace says who comes when,
//! the client sends it to a real server whatever has been answered, the experiments make bars of what came back.
//!
//! ```text
//! Trace ─at a load─> Arrival… ─play─> Record… ─Summary─> Bar… ─Run─> server/benches/runs/<date>-<hardware>/
//! trace              trace     client  summary   experiment report, plot
//! ```
//!
//! It is a library so that `cargo test` checks all of it that needs no hour: a benchmark's own tests are never run.

pub mod bar;
pub mod bare;
pub mod client;
pub mod experiment;
pub mod lab;
pub mod machine;
pub mod plot;
pub mod report;
pub mod scrape;
pub mod stats;
pub mod subject;
pub mod summary;
pub mod trace;
pub mod usage;
