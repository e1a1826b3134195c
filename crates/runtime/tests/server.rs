//! The gRPC server over real sockets: its limits, layers, health, reflection and drain.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{Stream, StreamExt, stream};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::Span,
};
use souk_proto::{catalog::v1 as catalog, common::v1::LogPosition, orders::v1 as orders};
use souk_runtime::{
    Deadline, Failure, GrpcServer, Health, Process, ServiceKind, Settings, Telemetry, limited, ops, settings::TelemetrySettings,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt;

type CatalogClient = catalog::query_service_client::QueryServiceClient<Channel>;
type OrdersClient = orders::query_service_client::QueryServiceClient<Channel>;

const KEY: &str = "0101010101010101010101010101010101010101010101010101010101010101";

/// A service whose answers are chosen by the id asked for.
#[derive(Clone, Default)]
struct Subject {
    entered: Arc<Notify>,
    release: Arc<Notify>,
}

#[tonic::async_trait]
impl catalog::query_service_server::QueryService for Subject {
    async fn get_product(&self, request: Request<catalog::GetProductRequest>) -> Result<Response<catalog::GetProductResponse>, Status> {
        let remaining = Deadline::of(&request).remaining();
        let product_id = match request.into_inner().product_id.as_str() {
            "deadline" => format!("{}", remaining.as_millis()),
            "panic" => panic!("asked to"),
            "huge" => "x".repeat(2 << 20),
            "blocked" => {
                self.entered.notify_one();
                self.release.notified().await;
                "released".to_owned()
            }
            "never" => std::future::pending().await,
            other => other.to_owned(),
        };
        Ok(Response::new(catalog::GetProductResponse { product: Some(catalog::Product { product_id, ..Default::default() }), as_of: None }))
    }

    async fn batch_get_products(
        &self,
        _: Request<catalog::BatchGetProductsRequest>,
    ) -> Result<Response<catalog::BatchGetProductsResponse>, Status> {
        Err(Status::unavailable("without details"))
    }

    async fn list_products(&self, _: Request<catalog::ListProductsRequest>) -> Result<Response<catalog::ListProductsResponse>, Status> {
        Ok(Response::new(Default::default()))
    }
}

type Watch = Pin<Box<dyn Stream<Item = Result<orders::WatchOrderResponse, Status>> + Send>>;

#[tonic::async_trait]
impl orders::query_service_server::QueryService for Subject {
    type WatchOrderStream = Watch;

    async fn watch_order(&self, request: Request<orders::WatchOrderRequest>) -> Result<Response<Watch>, Status> {
        let first = stream::iter([Ok(orders::WatchOrderResponse::default())]);
        Ok(Response::new(match request.into_inner().order_id.as_str() {
            "panic" => Box::pin(first.chain(stream::poll_fn(|_| panic!("asked to")))),
            "short" => Box::pin(first),
            _ => Box::pin(first.chain(stream::pending())),
        }))
    }

    async fn get_order(&self, _: Request<orders::GetOrderRequest>) -> Result<Response<orders::GetOrderResponse>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn list_orders(&self, _: Request<orders::ListOrdersRequest>) -> Result<Response<orders::ListOrdersResponse>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn get_order_timeline(
        &self,
        _: Request<orders::GetOrderTimelineRequest>,
    ) -> Result<Response<orders::GetOrderTimelineResponse>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn get_sales_summary(
        &self,
        _: Request<orders::GetSalesSummaryRequest>,
    ) -> Result<Response<orders::GetSalesSummaryResponse>, Status> {
        Ok(Response::new(Default::default()))
    }
}

fn process(grpc: &str) -> Process {
    let settings = Settings::from_toml(&format!("[installation]\ntoken_key = \"{KEY}\"\n[grpc]\n{grpc}\n")).unwrap();
    Process::new(Arc::new(settings), ServiceKind::Query, &Health::new(), CancellationToken::new())
}

/// A running server and what a test needs of it.
struct Running {
    url: String,
    subject: Subject,
    /// Whether there is no room for another call.
    full: Arc<AtomicBool>,
    process: Process,
    served: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    async fn start(grpc: &str) -> Self {
        let process = process(grpc);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let subject = Subject::default();
        let full = Arc::new(AtomicBool::new(false));
        let room = {
            let full = full.clone();
            move || match full.load(Ordering::Relaxed) {
                true => Err(Failure::exhausted("OVERLOADED", "full", Duration::from_millis(80))),
                false => Ok(()),
            }
        };
        let server = GrpcServer::new("internal", &process)
            .while_room(room)
            .add(limited!(catalog::query_service_server::QueryServiceServer::new(subject.clone()), process))
            .add(limited!(orders::query_service_server::QueryServiceServer::new(subject.clone()), process));
        let served = tokio::spawn(server.serve(listener));
        Self { url, subject, full, process, served }
    }

    async fn channel(&self) -> Channel {
        Channel::from_shared(self.url.clone()).unwrap().connect().await.unwrap()
    }

    async fn catalog(&self) -> CatalogClient {
        CatalogClient::new(self.channel().await)
    }

    async fn orders(&self) -> OrdersClient {
        OrdersClient::new(self.channel().await)
    }

    async fn drain(self) {
        self.process.shutdown.cancel();
        self.served.await.unwrap().unwrap();
    }
}

fn product(id: &str) -> Request<catalog::GetProductRequest> {
    Request::new(catalog::GetProductRequest { product_id: id.to_owned(), token: String::new() })
}

fn within(id: &str, timeout: Duration) -> Request<catalog::GetProductRequest> {
    let mut request = product(id);
    request.set_timeout(timeout);
    request
}

fn watch(id: &str) -> orders::WatchOrderRequest {
    orders::WatchOrderRequest { order_id: id.to_owned(), token: String::new() }
}

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

async fn asked(client: &mut CatalogClient, request: Request<catalog::GetProductRequest>) -> String {
    client.get_product(request).await.unwrap().into_inner().product.unwrap().product_id
}

#[tokio::test]
async fn a_deadline_is_told_to_the_service_and_enforced() {
    let server = Running::start("default_deadline = \"150ms\"\nmax_deadline = \"30s\"").await;
    let mut client = server.catalog().await;
    let told: u64 = asked(&mut client, within("deadline", Duration::from_secs(5))).await.parse().unwrap();
    assert!((4_000..=5_000).contains(&told), "{told}");
    let cut: u64 = asked(&mut client, within("deadline", Duration::from_secs(3600))).await.parse().unwrap();
    assert!((29_000..=30_000).contains(&cut), "{cut}");
    let default: u64 = asked(&mut client, product("deadline")).await.parse().unwrap();
    assert!((50..=150).contains(&default), "{default}");

    let status = client.get_product(product("never")).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));

    let mut request = product("p-1");
    request.metadata_mut().insert("grpc-timeout", "soon".parse().unwrap());
    let status = client.get_product(request).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "INVALID_TIMEOUT"));
    server.drain().await;
}

