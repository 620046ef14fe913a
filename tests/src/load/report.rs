//! What is left of a run: `report.md` with the tables, `curve.svg` where there is one, `run.json` with versions, command, settings and
//! every turn's numbers, `requests.csv` with every request. The tables of the newest full run also stand in
//! `server/benches/README.md`, between two marks.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::bar::Bar;
use super::experiment::curve::Point;
use super::experiment::short_jobs::{LOAD, Try};
use super::lab::{Lab, Plan};
use super::machine::Machine;
use super::plot::{Axis, Panel, svg};
use super::stats::Spread;
use super::summary::Summary;

const BEGIN: &str = "<!-- the newest run, written by `cargo xtask bench serve` -->";
const CURVE: &str = "
| load | policy | rows/s in time | images/s in time | p50 s | p95 s | p99 s | short jobs' p99 s | refused |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
";

const SWEEP: &str = "
Request-level batching, swept at 0.8 of the capacity; the one that was taken is bold:

| delay ms | rows | rows/s in time | short jobs' p99 s | refused |
| --- | --- | --- | --- | --- |
";

const END: &str = "<!-- the end of the newest run -->";

/// Everything that was measured.
#[derive(Debug)]
pub struct Run<'a> {
    /// Where.
    pub machine: &'a Machine,
    /// With which plan; and the raw data.
    pub lab: &'a Lab,
    /// The promises.
    pub bars: &'a [Bar],
    /// The sweep of request-level batching.
    pub tries: &'a [Try],
    /// The setting that was taken.
    pub best: Option<&'a Try>,
    /// The curve; sweep and curve are empty where they were not asked for.
    pub points: &'a [Point],
}

// === impl Run ===

impl Run<'_> {
    /// Writes the files into `folder`.
    pub fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make `{}`", folder.display()))?;
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write `{}`", path.display()))
        };
        let mut report = format!("# `{}`\n\n{}", self.machine.command, self.tables());
        // A run of another experiment alone has none.
        if !self.points.is_empty() {
            report += "\n![The curve](curve.svg)\n";
            write("curve.svg", &self.chart())?;
        }
        write("report.md", &report)?;
        write("run.json", &format!("{:#}\n", self.to_json()))?;
        write("requests.csv", &self.lab.raw)
    }

    /// Where it was measured, the bars, the curve and the sweep.
    pub fn tables(&self) -> String {
        let Machine { date, processor, cores, rustc, onnxruntime, commit, .. } = self.machine;
        let bars: String = self.bars.iter().map(|bar| format!("{bar}\n")).collect();
        let model = &self.lab.bare.manifest.name;
        let Plan { turns, seconds, turns_elsewhere, brief, sweep_turns, .. } = self.lab.plan;
        let mut text = format!(
            "{date}, {processor}, {cores} cores; `{model}` on ONNX Runtime {onnxruntime}, {rustc}, commit {commit}. \
             Capacity: {:.0} row evaluations a second. Medians of {turns} turns of {seconds} s at {LOAD} of the capacity, of {turns_elsewhere} of \
             {brief} s at other loads and of {sweep_turns} of {brief} s in the sweep, and the spread.\n\n\
             | bar | limit | median | spread | |\n| --- | --- | --- | --- | --- |\n{bars}",
            self.lab.capacity
        );
        if !self.points.is_empty() {
            text += CURVE;
            text.extend(self.points.iter().map(curve_row));
            text += SWEEP;
            text.extend(self.tries.iter().map(|one| self.sweep_row(one)));
        }
        text
    }

    fn sweep_row(&self, one: &Try) -> String {
        let Try { delay_ms, rows, .. } = one;
        let refused = one.spread(|summary| summary.refused).median * 100.0;
        let taken = self.best.map(|best| (best.delay_ms, best.rows));
        let bold = if taken == Some((*delay_ms, *rows)) { "**" } else { "" };
        format!(
            "| {bold}{delay_ms}{bold} | {bold}{rows}{bold} | {} | {} | {refused:.0} % |\n",
            cell(one.spread(|summary| summary.goodput), 0),
            cell(one.spread(|summary| summary.short_p99), 2)
        )
    }

    fn chart(&self) -> String {
        let mut names: Vec<&str> = Vec::new();
        for point in self.points {
            if !names.contains(&point.policy) {
                names.push(point.policy);
            }
        }
        let panel = |title: &str, axis, of: &dyn Fn(&Summary) -> f64| {
            let line = |name: &&str| {
                let points = self.points.iter().filter(|point| point.policy == *name);
                points.map(|point| (point.load, point.spread(of))).collect()
            };
            Panel { title: title.to_owned(), axis, lines: names.iter().map(line).collect() }
        };
        let panels = [
            panel("goodput, row evaluations a second", Axis::Linear, &|summary| summary.goodput),
            panel("p50 of latency, s", Axis::Log, &|summary| summary.latency[0]),
            panel("p95 of latency, s", Axis::Log, &|summary| summary.latency[1]),
            panel("p99 of latency, s", Axis::Log, &|summary| summary.latency[2]),
            panel("p99 of the short jobs' latency, s", Axis::Log, &|summary| summary.short_p99),
        ];
        svg(&panels, &names)
    }

    fn to_json(&self) -> Value {
        let point = |point: &Point| {
            json!({
                "policy": point.policy, "load": point.load, "sender": point.sender,
                "turns": point.turns.iter().map(summary).collect::<Vec<_>>(),
            })
        };
        let one = |one: &Try| {
            json!({
                "delay_ms": one.delay_ms, "rows": one.rows, "turns": one.turns.iter().map(summary).collect::<Vec<_>>(),
            })
        };
        let plan = &self.lab.plan;
        json!({
            "machine": self.machine.to_json(),
            "model": self.lab.bare.manifest.name,
            "capacity_rows_per_second": self.lab.capacity,
            "plan": {
                "turns": plan.turns, "seconds": plan.seconds, "levels": plan.levels, "overload_seconds": plan.overload,
                "return_seconds": plan.returns, "server_flags": self.lab.flags,
            },
            "bars": self.bars.iter().map(Bar::to_json).collect::<Vec<_>>(),
            "curve": self.points.iter().map(point).collect::<Vec<_>>(),
            "sweep": self.tries.iter().map(one).collect::<Vec<_>>(),
        })
    }
}

