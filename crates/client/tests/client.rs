//! The client against real servers: retries under one request id, deadlines, tokens, a watch taken up again.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{Stream, StreamExt, stream};
use souk_client::{Endpoints, Session, Souk};
use souk_event_sourcing::{Epoch, LogId, LogPosition, Partition, Position, Region, Token, TokenKey};
use souk_proto::{catalog::v1 as catalog, common::v1::AsOf, orders::v1 as orders};
use souk_runtime::{Deadline, Failure, GrpcServer, Health, Process, ServiceKind, Settings, limited};
use tokio::{net::TcpListener, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

const KEY: &str = "0101010101010101010101010101010101010101010101010101010101010101";

fn token(partition: u16, position: u64) -> String {
    let log = LogId { region: Region(1), partition: Partition(partition) };
    Token::from(LogPosition { log, epoch: Epoch(5), position: Position(position) }).encode(&TokenKey::new([1; 32]))
}

/// What a call looked like when it arrived.
#[derive(Debug, Clone)]
struct Seen {
    request_id: String,
    token: String,
    caller: String,
    traceparent: String,
    remaining: Duration,
}

/// A service that follows a script: one entry per call, then success.
#[derive(Clone, Default)]
struct Subject {
    script: Arc<Mutex<Vec<Failure>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    states: Arc<Mutex<Vec<Vec<orders::OrderState>>>>,
}

impl Subject {
    fn call<T>(&self, request: &Request<T>, request_id: &str, token: &str) -> Result<(), Status> {
        let text = |key: &str| request.metadata().get(key).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
        self.seen.lock().unwrap().push(Seen {
            request_id: request_id.to_owned(),
            token: token.to_owned(),
            caller: text("souk-caller"),
            traceparent: text("traceparent"),
            remaining: Deadline::of(request).remaining(),
        });
        let mut script = self.script.lock().unwrap();
        if script.is_empty() { Ok(()) } else { Err(script.remove(0).into()) }
    }

    fn script(&self, failures: impl IntoIterator<Item = Failure>) {
        self.script.lock().unwrap().extend(failures);
    }

    fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

macro_rules! unused {
    ($($method:ident $request:ty => $reply:ty;)*) => {$(
        fn $method<'a, 'b>(&'a self, _: Request<$request>) -> Pin<Box<dyn Future<Output = Result<Response<$reply>, Status>> + Send + 'b>>
        where
            'a: 'b,
            Self: 'b,
        {
            Box::pin(async { Err(Status::unimplemented("not part of the test")) })
        }
    )*};
}

#[tonic::async_trait]
impl catalog::command_service_server::CommandService for Subject {
    async fn set_price(&self, request: Request<catalog::SetPriceRequest>) -> Result<Response<catalog::SetPriceResponse>, Status> {
        self.call(&request, &request.get_ref().request_id, "")?;
        if request.get_ref().product_id == "never" {
            std::future::pending::<()>().await;
        }
        let position = request.get_ref().product_id.parse().unwrap_or(1);
        Ok(Response::new(catalog::SetPriceResponse { token: token(3, position), ..Default::default() }))
    }

    unused! {
        create_product catalog::CreateProductRequest => catalog::CreateProductResponse;
        update_product catalog::UpdateProductRequest => catalog::UpdateProductResponse;
        publish_product catalog::PublishProductRequest => catalog::PublishProductResponse;
        discontinue_product catalog::DiscontinueProductRequest => catalog::DiscontinueProductResponse;
    }
}

type Watch = Pin<Box<dyn Stream<Item = Result<orders::WatchOrderResponse, Status>> + Send>>;

#[tonic::async_trait]
impl orders::query_service_server::QueryService for Subject {
    type WatchOrderStream = Watch;

    async fn get_order(&self, request: Request<orders::GetOrderRequest>) -> Result<Response<orders::GetOrderResponse>, Status> {
        self.call(&request, "", &request.get_ref().token)?;
        let as_of = AsOf { token: token(4, 7), ..Default::default() };
        let order = orders::Order { state: orders::OrderState::Reserving.into(), ..Default::default() };
        Ok(Response::new(orders::GetOrderResponse { order: Some(order), as_of: Some(as_of) }))
    }

    /// Each call takes the next list of states and breaks off after it, with a heartbeat in front.
    async fn watch_order(&self, request: Request<orders::WatchOrderRequest>) -> Result<Response<Watch>, Status> {
        self.call(&request, "", &request.get_ref().token)?;
        let states = self.states.lock().unwrap().remove(0);
        let replies = states.into_iter().map(|state| orders::WatchOrderResponse {
            order: Some(orders::Order { state: state.into(), ..Default::default() }),
            as_of: Some(AsOf { token: token(4, 100 + state as u64), ..Default::default() }),
        });
        let heartbeat = orders::WatchOrderResponse::default();
        let broken = Failure::unavailable("DRAINING", "resume elsewhere", Duration::from_millis(1));
        let messages = [heartbeat].into_iter().chain(replies).map(Ok).chain([Err(Status::from(broken))]);
        Ok(Response::new(Box::pin(stream::iter(messages.collect::<Vec<_>>()))))
    }

    unused! {
        list_orders orders::ListOrdersRequest => orders::ListOrdersResponse;
        get_order_timeline orders::GetOrderTimelineRequest => orders::GetOrderTimelineResponse;
        get_sales_summary orders::GetSalesSummaryRequest => orders::GetSalesSummaryResponse;
    }
}

struct Server {
    process: Process,
    served: JoinHandle<anyhow::Result<()>>,
}

impl Server {
    fn start(listener: TcpListener, subject: &Subject) -> Self {
        let settings = Settings::from_toml(&format!("[installation]\ntoken_key = \"{KEY}\"\n")).unwrap();
        let process = Process::new(Arc::new(settings), ServiceKind::Command, &Health::new(), CancellationToken::new());
        let server = GrpcServer::new("internal", &process)
            .add(limited!(catalog::command_service_server::CommandServiceServer::new(subject.clone()), process))
            .add(limited!(orders::query_service_server::QueryServiceServer::new(subject.clone()), process));
        Self { served: tokio::spawn(server.serve(listener)), process }
    }

    async fn stop(self) {
        self.process.shutdown.cancel();
        self.served.await.unwrap().unwrap();
    }
}

async fn start() -> (Subject, Server, Session) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let subject = Subject::default();
    let server = Server::start(listener, &subject);
    (subject, server, Souk::connect(&Endpoints::new(&url, &url).connections(2)).unwrap().session())
}

fn price(product_id: &str, etag: &str) -> catalog::SetPriceRequest {
    catalog::SetPriceRequest { product_id: product_id.into(), etag: etag.into(), ..Default::default() }
}

fn order(token: &str) -> orders::GetOrderRequest {
    orders::GetOrderRequest { order_id: "o-1".into(), token: token.into() }
}

#[tokio::test]
async fn passing_trouble_is_outlasted_under_one_request_id() {
    let (subject, server, session) = start().await;
    let hint = Duration::from_millis(120);
    subject.script([
        Failure::unavailable("TAKEOVER", "a new owner comes", hint),
        Failure::exhausted("OVERLOADED", "too much", Duration::from_millis(1)),
        Failure::aborted("CONFLICT", "others were faster"),
    ]);
    let session = session.caller("tests").traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let began = Instant::now();
    session.command(price("1", "")).await.unwrap();
    assert!(began.elapsed() >= hint);
    let seen = subject.seen();
    assert_eq!(seen.len(), 4);
    assert!(seen.iter().all(|call| call.request_id == seen[0].request_id && call.caller == "tests"));
    assert!(seen[0].traceparent.starts_with("00-0af7651916cd43dd8448eb211c80319c-"));
    assert_eq!(uuid::Uuid::parse_str(&seen[0].request_id).unwrap().get_version_num(), 7);
    assert!(seen.windows(2).all(|pair| pair[1].remaining < pair[0].remaining), "the budget shrinks: {seen:?}");

    let mut request = price("1", "");
    request.request_id = "01890a5d-ac96-774b-bcce-b302099a8057".into();
    session.command(request).await.unwrap();
    assert_eq!(subject.seen()[0].request_id, "01890a5d-ac96-774b-bcce-b302099a8057");
    server.stop().await;
}

#[tokio::test]
async fn refusals_are_final_and_tell_why() {
    let (subject, server, session) = start().await;
    subject.script([Failure::refused("INSUFFICIENT_STOCK", "3 left").with("available", 3)]);
    let error = session.command(price("1", "")).await.unwrap_err();
    assert_eq!((error.code(), error.reason(), error.attempts()), (Code::FailedPrecondition, "INSUFFICIENT_STOCK", 1));
    assert_eq!(error.metadata()["available"], "3");
    assert_eq!(error.request_id(), subject.seen()[0].request_id);
    assert_eq!(error.to_string(), "FailedPrecondition (INSUFFICIENT_STOCK): 3 left");

    subject.script([Failure::invalid("INVALID_FIELDS", "bad").field("price", "missing").field("product_id", "too long")]);
    let error = session.command(price("1", "")).await.unwrap_err();
    let fields: Vec<_> = error.violations().iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!(fields, ["price", "product_id"]);

    // With an etag a conflict is the caller's to settle.
    subject.script([Failure::aborted("STALE_ETAG", "version 8")]);
    let error = session.command(price("1", "1-7")).await.unwrap_err();
    assert_eq!((error.reason(), error.attempts()), ("STALE_ETAG", 1));
    server.stop().await;
}

#[tokio::test]
async fn a_deadline_is_sent_along_and_kept_here() {
    let (subject, server, session) = start().await;
    let session = session.deadline(Duration::from_millis(300));
    let began = Instant::now();
    let error = session.command(price("never", "")).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    assert!(error.outcome_is_unknown() && began.elapsed() < Duration::from_secs(5));
    assert!(subject.seen()[0].remaining <= Duration::from_millis(300));

    // No retry begins that could not end in time.
    subject.script([Failure::unavailable("TAKEOVER", "later", Duration::from_secs(60))]);
    let began = Instant::now();
    let error = session.command(price("1", "")).await.unwrap_err();
    assert_eq!((error.reason(), error.retry_after()), ("TAKEOVER", Some(Duration::from_secs(60))));
    assert!(began.elapsed() < Duration::from_millis(300));
    server.stop().await;
}

#[tokio::test]
async fn tokens_go_from_every_reply_into_the_next_query() {
    let (subject, server, session) = start().await;
    session.query(order("")).await.unwrap();
    session.command(price("9", "")).await.unwrap();
    session.command(price("8", "")).await.unwrap();
    session.clone().query(order(&token(5, 1))).await.unwrap();
    let tokens: Vec<_> = subject.seen().into_iter().filter(|call| call.request_id.is_empty()).map(|call| call.token).collect();
    assert_eq!(tokens, [String::new(), format!("{}.{}.{}", token(4, 7), token(3, 9), token(5, 1))]);

    subject.script([Failure::refused("LOG_RESTORED", "the log went back")]);
    assert_eq!(session.query(order("")).await.unwrap_err().reason(), "LOG_RESTORED");
    assert_eq!(session.token(), "");
    server.stop().await;
}

#[tokio::test]
async fn a_service_that_comes_late_or_restarts_is_found_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let url = format!("http://{address}");
    let session = Souk::connect(&Endpoints::new(&url, &url)).unwrap().session();
    let subject = Subject::default();
    for _ in 0..3 {
        let waiting = tokio::spawn({
            let session = session.clone();
            async move { session.command(price("1", "")).await }
        });
        let error = session.clone().deadline(Duration::from_millis(60)).command(price("1", "")).await.unwrap_err();
        // Refused, or the time was over while it was tried once more.
        assert!(matches!(error.code(), Code::Unavailable | Code::DeadlineExceeded) && error.reason().is_empty(), "{error:?}");
        let server = Server::start(TcpListener::bind(address).await.unwrap(), &subject);
        waiting.await.unwrap().unwrap();
        server.stop().await;
    }
}

#[tokio::test]
async fn a_watch_goes_on_after_the_connection_broke() {
    use orders::OrderState::{AwaitingPayment, Delivered, Paid, Reserving, Shipped};
    let (subject, server, session) = start().await;
    *subject.states.lock().unwrap() = vec![vec![AwaitingPayment], vec![], vec![Paid, Shipped], vec![Delivered]];
    let seen: Vec<_> = session.watch_order("o-1").map(|order| order.unwrap().state()).collect().await;
    assert_eq!(seen, [Reserving, AwaitingPayment, Paid, Shipped, Delivered]);
    let tokens: Vec<_> = subject.seen().into_iter().map(|call| call.token).skip(1).collect();
    assert_eq!(tokens, [token(4, 7), token(4, 102), token(4, 102), token(4, 104)]);
    server.stop().await;
}

#[test]
fn an_endpoint_must_be_a_url() {
    for bad in ["", "localhost", "http://"] {
        assert!(Souk::connect(&Endpoints::new(bad, "http://localhost:1")).is_err(), "{bad:?}");
    }
}
