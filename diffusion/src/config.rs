//! What a model is: its sizes and the window of every layer. The table of named configurations is at the
//! bottom; names are the literature's (`DiT-S/4`: size S, patch 4).

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::patch::Grid;
use crate::window::Window;

/// A diffusion transformer's shape. Everything that decides the shapes of its weights, and its windows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Colour channels of the image.
    pub channels: usize,
    /// Image height in pixels; a multiple of `patch`.
    pub height: usize,
    /// Image width in pixels; a multiple of `patch`.
    pub width: usize,
    /// Side of a patch in pixels: one patch is one token.
    pub patch: usize,
    /// Width of the residual stream; a multiple of 4 (sin-cos positions) and of `heads`.
    pub hidden: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads per block.
    pub heads: usize,
    /// Width of a block's MLP as a multiple of `hidden`.
    pub mlp_ratio: usize,
    /// Number of classes; 0 for an unconditional model.
    pub classes: usize,
    /// Whether the network also predicts the reverse process's variance (twice the output channels;
    /// Nichol & Dhariwal 2021, section 3.1).
    pub learn_sigma: bool,
    /// The window of every block, first to last.
    pub windows: Vec<Window>,
}

/// The sizes of a named configuration: all of a [`ModelConfig`] but the image and its classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Name without the patch, e.g. `DiT-S`.
    pub name: &'static str,
    /// Number of blocks.
    pub depth: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Attention heads.
    pub heads: usize,
}

/// Where in the network the local layers sit (An et al., section on placement).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// The first layers: the paper's default.
    Head,
    /// Spread out: local layers alternate with global ones as evenly as the counts allow.
    Mix,
    /// The last layers.
    Tail,
}

// === impl ModelConfig ===

impl ModelConfig {
    /// The token grid.
    pub fn grid(&self) -> Grid {
        Grid::new(self.height / self.patch, self.width / self.patch)
    }

    /// Width of one attention head.
    pub fn head_dim(&self) -> usize {
        self.hidden / self.heads
    }

    /// Channels that the network puts out: twice the image's where it also predicts the variance.
    pub fn out_channels(&self) -> usize {
        if self.learn_sigma { 2 * self.channels } else { self.channels }
    }

