//! The shop behind gRPC, as the command service offers it.

use std::{pin::Pin, sync::Arc};

use futures::Stream;
use souk_bus::to_wire;
use souk_domain::{Class, Command, OrderId, ProductId, Quantity, Rejection, ReservationId, stock};
use souk_event_sourcing::{LogId, Partition, Position, Region, RequestId, UnixMillis};
use souk_event_store::EventLog;
use souk_proto::{
    log::v1::{
        GetHeadsRequest, GetHeadsResponse, ReadRangeRequest, ReadRangeResponse, TailRequest, TailResponse,
        event_log_service_server::{EventLogService, EventLogServiceServer},
    },
    orders::v1::{
        ExpirePaymentRequest, ExpirePaymentResponse, RecordReservationRequest, RecordReservationResponse,
        process_service_server::{ProcessService as OrderProcess, ProcessServiceServer as OrderProcessServer},
    },
    stock::v1::{
        AdjustStockRequest, AdjustStockResponse, CommitReservationRequest, CommitReservationResponse, ExpireReservationRequest,
        ExpireReservationResponse, ReceiveStockRequest, ReceiveStockResponse, ReleaseReservationRequest, ReleaseReservationResponse,
        ReserveStockRequest, ReserveStockResponse,
        command_service_server::{CommandService, CommandServiceServer},
        process_service_server::{ProcessService as StockProcess, ProcessServiceServer as StockProcessServer},
    },
};
use souk_runtime::Failure;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status, transport::Server};

use super::shop::{Fault, Shop};

#[derive(Clone)]
struct Doors(Arc<Shop>);

/// Serves on a free port until the test ends; returns the address.
pub(super) async fn serve(shop: Arc<Shop>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let doors = Doors(shop);
    #[expect(clippy::disallowed_methods, reason = "a few calls of one test need no limits")]
    let server = Server::builder()
        .add_service(CommandServiceServer::new(doors.clone()))
        .add_service(StockProcessServer::new(doors.clone()))
        .add_service(OrderProcessServer::new(doors.clone()))
        .add_service(EventLogServiceServer::new(doors));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    format!("http://{address}")
}

type Answer<T> = Result<Response<T>, Status>;

impl Doors {
    async fn run(&self, request_id: &str, about: String, command: Command) -> Result<(), Status> {
        let request_id: RequestId = request_id.parse().map_err(|_| Failure::invalid("INVALID_FIELDS", "request_id"))?;
        let away = || Status::from(Failure::unavailable("STORE_UNAVAILABLE", "", std::time::Duration::from_millis(1)));
        let fault = self.0.meet(request_id, about);
        if fault == Fault::BeforeEffect {
            return Err(away());
        }
        // A caller that dies must not leave a command half done.
        let shop = self.0.clone();
        let outcome = tokio::spawn(async move { shop.execute(request_id, command).await }).await.expect("no rule panics");
        if fault == Fault::AfterEffect {
            return Err(away());
        }
        outcome.map_err(refuse)
    }
}

fn refuse(rejection: Rejection) -> Status {
    let code = match rejection.class() {
        Class::NotFound => Code::NotFound,
        Class::AlreadyExists => Code::AlreadyExists,
        Class::Rule => Code::FailedPrecondition,
        Class::Conflict => Code::Aborted,
    };
    let mut failure = Failure::new(code, rejection.reason(), rejection.message());
    failure.metadata.extend(rejection.metadata().into_iter().map(|(key, value)| (key.to_owned(), value)));
    failure.into()
}

fn bad(_: souk_domain::InvalidValue) -> Status {
    Failure::invalid("INVALID_FIELDS", "").into()
}

fn millis(time: Option<prost_types::Timestamp>) -> Option<UnixMillis> {
    time.map(|time| UnixMillis(time.seconds * 1000 + i64::from(time.nanos) / 1_000_000))
}

fn order_id(text: &str) -> Result<OrderId, Status> {
    text.parse().map_err(bad)
}

#[tonic::async_trait]
impl CommandService for Doors {
    async fn receive_stock(&self, _: Request<ReceiveStockRequest>) -> Answer<ReceiveStockResponse> {
        Err(Status::unimplemented("no part of the process"))
    }

    async fn adjust_stock(&self, _: Request<AdjustStockRequest>) -> Answer<AdjustStockResponse> {
        Err(Status::unimplemented("no part of the process"))
    }

