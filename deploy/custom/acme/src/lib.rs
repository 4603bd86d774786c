//! The plugins of acme: a filter, a scorer with a background task, and a picker.

mod near_best_picker;
mod price_scorer;
mod tenant_filter;

pub use near_best_picker::NearBestPicker;
pub use price_scorer::PriceScorer;
pub use tenant_filter::TenantFilter;

use warmroute_plugin::{DuplicateType, Registry};

/// Registers everything in this crate.
///
/// # Errors
///
/// If one of the names is taken.
pub fn register(registry: &mut Registry) -> Result<(), DuplicateType> {
    registry.filter("acme-tenant-filter", "keeps endpoints that serve the tenant", TenantFilter::build)?;
    registry.scorer("acme-price-scorer", "prefers cheap zones", PriceScorer::build)?;
    registry.picker("acme-near-best-picker", "the least busy of the best", NearBestPicker::build)
}
