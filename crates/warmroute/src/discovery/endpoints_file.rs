//! The endpoints file of `file-discovery`.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use warmroute_config::{ConfigError, ListedEndpoint, read_endpoints};

use crate::pool::{DataParallel, DiscoveredEndpoint, EndpointSpec};

/// Read at most: the limit of the format, and one byte to see that a file is over it.
const READ_LIMIT_BYTES: u64 = (1 << 20) + 1;

/// A change counts if the file is still the same after this: a file that is written in place would otherwise be read
/// half, and half a list may look like a whole one.
const SETTLE_TIME: Duration = Duration::from_millis(100);

/// Why an endpoints file isn't taken.
#[derive(Debug, thiserror::Error)]
pub enum EndpointsFileError {
    /// It can't be read.
    #[error("can't read the endpoints file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its text has mistakes.
    #[error(transparent)]
    Mistakes(#[from] ConfigError),
}

/// An endpoints file and what it last said.
#[derive(Debug)]
pub struct EndpointsFile {
    path: PathBuf,
    /// None: it could not be read.
    last: Option<Vec<u8>>,
}

impl EndpointsFile {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// It can't be read, or has mistakes: all of them, with their places.
    pub fn load(path: &Path) -> Result<(Self, Vec<DiscoveredEndpoint>), EndpointsFileError> {
        let text = read(path)?;
        let endpoints = parse(path, &text)?;
        Ok((Self { path: path.to_owned(), last: Some(text) }, endpoints))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file again: its endpoints if its content has changed, None if not. A refusal is told once per change.
    /// The path is followed anew each time, so that it doesn't matter whether a file is rewritten, replaced, or reached
    /// over symbolic links that are swapped, as in a Kubernetes ConfigMap volume.
    ///
    /// # Errors
    /// The file has changed, and can't be read or has mistakes.
    pub async fn changed(&mut self) -> Result<Option<Vec<DiscoveredEndpoint>>, EndpointsFileError> {
        let text = match self.read().await {
            Ok(text) => text,
            Err(error) => return if self.last.take().is_some() { Err(error) } else { Ok(None) },
        };
        if self.last.as_ref() == Some(&text) {
            return Ok(None);
        }
        tokio::time::sleep(SETTLE_TIME).await;
        if self.read().await.ok().as_ref() != Some(&text) {
            // It is just being written; the next call sees what comes of it.
            return Ok(None);
        }
        let endpoints = parse(&self.path, &text);
        self.last = Some(text);
        Ok(Some(endpoints?))
    }

    /// Reads off the async threads: the file may be on a network.
    async fn read(&self) -> Result<Vec<u8>, EndpointsFileError> {
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || read(&path)).await;
        let failed =
            |error| EndpointsFileError::Read { path: self.path.clone(), source: io::Error::other(error) };
        read.unwrap_or_else(|error| Err(failed(error)))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, EndpointsFileError> {
    let read = || {
        // Opening a pipe would wait for its writer.
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
        }
        let mut text = Vec::new();
        File::open(path)?.take(READ_LIMIT_BYTES).read_to_end(&mut text)?;
        Ok(text)
    };
    read().map_err(|source| EndpointsFileError::Read { path: path.to_owned(), source })
}

fn parse(path: &Path, text: &[u8]) -> Result<Vec<DiscoveredEndpoint>, EndpointsFileError> {
    let listed = read_endpoints(&path.display().to_string(), text)?;
    Ok(listed.into_iter().map(discovered).collect())
}

fn discovered(listed: ListedEndpoint) -> DiscoveredEndpoint {
    let name = format!("{}/{}", listed.namespace, listed.name);
    DiscoveredEndpoint {
        spec: EndpointSpec::new(name, listed.address, listed.port),
        labels: listed.labels,
        data_parallel: DataParallel {
            size: listed.data_parallel_size,
            rank: listed.data_parallel_rank,
            pinning: listed.data_parallel_pinning.unwrap_or(true),
        },
    }
}
