//! What is made of a cluster, against a fake API server over real sockets. Waits are for the pool and for the status,
//! never for time.

mod client;
mod cluster;
mod following;
mod outages;
mod rules;