/// Puts the tables between the marks of a document.
pub fn put(document: &str, tables: &str) -> Result<String> {
    let marks = || format!("the document lacks the marks `{BEGIN}` and `{END}`");
    let (before, rest) = document.split_once(BEGIN).with_context(marks)?;
    let (_, after) = rest.split_once(END).with_context(marks)?;
    Ok(format!("{before}{BEGIN}\n\n{tables}\n{END}{after}"))
}

/// Median and spread.
fn cell(Spread { median, least, most }: Spread, digits: usize) -> String {
    format!("{median:.digits$} ({least:.digits$} to {most:.digits$})")
}

fn curve_row(point: &Point) -> String {
    let latency = |i: usize| cell(point.spread(|summary| summary.latency[i]), 2);
    format!(
        "| {:.2} | {} | {} | {} | {} | {} | {} | {} | {:.0} % |\n",
        point.load,
        point.policy,
        cell(point.spread(|summary| summary.goodput), 0),
        cell(point.spread(|summary| summary.good_images), 1),
        latency(0),
        latency(1),
        latency(2),
        cell(point.spread(|summary| summary.short_p99), 2),
        point.spread(|summary| summary.refused * 100.0).median
    )
}

/// NaN becomes null, which is what JSON has for it.
fn summary(summary: &Summary) -> Value {
    let Summary { throughput, goodput, goodput_from_first, good_images, .. } = summary;
    let Summary { latency, short_p99, refused, failed, lateness, .. } = summary;
    json!({
        "throughput_rows": throughput, "goodput_rows": goodput, "goodput_rows_from_first": goodput_from_first,
        "goodput_images": good_images,
        "latency_p50_p95_p99": latency, "short_p99": short_p99, "refused": refused, "failed": failed,
        "sender_lateness_p99": lateness,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_take_the_place_of_the_old_ones() {
        let document = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let once = put(&document, "| new |\n").unwrap();
        assert_eq!(once, format!("a\n{BEGIN}\n\n| new |\n\n{END}\nb\n"));
        assert_eq!(put(&once, "| new |\n").unwrap(), once);
        assert!(put("no marks", "x").unwrap_err().to_string().contains("lacks the marks"));
    }

    #[test]
    fn the_readme_has_the_marks() {
        let readme = fs::read_to_string(crate::root().join("server/benches/README.md")).unwrap();
        put(&readme, "x").unwrap();
    }
}
