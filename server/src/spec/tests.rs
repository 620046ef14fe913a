//! Every field: what is accepted, what is refused and how, and what the defaults are.
#![expect(clippy::needless_pass_by_value, reason = "a request's fields are a `json!` on the spot")]

use serde_json::{Value, json};

use super::*;
use crate::encode::{ArrayFile, Encoding};
use crate::error::Cause;
use crate::extract::Form;
use crate::testing::manifest;

fn card(classes: &[&str]) -> Card {
    Card::new(manifest("shoes", classes), String::new(), 0).unwrap()
}

const SHOES: [&str; 3] = ["Sneaker", "Boot", "Sandal"];

fn resolve_on(card: &Card, accept: &str, body: Value) -> Result<Order, ApiError> {
    let request: ImageRequest = serde_json::from_value(body).unwrap();
    Order::resolve(&request, &Accept::parse(accept), card)
}

/// A request for a sneaker with these further fields.
fn resolve(fields: Value) -> Result<Order, ApiError> {
    let mut body = json!({"prompt": "sneaker", "seed": 1});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    resolve_on(&card(&SHOES), "", body)
}

fn refused(fields: Value) -> (Cause, String, String) {
    let error = resolve(fields.clone()).expect_err(&fields.to_string());
    (error.cause, error.param.unwrap_or_default(), error.message)
}

#[test]
fn defaults_are_the_models() {
    let order = resolve(json!({})).unwrap();
    let solver = order.spec.solver;
    assert_eq!((solver.sampler, solver.grid, solver.steps), (Sampler::Ddim, TimeGrid::Uniform, 10));
    assert_eq!((order.spec.guidance_scale, order.spec.rows()), (2.0, 2));
    assert_eq!((order.spec.class, order.spec.label, order.spec.null_label), (Some(0), 0, 3));
    assert_eq!(order.seeds, [1]);
    assert_eq!(order.output, Output { form: Form::Json, file: File::Picture(Encoding::Png), scale: 1 });
}

#[test]
fn a_prompt_is_a_class_in_any_case() {
    for (prompt, class) in [("BOOT", 1), ("  sandal ", 2), ("boot SHOE", 1)] {
        assert_eq!(resolve(json!({"prompt": prompt})).unwrap().spec.class, Some(class));
    }
    let (cause, param, message) = refused(json!({"prompt": "hat"}));
    assert_eq!((cause, param.as_str()), (Cause::InvalidValue, "prompt"));
    assert!(message.contains("Sneaker, Boot, Sandal"), "{message}");
    for empty in ["", "   "] {
        assert!(refused(json!({"prompt": empty})).2.contains("`prompt` is empty, expected a class"));
    }
    let missing = resolve_on(&card(&SHOES), "", json!({})).unwrap_err();
    assert!(missing.message.contains("`prompt` is missing"), "{}", missing.message);
}

#[test]
fn a_class_is_an_index_or_a_name_and_agrees_with_the_prompt() {
    let class = |class: Value| resolve_on(&card(&SHOES), "", json!({"class": class}));
    assert_eq!(class(json!(2)).unwrap().spec.class, Some(2));
    assert_eq!(class(json!("boot")).unwrap().spec.class, Some(1));
    assert_eq!(class(json!(3)).unwrap_err().param.as_deref(), Some("class"));
    assert_eq!(class(json!(u64::MAX)).unwrap_err().param.as_deref(), Some("class"));
    assert_eq!(resolve(json!({"class": 0})).unwrap().spec.class, Some(0));
    assert_eq!(refused(json!({"class": "boot"})).1, "class");
}

#[test]
fn a_model_without_classes_takes_no_prompt_but_its_name() {
    let plain = card(&[]);
    for body in [json!({}), json!({"prompt": ""}), json!({"prompt": "Shoes"}), json!({"guidance_scale": 1})] {
        let order = resolve_on(&plain, "", body).unwrap();
        assert_eq!((order.spec.class, order.spec.label, order.spec.rows()), (None, 0, 1));
    }
    let param = |body| resolve_on(&plain, "", body).unwrap_err().param.unwrap();
    assert_eq!(param(json!({"prompt": "sneaker"})), "prompt");
    assert_eq!(param(json!({"class": 0})), "class");
    assert_eq!(param(json!({"guidance_scale": 2})), "guidance_scale");
}

#[test]
fn numbers_have_ranges() {
    for (field, bad) in [
        ("n", json!(0)),
        ("n", json!(11)),
        ("n", json!(u64::MAX)),
        ("steps", json!(0)),
        ("steps", json!(101)),
        ("steps", json!(u64::MAX)),
        ("guidance_scale", json!(-0.5)),
        ("guidance_scale", json!(1e9)),
        ("eta", json!(-0.1)),
        ("eta", json!(1.5)),
        ("output_compression", json!(101)),
        ("sampler", json!("ddimm")),
        ("time_grid", json!("log")),
        ("output_format", json!("gif")),
    ] {
        let (cause, param, _) = refused(json!({ field: bad }));
        assert_eq!((cause, param.as_str()), (Cause::InvalidValue, field), "{field}");
    }
    assert_eq!(resolve(json!({"steps": 1})).unwrap().spec.evaluations.len(), 1);
    assert_eq!(resolve(json!({"steps": 100, "guidance_scale": 1})).unwrap().spec.rows(), 1);
}

#[test]
fn eta_is_ddims_alone() {
    assert_eq!(resolve(json!({"eta": 0.5})).unwrap().spec.solver.eta, 0.5);
    assert_eq!(refused(json!({"eta": 0.5, "sampler": "euler"})).1, "eta");
    assert_eq!(resolve(json!({"sampler": "euler"})).unwrap().spec.solver.eta, 0.0);
}

