//! Session ids: found in a request's headers, read by plugins as attributes of the request.

use std::sync::Arc;

use http::HeaderName;
use http::header::COOKIE;
use warmroute_config::{SessionIdProducerSpec, SessionIdSource};
use warmroute_plugin::InferenceRequest;

/// Finds a session id in requests: `session-id-producer`.
#[derive(Clone, Debug)]
pub struct SessionIdProducer {
    /// The attribute's key: `SessionID/<producer name>`.
    key: Arc<str>,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Header(HeaderName),
    Cookie(String),
}

impl SessionIdProducer {
    /// A producer as configured; `None` if the name can't be that of a header, which no checked configuration has.
    pub fn new(spec: &SessionIdProducerSpec) -> Option<Self> {
        let place = match &spec.source {
            SessionIdSource::Header(name) => Place::Header(HeaderName::try_from(name.as_str()).ok()?),
            SessionIdSource::Cookie(name) => Place::Cookie(name.clone()),
        };
        Some(Self { key: key_of(spec).into(), place })
    }

    /// Adds the id to the request's attributes, if the request has one.
    pub fn add_to(&self, request: &mut InferenceRequest) {
        let id = match &self.place {
            Place::Header(name) => request.headers.get(name).and_then(|value| value.to_str().ok()),
            Place::Cookie(name) => {
                let headers = request.headers.get_all(COOKIE).iter();
                let mut values = headers.filter_map(|value| cookie(value.to_str().ok()?, name));
                values.next()
            }
        };
        let id: Option<Arc<str>> = id.map(str::trim).filter(|id| !id.is_empty()).map(Arc::from);
        request.attributes.extend(id.map(|id| (self.key.clone(), id)));
    }
}

/// The key under which plugins read what the producer finds.
pub fn key_of(spec: &SessionIdProducerSpec) -> String {
    format!("SessionID/{}", spec.name)
}

/// The value of a cookie in a header like `a=1; b=2` (RFC 6265, section 4.2.1).
fn cookie<'h>(header: &'h str, name: &str) -> Option<&'h str> {
    header.split(';').find_map(|pair| {
        let (found, value) = pair.trim().split_once('=')?;
        (found == name).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_cookie_is_found_by_its_whole_name() {
        for (header, expected) in [
            ("sid=a", Some("a")),
            ("xsid=b; sid=a==; sid=c", Some("a==")),
            ("sidx=b;sid=a", Some("a")),
            ("sid; SID=b", None),
            ("", None),
        ] {
            assert_eq!(cookie(header, "sid"), expected, "{header}");
        }
    }

    #[test]
    fn an_id_is_an_attribute_unless_it_is_empty() {
        let producer = |place| SessionIdProducer { key: "SessionID/x".into(), place };
        let by_header = producer(Place::Header(HeaderName::from_static("x-session-id")));
        let by_cookie = producer(Place::Cookie("sid".to_owned()));
        let id = |producer: &SessionIdProducer, headers: &[(&'static str, &'static str)]| {
            let mut request = InferenceRequest::new("1", "m");
            for (name, value) in headers {
                request.headers.append(*name, HeaderValue::from_static(value));
            }
            producer.add_to(&mut request);
            request.attribute("SessionID/x").map(str::to_owned)
        };
        assert_eq!(id(&by_header, &[("x-session-id", " s ")]).as_deref(), Some("s"));
        assert_eq!(id(&by_header, &[("x-session-id", " ")]), None);
        assert_eq!(id(&by_header, &[("cookie", "sid=s")]), None);
        assert_eq!(id(&by_cookie, &[("cookie", "a=b"), ("cookie", "sid=s")]).as_deref(), Some("s"));
        assert_eq!(id(&by_cookie, &[("cookie", "sid=")]), None);
    }
}
