//! A copy of `models/tiny` in a temporary folder, to be damaged.

use std::fs;
use std::path::PathBuf;

use prost::Message as _;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use windowpane_server::keys::Keys;
use windowpane_server::{App, Config};

use crate::onnx::{Attribute, FLOAT, Graph, INT, Model, Node, Tensor};
use crate::server::TestServer;
use crate::shipped;

/// The copy; gone when this is dropped.
#[derive(Debug)]
pub struct Package {
    folder: TempDir,
}

/// SHA-256 in hex, as the manifest writes it.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// API keys: of each name and role, the key is `NAME's secret`.
pub fn keys(all: &[(&str, &str)]) -> Keys {
    let key = |(name, role): &(&str, &str)| {
        let digest = sha256(format!("{name}'s secret").as_bytes());
        format!("[[key]]\nname = \"{name}\"\nrole = \"{role}\"\nsha256 = \"{digest}\"\n")
    };
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), all.iter().map(key).collect::<String>()).expect("it can be written");
    Keys::read(file.path()).unwrap_or_else(|error| panic!("{error}"))
}

/// The highest bit of little-endian floats of this size.
fn turn_signs(bytes: &mut [u8], size: usize) {
    bytes.iter_mut().skip(size - 1).step_by(size).for_each(|byte| *byte ^= 0x80);
}

// === impl Package ===

impl Package {
    /// A whole copy.
    pub fn tiny() -> Self {
        let package = Self { folder: tempfile::tempdir().expect("a temporary folder") };
        package.copy("tiny");
        package
    }

    /// Puts another copy of `models/tiny` beside the first.
    pub fn copy(&self, name: &str) {
        let (from, to) = (shipped("tiny"), self.models().join(name));
        fs::create_dir(&to).expect("a new folder");
        for entry in fs::read_dir(from).expect("models/tiny can be read") {
            let path = entry.expect("models/tiny can be read").path();
            fs::copy(&path, to.join(path.file_name().expect("a file has a name")))
                .expect("files can be copied");
        }
    }

    /// The folder that holds the package's: what `--models` takes.
    pub fn models(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// A file of the package.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join("tiny").join(name)
    }

    /// A file's bytes.
    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.file(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Replaces a file, and leaves the manifest as it was.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.file(name), bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
    }

    /// Replaces a file, and lets the manifest pin the new one.
    pub fn write_pinned(&self, name: &str, bytes: &[u8]) {
        self.write(name, bytes);
        self.edit(|manifest| manifest["files"][name] = json!({"sha256": sha256(bytes), "size": bytes.len()}));
    }

    /// Changes the manifest.
    pub fn edit(&self, change: impl FnOnce(&mut Value)) {
        let mut manifest = serde_json::from_slice(&self.read("manifest.json")).expect("the manifest is JSON");
        change(&mut manifest);
        self.write("manifest.json", manifest.to_string());
    }

    /// Makes another network of it, whole and with its proof: its last layer's signs are turned round, and so are the
    /// predictions of its golden. A sign is one bit, so both are exact.
    pub fn turn_round(&self) {
        let mut weights = self.read("weights.bin");
        let graph = Graph::open(&self.file("denoiser.f32.onnx"));
        for name in ["final_layer.linear.weight", "final_layer.linear.bias"] {
            let tensor = graph.initializers.iter().find(|tensor| tensor.name == name);
            let tensor = tensor.unwrap_or_else(|| panic!("no `{name}`"));
            let number = |key: &str| -> usize {
                let value = tensor.entry(key).and_then(|value| value.parse().ok());
                value.unwrap_or_else(|| panic!("`{name}`: no {key}"))
            };
            let bytes = &mut weights[number("offset")..][..number("length")];
            let elements: i64 = tensor.dims.iter().product();
            let size = bytes.len() / usize::try_from(elements).expect("a tensor has elements");
            turn_signs(bytes, size);
        }
        let mut golden = self.read("golden.safetensors");
        let (head, metadata) = SafeTensors::read_metadata(&golden).expect("the golden is safetensors");
        for (name, tensor) in metadata.tensors() {
            if name.ends_with(".prediction") {
                let (from, to) = tensor.data_offsets;
                // Behind the header and its length.
                turn_signs(&mut golden[8 + head + from..8 + head + to], 4);
            }
        }
        self.write_pinned("weights.bin", &weights);
        self.write_pinned("golden.safetensors", &golden);
    }

    /// Makes its bits depend on the size of a batch, as those of some devices do: the prediction is multiplied by
    /// 1 + 1e-9 × its number of elements, which its golden does not see.
    pub fn scale_by_batch(&self) {
        const FILE: &str = "denoiser.f32.onnx";
        // The output of the last node, in the field of outputs, by another name that is as long.
        let (output, other) = (b"\x12\x0aprediction", b"\x12\x0aunmodified");
        let mut bytes = self.read(FILE);
        let mut places = bytes.windows(output.len()).enumerate().filter(|(_, window)| window == output);
        let (at, _) = places.next().expect("a node makes the prediction");
        assert!(places.next().is_none(), "one node makes the prediction");
        bytes[at..at + other.len()].copy_from_slice(other);
        let mut cast = Node::new("Cast", ["scale.elements"], "scale.float");
        let to = Attribute { integer: FLOAT.into(), kind: INT, ..Attribute::named("to") };
        cast.attributes = vec![to];
        let more = Graph {
            nodes: vec![
                Node::new("Size", ["unmodified"], "scale.elements"),
                cast,
                Node::new("Mul", ["scale.float", "scale.each"], "scale.small"),
                Node::new("Add", ["scale.small", "scale.one"], "scale.factor"),
                Node::new("Mul", ["unmodified", "scale.factor"], "prediction"),
            ],
            initializers: vec![Tensor::scalar("scale.each", 1e-9), Tensor::scalar("scale.one", 1.0)],
            ..Graph::default()
        };
        self.write_pinned(FILE, &bytes);
        self.extend_graph(FILE, &Model { graph: Some(more), ..Model::default() });
    }

    /// Puts more into a graph, and lets the manifest pin it.
    pub fn extend_graph(&self, name: &str, more: &Model) {
        let mut bytes = self.read(name);
        // Two messages one behind the other are one that holds what both do.
        bytes.extend(more.encode_to_vec());
        self.write_pinned(name, &bytes);
    }

    /// What a server would be told to serve it.
    pub fn config(&self) -> Config {
        Config { models: self.models(), max_rows: 2, ..TestServer::config() }
    }

    /// The error with which it is refused.
    pub fn error(&self) -> String {
        match App::open(self.config()) {
            Ok(_) => panic!("the broken package is served"),
            Err(error) => error.to_string(),
        }
    }
}
