//! What the server counts about itself: the few numbers of `/metrics` that the experiments use, and their differences.

use std::time::Instant;

use anyhow::{Context, Result};

/// One reading of one model.
#[derive(Debug, Clone, Copy)]
pub struct Scrape {
    /// When it was read.
    pub at: Instant,
    /// Ticks so far.
    pub ticks: f64,
    /// Rows in all of them.
    pub rows: f64,
    /// Seconds spent in them.
    pub seconds: f64,
    /// Images admitted and not finished.
    pub trajectories: f64,
    /// Calls for studies so far; 0 of a model whose insides cannot be looked at.
    pub units: f64,
}

/// What lies between two readings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ticks {
    /// Seconds between the readings.
    pub elapsed: f64,
    /// Ticks.
    pub ticks: f64,
    /// Rows in them.
    pub rows: f64,
    /// Seconds spent in them.
    pub seconds: f64,
}

// === impl Scrape ===

impl Scrape {
    /// From the text of `/metrics`, which was read now.
    pub fn read(text: &str, model: &str) -> Result<Self> {
        let value = |name: &str| {
            sample(text, name, model).with_context(|| format!("/metrics has no number {name} of `{model}`"))
        };
        Ok(Self {
            at: Instant::now(),
            ticks: value("windowpane_tick_rows_count")?,
            rows: value("windowpane_tick_rows_sum")?,
            seconds: value("windowpane_tick_duration_seconds_sum")?,
            trajectories: value("windowpane_trajectories")?,
            units: sample(text, "windowpane_study_units_total", model).unwrap_or(0.0),
        })
    }

    /// From this reading to a later one.
    pub fn until(&self, later: &Self) -> Ticks {
        Ticks {
            elapsed: (later.at - self.at).as_secs_f64(),
            ticks: later.ticks - self.ticks,
            rows: later.rows - self.rows,
            seconds: later.seconds - self.seconds,
        }
    }
}

// === impl Ticks ===

impl Ticks {
    /// Row evaluations a second.
    pub fn throughput(&self) -> f64 {
        self.rows / self.elapsed
    }

    /// Rows of the mean tick.
    pub fn bucket(&self) -> f64 {
        self.rows / self.ticks
    }

    /// The time between ticks as a share of the time in them. It means the host's gap only while there is always work.
    pub fn gap(&self) -> f64 {
        (self.elapsed - self.seconds) / self.seconds
    }
}

/// The value of `name{…model="model"…}`, or the sum of them where other labels tell several apart.
fn sample(text: &str, name: &str, model: &str) -> Option<f64> {
    let label = format!("model=\"{model}\"");
    let values = text.lines().filter_map(|line| {
        let (labels, value) = line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once("} ")?;
        labels.split(',').any(|one| one == label).then(|| value.parse().ok())?
    });
    values.reduce(|sum: f64, value| sum + value)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_models_own_numbers_are_read() {
        let text = "# TYPE windowpane_tick_rows histogram\n\
                    windowpane_tick_rows_bucket{model=\"a\",le=\"1\"} 9\n\
                    windowpane_tick_rows_sum{model=\"b\"} 1\n\
                    windowpane_tick_rows_sum{model=\"a\"} 320\n\
                    windowpane_tick_rows_count{model=\"a\"} 10\n\
                    windowpane_tick_duration_seconds_sum{bucket=\"1\",model=\"a\"} 0.25\n\
                    windowpane_tick_duration_seconds_sum{bucket=\"8\",model=\"a\"} 0.5\n\
                    windowpane_tick_duration_seconds_sum{bucket=\"8\",model=\"b\"} 4\n\
                    windowpane_study_units_total{graph=\"jvp\",model=\"a\"} 4\n\
                    windowpane_study_units_total{graph=\"vjp\",model=\"a\"} 5\n\
                    windowpane_trajectories{model=\"a\"} 3\n";
        let scrape = Scrape::read(text, "a").unwrap();
        assert_eq!((scrape.ticks, scrape.rows, scrape.trajectories), (10.0, 320.0, 3.0));
        assert_eq!((scrape.seconds, scrape.units), (0.75, 9.0));
        let error = Scrape::read(text, "c").unwrap_err().to_string();
        assert!(error.contains("windowpane_tick_rows_count of `c`"), "{error}");
    }

    #[test]
    fn the_gap_is_what_is_not_in_ticks() {
        let at = Instant::now();
        let start = Scrape { at, ticks: 5.0, rows: 10.0, seconds: 1.0, trajectories: 0.0, units: 0.0 };
        let later =
            Scrape { at: at + Duration::from_secs(2), ticks: 15.0, rows: 330.0, seconds: 2.6, ..start };
        let ticks = start.until(&later);
        assert_eq!((ticks.throughput(), ticks.bucket()), (160.0, 32.0));
        assert!((ticks.gap() - 0.25).abs() < 1e-9, "{}", ticks.gap());
    }
}
