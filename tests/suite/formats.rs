//! Manifests of every released format version are still read. One stored file a version, written when the version
//! was new and never changed after; a new version adds a folder under `tests/formats/`.

use windowpane_diffusion::manifest::{Dtype, FORMAT_VERSION, Manifest, Role};
use windowpane_diffusion::{Plan, Prediction, Sampler, Tile, Window};

fn stored(version: u32) -> String {
    let path = suite::root().join(format!("tests/formats/v{version}/manifest.json"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn version_1_is_read() {
    let manifest = Manifest::from_json(&stored(1)).unwrap();
    assert_eq!((manifest.format_version, manifest.name.as_str()), (1, "tiny"));
    assert_eq!(manifest.config.windows[..2], [Window::Local { side: 3 }, Window::Local { side: 5 }]);
    assert_eq!((manifest.prediction, manifest.defaults.sampler), (Prediction::V, Sampler::Ddim));
    assert_eq!(manifest.lookup("Circle").unwrap(), 3);
    let graph = &manifest.graphs[0];
    assert_eq!((graph.role, graph.dtype), (Role::Denoiser, Dtype::F32));
    assert_eq!(graph.plan[2..], [Plan::Tiles(Tile::square(8)), Plan::Dense]);
    assert_eq!(manifest.files["weights.bin"].size, 574_336);
}

#[test]
fn every_version_so_far_has_its_stored_file() {
    for version in 1..=FORMAT_VERSION {
        let manifest = Manifest::from_json(&stored(version)).unwrap();
        assert_eq!(
            Manifest::from_json(&manifest.to_json()).unwrap(),
            manifest,
            "written again, it is the same"
        );
    }
}
