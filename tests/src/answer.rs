//! A response, read whole, and what tests want to know of it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::DynamicImage;
use reqwest::header::HeaderMap;
use serde_json::Value;

/// A response.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub bytes: Vec<u8>,
}

// === impl Answer ===

impl Answer {
    /// Reads a response to its end.
    pub(crate) async fn read(response: reqwest::Response) -> reqwest::Result<Self> {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Ok(Self { status, headers, bytes: response.bytes().await?.to_vec() })
    }

    /// A header's value; empty where it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().expect("our headers are text; anything else is a bug"))
    }

    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.bytes).expect("the body is text")
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// This answer, which must be a success.
    pub fn ok(self) -> Self {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.bytes));
        self
    }

    /// The picture file of image `i` of a JSON answer.
    pub fn file(&self, i: usize) -> Vec<u8> {
        let body = self.json();
        let text = body["data"][i]["b64_json"].as_str().unwrap_or_else(|| panic!("no image {i} in {body}"));
        STANDARD.decode(text).expect("`b64_json` is base64")
    }

    /// The message of an error, whose status, code and field are these. Whatever the error, its body is OpenAI's error
    /// object and carries the id that the header has.
    pub fn refused(&self, status: u16, code: &str, param: Option<&str>) -> String {
        let body = String::from_utf8_lossy(&self.bytes);
        assert_eq!(self.status, status, "{body}");
        assert_eq!(self.header("content-type"), "application/json", "{body}");
        let error = &self.json()["error"];
        assert_eq!(error["code"], code, "{body}");
        assert_eq!(error["param"].as_str(), param, "{body}");
        assert_eq!(error["request_id"], self.header("x-request-id"), "{body}");
        let family = match status {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        assert_eq!(error["type"], family, "{body}");
        error["message"].as_str().expect("an error has a message").to_owned()
    }
}

/// A picture file decoded, its format recognised by its first bytes.
pub fn decode(bytes: &[u8]) -> DynamicImage {
    image::load_from_memory(bytes).unwrap_or_else(|error| panic!("not a picture: {error}"))
}
