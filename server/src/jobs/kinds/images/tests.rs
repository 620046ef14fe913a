//! Orders of many images: what is refused before it is drawn, and whose images they are.

use bytes::Bytes;

use super::*;
use crate::batcher::Caller;
use crate::call::Nobody;
use crate::config::Config;
use crate::engine::fake::Faults;
use crate::keys::{Identity, Role};
use crate::middleware::request_id::RequestId;
use crate::testing::{Answer, app, manifest};

fn card() -> Card {
    Card::new(manifest("shoes", &["sneaker", "boot"]), "0".repeat(64), 0).unwrap()
}

fn request(fields: serde_json::Value) -> BulkRequest {
    serde_json::from_value(fields).unwrap()
}

/// Images that do not compress.
fn noise(count: usize) -> Drawn {
    let mut state = 1_u64;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    let piece = |_| -> Bytes { (0..24).map(|_| byte()).collect::<Vec<_>>().into() };
    Drawn { pieces: (0..count).map(piece).collect() }
}

#[tokio::test]
async fn a_result_is_as_large_as_was_said_before_it_was_drawn() {
    let card = card();
    for (fields, count) in [
        (json!({"n": 1000, "classes": "each"}), 1000),
        (json!({"n": 7, "class": 1}), 7),
        (json!({"n": 300, "classes": "each", "output_format": "zip"}), 300),
    ] {
        let asked = request(fields);
        let bulk = Bulk::resolve(&asked, &card, usize::MAX).unwrap();
        let file = Answer::read(respond(&card, &bulk, &noise(count)).unwrap()).await.bytes;
        let (fixed, each) = bulk.size(&card);
        let most = fixed + count * each;
        match bulk.file {
            File::Npz => assert_eq!(file.len(), most),
            File::Zip => {
                assert!(file.len() <= most && file.len() + 16 * count > most, "{} of {most}", file.len())
            }
        }
        assert!(Bulk::resolve(&asked, &card, most).is_ok());
        let refused = Bulk::resolve(&asked, &card, most - 1).unwrap_err();
        assert_eq!(refused.param.as_deref(), Some("n"));
        assert!(refused.message.ends_with(&format!("expected {} at most", count - 1)), "{}", refused.message);
    }
}

#[test]
fn an_archive_has_no_more_files_than_it_can_count() {
    let of = |n: usize| {
        let asked = request(json!({"n": n, "class": 0, "output_format": "zip"}));
        Bulk::resolve(&asked, &card(), usize::MAX)
    };
    let bulk = of(MOST_FILES).unwrap();
    let mut archive = Archive::default();
    (0..MOST_FILES).for_each(|i| archive.add(&bulk.name(i), &[]).unwrap());
    archive.add(ABOUT, &[]).unwrap();
    assert!(archive.finish().is_ok());
    let refused = of(MOST_FILES + 1).unwrap_err();
    assert_eq!(refused.param.as_deref(), Some("n"));
    assert!(refused.message.ends_with("1 to 65533 in a `zip`"), "{}", refused.message);
    let npz = request(json!({"n": 100_000, "class": 0}));
    assert!(Bulk::resolve(&npz, &card(), usize::MAX).is_ok());
}

#[tokio::test]
async fn the_images_are_of_the_model_that_they_were_ordered_of() {
    // When it was ordered there was one model, so that the order names none.
    let app = app(Config::default(), &Faults::default());
    let asked = request(json!({"n": 2, "steps": 1}));
    assert!(check(&app, &asked).is_err());
    let identity = Identity { caller: Caller::ANONYMOUS, role: Role::Generate };
    let call = Call::of_job(RequestId::parse("a").unwrap(), identity);
    let plain = app.model(Some("plain")).unwrap();
    let drawn = answer(&app, call, (asked, plain), &mut Nobody).await.unwrap();
    assert_eq!(drawn.headers()["x-model"], "plain");
}
