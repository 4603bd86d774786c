//! `session-id-producer`.

use crate::fields::{Fields, Mistakes};
use crate::plugins::Declared;
use crate::{SessionIdProducerSpec, SessionIdSource};

const HINT: &str = "give exactly one of `headerName: …` and `cookieName: …`";

/// `session-id-producer`.
pub(crate) fn session_id_producer(
    declared: &Declared<'_>,
    mistakes: &mut Mistakes,
) -> Option<SessionIdProducerSpec> {
    let Some(node) = declared.parameters else {
        mistakes.hinted(declared.place, format!("{} needs to know where the id is", declared.name), HINT);
        return None;
    };
    let mut fields = Fields::of(node, &declared.name, mistakes);
    let header = fields.text("headerName", mistakes).filter(|(name, _)| !name.trim().is_empty());
    let cookie = fields.text("cookieName", mistakes).filter(|(name, _)| !name.trim().is_empty());
    // In some versions of the peer, which remembered endpoints in the producer.
    for name in ["lruSize", "ttl"] {
        if let Some(entry) = fields.entry(name) {
            let message =
                format!("{name} isn't used: session-affinity plugins remember endpoints themselves");
            mistakes.notice(entry.place, message);
        }
    }
    fields.finish(mistakes);
    let (name, place, source) = match (header, cookie) {
        (Some((name, place)), None) => (name, place, SessionIdSource::Header(name.trim().to_lowercase())),
        (None, Some((name, place))) => (name, place, SessionIdSource::Cookie(name.trim().to_owned())),
        (Some(_), Some((_, place))) => {
            mistakes.hinted(place, format!("{} has two places for the id", declared.name), HINT);
            return None;
        }
        (None, None) => {
            mistakes.hinted(node.place, format!("{} needs to know where the id is", declared.name), HINT);
            return None;
        }
    };
    if !name.trim().bytes().all(is_token_byte) {
        mistakes.at(place, format!("{name:?} can't be the name of a header or a cookie"));
        return None;
    }
    Some(SessionIdProducerSpec { name: declared.name.clone(), source })
}

/// What a name may consist of: `token` in RFC 9110, section 5.6.2, and in RFC 6265, section 4.1.1.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