#[tokio::test]
async fn a_panic_is_an_internal_error_and_the_server_lives() {
    let server = Running::start("").await;
    let mut client = server.catalog().await;
    let status = client.get_product(product("panic")).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str(), status.message()), (Code::Internal, "PANIC", "internal error"));
    assert_eq!(asked(&mut client, product("p-1")).await, "p-1");

    let mut stream = server.orders().await.watch_order(watch("panic")).await.unwrap().into_inner();
    // The encoder asks for the next message before it sends the first, which may be lost with the panic.
    let status = loop {
        match stream.message().await {
            Ok(message) => assert!(message.is_some(), "ended as if all were well"),
            Err(status) => break status,
        }
    };
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Internal, "PANIC"));
    server.drain().await;
}

#[tokio::test]
async fn overload_is_shed_with_a_hint_and_health_still_answers() {
    let server = Running::start("max_concurrent_calls = 1\nmax_open_streams = 1\nshed_retry_after = \"70ms\"").await;
    let mut client = server.catalog().await;
    let mut first = client.clone();
    let blocked = tokio::spawn(async move { asked(&mut first, product("blocked")).await });
    server.subject.entered.notified().await;

    let status = client.get_product(product("p-1")).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "OVERLOADED"));
    assert_eq!(status.get_error_details().retry_info().unwrap().retry_delay, Some(Duration::from_millis(70)));
    HealthClient::new(server.channel().await).check(HealthCheckRequest::default()).await.unwrap();

    server.subject.release.notify_one();
    assert_eq!(blocked.await.unwrap(), "released");
    assert_eq!(asked(&mut client, product("p-1")).await, "p-1");

    let mut orders = server.orders().await;
    let open = orders.watch_order(watch("o-1")).await.unwrap();
    assert_eq!(reason(&orders.watch_order(watch("o-2")).await.unwrap_err()), "OVERLOADED");
    drop(open);
    // The permit comes back when the server has seen the reset.
    let again = async { while orders.watch_order(watch("o-2")).await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(10), again).await.unwrap();
    server.drain().await;
}

