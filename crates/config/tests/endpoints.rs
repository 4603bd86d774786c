//! Endpoints files: what is taken, and what is refused, where and why.

#![allow(clippy::unwrap_used, reason = "a test may, outside of its test functions too")]

use warmroute_config::{ListedEndpoint, read_endpoints};

fn taken(text: &str) -> Vec<ListedEndpoint> {
    read_endpoints("endpoints.yaml", text.as_bytes()).unwrap_or_else(|error| panic!("{error}"))
}

/// Line, column, and message with hint of every mistake.
fn refused(text: &[u8]) -> Vec<(u32, u32, String)> {
    let error = read_endpoints("endpoints.yaml", text).unwrap_err();
    let with_hint = |m: &warmroute_config::Mistake| match &m.hint {
        Some(hint) => format!("{} ({hint})", m.message),
        None => m.message.clone(),
    };
    error.mistakes.iter().map(|m| (m.place.line, m.place.column, with_hint(m))).collect()
}

#[test]
fn the_peers_format_is_taken() {
    let list = taken(
        "endpoints:\n- name: vllm-0\n  address: \"10.0.0.1\"\n  port: \"8000\"\n- name: vllm-1\n  namespace: gpu\n  \
         address: 10.0.0.2\n  port: \"8001\"\n  labels:\n    llm-d.ai/role: decode\n    zone: a\n",
    );
    assert_eq!(list.len(), 2);
    assert_eq!((list[0].name.as_str(), list[0].namespace.as_str()), ("vllm-0", "default"));
    assert_eq!((list[0].address.as_str(), list[0].port), ("10.0.0.1", 8000));
    assert!(list[0].labels.is_empty());
    assert_eq!((list[1].namespace.as_str(), list[1].port), ("gpu", 8001));
    let labels: Vec<_> = list[1].labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(labels, [("llm-d.ai/role", "decode"), ("zone", "a")]);
}

#[test]
fn addresses_may_be_ipv6_and_dns_names_and_ports_numbers() {
    let one = |address: &str, port: &str| {
        let list = taken(&format!("endpoints: [{{name: a, address: '{address}', port: {port}}}]"));
        (list[0].address.clone(), list[0].port)
    };
    assert_eq!(one("2001:DB8::1", "8000"), ("2001:db8::1".to_owned(), 8000));
    assert_eq!(one("::1", "1"), ("::1".to_owned(), 1));
    assert_eq!(one("vLLM-0.pool.svc", "65535"), ("vllm-0.pool.svc".to_owned(), 65535));
    assert_eq!(one("host_a.example.", "'80'"), ("host_a.example.".to_owned(), 80));
    assert_eq!(one("localhost", "80").0, "localhost");
}

