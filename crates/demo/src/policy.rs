//! [`Policy`]: a picker configuration of `deploy/demo/policies`.

use std::path::{Path, PathBuf};

use crate::DemoError;
use crate::harness::PickerOptions;

/// One policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The file's name without `.yaml`.
    pub name: String,
    /// The `EndpointPickerConfig` file.
    pub file: PathBuf,
    /// The comment at the top of the file, as one paragraph.
    pub description: String,
    /// Whether it reads the engines' KV events.
    pub reads_kv_events: bool,
}

impl Policy {
    /// The policy `name` in the source tree at `root`.
    ///
    /// # Errors
    /// [`DemoError::Unknown`] with the names that exist, [`DemoError::File`].
    pub fn load(root: &Path, name: &str) -> Result<Self, DemoError> {
        let folder = root.join("deploy/demo/policies");
        let file = folder.join(format!("{name}.yaml"));
        if !file.is_file() {
            return Err(DemoError::Unknown { kind: "policy", name: name.to_owned(), known: names(&folder) });
        }
        let text = std::fs::read_to_string(&file).map_err(DemoError::file("read", &file))?;
        let comment = text.lines().map_while(|line| line.strip_prefix('#')).map(str::trim);
        let description = comment.collect::<Vec<_>>().join(" ");
        let reads = |line: &str| {
            let types = ["type: precise-prefix-cache-", "type: prefix-cache-producer"];
            !line.trim_start().starts_with('#') && types.iter().any(|name| line.contains(name))
        };
        let reads_kv_events = text.lines().any(reads);
        Ok(Self { name: name.to_owned(), file, description, reads_kv_events })
    }

    /// How to start a picker with this policy.
    pub fn picker_options(&self) -> PickerOptions {
        PickerOptions {
            config_file: self.file.clone(),
            secure_serving: false,
            reads_kv_events: self.reads_kv_events,
            metrics_port: None,
            extra_args: Vec::new(),
        }
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let stem = |path: PathBuf| Some(path.file_stem()?.to_str()?.to_owned());
    let mut names: Vec<String> = entries.filter_map(|entry| stem(entry.path())).collect();
    names.sort();
    names
}
