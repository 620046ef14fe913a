//! Charts of the curve as one SVG, written by hand: five small panels and a legend need no library.

use std::fmt::Write;

use super::stats::Spread;

/// Size of a panel, and its margins: left, right, top, bottom.
const PANEL: [f64; 2] = [400.0, 260.0];
const MARGINS: [f64; 4] = [56.0, 14.0, 34.0, 40.0];
const COLUMNS: usize = 2;

/// One colour a line, told apart by those who do not see red and green apart (Okabe and Ito 2008).
const COLOURS: [&str; 3] = ["#0072b2", "#d55e00", "#009e73"];

/// How the vertical axis runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// From zero.
    Linear,
    /// In powers of ten.
    Log,
}

/// One panel.
#[derive(Debug, Clone)]
pub struct Panel {
    /// What is shown, and its unit.
    pub title: String,
    /// The vertical axis.
    pub axis: Axis,
    /// Points of each line, in the order of the legend: load, and what was measured at it.
    pub lines: Vec<Vec<(f64, Spread)>>,
}

/// All panels under one another in two columns, the legend after the last. The horizontal axis is the load.
pub fn svg(panels: &[Panel], legend: &[&str]) -> String {
    let place = |i: usize| ((i % COLUMNS) as f64 * PANEL[0], (i / COLUMNS) as f64 * PANEL[1]);
    let rows = (panels.len() + 1).div_ceil(COLUMNS) as f64;
    let (width, height) = (COLUMNS as f64 * PANEL[0], rows * PANEL[1]);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (i, panel) in panels.iter().enumerate() {
        let (x, y) = place(i);
        push(&mut out, &format!("<g transform=\"translate({x},{y})\">\n{}</g>\n", panel.svg()));
    }
    let (x, y) = place(panels.len());
    for (i, (name, colour)) in legend.iter().zip(COLOURS).enumerate() {
        let (x, y) = (x + MARGINS[0], y + MARGINS[2] + 22.0 * i as f64);
        push(&mut out, &format!("<rect x=\"{x}\" y=\"{y}\" width=\"22\" height=\"4\" fill=\"{colour}\"/>\n"));
        push(&mut out, &text([x + 30.0, y + 6.0], "start", &escaped(name)));
    }
    out + "</svg>\n"
}

// === impl Panel ===

impl Panel {
    fn svg(&self) -> String {
        let [left, right, top, bottom] = MARGINS;
        let points = || self.lines.iter().flatten().filter(|(_, spread)| spread.median.is_finite());
        let loads = points().map(|point| point.0);
        let (first, last) = (loads.clone().fold(f64::INFINITY, f64::min), loads.fold(0.0, f64::max));
        let values = points().flat_map(|(_, spread)| [spread.least, spread.most]).filter(|v| *v > 0.0);
        let (least, most) = (values.clone().fold(f64::INFINITY, f64::min), values.fold(0.0, f64::max));
        let mut out = text([left, 20.0], "start", &escaped(&self.title));
        if most == 0.0 {
            return out + &text([left, 60.0], "start", "nothing measured");
        }
        let ticks = self.axis.ticks(least, most);
        let (low, high) = (self.axis.scale(ticks[0]), self.axis.scale(ticks[ticks.len() - 1]));
        let x = |load: f64| {
            let share = if last > first { (load - first) / (last - first) } else { 0.5 };
            left + share * (PANEL[0] - left - right)
        };
        let y = |value: f64| {
            let share = (self.axis.scale(value.max(f64::MIN_POSITIVE)) - low) / (high - low);
            PANEL[1] - bottom - share.clamp(0.0, 1.0) * (PANEL[1] - top - bottom)
        };
        for tick in &ticks {
            let (from, to, at) = (left, PANEL[0] - right, y(*tick));
            push(&mut out, &line([from, at, to, at], "#ddd"));
            push(&mut out, &text([left - 6.0, at + 4.0], "end", &format!("{tick}")));
        }
        let mut loads: Vec<f64> = points().map(|point| point.0).collect();
        loads.sort_by(f64::total_cmp);
        loads.dedup();
        for load in loads {
            push(&mut out, &text([x(load), PANEL[1] - bottom + 16.0], "middle", &format!("{load}")));
        }
        let middle = (left + PANEL[0] - right) / 2.0;
        push(&mut out, &text([middle, PANEL[1] - 8.0], "middle", "load, of the capacity"));
        for (points, colour) in self.lines.iter().zip(COLOURS) {
            let there = || points.iter().filter(|(_, spread)| spread.median.is_finite());
            let path: Vec<_> =
                there().map(|(load, s)| format!("{:.1},{:.1}", x(*load), y(s.median))).collect();
            let path = path.join(" ");
            push(
                &mut out,
                &format!(
                    "<polyline points=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n"
                ),
            );
            for (load, spread) in there() {
                push(&mut out, &line([x(*load), y(spread.least), x(*load), y(spread.most)], colour));
            }
        }
        out
    }
}

