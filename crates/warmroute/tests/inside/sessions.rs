//! Sessions stay where they are: by token, by id, and across a change of the configuration.

use std::path::Path;
use std::sync::Arc;

use warmroute::profile::{build_scheduler, read_config};
use warmroute::reload::ConfigWatch;
use warmroute_ext_proc::{EndpointPicker, HeaderList, HttpRequest, Picked};

use crate::fixture::{Fixture, options, registry};

const BY_TOKEN: &str = "
apiVersion: llm-d.ai/v1
kind: EndpointPickerConfig
plugins:
- type: session-affinity-scorer
- type: random-picker
- type: max-score-picker
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: session-affinity-scorer
  - pluginRef: max-score-picker
";

const BY_COOKIE: &str = "
apiVersion: llm-d.ai/v1
kind: EndpointPickerConfig
plugins:
- type: session-id-producer
  name: conversation
  parameters:
    cookieName: sid
- type: session-affinity-filter
  parameters:
    strategy: session_id
    sessionIdConfig:
      sources:
      - attribute: SessionID
        producer: conversation
- type: random-picker
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: session-affinity-filter
  - pluginRef: random-picker
";

fn request(name: &str, value: &str) -> HttpRequest {
    let headers = [(":method", "POST"), (":path", "/v1/completions"), (name, value)];
    HttpRequest::new(HeaderList::from_pairs(headers), r#"{"model":"m","prompt":[1,2,3]}"#)
}

async fn pick(fixture: &Fixture, name: &str, value: &str) -> Picked<warmroute::lease::Lease> {
    fixture.picker.pick(request(name, value)).await.unwrap()
}

#[tokio::test]
async fn the_response_brings_the_token_that_leads_back() {
    let fixture = Fixture::new(BY_TOKEN, 8);
    let first = pick(&fixture, "x-other", "1").await;
    let [(name, token)] = &first.response_headers[..] else { panic!("one header") };
    assert_eq!(name, "x-session-token");
    for _ in 0..20 {
        let again = pick(&fixture, "x-session-token", token).await;
        assert_eq!(again.destinations, first.destinations);
        assert_eq!(again.response_headers, first.response_headers);
    }
}

#[tokio::test]
async fn a_session_is_found_in_a_cookie_and_outlives_a_changed_configuration() {
    let fixture = Fixture::new(BY_COOKIE, 8);
    let cookie = |session: usize| format!("theme=dark; sid=conversation-{session}");
    let mut homes = Vec::new();
    for session in 0..8 {
        homes.push(pick(&fixture, "cookie", &cookie(session)).await.destinations);
    }
    assert!(homes.iter().any(|home| *home != homes[0]), "at random, so not all in one place");
    let watch = ConfigWatch {
        path: Path::new("config.yaml").to_owned(),
        registry: Arc::new(registry()),
        decider: fixture.decider.clone(),
        tasks: fixture.tasks.clone(),
        metrics: fixture.metrics.clone(),
        status: Arc::default(),
    };
    let mut running = read_config(&options(BY_COOKIE), &watch.registry).unwrap();
    for change in ["name: first", "name: second"] {
        watch.change(&mut running, BY_COOKIE.replace("name: default", change).as_bytes());
        for (session, home) in homes.iter().enumerate() {
            assert_eq!(pick(&fixture, "cookie", &cookie(session)).await.destinations, *home, "{change}");
        }
    }
    assert_eq!(watch.status.lock().taken, 2);
}

#[test]
fn a_session_id_that_nothing_produces_is_refused() {
    let registry = Arc::new(registry());
    let config = read_config(&options(&BY_COOKIE.replace("producer: conv", "producer: conf")), &registry);
    let error = build_scheduler(&config.unwrap(), &registry).err().unwrap().to_string();
    assert!(error.contains("SessionID/confersation"), "{error}");
}
