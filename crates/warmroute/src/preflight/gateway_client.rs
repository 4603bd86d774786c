//! A client of the gateway that shows what HTTP libraries hide: which address, which version, when the first piece of the
//! body came. Every request has a connection of its own.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use http::header::HOST;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use warmroute_ext_proc::DROPPED_REASON_HEADER;

use super::{Exchange, GatewayFlags};
use crate::tls::ClientTls;

/// Longest time for a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Most of a response body that is kept to look at.
const KEPT_TEXT_BYTES: usize = 64 * 1024;
/// The trailer that a request with trailers has.
const TRAILER: &str = "x-warmroute-probe-trailer";

type Body = UnsyncBoxBody<Bytes, Infallible>;

trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// The version of HTTP that is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum HttpVersion {
    #[default]
    Http1,
    Http2,
}

/// A request as it shall be sent.
#[derive(Clone, Debug)]
pub(super) struct Outgoing {
    pub(super) method: Method,
    /// Below the gateway's URL.
    pub(super) path: &'static str,
    pub(super) headers: Vec<(&'static str, String)>,
    /// JSON.
    pub(super) body: Bytes,
    /// Whether the body is sent in chunks, and trailers after it.
    pub(super) has_trailers: bool,
    pub(super) version: HttpVersion,
    /// Instead of any address that the gateway's name has.
    pub(super) address: Option<IpAddr>,
    /// Longest time for the whole.
    pub(super) within: Duration,
}

impl Outgoing {
    pub(super) fn get(path: &'static str) -> Self {
        Self {
            method: Method::GET,
            path,
            headers: Vec::new(),
            body: Bytes::new(),
            has_trailers: false,
            version: HttpVersion::Http1,
            address: None,
            within: Duration::from_secs(30),
        }
    }

    pub(super) fn post(path: &'static str, body: impl Into<Bytes>) -> Self {
        Self { method: Method::POST, body: body.into(), ..Self::get(path) }
    }