    async fn reserve_stock(&self, request: Request<ReserveStockRequest>) -> Answer<ReserveStockResponse> {
        let asked = request.into_inner();
        let product: ProductId = asked.product_id.parse().map_err(bad)?;
        let reservation: ReservationId = asked.order_id.parse().map_err(bad)?;
        let now = UnixMillis::now();
        let valid_until = stock::valid_until(millis(asked.valid_until), now).map_err(bad)?;
        let expires = stock::expires(millis(asked.expire_time), valid_until).map_err(bad)?;
        let hold = stock::Hold { quantity: Quantity::new(asked.quantity).map_err(bad)?, valid_until, expires };
        let about = format!("reserve {product} {reservation}");
        self.run(&asked.request_id, about, Command::ReserveStock { product, reservation, hold, now }).await?;
        Ok(Response::new(ReserveStockResponse::default()))
    }

    async fn release_reservation(&self, request: Request<ReleaseReservationRequest>) -> Answer<ReleaseReservationResponse> {
        let asked = request.into_inner();
        let product: ProductId = asked.product_id.parse().map_err(bad)?;
        let reservation: ReservationId = asked.order_id.parse().map_err(bad)?;
        let now = UnixMillis::now();
        let valid_until = stock::valid_until(millis(asked.valid_until), now).map_err(bad)?;
        let about = format!("release {product} {reservation}");
        self.run(&asked.request_id, about, Command::ReleaseReservation { product, reservation, valid_until, now }).await?;
        Ok(Response::new(ReleaseReservationResponse::default()))
    }

    async fn commit_reservation(&self, request: Request<CommitReservationRequest>) -> Answer<CommitReservationResponse> {
        let asked = request.into_inner();
        let product: ProductId = asked.product_id.parse().map_err(bad)?;
        let reservation: ReservationId = asked.order_id.parse().map_err(bad)?;
        let about = format!("commit {product} {reservation}");
        self.run(&asked.request_id, about, Command::CommitReservation { product, reservation, now: UnixMillis::now() }).await?;
        Ok(Response::new(CommitReservationResponse::default()))
    }
}

#[tonic::async_trait]
impl StockProcess for Doors {
    async fn expire_reservation(&self, request: Request<ExpireReservationRequest>) -> Answer<ExpireReservationResponse> {
        let asked = request.into_inner();
        let product: ProductId = asked.product_id.parse().map_err(bad)?;
        let reservation: ReservationId = asked.order_id.parse().map_err(bad)?;
        let needed = match asked.order_id.parse() {
            Ok(order) => self.0.status(order).await.needs_stock(),
            Err(_) => false,
        };
        let about = format!("expire {product} {reservation}");
        let command =
            Command::ExpireReservation { product: product.clone(), reservation: reservation.clone(), needed, now: UnixMillis::now() };
        self.run(&asked.request_id, about, command).await?;
        let kept = self.0.stock(&product).await.hold(&reservation).is_some();
        Ok(Response::new(ExpireReservationResponse { kept, ..Default::default() }))
    }
}

#[tonic::async_trait]
impl OrderProcess for Doors {
    async fn record_reservation(&self, request: Request<RecordReservationRequest>) -> Answer<RecordReservationResponse> {
        let asked = request.into_inner();
        let order = order_id(&asked.order_id)?;
        let refusals = asked.refusals.iter().filter_map(souk_codec::convert::stored_refusal).collect();
        self.run(&asked.request_id, format!("record {order}"), Command::RecordReservation { order, refusals }).await?;
        Ok(Response::new(RecordReservationResponse::default()))
    }

    async fn expire_payment(&self, request: Request<ExpirePaymentRequest>) -> Answer<ExpirePaymentResponse> {
        let asked = request.into_inner();
        let order = order_id(&asked.order_id)?;
        self.run(&asked.request_id, format!("expire {order}"), Command::ExpirePayment { order, now: UnixMillis::now() }).await?;
        let state = souk_codec::convert::order_state(self.0.status(order).await).into();
        Ok(Response::new(ExpirePaymentResponse { state, ..Default::default() }))
    }
}

#[tonic::async_trait]
impl EventLogService for Doors {
    type TailStream = Pin<Box<dyn Stream<Item = Result<TailResponse, Status>> + Send>>;

    async fn read_range(&self, request: Request<ReadRangeRequest>) -> Answer<ReadRangeResponse> {
        let asked = request.into_inner();
        let log = LogId { region: Region(asked.region as u16), partition: Partition(asked.partition as u16) };
        let from = Position(asked.from_position);
        let head = self.0.store.head(log).await.map_err(|error| Status::unavailable(error.to_string()))?;
        if from > head.position.next() {
            return Err(Status::out_of_range("beyond the head"));
        }
        let events = self.0.store.read(log, from, asked.limit as usize).await.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(ReadRangeResponse { events: events.iter().map(to_wire).collect(), head: None }))
    }

    async fn tail(&self, _: Request<TailRequest>) -> Answer<Self::TailStream> {
        Err(Status::unimplemented("pages are enough here"))
    }

    async fn get_heads(&self, _: Request<GetHeadsRequest>) -> Answer<GetHeadsResponse> {
        Err(Status::unimplemented("pages are enough here"))
    }
}
