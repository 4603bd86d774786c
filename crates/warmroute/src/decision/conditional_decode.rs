//! `Prefer: if-available`: a request that is to be served only where its prompt is cached, from the llm-d Router EPP
//! (`pkg/common/routing` in github.com/llm-d/llm-d-router). A header as in RFC 7240.

use http::HeaderName;
use warmroute_plugin::InferenceRequest;

const PREFER: HeaderName = HeaderName::from_static("prefer");
const IF_AVAILABLE: &str = "if-available";

/// Whether the request has the preference.
pub(super) fn is_asked_for(request: &InferenceRequest) -> bool {
    let values = request.headers.get_all(PREFER).iter().filter_map(|value| value.to_str().ok());
    let mut names = values.flat_map(|value| value.split(',')).map(|preference| {
        // Parameters and a value may follow.
        preference.split([';', '=']).next().unwrap_or_default().trim()
    });
    names.any(|name| name.eq_ignore_ascii_case(IF_AVAILABLE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn the_preference_is_found_among_others() {
        let of = |values: &[&'static str]| {
            let mut request = InferenceRequest::new("id", "model");
            for value in values {
                request.headers.append(PREFER, HeaderValue::from_static(value));
            }
            is_asked_for(&request)
        };
        for asked in
            [&["if-available"][..], &["respond-async, If-Available"], &["wait=10", "if-available; a=b"]]
        {
            assert!(of(asked), "{asked:?}");
        }
        for not in [&[][..], &["if-available-soon"], &["respond-async; if-available"]] {
            assert!(!of(not), "{not:?}");
        }
    }
}
