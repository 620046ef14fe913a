//! Is a manifest true to itself? Every rule that can be checked without opening another file; each error says
//! the dotted path of the value, what it is and what is accepted.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::error::{Error, Result, number};
use crate::guidance;
use crate::prediction::{Prediction, Variance};
use crate::schedule::Schedule;
use crate::solver::SolverConfig;
use crate::window::Plan;

use super::{
    Class, Dim, Dtype, FORMAT_VERSION, GOLDEN_FILE, Graph, GraphDevice, MANIFEST_FILE, Manifest, Role,
    SampleDefaults, TensorSpec, TensorType, WEIGHTS_FILE, fold,
};

/// Longest name of a model, file or golden case.
const MAX_NAME: usize = 64;

/// All rules, in the order of the fields.
pub(super) fn check(manifest: &Manifest) -> Result<()> {
    version(manifest.format_version)?;
    plain_name("name", &manifest.name)?;
    manifest.config.validate()?;
    let schedule = manifest.schedule.build()?;
    variance(manifest)?;
    if manifest.value_range != [-1.0, 1.0] {
        return bad("value_range", format!("{:?}", manifest.value_range), "[-1, 1]");
    }
    let (names, count) = (manifest.classes.len(), manifest.config.classes);
    if names != count {
        return bad("classes", format!("{names} classes"), format!("{count}, as config.classes says"));
    }
    class_words(&manifest.classes)?;
    let process = (&schedule, manifest.prediction, manifest.variance);
    sample_defaults(&manifest.defaults, process, count).map_err(|error| error.within("defaults"))?;
    files(manifest)?;
    graphs(manifest)?;
    lineage(manifest)?;
    not_blank("licence", &manifest.licence)
}

/// Only the version that this code writes is read.
pub(super) fn version(version: u32) -> Result<()> {
    if version == FORMAT_VERSION {
        Ok(())
    } else {
        bad("format_version", version, format!("{FORMAT_VERSION}, the only version this program reads"))
    }
}

/// Is every object one in the text, too? serde also reads a struct from the array of its fields, in their order, which
/// is no format of ours. `read` is the text and `written` what was made of it, both at `path`.
pub(super) fn objects(path: &str, read: &Value, written: &Value) -> Result<()> {
    match (read, written) {
        (Value::Array(_), Value::Object(fields)) => {
            let keys: Vec<_> = fields.keys().map(String::as_str).collect();
            bad(path, "an array", format!("an object with the keys {}", keys.join(", ")))
        }
        (Value::Object(read), Value::Object(written)) => {
            let dot = if path.is_empty() { "" } else { "." };
            let mut both = written.iter().filter_map(|(key, value)| Some((key, read.get(key)?, value)));
            both.try_for_each(|(key, read, written)| objects(&format!("{path}{dot}{key}"), read, written))
        }
        (Value::Array(read), Value::Array(written)) => {
            let mut both = read.iter().zip(written).enumerate();
            both.try_for_each(|(i, (read, written))| objects(&format!("{path}[{i}]"), read, written))
        }
        _ => Ok(()),
    }
}

fn bad<T>(field: impl Into<String>, got: impl std::fmt::Display, expected: impl Into<String>) -> Result<T> {
    Err(Error::bad_value(field, got, expected))
}

/// Accepts a text in which there is something to read. Errors: another, as the value of `field`.
pub fn not_blank(field: &str, text: &str) -> Result<()> {
    if text.trim().is_empty() { bad(field, "blank", "a text") } else { Ok(()) }
}

/// Accepts a name that is a file's or a folder's on any system, and never a path: 1 to 64 of `A-Z a-z 0-9 . _ -`, not
/// beginning with a dot and without two dots in a row. Errors: anything else, as the value of `field`.
pub fn plain_name(field: &str, name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=MAX_NAME).contains(&name.len())
        && name.chars().all(plain)
        && !name.starts_with('.')
        && !name.contains("..")
    {
        Ok(())
    } else {
        let expected = format!(
            "1 to {MAX_NAME} of the characters A-Z a-z 0-9 . _ -, not beginning with a dot and without two dots in a row"
        );
        bad(field, format!("{name:?}"), expected)
    }
}

