//! The library by its name, and sessions of the real ONNX Runtime that are built anew.

use super::*;
use crate::model::Card;
use crate::testing::{self, golden, runtime};

#[test]
fn the_version_is_in_the_name_or_else_the_commit_in_the_build() {
    let info = "ORT Build Info: git-branch=HEAD, git-commit-id=31f46a0b1c, build type=Release";
    assert_eq!(version(Path::new("/a/libonnxruntime.so.1.30.0"), info), "1.30.0");
    assert_eq!(version(Path::new("/a/libonnxruntime.so"), info), "commit 31f46a0b1c");
    assert_eq!(version(Path::new("/a/libonnxruntime.so"), ""), "unknown");
}

#[test]
fn a_file_that_is_no_library_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("libonnxruntime.so");
    std::fs::write(&file, b"not a library").unwrap();
    match Runtime::get(&file, 1) {
        Err(RuntimeError::Load { library, .. }) => assert_eq!(library, file),
        // Another test of this process has loaded the real one, which then stays.
        Err(RuntimeError::Other { asked, .. }) => assert_eq!(asked, file),
        other => panic!("a text file was loaded: {other:?}"),
    }
}

/// The testing package's network, `prediction = x / 2`, and its golden.
fn denoiser(folder: &Path) -> (OrtDenoiser, Vec<Case>) {
    let folder = testing::package(folder, "shoes");
    let manifest = package::Package::open(&folder).unwrap().manifest;
    let graph = manifest.graphs[0].clone();
    let engine = OrtDenoiser::open(runtime(), &folder, &manifest, &graph, Provider::Cpu).unwrap();
    let card = Card::new(manifest, String::new(), 0).unwrap();
    (engine, Case::all(&card, &graph, &golden(|x| 0.5 * x)).unwrap())
}

/// Five rows, and what the engine says of them.
fn ask(engine: &mut OrtDenoiser) -> (StepBatch, Vec<f32>) {
    let (mut batch, mut prediction) = (StepBatch::new([1, 4, 6]), Vec::new());
    (0..5).for_each(|i| batch.push(&[i as f32 + 0.25; 24], i as f32, i));
    engine.denoise(&batch, &mut prediction).unwrap();
    (batch, prediction)
}

#[test]
fn a_session_that_is_built_anew_is_the_same_network() {
    let folder = tempfile::tempdir().unwrap();
    let (mut engine, cases) = denoiser(folder.path());
    engine.prove_by(cases.into_iter().min_by_key(Case::rows));
    assert_eq!(engine.proof.as_ref().map(|case| case.rows()), Some(1), "the cheapest case");
    engine.split_at(2);
    let (batch, before) = ask(&mut engine);
    assert_eq!(before, batch.x.iter().map(|x| 0.5 * x).collect::<Vec<_>>());
    // What it is made of was read when it was opened: the files may be gone.
    std::fs::remove_dir_all(folder.path().join("shoes")).unwrap();
    for _ in 0..2 {
        engine.rebuild().unwrap();
        assert_eq!((ask(&mut engine).1, engine.piece), (before.clone(), 2));
    }
}

#[test]
fn every_size_keeps_its_buffer() {
    let folder = tempfile::tempdir().unwrap();
    let (mut engine, _) = denoiser(folder.path());
    let mut prediction = Vec::new();
    for _ in 0..2 {
        for rows in 1..=32 {
            let mut batch = StepBatch::new([1, 4, 6]);
            (0..rows).for_each(|_| batch.push(&[0.5; 24], 1.0, 0));
            engine.denoise(&batch, &mut prediction).unwrap();
        }
    }
    assert!(engine.buffers.keys().copied().eq(1..=32), "{:?}", engine.buffers.keys());
    engine.split_at(8);
    assert!(engine.buffers.is_empty(), "those of the measurement's sizes");
}

#[test]
fn a_session_that_does_not_match_the_golden_never_serves() {
    let folder = tempfile::tempdir().unwrap();
    let (mut engine, cases) = denoiser(folder.path());
    let before = ask(&mut engine).1;
    engine.prove_by(cases.into_iter().next());
    // As if memory had been written over: the session that is made of it is another network.
    engine.source.weights = 0.51_f32.to_le_bytes().to_vec().into();
    let error = engine.rebuild().unwrap_err();
    assert!(
        matches!(&error, EngineError::Unproven(why) if why.contains("golden case `a` differs")),
        "{error}"
    );
    assert_eq!(ask(&mut engine).1, before, "the old session goes on");
    // A graph that does not even open.
    engine.source.graph = b"no graph".to_vec().into();
    assert!(matches!(engine.rebuild(), Err(EngineError::Runtime(_))));
    assert_eq!(ask(&mut engine).1, before);
    // And without a proof the other network would have served.
    engine.source.graph = std::fs::read(folder.path().join("shoes").join(testing::GRAPH)).unwrap().into();
    engine.prove_by(None);
    engine.rebuild().unwrap();
    assert_ne!(ask(&mut engine).1, before);
}

/// As ONNX Runtime 1.30 and what it calls say it.
#[test]
fn what_lacks_memory_is_known_by_its_words() {
    for words in [
        "Non-zero status code returned while running Gemm node. Failed to allocate memory for requested buffer of size 37748736",
        "std::bad_alloc",
        "CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc((void**)&p, size);",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
    ] {
        assert_eq!(of_words(words.to_owned()), EngineError::OutOfMemory(words.to_owned()));
    }
    let other = "Got invalid dimensions for input: x";
    assert_eq!(of_words(other.to_owned()), EngineError::Runtime(other.to_owned()));
}
