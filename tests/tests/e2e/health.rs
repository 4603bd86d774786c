//! The health services: one answer for every service name, on both gRPC ports.

use tonic_health::pb::health_check_response::ServingStatus;

use crate::fixture::{Picker, PickerOptions, Policy, run};

/// What Kubernetes probes, Envoy and Helm charts ask for, and a name that nobody knows.
const SERVICES: [&str; 4] =
    ["", "envoy.service.ext_proc.v3.ExternalProcessor", "inference-extension", "anything.else"];

#[test]
fn every_service_is_serving_on_both_ports() {
    run(async {
        let picker = Picker::start(&PickerOptions::new(Policy::LeastLoaded)).await;
        for address in [picker.health, picker.grpc] {
            for service in SERVICES {
                assert_eq!(
                    picker.check_health(address, service).await,
                    ServingStatus::Serving,
                    "{address} {service:?}"
                );
            }
        }
        assert_eq!(picker.page("/healthz").await, (200, "ok\n".to_owned()));
    });
}