#[test]
fn json_an_empty_list_and_plain_labels_are_taken() {
    let list =
        taken(r#"{"endpoints": [{"name": "a", "address": "::1", "port": "80", "labels": {"n": "1"}}]}"#);
    assert_eq!(list[0].labels["n"], "1");
    assert!(taken("endpoints: []\n").is_empty());
    let list = taken("endpoints: [{name: a, address: 10.0.0.1, port: 1, labels: {gpus: 8, spot: true}}]");
    assert_eq!((list[0].labels["gpus"].as_str(), list[0].labels["spot"].as_str()), ("8", "true"));
    // The same name in another namespace, the same address with another port.
    let list = taken(
        "endpoints:\n- {name: a, address: 10.0.0.1, port: 1}\n- {name: a, namespace: b, address: 10.0.0.1, port: 2}\n",
    );
    assert_eq!(list.len(), 2);
}

/// A text, the place of its only mistake, and how what is said of it begins.
const SINGLE_MISTAKES: &[(&str, u32, u32, &str)] = &[
    ("", 1, 1, "there is no list of endpoints in it (begin with `endpoints:`)"),
    ("endpoints:\n", 1, 1, "the endpoints file lists no endpoints (for none write `endpoints: []`)"),
    ("{}\n", 1, 1, "the endpoints file lists no endpoints"),
    ("- name: a\n", 1, 1, "the endpoints file must be a map, not a list"),
    ("endpoints: {}\n", 1, 12, "endpoints of the endpoints file must be a list, not a map"),
    ("endpoint: []\n", 1, 1, "the endpoints file has no field \"endpoint\" (did you mean \"endpoints\"?)"),
    ("endpoints:\n- 10.0.0.1:8000\n", 2, 3, "an endpoint must be a map, not \"10.0.0.1:8000\""),
    ("endpoints:\n- {address: 10.0.0.1, port: 1}\n", 2, 3, "an endpoint needs a name (add `name: …`)"),
    (
        "endpoints:\n- {name: '', address: 10.0.0.1, port: 1}\n",
        2,
        10,
        "name of an endpoint must not be empty",
    ),
    (
        "endpoints:\n- {name: 7, address: 10.0.0.1, port: 1}\n",
        2,
        10,
        "name of an endpoint must be a text, not 7",
    ),
    (
        "endpoints:\n- {name: a/b, address: 10.0.0.1, port: 1}\n",
        2,
        10,
        "name of an endpoint must have no slash",
    ),
    (
        "endpoints:\n- {name: a, namespace: b c, address: 10.0.0.1, port: 1}\n",
        2,
        24,
        "namespace of an endpoint must have no slash",
    ),
    ("endpoints:\n- {name: a, port: 1}\n", 2, 3, "an endpoint needs an address"),
    (
        "endpoints:\n- {name: a, adress: 10.0.0.1, port: 1}\n",
        2,
        13,
        "an endpoint has no field \"adress\" (did you mean \"address\"?)",
    ),
    ("endpoints:\n- name: a\n  address: 10.0.0.1\n", 2, 3, "an endpoint needs a port"),
    (
        "endpoints:\n- {name: a, address: 10.0.0.1, port: 0}\n",
        2,
        38,
        "port of an endpoint must be a number from 1 to 65535, not 0",
    ),
    (
        "endpoints:\n- {name: a, address: 10.0.0.1, port: 65536}\n",
        2,
        38,
        "port of an endpoint must be a number",
    ),
    (
        "endpoints:\n- {name: a, address: 10.0.0.1, port: http}\n",
        2,
        38,
        "port of an endpoint must be a number",
    ),
    (
        "endpoints:\n- {name: a, address: 10.0.0.1, port: '+80'}\n",
        2,
        38,
        "port of an endpoint must be a number",
    ),
    (
        "endpoints:\n- {name: a, address: 10.0.0.1, port: [80]}\n",
        2,
        38,
        "port of an endpoint must be a number",
    ),
    (
        "endpoints:\n- {name: a, address: 10.0.0.256, port: 1}\n",
        2,
        22,
        "address \"10.0.0.256\" is no IPv4 address",
    ),
    (
        "endpoints:\n- {name: a, address: 0.0.0.0, port: 1}\n",
        2,
        22,
        "address \"0.0.0.0\" is no address that an engine can have",
    ),
    ("endpoints:\n- {name: a, address: 'http://a', port: 1}\n", 2, 22, "address \"http://a\" is a URL"),
    ("endpoints:\n- {name: a, address: 'a:80', port: 1}\n", 2, 22, "address \"a:80\" has a port"),
    ("endpoints:\n- {name: a, address: '[::1]', port: 1}\n", 2, 22, "address \"[::1]\" has brackets"),
    (
        "endpoints:\n- {name: a, address: -a.b, port: 1}\n",
        2,
        22,
        "address \"-a.b\" is neither an IP address nor a DNS name",
    ),
    ("endpoints:\n- {name: a, address: a..b, port: 1}\n", 2, 22, "address \"a..b\" is neither"),
    (
        "endpoints:\n- {name: a, address: 10.0.0.1, port: 1, labels: [x]}\n",
        2,
        49,
        "labels of an endpoint must be a map, not a list",
    ),
    (
        "endpoints:\n- {name: a, address: 10.0.0.1, port: 1, labels: {x: {}}}\n",
        2,
        53,
        "label \"x\" must be a text, not a map",
    ),
    (
        "endpoints:\n- {name: a, address: 10.0.0.1, port: 1, labels: {x: yes}}\n",
        2,
        53,
        "readers of YAML don't agree on what label \"x\" is: yes (put it in quotes)",
    ),
    (
        "endpoints:\n- {name: a, address: 10.0.0.1, port: 1, labels: {x: }}\n",
        2,
        51,
        "label \"x\" must be a text, not nothing",
    ),
    (
        "endpoints:\n- {name: a, address: 10.0.0.1, port: 1}\n- {name: a, address: 10.0.0.2, port: 1}\n",
        3,
        10,
        "two endpoints are called \"a\" in namespace \"default\" (the other begins in line 2)",
    ),
    (
        "endpoints: [{name: a, address: '::1', port: 1}, {name: b, address: '0::1', port: '1'}]\n",
        1,
        68,
        "two endpoints have the address \"::1\" and port 1",
    ),
    ("endpoints: []\nendpoints: []\n", 2, 1, "\"endpoints\" is given twice"),
    ("endpoints: []\n---\n", 2, 1, "a file has one document"),
    ("endpoints: [\n", 1, 12, "this is not YAML"),
];

#[test]
fn single_mistakes_are_placed_and_explained() {
    for &(text, line, column, message) in SINGLE_MISTAKES {
        let got = refused(text.as_bytes());
        assert_eq!(got.len(), 1, "{text}\n{got:?}");
        assert!(got[0].2.starts_with(message), "{text}\n{got:?}");
        assert_eq!((got[0].0, got[0].1), (line, column), "{text}\n{got:?}");
    }
}

#[test]
fn all_mistakes_are_told_at_once() {
    let text =
        "endpoints:\n- name: a\n  address: 10.0.0.300\n  port: 0\n- address: x y\n  prot: 1\nother: 1\n";
    let lines: Vec<u32> = refused(text.as_bytes()).iter().map(|(line, ..)| *line).collect();
    assert_eq!(lines, [3, 4, 5, 5, 6, 7]);
}

#[test]
fn what_is_no_text_or_too_much_is_refused() {
    let (line, column, message) = refused(b"endpoints:\n- name: \xFF\n").remove(0);
    assert_eq!((line, column, message.as_str()), (2, 9, "this is not UTF-8"));
    let large = refused(&vec![b' '; (1 << 20) + 1]);
    assert!(large[0].2.starts_with("the text has 1048577 bytes"), "{large:?}");
    let many = format!("endpoints: [{}]", "{},".repeat(5001));
    let got = refused(many.as_bytes());
    assert!(got[0].2.contains("has 5001 entries (at most 5000 are read)"), "{:?}", got[0]);
    assert!(got.len() <= 102, "{}", got.len());
    let labels: String = (0..65).map(|i| format!("k{i}: v, ")).collect();
    let got = refused(
        format!("endpoints: [{{name: a, address: '::1', port: 1, labels: {{{labels}}}}}]").as_bytes(),
    );
    assert!(got[0].2.starts_with("an endpoint has 65 labels"), "{got:?}");
}

#[test]
fn an_endpoint_says_which_data_parallel_ranks_it_has() {
    let list = taken(
        "endpoints:\n- {name: a, address: 10.0.0.1, port: 1, dataParallelSize: 2, dataParallelPinning: false}\n\
         - {name: b, address: 10.0.0.1, port: 2, dataParallelRank: 1}\n- {name: c, address: 10.0.0.1, port: 3}\n",
    );
    let said: Vec<_> = list
        .iter()
        .map(|one| (one.data_parallel_size, one.data_parallel_rank, one.data_parallel_pinning))
        .collect();
    assert_eq!(said, [(Some(2), None, Some(false)), (None, Some(1), None), (None, None, None)]);
    let one = |more: &str| {
        let text = format!("endpoints: [{{name: a, address: 10.0.0.1, port: 1, {more}}}]");
        refused(text.as_bytes()).remove(0).2
    };
    assert!(one("dataParallelSize: 0").contains("dataParallelSize"));
    assert!(one("dataParallelRank: 1024").contains("dataParallelRank"));
    assert!(
        one("dataParallelSize: 2, dataParallelRank: 0")
            .contains("either dataParallelRank or dataParallelSize")
    );
}