/// Many more refusals, of requests in several frames, than a connection may have streams reset for its errors.
async fn refused_on_one_connection<F: Future<Output = Status>>(refused: impl Fn(String) -> F) {
    let texts = [0, 10, 20_000, 100_000].into_iter().cycle().take(2_000).map(|bytes| "x".repeat(bytes));
    let refused: Vec<_> = stream::iter(texts).map(refused).buffer_unordered(250).collect().await;
    for status in &refused {
        assert_eq!((status.code(), reason(status).as_str()), (Code::ResourceExhausted, "OVERLOADED"), "{status:?}");
        assert!(status.get_error_details().retry_info().unwrap().retry_delay.is_some());
    }
}

#[tokio::test]
async fn calls_and_streams_without_room_are_refused_unread_and_leave_their_connection_as_it_was() {
    let server = Running::start("max_local_error_resets = 10\nmax_open_streams = 1").await;
    let (mut client, orders) = (server.catalog().await, server.orders().await);
    server.full.store(true, Ordering::Relaxed);
    refused_on_one_connection(|text| {
        let mut client = client.clone();
        async move { client.get_product(product(&text)).await.unwrap_err() }
    })
    .await;
    HealthClient::new(server.channel().await).check(HealthCheckRequest::default()).await.unwrap();
    let _open = server.orders().await.watch_order(watch("o-1")).await.unwrap();
    refused_on_one_connection(|text| {
        let mut orders = orders.clone();
        async move { orders.watch_order(watch(&text)).await.unwrap_err() }
    })
    .await;
    server.full.store(false, Ordering::Relaxed);
    assert_eq!(asked(&mut client, product("p-1")).await, "p-1");
    server.drain().await;
}

#[tokio::test]
async fn calls_beyond_the_most_under_way_are_refused_unread_too() {
    const MOST: usize = 250;
    let server = Running::start(&format!("max_local_error_resets = 10\nmax_concurrent_calls = {MOST}")).await;
    let (client, mut other) = (server.catalog().await, server.catalog().await);
    let mut under_way = JoinSet::new();
    for _ in 0..MOST {
        let mut other = other.clone();
        under_way.spawn(async move { drop(other.get_product(product("never")).await) });
    }
    while other.get_product(product("p-1")).await.is_ok() {}
    refused_on_one_connection(|text| {
        let mut client = client.clone();
        async move { client.get_product(product(&text)).await.unwrap_err() }
    })
    .await;
    under_way.shutdown().await;
    server.drain().await;
}