    pub(super) fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn body(&self) -> Body {
        if !self.has_trailers {
            return Full::new(self.body.clone()).boxed_unsync();
        }
        let trailers =
            HeaderMap::from_iter([(HeaderName::from_static(TRAILER), HeaderValue::from_static("1"))]);
        let frames = [Ok(Frame::data(self.body.clone())), Ok(Frame::trailers(trailers))];
        StreamBody::new(futures::stream::iter(frames)).boxed_unsync()
    }
}

/// The gateway.
pub(super) struct GatewayClient {
    host: String,
    port: u16,
    /// What `host` and `:authority` say.
    authority: String,
    /// Before every path.
    prefix: String,
    tls: Option<ClientConfig>,
    headers: HeaderMap,
}

impl GatewayClient {
    /// A client as the command line describes it.
    ///
    /// # Errors
    /// The URL or a header isn't one, or there is nothing to verify certificates with.
    pub(super) fn try_new(flags: &GatewayFlags) -> anyhow::Result<Self> {
        let uri: Uri = flags.url.parse().with_context(|| format!("{} is not a URL", flags.url))?;
        let tls = match uri.scheme_str() {
            Some("http") => None,
            Some("https") => Some(
                ClientTls {
                    insecure_skip_verify: flags.gateway_insecure_skip_verify,
                    roots: ("--gateway-ca-file", flags.gateway_ca_file.as_deref()),
                    identity: None,
                }
                .config()?,
            ),
            _ => bail!("{} is not a URL: it begins with http:// or https://", flags.url),
        };
        let host = uri.host().with_context(|| format!("{} names no host", flags.url))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let given = uri.authority().map(ToString::to_string).unwrap_or_default();
        let mut headers = HeaderMap::new();
        for header in &flags.header {
            let (name, value) = header
                .split_once(':')
                .with_context(|| format!("{header:?} is not a header: write NAME: VALUE"))?;
            // A value may be a secret: it isn't repeated.
            let name: HeaderName =
                name.trim().parse().with_context(|| format!("{name:?} is no name of a header"))?;
            headers.append(name, value.trim().parse().context("--header: that is no value of a header")?);
        }
        Ok(Self {
            port: uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 }),
            authority: flags.host.clone().unwrap_or(given),
            prefix: uri.path().trim_end_matches('/').to_owned(),
            host,
            tls,
            headers,
        })
    }

    /// All addresses of the gateway's name.
    ///
    /// # Errors
    /// The name isn't known.
    pub(super) async fn addresses(&self) -> anyhow::Result<Vec<IpAddr>> {
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let found = found.with_context(|| format!("can't look up {}", self.host))?;
        let mut addresses = Vec::new();
        for address in found {
            if !addresses.contains(&address.ip()) {
                addresses.push(address.ip());
            }
        }
        Ok(addresses)
    }

    /// Sends a request and reads the whole response.
    pub(super) async fn send(&self, outgoing: &Outgoing) -> Exchange {
        match self.open(outgoing).await {
            Ok(mut opened) => {
                while opened.next_piece().await {}
                opened.done()
            }
            Err(exchange) => *exchange,
        }
    }

    /// Sends a request; returns when the response's headers are there.
    ///
    /// # Errors
    /// There is no response; the exchange says why.
    pub(super) async fn open(&self, outgoing: &Outgoing) -> Result<OpenExchange, Box<Exchange>> {
        let failed = |error: &anyhow::Error| Box::new(Exchange::failed(format!("{error:#}")));
        let connection = tokio::time::timeout(CONNECT_WITHIN, self.connect(outgoing));
        let connection = match connection.await {
            Ok(connection) => connection.map_err(|error| failed(&error))?,
            Err(_) => return Err(Box::new(Exchange::failed("no connection within 5 s"))),
        };
        let request = self.request(outgoing).map_err(|error| failed(&error))?;
        let started = Instant::now();
        let until = started + outgoing.within;
        let response = async {
            let mut tasks = JoinSet::new();
            let response = exchange(connection, outgoing.version, request, &mut tasks).await;
            response.map(|response| (response, tasks))
        };
        let total_ms = || started.elapsed().as_secs_f64() * 1e3;
        match tokio::time::timeout_at(until.into(), response).await {
            Ok(Ok((response, tasks))) => Ok(OpenExchange::new(response, started, until, tasks)),
            Ok(Err(error)) => Err(Box::new(Exchange { total_ms: total_ms(), ..*failed(&error) })),
            Err(_) => Err(Box::new(Exchange {
                total_ms: total_ms(),
                ..Exchange::failed(format!("no response within {} s", outgoing.within.as_secs()))
            })),
        }
    }

    fn request(&self, outgoing: &Outgoing) -> anyhow::Result<Request<Body>> {
        let path = format!("{}{}", self.prefix, outgoing.path);
        let uri = match outgoing.version {
            HttpVersion::Http1 => path,
            HttpVersion::Http2 => {
                let scheme = if self.tls.is_some() { "https" } else { "http" };
                format!("{scheme}://{}{path}", self.authority)
            }
        };
        let mut request = Request::builder().method(&outgoing.method).uri(uri);
        if outgoing.version == HttpVersion::Http1 {
            request = request.header(HOST, &self.authority);
        }
        if outgoing.method == Method::POST {
            request = request.header(http::header::CONTENT_TYPE, "application/json");
        }
        if outgoing.has_trailers {
            request = request.header(http::header::TRAILER, TRAILER).header(http::header::TE, "trailers");
        }
        for (name, value) in &outgoing.headers {
            request = request.header(*name, value);
        }
        let mut request = request.body(outgoing.body()).context("no request can be made of that")?;
        request.headers_mut().extend(self.headers.clone());
        Ok(request)
    }

    async fn connect(&self, outgoing: &Outgoing) -> anyhow::Result<Pin<Box<dyn Transport>>> {
        let stream = match outgoing.address {
            Some(address) => TcpStream::connect(SocketAddr::new(address, self.port)).await,
            None => TcpStream::connect((self.host.as_str(), self.port)).await,
        };
        let stream = stream.with_context(|| format!("can't connect to {} port {}", self.host, self.port))?;
        stream.set_nodelay(true)?;
        let Some(tls) = &self.tls else { return Ok(Box::pin(stream)) };
        let mut tls = tls.clone();
        tls.alpn_protocols = vec![match outgoing.version {
            HttpVersion::Http1 => b"http/1.1".to_vec(),
            HttpVersion::Http2 => b"h2".to_vec(),
        }];
        let name = self.authority.rsplit_once(':').map_or(self.authority.as_str(), |(name, _)| name);
        let name = ServerName::try_from(name.trim_start_matches('[').trim_end_matches(']').to_owned());
        let name = name.with_context(|| format!("{} can't be in a certificate", self.authority))?;
        let stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await;
        let stream =
            stream.context("no TLS with the gateway (--gateway-ca-file, --gateway-insecure-skip-verify)")?;
        if outgoing.version == HttpVersion::Http2 && stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            bail!("the gateway doesn't offer HTTP/2");
        }
        Ok(Box::pin(stream))
    }
}

