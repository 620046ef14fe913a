//! Indices known at export, turned round: not where a row was gathered from, but where what was gathered from a row lies.
//!
//! The terms of an index are digits of the row that it names: attention's rows are those of `[y, x, part and head]`, and
//! one term says y, another x, the last one part and head. Turned round digit by digit, what has to be written down grows
//! with the sides of the grid, and not with its tokens times its heads. Where terms are no digits all rows are one.

use super::outer::{OuterSum, Term};

/// Where the contributions to each row lie, among all that was gathered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inverse {
    /// How many values each digit but the last has.
    pub(super) upper: Vec<usize>,
    /// The last digit's values, in runs of those whose rows were gathered alike.
    pub(super) runs: Vec<Run>,
    /// Places in all. As a place, and as a part of one, it stands for none.
    pub(super) places: i64,
}

/// Rows that differ in the last digit, and were gathered alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    /// For each digit: the parts that its values have in the first contributions' places, in the second ones', and so on.
    /// A place is the sum of a part of every digit, whichever it is.
    pub(super) digits: Vec<Vec<Vec<i64>>>,
}

/// For each value of a digit, the parts of places that belong to it.
type Lists = Vec<Vec<i64>>;

// === impl Inverse ===

impl Inverse {
    /// Of what `sums` gathered from `rows` rows, laid one after another. Errors: an index of a row that is not there.
    pub(super) fn of(rows: usize, sums: &[OuterSum]) -> Result<Self, i64> {
        for sum in sums.iter().filter(|sum| sum.volume() > 0) {
            // The terms do not share axes, so that their extremes meet.
            let low: i64 = sum.terms.iter().filter_map(|term| term.values.iter().min()).sum();
            let high: i64 = sum.terms.iter().map(highest).sum();
            if low < 0 || high >= rows as i64 {
                return Err(if low < 0 { low } else { high });
            }
        }
        let by_digits = Self::by_digits(rows, sums, &strides(rows, sums));
        Ok(by_digits
            .or_else(|| Self::by_digits(rows, sums, &[1]))
            .expect("one digit holds all: this is a bug"))
    }

    /// None where rows of one last digit were gathered in several ways.
    fn by_digits(rows: usize, sums: &[OuterSum], strides: &[i64]) -> Option<Self> {
        let above = std::iter::once(rows as i64).chain(strides.iter().copied());
        let lens: Vec<usize> = above.zip(strides).map(|(above, stride)| (above / stride) as usize).collect();
        let (&last, upper) = lens.split_last()?;
        // The ways in which rows were gathered, by what the digits but the last say; and of each value of the last
        // which way is its own.
        let mut ways: Vec<Vec<Lists>> = Vec::new();
        let mut own: Vec<(Option<usize>, Vec<i64>)> = vec![(None, Vec::new()); last];
        let mut begin = 0;
        for sum in sums {
            let mut way = lists(sum, strides, &lens);
            let slots = way.pop()?;
            let known = ways.iter().position(|known| *known == way);
            let way = known.unwrap_or_else(|| {
                ways.push(way);
                ways.len() - 1
            });
            for (slot, offsets) in slots.iter().enumerate().filter(|(_, offsets)| !offsets.is_empty()) {
                if own[slot].0.replace(way).is_some_and(|before| before != way) {
                    return None;
                }
                own[slot].1.extend(offsets.iter().map(|offset| begin + offset));
            }
            begin += sum.volume() as i64;
        }
        let mut runs: Vec<(Option<usize>, Lists)> = Vec::new();
        for (way, places) in own {
            match runs.last_mut() {
                Some((known, run)) if known.is_none() || way.is_none() || *known == way => {
                    *known = known.or(way);
                    run.push(places);
                }
                _ => runs.push((way, vec![places])),
            }
        }
        let run = |(way, slots): (Option<usize>, Lists)| {
            let digits = ways[way.unwrap_or(0)].iter().chain([&slots]);
            Run { digits: digits.map(|lists| turns(lists, begin)).collect() }
        };
        Some(Self { upper: upper.to_vec(), runs: runs.into_iter().map(run).collect(), places: begin })
    }
}

/// How many rows one of each digit stands for: what terms are multiples of, where all that are not stay below it.
fn strides(rows: usize, sums: &[OuterSum]) -> Vec<i64> {
    let terms = || sums.iter().flat_map(|sum| &sum.terms);
    let mut strides = Vec::new();
    if terms().flat_map(|term| &term.values).all(|&value| value >= 0) {
        let steps = terms().filter(|term| term.values.len() > 1);
        let mut steps: Vec<i64> = steps.map(|term| term.values.iter().copied().fold(0, divisor)).collect();
        steps.sort_unstable();
        let mut above = rows as i64;
        for &step in steps.iter().rev().filter(|&&step| step > 1) {
            if step < above && above % step == 0 && sums.iter().all(|sum| is_digit(sum, step)) {
                strides.push(step);
                above = step;
            }
        }
    }
    strides.push(1);
    strides
}