/// A request that never ends, of a call that is refused.
#[tokio::test]
async fn a_refused_request_that_does_not_come_in_is_not_waited_for() {
    let server = Running::start("").await;
    server.full.store(true, Ordering::Relaxed);
    let mut grpc = tonic::client::Grpc::new(server.channel().await);
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<catalog::GetProductRequest, catalog::GetProductResponse>::default();
    let path = http::uri::PathAndQuery::from_static("/souk.catalog.v1.QueryService/GetProduct");
    let call = grpc.client_streaming(Request::new(stream::pending::<catalog::GetProductRequest>()), path, codec);
    let status = tokio::time::timeout(Duration::from_secs(3), call).await.expect("in time").unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "OVERLOADED"));
    server.drain().await;
}

#[tokio::test]
async fn what_is_too_large_or_malformed_or_unknown_is_refused_with_a_reason() {
    let server = Running::start("").await;
    let mut client = server.catalog().await;
    let status = client.get_product(product(&"x".repeat((1 << 20) + 1))).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "REQUEST_TOO_LARGE"));
    assert!(client.clone().max_decoding_message_size(8 << 20).get_product(product("huge")).await.is_err());

    let status = raw("/souk.catalog.v1.QueryService/GetProduct", &server).await;
    assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "MALFORMED_REQUEST"), "{status:?}");
    let status = raw("/souk.catalog.v1.QueryService/Nonsense", &server).await;
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unimplemented, "METHOD_NOT_FOUND"));
    let status = raw("/no.such.Service/Method", &server).await;
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unimplemented, "METHOD_NOT_FOUND"));

    let status = client.batch_get_products(catalog::BatchGetProductsRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str(), status.message()), (Code::Unavailable, "UNAVAILABLE", "without details"));

    let mut request = product("p-1");
    request.metadata_mut().insert("x-large", "x".repeat(20 << 10).parse().unwrap());
    assert!(client.get_product(request).await.is_err());
    assert_eq!(asked(&mut client, product("p-1")).await, "p-1");
    server.drain().await;
}

/// Sends a message of another type (field 1 a number where a text is wanted) to `path`.
async fn raw(path: &'static str, server: &Running) -> Status {
    let mut grpc = tonic::client::Grpc::new(server.channel().await);
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<LogPosition, LogPosition>::default();
    let request = Request::new(LogPosition { region: 7, ..Default::default() });
    grpc.unary(request, http::uri::PathAndQuery::from_static(path), codec).await.unwrap_err()
}

#[tokio::test]
async fn health_says_the_same_for_the_server_and_each_service() {
    let server = Running::start("").await;
    let mut client = HealthClient::new(server.channel().await);
    let names = ["", "souk.catalog.v1.QueryService", "souk.orders.v1.QueryService"];
    for name in names {
        let reply = client.check(HealthCheckRequest { service: name.into() }).await.unwrap();
        assert_eq!(reply.into_inner().status().as_str_name(), "SERVING", "{name}");
    }
    let mut watch = client.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status().as_str_name(), "SERVING");
    let component = server.process.health.component("bus");
    component.not_ready("JetStream is away");
    assert_eq!(watch.message().await.unwrap().unwrap().status().as_str_name(), "NOT_SERVING");
    for name in names {
        let reply = client.check(HealthCheckRequest { service: name.into() }).await.unwrap();
        assert_eq!(reply.into_inner().status().as_str_name(), "NOT_SERVING", "{name}");
    }
    component.ready();
    assert_eq!(watch.message().await.unwrap().unwrap().status().as_str_name(), "SERVING");
    let status = client.check(HealthCheckRequest { service: "souk.cart.v1.QueryService".into() }).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    server.drain().await;
}

