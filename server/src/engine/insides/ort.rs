//! The insides in ONNX Runtime: one session a graph, made when it is first asked for. What it is made of was verified and
//! read when the model was loaded: whoever replaces the package meanwhile does not change what this model looks like.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ::ort::session::{OutputSelector, RunOptions, Session};
use ::ort::value::TensorRef;
use windowpane_diffusion::manifest::Graph;

use super::proof::Proof;
use super::{Inside, Insides, Look, Wanted};
use crate::engine::check::CheckError;
use crate::engine::ort::{OrtDenoiser, SessionError, Source, ports_match, runtime_error};
use crate::engine::{EngineError, Provider, package};
use crate::model::Card;

/// The graphs of a package, open or not.
#[derive(Debug)]
pub struct OrtInsides {
    card: Arc<Card>,
    golden: Arc<[u8]>,
    graphs: BTreeMap<Inside, Held>,
}

/// A graph, and its session where it is open.
#[derive(Debug)]
struct Held {
    graph: Graph,
    source: Source,
    session: Option<Session>,
}

// === impl OrtInsides ===

impl OrtInsides {
    /// Those that the package in `folder` has for this provider. They share the weights with the network, and lie under
    /// the same proof, the bytes of `golden`.
    pub fn read(
        denoiser: &OrtDenoiser,
        folder: &Path,
        card: &Arc<Card>,
        provider: Provider,
        golden: Vec<u8>,
    ) -> Result<Self, SessionError> {
        let manifest = &card.manifest;
        let mut graphs = BTreeMap::new();
        for inside in Inside::ALL {
            let Some(graph) = inside.graph(manifest, provider) else { continue };
            let bytes = package::read(folder, manifest, &graph.file).map_err(|error| SessionError::Open {
                file: graph.file.clone(),
                provider,
                reason: error.to_string(),
            })?;
            let source = denoiser.source().of(bytes);
            graphs.insert(inside, Held { graph: graph.clone(), source, session: None });
        }
        Ok(Self { card: Arc::clone(card), golden: golden.into(), graphs })
    }

    fn held(&mut self, inside: Inside) -> Result<&mut Held, EngineError> {
        self.graphs.get_mut(&inside).ok_or(EngineError::Missing(inside.as_str()))
    }
}

impl Insides for OrtInsides {
    fn open(&mut self, inside: Inside) -> Result<(), EngineError> {
        let (card, golden) = (Arc::clone(&self.card), Arc::clone(&self.golden));
        let held = self.held(inside)?;
        if held.session.is_some() {
            return Ok(());
        }
        let unopened = |reason: String| EngineError::Unopened { file: held.graph.file.clone(), reason };
        let session = held.source.session().map_err(|error| unopened(error.to_string()))?;
        ports_match(&session, &held.graph).map_err(|error| unopened(error.to_string()))?;
        let proofs =
            Proof::all(&card, inside, &held.graph, &golden).map_err(|error| unopened(error.to_string()))?;
        held.session = Some(session);
        let file = held.graph.file.clone();
        let proven = proofs.iter().try_for_each(|proof| proof.replay(self).map(drop));
        proven.map_err(|error: CheckError| {
            self.close(inside);
            EngineError::Unopened { file, reason: error.to_string() }
        })
    }

    fn close(&mut self, inside: Inside) {
        if let Some(held) = self.graphs.get_mut(&inside) {
            held.session = None;
        }
    }

    fn look(&mut self, look: &Look) -> Result<Vec<Vec<f32>>, EngineError> {
        let error = |error: ::ort::Error| runtime_error(&error);
        let held = self.held(look.inside)?;
        let closed = EngineError::Unopened { file: held.graph.file.clone(), reason: "not open".to_owned() };
        let session = held.session.as_mut().ok_or(closed)?;
        let (batch, [c, h, w]) = (&look.batch, look.batch.shape);
        let n = batch.rows();
        let x = TensorRef::from_array_view(([n, c, h, w], &batch.x[..])).map_err(error)?;
        let t = TensorRef::from_array_view(([n], &batch.t[..])).map_err(error)?;
        let y = TensorRef::from_array_view(([n], &batch.y[..])).map_err(error)?;
        let mut inputs = ::ort::inputs!["x" => x, "t" => t, "y" => y];
        if look.inside != Inside::Attention {
            let shape = [look.vectors(), c, h, w];
            let vectors = TensorRef::from_array_view((shape, &look.vectors[..])).map_err(error)?;
            inputs.push(("vectors".into(), vectors.into()));
        }
        let names = look.wanted.iter().map(|wanted| wanted.output.clone());
        let selected = names.fold(OutputSelector::no_default(), OutputSelector::with);
        let options = RunOptions::new().map_err(error)?.with_outputs(selected);
        let outputs = session.run_with_options(inputs, &options).map_err(error)?;
        let part = |wanted: &Wanted| {
            let spec = held.graph.outputs.iter().find(|spec| spec.name == wanted.output);
            let missing = EngineError::OutputSize { got: 0, expected: 1 };
            let (spec, output) = spec.zip(outputs.get(&wanted.output)).ok_or(missing)?;
            let (_, values) = output.try_extract_tensor::<f32>().map_err(error)?;
            wanted.of(values, look.elements(spec))
        };
        look.wanted.iter().map(part).collect()
    }
}
