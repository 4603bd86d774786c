//! The gRPC health service, with the answers of the llm-d Router EPP (`cmd/epp/runner/health.go`).

use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::readiness::Readiness;

/// The service that Envoy asks for.
const EXT_PROC: &str = "envoy.service.ext_proc.v3.ExternalProcessor";

/// Answers SERVING while the picker is ready. Helm probes ask for `inference-extension`, Envoy for the ext-proc
/// service, others for the empty name: all get the same answer.
///
/// With an election names matter: `liveness` is always SERVING, `readiness`, the empty name and the ext-proc service are
/// while this replica leads too, and any other name is SERVICE_UNKNOWN.
#[derive(Debug)]
pub struct HealthService {
    readiness: Readiness,
}

impl HealthService {
    /// The tonic service.
    pub fn server(readiness: Readiness) -> HealthServer<Self> {
        HealthServer::new(Self { readiness })
    }

    fn status_of(&self, service: &str) -> ServingStatus {
        let serving =
            |is_serving| if is_serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        let is_ready = self.readiness.is_ready();
        match (self.readiness.leadership(), service) {
            (None, _) => serving(is_ready),
            (Some(_), "liveness") => ServingStatus::Serving,
            (Some(leads), "readiness" | "" | EXT_PROC) => serving(is_ready && leads),
            (Some(_), _) => ServingStatus::ServiceUnknown,
        }
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    type WatchStream = futures::stream::Pending<Result<HealthCheckResponse, Status>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let status = self.status_of(&request.get_ref().service);
        Ok(Response::new(HealthCheckResponse { status: status.into() }))
    }

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("watching health is not supported: call Check"))
    }
}

#[cfg(test)]
mod tests {
    use super::{EXT_PROC, HealthService, Readiness, ServingStatus};

    const NAMES: [&str; 5] = ["", "readiness", EXT_PROC, "liveness", "inference-extension"];

    fn answers(readiness: &Readiness) -> [ServingStatus; 5] {
        let health = HealthService { readiness: readiness.clone() };
        NAMES.map(|name| health.status_of(name))
    }

    #[test]
    fn names_matter_only_where_a_leader_is_elected() {
        let (yes, no, unknown) =
            (ServingStatus::Serving, ServingStatus::NotServing, ServingStatus::ServiceUnknown);
        let alone = Readiness::default();
        assert_eq!(answers(&alone), [no; 5]);
        alone.pool_is_synced();
        alone.is_listening();
        assert_eq!(answers(&alone), [yes; 5]);
        alone.is_draining();
        assert_eq!(answers(&alone), [no; 5]);

        let elected = Readiness::default();
        elected.leads(true);
        assert_eq!(answers(&elected), [no, no, no, yes, unknown], "a leader that isn't ready");
        elected.pool_is_synced();
        elected.is_listening();
        assert_eq!(answers(&elected), [yes, yes, yes, yes, unknown]);
        elected.leads(false);
        assert_eq!(answers(&elected), [no, no, no, yes, unknown]);
        elected.leads(true);
        elected.is_draining();
        assert_eq!(answers(&elected), [no, no, no, yes, unknown]);
    }
}
