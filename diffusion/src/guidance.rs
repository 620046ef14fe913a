//! Classifier-free guidance (Ho & Salimans 2022): push the prediction away from what the network would say
//! without the class. Two network rows go in, one prediction comes out.

use crate::error::{Error, Result, number};

/// Scales beyond this only saturate the image; far beyond, f32 overflows.
pub const MAX_SCALE: f64 = 100.0;

/// Checks a guidance scale: finite and 0 to [`MAX_SCALE`].
pub fn check_scale(scale: f64) -> Result<()> {
    if (0.0..=MAX_SCALE).contains(&scale) {
        Ok(())
    } else {
        Err(Error::bad_value("guidance_scale", number(scale), format!("a number from 0 to {MAX_SCALE}")))
    }
}

/// Whether the unconditional row is needed: at scale 1 guidance is the conditional prediction itself.
///
/// (At scale 0 the conditional row is not needed; asking for an image without a class is the way to save it.)
pub fn needs_unconditional(scale: f64) -> bool {
    scale != 1.0
}

/// `conditional := u + scale · (c - u)` on the first `guided` values: the prediction, not the learned variance
/// behind it, which stays the conditional one. Scale 1 is the class alone, 0 no class.
///
/// Ho & Salimans' equation 6 with `w = scale - 1`. Panics where a slice is shorter than `guided`.
pub fn guide(conditional: &mut [f32], unconditional: &[f32], scale: f32, guided: usize) {
    for (c, &u) in conditional[..guided].iter_mut().zip(&unconditional[..guided]) {
        *c = u + scale * (*c - u);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const C: [f32; 4] = [0.5, -1.25, 3.0, 0.125];
    const U: [f32; 4] = [0.25, 0.75, -1.0, 8.0];

    fn guided(scale: f32, guided: usize) -> [f32; 4] {
        let mut c = C;
        guide(&mut c, &U, scale, guided);
        c
    }

    #[test]
    fn scale_one_is_the_class_and_zero_is_none() {
        // Exact: these numbers and their differences are representable.
        assert_eq!(guided(1.0, 4), C);
        assert_eq!(guided(0.0, 4), U);
    }

    #[test]
    fn larger_scales_extrapolate() {
        assert_eq!(guided(3.0, 4), [1.0, -5.25, 11.0, -15.625]);
    }

    #[test]
    fn the_variance_behind_the_prediction_is_left_alone() {
        assert_eq!(guided(3.0, 2), [1.0, -5.25, C[2], C[3]]);
    }

    #[test]
    fn equal_rows_stay_whatever_the_scale() {
        let mut c = C;
        guide(&mut c, &C, 7.5, 4);
        assert_eq!(c, C);
    }

    #[test]
    fn scales_are_checked() {
        for good in [0.0, 1.0, 1.5, 100.0] {
            assert!(check_scale(good).is_ok(), "{good}");
        }
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.5, 100.5] {
            assert!(check_scale(bad).unwrap_err().to_string().contains("guidance_scale"), "{bad}");
        }
        assert!(!needs_unconditional(1.0) && needs_unconditional(0.0) && needs_unconditional(4.0));
    }
}
