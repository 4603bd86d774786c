use std::io;

use rustls::Error;

/// Why a connection came to no TLS session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeFailure {
    /// Not finished in time.
    Timeout,
    /// Given up for newer ones: too many were under way.
    CrowdedOut,
    /// The client closed the connection: port scanners and health checks over TCP do.
    Closed,
    /// The client speaks something else than TLS.
    NotTls,
    /// No version, cipher suite or other parameter in common.
    Incompatible,
    /// The client asks for another protocol than HTTP/2 (or, on the metrics port, HTTP/1.1).
    NoCommonProtocol,
    /// A client certificate is required and none came.
    NoClientCertificate,
    /// The client certificate isn't trusted, or has expired.
    BadClientCertificate,
    /// The client gave up with an alert: mostly it doesn't trust our certificate.
    RefusedByClient,
    /// Anything else.
    Other,
}

impl HandshakeFailure {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Timeout,
        Self::CrowdedOut,
        Self::Closed,
        Self::NotTls,
        Self::Incompatible,
        Self::NoCommonProtocol,
        Self::NoClientCertificate,
        Self::BadClientCertificate,
        Self::RefusedByClient,
        Self::Other,
    ];

    /// As metrics and the log spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::CrowdedOut => "crowded-out",
            Self::Closed => "closed",
            Self::NotTls => "not-tls",
            Self::Incompatible => "incompatible",
            Self::NoCommonProtocol => "no-common-protocol",
            Self::NoClientCertificate => "no-client-certificate",
            Self::BadClientCertificate => "bad-client-certificate",
            Self::RefusedByClient => "refused-by-client",
            Self::Other => "other",
        }
    }

    /// Whether an operator should read of it: what anybody's port scan causes isn't news.
    pub fn is_news(self) -> bool {
        !matches!(self, Self::Closed)
    }

    /// What an error of the handshake means.
    pub fn of(error: &io::Error) -> Self {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        match tls {
            Some(Error::InvalidMessage(_) | Error::InappropriateMessage { .. }) => Self::NotTls,
            Some(Error::PeerIncompatible(_)) => Self::Incompatible,
            Some(Error::NoApplicationProtocol) => Self::NoCommonProtocol,
            Some(Error::NoCertificatesPresented) => Self::NoClientCertificate,
            Some(Error::InvalidCertificate(_)) => Self::BadClientCertificate,
            Some(Error::AlertReceived(_)) => Self::RefusedByClient,
            Some(_) => Self::Other,
            None => match error.kind() {
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::NotConnected => Self::Closed,
                io::ErrorKind::TimedOut => Self::Timeout,
                _ => Self::Other,
            },
        }
    }
}