async fn exchange(
    connection: Pin<Box<dyn Transport>>,
    version: HttpVersion,
    request: Request<Body>,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<Response<Incoming>> {
    let io = TokioIo::new(connection);
    match version {
        HttpVersion::Http1 => {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
            tasks.spawn(async move { drop(connection.await) });
            Ok(sender.send_request(request).await?)
        }
        HttpVersion::Http2 => {
            let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io);
            let (mut sender, connection) = handshake.await.context("the gateway doesn't speak HTTP/2")?;
            tasks.spawn(async move { drop(connection.await) });
            Ok(sender.send_request(request).await?)
        }
    }
}

/// A response that is being read.
pub(super) struct OpenExchange {
    exchange: Exchange,
    body: Incoming,
    started: Instant,
    until: Instant,
    /// The connection; dropping it closes it.
    _tasks: JoinSet<()>,
}

impl OpenExchange {
    fn new(response: Response<Incoming>, started: Instant, until: Instant, tasks: JoinSet<()>) -> Self {
        let (head, body) = response.into_parts();
        let text =
            |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let exchange = Exchange {
            status: Some(head.status.as_u16()),
            server: text("server"),
            refused_because: text(DROPPED_REASON_HEADER),
            response_headers_touched: head.headers.contains_key("x-went-into-resp-headers"),
            headers_ms: Some(started.elapsed().as_secs_f64() * 1e3),
            ..Exchange::default()
        };
        Self { exchange, body, started, until, _tasks: tasks }
    }

    /// Reads the next piece of the body; false at its end, also at a bad one.
    pub(super) async fn next_piece(&mut self) -> bool {
        let frame = tokio::time::timeout_at(self.until.into(), self.body.frame()).await;
        let error = match frame {
            Ok(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    self.note(data);
                }
                return true;
            }
            Ok(None) => return false,
            Ok(Some(Err(error))) => format!("the response broke off: {error}"),
            Err(_) => "the response didn't end in time".to_owned(),
        };
        self.exchange.error = Some(error);
        false
    }

    fn note(&mut self, data: &Bytes) {
        self.exchange.body_bytes += data.len();
        self.exchange.body_pieces += 1;
        let room = KEPT_TEXT_BYTES.saturating_sub(self.exchange.text.len());
        self.exchange.text.push_str(&String::from_utf8_lossy(&data[..room.min(data.len())]));
    }

    /// Pieces of the body so far.
    pub(super) fn pieces(&self) -> usize {
        self.exchange.body_pieces
    }

    /// Milliseconds since the request's first byte.
    pub(super) fn elapsed_ms(&self) -> f64 {
        self.started.elapsed().as_secs_f64() * 1e3
    }

    /// What it came to. Breaks off what is still to come.
    pub(super) fn done(mut self) -> Exchange {
        self.exchange.total_ms = self.elapsed_ms();
        self.exchange
    }
}
