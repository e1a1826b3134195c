use std::{sync::Arc, time::{Duration, Instant}, pin::Pin, future::Future};
use souk_proto::cart::v1 as cart;
use souk_runtime::*;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, transport::Channel};

#[derive(Clone)]
struct Echo;
#[tonic::async_trait]
impl cart::query_service_server::QueryService for Echo {
    async fn get_cart(&self, r: Request<cart::GetCartRequest>) -> Result<Response<cart::GetCartResponse>, Status> {
        Ok(Response::new(cart::GetCartResponse { cart: Some(cart::Cart { customer_id: r.into_inner().customer_id, ..Default::default() }), as_of: None }))
    }
}

async fn load(url: String, what: &str, n: usize) -> f64 {
    let channel = Channel::from_shared(url).unwrap().connect().await.unwrap();
    let end = Instant::now() + Duration::from_secs(4);
    let tasks: Vec<_> = (0..n).map(|_| {
        let mut c = cart::query_service_client::QueryServiceClient::new(channel.clone());
        tokio::spawn(async move {
            let mut k = 0u64;
            while Instant::now() < end {
                let mut r = Request::new(cart::GetCartRequest { customer_id: "c-1".into(), token: String::new() });
                r.set_timeout(Duration::from_secs(5));
                c.get_cart(r).await.unwrap();
                k += 1;
            }
            k
        })
    }).collect();
    let mut total = 0;
    for t in tasks { total += t.await.unwrap(); }
    let _ = what;
    total as f64 / 4.0
}

fn cpu() -> f64 {
    let s = std::fs::read_to_string("/proc/self/stat").unwrap();
    let f: Vec<&str> = s.rsplit(')').next().unwrap().split_whitespace().collect();
    (f[11].parse::<f64>().unwrap() + f[12].parse::<f64>().unwrap()) / 100.0
}

#[tokio::main]
async fn main() {
    let n: usize = std::env::args().nth(1).map(|x| x.parse().unwrap()).unwrap_or(32);
    let settings = Settings::from_toml("[installation]\ntoken_key = \"0101010101010101010101010101010101010101010101010101010101010101\"\n").unwrap();
    let _t = Telemetry::init(&settings.telemetry, "x", "x").unwrap();
    let process = Process::new(Arc::new(settings), ServiceKind::Query, &Health::new(), CancellationToken::new());
    let a = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let b = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (ua, ub) = (format!("http://{}", a.local_addr().unwrap()), format!("http://{}", b.local_addr().unwrap()));
    tokio::spawn(GrpcServer::new("internal", &process).add(limited!(cart::query_service_server::QueryServiceServer::new(Echo), process)).serve(a));
    tokio::spawn(tonic::transport::Server::builder().add_service(cart::query_service_server::QueryServiceServer::new(Echo))
        .serve_with_incoming(tonic::transport::server::TcpIncoming::from(b).with_nodelay(Some(true))));
    let only = std::env::args().nth(2);
    for _ in 0..2 {
        for (u, w) in [(ua.clone(), "ours"), (ub.clone(), "bare")] {
            if only.as_deref().is_some_and(|o| o != w) { continue; }
            let c = cpu();
            let rate = load(u, w, n).await;
            println!("{w}: {rate:.0}/s, {:.1} us cpu per call", (cpu() - c) * 1e6 / (rate * 4.0));
        }
    }
    let _: Option<Pin<Box<dyn Future<Output = ()>>>> = None;
}