    /// Values in one image.
    pub fn elements(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// Rows of the label table: the classes and one null class (the last), or a single row for an
    /// unconditional model.
    pub fn label_rows(&self) -> usize {
        self.classes + 1
    }

    /// The label of "no class": the last row of the table. Guidance's unconditional rows carry it, and every
    /// row of an unconditional model.
    pub fn null_class(&self) -> usize {
        self.classes
    }

    /// Trainable parameters (the frozen position table is not one).
    pub fn parameters(&self) -> usize {
        let (h, m) = (self.hidden, self.hidden * self.mlp_ratio);
        let patch = self.patch * self.patch;
        let linear = |i: usize, o: usize| i * o + o;
        let embed = linear(self.channels * patch, h) + linear(256, h) + linear(h, h) + self.label_rows() * h;
        let block = linear(h, 3 * h) + linear(h, h) + linear(h, m) + linear(m, h) + linear(h, 6 * h);
        embed + self.depth * block + linear(h, 2 * h) + linear(h, patch * self.out_channels())
    }

    /// Floating-point operations of one forward pass of one image: two per multiply-add of every matrix
    /// product, attention counted at the keys each query really sees.
    pub fn forward_flops(&self) -> f64 {
        let (h, n) = (self.hidden as f64, self.grid().tokens() as f64);
        let patch = (self.patch * self.patch) as f64;
        let per_token = h * h * (4.0 + 2.0 * self.mlp_ratio as f64);
        let attention = |w: &Window| 2.0 * h * w.visible_keys(self.grid()).iter().sum::<usize>() as f64;
        let blocks: f64 = self.windows.iter().map(|w| n * per_token + attention(w) + 6.0 * h * h).sum();
        let ends = n * patch * h * (self.channels + self.out_channels()) as f64 + 2.0 * h * h + 257.0 * h;
        2.0 * (blocks + ends + h * h)
    }

    /// Checks every field against every other; the error names the field. A config that passes can be built.
    pub fn validate(&self) -> Result<()> {
        let within = |field: &str, got: usize, low: usize, high: usize| {
            if (low..=high).contains(&got) {
                Ok(())
            } else {
                Err(Error::bad_value(format!("config.{field}"), got, format!("{low} to {high}")))
            }
        };
        let multiple = |field: &str, got: usize, of: usize, what: &str| {
            if got.is_multiple_of(of) {
                Ok(())
            } else {
                Err(Error::bad_value(format!("config.{field}"), got, format!("a multiple of {of} ({what})")))
            }
        };
        within("channels", self.channels, 1, 16)?;
        within("height", self.height, 1, 1024)?;
        within("width", self.width, 1, 1024)?;
        within("patch", self.patch, 1, 64)?;
        within("hidden", self.hidden, 4, 8192)?;
        within("depth", self.depth, 1, 256)?;
        within("heads", self.heads, 1, 256)?;
        within("mlp_ratio", self.mlp_ratio, 1, 16)?;
        within("classes", self.classes, 0, 100_000)?;
        multiple("height", self.height, self.patch, "the patch")?;
        multiple("width", self.width, self.patch, "the patch")?;
        multiple("hidden", self.hidden, 4, "sin-cos positions")?;
        multiple("hidden", self.hidden, self.heads, "the heads")?;
        within("height × width / patch²: tokens", self.grid().tokens(), 1, 65_536)?;
        if self.windows.len() != self.depth {
            return Err(Error::bad_value(
                "config.windows",
                format!("{} windows", self.windows.len()),
                format!("one for each of the {} blocks", self.depth),
            ));
        }
        for (i, window) in self.windows.iter().enumerate() {
            if let Window::Local { side } = *window {
                Window::local(side).map_err(|_| {
                    Error::bad_value(format!("config.windows[{i}]"), side, "an odd side below 1024")
                })?;
            }
        }
        Ok(())
    }
}

// === impl Size ===

impl Size {
    /// An unconditional model of this size, its variance not learned, for images of (channels, height, width); its MLPs
    /// are four times as wide as the stream (Peebles & Xie 2023). Nothing is checked: see [`ModelConfig::validate`].
    pub fn model(self, patch: usize, image: (usize, usize, usize), windows: Vec<Window>) -> ModelConfig {
        let (channels, height, width) = image;
        ModelConfig {
            channels,
            height,
            width,
            patch,
            hidden: self.hidden,
            depth: self.depth,
            heads: self.heads,
            mlp_ratio: 4,
            classes: 0,
            learn_sigma: false,
            windows,
        }
    }
}

// === impl Placement ===

impl Placement {
    /// Places `local` windows, in order, among `depth` layers; the others are global.
    ///
    /// The paper does not state its `mix`; ours puts local layer `i` of `n` at `floor(i · depth / n)`, which for
    /// six of twelve is every second layer and for nine of twelve three local layers, then a global one.
    pub fn place(self, local: &[usize], depth: usize) -> Result<Vec<Window>> {
        let n = local.len();
        if !(1..=256).contains(&depth) {
            return Err(Error::bad_value("config.depth", depth, "1 to 256"));
        }
        if n > depth {
            return Err(Error::bad_value("windows", format!("{n} local layers"), format!("at most {depth}")));
        }
        let mut windows = vec![Window::Global; depth];
        for (i, &side) in local.iter().enumerate() {
            let at = match self {
                Self::Head => i,
                Self::Tail => depth - n + i,
                Self::Mix => i * depth / n,
            };
            windows[at] = Window::local(side)?;
        }
        Ok(windows)
    }
}

/// The sides of the local layers of a preset, or of a list such as `3,5,7` or `3*3,5*3,7*3` (side*count).
///
/// Presets (An et al.): `global`; `local` = (3,5,7,9,11,13); `local*` = (3³,5³,7³).
pub fn window_sides(text: &str) -> Result<Vec<usize>> {
    match text {
        "global" => return Ok(Vec::new()),
        "local" => return Ok(vec![3, 5, 7, 9, 11, 13]),
        "local*" => return Ok(vec![3, 3, 3, 5, 5, 5, 7, 7, 7]),
        _ => {}
    }
    let mut sides = Vec::new();
    for item in text.split(',') {
        let (side, count) = item.split_once('*').unwrap_or((item, "1"));
        let number = |s: &str| s.trim().parse::<usize>().ok().filter(|&n| (1..1024).contains(&n));
        let (Some(side), Some(count)) = (number(side), number(count)) else {
            return Err(Error::bad_value(
                "windows",
                format!("`{text}`"),
                "`global`, `local`, `local*`, or odd sides such as `3,5,7` or `3*3,5*3,7*3`",
            ));
        };
        Window::local(side)?;
        sides.extend(std::iter::repeat_n(side, count));
    }
    Ok(sides)
}

/// The size named `name`, e.g. `DiT-S/4`, and its patch. Errors: a name outside the table.
pub fn named(name: &str) -> Result<(Size, usize)> {
    let unknown = || {
        let known: Vec<_> =
            SIZES.iter().flat_map(|s| PATCHES.map(|patch| format!("{}/{patch}", s.name))).collect();
        Error::unknown_name("model", name, known.iter().map(String::as_str))
    };
    let (size, patch) = name.split_once('/').ok_or_else(unknown)?;
    let size = SIZES.iter().find(|s| s.name.eq_ignore_ascii_case(size)).ok_or_else(unknown)?;
    let patch = patch.parse().ok().filter(|patch| PATCHES.contains(patch)).ok_or_else(unknown)?;
    Ok((*size, patch))
}

/// Patch sides that have names.
pub const PATCHES: [usize; 4] = [1, 2, 4, 8];

/// The named sizes. S to XL: Peebles & Xie 2023, Table 1. XS: An et al. 2024. The rest are ours.
#[rustfmt::skip]
pub const SIZES: [Size; 8] = [
    //     name            depth      hidden        heads
    Size { name: "DiT-XL",   depth: 28, hidden: 1152, heads: 16 },
    Size { name: "DiT-L",    depth: 24, hidden: 1024, heads: 16 },
    Size { name: "DiT-B",    depth: 12, hidden: 768,  heads: 12 },
    Size { name: "DiT-S",    depth: 12, hidden: 384,  heads: 6 },
    Size { name: "DiT-XS",   depth: 12, hidden: 252,  heads: 4 },
    Size { name: "DiT-Mini", depth: 8,  hidden: 160,  heads: 5 }, // a CPU learns it in hours
    Size { name: "DiT-Micro",depth: 6,  hidden: 128,  heads: 4 }, // a first try, in minutes
    Size { name: "DiT-Tiny", depth: 4,  hidden: 48,   heads: 2 }, // the test fixture
];

#[cfg(test)]
mod tests {
    use super::*;