/// The greatest common divisor; of zero and a number, that.
fn divisor(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { divisor(b, a % b) }
}

fn is_digit(sum: &OuterSum, stride: i64) -> bool {
    sum.terms.iter().filter(|term| !is_multiple(term, stride)).map(highest).sum::<i64>() < stride
}

fn is_multiple(term: &Term, stride: i64) -> bool {
    term.values.iter().all(|value| value % stride == 0)
}

fn highest(term: &Term) -> i64 {
    term.values.iter().copied().max().unwrap_or(0)
}

/// For each digit and each of its values, how far what belongs to it is from the first that was gathered.
fn lists(sum: &OuterSum, strides: &[i64], lens: &[usize]) -> Vec<Lists> {
    let digit_of = |term: &Term| strides.iter().position(|&stride| is_multiple(term, stride));
    let mut digits = Vec::new();
    for (digit, (&stride, &len)) in strides.iter().zip(lens).enumerate() {
        let terms: Vec<&Term> = sum.terms.iter().filter(|term| digit_of(term) == Some(digit)).collect();
        let mut axes: Vec<usize> = terms.iter().flat_map(|term| term.axes.iter().copied()).collect();
        axes.sort_unstable();
        let mut lists = vec![Vec::new(); len];
        for (value, offset) in sum.outer(&terms, &axes).into_iter().zip(sum.offsets(&axes)) {
            lists[(value / stride) as usize].push(offset);
        }
        digits.push(lists);
    }
    digits
}

