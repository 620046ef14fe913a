//! Several pictures of one size beside each other, left to right: how a trajectory is shown in one file.

use super::Picture;

/// The pictures in a row. All have the size and colour of the first; `None` where there are none.
pub fn strip(pictures: &[Picture]) -> Option<Picture> {
    let first = pictures.first()?;
    debug_assert!(
        pictures.iter().all(|p| (p.width, p.height, p.colour) == (first.width, first.height, first.colour))
    );
    let line = first.width * first.colour.channels();
    let mut pixels = Vec::with_capacity(first.pixels.len() * pictures.len());
    for y in 0..first.height {
        pictures
            .iter()
            .for_each(|picture| pixels.extend_from_slice(&picture.pixels[y * line..(y + 1) * line]));
    }
    Some(Picture { width: first.width * pictures.len(), height: first.height, colour: first.colour, pixels })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::{Colour, enlarge, tests::gradient};

    #[test]
    fn every_picture_stands_whole_beside_the_one_before() {
        for colour in [Colour::Grey, Colour::Rgb] {
            let (a, channels) = (gradient(colour, 3, 5), colour.channels());
            let b = Picture { pixels: a.pixels.iter().rev().copied().collect(), ..a.clone() };
            let both = strip(&[a.clone(), b.clone()]).unwrap();
            assert_eq!((both.width, both.height, both.colour), (10, 3, colour));
            for (y, line) in both.pixels.chunks_exact(10 * channels).enumerate() {
                let own = |p: &Picture| p.pixels[y * 5 * channels..(y + 1) * 5 * channels].to_vec();
                assert_eq!(line, [own(&a), own(&b)].concat());
            }
        }
    }

    #[test]
    fn one_is_itself_and_none_is_nothing() {
        let picture = enlarge(&gradient(Colour::Grey, 2, 2), 3);
        assert_eq!(strip(std::slice::from_ref(&picture)), Some(picture));
        assert_eq!(strip(&[]), None);
    }
}
