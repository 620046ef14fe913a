//! What is left of a soak: `report.md` with the verdict and the counts, `soak.svg` with memory, latency and answers over
//! the time, `run.json` with versions and the numbers of every part.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use plotters::prelude::*;
use serde_json::{Value, json};

use super::record::{Record, Slice};
use crate::load::machine::Machine;

/// Parts of the time in chart and table.
const PARTS: usize = 60;

/// Growth of the memory that is none: a share, and MiB that a small server's arenas may still find.
const FLAT: (f64, f64) = (0.05, 8.0);

/// A soak that is over.
#[derive(Debug)]
pub struct Soak<'a> {
    /// Where.
    pub machine: &'a Machine,
    /// How long.
    pub length: Duration,
    /// Clients at a time.
    pub clients: u64,
    /// What came back.
    pub record: &'a Record,
    /// What went wrong beside the answers.
    pub ends: &'a [String],
}

// === impl Soak ===

impl Soak<'_> {
    /// All that is wrong; nothing if it stood.
    pub fn failures(&self) -> Vec<String> {
        let mut failures = self.record.wrong();
        let unanswered = self.record.unanswered();
        failures.extend(unanswered.iter().map(|kind| format!("not one of {kind:?} was answered")));
        let (mib, share) = self.record.growth(self.length);
        // NaN, where nothing was measured, is a failure.
        if !(mib <= FLAT.1 || share <= FLAT.0) {
            failures.push(format!("memory grew by {mib:.1} MiB, {:.1} %", share * 100.0));
        }
        failures.extend_from_slice(self.ends);
        failures
    }

    /// Writes the files.
    pub fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make `{}`", folder.display()))?;
        let path = |name: &str| folder.join(name);
        let write = |name: &str, text: String| {
            fs::write(path(name), text).with_context(|| format!("cannot write `{}`", path(name).display()))
        };
        let slices = self.record.slices(self.length, PARTS);
        write("report.md", self.page())?;
        write("run.json", format!("{:#}\n", self.to_json(&slices)))?;
        write("soak.svg", chart(&slices)?)
    }

    /// The page.
    pub fn page(&self) -> String {
        let Machine { date, processor, cores, commit, command, onnxruntime, .. } = self.machine;
        let (mib, share) = self.record.growth(self.length);
        let mut text = format!(
            "# `{command}`\n\n{date}, {processor}, {cores} cores; `tiny` on ONNX Runtime {onnxruntime}, commit {commit}. \
             {:.0} minutes, {} clients, {} answers.\n\nMemory from the second fifth to the last: {mib:+.1} MiB \
             ({:+.1} %).\n\n",
            self.length.as_secs_f64() / 60.0,
            self.clients,
            self.record.answers.len(),
            share * 100.0,
        );
        match self.failures() {
            failures if failures.is_empty() => text += "Nothing was wrong.\n",
            failures => failures.iter().for_each(|failure| text += &format!("- **wrong**: {failure}\n")),
        }
        text += "\n| client | status | answers |\n| --- | --- | --- |\n";
        for ((kind, status), count) in self.record.counts() {
            let status = if status == 0 { "left, or wrong".to_owned() } else { status.to_string() };
            let _ = writeln!(text, "| {kind:?} | {status} | {count} |");
        }
        text += "\nThe latency of looks and jobs is the time to their results, up to a minute; whoever waited longer cancelled.\n";
        text + "\n![Memory, latency and answers](soak.svg)\n"
    }

    fn to_json(&self, slices: &[Slice]) -> Value {
        let slice = |slice: &Slice| {
            json!({
                "minute": slice.minute, "answered": slice.answered, "refused": slice.refused,
                "p50_seconds": slice.latency[0], "p99_seconds": slice.latency[1], "resident_mib": slice.memory,
            })
        };
        json!({
            "machine": self.machine.to_json(),
            "minutes": self.length.as_secs_f64() / 60.0,
            "clients": self.clients,
            "failures": self.failures(),
            "parts": slices.iter().map(slice).collect::<Vec<_>>(),
        })
    }
}

/// Three panels under one another, minutes from left to right.
fn chart(slices: &[Slice]) -> Result<String> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (900, 780)).into_drawing_area();
        root.fill(&WHITE)?;
        let panels = root.split_evenly((3, 1));
        let of = |value: &dyn Fn(&Slice) -> f64| -> Vec<(f64, f64)> {
            let points = slices.iter().map(|slice| (slice.minute, value(slice)));
            points.filter(|(_, value)| value.is_finite()).collect()
        };
        let latency = |i: usize| of(&move |slice| slice.latency[i]);
        panel(&panels[0], "resident memory, MiB", &[("", of(&|slice| slice.memory))])?;
        panel(&panels[1], "latency, s", &[("p50", latency(0)), ("p99", latency(1))])?;
        let (answered, refused) = (of(&|slice| slice.answered as f64), of(&|slice| slice.refused as f64));
        panel(&panels[2], "answers in each part", &[("200", answered), ("429", refused)])?;
        root.present()?;
    }
    Ok(text)
}

/// One panel; its vertical axis begins at zero.
fn panel(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    title: &str,
    lines: &[(&str, Vec<(f64, f64)>)],
) -> Result<()> {
    // Told apart by those who do not see red and green apart (Okabe and Ito 2008).
    const COLOURS: [RGBColor; 2] = [RGBColor(0, 114, 178), RGBColor(213, 94, 0)];
    let points = || lines.iter().flat_map(|(_, points)| points);
    let end = points().map(|point| point.0).fold(0.0, f64::max).max(1e-3);
    let most = points().map(|point| point.1).fold(0.0, f64::max).max(1e-3) * 1.1;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(8)
        .x_label_area_size(28)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..end, 0.0..most)?;
    chart.configure_mesh().x_desc("minutes").light_line_style(WHITE).draw()?;
    for ((name, points), colour) in lines.iter().zip(COLOURS) {
        let line = chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?;
        if !name.is_empty() {
            line.label(*name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        }
    }
    if lines.len() > 1 {
        chart.configure_series_labels().border_style(BLACK).background_style(WHITE).draw()?;
    }
    Ok(())
}
