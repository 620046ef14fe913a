//! Who comes when, wanting what. A trace is a file of the repository: Poisson arrivals at one a unit of time, and mixed
//! jobs. It is stretched to a load by [`Trace::at`], so that every policy at every load meets the same people.
//!
//! The mix: 10, 20 or 50 steps alike; guided or not alike; n from 1 to 8 with probability proportional to 1/n, since
//! people ask for one picture more often than for eight. That makes 2.9 images and 118 row evaluations a request in the
//! mean, and the largest job is eighty times the smallest.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::Random;

/// The seeds of the traces in `server/benches/traces`, one for each turn; a sixth turn takes the first again.
pub const SEEDS: [u64; 5] = [1, 2, 3, 4, 5];

/// Requests in a trace. A longer measurement goes through it again.
pub const REQUESTS: usize = 1024;

const STEPS: [u32; 3] = [10, 20, 50];
const MOST_IMAGES: u32 = 8;
const HEADER: &str = "arrival,steps,guided,n";

/// A short job: at most this many row evaluations, such as four images of ten steps or one guided image of twenty. 37 %
/// of a trace's requests are, and 8 % of its work.
pub const SHORT_ROWS: u64 = 40;

/// What one request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    /// Solver steps.
    pub steps: u32,
    /// Whether with guidance, which costs two rows an image.
    pub guided: bool,
    /// Images.
    pub n: u32,
}

/// A request and its time: in a trace in mean distances between two arrivals, in a schedule in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arrival {
    /// When.
    pub at: f64,
    /// What.
    pub job: Job,
}

/// Requests in order of arrival, one a unit of time in the mean.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    arrivals: Vec<Arrival>,
}

// === impl Job ===

impl Job {
    /// Evaluations of the network on one row that the job needs, with a solver that needs one a step.
    pub fn rows(self) -> u64 {
        u64::from(self.steps) * u64::from(self.n) * if self.guided { 2 } else { 1 }
    }

    /// Whether it is a short one.
    pub fn is_short(self) -> bool {
        self.rows() <= SHORT_ROWS
    }

    fn draw(random: &mut Random) -> Self {
        let (steps, guided) = (*random.pick(&STEPS), random.chance(50));
        let harmonic = |upto: u32| (1..=upto).map(|n| 1.0 / f64::from(n)).sum::<f64>();
        let mark = random.unit() * harmonic(MOST_IMAGES);
        let n = (1..MOST_IMAGES).find(|&n| mark < harmonic(n)).unwrap_or(MOST_IMAGES);
        Self { steps, guided, n }
    }
}

// === impl Trace ===

impl Trace {
    /// The trace of `seed`. Times are rounded to the four decimals that the file has.
    pub fn generate(seed: u64) -> Self {
        let (mut random, mut now) = (Random::new(seed), 0.0);
        let mut next = || {
            // Exponential distances by inversion: the arrivals are a Poisson process of rate 1.
            now -= (1.0 - random.unit()).ln();
            Arrival { at: (now * 1e4).round() / 1e4, job: Job::draw(&mut random) }
        };
        Self { arrivals: (0..REQUESTS).map(|_| next()).collect() }
    }

    /// The file's text.
    pub fn to_csv(&self) -> String {
        let mut text = format!("{HEADER}\n");
        for Arrival { at, job: Job { steps, guided, n } } in &self.arrivals {
            writeln!(text, "{at:.4},{steps},{},{n}", u8::from(*guided))
                .expect("a string takes what is written");
        }
        text
    }

    /// From a file's text.
    pub fn from_csv(text: &str) -> Result<Self> {
        let mut lines = text.lines();
        let header = lines.next().unwrap_or("");
        ensure!(header == HEADER, "the first line is `{header}`, expected `{HEADER}`");
        let arrivals = lines.enumerate().map(|(i, line)| {
            arrival(line).with_context(|| format!("line {} is `{line}`, expected `{HEADER}`", i + 2))
        });
        let arrivals: Vec<_> = arrivals.collect::<Result<_>>()?;
        ensure!(!arrivals.is_empty(), "the trace has no requests");
        ensure!(arrivals.is_sorted_by(|a, b| a.at <= b.at), "the arrivals are not in order");
        Ok(Self { arrivals })
    }

    /// The trace of a turn, from `folder`.
    pub fn of_turn(folder: &Path, turn: usize) -> Result<Self> {
        let path = folder.join(file(SEEDS[turn % SEEDS.len()]));
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        Self::from_csv(&text).with_context(|| format!("`{}`", path.display()))
    }

    /// The first requests, and as many that together they are the work of `seconds` at `rows_per_second` (a load times
    /// the capacity), with their times stretched to that length. Which requests come and in what rhythm is the trace's;
    /// how much work they are is what was asked for, though a few large jobs are much of a short measurement.
    pub fn at(&self, rows_per_second: f64, seconds: f64) -> Vec<Arrival> {
        let (mut work, mut lap, mut cut) = (0.0, 0.0, Vec::new());
        let length = self.arrivals.last().map_or(0.0, |last| last.at);
        'laps: loop {
            for arrival in &self.arrivals {
                if work >= rows_per_second * seconds {
                    break 'laps;
                }
                work += arrival.job.rows() as f64;
                cut.push(Arrival { at: lap + arrival.at, ..*arrival });
            }
            lap += length;
        }
        let end = cut.last().map_or(1.0, |last| last.at);
        // What the last job is too much makes the schedule that much longer, not denser.
        let stretch = work / rows_per_second / end;
        cut.iter_mut().for_each(|arrival| arrival.at *= stretch);
        cut
    }
}