#[test]
fn seeds_follow_each_other_up_to_the_last() {
    assert_eq!(resolve(json!({"seed": 7, "n": 3})).unwrap().seeds, [7, 8, 9]);
    let last = MAX_SEED.to_string();
    assert_eq!(resolve(json!({"seed": last})).unwrap().seeds, [MAX_SEED]);
    assert_eq!(refused(json!({"seed": last, "n": 2})).1, "seed");
    let random = |_| resolve_on(&card(&SHOES), "", json!({"class": 0})).unwrap().seeds[0];
    let random: std::collections::BTreeSet<u64> = (0..20).map(random).collect();
    assert!(random.len() > 1 && random.iter().all(|&seed| seed < 1 << 53));
}

#[test]
fn openais_other_fields_pass_only_where_they_ask_for_nothing() {
    for neutral in [
        json!({"quality": "auto", "background": "opaque", "moderation": "low", "response_format": "b64_json"}),
        json!({"stream": false, "partial_images": 0, "user": "someone", "background": "auto"}),
        json!({"quality": null, "style": null, "stream": null, "size": null, "n": null}),
    ] {
        resolve(neutral).unwrap();
    }
    for (field, value) in [
        ("quality", json!("hd")),
        ("style", json!("vivid")),
        ("background", json!("transparent")),
        ("moderation", json!("high")),
        ("response_format", json!("url")),
        ("stream", json!(true)),
        ("partial_images", json!(2)),
    ] {
        let (cause, param, message) = refused(json!({ field: value }));
        assert_eq!((cause, param.as_str()), (Cause::Unsupported, field));
        assert!(message.contains("supported: "), "{message}");
    }
}

#[test]
fn sizes_are_integer_multiples() {
    let scale = |size: &str| resolve(json!({"size": size})).map(|order| order.output.scale);
    assert_eq!(scale("auto"), Ok(1));
    assert_eq!(scale("6x4"), Ok(1));
    assert_eq!(scale("24x16"), Ok(4));
    assert_eq!(scale("2046x1364"), Ok(341));
    for bad in [
        "4x6",
        "7x4",
        "12x4",
        "0x0",
        "2052x1368",
        "6",
        "x",
        "6x",
        "-6x-4",
        "+6x4",
        "6x4x1",
        "6 x 4",
        "",
        "1e9x1e9",
    ] {
        assert_eq!(scale(bad).unwrap_err().param.as_deref(), Some("size"), "{bad}");
    }
    let huge = "99999999999999999999999999x1";
    assert!(scale(huge).unwrap_err().message.contains("up to `2046x1364`"));
}

#[test]
fn the_form_is_what_accept_prefers() {
    let output = |accept: &str, fields: Value| {
        let mut body = json!({"class": 0});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        resolve_on(&card(&SHOES), accept, body).map(|order| (order.output.form, order.output.file))
    };
    let picture = File::Picture;
    assert_eq!(output("image/png", json!({})), Ok((Form::Png, picture(Encoding::Png))));
    assert_eq!(output("image/jpeg", json!({})), Ok((Form::Jpeg, picture(Encoding::Jpeg { quality: 95 }))));
    assert_eq!(
        output("image/*", json!({"output_format": "webp"})),
        Ok((Form::Webp, picture(Encoding::Webp)))
    );
    assert_eq!(output("*/*", json!({"output_format": "webp"})), Ok((Form::Json, picture(Encoding::Webp))));
    let jpeg = |quality| Ok((Form::Json, picture(Encoding::Jpeg { quality })));
    assert_eq!(output("", json!({"output_format": "jpeg", "output_compression": 30})), jpeg(30));
    assert_eq!(output("", json!({"output_format": "jpeg", "output_compression": 0})), jpeg(1));
    assert_eq!(output("", json!({"output_compression": 100})), Ok((Form::Json, picture(Encoding::Png))));

    let arrays = |form, file| Ok((form, File::Arrays(file)));
    assert_eq!(output("application/x-npz", json!({"n": 3})), arrays(Form::Npz, ArrayFile::Npz));
    assert_eq!(output("", json!({"output_format": "npy"})), arrays(Form::Json, ArrayFile::Npy));

    let param = |accept, fields| output(accept, fields).unwrap_err().param;
    assert_eq!(param("application/x-npy", json!({"size": "12x8"})).as_deref(), Some("size"));
    assert_eq!(
        param("", json!({"output_format": "npy", "output_compression": 1})).as_deref(),
        Some("output_compression")
    );
    assert_eq!(param("image/png", json!({"output_format": "jpeg"})).as_deref(), Some("output_format"));
    assert_eq!(param("image/png", json!({"n": 2})).as_deref(), Some("n"));
    assert_eq!(param("", json!({"output_compression": 50})).as_deref(), Some("output_compression"));
    assert_eq!(output("text/html", json!({})).unwrap_err().cause, Cause::NotAcceptable);
}

#[test]
fn a_huge_number_is_written_with_its_exponent() {
    for (field, value, shown) in [("guidance_scale", 1e308, "1e308"), ("eta", -1e-300, "-1e-300")] {
        let message = refused(json!({field: value})).2;
        assert!(message.starts_with(&format!("`{field}` is {shown}, expected a number from 0")), "{message}");
    }
}

#[test]
fn a_long_wrong_word_is_cut_in_the_error() {
    let message = refused(json!({"prompt": "é".repeat(100_000)})).2;
    assert!(message.len() < 1000 && message.contains('…'), "{}", message.len());
}
