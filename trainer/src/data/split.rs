//! Training and held-out images that cannot overlap, and subsets that nest.
//!
//! Two images are the same if their pixels are; names and labels do not count. No such pair ever stands on both
//! sides of a split: what is dropped for it is counted, never silent.

use std::collections::HashSet;

use sha2::{Digest, Sha256};
use windowpane_diffusion::noise::{Domain, permutation};

use super::ImageSet;
use super::error::{DataError, Result};

/// The step of the noise domain [`Domain::Shuffle`] that orders whole sets; training epochs count from 0.
const WHOLE_SET: u32 = u32::MAX;

/// Both sides of a split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Images to learn from.
    pub train: ImageSet,
    /// Images held out: none of them has a copy in the training images.
    pub test: ImageSet,
    /// Images left out because a copy of them stands on the other side.
    pub dropped: usize,
}

/// The images in an order that `seed` alone decides. The first n of it are a random subset, and a subset of the
/// first m > n.
pub fn shuffled(set: &ImageSet, seed: u64) -> ImageSet {
    set.select(&permutation(Domain::Shuffle, seed, WHOLE_SET, set.len()))
}

/// Holds out `count` images of different content, drawn by `seed`; the rest, in its old order, is for training.
/// Further copies of held-out images are dropped.
///
/// Errors: a count of 0, or one that leaves nothing to learn from.
pub fn hold_out(set: &ImageSet, count: usize, seed: u64) -> Result<Pair> {
    let digests = contents(set);
    let distinct = digests.iter().collect::<HashSet<_>>().len();
    if count == 0 || count >= distinct {
        let problem =
            format!("is {count}, expected 1 to {} for {distinct} different images", distinct.max(1) - 1);
        return Err(DataError::source("hold_out", problem));
    }
    let (mut held, mut test) = (HashSet::new(), Vec::new());
    for i in permutation(Domain::Shuffle, seed, WHOLE_SET, set.len()) {
        if test.len() == count {
            break;
        }
        if held.insert(digests[i]) {
            test.push(i);
        }
    }
    let train: Vec<usize> = (0..set.len()).filter(|&i| !held.contains(&digests[i])).collect();
    let dropped = set.len() - train.len() - test.len();
    Ok(Pair { train: set.select(&train), test: set.select(&test), dropped })
}

/// Puts two given sides together, dropping held-out images that have a copy in the training images.
///
/// Errors: images of two shapes, or nothing left to hold out.
pub fn pair(train: ImageSet, test: &ImageSet) -> Result<Pair> {
    if (train.channels, train.height, train.width) != (test.channels, test.height, test.width) {
        let show = |set: &ImageSet| format!("{} × {} × {}", set.channels, set.height, set.width);
        let expected = format!("{} as the training images", show(&train));
        return Err(DataError::Shape { at: "the held-out images".to_owned(), got: show(test), expected });
    }
    let known: HashSet<[u8; 32]> = contents(&train).into_iter().collect();
    let fresh: Vec<usize> = contents(test)
        .iter()
        .enumerate()
        .filter(|(_, digest)| !known.contains(*digest))
        .map(|(i, _)| i)
        .collect();
    if fresh.is_empty() {
        return Err(DataError::source("split", "leaves nothing: every held-out image is a training image"));
    }
    let dropped = test.len() - fresh.len();
    Ok(Pair { train, test: test.select(&fresh), dropped })
}

/// How many images are exact copies of an earlier one.
pub fn duplicates(set: &ImageSet) -> usize {
    let mut seen = HashSet::new();
    contents(set).into_iter().filter(|digest| !seen.insert(*digest)).count()
}

/// sha256 of the pixels of each image.
fn contents(set: &ImageSet) -> Vec<[u8; 32]> {
    (0..set.len()).map(|i| Sha256::digest(set.image(i)).into()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `n` grey images of two pixels, image i showing `content(i)`.
    fn set(n: u8, content: impl Fn(u8) -> u8) -> ImageSet {
        let pixels = (0..n).flat_map(|i| [content(i), 0]).collect();
        ImageSet::new((1, 1, 2), pixels, (0..i64::from(n)).collect(), vec![])
    }

    fn shown(set: &ImageSet) -> Vec<u8> {
        (0..set.len()).map(|i| set.image(i)[0]).collect()
    }

    #[test]
    fn nothing_stands_on_both_sides() {
        // 60 images of 20 contents, three copies each.
        for seed in 0..20 {
            let pair = hold_out(&set(60, |i| i % 20), 7, seed).unwrap();
            let held: HashSet<u8> = shown(&pair.test).into_iter().collect();
            assert_eq!((pair.test.len(), held.len()), (7, 7));
            assert!(shown(&pair.train).iter().all(|content| !held.contains(content)));
            assert_eq!((pair.train.len(), pair.dropped), (39, 14));
        }
        assert_ne!(
            hold_out(&set(60, |i| i), 7, 1).unwrap().test,
            hold_out(&set(60, |i| i), 7, 2).unwrap().test
        );
    }

    #[test]
    fn given_sides_lose_their_overlap() {
        let both = pair(set(10, |i| i), &set(10, |i| i + 6)).unwrap();
        assert_eq!((shown(&both.test), both.dropped), (vec![10, 11, 12, 13, 14, 15], 4));
        assert_eq!(both.train, set(10, |i| i));
        assert!(pair(set(10, |i| i), &set(5, |i| i)).is_err());
    }

    #[test]
    fn subsets_nest() {
        let all = shuffled(&set(100, |i| i), 4);
        assert_eq!(all.first(10).unwrap(), all.first(50).unwrap().first(10).unwrap());
        let mut contents = shown(&all);
        assert_ne!(contents, shown(&set(100, |i| i)));
        assert_eq!(all.labels, contents.iter().map(|&c| i64::from(c)).collect::<Vec<_>>(), "labels go along");
        contents.sort_unstable();
        assert_eq!(contents, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn impossible_counts_are_errors() {
        for count in [0, 20, 21, 1000] {
            let error = hold_out(&set(60, |i| i % 20), count, 0).unwrap_err().to_string();
            assert!(error.contains("expected 1 to 19"), "{error}");
        }
    }

    #[test]
    fn copies_are_counted() {
        assert_eq!(duplicates(&set(60, |i| i % 20)), 40);
        assert_eq!(duplicates(&set(60, |i| i)), 0);
    }
}
