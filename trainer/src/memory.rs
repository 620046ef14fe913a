//! Does it fit? What a step and a pass of the network will need on the CPU, against what the machine has, asked before
//! the work begins: a process that asks too much is killed without a word.
//!
//! The count is of f32 values. With t tokens, d the hidden width, r the MLP's ratio, autograd keeps of a block
//!
//! ```text
//! (10 + 2 r + a) t d     10: its input, two LayerNorms and their modulations, attention before and after the heads are
//!                            joined and projected, the residual between, the MLP's result
//!                        2 r: the MLP before and after its GELU
//!                        a: 3, the queries, keys and values; of tiles 2 (queries + keys) / t, as they were gathered
//! ```
//!
//! and the backward pass of one block works in another 20 t d (the gradients of qkv alone are three times 3 t d). A step
//! keeps no score: libtorch recomputes them. All of it is multiplied by `OVERHEAD`. An export's golden is another matter:
//! its derivatives are of attention by plain arithmetic, which keeps its scores, tokens² a head ([`Need::of_golden`]).

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use windowpane_diffusion::{ModelConfig, Plan, Window};

use crate::attention::trainer_plan;
use crate::config::TrainConfig;
use crate::error::{Error, Result};

/// Measured peaks of resident memory over the count, two steps each, libtorch 2.11 on one CPU thread, toy images of 32 ×
/// 32: 1.15 (DiT-S/8, batch 256), 1.24 (DiT-Micro/2 in tiles, 48), 1.32 (DiT-Micro/4, 256), 1.53 (DiT-Micro/1 in tiles,
/// 12), 1.51 (the same, global): what the allocator does not give back. Rounded to the worst.
const OVERHEAD: f64 = 1.55;

/// Copies of the parameters: weights, gradient, two moments, the average, and what a step and a checkpoint make of them.
/// Measured: 9.0 for DiT-S/8 at batch 8.
const PARAMETER_COPIES: f64 = 9.0;

/// How often a layer's scores, and what a pass keeps of its tokens, are held while a derivative is differentiated. Measured,
/// all in all, in units of the scores: 3.4 for DiT-Tiny/1 at 64 × 64 and 3.7 for DiT-Micro/1 at 48 × 48; with `OVERHEAD`
/// these count 4.7 and more.
const TWICE_SCORES: f64 = 3.0;
const TWICE_STREAM: f64 = 3.0;

/// Bytes of an f32.
const BYTES: f64 = 4.0;

const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

/// What work needs: so many bytes once, and so many for every image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Need {
    /// Bytes whatever the batch.
    pub fixed: f64,
    /// Bytes for each image of the batch.
    pub image: f64,
}

// === impl Need ===

impl Need {
    /// A training step, forward and backward.
    pub fn of_step(config: &ModelConfig) -> Self {
        let stream = (config.grid().tokens() * config.hidden) as f64;
        let kept: f64 = config.windows.iter().map(|&window| kept(config, window)).sum();
        // The modulation of a block: its input, six parts, their gradients.
        let modulation = (20 * config.hidden * config.depth) as f64;
        let image = (kept + 20.0) * stream + modulation + pixels(config);
        let fixed = PARAMETER_COPIES * config.parameters() as f64 + masks(config);
        Self { fixed: BYTES * fixed, image: BYTES * OVERHEAD * image }
    }

    /// A forward pass of `rows` rows an image: one block's values, then the next one's in their place.
    pub fn of_pass(config: &ModelConfig, rows: usize) -> Self {
        let stream = (config.grid().tokens() * config.hidden) as f64;
        let widest = config.windows.iter().map(|&window| kept(config, window)).fold(0.0, f64::max);
        let image = (widest * stream + pixels(config)) * rows as f64;
        let fixed = config.parameters() as f64 + masks(config);
        Self { fixed: BYTES * fixed, image: BYTES * OVERHEAD * image }
    }

    /// What an export's golden takes, with the network's insides or without: every window dense, and for the insides the
    /// derivative of a derivative, whose scores of all layers are held at once.
    pub fn of_golden(config: &ModelConfig, insides: bool) -> Self {
        let tokens = config.grid().tokens() as f64;
        let dense: HashSet<_> =
            config.windows.iter().filter(|window| !window.covers(config.grid())).collect();
        let masks = if dense.is_empty() { 0.0 } else { (dense.len() + 2) as f64 * tokens.powi(2) };
        let stream = tokens * config.hidden as f64;
        let kept = 10.0 + 2.0 * config.mlp_ratio as f64 + 3.0;
        let scores = config.heads as f64 * tokens.powi(2);
        let twice = match insides {
            true => OVERHEAD * config.depth as f64 * (TWICE_SCORES * scores + TWICE_STREAM * kept * stream),
            false => 0.0,
        };
        let fixed = 2.0 * config.parameters() as f64 + masks + twice;
        Self { fixed: BYTES * fixed, image: BYTES * OVERHEAD * (kept * stream + pixels(config)) }
    }

