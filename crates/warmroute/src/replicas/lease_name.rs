/// Name of the Lease by which the replicas of one pool elect a leader: the llm-d Router EPP's
/// (`pkg/epp/server/controller_config.go` in github.com/llm-d/llm-d-router).
pub fn lease_name(namespace: &str, pool: &str) -> String {
    format!("epp-{namespace}-{pool}.llm-d.ai")
}