    fn xs1() -> ModelConfig {
        let (size, patch) = named("DiT-XS/1").unwrap();
        size.model(patch, (3, 32, 32), vec![Window::Global; size.depth])
    }

    #[test]
    fn the_papers_model_has_the_papers_size() {
        let config = xs1();
        config.validate().unwrap();
        // 14.02 M trainable and 31.4 GFLOPs a forward pass, computed with facebookresearch/DiT's own code.
        assert!((config.parameters() as f64 / 14.02e6 - 1.0).abs() < 2e-3, "{}", config.parameters());
        assert!((config.forward_flops() / 31.4e9 - 1.0).abs() < 5e-3, "{}", config.forward_flops());
    }

    #[test]
    fn presets_and_lists_are_read() {
        assert_eq!(window_sides("local").unwrap(), [3, 5, 7, 9, 11, 13]);
        assert_eq!(window_sides("local*").unwrap(), window_sides("3*3,5*3,7*3").unwrap());
        assert_eq!(window_sides("3, 5*2").unwrap(), [3, 5, 5]);
        for bad in ["", "4", "3,,5", "0", "3*0", "-3", "3*9999", "locall"] {
            assert!(window_sides(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn placements_keep_order_and_count() {
        let local = [3, 5, 7, 9, 11, 13];
        let sides = |p: Placement| {
            let place = p.place(&local, 12).unwrap();
            place
                .iter()
                .map(|w| match w {
                    Window::Global => 0,
                    Window::Local { side } => *side,
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(sides(Placement::Head), [3, 5, 7, 9, 11, 13, 0, 0, 0, 0, 0, 0]);
        assert_eq!(sides(Placement::Mix), [3, 0, 5, 0, 7, 0, 9, 0, 11, 0, 13, 0]);
        assert_eq!(sides(Placement::Tail), [0, 0, 0, 0, 0, 0, 3, 5, 7, 9, 11, 13]);
        let nine = Placement::Mix.place(&[3; 9], 12).unwrap();
        assert_eq!(nine.iter().filter(|w| **w == Window::Global).count(), 3);
        assert_eq!((nine[3], nine[7], nine[11]), (Window::Global, Window::Global, Window::Global));
        assert!(Placement::Head.place(&[3; 13], 12).is_err());
    }

    #[test]
    fn a_bad_field_is_named() {
        let bad = |change: fn(&mut ModelConfig)| {
            let mut config = xs1();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert!(bad(|c| c.hidden = 250).contains("config.hidden"));
        assert!(bad(|c| c.patch = 0).contains("config.patch"));
        assert!(bad(|c| c.patch = 3).contains("config.height"));
        assert!(bad(|c| c.windows.truncate(3)).contains("config.windows"));
        assert!(bad(|c| c.windows[2] = Window::Local { side: 4 }).contains("config.windows[2]"));
    }

    #[test]
    fn every_name_in_the_table_resolves_and_nothing_else_does() {
        for size in SIZES {
            assert_eq!(named(&format!("{}/4", size.name)).unwrap(), (size, 4));
        }
        for bad in ["DiT-S", "DiT-S/3", "DiT-Q/2", "", "/", "DiT-S/99999999999999999999"] {
            assert!(named(bad).unwrap_err().to_string().contains("DiT-XS/1"), "{bad}");
        }
    }
}
