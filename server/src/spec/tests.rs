//! Every field: what is accepted, what is refused and how, and what the defaults are.
#![expect(clippy::needless_pass_by_value, reason = "a request's fields are a `json!` on the spot")]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::*;
use crate::encode::{ArrayFile, Colour, Encoding};
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

/// A `.npy` of f32 with these sides, in base64.
fn npy(sides: &str, values: &[f32]) -> String {
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({sides}), }}\n");
    let length = (header.len() as u16).to_le_bytes();
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    STANDARD.encode([b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), &data].concat())
}

/// A grey PNG of 6×4 pixels, the model's size, in base64; and its values.
fn picture() -> (String, Vec<f32>) {
    let pixels: Vec<u8> = (0..24).map(|i| i * 10).collect();
    let picture = crate::encode::Picture { width: 6, height: 4, colour: Colour::Grey, pixels };
    let values = crate::decode::picture::planar(&picture, [-1.0, 1.0]);
    (STANDARD.encode(picture.encode(Encoding::Png, None).unwrap()), values)
}

#[test]
fn an_uploaded_x_t_is_one_for_all_or_one_for_each() {
    let values: Vec<f32> = (0..48).map(|i| i as f32 / 10.0).collect();
    let x = |fields: Value, image: usize| {
        let order = resolve(fields).unwrap();
        order.start.x(image, order.seeds[image], &order.spec)
    };
    assert_eq!(x(json!({}), 0), None);
    let one = npy("1, 4, 6", &values[..24]);
    assert_eq!(x(json!({"x_t": one, "n": 3}), 2).unwrap(), values[..24]);
    assert_eq!(x(json!({"x_t": npy("1, 1, 4, 6", &values[..24])}), 0).unwrap(), values[..24]);
    assert_eq!(x(json!({"x_t": npy("2, 1, 4, 6", &values), "n": 2}), 1).unwrap(), values[24..]);

    for (fields, said) in [
        (json!({"x_t": "%"}), "base64"),
        (json!({"x_t": ""}), "does not begin as a .npy"),
        (json!({"x_t": npy("4, 6", &values[..24])}), "its shape is [4, 6]"),
        (json!({"x_t": npy("2, 1, 4, 6", &values)}), "more than 24 values"),
        (json!({"x_t": npy("3, 1, 4, 6", &[0.0; 72]), "n": 2}), "more than 48 values"),
        (json!({"x_t": npy("1, 4, 6", &[1e4; 24])}), "value 0 is beyond 1000"),
        (json!({"x_t": npy("1, 4, 6", &[f32::NAN; 24])}), "value 0 is not a finite number"),
    ] {
        let (cause, param, message) = refused(fields);
        assert_eq!((cause, param.as_str()), (Cause::InvalidValue, "x_t"));
        assert!(message.contains(said), "{message}");
    }
}

#[test]
fn a_picture_is_made_noisy_at_the_level_where_it_begins() {
    let (file, x0) = picture();
    for (sampler, strength, first) in
        [("ddim", 0.3, 7), ("heun", 0.5, 5), ("dpmpp_2m", 0.29, 8), ("ddpm", 1.0, 0)]
    {
        let order = resolve(json!({"init_image": file, "strength": strength, "sampler": sampler})).unwrap();
        let begun = order.spec.evaluations[0];
        assert_eq!((begun.step, order.spec.steps_taken()), (first, 10 - first), "{sampler}");
        assert_eq!((begun.x_prev, begun.x0_prev), (0.0, 0.0), "{sampler} looks back to nothing");
        let x = order.start.x(0, 1, &order.spec).unwrap();
        let noise = windowpane_diffusion::noise::normal(1, windowpane_diffusion::noise::INITIAL, 24);
        for i in 0..24 {
            let expected = begun.alpha * f64::from(x0[i]) + begun.sigma * f64::from(noise[i]);
            assert!((f64::from(x[i]) - expected).abs() < 1e-6);
        }
    }
    let default = resolve(json!({"init_image": file})).unwrap();
    assert_eq!(default.spec.steps_taken(), 8);

    for (fields, param) in [
        (json!({"init_image": file, "strength": 0.0}), "strength"),
        (json!({"init_image": file, "strength": 0.09}), "strength"),
        (json!({"init_image": file, "strength": 1.5}), "strength"),
        (json!({"strength": 0.5}), "strength"),
        (json!({"init_image": file, "x_t": npy("1, 4, 6", &[0.0; 24])}), "init_image"),
        (json!({"init_image": "iVBORw0KGgo="}), "init_image"),
        (json!({"init_image": file, "steps": 0}), "steps"),
    ] {
        assert_eq!(refused(fields.clone()).1, param, "{fields}");
    }
}

#[test]
fn a_trajectory_keeps_the_end_of_every_kth_step() {
    let watched = |fields: Value| resolve(fields).unwrap().watch;
    assert_eq!(*watched(json!({"trajectory": 1, "steps": 3})).evaluations, [0, 1]);
    assert_eq!(*watched(json!({"trajectory": 4})).evaluations, [3, 7]);
    assert_eq!(watched(json!({"trajectory": 10})).frames(), 1);
    // Two calls a step, but for the last.
    assert_eq!(*watched(json!({"trajectory": 2, "steps": 5, "sampler": "heun"})).evaluations, [3, 7]);
    let late = json!({"trajectory": 2, "init_image": picture().0, "strength": 0.5});
    assert_eq!(*watched(late).evaluations, [1, 3]);
    let order = resolve(json!({"trajectory": 5, "size": "12x8"})).unwrap();
    assert_eq!(order.picture_size(&card(&SHOES)), [24, 8]);
    assert_eq!(watched(json!({})).frames(), 0);

    for (fields, said) in [
        (json!({"trajectory": 0}), "1 to 10"),
        (json!({"trajectory": 11}), "1 to 10"),
        (json!({"trajectory": 1, "stream": true}), "not streamed"),
        (json!({"trajectory": 1, "steps": 100, "size": "1200x800"}), "13 fit into a strip"),
    ] {
        let (_, param, message) = refused(fields);
        assert!(param == "trajectory" && message.contains(said), "{message}");
    }
}

#[test]
fn a_stream_has_events_and_previews() {
    let order = resolve(json!({"stream": true, "partial_images": 2, "n": 2})).unwrap();
    assert_eq!((order.output.form, &*order.watch.evaluations), (Form::Events, &[2_usize, 5][..]));
    assert_eq!(resolve(json!({"stream": true})).unwrap().watch.evaluations.len(), 0);
    assert_eq!(resolve(json!({"stream": false, "partial_images": 0})).unwrap().output.form, Form::Json);
    for (fields, field) in [
        (json!({"partial_images": 1}), "partial_images"),
        (json!({"stream": true, "partial_images": 4}), "partial_images"),
        (json!({"stream": true, "output_format": "npy"}), "output_format"),
    ] {
        assert_eq!(refused(fields).1, field);
    }
    let body = json!({"prompt": "sneaker", "stream": true});
    assert_eq!(
        resolve_on(&card(&SHOES), "text/event-stream", body.clone()).unwrap().output.form,
        Form::Events
    );
    assert_eq!(resolve_on(&card(&SHOES), "image/png", body).unwrap_err().cause, Cause::NotAcceptable);
}