fn sha256(field: String, digest: &str) -> Result<()> {
    if digest.len() == 64 && digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        Ok(())
    } else {
        bad(field, format!("{digest:?}"), "64 lower-case hexadecimal digits")
    }
}

fn variance(manifest: &Manifest) -> Result<()> {
    let learned = manifest.variance == Variance::LearnedRange;
    if learned == manifest.config.learn_sigma {
        return Ok(());
    }
    let expected = if learned {
        "fixed_small or fixed_large, since config.learn_sigma is false"
    } else {
        "learned_range, since config.learn_sigma is true"
    };
    bad("variance", manifest.variance, expected)
}

/// Accepts classes of which every word means one. Errors: a blank word, or one that two of them have, by its path from
/// `classes`.
pub fn class_words(classes: &[Class]) -> Result<()> {
    let mut seen: HashMap<String, String> = HashMap::new();
    for (i, class) in classes.iter().enumerate() {
        let name = std::iter::once((format!("classes[{i}].name"), &class.name));
        let aliases =
            class.aliases.iter().enumerate().map(|(j, alias)| (format!("classes[{i}].aliases[{j}]"), alias));
        for (field, word) in name.chain(aliases) {
            not_blank(&field, word)?;
            if let Some(other) = seen.insert(fold(word), field.clone()) {
                return bad(field, format!("{word:?}"), format!("a word that {other} does not mean"));
            }
        }
    }
    Ok(())
}

/// Accepts a sampler that works for a model of this schedule, prediction and variance, and of so many classes. Errors name
/// the field.
pub fn sample_defaults(
    defaults: &SampleDefaults,
    (schedule, prediction, variance): (&Schedule, Prediction, Variance),
    classes: usize,
) -> Result<()> {
    let SampleDefaults { sampler, grid, steps, guidance_scale, eta, clip_x0 } = *defaults;
    let solver = SolverConfig { sampler, grid, steps, eta, clip_x0, prediction, variance };
    solver.build(schedule)?;
    guidance::check_scale(guidance_scale)?;
    if classes == 0 && guidance::needs_unconditional(guidance_scale) {
        return bad("guidance_scale", guidance_scale, "1, since the model has no classes");
    }
    Ok(())
}

fn files(manifest: &Manifest) -> Result<()> {
    for (name, file) in &manifest.files {
        plain_name("files", name)?;
        if name == MANIFEST_FILE {
            return bad("files", format!("{name:?}"), "every file but the manifest itself");
        }
        sha256(format!("files[{name:?}].sha256"), &file.sha256)?;
        if file.size == 0 {
            return bad(format!("files[{name:?}].size"), 0, "at least 1 byte");
        }
    }
    for name in [WEIGHTS_FILE, GOLDEN_FILE] {
        if !manifest.files.contains_key(name) {
            return bad("files", format!("without {name:?}"), "a digest of every file of the package");
        }
    }
    Ok(())
}

fn graphs(manifest: &Manifest) -> Result<()> {
    let mut seen = HashSet::new();
    for (i, graph) in manifest.graphs.iter().enumerate() {
        graph_rules(manifest, graph).map_err(|error| error.within(&format!("graphs[{i}]")))?;
        if !seen.insert((graph.role, graph.device, graph.dtype)) {
            let got = format!("a second {:?} of {:?} on {:?}", graph.role, graph.dtype, graph.device);
            return bad(format!("graphs[{i}]"), got.to_lowercase(), "one graph per role, device and dtype");
        }
    }
    if !seen.contains(&(Role::Denoiser, GraphDevice::Any, Dtype::F32)) {
        return bad("graphs", "without a denoiser for any device in f32", "one, which every package has");
    }
    Ok(())
}