    /// Bytes for a batch.
    pub fn of_batch(self, images: usize) -> f64 {
        self.fixed + self.image * images as f64
    }

    /// The largest batch within so many bytes; 0 where none is.
    pub fn largest(self, available: f64) -> usize {
        ((available - self.fixed) / self.image).max(0.0) as usize
    }
}

/// Values of the dense masks: one of tokens² for each window that is masked, and two more while one is made.
fn masks(config: &ModelConfig) -> f64 {
    let grid = config.grid();
    let masked = |window: &&Window| !window.covers(grid) && trainer_plan(**window, grid) == Plan::Dense;
    let windows: HashSet<_> = config.windows.iter().filter(masked).collect();
    let held = if windows.is_empty() { 0 } else { windows.len() + 2 };
    held as f64 * (grid.tokens() as f64).powi(2)
}

/// What autograd keeps of a block, in units of tokens times hidden.
fn kept(config: &ModelConfig, window: Window) -> f64 {
    let grid = config.grid();
    let gathered = match trainer_plan(window, grid) {
        Plan::Dense => 3.0,
        Plan::Tiles(tile) => {
            let tiled = window.tile_plan(grid, tile);
            2.0 * (tiled.tiles * (tiled.queries + tiled.keys)) as f64 / grid.tokens() as f64
        }
    };
    10.0 + 2.0 * config.mlp_ratio as f64 + gathered
}

/// Images in their several states: clean, noise, noisy, target, prediction, error, and gradients.
fn pixels(config: &ModelConfig) -> f64 {
    (8 * config.elements() + 4 * config.out_channels() * config.height * config.width) as f64
}

/// Refuses a batch that is larger than the memory that is left. Errors: what it needs, what there is, what would fit.
pub fn check_batch(config: &TrainConfig, available: Option<f64>) -> Result<()> {
    let (need, batch) = (Need::of_step(&config.model), config.recipe.train.batch);
    let Some(available) = available.filter(|&available| need.of_batch(batch) > available) else {
        return Ok(());
    };
    let (needed, there) = (need.of_batch(batch) / GIB, available / GIB);
    let advice = match need.largest(available) {
        0 => "not one image would fit: the model is too large for this machine".to_owned(),
        most => {
            format!("at most {most} would fit, and `train.accumulate` adds several batches up to one step")
        }
    };
    Err(Error::Config(format!(
        "`train.batch` is {batch}: a step needs about {needed:.1} GiB of memory and {there:.1} GiB are available; {advice}"
    )))
}

/// The images of a forward pass of `rows` rows each: as many as are `wanted`, or as fit into what is `available`.
/// Errors: what the model needs, where not one fits.
pub fn pass(config: &ModelConfig, rows: usize, wanted: usize, available: Option<f64>) -> Result<usize> {
    let need = Need::of_pass(config, rows);
    match available.map_or(wanted, |available| need.largest(available)) {
        0 => Err(Error::Config(format!(
            "one image of this model needs about {:.1} GiB of memory and {:.1} GiB are available",
            need.of_batch(1) / GIB,
            available.unwrap_or_default() / GIB
        ))),
        fits => Ok(wanted.min(fits)),
    }
}

/// Refuses an export whose golden would not fit, `batch` images at once. Errors: what it needs, what there is, and that it
/// would fit without the insides, where it would and `without` says how to leave them out.
pub fn check_golden(
    config: &ModelConfig,
    (insides, batch): (bool, usize),
    without: Option<&str>,
    available: Option<f64>,
) -> Result<()> {
    let need = |insides| Need::of_golden(config, insides).of_batch(batch);
    let Some(available) = available.filter(|&available| need(insides) > available) else { return Ok(()) };
    let fits = insides && need(false) <= available;
    let advice = without.filter(|_| fits).map_or(String::new(), |how| {
        format!("; without the graphs of the insides, {how}, about {:.1} GiB are enough", need(false) / GIB)
    });
    Err(Error::Config(format!(
        "the proof that a package travels with needs about {:.1} GiB of memory and {:.1} GiB are available{advice}",
        need(insides) / GIB,
        available / GIB
    )))
}

