//! The columns of one decision: what is known of every candidate at its moment.

use std::sync::Arc;
use std::time::{Duration, Instant};

use warmroute_plugin::{AdapterState, Candidates, ColumnMismatch, Endpoint, InFlight, MetricsState};

use super::prefix_signals::{PrefixLookup, PrefixSignals};
use crate::policy::Policy;
use crate::pool::{EndpointState, PoolSnapshot};

/// One value per row, in the order of the pool's rows that take part.
#[derive(Debug, Default)]
pub(super) struct Signals {
    /// Which row of the pool each row is.
    rows: Vec<u32>,
    pub(super) metrics: Vec<MetricsState>,
    pub(super) in_flight: Vec<InFlight>,
    pub(super) prefix: PrefixSignals,
    /// One column after the other, in the scheduler's order.
    attributes: Vec<Option<f64>>,
    /// Empty unless a plugin reads it.
    adapters: Vec<AdapterState>,
}

impl Signals {
    /// Reads metrics and load of all endpoints, or of the given rows of the pool.
    pub(super) fn read(
        &mut self,
        snapshot: &PoolSnapshot,
        rows: Option<&[u32]>,
        now: Instant,
        stale_after: Duration,
    ) {
        self.rows.clear();
        match rows {
            Some(rows) => self.rows.extend_from_slice(rows),
            None => self.rows.extend(0..snapshot.states.len() as u32),
        }
        let states = || self.rows.iter().map(|row| &snapshot.states[*row as usize]);
        self.metrics.clear();
        self.metrics.extend(states().map(|state| state.metrics_state(now, stale_after)));
        self.in_flight.clear();
        self.in_flight.extend(states().map(|state| state.load.in_flight()));
        self.prefix.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The row of the pool that a row is.
    pub(super) fn pool_row(&self, row: usize) -> usize {
        self.rows[row] as usize
    }

    /// Fills the columns of prefix matches, see [`PrefixSignals::look_up`].
    pub(super) fn look_up(&mut self, from: &PrefixLookup<'_>) -> u32 {
        let from = PrefixLookup { rows: &self.rows, ..*from };
        self.prefix.look_up(&from)
    }

    /// Fills the columns that plugins asked for beside prefix matches. Where metrics aren't fresh nothing is known.
    pub(super) fn read_attributes(&mut self, snapshot: &PoolSnapshot, policy: &Policy, model: &str) {
        let fresh = || {
            let rows = self.rows.iter().zip(&self.metrics);
            rows.map(|(row, state)| state.fresh().map(|_| &snapshot.states[*row as usize]))
        };
        self.attributes.clear();
        for attribute in &policy.attributes {
            self.attributes
                .extend(fresh().map(|state| state?.of_scrape(|scrape| attribute.of(scrape)).flatten()));
        }
        self.adapters.clear();
        if policy.scheduler.reads_adapters() {
            let state_of = |state: Option<&Arc<EndpointState>>| state.map(|state| state.adapter_state(model));
            self.adapters.extend(fresh().map(|state| state_of(state).unwrap_or_default()));
        }
    }

    /// The table that plugins see.
    ///
    /// # Errors
    /// The columns don't fit each other, which would be a mistake here.
    pub(super) fn candidates<'a>(
        &'a self,
        endpoints: &'a [Arc<Endpoint>],
    ) -> Result<Candidates<'a>, ColumnMismatch> {
        Candidates::builder(endpoints)
            .rows(&self.rows)
            .metrics(&self.metrics)
            .in_flight(&self.in_flight)
            .prefix_matches(self.prefix.columns())
            .attributes(&self.attributes)
            .adapters(&self.adapters)
            .build()
    }
}
