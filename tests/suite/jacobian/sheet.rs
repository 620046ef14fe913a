//! The Jacobian as a sheet of pictures: every panel, pixel by pixel, is the direction that the arrays of the same look hold.

use image::RgbImage;
use reqwest::header::ACCEPT;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use suite::{TestServer, decode};

use super::{difference, file, floats, look, numbers, product, request, ring};

/// Pixels of a panel along its side; what there is between panels and around them, and for the words above each.
const PANEL: usize = 96;
const GAP: usize = 12;
const LINE: usize = 14;

/// Pixels of a panel for one of models/tiny.
const ZOOM: usize = PANEL / 32;

/// From the least to the most, by the value that is farthest from nothing: dark blue, blue, white, red, dark red.
const COLOURS: [[f64; 3]; 5] = [
    [5.0, 48.0, 97.0],
    [103.0, 169.0, 207.0],
    [255.0, 255.0, 255.0],
    [239.0, 138.0, 98.0],
    [103.0, 0.0, 31.0],
];

/// How far a pixel of a panel is, at most, from the colour that this direction has there.
fn off(sheet: &RgbImage, panel: usize, direction: &[f32]) -> f64 {
    let most = direction.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    let mut worst = 0.0_f64;
    for (place, &value) in direction.iter().enumerate() {
        let part = 2.0 * (f64::from(value / most) + 1.0);
        let low = (part as usize).min(3);
        let (x, y) = (place % 32 * ZOOM + ZOOM / 2, place / 32 * ZOOM + ZOOM / 2);
        let pixel = sheet.get_pixel((GAP + panel * (PANEL + GAP) + x) as u32, (GAP + LINE + y) as u32);
        for (c, &drawn) in pixel.0.iter().enumerate() {
            let expected = COLOURS[low][c] + (part - low as f64) * (COLOURS[low + 1][c] - COLOURS[low][c]);
            worst = worst.max((f64::from(drawn) - expected).abs());
        }
    }
    worst
}

#[test]
fn a_sheet_shows_the_directions_that_were_asked_for() {
    let server = TestServer::shared();
    let body = ring(json!({"k": 3, "show": [0, 2], "vectors": "left", "output_format": "png"}));
    let answer = server.send(request(server, &body).header(ACCEPT, "image/png")).ok();
    assert_eq!(answer.header("content-type"), "image/png");
    let about: Value = serde_json::from_str(answer.header("x-about")).unwrap();
    assert_eq!(
        (&about["of"], &about["method"], &about["input"]),
        (&json!("x0"), &json!("top-k"), &json!("sample"))
    );
    let picture = decode(&answer.bytes);
    // Two panels of 96 pixels and the space around them.
    assert_eq!((picture.width(), picture.height()), (3 * 12 + 2 * 96, 12 + 14 + 96 + 4 + 12));
    // In JSON it is beside the numbers.
    let told = look(server, body).ok();
    assert_eq!(file(&told), answer.bytes);
    assert_eq!(told.json()["output_format"], "png");
}

#[test]
fn a_panel_is_drawn_of_the_array_that_it_names() {
    let server = TestServer::shared();
    // The array of each kind of directions, by what a picture calls them; unless it says, they are the right ones.
    let right_and_left = [(json!(null), "right"), (json!("right"), "right"), (json!("left"), "left")];
    let eigen = [(json!("eigen"), "eigenvectors")];
    for (method, kinds) in [("top-k", &right_and_left[..]), ("full", &eigen[..])] {
        let fields = |more: Value| {
            let mut fields = json!({"k": 4, "method": method});
            fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            ring(fields)
        };
        let is_full = method == "full";
        let told = look(server, fields(json!({"output_format": "safetensors", "matrix": is_full}))).ok();
        let bytes = file(&told);
        let arrays = SafeTensors::deserialize(&bytes).unwrap();
        let mut all = Vec::new();
        for name in
            ["right", "left", "eigenvectors"].into_iter().filter(|name| is_full || *name != "eigenvectors")
        {
            let vectors = floats(&arrays, name);
            assert_eq!(vectors.len(), 4 * 1024, "{name}");
            let vectors: Vec<Vec<f32>> = vectors.chunks_exact(1024).map(<[f32]>::to_vec).collect();
            all.extend(vectors.into_iter().enumerate().map(|(number, vector)| (name, number, vector)));
        }
        for (vectors, named) in kinds {
            let body = fields(json!({"vectors": vectors, "show": [3, 1], "output_format": "png"}));
            let answer = look(server, body).ok();
            assert_eq!(answer.json()["singular_values"], told.json()["singular_values"]);
            let sheet = decode(&file(&answer)).to_rgb8();
            for (panel, shown) in [3, 1].into_iter().enumerate() {
                for (name, number, vector) in &all {
                    let off = off(&sheet, panel, vector);
                    let is_it = name == named && *number == shown;
                    // Colours are rounded; others' differ in plain sight.
                    let is_so = if is_it { off <= 1.0 } else { off > 16.0 };
                    assert!(
                        is_so,
                        "{method}, {vectors}, panel {panel}: {off} from number {number} of {name}"
                    );
                }
            }
        }
        if is_full {
            eigenvectors_are_those_of_the_symmetric_part(&arrays, &told.json()["whole"]["eigenvalues"]);
        }
    }
}

fn eigenvectors_are_those_of_the_symmetric_part(arrays: &SafeTensors<'_>, eigenvalues: &Value) {
    let (matrix, vectors) = (floats(arrays, "jacobian"), floats(arrays, "eigenvectors"));
    for (i, (vector, value)) in vectors.chunks_exact(1024).zip(numbers(eigenvalues)).enumerate() {
        let both = product(&matrix, false, vector).into_iter().zip(product(&matrix, true, vector));
        let image: Vec<f64> = both.map(|(there, back)| (there + back) / 2.0).collect();
        let expected: Vec<f64> = vector.iter().map(|&x| value * f64::from(x)).collect();
        assert!(difference(&image, &expected) < 1e-4, "eigenvector {i}");
    }
}
