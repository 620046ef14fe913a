//! What the unit tests share: random numbers that are the same in every run.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Seeds libtorch's random numbers. They are the whole process's: until what is returned is dropped no other test draws any.
pub(crate) fn seeded(seed: i64) -> MutexGuard<'static, ()> {
    static DRAWS: Mutex<()> = Mutex::new(());
    // A test that failed has drawn what it wanted.
    let draws = DRAWS.lock().unwrap_or_else(PoisonError::into_inner);
    tch::manual_seed(seed);
    draws
}
