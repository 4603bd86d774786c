//! Which engines and which requests: `deploy/demo/scenarios.yaml`, and the request plans that follow from it.

mod document;
mod scenario_file;

use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

pub use document::DocumentWriter;
pub use scenario_file::{
    EngineSpec, HitRatioLead, RepeatSpec, Scenario, ScenarioFile, SharedPrefixSpec, Workload,
};

use crate::load::{Pace, PlannedRequest, poisson_arrivals};

/// Where chat requests go.
const CHAT_PATH: &str = "/v1/chat/completions";

/// The requests of one scenario, the same for every policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Sent first, through the same gateway and policy, and not measured.
    pub warm_up: Vec<PlannedRequest>,
    /// When the warm-up is sent.
    pub warm_up_pace: Pace,
    /// The measured requests.
    pub requests: Vec<PlannedRequest>,
    /// When they are sent.
    pub pace: Pace,
}

impl Plan {
    /// The plan of `scenario` for a model of this name. The same scenario always gives the same plan.
    pub fn new(scenario: &Scenario, model: &str) -> Self {
        match &scenario.workload {
            Workload::Repeat(spec) => repeat(spec, model),
            Workload::SharedPrefix(spec) => shared_prefix(spec, model),
        }
    }
}

fn repeat(spec: &RepeatSpec, model: &str) -> Plan {
    let messages = json!([{"role": "user", "content": spec.prompt.trim()}]);
    let body = chat_body(model, &messages, spec.max_tokens);
    let request = |session: &str| PlannedRequest {
        due: Duration::ZERO,
        path: CHAT_PATH,
        body: body.clone(),
        headers: vec![("x-session-id", session.to_owned())],
    };
    let pace = Pace::OneByOne(Duration::from_millis(spec.gap_ms));
    Plan {
        warm_up: vec![request("warm-up")],
        warm_up_pace: pace,
        requests: vec![request("session-1"); spec.requests],
        pace,
    }
}

fn shared_prefix(spec: &SharedPrefixSpec, model: &str) -> Plan {
    let mut random = fastrand::Rng::with_seed(spec.seed);
    let bodies: Vec<Vec<Bytes>> = (0..spec.groups)
        .map(|_| {
            // Each group's text has a seed of its own, so that adding a group leaves the others as they are.
            let mut writer = DocumentWriter::new(random.u64(..));
            let document = writer.document(spec.prefix_words);
            let question = |_| {
                let messages = json!([
                    {"role": "system", "content": &document},
                    {"role": "user", "content": writer.question(spec.question_words)},
                ]);
                chat_body(model, &messages, spec.max_tokens)
            };
            (0..=spec.questions_per_group).map(question).collect()
        })
        .collect();
    let mut order: Vec<(usize, usize)> = (0..spec.groups)
        .flat_map(|group| (1..=spec.questions_per_group).map(move |question| (group, question)))
        .collect();
    random.shuffle(&mut order);
    let mut first: Vec<(usize, usize)> = (0..spec.groups).map(|group| (group, 0)).collect();
    random.shuffle(&mut first);
    let mut schedule = |order: Vec<(usize, usize)>, rate_per_s: f64| {
        let due = poisson_arrivals(order.len(), rate_per_s, &mut random);
        let request = |((group, question), due): ((usize, usize), Duration)| PlannedRequest {
            due,
            path: CHAT_PATH,
            body: bodies[group][question].clone(),
            headers: Vec::new(),
        };
        order.into_iter().zip(due).map(request).collect::<Vec<_>>()
    };
    Plan {
        warm_up: schedule(first, spec.warm_up_rate_per_s),
        warm_up_pace: Pace::Scheduled,
        requests: schedule(order, spec.rate_per_s),
        pace: Pace::Scheduled,
    }
}

fn chat_body(model: &str, messages: &serde_json::Value, max_tokens: u32) -> Bytes {
    let body = json!({
        "model": model,
        "messages": messages,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    body.to_string().into()
}
