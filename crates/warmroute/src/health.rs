//! The gRPC health service: one answer for every service name, as the llm-d Router EPP gives without leader election.

use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::readiness::Readiness;

/// Answers SERVING while the picker is ready. Helm probes ask for `inference-extension`, Envoy for the ext-proc
/// service, others for the empty name: all get the same answer.
#[derive(Debug)]
pub struct HealthService {
    readiness: Readiness,
}

impl HealthService {
    /// The tonic service.
    pub fn server(readiness: Readiness) -> HealthServer<Self> {
        HealthServer::new(Self { readiness })
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    type WatchStream = futures::stream::Pending<Result<HealthCheckResponse, Status>>;

    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let status =
            if self.readiness.is_ready() { ServingStatus::Serving } else { ServingStatus::NotServing };
        Ok(Response::new(HealthCheckResponse { status: status.into() }))
    }

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("watching health is not supported: call Check"))
    }
}
