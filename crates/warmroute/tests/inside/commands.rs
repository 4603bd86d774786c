//! `warmroute check`, `warmroute plugins` and the command line that was written for the llm-d Router EPP.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use clap::Parser;
use serde_json::{Value, json};
use warmroute::check::CheckReport;
use warmroute::cli::{CheckOptions, Cli};
use warmroute::plugin_list::PluginList;

use crate::fixture::registry;

const HEAD: &str = "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\n";

/// A vocabulary of two characters: enough to load.
const TINY_TOKENIZER: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
    "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
        "vocab": {"a": 0, "b": 1}, "merges": []}}"#;

/// A folder with configurations, whose name isn't the same twice.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

fn warmroute(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_warmroute")).args(arguments).env_remove("RUST_LOG").output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn options(file: &Path) -> CheckOptions {
    CheckOptions { file: file.to_owned(), effective: true, json: true, tokenizer: None }
}

fn report(options: &CheckOptions) -> Value {
    let report = CheckReport::new(options, &Arc::new(registry()));
    serde_json::from_str(&report.to_json().unwrap()).unwrap()
}

/// The notices on the configuration of `body`, as `line: message`; it must be taken.
fn notices(body: &str) -> Vec<String> {
    let files = Files::new();
    let report = report(&options(&files.write("c.yaml", &format!("{HEAD}{body}"))));
    assert_eq!(report["ok"], json!(true), "{report:#}");
    let shown = |notice: &Value| format!("{}: {}", notice["line"], notice["message"].as_str().unwrap());
    report["notices"].as_array().unwrap().iter().map(shown).collect()
}

const SEVEN_MISTAKES: &str = "\
apiVersion: llm-d.ai/v7
kind: EndpointPickerConfig
plugins:
- type: quue-scorer
- type: queue-scorer
- type: queue-scorer
- type: max-score-picker
  parameters:
    maxNumOfEndpoint: 2
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: queue-scorer
    weight: heavy
  - pluginRef: no-such-plugin
  - pluginRef: max-score-picker
dataLayer:
  injectDefalts: true
";

#[test]
fn seven_mistakes_are_named_with_their_lines() {
    let files = Files::new();
    let path = files.write("seven.yaml", SEVEN_MISTAKES);
    let path = path.to_str().unwrap();
    let output = warmroute(&["check", path]);
    assert_eq!(output.status.code(), Some(1));
    let text = out(&output);
    for (line, what) in [
        (1, "apiVersion must be one of"),
        (4, "there is no plugin type"),
        (6, "two plugins are called"),
        (9, "unknown field"),
        (14, "weight"),
        (15, "no-such-plugin"),
        (18, "injectDefalts"),
    ] {
        let named =
            text.lines().any(|shown| shown.starts_with(&format!("{path}:{line}:")) && shown.contains(what));
        assert!(named, "{what:?} in line {line} is missing in\n{text}");
        let quoted = format!("{line} | {}\n", SEVEN_MISTAKES.lines().nth(line - 1).unwrap());
        assert!(text.contains(&quoted), "line {line} isn't quoted in\n{text}");
    }
    assert!(text.contains("4 | - type: quue-scorer\n  |         ^\n  hint: did you mean"), "{text}");
    assert!(text.ends_with(&format!("{path}: 7 mistakes\n")), "{text}");
    assert!(output.stderr.is_empty());
    let docs = include_str!("../../../../docs/configuration.md");
    assert!(docs.contains(&text.replace(path, "epp.yaml")), "docs/configuration.md shows this output");

    let output = warmroute(&["check", path, "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ok"], json!(false));
    let lines = report["mistakes"].as_array().unwrap().iter().map(|m| m["line"].as_u64().unwrap());
    assert_eq!(lines.collect::<Vec<_>>(), [1, 4, 6, 9, 14, 15, 18]);
    assert!(report["mistakes"][1]["hint"].as_str().unwrap().contains("queue-scorer"));
}

