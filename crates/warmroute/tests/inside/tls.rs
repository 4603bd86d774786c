//! TLS of the served ports, over real sockets: whom it lets in, and what becomes of changed files.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use warmroute::cli::Cli;
use warmroute::metrics::Metrics;
use warmroute::tasks::Tasks;
use warmroute::tls::{
    CertificateWatch, HandshakeFailure, HandshakeLimits, Look, ServingTls, TlsFlags, TlsListener,
};

use crate::certificates::Authority;

/// A server that answers every byte with the same byte.
struct Server {
    address: SocketAddr,
    metrics: Arc<Metrics>,
    watch: Option<CertificateWatch>,
    _tasks: Tasks,
}

fn flags(arguments: &[&str]) -> TlsFlags {
    let arguments = std::iter::once("warmroute").chain(arguments.iter().copied());
    Cli::try_parse_from(arguments).unwrap_or_else(|error| panic!("{error}")).serve.tls
}

impl Server {
    async fn start(arguments: &[&str]) -> Self {
        Self::limited(arguments, HandshakeLimits::default()).await
    }

    async fn limited(arguments: &[&str], limits: HandshakeLimits) -> Self {
        let metrics = Arc::new(Metrics::try_new().unwrap());
        let settings = flags(arguments).ext_proc().unwrap().unwrap();
        let (serving, watch) = ServingTls::try_new(settings, metrics.clone()).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let mut listener = TlsListener::with_limits(tcp, serving, limits);
        let (tasks, _) = Tasks::new();
        let connections = tasks.clone();
        tasks.spawn("echo", async move {
            loop {
                let (mut stream, _) = listener.accept().await;
                connections.spawn("echo of one", async move {
                    while let Ok(byte) = stream.read_u8().await {
                        if stream.write_u8(byte).await.is_err() || stream.flush().await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, metrics, watch, _tasks: tasks }
    }

    async fn connect(&self, client: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = TlsConnector::from(Arc::new(client)).connect(name, tcp).await?;
        // In TLS 1.3 the server's verdict about the client comes after the client's handshake.
        echo(&mut stream).await?;
        Ok(stream)
    }

    /// Waits until this many handshakes have failed so.
    async fn failed(&self, failure: HandshakeFailure, times: u64) {
        let labels = ["grpc", failure.as_str()];
        let counter = self.metrics.tls.handshake_failures.with_label_values(&labels);
        let all = async {
            while counter.get() < times {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let done = tokio::time::timeout(Duration::from_secs(30), all).await;
        done.unwrap_or_else(|_| panic!("{} instead of {times} {failure:?}", counter.get()));
        assert_eq!(counter.get(), times);
    }

    fn reloads(&self, outcome: &str) -> u64 {
        self.metrics.tls.reloads.with_label_values(&["grpc", outcome]).get()
    }

    fn expiry(&self) -> i64 {
        self.metrics.tls.certificate_expiry.with_label_values(&["grpc"]).get()
    }
}

async fn echo(stream: &mut TlsStream<TcpStream>) -> std::io::Result<()> {
    stream.write_u8(7).await?;
    stream.flush().await?;
    assert_eq!(stream.read_u8().await?, 7);
    Ok(())
}

fn served(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

/// A directory as Kubernetes mounts a secret: the files are links into `..data`, which is a link itself.
fn mount(dir: &Path, version: &str, write: impl Fn(&Path)) {
    let data = dir.join(format!("..{version}"));
    std::fs::create_dir(&data).unwrap();
    write(&data);
    std::os::unix::fs::symlink(data.file_name().unwrap(), dir.join("..data_tmp")).unwrap();
    std::fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    for file in ["tls.crt", "tls.key"] {
        if !dir.join(file).is_symlink() {
            std::os::unix::fs::symlink(Path::new("..data").join(file), dir.join(file)).unwrap();
        }
    }
}

/// 2100 and 2099, the first of January, in Unix seconds.
const UNTIL_2100: i64 = 4_102_444_800;
const UNTIL_2099: i64 = UNTIL_2100 - 365 * 86_400;

#[tokio::test]
async fn a_swapped_secret_is_served_to_new_connections_and_open_ones_stay() {
    let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
    let (old, new) = (authority.pair(), authority.pair_until(2099));
    mount(dir.path(), "1", |data| old.write_to(data));
    let path = format!("--cert-path={}", dir.path().display());
    let mut server = Server::start(&[&path, "--enable-cert-reload"]).await;
    let mut watch = server.watch.take().unwrap();
    let mut open = server.connect(authority.client(None)).await.unwrap();
    assert_eq!((served(&open), server.expiry()), (old.certificate.to_vec(), UNTIL_2100));
    assert_eq!(watch.look(), Look::Unchanged);

    mount(dir.path(), "2", |data| new.write_to(data));
    assert_eq!((watch.look(), watch.look(), watch.look()), (Look::Changing, Look::Taken, Look::Unchanged));
    let later = server.connect(authority.client(None)).await.unwrap();
    assert_eq!((served(&later), server.expiry()), (new.certificate.to_vec(), UNTIL_2099));
    echo(&mut open).await.unwrap();
    assert_eq!((server.reloads("taken"), server.reloads("refused")), (1, 0));
}

#[tokio::test]
async fn an_unusable_pair_is_refused_once_and_the_last_good_one_stays() {
    let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
    let (old, new) = (authority.pair(), authority.pair());
    old.write_to(dir.path());
    let path = format!("--cert-path={}", dir.path().display());
    let mut server = Server::start(&[&path, "--enable-cert-reload=true"]).await;
    let mut watch = server.watch.take().unwrap();
    let (certificate, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));

    // A pair of which one half is written: as long as it goes on, nothing is judged.
    std::fs::write(&certificate, &new.certificate_pem[..100]).unwrap();
    assert_eq!(watch.look(), Look::Changing);
    std::fs::write(&certificate, &new.certificate_pem).unwrap();
    assert_eq!(watch.look(), Look::Changing);
    let Look::Refused(why) = watch.look() else { panic!("a mismatching pair was taken") };
    assert!(why.contains("tls.key isn't the key of the first certificate in tls.crt"), "{why}");
    assert_eq!((watch.look(), server.reloads("refused")), (Look::Unchanged, 1));

    for (file, content, words) in [
        (&certificate, "", "tls.crt has no certificate in it"),
        (&key, "-----BEGIN PRIVATE KEY-----\nAAAA", "tls.crt has no certificate in it"),
        (&certificate, &*new.certificate_pem, "tls.key isn't PEM: "),
        (&key, "", "tls.key has no private key in it"),
    ] {
        std::fs::write(file, content).unwrap();
        assert_eq!(watch.look(), Look::Changing);
        let Look::Refused(why) = watch.look() else { panic!("{file:?} with {content:?} was taken") };
        assert!(why.contains(words), "{why}");
    }
    std::fs::remove_file(&key).unwrap();
    watch.look();
    let Look::Refused(why) = watch.look() else { panic!("a missing file was taken") };
    assert!(why.starts_with("--cert-path: can't read ") && why.contains("tls.key"), "{why}");
    let stream = server.connect(authority.client(None)).await.unwrap();
    assert_eq!(served(&stream), old.certificate.to_vec());

    std::fs::write(&key, &new.key_pem).unwrap();
    assert_eq!((watch.look(), watch.look()), (Look::Changing, Look::Taken));
    assert_eq!((server.reloads("taken"), server.reloads("refused")), (1, 6));
}

#[tokio::test]
async fn without_the_flag_files_are_read_once() {
    let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
    authority.pair().write_to(dir.path());
    let path = format!("--cert-path={}", dir.path().display());
    assert!(Server::start(&[&path]).await.watch.is_none());
    assert!(Server::start(&["--enable-cert-reload"]).await.watch.is_none(), "nothing to watch");
}

#[tokio::test]
async fn clients_need_a_certificate_of_the_authority_and_a_new_authority_is_taken() {
    let (servers, clients, others) = (Authority::new(), Authority::new(), Authority::new());
    let dir = tempfile::tempdir().unwrap();
    servers.pair().write_to(dir.path());
    let ca = dir.path().join("ca.crt");
    std::fs::write(&ca, &clients.pem).unwrap();
    let path = format!("--cert-path={}", dir.path().display());
    let ca_flag = format!("--client-ca-file={}", ca.display());
    let mut server = Server::start(&[&path, &ca_flag, "--enable-cert-reload"]).await;
    let mut watch = server.watch.take().unwrap();
    let (good, bad) = (clients.pair(), others.pair());

    server.connect(servers.client(Some(&good))).await.unwrap();
    server.connect(servers.client(None)).await.unwrap_err();
    server.failed(HandshakeFailure::NoClientCertificate, 1).await;
    server.connect(servers.client(Some(&bad))).await.unwrap_err();
    server.failed(HandshakeFailure::BadClientCertificate, 1).await;
    server.connect(servers.client(Some(&clients.pair_until(2001)))).await.unwrap_err();
    server.failed(HandshakeFailure::BadClientCertificate, 2).await;

    std::fs::write(&ca, "no certificates").unwrap();
    watch.look();
    assert!(matches!(watch.look(), Look::Refused(why) if why.contains("ca.crt has no certificate in it")));
    server.connect(servers.client(Some(&good))).await.unwrap();
    std::fs::write(&ca, &others.pem).unwrap();
    assert_eq!((watch.look(), watch.look()), (Look::Changing, Look::Taken));
    server.connect(servers.client(Some(&bad))).await.unwrap();
    server.connect(servers.client(Some(&good))).await.unwrap_err();
    server.failed(HandshakeFailure::BadClientCertificate, 3).await;
}

#[tokio::test]
async fn clients_can_be_verified_by_a_server_that_signs_its_own_certificate() {
    let (clients, dir) = (Authority::new(), tempfile::tempdir().unwrap());
    let ca = dir.path().join("ca.crt");
    std::fs::write(&ca, &clients.pem).unwrap();
    let ca_flag = format!("--client-ca-file={}", ca.display());
    let server = Server::start(&[&ca_flag]).await;
    // It doesn't trust that certificate, and says so.
    server.connect(clients.client(Some(&clients.pair()))).await.unwrap_err();
    server.failed(HandshakeFailure::RefusedByClient, 1).await;
}

#[tokio::test]
async fn only_the_versions_and_suites_that_are_asked_for_are_served() {
    use rustls::version::{TLS12, TLS13};
    let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
    authority.pair().write_to(dir.path());
    let path = format!("--cert-path={}", dir.path().display());
    let only = |versions: &[&'static rustls::SupportedProtocolVersion]| {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.certificate.clone()).unwrap();
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
    };
    let both = Server::start(&[&path]).await;
    both.connect(only(&[&TLS12])).await.unwrap();
    both.connect(only(&[&TLS13])).await.unwrap();
    let mut other_protocol = only(&[&TLS13]);
    other_protocol.alpn_protocols = vec![b"http/1.1".to_vec()];
    both.connect(other_protocol).await.unwrap_err();
    both.failed(HandshakeFailure::NoCommonProtocol, 1).await;

    let newer = Server::start(&[&path, "--tls-min-version=VersionTLS13"]).await;
    newer.connect(only(&[&TLS12])).await.unwrap_err();
    newer.failed(HandshakeFailure::Incompatible, 1).await;
    newer.connect(only(&[&TLS13])).await.unwrap();

    let suite = "--tls-cipher-suites=TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,TLS_AES_128_GCM_SHA256";
    let chosen = Server::start(&[&path, suite]).await;
    for (version, name) in
        [(&TLS12, "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"), (&TLS13, "TLS13_AES_128_GCM_SHA256")]
    {
        let stream = chosen.connect(only(&[version])).await.unwrap();
        let negotiated = stream.get_ref().1.negotiated_cipher_suite().unwrap();
        assert_eq!(negotiated.suite().as_str(), Some(name));
    }
}

#[tokio::test]
async fn clients_that_keep_silent_hold_nobody_up() {
    let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
    authority.pair().write_to(dir.path());
    let path = format!("--cert-path={}", dir.path().display());
    let limits = HandshakeLimits { at_once: 3, within: Duration::from_secs(3600) };
    let server = Server::limited(&[&path], limits).await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    server.connect(authority.client(None)).await.unwrap();
    server.failed(HandshakeFailure::CrowdedOut, 1).await;
    // The oldest one was closed.
    assert_eq!(silent[0].read(&mut [0]).await.unwrap_or(0), 0);

    let mut plain = TcpStream::connect(server.address).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    server.failed(HandshakeFailure::NotTls, 1).await;
    drop(TcpStream::connect(server.address).await.unwrap());
    server.failed(HandshakeFailure::Closed, 1).await;

    let limits = HandshakeLimits { within: Duration::from_millis(1), ..HandshakeLimits::default() };
    let server = Server::limited(&[&path], limits).await;
    let _silent = TcpStream::connect(server.address).await.unwrap();
    server.failed(HandshakeFailure::Timeout, 1).await;
}

#[test]
fn contradicting_flags_are_refused_with_what_to_do() {
    let ext_proc =
        |arguments: &[&str]| flags(arguments).ext_proc().map(drop).map_err(|error| error.to_string());
    let metrics =
        |arguments: &[&str]| flags(arguments).metrics().map(drop).map_err(|error| error.to_string());
    let error = ext_proc(&["--secure-serving=false", "--client-ca-file=/ca"]).unwrap_err();
    assert!(error.starts_with("--client-ca-file needs --secure-serving: "), "{error}");
    let error = metrics(&["--metrics-client-ca-file=/ca"]).unwrap_err();
    assert!(error.starts_with("--metrics-client-ca-file needs --metrics-cert-dir: "), "{error}");
    assert!(ext_proc(&["--tls-min-version=VersionTLS11"]).unwrap_err().contains("VersionTLS13"));
    assert!(metrics(&["--metrics-cert-dir=/x", "--tls-cipher-suites=RC4"]).unwrap_err().contains("\"RC4\""));
    assert!(flags(&["--secure-serving=false", "--cert-path="]).ext_proc().unwrap().is_none());
    assert!(flags(&[]).metrics().unwrap().is_none());
    let missing = flags(&["--cert-path=/nowhere"]).ext_proc().unwrap().unwrap();
    let error = ServingTls::try_new(missing, Arc::new(Metrics::try_new().unwrap())).unwrap_err().to_string();
    assert!(error.starts_with("--cert-path: can't read /nowhere/tls.crt: "), "{error}");
}
