//! In which order are images seen? A pure function of (seed, position), so that a resumed run goes on exactly where
//! it stopped.

use windowpane_diffusion::noise::{Domain, permutation};

/// The order of training: every epoch is a permutation of its own. Remembers the epoch last asked for.
#[derive(Debug, Clone)]
pub struct EpochOrder {
    seed: u64,
    len: usize,
    cached: Option<(u64, Vec<usize>)>,
}

// === impl EpochOrder ===

impl EpochOrder {
    /// The order of `len` images under `seed`. Panics for 0 images: there is nothing to order.
    pub fn new(seed: u64, len: usize) -> Self {
        assert!(len > 0, "an empty set has no order: this is a bug");
        Self { seed, len, cached: None }
    }

    /// Index of the image at global position `p`: entry `p mod len` of epoch `p / len`'s permutation
    /// (`Domain::Shuffle`, the epoch as the step).
    pub fn at(&mut self, p: u64) -> usize {
        let len = self.len as u64;
        let epoch = p / len;
        if self.cached.as_ref().is_none_or(|(cached, _)| *cached != epoch) {
            self.cached = Some((epoch, permutation(Domain::Shuffle, self.seed, epoch as u32, self.len)));
        }
        let (_, order) = self.cached.as_ref().expect("the epoch was just cached: this is a bug");
        order[(p % len) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_shows_every_image_once_in_an_order_of_its_own() {
        let mut order = EpochOrder::new(3, 50);
        let epochs: Vec<Vec<usize>> =
            (0..4).map(|e| (0..50).map(|i| order.at(e * 50 + i)).collect()).collect();
        for epoch in &epochs {
            let mut sorted = epoch.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..50).collect::<Vec<_>>());
        }
        assert!(epochs.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn a_position_does_not_depend_on_what_was_asked_before() {
        let mut forward = EpochOrder::new(9, 7);
        let expected: Vec<usize> = (0..40).map(|p| forward.at(p)).collect();
        let mut other = EpochOrder::new(9, 7);
        for p in (0..40).rev() {
            assert_eq!(other.at(p), expected[p as usize], "{p}");
        }
        assert_ne!((0..7).map(|p| EpochOrder::new(10, 7).at(p)).collect::<Vec<_>>(), expected[..7]);
    }
}
