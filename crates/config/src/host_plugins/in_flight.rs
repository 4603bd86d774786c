//! `inflight-load-producer`.

use crate::Place;
use crate::fields::{Fields, Mistakes};
use crate::plugins::Declared;

/// `inflight-load-producer`: the producer of prefix matches that it names, and where.
pub(crate) fn in_flight<'n>(declared: &Declared<'n>, mistakes: &mut Mistakes) -> Option<(&'n str, Place)> {
    mistakes.notice(
        declared.place,
        format!("{} needs no plugin here: requests in flight are always counted", declared.name),
    );
    let mut fields = Fields::of(declared.parameters?, &declared.name, mistakes);
    if let Some((true, place)) = fields.boolean("addEstimatedOutputTokens", mistakes) {
        let message = "estimated output tokens aren't counted in this version";
        mistakes.hinted(place, message, "remove addEstimatedOutputTokens; prompt tokens are counted");
    }
    let ratio = fields.number("outputRatio", mistakes);
    if let Some((ratio, place)) = ratio
        && ratio < 0.0
    {
        mistakes.at(place, "outputRatio must be 0 or more");
    }
    let most = fields.whole("maxEstimatedOutputTokens", 0..=u64::MAX, mistakes);
    let places =
        [("outputRatio", ratio.map(|(_, place)| place)), ("maxEstimatedOutputTokens", most.map(|(_, p)| p))];
    for (name, place) in places {
        if let Some(place) = place {
            mistakes.notice(place, format!("{name} isn't used without addEstimatedOutputTokens"));
        }
    }
    if let Some((_, place)) = fields.boolean("syncCrossReplicaState", mistakes) {
        mistakes.notice(place, "syncCrossReplicaState isn't used: every picker counts what it sends itself");
    }
    let named = fields.text("prefixMatchInfoProducerName", mistakes).filter(|(name, _)| !name.is_empty());
    fields.finish(mistakes);
    named
}
