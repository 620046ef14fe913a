//! What is read from outside, as functions of bytes: for libFuzzer, which looks for bytes that break one, and for the
//! suite, which replays all that it has found so far. A target panics when what it reads breaks its promise; an error is
//! an answer like any other.

use std::hint::black_box;
use std::str;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use windowpane_diffusion::manifest::Manifest;
use windowpane_server::analysis::image_set::{ImageSet, Wanted};
use windowpane_server::args::Found;
use windowpane_server::decode::npy::Npy;
use windowpane_server::decode::picture;
use windowpane_server::encode::Colour;
use windowpane_server::engine::externals;
use windowpane_server::extract::{Accept, ApiFields, Form};
use windowpane_server::keys::Keys;
use windowpane_server::model::Card;
use windowpane_server::provenance::Provenance;
use windowpane_server::routes::analysis::attention::AttentionRequest;
use windowpane_server::routes::images::request::ImageRequest;
use windowpane_server::v2::request::InferRequest;

/// A name, as `fuzz/corpus/NAME` and `cargo fuzz run NAME` have it, and what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("accept", accept),
    ("config", config),
    ("externals", read_externals),
    ("form", form),
    ("image_request", image_request),
    ("image_set", image_set),
    ("infer_request", infer_request),
    ("keys", keys),
    ("manifest", manifest),
    ("npy", npy),
    ("picture", read_picture),
    ("provenance", provenance),
];

/// Images that are wanted of an uploaded set.
const IMAGES: usize = 8;

/// Values that an uploaded array may have: a picture of 32×32 in RGB, twice.
const MOST_VALUES: usize = 6144;

/// The header `accept`: whatever it says, what is chosen is something offered.
pub fn accept(bytes: &[u8]) {
    if let Ok(text) = str::from_utf8(bytes) {
        let offers = &Form::FILES[..3];
        let best = Accept::parse(text).best(offers);
        assert!(best.is_none_or(|best| offers.contains(&best)), "{best:?}");
    }
}

/// The file of `--config`: whatever it says, there are values, and every problem has its place.
pub fn config(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let found = Found::in_file(text).expect("a file is no command line");
    assert!(found.problems.iter().all(|problem| problem.starts_with("`-`: ")), "{:?}", found.problems);
}

/// The places of a graph's weights, which are compared with the package's files before ONNX Runtime sees it.
pub fn read_externals(bytes: &[u8]) {
    black_box(externals::read(bytes));
}

/// A request for a look as a form: the first line is its `content-type`, what follows its body. A file comes whole from the
/// body, and of a wrong field no more is told than anybody reads.
pub fn form(bytes: &[u8]) {
    let end = bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len());
    let (kind, body) = (str::from_utf8(&bytes[..end]), bytes.get(end + 1..).unwrap_or_default());
    let Some(read) = kind.ok().and_then(|kind| ApiFields::<AttentionRequest>::of_form(kind, body)) else {
        return;
    };
    match read {
        Ok(ApiFields(request)) => {
            for file in [&request.image, &request.x_t].into_iter().flatten() {
                let file = STANDARD.decode(file).expect("a file is put into base64 as it is");
                assert!(file.is_empty() || body.windows(file.len()).any(|part| part == file));
            }
        }
        Err(error) => assert!(error.message.chars().count() < 5000, "{}", error.message),
    }
}

/// The body of an image request.
pub fn image_request(bytes: &[u8]) {
    let _ = black_box(serde_json::from_slice::<ImageRequest>(bytes));
}

/// An uploaded set: an array, or an archive of PNGs. As many images as are wanted at most, whole, each with a class or none.
pub fn image_set(bytes: &[u8]) {
    static CARD: LazyLock<Card> = LazyLock::new(|| {
        let manifest = Manifest::from_json(include_str!("../../models/tiny/manifest.json"));
        Card::new(manifest.expect("a shipped package"), "0".repeat(64), 0).expect("a shipped package")
    });
    let wanted =
        Wanted { card: &CARD, resize: bytes.len().is_multiple_of(2), images: IMAGES, limit: 1 << 20 };
    let Ok(set) = ImageSet::of_file(bytes, wanted) else { return };
    let image: usize = CARD.shape().iter().product();
    assert!((1..=IMAGES).contains(&set.len) && set.len <= set.sent, "{} of {}", set.len, set.sent);
    assert_eq!(set.values.len(), set.len * image);
    assert!(set.values.iter().all(|value| value.abs() <= 1.0 + 1e-5));
    assert!(set.labels.is_none_or(|labels| labels.len() == set.len));
}

/// The body of an inference request. The first two bytes say how long its head is, as the header does; 0xffff is none.
pub fn infer_request(bytes: &[u8]) {
    let Some((length, body)) = bytes.split_first_chunk() else { return };
    let length = usize::from(u16::from_le_bytes(*length));
    let Ok(request) = InferRequest::parse(body, (length != 0xffff).then_some(length)) else { return };
    for tensor in &request.inputs {
        let count = tensor.shape.iter().product::<usize>();
        assert_eq!(tensor.values.len(), count, "{}: {:?}", tensor.name, tensor.shape);
        assert!(count <= body.len(), "more elements than bytes");
    }
}

/// The file of `--keys`: with any keys at all, nobody comes in without one.
pub fn keys(bytes: &[u8]) {
    let Some(keys) = str::from_utf8(bytes).ok().and_then(|text| Keys::in_file(text).ok()) else { return };
    assert!(keys.required() && keys.identify(None).is_none() && keys.identify(Some("")).is_none());
}

/// A package's manifest: what reads is valid, and reads the same when it is written.
pub fn manifest(bytes: &[u8]) {
    let Some(manifest) = str::from_utf8(bytes).ok().and_then(|text| Manifest::from_json(text).ok()) else {
        return;
    };
    let again = Manifest::from_json(&manifest.to_json()).expect("what was written is read");
    assert_eq!(again.to_json(), manifest.to_json());
}

/// An uploaded array: as many finite values as its shape says, and never more than are wanted.
pub fn npy(bytes: &[u8]) {
    let Ok(array) = Npy::read(bytes, MOST_VALUES) else { return };
    assert_eq!(array.values.len(), array.shape.iter().product::<usize>());
    assert!(array.values.len() <= MOST_VALUES && array.values.iter().all(|value| value.is_finite()));
}

/// An uploaded PNG of whatever size it says, up to that of an upload: all its pixels.
pub fn read_picture(bytes: &[u8]) {
    black_box(picture::note(bytes));
    let Some([width, height]) = picture::size(bytes).filter(|size| size.iter().all(|side| *side <= 64))
    else {
        return;
    };
    for colour in [Colour::Grey, Colour::Rgb] {
        if let Ok(picture) = picture::png(bytes, colour, [width, height]) {
            assert_eq!(picture.pixels.len(), width * height * colour.channels());
        }
    }
    if let Ok(exact) = picture::exact(bytes, [width, height]) {
        assert_eq!(exact.samples.len(), width * height * exact.colour.channels());
    }
}

/// The note in a PNG of ours.
pub fn provenance(bytes: &[u8]) {
    let Some(note) = str::from_utf8(bytes).ok().and_then(|text| Provenance::read(text).ok()) else { return };
    assert!(note.to_ascii().is_ascii());
    assert!(Provenance::read(&note.to_json()).is_ok());
}
