//! Takes changed certificate files while serving.

use std::time::Duration;

use super::certificate_files::CertificateBytes;
use super::{ServingTls, TlsError, TlsSettings};

/// How often the files are looked at. They are read whole: a few kilobytes, and neither time stamps nor inodes tell
/// reliably of a swapped symbolic link, which is how Kubernetes changes mounted secrets.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// A change is judged when the files have stayed as they are for so long, so that a pair that is being written isn't.
const SETTLE: Duration = Duration::from_millis(250);

/// Watches the files of one port. What they held last is judged once, whether it is taken or refused.
#[derive(Debug)]
pub struct CertificateWatch {
    serving: ServingTls,
    settings: TlsSettings,
    /// What is served.
    served: CertificateBytes,
    /// What the files held when they were last judged.
    judged: Result<CertificateBytes, String>,
    /// What they held at the last look, if that was something new.
    unsettled: Option<Result<CertificateBytes, String>>,
}

/// What a look at the files came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// Nothing is new.
    Unchanged,
    /// Something is new; the next look judges it, unless it has changed again by then.
    Changing,
    /// It is served from now on.
    Taken,
    /// It isn't usable: the last good one stays. Why.
    Refused(String),
}

impl CertificateWatch {
    pub(super) fn new(serving: ServingTls, settings: TlsSettings, served: CertificateBytes) -> Self {
        Self { serving, settings, judged: Ok(served.clone()), served, unsettled: None }
    }

    /// Watches until cancelled.
    pub async fn run(mut self) {
        loop {
            let wait = if self.unsettled.is_some() { SETTLE } else { WATCH_INTERVAL };
            tokio::time::sleep(wait).await;
            let looked = tokio::task::spawn_blocking(move || {
                self.look();
                self
            });
            // The look doesn't panic; if it did, the files would go unwatched, which the log of the panic tells.
            let Ok(watch) = looked.await else { return };
            self = watch;
        }
    }

    /// Looks at the files once.
    pub fn look(&mut self) -> Look {
        let read = self.settings.files.read(Some(&self.served)).map_err(|error| error.to_string());
        if read == self.judged {
            self.unsettled = None;
            return Look::Unchanged;
        }
        if self.unsettled.as_ref() != Some(&read) {
            self.unsettled = Some(read);
            return Look::Changing;
        }
        self.unsettled = None;
        self.judged = read.clone();
        match read {
            // Back to what is served all along, after something that was refused.
            Ok(bytes) if bytes == self.served => Look::Unchanged,
            Ok(bytes) => match self.take(&bytes) {
                Ok(()) => {
                    self.served = bytes;
                    Look::Taken
                }
                Err(error) => self.refuse(error.to_string()),
            },
            Err(error) => self.refuse(error),
        }
    }

    fn take(&self, bytes: &CertificateBytes) -> Result<(), TlsError> {
        let TlsSettings { files, protocol, alpn, port, .. } = &self.settings;
        let loaded = files.load(bytes, protocol, alpn)?;
        self.serving.take(&loaded);
        self.serving.count_reload("taken");
        tracing::info!(
            port,
            expires_unix_seconds = loaded.valid.1,
            "certificate files changed: new connections are served with them"
        );
        Ok(())
    }

    fn refuse(&self, error: String) -> Look {
        self.serving.count_reload("refused");
        let port = self.settings.port;
        tracing::error!(
            port,
            "changed certificate files refused, the last good ones stay in effect: {error}"
        );
        Look::Refused(error)
    }
}
