//! The endpoints considered for one request, as columns.

use std::sync::Arc;

use http::HeaderMap;

use crate::{AdapterState, Endpoint, InFlight, MetricsState, PrefixMatch};

/// A handle on the column of one prefix producer, got from
/// [`BuildContext::prefix_match`](crate::BuildContext::prefix_match) when the plugin is built.
///
/// It is valid for the candidates of the scheduler for which the plugin was built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixColumn(pub(crate) usize);

/// A handle on the column of one attribute, got from [`BuildContext::attribute`](crate::BuildContext::attribute)
/// when the plugin is built; valid like a [`PrefixColumn`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttributeColumn(pub(crate) usize);

/// A handle on the column of adapters, got from [`BuildContext::adapters`](crate::BuildContext::adapters) when the
/// plugin is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdapterColumn(pub(crate) ());

/// The endpoints considered for one request: a borrowed table.
///
/// A row is one endpoint, and keeps its number while one profile scores and picks. Every accessor of a
/// column gives one value per row. Filters see the rows that the filters before them left; scorers and
/// the picker see the rows that all filters left.
#[derive(Clone, Copy, Debug)]
pub struct Candidates<'a> {
    endpoints: &'a [Arc<Endpoint>],
    /// Which of `endpoints` this table is about; `None` means all of them, in order.
    base: Option<&'a [u32]>,
    /// Which of those the rows are; `None` means all of them, in order.
    rows: Option<&'a [u32]>,
    metrics: &'a [MetricsState],
    in_flight: &'a [InFlight],
    /// One column after the other, each as long as the table.
    prefix_matches: &'a [PrefixMatch],
    /// One column after the other, each as long as the table.
    attributes: &'a [Option<f64>],
    /// As long as the table, or empty if nobody asked for it.
    adapters: &'a [AdapterState],
    /// What an earlier profile picked for the same request.
    peer: Option<&'a Arc<Endpoint>>,
}

impl<'a> Candidates<'a> {
    /// Starts a table over `endpoints`. The host calls this, and tests may; plugins are given a table.
    pub fn builder(endpoints: &'a [Arc<Endpoint>]) -> CandidatesBuilder<'a> {
        CandidatesBuilder {
            table: Self {
                endpoints,
                base: None,
                rows: None,
                metrics: &[],
                in_flight: &[],
                prefix_matches: &[],
                attributes: &[],
                adapters: &[],
                peer: None,
            },
        }
    }

    /// Starts a table over some rows of this one; its columns are given anew. For the host, once: the
    /// new table can't be selected from again.
    #[doc(hidden)]
    pub fn select(&self, rows: &'a [u32]) -> CandidatesBuilder<'a> {
        let mut builder = Self::builder(self.endpoints).rows(rows);
        builder.table.base = self.rows;
        builder.table.peer = self.peer;
        builder
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.map_or(self.endpoints.len(), <[u32]>::len)
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The endpoint of every row.
    pub fn endpoints(&self) -> impl ExactSizeIterator<Item = &'a Arc<Endpoint>> + use<'a> {
        let table = *self;
        (0..self.len()).map(move |row| table.endpoint(row))
    }

    /// The endpoint of one row.
    ///
    /// # Panics
    ///
    /// If `row` is not below [`len`](Self::len), like indexing a slice.
    pub fn endpoint(&self, row: usize) -> &'a Arc<Endpoint> {
        let at = |rows: Option<&[u32]>, row: usize| rows.map_or(row, |rows| rows[row] as usize);
        &self.endpoints[at(self.base, at(self.rows, row))]
    }

    /// What is known of every row's metrics.
    pub fn metrics(&self) -> &'a [MetricsState] {
        self.metrics
    }

    /// What this picker has in flight on every row.
    pub fn in_flight(&self) -> &'a [InFlight] {
        self.in_flight
    }

