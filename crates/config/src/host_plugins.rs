//! Parameters of the plugins that are parts of the host.

mod approximate_prefix;
mod estimate;
mod file_discovery;
mod http_source;
mod in_flight;
mod metrics_extractor;
mod precise_prefix;
mod session_id;
mod token_producer;

pub(crate) use approximate_prefix::{approximate_prefix, burst_prefix};
pub(crate) use file_discovery::file_discovery;
pub(crate) use in_flight::in_flight;
pub(crate) use metrics_extractor::metrics_extractor;
pub(crate) use precise_prefix::prefix_producer;
pub(crate) use session_id::session_id_producer;
pub(crate) use token_producer::token_producer;

use crate::fields::{Fields, Mistakes};
use crate::plugins::Declared;

pub(crate) const PORT: std::ops::RangeInclusive<u64> = 1..=65535;

/// No parameters, for a host plugin that takes none.
pub(crate) fn none(declared: &Declared<'_>, mistakes: &mut Mistakes) {
    if let Some(node) = declared.parameters {
        let fields = Fields::of(node, &declared.name, mistakes);
        fields.finish_with(Some("it takes no parameters; here nothing is ignored: remove it"), mistakes);
    }
}
