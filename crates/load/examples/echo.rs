//! How much load the loader makes: an echo server on one core, the loader on another.
//!
//! `cargo run --release -p souk-load --example echo -- [SECONDS] [BYTES] [CONNECTIONS] [CALLERS] [RATE]`; without a rate the loop is
//! closed. On Linux, server and loader are each pinned to a core.

use std::{
    convert::Infallible,
    env,
    process::{Child, Command, Stdio},
    task::{Context, Poll},
    time::Duration,
};

use anyhow::{Context as _, Result};
use bytes::{Buf, BufMut, Bytes};
use souk_load::{Load, Report, Schedule, Target, Until, frame};
use tokio::net::TcpListener;
use tokio_stream::{StreamExt, wrappers::TcpListenerStream};
use tonic::{
    Response, Status,
    body::Body,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    server::{Grpc, NamedService},
};
use tower::{Service, service_fn};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "serve") {
        return serve().await;
    }
    let number = |index: usize, default: usize| arguments.get(index).map_or(Ok(default), |text| text.parse());
    let (seconds, bytes) = (Duration::from_secs(number(0, 5)? as u64), number(1, 0)?);
    let (connections, callers, rate) = (number(2, 8)?, number(3, 128)?, number(4, 0)?);
    let mut server = start()?;
    let result = load(&server.address, seconds, bytes, connections, callers, rate as f64).await;
    let before = cpu_of(server.child.id())?;
    let answered = result?;
    server.child.kill()?;
    println!("server      {:.2} µs of CPU per call", before.as_secs_f64() * 1e6 / answered as f64);
    Ok(())
}

async fn load(address: &str, time: Duration, bytes: usize, connections: usize, callers: usize, rate: f64) -> Result<u64> {
    let mut target = Target::default();
    let service = target.connect(address, connections).await?;
    let rpc = std::sync::Arc::new(target.rpc(service, "/echo.Echo/Say")?);
    let message = frame(&vec![7; bytes]);
    let source = move |_| rpc.request(message.clone());
    let load = Load::new(&target, source);
    let report = match rate {
        0.0 => load.closed_loop(callers, Until::Elapsed(time)).await?,
        rate => load.open_loop(Schedule::constant(rate, time), callers).await?,
    };
    print(&report);
    Ok(report.answered())
}

fn print(report: &Report) {
    let latency = report.latency();
    println!("answered    {} of which failed {}, unsent {}", report.answered(), report.failed(), report.unsent);
    println!("rate        {:.0}/s, intended {:.0?}", report.rate(), report.intended_rate());
    let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| latency.quantile(share));
    println!("latency     p50 {p50:?} p99 {p99:?} p99.9 {p999:?} max {:?}", latency.max());
    println!("lag         p50 {:?} p99 {:?} max {:?}", report.lag.quantile(0.5), report.lag.quantile(0.99), report.lag.max());
    println!("loader      {:.2} µs of CPU per call", report.cpu_per_call().as_secs_f64() * 1e6);
}

struct Server {
    child: Child,
    address: String,
}

/// This program again, as the server.
fn start() -> Result<Server> {
    // The loader's own core; it has no other thread.
    let pinned = Command::new("taskset").args(["-pc", "1", &std::process::id().to_string()]).stdout(Stdio::null()).status();
    anyhow::ensure!(pinned.context("taskset is needed")?.success(), "core 1 is needed");
    let mut server = Command::new("taskset");
    server.args(["-c", "0"]).arg(env::current_exe()?).arg("serve").stdout(Stdio::piped());
    let mut child = server.spawn()?;
    let mut address = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().context("stdout")?), &mut address)?;
    Ok(Server { child, address: address.trim().to_owned() })
}

/// User and system time of a process, in ticks of 10 ms.
fn cpu_of(process: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("a name")?.1.split_whitespace().collect();
    Ok(Duration::from_millis(10 * (fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)))
}

#[expect(clippy::disallowed_methods, reason = "a bare echo, without limits, to compare with")]
async fn serve() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("http://{}", listener.local_addr()?);
    let incoming = TcpListenerStream::new(listener).map(|socket| socket.and_then(|socket| socket.set_nodelay(true).map(|()| socket)));
    Ok(tonic::transport::Server::builder().add_service(Echo).serve_with_incoming(incoming).await?)
}

#[derive(Clone)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "echo.Echo";
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let say = |request: tonic::Request<Bytes>| async move { Ok(Response::new(request.into_inner())) };
        Box::pin(async move { Ok(Grpc::new(Raw).unary(service_fn(say), request).await) })
    }
}

#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
