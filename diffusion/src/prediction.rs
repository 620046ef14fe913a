//! What does the network predict? The parameterisations, each as the linear map that turns a prediction into a
//! clean image, and the choices for the variance of the reverse process.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The quantity a network predicts about `x = alpha · x0 + sigma · eps`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Prediction {
    /// The noise `eps` (Ho et al. 2020, section 3.2).
    Eps,
    /// The clean image `x0`.
    X0,
    /// The velocity `v = alpha · eps - sigma · x0` (Salimans & Ho 2022, section 4).
    V,
}

/// The variance of one ancestral step. Only the DDPM sampler reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variance {
    /// The posterior's, `beta_tilde`: right for data that is one point (Ho et al. 2020, section 3.2).
    FixedSmall,
    /// The forward step's, `beta`: right for data that is standard normal.
    FixedLarge,
    /// Between the two in the logarithm, by the network's second output (Nichol & Dhariwal 2021, equation 15).
    LearnedRange,
}

// === impl Prediction ===

impl Prediction {
    /// `(a, b)` such that `x0 = a · x + b · prediction`, where `x` has signal `alpha > 0` and noise `sigma`.
    pub fn to_x0(self, alpha: f64, sigma: f64) -> (f64, f64) {
        match self {
            Self::Eps => (1.0 / alpha, -sigma / alpha),
            Self::X0 => (0.0, 1.0),
            Self::V => (alpha, -sigma),
        }
    }

    /// The same for any quantity: `(a, b)` such that `wanted = a · x + b · prediction`, where `x` has signal `alpha > 0` and
    /// noise `sigma > 0`.
    pub fn to(self, wanted: Self, alpha: f64, sigma: f64) -> (f64, f64) {
        let (a, b) = self.to_x0(alpha, sigma);
        // eps = (x - alpha x0) / sigma, and v by its definition.
        let eps = ((1.0 - alpha * a) / sigma, -alpha * b / sigma);
        match wanted {
            _ if wanted == self => (0.0, 1.0),
            Self::X0 => (a, b),
            Self::Eps => eps,
            Self::V => (alpha * eps.0 - sigma * a, alpha * eps.1 - sigma * b),
        }
    }

    /// The name in manifests and recipes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Eps => "eps",
            Self::X0 => "x0",
            Self::V => "v",
        }
    }
}

impl fmt::Display for Prediction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

// === impl Variance ===

impl Variance {
    /// The name in manifests and recipes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FixedSmall => "fixed_small",
            Self::FixedLarge => "fixed_large",
            Self::LearnedRange => "learned_range",
        }
    }
}

impl fmt::Display for Variance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_true_prediction_gives_back_the_clean_image() {
        let (x0, eps) = (0.37, -1.9);
        for angle in [0.01, 0.4, 1.1, 1.56] {
            let (sigma, alpha) = libm::sincos(angle);
            let x = alpha * x0 + sigma * eps;
            for (prediction, truth) in
                [(Prediction::Eps, eps), (Prediction::X0, x0), (Prediction::V, alpha * eps - sigma * x0)]
            {
                let (a, b) = prediction.to_x0(alpha, sigma);
                assert!((a * x + b * truth - x0).abs() < 1e-12, "{prediction} at {angle}");
                for (wanted, expected) in
                    [(Prediction::Eps, eps), (Prediction::X0, x0), (Prediction::V, alpha * eps - sigma * x0)]
                {
                    let (a, b) = prediction.to(wanted, alpha, sigma);
                    let got = a * x + b * truth;
                    assert!((got - expected).abs() < 1e-10, "{wanted} from {prediction} at {angle}");
                }
            }
        }
    }

    #[test]
    fn serde_and_display_agree() {
        for prediction in [Prediction::Eps, Prediction::X0, Prediction::V] {
            assert_eq!(serde_json::to_string(&prediction).unwrap(), format!("\"{prediction}\""));
        }
        for variance in [Variance::FixedSmall, Variance::FixedLarge, Variance::LearnedRange] {
            assert_eq!(serde_json::to_string(&variance).unwrap(), format!("\"{variance}\""));
        }
    }
}
