//! The storm behind `cargo xtask soak`: clients of every kind, polite and rude, for as long as one likes, and every answer
//! checked. `traffic.rs` is what they send and expect, `record.rs` what came back, `report.rs` what is left of it.

pub mod record;
pub mod report;
pub mod traffic;
