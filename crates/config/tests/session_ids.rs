//! `session-id-producer`, and the parameters that tell session-affinity plugins where sessions are.

#![allow(clippy::unwrap_used, reason = "a test may, outside of its test functions too")]

use warmroute_config::{CheckedConfig, ConfigError, KnownTypes, SchedulingKind, SessionIdSource, check};

fn config(plugins: &str) -> Result<CheckedConfig, ConfigError> {
    let known = KnownTypes::new([
        ("session-affinity-scorer", SchedulingKind::Scorer),
        ("max-score-picker", SchedulingKind::Picker),
    ]);
    let head = "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\nplugins:\n- type: max-score-picker\n";
    check("test.yaml", format!("{head}{plugins}").as_bytes(), &known)
}

#[test]
fn several_producers_may_be_declared() {
    let plugins = "
- type: session-id-producer
  parameters: {headerName: X-Conversation}
- type: session-id-producer
  name: by-cookie
  parameters: {cookieName: Sid, lruSize: 1024, ttl: 30m}
";
    let config = config(plugins).unwrap();
    let found: Vec<_> =
        config.session_id_producers.iter().map(|spec| (spec.name.as_str(), spec.source.clone())).collect();
    let expected = [
        ("session-id-producer", SessionIdSource::Header("x-conversation".to_owned())),
        ("by-cookie", SessionIdSource::Cookie("Sid".to_owned())),
    ];
    assert_eq!(found, expected);
    let unused = config.notices.iter().filter(|notice| notice.message.contains("isn't used")).count();
    assert_eq!(unused, 2, "{:?}", config.notices);
    let summary = config.summary();
    assert!(summary.contains("session ids: by-cookie from cookie Sid"), "{summary}");
}

#[test]
fn exactly_one_place_must_be_named() {
    for (parameters, place, message) in [
        ("", (5, 3), "needs to know where the id is"),
        ("  parameters: {}\n", (6, 15), "needs to know where the id is"),
        ("  parameters: {headerName: ''}\n", (6, 15), "needs to know where the id is"),
        ("  parameters: {headerName: a, cookieName: b}\n", (6, 43), "has two places for the id"),
        ("  parameters: {headerName: a b}\n", (6, 28), "can't be the name of a header"),
        ("  parameters: {cookieName: 'a;b'}\n", (6, 28), "can't be the name of a header or a cookie"),
        ("  parameters: {headerNam: a, cookieName: b}\n", (6, 16), "has no field \"headerNam\""),
    ] {
        let error = config(&format!("- type: session-id-producer\n{parameters}")).unwrap_err();
        let mistake = &error.mistakes[0];
        assert!(mistake.message.contains(message), "{parameters}: {}", mistake.message);
        assert_eq!((mistake.place.line, mistake.place.column), place, "{parameters}");
    }
}

#[test]
fn session_ids_that_no_strategy_reads_are_told_of() {
    let notices = |parameters: &str| {
        let plugin = format!("- type: session-affinity-scorer\n  parameters:\n{parameters}");
        let notices = config(&plugin).unwrap().notices;
        notices.into_iter().filter(|notice| notice.message.contains("isn't read")).collect::<Vec<_>>()
    };
    let unread = notices("    sessionIdConfig:\n      sources: [{header: x-session-id}]\n");
    assert_eq!(unread.len(), 1);
    assert_eq!(unread[0].place.unwrap().line, 7);
    assert_eq!(notices("    strategy: session_id\n    sessionIdConfig: {}\n"), []);
}
