//! A figure of attention that was made by hand, pixel by pixel.

use windowpane_diffusion::Plan;

use super::super::attention::LayerMaps;
use super::super::selection::{Layout, Maps, Selection};
use super::*;

/// 48 tokens: few, and enough that a map has its centre enlarged.
const GRID: Grid = Grid::new(6, 8);

const TOKENS: usize = 48;

/// Pixels of a token in a map, and of the enlarged one: 192 over 48 tokens, and two fifths of 192 over the six that are shown.
const SCALE: usize = 4;
const ENLARGED: usize = 12;

/// Pixels of a token where a row is laid out as the grid: 192 over the eight that lie beside each other.
const ZOOM: usize = 24;

/// How much token `q` of a layer attends to token `k`: so many fiftieths of the way from the least to the most. What is read in
/// another order, of another layer or token differs.
fn grade(layer: usize, q: usize, k: usize) -> usize {
    match (layer, q, k) {
        // The most of all, which is no darker than a tenth of it.
        (_, 40, 3) => 50,
        (_, 0, 1) => 0,
        _ => (7 * q + 3 * k + q * k / 5 + k * k / 7 + layer) % 6,
    }
}

/// Two layers of two heads, which differ by what their mean does not show.
fn attention() -> Attention {
    let layer = |(layer, window): (usize, Window)| {
        let head = |sign: f32| {
            (0..TOKENS * TOKENS).map(move |i| {
                let (q, k) = (i / TOKENS, i % TOKENS);
                0.02 + 0.01 * grade(layer, q, k) as f32 + sign * 0.001 * (i % 7) as f32
            })
        };
        let tiles = window.realised(GRID, Plan::Dense);
        LayerMaps { layer, window, tiles, rows: head(1.0).chain(head(-1.0)).collect() }
    };
    Attention {
        x: Vec::new(),
        shape: [1, 12, 16],
        prediction: Vec::new(),
        selection: Selection {
            grid: GRID,
            layers: vec![0, 5],
            heads: vec![0, 1],
            tokens: (0..TOKENS).collect(),
            maps: Maps::Mean,
            layout: Layout::Grid,
        },
        layers: [(0, Window::Local { side: 3 }), (5, Window::Global)].map(layer).into(),
    }
}

fn pixel(picture: &Picture, (x, y): (usize, usize)) -> [u8; 3] {
    let at = 3 * (y * picture.width + x);
    [picture.pixels[at], picture.pixels[at + 1], picture.pixels[at + 2]]
}

/// The left edge of a layer's column, and the upper ones of its map and of the row of the token that is shown `i`-th.
fn places(column: usize, i: usize) -> (usize, usize, usize) {
    let side = SCALE * TOKENS;
    let map = GAP + LINE;
    (GAP + column * (side + GAP), map, map + side + GAP + i * (ZOOM * GRID.height + GAP))
}

#[test]
fn the_colours_go_up_to_a_tenth_or_to_what_is_asked_for() {
    let figure = Figure::new(Grid::new(2, 2), 1, 0);
    let colours = [0.0, 0.02, 0.1, 1.0].map(|value| figure.colour(value));
    assert_eq!(colours, [COLOURS[0], COLOURS[1], COLOURS[5], COLOURS[5]]);
    assert_eq!(figure.coloured_up_to(1.0).colour(0.2), COLOURS[1]);
    assert_eq!(normalised(vec![0.25, 0.75, 0.5]), [0.0, 1.0, 0.5]);
    assert_eq!(normalised(vec![0.25, 0.25]), [0.0, 0.0]);
}

#[test]
fn a_figure_is_as_large_as_it_says_and_no_wider_than_it_may_be() {
    for (grid, layers, tokens) in [
        (Grid::new(7, 7), 8, 1),
        (Grid::new(32, 32), 12, 3),
        (Grid::new(1, 2), 1, 0),
        (Grid::new(64, 64), 2, 1),
    ] {
        let figure = Figure::new(grid, layers, tokens);
        let [width, height] = figure.size();
        assert!(width <= WIDEST.max(figure.side + 2 * GAP), "{figure:?}");
        assert_eq!(figure.bytes(), 3 * width * height);
        assert!(figure.columns * layers.div_ceil(figure.columns) >= layers);
    }
}