#[tokio::test]
async fn reflection_lists_the_services_in_both_versions() {
    let server = Running::start("").await;
    let want = ["grpc.health.v1.Health", "souk.catalog.v1.QueryService", "souk.orders.v1.QueryService"];
    macro_rules! listed {
        ($version:ident) => {{
            use tonic_reflection::pb::$version::{
                ServerReflectionRequest, server_reflection_client::ServerReflectionClient, server_reflection_request::MessageRequest,
                server_reflection_response::MessageResponse,
            };
            let ask = |message| stream::iter([ServerReflectionRequest { host: String::new(), message_request: Some(message) }]);
            let mut client = ServerReflectionClient::new(server.channel().await);
            let mut replies = client.server_reflection_info(ask(MessageRequest::ListServices(String::new()))).await.unwrap().into_inner();
            let Some(MessageResponse::ListServicesResponse(list)) = replies.message().await.unwrap().unwrap().message_response else {
                panic!("no list");
            };
            let symbol = MessageRequest::FileContainingSymbol("souk.orders.v1.QueryService".into());
            let mut replies = client.server_reflection_info(ask(symbol)).await.unwrap().into_inner();
            let file = replies.message().await.unwrap().unwrap().message_response;
            assert!(matches!(file, Some(MessageResponse::FileDescriptorResponse(_))));
            list.service.into_iter().map(|service| service.name).collect::<Vec<_>>()
        }};
    }
    for mut names in [listed!(v1), listed!(v1alpha)] {
        names.sort();
        assert_eq!(names, want);
    }
    server.drain().await;
}

#[tokio::test]
async fn a_drain_ends_streams_finishes_calls_and_closes_the_door() {
    let server = Running::start("default_deadline = \"30s\"").await;
    let mut stream = server.orders().await.watch_order(watch("o-1")).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    let mut client = server.catalog().await;
    let blocked = tokio::spawn(async move { asked(&mut client, product("blocked")).await });
    server.subject.entered.notified().await;

    server.process.shutdown.cancel();
    let status = stream.message().await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "DRAINING"));
    assert!(status.get_error_details().retry_info().is_some());
    assert!(TcpStream::connect(server.url.strip_prefix("http://").unwrap()).await.is_err(), "still accepting");
    assert!(!server.served.is_finished());

    server.subject.release.notify_one();
    assert_eq!(blocked.await.unwrap(), "released");
    server.drain().await;
}

#[tokio::test]
async fn streams_outlive_the_default_deadline_but_not_their_own() {
    let server = Running::start("default_deadline = \"20ms\"").await;
    let mut client = server.orders().await;
    let mut open = client.watch_order(watch("o-1")).await.unwrap().into_inner();
    assert!(open.message().await.unwrap().is_some());
    let mut request = Request::new(watch("o-2"));
    request.metadata_mut().insert("grpc-timeout", "200m".parse().unwrap());
    let mut bounded = client.watch_order(request).await.unwrap().into_inner();
    assert!(bounded.message().await.unwrap().is_some());
    assert_eq!(bounded.message().await.unwrap_err().code(), Code::DeadlineExceeded);
    // Ten times the default deadline has passed, and the other stream is still open.
    assert!(futures::poll!(std::pin::pin!(open.message())).is_pending());
    server.drain().await;
}

#[tokio::test]
async fn connections_grow_old_and_calls_in_flight_finish() {
    let server = Running::start("max_connection_age = \"50ms\"\nconnection_age_jitter = 0.5\ndefault_deadline = \"30s\"").await;
    let mut client = server.catalog().await;
    let mut first = client.clone();
    let blocked = tokio::spawn(async move { asked(&mut first, product("blocked")).await });
    server.subject.entered.notified().await;
    let until = tokio::time::Instant::now() + Duration::from_millis(600);
    let (mut answered, mut unsent) = (0, 0);
    while tokio::time::Instant::now() < until {
        match client.get_product(product("p-1")).await {
            Ok(_) => answered += 1,
            // tonic's channel may take a call while its connection closes, and gives it back unsent.
            Err(status) if status.message() == "operation was canceled" => unsent += 1,
            Err(status) => panic!("{status}"),
        }
    }
    assert!(answered > 20 && unsent < 15, "{answered} answered, {unsent} unsent");
    server.subject.release.notify_one();
    assert_eq!(blocked.await.unwrap(), "released");
    server.drain().await;
}

