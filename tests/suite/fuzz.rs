//! All that fuzzing has found, again: every file under `fuzz/corpus`, and every input that once broke something, under
//! `fuzz/crashes`.

use std::collections::BTreeSet;
use std::fs;

use suite::fuzz::TARGETS;
use suite::root;

#[test]
fn what_fuzzing_found_breaks_nothing() {
    for (name, target) in TARGETS {
        let mut seeds = 0;
        for folder in ["corpus", "crashes"] {
            let folder = root().join("fuzz").join(folder).join(name);
            // Nothing may have crashed yet; a corpus there must be.
            let Ok(files) = fs::read_dir(&folder) else {
                assert!(folder.ends_with(format!("crashes/{name}")), "{} is missing", folder.display());
                continue;
            };
            for file in files {
                let path = file.unwrap().path();
                let bytes = fs::read(&path).unwrap();
                println!("{}", path.display());
                target(&bytes);
                seeds += 1;
            }
        }
        assert!(seeds > 0, "`{name}` has no corpus");
    }
}

#[test]
fn every_target_is_built_by_the_fuzzer() {
    let listed: BTreeSet<String> = fs::read_to_string(root().join("fuzz/Cargo.toml"))
        .unwrap()
        .lines()
        .filter_map(|line| Some(line.strip_prefix("path = \"targets/")?.strip_suffix(".rs\"")?.to_owned()))
        .collect();
    let known: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(listed, known);
}
