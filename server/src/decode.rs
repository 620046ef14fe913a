//! From a client's bytes to numbers: uploaded pictures and arrays. Everything is bounded before it is allocated, and
//! no bytes whatever make it panic.

pub mod npy;
pub mod picture;