#[tokio::test]
async fn a_connection_that_hangs_in_its_handshake_is_closed_in_time_and_delays_no_drain() {
    let hanging = async |server: &Running| {
        let mut socket = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).await.unwrap();
        socket.write_all(b"PRI * HTTP/2.0").await.unwrap();
        socket
    };
    let server = Running::start("first_request_timeout = \"200ms\"").await;
    let mut socket = hanging(&server).await;
    let mut said = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(10), socket.read_to_end(&mut said)).await;
    assert!(closed.is_ok(), "still open, and it said {said:?}");
    server.drain().await;

    let server = Running::start("").await;
    let _socket = hanging(&server).await;
    // Accepted after it.
    server.catalog().await.list_products(catalog::ListProductsRequest::default()).await.unwrap();
    tokio::time::timeout(Duration::from_secs(5), server.drain()).await.expect("not for the whole grace");
}

#[tokio::test]
async fn the_ops_port_tells_readiness_with_reasons_and_metrics() {
    let server = Running::start("").await;
    let mut client = server.catalog().await;
    asked(&mut client, product("p-1")).await;
    let mut stream = server.orders().await.watch_order(watch("short")).await.unwrap().into_inner();
    while stream.message().await.unwrap().is_some() {}

    let health = Health::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let ops = tokio::spawn(ops::serve(listener, health.clone(), shutdown.clone()));
    let get = async |path: &str| {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).await.unwrap();
        text
    };
    assert!(get("/livez").await.starts_with("HTTP/1.1 200"));
    assert!(get("/readyz").await.starts_with("HTTP/1.1 200"));
    health.scoped("query").component("cache").not_ready("warming up");
    let not_ready = get("/readyz").await;
    assert!(not_ready.starts_with("HTTP/1.1 503") && not_ready.contains("query/cache: warming up"), "{not_ready}");
    let metrics = get("/metrics").await;
    let unary = r#"souk_rpc_requests_total{grpc_service="souk.catalog.v1.QueryService",grpc_method="GetProduct",grpc_code="OK"}"#;
    let streamed =
        r#"souk_rpc_seconds_bucket{grpc_service="souk.orders.v1.QueryService",grpc_method="WatchOrder",grpc_code="OK",le="0.0005"}"#;
    assert!(metrics.contains(unary) && metrics.contains(streamed), "{metrics}");
    shutdown.cancel();
    ops.await.unwrap().unwrap();
    server.drain().await;
}

#[derive(Clone)]
struct Receiver(mpsc::Sender<Span>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(&self, request: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let scopes = request.into_inner().resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        scopes.flat_map(|scope| scope.spans).for_each(|span| self.0.try_send(span).expect("the test takes them"));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test]
async fn a_call_is_exported_as_a_child_of_its_callers_span() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (sender, mut spans) = mpsc::channel(10_000);
    let receiver = GrpcServer::new("internal", &process("")).add(TraceServiceServer::new(Receiver(sender)));
    let receiving = tokio::spawn(receiver.serve(listener));
    let settings = TelemetrySettings { otlp_endpoint: Some(endpoint), ..TelemetrySettings::default() };
    let telemetry = Telemetry::init(&settings, "test", "test-1").unwrap();

    let server = Running::start("").await;
    let mut client = server.catalog().await;
    let mut request = product("p-1");
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
    asked(&mut client, request).await;
    server.drain().await;
    telemetry.flush().await;

    let ours = async {
        loop {
            let span = spans.recv().await.unwrap();
            if span.trace_id == 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes() {
                return span;
            }
        }
    };
    let span = tokio::time::timeout(Duration::from_secs(10), ours).await.unwrap();
    assert_eq!(span.name, "souk.catalog.v1.QueryService/GetProduct");
    assert_eq!(span.parent_span_id, 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
    receiving.abort();
}
