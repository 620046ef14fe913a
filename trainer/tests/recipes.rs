//! Recipes from outside: those of the repository are whole, classes are the images' own, and what is wrong in one is named.

use std::path::{Path, PathBuf};

use windowpane_diffusion::manifest::Class;
use windowpane_trainer::config::{Recipe, TrainConfig};
use windowpane_trainer::data;

const RECIPE: &str = include_str!("small.toml");

const ORDER: &str =
    "recipe: the images call label 0 \"ground\", expected a word of `classes[0]`, which is \"curtain\"";

/// A file of this crate.
fn own(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[test]
fn classes_may_be_called_otherwise_where_it_is_said() {
    for change in [
        &(|r: &mut Recipe| r.classes[0] = Class { name: "land".into(), aliases: vec!["GROUND ".into()] })
            as &dyn Fn(&mut Recipe),
        &|r| {
            r.classes[0].name = "land".into();
            r.data.classes = vec!["land".into(), "curtain".into()];
        },
        &|r| (r.classes, r.sample.guidance_scale) = (Vec::new(), 1.0),
    ] {
        let mut recipe = Recipe::read(&own("tests/small.toml")).unwrap();
        change(&mut recipe);
        let images = data::load(&recipe.data).unwrap();
        TrainConfig::new(recipe, &images).unwrap().meta(0);
    }
}

#[test]
fn the_recipe_of_fashion_knows_its_classes_as_the_data_set_calls_them() {
    let path = own("recipes/fashion-dit.toml");
    // As the card of the Parquet files has them.
    let mut names = [
        "T - shirt / top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ]
    .map(str::to_owned);
    let resolve = |names: &[String]| {
        let images =
            data::ImageSet::new((1, 28, 28), vec![0; 10 * 28 * 28], (0..10).collect(), names.to_vec());
        TrainConfig::new(Recipe::read(&path).unwrap(), &images)
    };
    resolve(&names).unwrap();
    names.swap(4, 6);
    assert!(resolve(&names).unwrap_err().to_string().contains("the images call label 4 \"Shirt\""));
}

#[test]
fn every_recipe_of_the_repository_says_what_its_model_is() {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(own("recipes")).unwrap() {
        let path = entry.unwrap().path();
        let config = Recipe::read(&path).unwrap().for_size_told().unwrap();
        let name = config.recipe.name.clone();
        assert_eq!(path.file_stem().unwrap().to_str(), Some(name.as_str()));
        names.push((name, config));
    }
    let of = |name: &str| &names.iter().find(|(known, _)| known == name).unwrap().1;
    // The twins differ in their windows and in what is said of them.
    let (local, global) = (of("faces-dit"), of("faces-dit-global"));
    assert_eq!(local.model.parameters(), global.model.parameters());
    let told = |config: &TrainConfig| {
        let recipe = &config.recipe;
        (recipe.data.clone(), recipe.diffusion, recipe.train, recipe.optim, recipe.sample)
    };
    assert_eq!(told(local), told(global));
    assert_ne!(local.model.windows, global.model.windows);
}

#[test]
fn unknown_keys_and_bad_values_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("recipe.toml");
    for (from, to, says) in [
        ("label_drop = 0.5", "label_dorp = 0.5", "line 24: unknown field `label_dorp`"),
        ("name = \"small\"", "name = \"../../x\"", "`name` is \"../../x\", expected 1 to 64"),
        ("name = \"small\"", "name = \".x\"", "`name` is \".x\""),
        ("name = \"small\"", "name = \"\"", "`name` is \"\""),
        ("lr = 1e-3", "lr = nan", "optim.lr"),
        ("lr = 1e-3", "lr = 1e300", "`optim.lr` is 1e300, expected 0 to 10"),
        ("lr = 1e-3", "epsilon = 0.0", "`optim.epsilon` is 0, expected 1e-30 to 1"),
        ("label_drop = 0.5", "label_drop = 1e30", "`train.label_drop` is 1e30, expected"),
        ("classes = 2 }", "classes = 2, alpha = 1e300 }", "`data.toy.alpha` is 1e300, expected"),
        ("batch = 4", "batch = 0", "train.batch"),
        ("hidden = 16", "hidden = 18", "config.hidden"),
        ("windows = \"3\"", "windows = \"4\"", "window"),
        ("DiT-Tiny/4", "DiT-Tiny/5", "DiT-XS/1"),
        ("variance = \"fixed_small\"", "variance = \"learned_range\"", "learn_sigma"),
        ("eta = 0.0", "eta = 1.5", "recipe: `sample.eta` is 1.5"),
        ("guidance_scale = 2.0", "guidance_scale = -1.0", "recipe: `sample.guidance_scale` is -1"),
        ("steps = 3\n", "steps = 0\n", "recipe: `sample.steps` is 0"),
        ("steps = 100 }", "steps = 0 }", "recipe: `diffusion.schedule.steps` is 0"),
        ("licence = \"MIT\"", "licence = \" \"", "recipe: `licence` is blank"),
        ("attribution = \"made up\"", "attribution = \"\"", "recipe: `attribution` is blank"),
        (
            "{ name = \"ground\" }",
            "{ name = \"ground\", aliases = [\"Curtain\"] }",
            "recipe: `classes[1].name` is \"curtain\", expected a word that classes[0].aliases[0] does not mean",
        ),
        (
            "{ name = \"ground\" }, { name = \"curtain\" }",
            "{ name = \"curtain\" }, { name = \"ground\" }",
            ORDER,
        ),
        ("{ name = \"ground\" }, ", "", "recipe: the images call label"),
        (
            "{ name = \"curtain\" }]",
            "{ name = \"curtain\" }, { name = \"blob\" }]",
            "recipe: 3 classes, but the images have 2",
        ),
    ] {
        let text = RECIPE.replace(from, to);
        assert_ne!(text, RECIPE);
        std::fs::write(&path, text).unwrap();
        let result = Recipe::read(&path).and_then(|recipe| {
            let images = data::load(&recipe.data)?;
            TrainConfig::new(recipe, &images)
        });
        let message = result.unwrap_err().to_string();
        assert!(message.contains(says), "{to}: {message}");
    }
}
