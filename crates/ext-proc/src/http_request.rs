use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use crate::HeaderList;

/// One HTTP request as far as the gateway's body mode lets the picker see it before it has to answer.
///
/// Cloning is cheap: headers and body bytes are shared.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HttpRequest {
    /// The headers as the client and the gateway sent them, routing headers of the client included.
    pub headers: Arc<HeaderList>,
    /// `x-request-id` of the request, or the UUID that the stream made because it was missing or
    /// empty (and then also sets on the request).
    pub request_id: Arc<str>,
    /// The body, or as much of it as is known.
    pub body: RequestBody,
    /// The gateway's subset hint: `None` means any endpoint, an empty list means none. Entries are
    /// `ip:port`, but only the address counts, see [`subset_host`].
    pub subset: Option<Vec<String>>,
    /// Whether response bodies pass through this stream, so that the lease's `response_chunk` will
    /// be called. False where the gateway said that the response body mode is NONE.
    pub response_body_seen: bool,
    /// When the first message of the stream arrived.
    pub received_at: Instant,
}

impl HttpRequest {
    /// A request made by hand, for tests and for picking without a gateway. The body counts as complete.
    pub fn new(headers: HeaderList, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        let chunks = if body.is_empty() { Vec::new() } else { vec![body] };
        let request_id = headers.get_str("x-request-id").unwrap_or_default().into();
        Self {
            headers: Arc::new(headers),
            request_id,
            body: RequestBody::new(chunks, true),
            subset: None,
            response_body_seen: false,
            received_at: Instant::now(),
        }
    }

    /// The HTTP method, empty if the gateway named none.
    pub fn method(&self) -> &str {
        self.headers.get_str(":method").unwrap_or_default()
    }

    /// The path with its query: `:path`, else `x-original-path`, else `x-forwarded-path`, else
    /// `/v1/completions`. This is the order of the llm-d Router picker.
    pub fn path(&self) -> &str {
        [":path", "x-original-path", "x-forwarded-path"]
            .iter()
            .find_map(|name| self.headers.get_str(name).filter(|path| !path.is_empty()))
            .unwrap_or("/v1/completions")
    }
}

/// A request body in the chunks in which it came.
#[derive(Clone)]
pub struct RequestBody {
    chunks: Vec<Bytes>,
    len_bytes: usize,
    complete: bool,
    joined: OnceLock<Bytes>,
}

impl RequestBody {
    /// Puts a body together; `complete` says whether the chunks are all of it.
    pub fn new(chunks: Vec<Bytes>, complete: bool) -> Self {
        let len_bytes = chunks.iter().map(Bytes::len).sum();
        Self { chunks, len_bytes, complete, joined: OnceLock::new() }
    }

    /// The chunks as they came; empty ones are left out.
    pub fn chunks(&self) -> &[Bytes] {
        &self.chunks
    }

    /// Bytes in all chunks.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Whether no byte of the body is known.
    pub fn is_empty(&self) -> bool {
        self.len_bytes == 0
    }

    /// Whether this is the whole body. False where the gateway wants its answer earlier: an empty
    /// body in the modes STREAMED and NONE, the beginning of one in BUFFERED_PARTIAL.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The body in one piece. Several chunks are copied together at the first call only; a single
    /// chunk isn't copied at all.
    pub fn contiguous(&self) -> &Bytes {
        self.joined.get_or_init(|| match self.chunks.as_slice() {
            [] => Bytes::new(),
            [only] => only.clone(),
            chunks => {
                let mut joined = BytesMut::with_capacity(self.len_bytes);
                for chunk in chunks {
                    joined.extend_from_slice(chunk);
                }
                joined.freeze()
            }
        })
    }
}

impl fmt::Debug for RequestBody {
    /// Lengths only: request text stays out of logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestBody")
            .field("chunks", &self.chunks.len())
            .field("len_bytes", &self.len_bytes)
            .field("complete", &self.complete)
            .finish()
    }
}

/// The host of one entry of a subset hint: the text before the last `:`, without the brackets of
/// an IPv6 address. The port is ignored, as by the llm-d Router picker, so that every rank of an
/// address qualifies. An entry that is an address and nothing else is taken whole.
pub fn subset_host(entry: &str) -> &str {
    if entry.parse::<IpAddr>().is_ok() {
        return entry;
    }
    let host = entry.rsplit_once(':').map_or(entry, |(host, _port)| host);
    host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_chunk_is_not_copied_and_several_are_joined_once() {
        let only = Bytes::from(vec![7; 100]);
        let body = RequestBody::new(vec![only.clone()], true);
        assert_eq!(body.contiguous().as_ptr(), only.as_ptr());
        let body = RequestBody::new(vec![Bytes::from("ab"), Bytes::from("cd")], true);
        assert_eq!(body.contiguous().as_ref(), b"abcd");
        assert_eq!(body.contiguous().as_ptr(), body.contiguous().as_ptr());
        assert!(RequestBody::new(vec![], true).contiguous().is_empty());
    }

    #[test]
    fn path_falls_back_like_the_go_picker() {
        let path = |pairs: &[(&str, &str)]| {
            HttpRequest::new(HeaderList::from_pairs(pairs.iter().copied()), "").path().to_owned()
        };
        assert_eq!(path(&[(":path", "/a"), ("x-original-path", "/b")]), "/a");
        assert_eq!(path(&[("x-forwarded-path", "/c"), ("x-original-path", "/b")]), "/b");
        assert_eq!(path(&[("x-forwarded-path", "/c")]), "/c");
        assert_eq!(path(&[]), "/v1/completions");
    }

    #[test]
    fn subset_entries_name_hosts() {
        let hosts =
            ["10.0.0.1:8000", "10.0.0.1", "[fd00::1]:8000", "fd00::1", "pod-a:80", "pod-a"].map(subset_host);
        assert_eq!(hosts, ["10.0.0.1", "10.0.0.1", "fd00::1", "fd00::1", "pod-a", "pod-a"]);
    }

    #[test]
    fn debug_shows_no_request_text() {
        let request = HttpRequest::new(HeaderList::default(), "secret prompt");
        assert!(!format!("{:?}", request.body).contains("secret"));
    }
}
