//! The endpoints file of `file-discovery`.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use crate::fields::{Fields, Mistakes};
use crate::scalar::Plain;
use crate::yaml::{Node, NodeValue, shown};
use crate::{ConfigError, Place, text};

/// More than any pool has; each endpoint costs a scraper and a subscription.
const MAX_ENDPOINTS: usize = 5000;
const MAX_LABELS: usize = 64;
/// Longest DNS name (RFC 1035, §2.3.4); also Kubernetes' limit for names.
const MAX_NAME_BYTES: usize = 253;
/// Longest part of a DNS name between two dots (RFC 1035, §2.3.4).
const MAX_DNS_LABEL_BYTES: usize = 63;
const DEFAULT_NAMESPACE: &str = "default";
/// More data-parallel ranks than anybody has.
pub const MAX_RANKS: u16 = 1024;

/// An endpoint in an endpoints file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListedEndpoint {
    /// Its name; unique within its namespace.
    pub name: String,
    /// Its namespace; `default` if the file gives none.
    pub namespace: String,
    /// An IP address without brackets, or a DNS name.
    pub address: String,
    /// Serving port; never 0.
    pub port: u16,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Data-parallel ranks behind the address, at least 1; None if the file doesn't say.
    pub data_parallel_size: Option<u16>,
    /// The data-parallel rank that has the address to itself.
    pub data_parallel_rank: Option<u16>,
    /// Whether requests may be pinned to a rank by a header; None if the file doesn't say.
    pub data_parallel_pinning: Option<bool>,
}

/// Reads an endpoints file, YAML or JSON: `endpoints`, a list of `name`, `namespace`, `address`, `port`, `labels`, and
/// `dataParallelSize`, `dataParallelRank` and `dataParallelPinning`.
/// `name` is what to call the file in errors, usually its path.
///
/// The format is that of `pkg/epp/framework/plugins/datalayer/discovery/file` in github.com/llm-d/llm-d-router, where
/// addresses are IPv4 only and unknown fields are ignored. The last three are not there. Here addresses may be IPv6 too, and DNS names; ports and
/// labels may be numbers without quotes; names and addresses that appear twice are mistakes.
///
/// # Errors
///
/// Everything that is wrong with it, each mistake with its place. If the text isn't YAML, only that.
pub fn read_endpoints(name: &str, text: &[u8]) -> Result<Vec<ListedEndpoint>, ConfigError> {
    let mut mistakes = Mistakes::default();
    let (source, root) = text::read(name, text, &mut mistakes);
    let mut endpoints = Vec::new();
    match &root {
        Some(root) => endpoints = list(root, &mut mistakes),
        None if mistakes.is_empty() => {
            mistakes.hinted(Place::START, "there is no list of endpoints in it", "begin with `endpoints:`");
        }
        None => {}
    }
    if mistakes.is_empty() { Ok(endpoints) } else { Err(ConfigError::new(source, mistakes.into_list())) }
}

fn list(root: &Node, mistakes: &mut Mistakes) -> Vec<ListedEndpoint> {
    let mut fields = Fields::of(root, "the endpoints file", mistakes);
    // An empty list is a list; nothing at all is a slip, or a file that is just being written.
    let is_null = fields.entry("endpoints").is_some_and(|entry| entry.value.is_null());
    if is_null || root.value == NodeValue::Map(Vec::new()) {
        mistakes.hinted(
            root.place,
            "the endpoints file lists no endpoints",
            "for none write `endpoints: []`",
        );
    }
    let nodes = fields.list_up_to(MAX_ENDPOINTS, "endpoints", mistakes);
    fields.finish(mistakes);
    let mut seen = Seen::default();
    nodes.iter().filter_map(|node| endpoint(node, &mut seen, mistakes)).collect()
}

/// Where what must not come twice was seen last.
#[derive(Default)]
struct Seen {
    names: HashMap<(String, String), Place>,
    addresses: HashMap<(String, u16), Place>,
}

fn endpoint(node: &Node, seen: &mut Seen, mistakes: &mut Mistakes) -> Option<ListedEndpoint> {
    let mut fields = Fields::of(node, "an endpoint", mistakes);
    let name = fields.required_text("name", mistakes);
    let namespace = fields.text("namespace", mistakes).filter(|(text, _)| !text.is_empty());
    let address = fields.required_text("address", mistakes);
    let port = fields.required("port", mistakes).and_then(|node| port(node, mistakes));
    let labels = fields.node("labels").map_or_else(BTreeMap::new, |node| labels(node, mistakes));
    let ranks = RankFields::read(&mut fields, mistakes);
    fields.finish(mistakes);
    for (what, text) in [("name", name), ("namespace", namespace)] {
        if let Some((text, place)) = text {
            check_name(what, text, place, mistakes);
        }
    }
    let address = address.and_then(|(text, place)| Some((host(text, place, mistakes)?, place)));

    let namespace = namespace.map_or(DEFAULT_NAMESPACE, |(text, _)| text);
    if let Some((name, place)) = name {
        let key = (namespace.to_owned(), name.to_owned());
        if let Some(first) = seen.names.insert(key, node.place) {
            let message =
                format!("two endpoints are called {} in namespace {}", shown(name), shown(namespace));
            mistakes.hinted(place, message, format!("the other begins in line {}", first.line));
        }
    }
    if let (Some((address, place)), Some(port)) = (&address, port)
        && let Some(first) = seen.addresses.insert((address.clone(), port), node.place)
    {
        let message = format!("two endpoints have the address {} and port {port}", shown(address));
        mistakes.hinted(*place, message, format!("the other begins in line {}", first.line));
    }
    let ((name, _), (address, _), port) = (name?, address?, port?);
    Some(ListedEndpoint {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        address,
        port,
        labels,
        data_parallel_size: ranks.size,
        data_parallel_rank: ranks.rank,
        data_parallel_pinning: ranks.pinning,
    })
}