    /// How much of the prompt every row holds, as seen by one producer.
    ///
    /// Empty if the handle comes from another scheduler and this table has no such column.
    pub fn prefix_match(&self, column: PrefixColumn) -> &'a [PrefixMatch] {
        self.prefix_column(column.0)
    }

    /// What a producer says of every row, as a number; `None` where it has no value.
    ///
    /// Empty if the handle comes from another scheduler and this table has no such column.
    pub fn attribute(&self, column: AttributeColumn) -> &'a [Option<f64>] {
        self.attribute_column(column.0)
    }

    /// Where every row stands with the request's LoRA adapter.
    ///
    /// Empty if the handle comes from another scheduler and this table has no such column.
    pub fn adapters(&self, _column: AdapterColumn) -> &'a [AdapterState] {
        self.adapters
    }

    /// The endpoint that an earlier profile picked for the same request, where several profiles take part: for a
    /// prefill endpoint its decode endpoint, say. `None` in the first profile.
    pub fn peer(&self) -> Option<&'a Arc<Endpoint>> {
        self.peer
    }

    /// The same table for a profile that comes after `peer` was picked. For the host.
    #[doc(hidden)]
    #[must_use]
    pub fn with_peer(self, peer: Option<&'a Arc<Endpoint>>) -> Self {
        Self { peer, ..self }
    }

    /// The attribute column by its number. For the host; plugins hold an [`AttributeColumn`].
    #[doc(hidden)]
    pub fn attribute_column(&self, index: usize) -> &'a [Option<f64>] {
        let start = index.saturating_mul(self.len());
        self.attributes.get(start..start.saturating_add(self.len())).unwrap_or(&[])
    }

    /// Number of attribute columns. For the host.
    #[doc(hidden)]
    pub fn attribute_columns(&self) -> usize {
        self.attributes.len().checked_div(self.len()).unwrap_or(0)
    }

    /// The column of adapters, empty if there is none. For the host.
    #[doc(hidden)]
    pub fn adapter_column(&self) -> &'a [AdapterState] {
        self.adapters
    }

    /// The prefix column by its number. For the host; plugins hold a [`PrefixColumn`].
    #[doc(hidden)]
    pub fn prefix_column(&self, index: usize) -> &'a [PrefixMatch] {
        let start = index.saturating_mul(self.len());
        let end = start.saturating_add(self.len());
        self.prefix_matches.get(start..end).unwrap_or(&[])
    }

    /// Number of prefix columns. For the host.
    #[doc(hidden)]
    pub fn prefix_columns(&self) -> usize {
        self.prefix_matches.len().checked_div(self.len()).unwrap_or(0)
    }
}

/// Puts columns beside the endpoints; see [`Candidates::builder`].
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct CandidatesBuilder<'a> {
    table: Candidates<'a>,
}

impl<'a> CandidatesBuilder<'a> {
    /// Takes only some of the endpoints: the row numbers into the endpoint slice. The other columns are
    /// as long as `rows`.
    pub fn rows(mut self, rows: &'a [u32]) -> Self {
        self.table.rows = Some(rows);
        self
    }

    /// One state per row.
    pub fn metrics(mut self, metrics: &'a [MetricsState]) -> Self {
        self.table.metrics = metrics;
        self
    }

    /// One count per row.
    pub fn in_flight(mut self, in_flight: &'a [InFlight]) -> Self {
        self.table.in_flight = in_flight;
        self
    }

    /// The prefix columns one after the other: all rows of the first producer, then all rows of the
    /// second. The order of the producers is the scheduler's.
    pub fn prefix_matches(mut self, prefix_matches: &'a [PrefixMatch]) -> Self {
        self.table.prefix_matches = prefix_matches;
        self
    }

    /// The attribute columns one after the other, like
    /// [`prefix_matches`](Self::prefix_matches), in the order of the scheduler.
    pub fn attributes(mut self, attributes: &'a [Option<f64>]) -> Self {
        self.table.attributes = attributes;
        self
    }

    /// One state per row, or nothing if nobody asked for the column.
    pub fn adapters(mut self, adapters: &'a [AdapterState]) -> Self {
        self.table.adapters = adapters;
        self
    }

    /// What an earlier profile picked for the same request.
    pub fn peer(mut self, peer: Option<&'a Arc<Endpoint>>) -> Self {
        self.table.peer = peer;
        self
    }

