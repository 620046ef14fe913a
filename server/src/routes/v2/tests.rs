//! What the protocol tells of a network that fails, through the whole stack but the socket.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use serde_json::json;

use super::*;
use crate::engine::fake::Faults;
use crate::testing::{app, get, send};

#[tokio::test]
async fn a_tick_that_fails_is_an_error_and_nothing_is_told_of_the_inside() {
    let app = app(Config::default(), &Faults { error_at: vec![0], ..Faults::default() });
    let seed = json!({"name": "seed", "datatype": "INT64", "shape": [1], "data": [1]});
    let body = json!({"inputs": [seed], "outputs": [{"name": "samples"}]}).to_string();
    let infer = || Request::post("/v2/models/plain.sampler/infer").body(Body::from(body.clone())).unwrap();
    let answer = send(&app, infer()).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(answer.json()["error"], "the model failed on a batch that held this request");
    assert_eq!(answer.json()["request_id"], answer.headers["x-request-id"].to_str().unwrap());
    assert_eq!(send(&app, infer()).await.status, StatusCode::OK);
    let stats = get(&app, "/v2/models/plain.sampler/stats").await.json();
    let stats = &stats["model_stats"][0]["inference_stats"];
    assert_eq!((&stats["fail"]["count"], &stats["success"]["count"]), (&json!(1), &json!(1)));
}
