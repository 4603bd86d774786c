//! [`FreePorts`]: ports that nobody listens on.

use std::collections::HashSet;
use std::net::{IpAddr, TcpListener};
use std::sync::{Mutex, PoisonError};

use crate::DemoError;

/// Below the range that the kernel takes for outgoing connections (from 32,768 on Linux), so that a port which was free
/// a moment ago is not taken by a connection of ours.
const LOW: u16 = 18_000;
const HIGH: u16 = 31_999;

/// Ports handed out by this process, which are never handed out again.
static TAKEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// Finds free ports. Two processes that look at the same time start at different places, so they rarely meet; whoever
/// loses such a race sees its server end early, with "address in use" in its log.
#[derive(Debug, Clone)]
pub struct FreePorts {
    random: fastrand::Rng,
}

impl Default for FreePorts {
    fn default() -> Self {
        Self { random: fastrand::Rng::new() }
    }
}

impl FreePorts {
    /// A port that is free on every one of `addresses`.
    ///
    /// # Errors
    /// [`DemoError::NoFreePort`] when thousands of attempts found none.
    pub fn on_all(&mut self, addresses: &[IpAddr]) -> Result<u16, DemoError> {
        for _ in 0..4000 {
            let port = self.random.u16(LOW..=HIGH);
            let free = || addresses.iter().all(|address| TcpListener::bind((*address, port)).is_ok());
            let mut guard = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
            let taken = guard.get_or_insert_with(HashSet::new);
            if !taken.contains(&port) && free() {
                taken.insert(port);
                return Ok(port);
            }
        }
        let address = addresses.first().map_or_else(|| "no address".to_owned(), ToString::to_string);
        Err(DemoError::NoFreePort { low: LOW, high: HIGH, address })
    }

    /// A port that is free on 127.0.0.1.
    ///
    /// # Errors
    /// As [`FreePorts::on_all`].
    pub fn on_loopback(&mut self) -> Result<u16, DemoError> {
        self.on_all(&[IpAddr::from([127, 0, 0, 1])])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_handed_out_once_and_can_be_bound() {
        let mut ports = FreePorts::default();
        let hosts = [IpAddr::from([127, 0, 0, 2]), IpAddr::from([127, 0, 0, 3])];
        let mut seen = HashSet::new();
        for _ in 0..50 {
            let port = ports.on_all(&hosts).unwrap();
            assert!(seen.insert(port));
            assert!((LOW..=HIGH).contains(&port));
            for host in hosts {
                TcpListener::bind((host, port)).unwrap();
            }
        }
    }
}
