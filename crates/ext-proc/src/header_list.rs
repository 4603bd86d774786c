use envoy_types::pb::envoy::config::core::v3::{HeaderMap, HeaderValue};

/// The headers of one HTTP message in the order in which the gateway gave them, duplicates and
/// pseudo-headers (`:path`, `:method`, `:status`) included.
///
/// A value is the entry's `raw_value` if that is not empty, else its `value`: Envoy fills the
/// first, agentgateway the second for pseudo-headers. Nothing is copied out of the message; a
/// lookup scans the list, which for the few dozen headers of a request is cheaper than a map.
#[derive(Clone, Debug, Default)]
pub struct HeaderList {
    entries: Vec<HeaderValue>,
}

impl HeaderList {
    /// Builds a list from names and values, for tests and for pickers that are called without a gateway.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let entry = |(name, value): (&str, &str)| HeaderValue {
            key: name.to_owned(),
            raw_value: value.as_bytes().to_vec(),
            ..HeaderValue::default()
        };
        Self { entries: pairs.into_iter().map(entry).collect() }
    }

    pub(crate) fn from_proto(headers: Option<HeaderMap>) -> Self {
        Self { entries: headers.map(|map| map.headers).unwrap_or_default() }
    }

    /// The value of a header; the last one if it was sent several times (as the Go picker reads
    /// it). The name is compared without regard to ASCII case.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.entries.iter().rev().find(|entry| entry.key.eq_ignore_ascii_case(name)).map(value_of)
    }

    /// Like [`get`](Self::get), for values that are UTF-8; others count as absent.
    pub fn get_str(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// Whether the header was sent at all, be it with an empty value.
    pub fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Names and values in the gateway's order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.entries.iter().map(|entry| (entry.key.as_str(), value_of(entry)))
    }

    /// How many entries there are, duplicates counted.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes in all names and values.
    pub fn len_bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.key.len() + value_of(entry).len()).sum()
    }

    /// Whether there are no headers.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The HTTP status of a response: `:status`, or `status` as some proxies and test clients
    /// write it. `None` if absent or not a number.
    pub fn status(&self) -> Option<u16> {
        self.get_str(":status").or_else(|| self.get_str("status"))?.parse().ok()
    }
}

fn value_of(entry: &HeaderValue) -> &[u8] {
    if entry.raw_value.is_empty() { entry.value.as_bytes() } else { &entry.raw_value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_value_wins_and_value_is_the_fallback() {
        let both = HeaderValue { key: "a".into(), value: "text".into(), raw_value: b"raw".to_vec() };
        let text = HeaderValue { key: ":path".into(), value: "/v1".into(), raw_value: vec![] };
        let list = HeaderList::from_proto(Some(HeaderMap { headers: vec![both, text] }));
        assert_eq!(list.get("a"), Some(&b"raw"[..]));
        assert_eq!(list.get_str(":path"), Some("/v1"));
    }

    #[test]
    fn names_ignore_case_and_the_last_duplicate_wins() {
        let list = HeaderList::from_pairs([("X-Dup", "1"), ("x-dup", "2"), (":status", "204")]);
        assert_eq!(list.get_str("X-DUP"), Some("2"));
        assert_eq!((list.len(), list.status()), (3, Some(204)));
        assert!(!list.contains("y"));
    }
}
