//! A bar: a promise in one number, measured in several turns, and whether it is kept.

use std::fmt;

use serde_json::{Value, json};

use super::stats::Spread;

/// Which side of the limit is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The number must be at least the limit.
    AtLeast,
    /// The number must be at most the limit.
    AtMost,
    /// Told, not judged.
    Told,
}

/// How it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// A share, as a percentage.
    Percent,
    /// Seconds, in milliseconds.
    Millis,
}

/// One promise and its measurements.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// What it is.
    pub name: &'static str,
    /// Good side.
    pub side: Side,
    /// The limit.
    pub limit: f64,
    /// How numbers are written.
    pub unit: Unit,
    /// One measurement a turn.
    pub turns: Vec<f64>,
}

// === impl Bar ===

impl Bar {
    /// Whether the median is on the good side; nothing where it is only told. A median of nothing is on no side.
    pub fn is_met(&self) -> Option<bool> {
        let median = Spread::of(&self.turns).median;
        match self.side {
            Side::AtLeast => Some(median >= self.limit),
            Side::AtMost => Some(median <= self.limit),
            Side::Told => None,
        }
    }

    /// For the raw data.
    pub fn to_json(&self) -> Value {
        json!({ "name": self.name, "limit": self.limit, "met": self.is_met(), "turns": self.turns })
    }

    fn number(&self, value: f64) -> String {
        match self.unit {
            Unit::Percent => format!("{:.1} %", value * 100.0),
            Unit::Millis => format!("{:.1} ms", value * 1e3),
        }
    }
}

/// A row of the report's table: name, limit, median, spread, verdict.
impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let spread = Spread::of(&self.turns);
        let [median, least, most] =
            [spread.median, spread.least, spread.most].map(|value| self.number(value));
        let limit = match self.side {
            Side::AtLeast => format!("≥ {}", self.number(self.limit)),
            Side::AtMost => format!("≤ {}", self.number(self.limit)),
            Side::Told => "-".to_owned(),
        };
        let verdict = match self.is_met() {
            Some(true) => "met",
            Some(false) => "**missed**",
            None => "-",
        };
        write!(f, "| {} | {limit} | {median} | {least} to {most} | {verdict} |", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_decides() {
        let bar = |side, turns: &[f64]| Bar {
            name: "x",
            side,
            limit: 0.5,
            unit: Unit::Percent,
            turns: turns.to_vec(),
        };
        assert_eq!(bar(Side::AtLeast, &[0.1, 0.6, 0.7]).is_met(), Some(true));
        assert_eq!(bar(Side::AtMost, &[0.1, 0.6, 0.7]).is_met(), Some(false));
        assert_eq!(bar(Side::Told, &[0.1]).is_met(), None);
        assert_eq!(bar(Side::AtLeast, &[]).is_met(), Some(false));
        assert_eq!(bar(Side::AtMost, &[]).is_met(), Some(false));
        let row = bar(Side::AtLeast, &[0.1, 0.6, 0.7]).to_string();
        assert_eq!(row, "| x | ≥ 50.0 % | 60.0 % | 10.0 % to 70.0 % | met |");
    }
}
