//! The status page: one document that loads nothing but the JSON of its own server.

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body_util::Full;

use super::server::guard;

/// The document; what stands for the nonce is in it twice.
const DOCUMENT: &str = include_str!("page.html");
const PLACE: &str = "NONCE";

/// The page. Its policy lets it run its own script and style, and ask its own server: a text that
/// came from a container could do nothing even if it became markup, which it does not.
pub(super) fn status() -> Response<Full<Bytes>> {
    let nonce = uuid::Uuid::new_v4().simple().to_string();
    let document = DOCUMENT.replace(PLACE, &nonce);
    let mut response = Response::new(Full::from(document));
    guard(&mut response, "text/html; charset=utf-8");
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; \
         connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    if let Ok(policy) = HeaderValue::try_from(policy) {
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_loads_nothing_and_makes_no_markup_of_texts() {
        assert_eq!(DOCUMENT.matches(PLACE).count(), 2, "one script, one style");
        for loading in [
            "src=", "href=", "@import", "url(", "http:", "https:", "//cdn",
        ] {
            assert!(!DOCUMENT.contains(loading), "{loading}");
        }
        // Texts of containers may only ever become text.
        for unsafely in [
            "innerHTML",
            "outerHTML",
            "insertAdjacent",
            "document.write",
            "eval(",
        ] {
            assert!(!DOCUMENT.contains(unsafely), "{unsafely}");
        }
        assert!(!DOCUMENT.contains("style=\""), "the policy forbids it");
        let (one, other) = (status(), status());
        let policy =
            |page: &Response<Full<Bytes>>| page.headers()[header::CONTENT_SECURITY_POLICY].clone();
        assert_ne!(policy(&one), policy(&other));
    }
}