#[test]
fn a_map_has_a_row_for_each_token_and_its_centre_in_the_corner() {
    let attention = attention();
    let picture = Figure::new(GRID, 2, 0).draw(&attention, &[]);
    // The corner: six tokens of the middle each way, three pixels from the edges.
    let corner = 6 * ENLARGED;
    for (column, layer) in [0, 5].into_iter().enumerate() {
        let (left, top, _) = places(column, 0);
        let inset = (left + SCALE * TOKENS - corner - 3, top + 3);
        let mut seen = 0;
        for (q, k) in (0..TOKENS * TOKENS).map(|i| (i / TOKENS, i % TOKENS)) {
            // Within a token's pixels, and not on a line around the whole.
            let (x, y) = (left + k * SCALE + 1, top + q * SCALE + 1);
            if x >= inset.0 && y < inset.1 + corner {
                continue;
            }
            seen += 1;
            let expected = COLOURS[grade(layer, q, k).min(5)];
            assert_eq!(pixel(&picture, (x, y)), expected, "layer {layer}: {q} attends to {k}");
        }
        assert!(seen > TOKENS * TOKENS * 4 / 5, "{seen}");
        for (row, place) in (0..36).map(|i| (i / 6, i % 6)) {
            let (x, y) = (inset.0 + place * ENLARGED + 6, inset.1 + row * ENLARGED + 6);
            let (q, k) = (21 + row, 21 + place);
            let expected = COLOURS[grade(layer, q, k).min(5)];
            assert_eq!(pixel(&picture, (x, y)), expected, "layer {layer}, enlarged: {q} attends to {k}");
        }
    }
}

#[test]
fn the_row_of_a_token_is_laid_out_as_the_grid_with_a_box_around_its_neighbours() {
    let attention = attention();
    // In the midst, and at the end of the upper row.
    let tokens = [GRID.token(3, 2), GRID.token(0, 7)];
    let picture = Figure::new(GRID, 2, 2).draw(&attention, &tokens);
    // Rows and columns of the box, the last of them among them: of a window of 3, and of a global layer the same.
    let boxes = [([2, 4], [1, 3]), ([0, 1], [6, 7])];
    for (column, layer) in [0, 5].into_iter().enumerate() {
        for (i, (&token, ([y0, y1], [x0, x1]))) in tokens.iter().zip(boxes).enumerate() {
            let (left, _, top) = places(column, i);
            for key in 0..TOKENS {
                let (y, x) = GRID.position(key);
                let middle = (left + x * ZOOM + ZOOM / 2, top + y * ZOOM + ZOOM / 2);
                let expected = COLOURS[grade(layer, token, key).min(5)];
                assert_eq!(pixel(&picture, middle), expected, "layer {layer}: {token} attends to {key}");
            }
            let mut marked = Vec::new();
            for (y, x) in (0..ZOOM * GRID.height).flat_map(|y| (0..ZOOM * GRID.width).map(move |x| (y, x))) {
                if pixel(&picture, (left + x, top + y)) == BOX {
                    marked.push((y, x));
                }
            }
            let bounds = |of: fn(&(usize, usize)) -> usize| {
                [marked.iter().map(of).min().unwrap(), marked.iter().map(of).max().unwrap()]
            };
            let expected = |first: usize, last: usize| [first * ZOOM, (last + 1) * ZOOM - 1];
            assert_eq!(bounds(|place| place.0), expected(y0, y1), "layer {layer}, token {token}");
            assert_eq!(bounds(|place| place.1), expected(x0, x1), "layer {layer}, token {token}");
            // A line around it, and nothing within.
            assert_eq!(marked.len(), 2 * (y1 - y0 + 1) * ZOOM + 2 * (x1 - x0 + 1) * ZOOM - 4);
        }
    }
}

#[test]
fn a_box_is_as_large_as_the_window() {
    let mut attention = attention();
    attention.layers[0].window = Window::Local { side: 5 };
    let token = GRID.token(2, 4);
    let picture = Figure::new(GRID, 2, 1).draw(&attention, &[token]);
    for (column, reach) in [2, 1].into_iter().enumerate() {
        let (left, _, top) = places(column, 0);
        let (x, y) = (left + (4 - reach) * ZOOM, top + (2 - reach) * ZOOM);
        let end = (2 * reach + 1) * ZOOM - 1;
        for corner in [(x, y), (x + end, y), (x, y + end), (x + end, y + end)] {
            assert_eq!(pixel(&picture, corner), BOX, "{reach} around the token: {corner:?}");
        }
    }
}

#[test]
fn above_a_map_stand_its_layer_and_its_window() {
    let picture = Figure::new(GRID, 2, 0).draw(&attention(), &[]);
    let mut words = Canvas::new(picture.width, picture.height);
    words.write((places(0, 0).0, GAP), "LAYER 0 3X3");
    words.write((places(1, 0).0, GAP), "LAYER 5 GLOBAL");
    let line = 3 * picture.width * GAP..3 * picture.width * (GAP + LINE);
    assert!(picture.pixels[line.clone()] == words.into_picture().pixels[line]);
}