fn graph_rules(manifest: &Manifest, graph: &Graph) -> Result<()> {
    plain_name("file", &graph.file)?;
    if !manifest.files.contains_key(&graph.file) {
        return bad("file", format!("{:?}", graph.file), "a file that `files` lists");
    }
    let (plans, depth) = (graph.plan.len(), manifest.config.depth);
    if plans != depth {
        return bad("plan", format!("{plans} plans"), format!("one for each of the {depth} blocks"));
    }
    let grid = manifest.config.grid();
    let widest = grid.height.max(grid.width);
    for (i, plan) in graph.plan.iter().enumerate() {
        if let Plan::Tiles(tile) = *plan
            && !((1..=widest).contains(&tile.height) && (1..=widest).contains(&tile.width))
        {
            return bad(format!("plan[{i}].tiles"), tile, format!("sides of 1 to {widest}"));
        }
    }
    if !(graph.tolerance > 0.0 && graph.tolerance < 1.0) {
        return bad("tolerance", number(graph.tolerance), "a relative error between 0 and 1");
    }
    let mut cases = HashSet::new();
    for (i, case) in graph.golden.iter().enumerate() {
        plain_name(&format!("golden[{i}]"), case)?;
        if !cases.insert(case) {
            return bad(format!("golden[{i}]"), format!("{case:?}"), "every case once");
        }
    }
    if cases.is_empty() {
        return bad("golden", "empty", "at least one case: a graph without proof is not served");
    }
    tensors(manifest, graph)
}

/// Every role has exactly its tensors.
fn tensors(manifest: &Manifest, graph: &Graph) -> Result<()> {
    let config = &manifest.config;
    let batch = match graph.role {
        Role::Denoiser | Role::Attention => Dim::batch(),
        // Vectors of one image.
        Role::Jvp | Role::Vjp => Dim::Fixed(1),
    };
    let tensor = |name: &str, first: &Dim, rest: &[usize]| TensorSpec {
        name: name.to_owned(),
        dtype: TensorType::F32,
        shape: std::iter::once(first.clone()).chain(rest.iter().copied().map(Dim::Fixed)).collect(),
    };
    let image = [config.channels, config.height, config.width];
    let mut inputs = vec![tensor("x", &batch, &image), tensor("t", &batch, &[]), tensor("y", &batch, &[])];
    inputs[2].dtype = TensorType::I64;
    let mut outputs = Vec::new();
    if matches!(graph.role, Role::Denoiser | Role::Attention) {
        outputs.push(tensor("prediction", &batch, &[config.out_channels(), config.height, config.width]));
    }
    match graph.role {
        Role::Denoiser => {}
        Role::Attention => {
            for (i, (window, plan)) in config.windows.iter().zip(&graph.plan).enumerate() {
                let (tiles, queries, keys) = window.tile_counts(config.grid(), *plan);
                let shape = [config.heads, tiles, queries, keys];
                outputs.push(tensor(&format!("attention.{i}"), &batch, &shape));
            }
        }
        Role::Jvp | Role::Vjp => {
            let vectors = Dim::Named("k".to_owned());
            inputs.push(tensor("vectors", &vectors, &image));
            outputs.push(tensor("products", &vectors, &image));
        }
    }
    exactly("inputs", &graph.inputs, &inputs)?;
    exactly("outputs", &graph.outputs, &outputs)
}

fn exactly(field: &str, got: &[TensorSpec], expected: &[TensorSpec]) -> Result<()> {
    for (i, expected) in expected.iter().enumerate() {
        match got.get(i) {
            Some(got) if got == expected => {}
            Some(got) => return bad(format!("{field}[{i}]"), got, expected.to_string()),
            None => return bad(format!("{field}[{i}]"), "missing", expected.to_string()),
        }
    }
    match got.get(expected.len()) {
        Some(extra) => bad(format!("{field}[{}]", expected.len()), extra, "no further tensor"),
        None => Ok(()),
    }
}

fn lineage(manifest: &Manifest) -> Result<()> {
    let lineage = &manifest.lineage;
    not_blank("lineage.data", &lineage.data)?;
    sha256("lineage.data_sha256".to_owned(), &lineage.data_sha256)?;
    for (name, value) in &lineage.metrics {
        if !value.is_finite() {
            return bad(format!("lineage.metrics[{name:?}]"), value, "a finite number");
        }
    }
    Ok(())
}
