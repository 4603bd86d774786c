//! Engines that publish what was prepared, over ZMTP on loopback, from the calling thread.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use anyhow::{Context, ensure};

const TOPIC: &[u8] = b"kv@10.0.0.1:8000@Qwen/Qwen2.5-7B-Instruct";
const MORE: u8 = 1;
const LONG: u8 = 2;

/// The publishers of several engines, on one port of 127.0.0.1, 127.0.0.2 and so on.
pub struct Publishers {
    listener: TcpListener,
    /// By engine.
    streams: Vec<TcpStream>,
}

impl Publishers {
    /// Listens on some port.
    ///
    /// # Errors
    /// There is none.
    pub fn try_new() -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).context("no port to publish on")?;
        Ok(Self { listener, streams: Vec::new() })
    }

    /// The port of all.
    ///
    /// # Errors
    /// The system doesn't say.
    pub fn port(&self) -> anyhow::Result<u16> {
        Ok(self.listener.local_addr()?.port())
    }

    /// The host of an engine's publisher.
    pub fn host(engine: usize) -> String {
        format!("127.0.0.{}", engine + 1)
    }

    /// Waits until each of so many engines has a subscriber.
    ///
    /// # Errors
    /// A peer is no subscriber.
    pub fn accept(&mut self, engines: usize) -> anyhow::Result<()> {
        let mut streams: Vec<Option<TcpStream>> = (0..engines).map(|_| None).collect();
        while streams.iter().any(Option::is_none) {
            let (mut stream, _) = self.listener.accept().context("no subscriber")?;
            let std::net::IpAddr::V4(host) = stream.local_addr()?.ip() else { continue };
            greet(&mut stream)?;
            let engine = usize::from(host.octets()[3]) - 1;
            *streams.get_mut(engine).context("a subscriber of no engine")? = Some(stream);
        }
        self.streams = streams.into_iter().flatten().collect();
        Ok(())
    }

    /// Publishes messages of an engine.
    ///
    /// # Errors
    /// The subscriber is gone.
    pub fn publish(&mut self, engine: usize, messages: &[u8]) -> anyhow::Result<()> {
        self.streams[engine].write_all(messages).context("the subscriber is gone")
    }
}

/// Appends a message with a batch: topic, number, payload.
pub fn put_message(seq: u64, payload: &[u8], messages: &mut Vec<u8>) {
    messages.extend([MORE, TOPIC.len() as u8]);
    messages.extend(TOPIC);
    messages.extend([MORE, 8]);
    messages.extend(seq.to_be_bytes());
    if let Ok(short) = u8::try_from(payload.len()) {
        messages.extend([0, short]);
    } else {
        messages.push(LONG);
        messages.extend((payload.len() as u64).to_be_bytes());
    }
    messages.extend(payload);
}

/// The publisher's side of a handshake, up to the subscription. ZMTP 3.0: <https://rfc.zeromq.org/spec/23/>.
fn greet(stream: &mut TcpStream) -> anyhow::Result<()> {
    let mut greeting = [0; 64];
    (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
    greeting[12..16].copy_from_slice(b"NULL");
    stream.write_all(&greeting)?;
    stream.write_all(b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03PUB")?;
    stream.read_exact(&mut greeting)?;
    let ready = read_frame(stream)?;
    ensure!(ready.starts_with(b"\x05READY"), "the peer isn't ready");
    let subscription = read_frame(stream)?;
    ensure!(subscription.first() == Some(&1), "the peer doesn't subscribe");
    Ok(())
}

fn read_frame(stream: &mut TcpStream) -> anyhow::Result<Vec<u8>> {
    let mut head = [0; 2];
    stream.read_exact(&mut head)?;
    let mut body = vec![0; usize::from(head[1])];
    stream.read_exact(&mut body)?;
    Ok(body)
}