/// What an endpoint says of data-parallel ranks.
struct RankFields {
    size: Option<u16>,
    rank: Option<u16>,
    pinning: Option<bool>,
}

impl RankFields {
    fn read(fields: &mut Fields<'_>, mistakes: &mut Mistakes) -> Self {
        let mut whole = |name, range| fields.whole(name, range, mistakes);
        let size = whole("dataParallelSize", 1..=u64::from(MAX_RANKS));
        let rank = whole("dataParallelRank", 0..=u64::from(MAX_RANKS - 1));
        let pinning = fields.boolean("dataParallelPinning", mistakes).map(|(pinning, _)| pinning);
        if let (Some(_), Some((_, place))) = (size, rank) {
            mistakes.hinted(
                place,
                "an endpoint has either dataParallelRank or dataParallelSize",
                "dataParallelRank is for a rank with a port of its own, dataParallelSize for ranks that share one port",
            );
        }
        let short = |given: Option<(u64, Place)>| given.and_then(|(number, _)| u16::try_from(number).ok());
        Self { size: short(size), rank: short(rank), pinning }
    }
}

/// Names appear in logs, receipts and metrics, and are put together with a slash.
fn check_name(what: &str, text: &str, place: Place, mistakes: &mut Mistakes) {
    let odd = |c: char| c == '/' || c == '#' || c.is_whitespace() || c.is_control();
    if text.len() > MAX_NAME_BYTES {
        mistakes.at(place, format!("{what} of an endpoint has more than {MAX_NAME_BYTES} bytes"));
    } else if text.contains(odd) {
        let message = format!("{what} of an endpoint must have no slash, # or space, as {} has", shown(text));
        mistakes.at(place, message);
    }
}

fn port(node: &Node, mistakes: &mut Mistakes) -> Option<u16> {
    let text = match &node.value {
        NodeValue::Scalar { text, .. } => text.as_str(),
        _ => "",
    };
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    let port = text.parse().ok().filter(|_| is_plain);
    if port.is_none() {
        let message = format!("port of an endpoint must be a number from 1 to 65535, not {}", node.kind());
        mistakes.at(node.place, message);
    }
    port
}

fn labels(node: &Node, mistakes: &mut Mistakes) -> BTreeMap<String, String> {
    let NodeValue::Map(entries) = &node.value else {
        mistakes.at(node.place, format!("labels of an endpoint must be a map, not {}", node.kind()));
        return BTreeMap::new();
    };
    if entries.len() > MAX_LABELS {
        let message = format!("an endpoint has {} labels, and at most {MAX_LABELS} are read", entries.len());
        mistakes.at(node.place, message);
        return BTreeMap::new();
    }
    let mut labels = BTreeMap::new();
    for entry in entries {
        match (&entry.value.value, entry.value.plain()) {
            (NodeValue::Scalar { text, .. }, Some(Plain::Text | Plain::Number(_) | Plain::Bool(_))) => {
                labels.insert(entry.key.clone(), text.clone());
            }
            (NodeValue::Scalar { .. }, Some(Plain::OldBool(_) | Plain::OddNumber)) => {
                let message = format!(
                    "readers of YAML don't agree on what label {} is: {}",
                    shown(&entry.key),
                    entry.value.kind()
                );
                mistakes.hinted(entry.value.place, message, "put it in quotes");
            }
            _ => {
                let message =
                    format!("label {} must be a text, not {}", shown(&entry.key), entry.value.kind());
                mistakes.at(entry.value.place, message);
            }
        }
    }
    labels
}

/// An IP address, or a DNS name in lower case.
fn host(text: &str, place: Place, mistakes: &mut Mistakes) -> Option<String> {
    let mut wrong = |message: &str, hint: &str| {
        mistakes.hinted(place, format!("address {} {message}", shown(text)), hint);
        None
    };
    if let Ok(ip) = text.parse::<IpAddr>() {
        if ip.is_unspecified() || ip.is_multicast() {
            return wrong("is no address that an engine can have", "write the engine's own address");
        }
        return Some(ip.to_string());
    }
    if text.contains("://") {
        return wrong("is a URL", "write the host alone, and the port as `port`");
    }
    if text.starts_with('[') {
        return wrong("has brackets", "write an IPv6 address without brackets, and the port as `port`");
    }
    if text.contains(':') {
        return wrong("has a port, or is no IPv6 address", "write the host alone, and the port as `port`");
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    let last = name.rsplit('.').next().unwrap_or(name);
    if !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()) {
        return wrong("is no IPv4 address", "it has four numbers from 0 to 255 between dots");
    }
    if name.len() > MAX_NAME_BYTES || !name.split('.').all(is_dns_label) {
        return wrong("is neither an IP address nor a DNS name", "write the host alone");
    }
    Some(text.to_ascii_lowercase())
}

/// RFC 1123, §2.1, with the underscore that service names have.
fn is_dns_label(label: &str) -> bool {
    let usable = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    !label.is_empty()
        && label.len() <= MAX_DNS_LABEL_BYTES
        && label.bytes().all(usable)
        && !label.starts_with('-')
        && !label.ends_with('-')
}
