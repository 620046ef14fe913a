//! The PSNR gap of models/tiny as `eval` measures it, on images that need no download. The images and the numbers are kept
//! in tests/reference, where the suite asks a server for the same: trainer and server meet in files alone.
//!
//! `UPDATE_REFERENCE=1 cargo test -p windowpane-trainer --test psnr_gap` writes them anew.

use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};
use windowpane_diffusion::psnr_gap::PsnrGap;
use windowpane_trainer::data::{self, DataSource, Kind as Source, Pair, Toy};
use windowpane_trainer::eval::{GapConfig, psnr_gap};
use windowpane_trainer::export::{reference, reopen};
use windowpane_trainer::model::Geometry;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Eight of what models/tiny was trained on, and eight of what it was not.
fn images() -> Pair {
    let toy = Toy { alpha: 2.0, size: 32, count: 8, channels: 1, classes: 4, seed: 1 };
    data::load_pair(&DataSource { toy: Some(toy), path: None, ..DataSource::new(Source::Toy, "") }).unwrap()
}

#[test]
fn the_gap_of_the_shipped_model_is_the_one_that_servers_are_held_to() {
    let package = reopen::reopen(&root().join("models/tiny")).unwrap();
    let (meta, pair) = (&package.meta, images());
    let net = Geometry::new(&meta.config, Kind::Float, Device::Cpu).bind(&package.flat);
    let denoise = |x: &Tensor, t: &[f32], y: &[i64]| {
        tch::no_grad(|| net.forward(x, &Tensor::from_slice(t), &Tensor::from_slice(y)))
    };
    let config =
        GapConfig { timesteps: 5, seed: 3, batch: 3, classes: meta.config.classes, ..GapConfig::default() };
    let process = (&meta.schedule.build().unwrap(), meta.prediction);
    let gap = psnr_gap(&denoise, (&pair.train, &pair.test), process, &config, &|_| ()).unwrap();
    assert_eq!((gap.train.images, gap.test.images, gap.timesteps.len()), (8, 8, 5));

    let kept = root().join("tests/reference/psnr_gap.json");
    let file = reference::file(&pair, true).unwrap();
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(&kept, serde_json::to_string_pretty(&gap).unwrap() + "\n").unwrap();
        std::fs::write(kept.with_extension("safetensors"), &file).unwrap();
    }
    assert!(std::fs::read(kept.with_extension("safetensors")).unwrap() == file, "other images");
    let before: PsnrGap = serde_json::from_str(&std::fs::read_to_string(&kept).unwrap()).unwrap();
    for (now, before) in [(&gap.train, &before.train), (&gap.test, &before.test)] {
        for (now, before) in now.curve.iter().zip(&before.curve) {
            assert!((now - before).abs() < 1e-3, "{now} dB, it was {before}");
        }
    }
    assert!((gap.gap - before.gap).abs() < 1e-3 && (gap.unclipped - before.unclipped).abs() < 1e-3, "{gap}");
}
