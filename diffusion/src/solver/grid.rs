//! At which noise levels is the network asked? The time grids: a descending list of levels that ends at the
//! clean image.

use crate::error::{Error, Result};
use crate::schedule::{Level, Schedule};

use super::TimeGrid;

/// A Karras grid is not bound to the table's entries; this many steps is more than any solver needs.
pub const MAX_KARRAS_STEPS: usize = 1000;

/// Curvature of the Karras grid: larger puts more of the steps at little noise (Karras et al. 2022, table 1).
const RHO: f64 = 7.0;

/// The levels of `steps` solver steps, noisiest first, the clean image last: `steps + 1` of them.
///
/// Errors: no steps; more than the table has timesteps ([`MAX_KARRAS_STEPS`] on the Karras grid).
pub(super) fn levels(grid: TimeGrid, steps: usize, schedule: &Schedule) -> Result<Vec<Level>> {
    let mut levels: Vec<Level> = match grid {
        TimeGrid::Uniform => schedule.respaced(steps)?.into_iter().map(|t| schedule.level(t)).collect(),
        TimeGrid::Quadratic => quadratic(steps, schedule)?.into_iter().map(|t| schedule.level(t)).collect(),
        TimeGrid::Karras => karras(steps, schedule)?.map(|sigma| schedule.level_at_sigma(sigma)).collect(),
    };
    if grid != TimeGrid::Karras {
        levels.reverse();
    }
    levels.push(Level::CLEAN);
    Ok(levels)
}

/// Timesteps spread as the square of their number, ascending: `t_i = (T-1) (i / (steps-1))²`, the spacing of
/// Song et al. 2021 (DDIM, appendix D.2) with first and last kept and no timestep twice.
fn quadratic(steps: usize, schedule: &Schedule) -> Result<Vec<usize>> {
    if steps < 2 {
        return schedule.respaced(steps);
    }
    schedule.respaced(steps)?; // the same bounds
    let last = (schedule.len() - 1) as f64;
    Ok((0..steps)
        .map(|i| {
            let u = i as f64 / (steps - 1) as f64;
            // The parabola begins flatter than one timestep per step: there, count one by one.
            i.max(libm::floor(last * u * u + 0.5) as usize)
        })
        .collect())
}

/// `sigma / alpha` of each step, descending: equation 5 of Karras et al. 2022, between the table's two ends.
fn karras(steps: usize, schedule: &Schedule) -> Result<impl Iterator<Item = f64>> {
    // A table of one level has nothing to interpolate.
    let most = if schedule.len() == 1 { 1 } else { MAX_KARRAS_STEPS };
    if !(1..=most).contains(&steps) {
        return Err(Error::bad_value("steps", steps, format!("1 to {most}")));
    }
    let (low, high) = (schedule.karras_sigma(0), schedule.karras_sigma(schedule.len() - 1));
    let (a, b) = (libm::pow(high, 1.0 / RHO), libm::pow(low, 1.0 / RHO));
    Ok((0..steps).map(move |i| {
        let u = if steps == 1 { 0.0 } else { i as f64 / (steps - 1) as f64 };
        libm::pow(a + u * (b - a), RHO)
    }))
}

#[cfg(test)]
mod tests {
    use crate::schedule::{ScheduleConfig, ScheduleKind};

    use super::*;

    fn table(steps: usize) -> Schedule {
        ScheduleConfig { kind: ScheduleKind::Linear, steps }.build().unwrap()
    }

    #[test]
    fn every_grid_falls_from_the_last_level_to_the_clean_image() {
        for timesteps in [1, 2, 3, 50, 1000] {
            let schedule = table(timesteps);
            for grid in TimeGrid::ALL {
                for steps in [1, 2, 3, 7, 49, 50, 999, 1000] {
                    let Ok(levels) = levels(grid, steps, &schedule) else {
                        assert!(steps > timesteps && (grid != TimeGrid::Karras || timesteps == 1));
                        continue;
                    };
                    assert_eq!(levels.len(), steps + 1);
                    assert_eq!(levels[steps], Level::CLEAN);
                    assert!((levels[0].t - (timesteps - 1) as f64).abs() < 1e-9, "{grid} starts at x_T");
                    for pair in levels.windows(2) {
                        assert!(pair[0].sigma > pair[1].sigma, "{grid} {steps} of {timesteps}: {pair:?}");
                        assert!(pair[0].alpha < pair[1].alpha);
                    }
                    for level in &levels {
                        assert!((level.alpha * level.alpha + level.sigma * level.sigma - 1.0).abs() < 1e-14);
                    }
                    if steps > 1 {
                        assert!(levels[steps - 1].t.abs() < 1e-9, "{grid} keeps the first timestep");
                    }
                }
            }
        }
    }

    #[test]
    fn too_few_and_too_many_steps_are_refused() {
        for grid in TimeGrid::ALL {
            let most = if grid == TimeGrid::Karras { MAX_KARRAS_STEPS } else { 50 };
            for bad in [0, most + 1, usize::MAX] {
                let error = levels(grid, bad, &table(50)).unwrap_err().to_string();
                assert!(error.contains(&format!("`steps` is {bad}, expected 1 to {most}")), "{error}");
            }
        }
    }

    #[test]
    fn the_quadratic_grid_is_a_parabola() {
        assert_eq!(quadratic(5, &table(1001)).unwrap(), [0, 63, 250, 563, 1000]);
        assert_eq!(quadratic(10, &table(10)).unwrap(), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(quadratic(5, &table(9)).unwrap(), [0, 1, 2, 5, 8]);
    }

    #[test]
    fn the_karras_grid_has_fractional_timesteps() {
        let levels = levels(TimeGrid::Karras, 10, &table(1000)).unwrap();
        assert!(levels.iter().any(|level| level.t.fract() > 0.01 && level.t.fract() < 0.99));
    }
}