/// Refuses to draw more images than can be held as bytes, in a grid of twice their side and as a PNG.
pub fn check_images(config: &ModelConfig, images: usize, available: Option<f64>) -> Result<()> {
    let image = 10.0 * config.elements() as f64;
    match available {
        Some(available) if image * images as f64 > available => Err(Error::Config(format!(
            "`--per-class` makes {images} images, which need about {:.1} GiB of memory; {:.1} GiB are available, which \
             hold {} images",
            image * images as f64 / GIB,
            available / GIB,
            (available / image) as u64,
        ))),
        _ => Ok(()),
    }
}

// === The machine ===

/// Bytes that this process may still take: the system's estimate, or what its control groups leave if that is less.
/// `None` where the system does not say.
pub fn available() -> Option<f64> {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    available_in(&read)
}

fn available_in(read: &dyn Fn(&Path) -> Option<String>) -> Option<f64> {
    let system = field(&read(Path::new("/proc/meminfo"))?, "MemAvailable:")? * 1024.0;
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let left = groups.lines().flat_map(folders).filter_map(|folder| left_in(&folder, read));
    Some(left.fold(system, f64::min).max(0.0))
}

/// The folders of a line `number:controllers:/path` and of everything above it; a container sees only the upper ones.
fn folders(line: &str) -> Vec<PathBuf> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { return Vec::new() };
    let root = match controllers {
        "" => "/sys/fs/cgroup",
        _ if controllers.split(',').any(|name| name == "memory") => "/sys/fs/cgroup/memory",
        _ => return Vec::new(),
    };
    Path::new(path)
        .ancestors()
        .map(|above| Path::new(root).join(above.strip_prefix("/").unwrap_or(above)))
        .collect()
}

/// What a control group's limit leaves, of version 2 or 1. Its cache of files that nobody uses can be taken back.
fn left_in(folder: &Path, read: &dyn Fn(&Path) -> Option<String>) -> Option<f64> {
    let number = |name: &str| read(&folder.join(name))?.trim().parse::<f64>().ok();
    let (limit, used) = match number("memory.max") {
        Some(limit) => (limit, number("memory.current")?),
        None => (number("memory.limit_in_bytes")?, number("memory.usage_in_bytes")?),
    };
    let stat = read(&folder.join("memory.stat")).unwrap_or_default();
    let cache = field(&stat, "total_inactive_file").or_else(|| field(&stat, "inactive_file")).unwrap_or(0.0);
    Some(limit - used + cache)
}

