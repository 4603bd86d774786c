//! The parameters that name where a signal comes from.

use warmroute_plugin::{AttributeColumn, BuildContext, BuildError, PrefixColumn};

/// The one source of in-flight counts. The peer can have several, by name.
pub(crate) const IN_FLIGHT_PRODUCER: &str = "inflight-load-producer";

/// The peer's default source of prefix matches. The host puts the name of the configured producer where a
/// file gives none.
pub(crate) const PREFIX_PRODUCER: &str = "approx-prefix-cache-producer";

pub(crate) fn default_in_flight() -> String {
    IN_FLIGHT_PRODUCER.to_owned()
}

pub(crate) fn default_prefix() -> String {
    PREFIX_PRODUCER.to_owned()
}

/// Checks `inFlightLoadProducerName`: only the default is possible.
pub(crate) fn check_in_flight(name: &str) -> Result<(), BuildError> {
    if name == IN_FLIGHT_PRODUCER {
        return Ok(());
    }
    let reason = format!("there is one source of in-flight counts, {IN_FLIGHT_PRODUCER:?}");
    Err(BuildError::invalid("inFlightLoadProducerName", reason))
}

/// Asks for the column that `prefixMatchInfoProducerName` names.
pub(crate) fn prefix_column(name: &str, context: &mut BuildContext<'_>) -> Result<PrefixColumn, BuildError> {
    if name.is_empty() {
        return Err(BuildError::invalid("prefixMatchInfoProducerName", "must not be empty"));
    }
    Ok(context.prefix_match(name))
}

/// The peer's default source of attributes.
const ATTRIBUTE_PRODUCER: &str = "core-metrics-extractor";

/// Asks for the column of an attribute, which `parameter` names. No producer is the default one; an empty one is
/// whoever makes the attribute.
pub(crate) fn attribute_column(
    parameter: &str,
    attribute: &str,
    producer: Option<&str>,
    context: &mut BuildContext<'_>,
) -> Result<AttributeColumn, BuildError> {
    if attribute.is_empty() {
        return Err(BuildError::invalid(parameter, "must not be empty"));
    }
    Ok(match producer {
        None if attribute.contains('/') => {
            let reason = "has a / in it: name the attribute here and who makes it in producer";
            return Err(BuildError::invalid(parameter, reason));
        }
        None => context.attribute(&format!("{attribute}/{ATTRIBUTE_PRODUCER}")),
        Some("") => context.attribute(attribute),
        Some(producer) => context.attribute(&format!("{attribute}/{producer}")),
    })
}
