//! The picker against the bare echo: same client, same messages, same sizes, a server thread each.

use std::time::Duration;

use anyhow::ensure;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::{self, server::TcpIncoming};
use warmroute::grpc::ext_proc_server;
use warmroute::readiness::Readiness;

use super::echo::Echo;
use super::whole_picker::WholePicker;
use crate::gateway::{Gateway, Script, Tally};
use crate::server::Server;
use crate::timing::{Comparison, Effort, Side, Spread, compare};

/// Both servers, up and connected.
pub(super) struct Duel {
    picker: WholePicker,
    ours: Contestant,
    baseline: Contestant,
    script: Script,
}

struct Contestant {
    server: Server,
    gateway: Gateway,
}

/// How many streams a measurement has, and how many of them at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) streams: usize,
    pub(super) in_flight: usize,
}

/// CPU microseconds of the server's threads per stream, and streams per second by the wall clock.
pub(super) struct Outcome {
    pub(super) cpu_us: Comparison,
    pub(super) our_rate: Spread,
    pub(super) baseline_rate: Spread,
}

impl Duel {
    /// Starts both and makes the echo's messages as long as the picker's.
    pub(super) fn start(picker: WholePicker, script: Script) -> anyhow::Result<Self> {
        let service = picker.service.clone();
        let ours = Contestant::start("bench-picker", move |listener, stop| {
            Ok(ext_proc_server(listener, service, Readiness::default(), None, stop))
        })?;
        let (asked, _) = ours.gateway.run(&script, 1, 1)?;
        let echo = Echo { header_padding_bytes: Echo::padding_for(asked.header_reply_bytes) };
        let baseline =
            Contestant::start("bench-echo", move |listener, stop| Ok(serve_echo(listener, echo, stop)))?;
        let (echoed, _) = baseline.gateway.run(&script, 1, 1)?;
        ensure!(asked == echoed, "the picker sends {asked:?}, the echo {echoed:?}");
        Ok(Self { picker, ours, baseline, script })
    }

    /// Measures pairs.
    pub(super) fn run(&self, load: Load, effort: Effort) -> anyhow::Result<Outcome> {
        let (mut our_rates, mut baseline_rates) = (Vec::new(), Vec::new());
        let cpu_us = compare(effort, |pair, side| {
            let (contestant, rates) = match side {
                Side::Ours => (&self.ours, &mut our_rates),
                Side::Baseline => (&self.baseline, &mut baseline_rates),
            };
            let before = contestant.server.cpu_time()?;
            let (tally, wall) = contestant.gateway.run(&self.script, load.streams, load.in_flight)?;
            if side == Side::Ours {
                contestant.server.run(self.picker.withdrawals())?;
            }
            let time = contestant.server.cpu_time()?.saturating_sub(before);
            ensure!(tally != Tally::default() && time > Duration::ZERO, "nothing was measured");
            if pair > 0 {
                rates.push(load.streams as f64 / wall.as_secs_f64());
            }
            Ok(time.as_secs_f64() * 1e6 / load.streams as f64)
        })?;
        Ok(Outcome { cpu_us, our_rate: Spread::of(&our_rates), baseline_rate: Spread::of(&baseline_rates) })
    }

    /// Checks that the picker did all its work, stops both.
    pub(super) fn finish(self, requests_with_prompt: Option<usize>) -> anyhow::Result<()> {
        if let Some(requests) = requests_with_prompt {
            self.picker.check_work(requests as u64)?;
        }
        for contestant in [self.ours, self.baseline] {
            drop(contestant.gateway);
            contestant.server.stop()?;
        }
        Ok(())
    }
}

impl Contestant {
    fn start<S, F>(name: &'static str, serve: S) -> anyhow::Result<Self>
    where
        S: FnOnce(TcpListener, CancellationToken) -> anyhow::Result<F> + Send + 'static,
        F: Future<Output = anyhow::Result<()>>,
    {
        let server = Server::start(name, serve)?;
        let gateway = Gateway::connect(server.address())?;
        Ok(Self { server, gateway })
    }
}

/// The same settings of HTTP/2 and TCP as the picker's server.
async fn serve_echo(listener: TcpListener, echo: Echo, stop: CancellationToken) -> anyhow::Result<()> {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let mut server = transport::Server::builder().http2_keepalive_interval(Some(Duration::from_secs(30)));
    Ok(server
        .add_service(echo.server())
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await?)
}
