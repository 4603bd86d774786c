//! The endpoints considered for one request, as columns.

use std::sync::Arc;

use crate::{Endpoint, InFlight, MetricsState, PrefixMatch};

/// A handle on the column of one prefix producer, got from
/// [`BuildContext::prefix_match`](crate::BuildContext::prefix_match) when the plugin is built.
///
/// It is valid for the candidates of the scheduler for which the plugin was built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixColumn(pub(crate) usize);

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
            },
        }
    }

    /// Starts a table over some rows of this one; its columns are given anew. For the host, once: the
    /// new table can't be selected from again.
    #[doc(hidden)]
    pub fn select(&self, rows: &'a [u32]) -> CandidatesBuilder<'a> {
        let mut builder = Self::builder(self.endpoints).rows(rows);
        builder.table.base = self.rows;
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

/// The outcome of a decision, as [`Scorer::picked`](crate::Scorer::picked) learns it.
#[derive(Clone, Copy, Debug)]
pub struct Pick<'a> {
    profile: &'a str,
    candidates: Candidates<'a>,
    order: &'a [u32],
}

impl<'a> Pick<'a> {
    /// A pick among `candidates`; `order` are their rows, best first.
    ///
    /// `None` if `order` is empty or names a row that isn't there. The host calls this, and tests may.
    pub fn try_new(profile: &'a str, candidates: Candidates<'a>, order: &'a [u32]) -> Option<Self> {
        let rows = candidates.len();
        let fits = !order.is_empty() && order.iter().all(|&row| (row as usize) < rows);
        fits.then_some(Self { profile, candidates, order })
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