/// The file of a seed's trace.
pub fn file(seed: u64) -> String {
    format!("poisson-{seed}.csv")
}

fn arrival(line: &str) -> Option<Arrival> {
    let fields: Vec<_> = line.split(',').collect();
    let [at, steps, guided, n] = fields[..] else { return None };
    let guided = match guided {
        "0" => false,
        "1" => true,
        _ => return None,
    };
    let job = Job { steps: steps.parse().ok()?, guided, n: n.parse().ok()? };
    let at: f64 = at.parse().ok()?;
    (at.is_finite() && at >= 0.0 && job.rows() > 0).then_some(Arrival { at, job })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> std::path::PathBuf {
        crate::root().join("server/benches/traces")
    }

    /// WINDOWPANE_WRITE_TRACES=1 writes them anew, for whoever changes the mix.
    #[test]
    fn the_stored_traces_are_those_of_their_seeds() {
        for (turn, seed) in SEEDS.into_iter().enumerate() {
            let made = Trace::generate(seed);
            if std::env::var_os("WINDOWPANE_WRITE_TRACES").is_some() {
                std::fs::write(folder().join(file(seed)), made.to_csv()).unwrap();
            }
            assert_eq!(Trace::of_turn(&folder(), turn).unwrap(), made, "{}", file(seed));
        }
        assert_ne!(Trace::generate(1), Trace::generate(2));
    }

    #[test]
    fn arrivals_are_poisson_and_the_mix_is_as_said() {
        let all: Vec<Arrival> = (0..50).flat_map(|seed| Trace::generate(seed).arrivals).collect();
        let mean = |of: &dyn Fn(&Arrival) -> f64| all.iter().map(of).sum::<f64>() / all.len() as f64;
        let share = |is: &dyn Fn(Job) -> bool| mean(&|arrival| f64::from(u8::from(is(arrival.job))));
        // 51200 draws: three standard errors of a share are at most 0.0067.
        for steps in STEPS {
            assert!((share(&|job| job.steps == steps) - 1.0 / 3.0).abs() < 0.0067);
        }
        assert!((share(&|job| job.guided) - 0.5).abs() < 0.0067);
        // 1/n over the eighth harmonic number, 2.7179.
        assert!((share(&|job| job.n == 1) - 0.3679).abs() < 0.0067);
        assert!((share(&|job| job.n == 8) - 0.0460).abs() < 0.0067);
        assert!((share(&Job::is_short) - 0.373).abs() < 0.0067, "{}", share(&Job::is_short));
        let rows = mean(&|arrival| arrival.job.rows() as f64);
        assert!((rows - 8.0 / 2.7179 * 80.0 / 3.0 * 1.5).abs() < 1.8, "{rows}"); // its deviation is 130
        // Distances of a Poisson process of rate 1 have mean 1 and variance 1.
        let distances: Vec<f64> =
            all.windows(2).map(|two| two[1].at - two[0].at).filter(|d| *d >= 0.0).collect();
        let mean = distances.iter().sum::<f64>() / distances.len() as f64;
        let variance = distances.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / distances.len() as f64;
        assert!((mean - 1.0).abs() < 0.014 && (variance - 1.0).abs() < 0.04, "{mean} {variance}");
    }

    #[test]
    fn a_schedule_has_the_load_that_was_asked_for() {
        let trace = Trace::generate(1);
        for (load, seconds) in [(300.0, 20.0), (5000.0, 60.0)] {
            let schedule = trace.at(load, seconds);
            let work: u64 = schedule.iter().map(|arrival| arrival.job.rows()).sum();
            let end = schedule.last().unwrap().at;
            assert!((work as f64 / end / load - 1.0).abs() < 1e-9, "{work} rows in {end} s");
            // The last job overshoots by its own work at most.
            assert!(end >= seconds && end < seconds + 800.0 / load, "{end}");
            assert!(schedule.is_sorted_by(|a, b| a.at <= b.at));
        }
        // 5000 rows a second for a minute are 2500 requests: the trace came round.
        assert!(trace.at(5000.0, 60.0).len() > 2 * REQUESTS);
    }

    #[test]
    fn what_is_no_trace_is_an_error_that_names_the_line() {
        let error = |text: &str| format!("{:#}", Trace::from_csv(text).unwrap_err());
        assert!(error("").contains("first line"), "{}", error(""));
        assert!(error("arrival,steps,guided,n\n").contains("no requests"));
        let broken = error("arrival,steps,guided,n\n0.5,10,0,1\n0.7,10,yes,1\n");
        assert!(broken.contains("line 3 is `0.7,10,yes,1`"), "{broken}");
        assert!(error("arrival,steps,guided,n\n0.5,10,0,1\n0.4,10,0,1\n").contains("not in order"));
        assert!(error("arrival,steps,guided,n\n-1,10,0,1\n").contains("line 2"));
    }
}
