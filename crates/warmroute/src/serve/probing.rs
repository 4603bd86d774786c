//! What a picker says of itself to who examines a gateway.

use std::sync::Arc;

use warmroute_ext_proc::ExtProcService;

use crate::cli::ServeOptions;
use crate::picker::Picker;
use crate::pool::Pool;
use crate::preflight::{ExtProcTls, PickerFacts, ProbeDesk};

/// Where gateways are probed, with what this picker says of itself.
pub(super) fn probe_desk(
    options: &ServeOptions,
    service: &ExtProcService<Picker>,
    pool: &Arc<Pool>,
) -> ProbeDesk {
    let tls = match (options.tls.secure_serving, options.tls.cert_path.as_str()) {
        (false, _) => ExtProcTls::Plaintext,
        (true, "") => ExtProcTls::SelfSigned,
        (true, _) => ExtProcTls::Certificate,
    };
    let asks_for_certificates = !options.tls.client_ca_file.is_empty();
    let instance = format!("{:016x}", fastrand::u64(..));
    let max_request_body_bytes = options.max_request_body_bytes;
    let tokenize_deadline_ms = options.tokenize_deadline.as_millis() as u64;
    let (probes, service, pool) = (service.probes(), service.clone(), pool.clone());
    let facts = move || PickerFacts {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        instance: instance.clone(),
        tls,
        asks_for_certificates,
        max_request_body_bytes,
        tokenize_deadline_ms,
        endpoints: pool.snapshot().states.iter().map(|state| state.endpoint.address.to_string()).collect(),
        streams: service.counters().streams,
    };
    ProbeDesk::new(probes, Arc::new(facts))
}