/// The number behind a name at the beginning of a line.
fn field(text: &str, name: &str) -> Option<f64> {
    let mut lines = text.lines().map(str::split_whitespace);
    lines.find_map(|mut words| if words.next() == Some(name) { words.next()?.parse().ok() } else { None })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use windowpane_diffusion::Placement;
    use windowpane_diffusion::config::{named, window_sides};

    use super::*;
    use crate::export::golden::LARGEST_BATCH;

    fn config(name: &str, windows: &str) -> ModelConfig {
        let (size, patch) = named(name).unwrap();
        let windows = Placement::Head.place(&window_sides(windows).unwrap(), size.depth).unwrap();
        ModelConfig { classes: 4, ..size.model(patch, (1, 32, 32), windows) }
    }

    #[test]
    fn the_estimate_is_not_below_what_was_measured_nor_far_above() {
        // Peak resident MiB of two training steps, one thread, less the 120 MiB that `prepare` of the same images takes.
        for (name, windows, batch, measured) in [
            ("DiT-Micro/4", "global", 256, 1639.0),
            ("DiT-Micro/1", "global", 12, 1393.0),
            ("DiT-Micro/1", "3*6", 12, 1519.0),
            ("DiT-Micro/2", "3*6", 48, 1311.0),
            ("DiT-S/8", "global", 256, 3115.0),
        ] {
            let need = Need::of_step(&config(name, windows)).of_batch(batch) / (1024.0 * 1024.0);
            let ratio = need / measured;
            assert!((0.98..1.35).contains(&ratio), "{name} {windows}: {need:.0} MiB, measured {measured}");
        }
    }

    #[test]
    fn the_largest_batch_fits_and_the_next_does_not() {
        let need = Need::of_step(&config("DiT-S/4", "3,5"));
        for available in [0.0, need.fixed, 2.0 * GIB, 17.3 * GIB] {
            let most = need.largest(available);
            assert!(most == 0 || need.of_batch(most) <= available);
            assert!(need.of_batch(most + 1) > available);
        }
        assert!(Need::of_pass(&config("DiT-S/4", "3,5"), 2).image < need.image);
    }

    #[test]
    fn masks_count() {
        // 65,536 tokens under one masked window: a mask of 16 GiB, and two more while it is made.
        let large = ModelConfig { height: 256, width: 256, ..config("DiT-Micro/1", "15") };
        let global = ModelConfig { height: 256, width: 256, ..config("DiT-Micro/1", "global") };
        for need in [Need::of_step, |config: &ModelConfig| Need::of_pass(config, 1)] {
            let masks = (need(&large).fixed - need(&global).fixed) / GIB;
            assert!((masks - 48.0).abs() < 1e-6, "{masks}");
        }
        let error = pass(&large, 1, 64, Some(20.0 * GIB)).unwrap_err().to_string();
        assert!(error.contains("20.0 GiB are available"), "{error}");
        assert_eq!(pass(&config("DiT-Micro/1", "15"), 1, 64, Some(20.0 * GIB)).unwrap(), 64);
    }

    #[test]
    fn a_golden_of_the_insides_counts_its_scores() {
        // 4,096 tokens: a head's scores are 64 MiB, and six layers of four heads hold them several times.
        let large = ModelConfig { height: 64, width: 64, ..config("DiT-Micro/1", "3,5") };
        let available = Some(4.0 * GIB);
        check_golden(&large, (false, LARGEST_BATCH), Some("so"), available).unwrap();
        let error =
            check_golden(&large, (true, LARGEST_BATCH), Some("so"), available).unwrap_err().to_string();
        assert!(
            error.contains("4.0 GiB are available; without the graphs of the insides, so, about"),
            "{error}"
        );
        // Advice that would not help, and a way out that there is not.
        let little = Some(0.1 * GIB);
        for (insides, without, available) in
            [(false, Some("so"), little), (true, Some("so"), little), (true, None, available)]
        {
            let error =
                check_golden(&large, (insides, LARGEST_BATCH), without, available).unwrap_err().to_string();
            assert!(error.ends_with("GiB are available"), "{error}");
        }
        check_golden(&large, (true, LARGEST_BATCH), Some("so"), None).unwrap();
    }

    #[test]
    fn the_lowest_limit_counts() {
        let gib = GIB.to_string();
        let files = |extra: &[(&str, &str)]| -> HashMap<PathBuf, String> {
            let meminfo = "MemTotal:  16777216 kB\nMemAvailable:    4194304 kB\n";
            let all = [("/proc/meminfo", meminfo)].into_iter().chain(extra.iter().copied());
            all.map(|(path, text)| (PathBuf::from(path), text.to_owned())).collect()
        };
        let left = |extra: &[(&str, &str)]| {
            let files = files(extra);
            available_in(&|path| files.get(path).cloned()).map(|bytes| bytes / GIB)
        };
        assert_eq!(left(&[]), Some(4.0));
        let group = ("/proc/self/cgroup", "0::/a/b\n");
        let unlimited = ("/sys/fs/cgroup/a/b/memory.max", "max\n");
        let used = ("/sys/fs/cgroup/a/memory.current", gib.as_str());
        let limit = ("/sys/fs/cgroup/a/memory.max", "2147483648\n");
        assert_eq!(left(&[group, unlimited]), Some(4.0));
        assert_eq!(left(&[group, unlimited, limit, used]), Some(1.0));
        let cache = ("/sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 536870912\n");
        assert_eq!(left(&[group, unlimited, limit, used, cache]), Some(1.5));
        // Version 1, seen from inside a container: the path is the host's, the limit lies at the root.
        let group = ("/proc/self/cgroup", "5:cpu:/x\n4:memory,hugetlb:/docker/0e88\n0::/\n");
        let limit = ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "3221225472");
        let used = ("/sys/fs/cgroup/memory/memory.usage_in_bytes", gib.as_str());
        assert_eq!(left(&[group, limit, used]), Some(2.0));
        assert_eq!(available_in(&|_| None), None);
        assert!(available().is_some_and(|bytes| bytes > 0.0), "this machine says what it has");
    }

    #[test]
    fn images_beyond_the_memory_are_refused() {
        let config = config("DiT-Micro/4", "global");
        check_images(&config, 1000, Some(GIB)).unwrap();
        check_images(&config, usize::MAX, None).unwrap();
        let error = check_images(&config, 10_000_000, Some(GIB)).unwrap_err().to_string();
        assert!(
            error.contains("`--per-class` makes 10000000 images") && error.contains("hold 104857 images"),
            "{error}"
        );
    }
}