// === impl Axis ===

impl Axis {
    fn scale(self, value: f64) -> f64 {
        if self == Self::Log { value.log10() } else { value }
    }

    /// Round numbers that enclose both: from zero, or powers of ten.
    fn ticks(self, least: f64, most: f64) -> Vec<f64> {
        let power = |exponent: f64| 10f64.powf(exponent);
        if self == Self::Log {
            let (from, to) = (least.log10().floor() as i32, most.log10().ceil() as i32);
            return (from..=to.max(from + 1)).map(|exponent| rounded(power(f64::from(exponent)))).collect();
        }
        let decade = power(most.log10().floor());
        let step = [0.2, 0.5, 1.0, 2.0].map(|n| n * decade).into_iter().find(|step| most / step <= 6.0);
        let step = step.unwrap_or(decade * 2.0);
        (0..=(most / step).ceil() as i32).map(|i| rounded(f64::from(i) * step)).collect()
    }
}

/// Without the digits that only a computer sees.
fn rounded(value: f64) -> f64 {
    format!("{value:.6}").parse().unwrap_or(value)
}

fn push(out: &mut String, more: &str) {
    out.write_str(more).expect("a string takes what is written");
}

fn text([x, y]: [f64; 2], anchor: &str, words: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>\n")
}

fn line([x1, y1, x2, y2]: [f64; 4], colour: &str) -> String {
    format!("<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>\n")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_enclose_what_was_measured() {
        assert_eq!(Axis::Linear.ticks(1.0, 520.0), [0.0, 100.0, 200.0, 300.0, 400.0, 500.0, 600.0]);
        assert_eq!(Axis::Linear.ticks(0.1, 1.1), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2]);
        assert_eq!(Axis::Log.ticks(0.03, 4.0), [0.01, 0.1, 1.0, 10.0]);
        assert_eq!(Axis::Log.ticks(1.0, 1.0), [1.0, 10.0]);
    }

    #[test]
    fn a_chart_has_every_line_and_leaves_out_what_is_missing() {
        let point = |load: f64, value: f64| (load, Spread::of(&[value, 2.0 * value, 3.0 * value]));
        let lines = vec![vec![point(0.3, 1.0), point(0.8, 2.0)], vec![point(0.3, f64::NAN), point(0.8, 4.0)]];
        let panel = Panel { title: "a < b".to_owned(), axis: Axis::Log, lines };
        let empty = Panel { title: "c".to_owned(), axis: Axis::Linear, lines: vec![Vec::new()] };
        let svg = svg(&[panel, empty], &["one", "two"]);
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(
            svg.contains("a &lt; b") && svg.contains("nothing measured") && !svg.contains("NaN"),
            "{svg}"
        );
        assert!(svg.contains(">one<") && svg.contains(">two<") && svg.ends_with("</svg>\n"));
    }
}