/// First entries of all lists, second ones, …; `none` where a list is shorter than others.
fn turns(lists: &Lists, none: i64) -> Vec<Vec<i64>> {
    let most = lists.iter().map(Vec::len).max().unwrap_or(0).max(1);
    let turn = |i: usize| lists.iter().map(|list| list.get(i).copied().unwrap_or(none)).collect();
    (0..most).map(turn).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use windowpane_diffusion::{Grid, Plan, Tile, Window};

    use super::super::attention::{Heads, WindowValues};
    use super::super::graph::{Graph, Source, ValueId};
    use super::super::ops::Op;
    use super::super::shape::{Dim, Dtype, Shape, Type};
    use super::*;

    /// The places of each row's contributions, as the inverse has them, in order.
    fn told(inverse: &Inverse) -> Lists {
        let slots = |run: &Run| run.digits.last().unwrap()[0].len();
        let last: usize = inverse.runs.iter().map(slots).sum();
        let mut rows = vec![Vec::new(); inverse.upper.iter().product::<usize>() * last];
        let mut first = 0;
        for run in &inverse.runs {
            // Every value of each digit with every part of a place that it has.
            let mut all = vec![(0, 0)];
            for (digit, turns) in run.digits.iter().enumerate() {
                let len = inverse.upper.get(digit).copied().unwrap_or(last);
                let offset = if digit < inverse.upper.len() { 0 } else { first };
                let parts = || turns.iter().flat_map(|turn| turn.iter().copied().enumerate());
                all = all
                    .iter()
                    .flat_map(|&(row, place)| {
                        parts().map(move |(i, part)| (row * len + offset + i, place + part))
                    })
                    .collect();
            }
            all.iter()
                .filter(|&&(_, place)| place < inverse.places)
                .for_each(|&(row, place)| rows[row].push(place));
            first += slots(run);
        }
        rows.iter_mut().for_each(|places| places.sort_unstable());
        rows
    }

    /// The same from the definition.
    fn expected(rows: usize, indices: &[Vec<i64>]) -> Lists {
        let mut lists = vec![Vec::new(); rows];
        let all = indices.iter().flatten().enumerate();
        all.for_each(|(place, &row)| lists[row as usize].push(place as i64));
        lists
    }

    fn numbers(inverse: &Inverse) -> usize {
        inverse.runs.iter().flat_map(|run| run.digits.iter().flatten()).map(Vec::len).sum()
    }

    /// What an attention operation gathers, by what it is gathered from: number of rows and indices.
    fn gathered(
        window: Window,
        plan: Plan,
        grid: Grid,
        heads: usize,
    ) -> Vec<(usize, Vec<OuterSum>, Vec<Vec<i64>>)> {
        let heads = Heads { grid, heads, head_dim: 4, batch: Dim::Fixed(1), dtype: Dtype::F32 };
        let mut graph = Graph::new();
        let rows = Shape::new([grid.tokens(), 3 * heads.heads * heads.head_dim]);
        let qkv = graph.input("qkv", Type::new(Dtype::F32, rows)).unwrap();
        let values = WindowValues::new(&mut graph, "window", window, plan, &heads).unwrap();
        values.attend(&mut graph, "attn", qkv, &heads).unwrap();
        let mut found: Vec<(ValueId, Vec<ValueId>)> = Vec::new();
        for (_, value) in graph.values() {
            if let Source::Node { op: Op::Gather { .. }, inputs } = &value.source {
                match found.iter_mut().find(|(from, _)| *from == inputs[0]) {
                    Some((_, indices)) => indices.push(inputs[1]),
                    None => found.push((inputs[0], vec![inputs[1]])),
                }
            }
        }
        let of = |(from, indices): &(ValueId, Vec<ValueId>)| {
            let rows = graph.ty(*from).shape.fixed().unwrap()[1];
            let sums = indices.iter().map(|&id| OuterSum::of(&graph, id).unwrap()).collect();
            (rows, sums, indices.iter().map(|&id| graph.known_indices(id).unwrap()).collect())
        };
        found.iter().map(of).collect()
    }

    #[test]
    fn attentions_indices_are_turned_round_and_stay_small() {
        let tiles = |height, width| Plan::Tiles(Tile { height, width });
        for (side, plan, grid, heads) in [
            (9, tiles(4, 8), Grid::new(32, 32), 6),
            (3, tiles(4, 4), Grid::new(32, 32), 2),
            (5, tiles(3, 2), Grid::new(7, 9), 3),
            (3, tiles(2, 2), Grid::new(1, 8), 1),
            (7, Plan::Dense, Grid::new(6, 5), 2),
        ] {
            let what = format!("{side}, {plan:?}, {grid:?}");
            for (rows, sums, indices) in gathered(Window::local(side).unwrap(), plan, grid, heads) {
                let inverse = Inverse::of(rows, &sums).unwrap();
                assert_eq!(told(&inverse), expected(rows, &indices), "{what}");
                if grid.tokens() == 1024 {
                    assert!(numbers(&inverse) < 1024 + 200, "{what}: {} numbers", numbers(&inverse));
                }
            }
        }
    }

    /// The sum of these terms, an axis a term, and what it comes to.
    fn sum_of(terms: &[Vec<i64>]) -> (OuterSum, Vec<i64>) {
        let mut graph = Graph::new();
        let mut all: Option<ValueId> = None;
        for (i, term) in terms.iter().enumerate() {
            let mut shape = vec![1; terms.len()];
            shape[i] = term.len();
            let term = graph.indices(&format!("term.{i}"), &shape, term.clone()).unwrap();
            all = Some(match all {
                None => term,
                Some(sum) => graph.add(&format!("sum.{i}"), Op::Add, &[sum, term]).unwrap(),
            });
        }
        let all = all.unwrap();
        let sum = OuterSum::of(&graph, all).unwrap();
        assert_eq!(sum.terms.len(), terms.len());
        (sum, graph.known_indices(all).unwrap())
    }

    fn terms(
        values: std::ops::Range<i64>,
        len: std::ops::Range<usize>,
    ) -> impl Strategy<Value = Vec<Vec<i64>>> {
        prop::collection::vec(prop::collection::vec(values, len), 1..4)
    }

    proptest! {
        #[test]
        fn any_indices_are_turned_round(
            rows in 1usize..10,
            parts in prop::collection::vec(prop_oneof![terms(-1..8, 0..9).prop_map(|mut terms| { terms.truncate(1); terms }), terms(-1..4, 1..4)], 1..4),
        ) {
            let (sums, indices): (Vec<_>, Vec<_>) = parts.iter().map(|terms| sum_of(terms)).unzip();
            let inverse = Inverse::of(rows, &sums);
            match indices.iter().flatten().find(|&&row| row < 0 || row >= rows as i64) {
                None => prop_assert_eq!(told(&inverse.unwrap()), expected(rows, &indices)),
                Some(_) => prop_assert!(inverse.is_err()),
            }
        }

        /// Terms that are digits, as attention's are; of some sums fewer, or in another order.
        #[test]
        fn digits_are_turned_round(
            lens in [1i64..4, 1i64..4, 1i64..4],
            parts in prop::collection::vec((terms(0..6, 1..5), any::<bool>()), 1..4),
        ) {
            let strides = [lens[1] * lens[2], lens[2], 1];
            let of = |(terms, is_turned): &(Vec<Vec<i64>>, bool)| {
                let digit = |(i, term): (usize, &Vec<i64>)| -> Vec<i64> {
                    term.iter().map(|value| value % lens[i] * strides[i]).collect()
                };
                let mut terms: Vec<_> = terms.iter().enumerate().map(digit).collect();
                if *is_turned {
                    terms.reverse();
                }
                sum_of(&terms)
            };
            let (sums, indices): (Vec<_>, Vec<_>) = parts.iter().map(of).unzip();
            let rows = lens.iter().product::<i64>() as usize;
            prop_assert_eq!(told(&Inverse::of(rows, &sums).unwrap()), expected(rows, &indices));
        }
    }
}
