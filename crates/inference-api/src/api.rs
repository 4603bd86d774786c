//! Which API a path belongs to.

/// The API whose schema a request body follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Api {
    /// `…chat/completions` and `…chat/completions/render`: `messages`.
    ChatCompletions,
    /// `…completions` and `…completions/render`: `prompt`.
    Completions,
    /// Any other path. The body is not required to be JSON; model and stream are read if it is.
    Other,
}

/// The API of a request path, by the endpoint-picker rules of the llm-d router: the query is cut, one
/// trailing `/` is trimmed, and the longest matching suffix decides, without regard to path segments.
pub fn api_of_path(path: &str) -> Api {
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    let path = path.strip_suffix('/').unwrap_or(path);
    let path = path.strip_suffix("/render").unwrap_or(path);
    if path.ends_with("chat/completions") {
        Api::ChatCompletions
    } else if path.ends_with("completions") {
        Api::Completions
    } else {
        Api::Other
    }
}

#[cfg(test)]
mod tests {
    use super::{Api, api_of_path};

    #[test]
    fn paths() {
        for (path, api) in [
            ("/v1/chat/completions", Api::ChatCompletions),
            ("/v1/chat/completions/", Api::ChatCompletions),
            ("/prefix/v1/chat/completions?x=/v1/completions", Api::ChatCompletions),
            ("/v1/chat/completions/render", Api::ChatCompletions),
            ("/v1/completions", Api::Completions),
            ("/v1/completions/render/", Api::Completions),
            ("/v1/mycompletions", Api::Completions),
            ("completions", Api::Completions),
            ("/v1/completions//", Api::Other),
            ("/v1/responses", Api::Other),
            ("/tokenize", Api::Other),
            ("/v1/completions/x", Api::Other),
            ("", Api::Other),
        ] {
            assert_eq!(api_of_path(path), api, "{path}");
        }
    }
}
