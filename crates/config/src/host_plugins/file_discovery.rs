//! `file-discovery`.

use std::path::PathBuf;

use crate::FileDiscoverySpec;
use crate::fields::{Fields, Mistakes};
use crate::plugins::Declared;

/// `file-discovery`.
pub(crate) fn file_discovery(declared: &Declared<'_>, mistakes: &mut Mistakes) -> Option<FileDiscoverySpec> {
    let Some(node) = declared.parameters else {
        let message = format!("{} needs to know which file the endpoints are in", declared.name);
        mistakes.hinted(declared.place, message, "add `parameters: {path: …}`");
        return None;
    };
    let mut fields = Fields::of(node, &declared.name, mistakes);
    let path = fields.required_text("path", mistakes);
    let watch_file = fields.boolean("watchFile", mistakes).is_some_and(|(value, _)| value);
    fields.finish(mistakes);
    let (path, _) = path?;
    Some(FileDiscoverySpec { name: declared.name.clone(), path: PathBuf::from(path), watch_file })
}
