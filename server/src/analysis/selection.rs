//! What of the attention is given: which layers, heads and query tokens, in which layout, and how much that is. What would
//! be too much is refused before it begins.

use windowpane_diffusion::error::number;
use windowpane_diffusion::{Grid, Plan, TilePlan, Window};

use crate::error::{ApiError, Cause};
use crate::model::Card;
use crate::routes::analysis::attention::{AttentionRequest, TokenRef};
use crate::spec::shown;

/// Bytes of a number in JSON, about: eight digits, a sign, a point and a comma.
const JSON_NUMBER: usize = 12;

/// What of the attention is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// The token grid.
    pub grid: Grid,
    /// The layers, as asked.
    pub layers: Vec<usize>,
    /// The heads, as asked.
    pub heads: Vec<usize>,
    /// The query tokens, as asked.
    pub tokens: Vec<usize>,
    /// Which maps.
    pub maps: Maps,
    /// How a map is laid out.
    pub layout: Layout,
}

/// Which maps are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maps {
    /// One for each head.
    Heads,
    /// The mean over the heads.
    Mean,
    /// Both.
    Both,
    /// None: the numbers alone.
    None,
}

/// How what a token sees is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// On the whole token grid, whatever the window.
    Grid,
    /// Of a layer with a window only the window, centred on the token; beyond the grid's border it is 0.
    Compact,
}

/// In what form numbers leave: it decides what they weigh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// As f32 in a file.
    File,
    /// As JSON.
    Json,
    /// As pixels.
    Picture {
        /// Bytes of them.
        bytes: usize,
        /// Tokens whose rows they show.
        tokens: usize,
    },
}

// === impl Maps ===

impl Maps {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Heads, Self::Mean, Self::Both, Self::None];

    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Heads => "heads",
            Self::Mean => "mean",
            Self::Both => "both",
            Self::None => "none",
        }
    }

    /// Whether there is one for each head.
    pub fn of_heads(self) -> bool {
        matches!(self, Self::Heads | Self::Both)
    }

    /// Whether there is their mean.
    pub fn of_mean(self) -> bool {
        matches!(self, Self::Mean | Self::Both)
    }
}

// === impl Layout ===

impl Layout {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Grid, Self::Compact];

    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Grid => "grid",
            Self::Compact => "compact",
        }
    }

    /// Height and width of a map of a layer with this window.
    pub fn sides(self, window: Window, grid: Grid) -> [usize; 2] {
        match (self, window) {
            (Self::Compact, Window::Local { side }) => [side, side],
            _ => [grid.height, grid.width],
        }
    }
}

// === impl Selection ===

impl Selection {
    /// From the checked fields of a request.
    pub fn resolve(request: &AttentionRequest, card: &Card) -> Result<Self, ApiError> {
        let config = &card.manifest.config;
        let grid = config.grid();
        let tokens = match &request.tokens {
            None => (0..grid.tokens()).collect(),
            Some(tokens) => {
                let tokens: Result<Vec<_>, _> = tokens.iter().map(|token| token_of(token, grid)).collect();
                distinct("tokens", tokens?, grid.tokens())?
            }
        };
        Ok(Self {
            grid,
            layers: numbers("layers", request.layers.as_deref(), config.depth)?,
            heads: numbers("heads", request.heads.as_deref(), config.heads)?,
            tokens,
            maps: word(
                "maps",
                request.maps.as_deref(),
                &Maps::ALL.map(|maps| (maps.as_str(), maps)),
                Maps::Both,
            )?,
            layout: word(
                "layout",
                request.layout.as_deref(),
                &Layout::ALL.map(|layout| (layout.as_str(), layout)),
                Layout::Grid,
            )?,
        })
    }

    /// Bytes of the rows that are kept for an answer of this weight, and of the answer made of them.
    pub fn bytes(&self, card: &Card, plans: &[Plan], weight: Weight) -> [usize; 2] {
        let (windows, mut rows, mut cells) = (&card.manifest.config.windows, 0_usize, 0_usize);
        let queries = self.tokens.len();
        let of_heads = if self.maps.of_heads() { self.heads.len() } else { 0 };
        let maps = of_heads + usize::from(self.maps.of_mean());
        for &layer in &self.layers {
            let (_, _, keys) = windows[layer].tile_counts(self.grid, plans[layer]);
            rows = rows.saturating_add(self.heads.len().saturating_mul(queries).saturating_mul(keys));
            let sides = self.layout.sides(windows[layer], self.grid);
            cells = cells.saturating_add(maps.saturating_mul(queries).saturating_mul(sides[0] * sides[1]));
        }
        let told = match weight {
            Weight::File => cells.saturating_mul(size_of::<f32>()),
            Weight::Json => cells.saturating_mul(JSON_NUMBER),
            Weight::Picture { bytes, .. } => bytes,
        };
        [rows.saturating_mul(size_of::<f32>()), told]
    }