#[test]
fn a_good_file_is_ok_and_an_unreadable_one_is_neither() {
    let files = Files::new();
    let path = files.write("built-in.yaml", warmroute_config::BUILT_IN);
    let path = path.to_str().unwrap();
    files.write("tokenizer.json", TINY_TOKENIZER);
    files.write("tokenizer_config.json", "{}");
    let output = warmroute(&["check", path, "--tokenizer", files.0.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0));
    let flow = "who reads what:
  queue-scorer                 metrics of metrics-data-source, by /metrics of every engine
  kv-cache-utilization-scorer  metrics of metrics-data-source, by /metrics of every engine
  prefix-cache-scorer          prefix matches of approx-prefix-cache-producer, by KV events of every engine \
                where they are seen, else what this picker has sent to each endpoint, and token ids by --tokenizer
  utilization-detector         metrics of metrics-data-source, by /metrics of every engine
";
    assert_eq!(out(&output), format!("{path}: ok\n\n{flow}"));

    let output = warmroute(&["check", path, "--tokenizer", "/no/such/folder"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(out(&output).contains("--tokenizer: tokenizer directory /no/such/folder does not exist"));

    let missing = files.0.path().join("missing.yaml");
    let output = warmroute(&["check", missing.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(out(&output).contains("can't read"), "{}", out(&output));
    let output = warmroute(&["check", missing.to_str().unwrap(), "--json"]);
    assert_eq!(output.status.code(), Some(2));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["ok"], &report["mistakes"]), (&json!(false), &json!([])));
    assert!(report["unreadable"].as_str().unwrap().contains("missing.yaml"));
}

/// A file that leaves much to defaults.
const SPARSE: &str = "\
apiVersion: llm-d.ai/v1
kind: EndpointPickerConfig
plugins:
- {type: prefix-cache-scorer, name: warm}
- type: queue-scorer
- type: token-producer
  parameters: {local: {path: /models/none}}
- type: precise-prefix-cache-producer
  name: exact
  parameters:
    kvEventsConfig: {topicFilter: \"kv@\", podDiscoveryConfig: {socketPort: 6000}}
- type: file-discovery
  parameters: {path: /etc/endpoints.yaml, watchFile: true}
- type: metrics-data-source
  name: pages
  parameters: {port: 8080, interval: 100ms}
schedulingProfiles:
- name: only
  plugins:
  - {pluginRef: warm, weight: 2.5}
  - pluginRef: queue-scorer
dataLayer:
  discovery: {endpoints: {pluginRef: file-discovery}}
";

/// Profiles for every kind of handler that takes several.
const HANDLED: &str = "\
apiVersion: llm-d.ai/v1
kind: EndpointPickerConfig
plugins:
- HANDLER
- {type: prefix-based-pd-decider, name: d, parameters: {nonCachedTokens: 16}}
- type: max-score-picker
schedulingProfiles:
- {name: decode, plugins: [{pluginRef: max-score-picker}]}
- {name: prefill, plugins: [{pluginRef: max-score-picker}]}
- {name: helper, plugins: [{pluginRef: max-score-picker}]}
- {name: encode, plugins: [{pluginRef: max-score-picker}]}
";

#[test]
fn the_effective_configuration_has_every_default_and_reads_as_itself() {
    let files = Files::new();
    let old = "{type: pd-profile-handler, parameters: {primaryPort: 8000, deciderPluginName: d}}";
    let new = "{type: disagg-profile-handler, parameters: {stageOrder: decode-first, profiles: {prefill: helper}, \
               deciders: {prefill: d, encode: d}, onPrefillFailure: refuse}}";
    let first = "{type: disagg-profile-handler, parameters: {stageOrder: prefill-first, profiles: {prefill: helper}}}";
    let named = "{type: header-profile-handler, parameters: {headerName: X-Stage}}";
    let handlers = [old, new, first, named].map(|handler| HANDLED.replace("HANDLER", handler));
    let handlers = handlers.iter().map(String::as_str);
    for text in [SPARSE, warmroute_config::BUILT_IN].into_iter().chain(handlers) {
        let path = files.write("given.yaml", text);
        let first = report(&options(&path))["effective"].clone();
        assert!(first.is_object());
        // As JSON and as YAML.
        let path = files.write("effective.json", &first.to_string());
        assert_eq!(report(&options(&path))["effective"], first);
        let check = CheckOptions { json: false, ..options(&files.write("given.yaml", text)) };
        let shown = CheckReport::new(&check, &Arc::new(registry())).text().unwrap();
        let yaml = &shown[shown.find("apiVersion").unwrap()..];
        let again = report(&options(&files.write("effective.yaml", yaml)));
        assert_eq!(again["effective"], first, "{yaml}");
    }
    let effective = report(&options(&files.write("given.yaml", SPARSE)))["effective"].clone();
    let of_type = |plugin_type: &str| {
        let plugins = effective["plugins"].as_array().unwrap();
        plugins.iter().find(|plugin| plugin["type"] == plugin_type).unwrap().clone()
    };
    assert_eq!(of_type("max-score-picker")["parameters"], json!({"maxNumOfEndpoints": 1}));
    let scorer = of_type("prefix-cache-scorer");
    assert_eq!(scorer["name"], "warm");
    assert_eq!(scorer["parameters"]["prefixMatchInfoProducerName"], "exact");
    assert_eq!(scorer["parameters"]["matchLengthScaleTokens"], json!(8192.0));
    let events = json!({"topicFilter": "kv@", "concurrency": 4, "podDiscoveryConfig": {"socketPort": 6000}});
    let producer = of_type("precise-prefix-cache-producer");
    assert_eq!(producer["parameters"]["speculativeTTL"], "2s");
    assert_eq!(producer["parameters"]["kvEventsConfig"], events);
    let source = json!({"scheme": "http", "path": "/metrics", "port": 8080, "interval": "100ms"});
    assert_eq!(of_type("metrics-data-source")["parameters"], source);
    let discovery = &effective["dataLayer"]["discovery"];
    assert_eq!(discovery, &json!({"endpoints": {"pluginRef": "file-discovery"}}));
    let file = json!({"path": "/etc/endpoints.yaml", "watchFile": true});
    assert_eq!(of_type("file-discovery")["parameters"], file);
    let refs = &effective["schedulingProfiles"][0]["plugins"];
    assert_eq!(refs[1], json!({"pluginRef": "queue-scorer", "weight": 1.0}));
    assert_eq!(refs[2], json!({"pluginRef": "max-score-picker"}));
}

#[test]
fn the_summary_comes_before_the_effective_configuration() {
    let files = Files::new();
    let path = files.write("sparse.yaml", SPARSE);
    let output = warmroute(&["check", path.to_str().unwrap(), "--effective"]);
    assert_eq!(output.status.code(), Some(0));
    let text = out(&output);
    let summary = text.find("profile only: warm (prefix-cache-scorer)").expect("the summary");
    assert!(summary < text.find("\napiVersion: llm-d.ai/v1\n").expect("the configuration"), "{text}");
}

#[test]
fn weights_that_cannot_matter_are_noticed() {
    let picker_first = "plugins:\n- type: max-score-picker\n- type: queue-scorer\n";
    let profile = |rest: &str| format!("schedulingProfiles:\n- name: p\n  plugins:\n{rest}");
    let queue = |picker: &str, weight: &str| {
        let scorer = format!("  - {{pluginRef: queue-scorer, weight: {weight}}}\n");
        profile(&format!("  - pluginRef: {picker}\n{scorer}"))
    };
    let with = |weight: &str| notices(&format!("{picker_first}{}", queue("max-score-picker", weight)));
    assert_eq!(with("1"), [] as [&str; 0]);
    assert_eq!(
        with("3"),
        ["5: queue-scorer is the only scorer of profile p, so its weight 3 changes nothing"]
    );
    let zero = with("0");
    assert_eq!(
        zero,
        [
            "5: queue-scorer has weight 0 in profile p, so its scores don't count",
            "7: profile p has scorers that can only tie (queue-scorer: its weight is 0)",
        ]
    );
    assert_eq!(
        with("-1"),
        ["5: queue-scorer has a negative weight in profile p: what it prefers is avoided"]
    );
    let random = "plugins:\n- type: random-picker\n- type: queue-scorer\n";
    let random = notices(&format!("{random}{}", queue("random-picker", "2")));
    assert_eq!(random, ["7: profile p picks whatever the scores are, so its scorers don't matter"]);
    let none = notices(&format!(
        "plugins:\n- type: max-score-picker\n{}",
        profile("  - pluginRef: max-score-picker\n")
    ));
    assert_eq!(none, ["6: profile p has no scorer, so all endpoints tie"]);
}

#[test]
fn scorers_that_see_nothing_are_noticed() {
    let unscraped = "plugins:\n- type: queue-scorer\n- type: kv-cache-utilization-scorer\n\
                     dataLayer: {injectDefaults: false}\n\
                     schedulingProfiles:\n- name: p\n  plugins:\n  - pluginRef: queue-scorer\n  \
                     - pluginRef: kv-cache-utilization-scorer\n";
    let unscraped = notices(unscraped);
    let unseen = "null: utilization-detector tells by metrics how full the pool is";
    assert!(unscraped.iter().any(|notice| notice.starts_with(unseen)), "{unscraped:?}");
    let tie = "8: profile p has scorers that can only tie (queue-scorer: no metrics are scraped; \
               kv-cache-utilization-scorer: no metrics are scraped)";
    assert!(unscraped.iter().any(|notice| notice == tie), "{unscraped:?}");

    let unused = notices(
        "plugins:\n- type: queue-scorer\n- type: active-request-scorer\n\
         schedulingProfiles:\n- name: p\n  plugins:\n  - pluginRef: queue-scorer\n",
    );
    let unused = unused.iter().filter(|notice| notice.contains("does nothing")).collect::<Vec<_>>();
    assert_eq!(unused, ["5: active-request-scorer is in no scheduling profile, so it does nothing"]);

    let prefix = "plugins:\n- type: prefix-cache-scorer\n- type: precise-prefix-cache-producer\n";
    let without = notices(prefix);
    assert!(
        without
            .iter()
            .any(|n| n.starts_with("4: prefix-cache-scorer finds matches for prompts of token ids"))
    );
    assert!(without.iter().any(|n| n.contains("can only tie (prefix-cache-scorer: without a tokenizer")));
    let with = notices(&format!("{prefix}- {{type: token-producer, parameters: {{local: {{path: /m}}}}}}\n"));
    assert!(!with.iter().any(|n| n.contains("tokenizer") || n.contains("tie")), "{with:?}");
}

#[test]
fn deprecated_spellings_come_with_their_replacement() {
    let files = Files::new();
    let text = SPARSE.replace("llm-d.ai/v1", "inference.networking.x-k8s.io/v1alpha1");
    let path = files.write("old.yaml", &text);
    let output = warmroute(&["check", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0));
    let line = format!("{}:1:13: notice: apiVersion", path.display());
    let text = out(&output);
    assert!(
        text.lines().any(|l| l.starts_with(&line) && l.contains("deprecated: write llm-d.ai/v1")),
        "{text}"
    );
}

#[test]
fn linked_plugins_are_listed_with_their_defaults() {
    let output = warmroute(&["plugins"]);
    assert_eq!(output.status.code(), Some(0));
    let table = out(&output);
    assert_eq!(table, PluginList::new(&registry()).table());
    assert!(
        table
            .lines()
            .any(|l| l.starts_with("queue-scorer ") && l.contains("  scorer ") && l.contains("  prefers")),
        "{table}"
    );
    assert!(table.contains("\n    matchLengthScaleTokens = 8192.0\n"), "{table}");
    let output = warmroute(&["plugins", "--json"]);
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    let host = warmroute_config::host_parts();
    assert_eq!(list.as_array().unwrap().len(), registry().types().len() + host.len());
    assert!(table.contains("\nmetrics-data-source  "), "{table}");
    assert!(table.contains("\n    speculativeTTL = \"2s\"\n"), "{table}");
    assert!(table.contains("\n    vllm.timeout = \"5s\"\n    vllm.mmTimeout = \"30s\"\n"), "{table}");
    let picker = list.as_array().unwrap().iter().find(|p| p["type"] == "max-score-picker").unwrap();
    assert_eq!(picker["kind"], "picker");
    let parameter = json!({"name": "maxNumOfEndpoints", "required": false, "default": 1});
    assert_eq!(picker["parameters"], json!([parameter]));
}

/// The EPP's flags: one spelling that is taken as it would be there, and one that is refused, if there is one.
const PEER_FLAGS: &[(&str, Option<&str>)] = &[
    ("--grpc-port=9002", None),
    ("--grpc-health-port=9003", None),
    ("--metrics-port=9090", None),
    ("--pool-name=llama-pool", None),
    ("--pool-namespace=default", None),
    ("--pool-group=inference.networking.x-k8s.io", None),
    ("--endpoint-selector=app=vllm", None),
    ("--endpoint-target-ports=8000,8001", None),
    ("--endpoint-target-ports=", None),
    ("--disable-endpoint-subset-filter=true", None),
    ("--emit-endpoint-scores=true", None),
    ("--refresh-metrics-interval=50ms", None),
    ("--refresh-prometheus-metrics-interval=10s", None),
    ("--metrics-staleness-threshold=2s", None),
    ("--ha-enable-leader-election", None),
    ("--drain-timeout=30s", None),
    ("--grpc-max-recv-msg-size=16MiB", None),
    ("--grpc-max-send-msg-size=4M", None),
    ("--config-file=/config/default-plugins.yaml", None),
    ("--config-text={}", None),
    ("--allow-experimental-plugins", None),
    ("--v=5", None),
    ("-v=1", None),
    ("--zap-devel=false", None),
    ("--zap-encoder=json", None),
    ("--zap-log-level=info", None),
    ("--zap-stacktrace-level=error", None),
    ("--zap-time-encoding=rfc3339", Some("--zap-time-encoding=epoch")),
    ("--tracing=false", None),
    ("--health-checking", None),
    ("--enable-pprof=false", None),
    ("--secure-serving=true", None),
    ("--cert-path=/certs", None),
    ("--enable-cert-reload=true", None),
    ("--tls-min-version=VersionTLS13", None),
    ("--tls-cipher-suites=TLS_AES_128_GCM_SHA256", None),
    ("--metrics-endpoint-auth=false", None),
    ("--metrics-cert-dir=/certs", None),
    ("--metrics-client-ca-file=/ca.crt", None),
    ("--enable-grpc-stream-metrics", None),
];

#[test]
fn every_flag_of_the_peer_is_known() {
    let checked = |flag: &str| {
        let cli = Cli::try_parse_from(["warmroute", flag]).unwrap_or_else(|error| panic!("{flag}: {error}"));
        cli.serve.peer.check()
    };
    for (taken, refused) in PEER_FLAGS {
        assert_eq!(checked(taken), Ok(()), "{taken}");
        if let Some(given) = refused {
            let error = checked(given).expect_err(given);
            let [flag] = error.flags.as_slice() else { panic!("{error}") };
            let name = given.split_once('=').map_or(*given, |(name, _)| name);
            assert_eq!(flag.flag, name);
            assert!(!flag.value.is_empty() && flag.why.len() > 20, "{flag}");
        }
    }
    for name in [
        "--total-queued-requests-metric",
        "--total-running-requests-metric",
        "--kv-cache-usage-percentage-metric",
        "--lora-info-metric",
        "--cache-info-metric",
    ] {
        let error = checked(&format!("{name}=x")).expect_err(name).to_string();
        assert!(error.starts_with(name) && error.contains("core-metrics-extractor"), "{error}");
    }
}

#[test]
fn refused_flags_end_the_program_before_it_serves() {
    let output =
        warmroute(&["--zap-time-encoding=epoch", "--total-queued-requests-metric=x", "--grpc-port=0"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("--zap-time-encoding=epoch is not available"), "{error}");
    assert!(error.contains("--total-queued-requests-metric=x is not available"), "{error}");
}

#[test]
fn help_groups_the_flags_of_the_peer() {
    let help = out(&warmroute(&["--help"]));
    let heading = help.find("Flags of the llm-d Router EPP:").expect("the heading");
    assert!(help.find("--zap-encoder").expect("the flag") > heading);
    assert!(help.find("--endpoints").expect("the flag") < heading);
    assert!(!help[heading..].contains("--drain-timeout"), "{help}");
}
