//! What does `strength` mean for this model? The noise level at which a picture begins, for every number of steps that can
//! be taken of the default grid.

use serde::Serialize;
use utoipa::ToSchema;

use crate::model::Card;
use crate::spec::SampleSpec;

/// A strength, and the noise level at which a picture begins.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct StrengthObject {
    /// The smallest strength that begins here.
    #[schema(example = 0.8)]
    pub strength: f64,
    /// Steps that are taken.
    #[schema(example = 8)]
    pub steps: usize,
    /// The timestep, counted from 0; fractional on the Karras grid.
    #[schema(example = 777)]
    pub t: f64,
    /// The share of the noisy picture's variance that is the picture's.
    pub alpha_bar: f64,
    /// The noise's standard deviation, `sqrt(1 - alpha_bar)`.
    pub sigma: f64,
}

// === impl StrengthObject ===

impl StrengthObject {
    /// All of a model, the smallest first.
    pub(super) fn all(card: &Card) -> Vec<Self> {
        let spec = SampleSpec::defaults(card);
        (1..=spec.solver.steps).filter_map(|taken| Self::new(taken, &spec)).collect()
    }

    /// That of so many steps, the last of `spec`'s.
    fn new(taken: usize, spec: &SampleSpec) -> Option<Self> {
        let first = spec.solver.steps.checked_sub(taken)?;
        let begun = spec.evaluations.iter().find(|evaluation| evaluation.step == first)?;
        let share = taken as f64 / spec.solver.steps as f64;
        // A quotient that was rounded down may be short of a step.
        let strength = if spec.solver.first_step(share) == Ok(first) { share } else { share.next_up() };
        let (t, alpha_bar) = (f64::from(begun.t), begun.alpha * begun.alpha);
        Some(Self { strength, steps: taken, t, alpha_bar, sigma: begun.sigma })
    }
}

#[cfg(test)]
mod tests {
    use windowpane_diffusion::SolverConfig;

    use super::*;
    use crate::testing::manifest;

    #[test]
    fn each_strength_is_the_level_that_the_schedule_has_there() {
        // Ten steps of a linear schedule of a hundred timesteps: 0, 11, 22, … 99.
        let card = Card::new(manifest("shoes", &["Boot"]), "0".repeat(64), 0).unwrap();
        let all = StrengthObject::all(&card);
        assert_eq!(all.len(), 10);
        // The product of 1 - beta over the first timesteps, betas from 1e-3 to 0.2 in even steps (Ho et al. 2020, scaled).
        let alpha_bar =
            |t: usize| (0..=t).map(|i| 1.0 - (1e-3 + i as f64 / 99.0 * (0.2 - 1e-3))).product::<f64>();
        for (i, told) in all.iter().enumerate() {
            assert_eq!((told.steps, told.t), (i + 1, 11.0 * i as f64));
            assert!((told.strength - (i + 1) as f64 / 10.0).abs() < 1e-12);
            let expected = alpha_bar(11 * i);
            assert!((told.alpha_bar - expected).abs() < 1e-12, "{told:?}: {expected}");
            assert!((told.sigma - (1.0 - expected).sqrt()).abs() < 1e-12);
        }
    }

    #[test]
    fn a_strength_that_is_told_takes_the_steps_that_are_told() {
        let mut manifest = manifest("shoes", &["Boot"]);
        manifest.schedule.steps = 1000;
        for steps in [1, 3, 7, 29, 49, 100, 1000] {
            manifest.defaults.steps = steps;
            let card = Card::new(manifest.clone(), "0".repeat(64), 0).unwrap();
            let solver: SolverConfig = SampleSpec::defaults(&card).solver;
            for told in StrengthObject::all(&card) {
                assert_eq!(solver.first_step(told.strength), Ok(steps - told.steps), "{told:?} of {steps}");
                let less = told.strength - 1e-9;
                assert!(solver.first_step(less) != Ok(steps - told.steps), "{less} of {steps}");
            }
        }
    }
}
