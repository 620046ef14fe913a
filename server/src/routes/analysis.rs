//! What a model looks like inside: one look a file. What is computed is in [`crate::analysis`].

pub mod attention;