    /// The same. Refuses either that is larger than `limit`.
    pub fn check(
        &self,
        card: &Card,
        plans: &[Plan],
        weight: Weight,
        limit: usize,
    ) -> Result<[usize; 2], ApiError> {
        let [rows, told] = self.bytes(card, plans, weight);
        let bytes = rows.max(told);
        if bytes <= limit {
            return Ok([rows, told]);
        }
        let (layers, heads, tokens) = (self.layers.len(), self.heads.len(), self.tokens.len());
        let (param, narrow) = match weight {
            // It shows heads together.
            Weight::Picture { tokens, .. } if told > limit && tokens > 1 => {
                ("tokens", format!("name fewer in `tokens` ({tokens} now), or narrow `layers` ({layers})"))
            }
            Weight::Picture { .. } if told > limit => ("layers", format!("narrow `layers` ({layers} now)")),
            Weight::Picture { .. } => {
                ("layers", format!("narrow `layers` ({layers} now) or `heads` ({heads})"))
            }
            Weight::File | Weight::Json => {
                let file = if weight == Weight::Json { ", or ask for a file by `output_format`" } else { "" };
                let narrow = format!(
                    "narrow `layers` ({layers} now), `heads` ({heads}) or `tokens` ({tokens}), or take `maps` mean or \
                     none, or `layout` compact{file}"
                );
                ("tokens", narrow)
            }
        };
        let message = format!(
            "the answer would have {bytes} bytes, more than {limit}, the most there may be (`--study-limit`); {narrow}"
        );
        Err(ApiError::new(Cause::InvalidValue, message).param(param))
    }

    /// Where in the output of a layer with these tiles the rows are, head by head and token by token.
    pub fn rows(&self, tiles: &TilePlan) -> Vec<std::ops::Range<usize>> {
        let mut ranges: Vec<std::ops::Range<usize>> = Vec::new();
        for &head in &self.heads {
            for &token in &self.tokens {
                let first = (head * tiles.tiles * tiles.queries + tiles.output_index[token]) * tiles.keys;
                match ranges.last_mut() {
                    Some(last) if last.end == first => last.end += tiles.keys,
                    _ => ranges.push(first..first + tiles.keys),
                }
            }
        }
        ranges
    }
}

/// Numbers below `count`, each once; all of them where none is named.
fn numbers(field: &str, asked: Option<&[u64]>, count: usize) -> Result<Vec<usize>, ApiError> {
    let Some(asked) = asked else { return Ok((0..count).collect()) };
    let known = |&number: &u64| {
        let known = usize::try_from(number).ok().filter(|&number| number < count);
        known.ok_or_else(|| {
            ApiError::invalid(field, format!("a list with {number}"), format!("0 to {}", count - 1))
        })
    };
    distinct(field, asked.iter().map(known).collect::<Result<_, _>>()?, count)
}

fn distinct(field: &str, numbers: Vec<usize>, count: usize) -> Result<Vec<usize>, ApiError> {
    let expected = || format!("1 to {count} different ones of 0 to {}", count - 1);
    if numbers.is_empty() {
        return Err(ApiError::invalid(field, "an empty list", expected()));
    }
    let mut seen = vec![false; count];
    for &number in &numbers {
        if std::mem::replace(&mut seen[number], true) {
            return Err(ApiError::invalid(field, format!("a list with {number} twice"), expected()));
        }
    }
    Ok(numbers)
}

fn token_of(token: &TokenRef, grid: Grid) -> Result<usize, ApiError> {
    let small = |number: u64, below: usize| usize::try_from(number).ok().filter(|&number| number < below);
    let (got, found) = match *token {
        TokenRef::Index(index) => (number(index as f64), small(index, grid.tokens())),
        TokenRef::Place([y, x]) => {
            let place = small(y, grid.height).zip(small(x, grid.width));
            (format!("[{y}, {x}]"), place.map(|(y, x)| grid.token(y, x)))
        }
    };
    found.ok_or_else(|| {
        let expected = format!(
            "0 to {}, or [row, column] up to [{}, {}]",
            grid.tokens() - 1,
            grid.height - 1,
            grid.width - 1
        );
        ApiError::invalid("tokens", format!("a list with {got}"), expected)
    })
}

/// The choice that a word names.
fn word<T: Copy>(field: &str, asked: Option<&str>, known: &[(&str, T)], default: T) -> Result<T, ApiError> {
    let Some(asked) = asked else { return Ok(default) };
    let found = known.iter().find(|(word, _)| *word == asked).map(|(_, choice)| *choice);
    found.ok_or_else(|| {
        let words: Vec<_> = known.iter().map(|(word, _)| format!("`{word}`")).collect();
        ApiError::invalid(field, shown(asked), format!("one of {}", words.join(", ")))
    })
}