    /// The table.
    ///
    /// # Errors
    ///
    /// If a column isn't as long as the table, or a row number has no endpoint.
    pub fn build(self) -> Result<Candidates<'a>, ColumnMismatch> {
        let table = self.table;
        let rows = table.len();
        let check = |column, found, fits: bool| {
            if fits { Ok(()) } else { Err(ColumnMismatch { column, rows, found }) }
        };
        check("metrics", table.metrics.len(), table.metrics.len() == rows)?;
        check("in_flight", table.in_flight.len(), table.in_flight.len() == rows)?;
        let prefix = table.prefix_matches.len();
        check("prefix_matches", prefix, prefix.checked_rem(rows).unwrap_or(prefix) == 0)?;
        let attributes = table.attributes.len();
        check("attributes", attributes, attributes.checked_rem(rows).unwrap_or(attributes) == 0)?;
        let adapters = table.adapters.len();
        check("adapters", adapters, adapters == 0 || adapters == rows)?;
        let last = table.rows.and_then(|rows| rows.iter().max()).map_or(0, |&row| row as usize + 1);
        check("rows", last, last <= table.base.map_or(table.endpoints.len(), <[u32]>::len))?;
        Ok(table)
    }
}

/// A column of a table has the wrong length: a mistake of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column} has {found} values for {rows} rows")]
pub struct ColumnMismatch {
    /// The column.
    pub column: &'static str,
    /// Rows of the table.
    pub rows: usize,
    /// Values of the column.
    pub found: usize,
}

/// Headers that plugins want to have set because of a pick. Each replaces all values that were there before.
#[derive(Clone, Debug, Default)]
pub struct PickHeaders {
    /// On the request, for the engine or a proxy before it.
    pub request: HeaderMap,
    /// On the response, for the client. Set only where the gateway shows response headers to the picker.
    pub response: HeaderMap,
}

/// The outcome of a decision, as filters and scorers learn it.
#[derive(Clone, Copy, Debug)]
pub struct Pick<'a> {
    profile: &'a str,
    candidates: Candidates<'a>,
    order: &'a [u32],
    is_primary: bool,
}

impl<'a> Pick<'a> {
    /// A pick among `candidates`; `order` are their rows, best first.
    ///
    /// `None` if `order` is empty or names a row that isn't there. The host calls this, and tests may.
    pub fn try_new(profile: &'a str, candidates: Candidates<'a>, order: &'a [u32]) -> Option<Self> {
        let rows = candidates.len();
        let fits = !order.is_empty() && order.iter().all(|&row| (row as usize) < rows);
        fits.then_some(Self { profile, candidates, order, is_primary: true })
    }

    /// The same pick, of the profile that decides where the request goes or of another one.
    #[must_use]
    pub fn primary(self, is_primary: bool) -> Self {
        Self { is_primary, ..self }
    }

    /// Whether the profile is the one that decides where the request goes; others pick helpers, such as a prefill
    /// endpoint.
    pub fn is_primary(&self) -> bool {
        self.is_primary
    }

    /// The scheduling profile that decided.
    pub fn profile(&self) -> &'a str {
        self.profile
    }

    /// The endpoint that the request goes to.
    pub fn endpoint(&self) -> &'a Arc<Endpoint> {
        self.candidates.endpoint(self.row())
    }

    /// The row of [`endpoint`](Self::endpoint) in [`candidates`](Self::candidates).
    pub fn row(&self) -> usize {
        self.order.first().map_or(0, |&row| row as usize)
    }

    /// The endpoint, then the fallbacks that the proxy may try, best first.
    pub fn endpoints(&self) -> impl ExactSizeIterator<Item = &'a Arc<Endpoint>> + use<'a> {
        let candidates = self.candidates;
        self.order.iter().map(move |&row| candidates.endpoint(row as usize))
    }

    /// The rows that were scored, with the signals that the decision was based on.
    pub fn candidates(&self) -> &Candidates<'a> {
        &self.candidates
    }
}
