//! The commands that steps are made of, sent to the command service.

use std::time::Duration;

use async_trait::async_trait;
use souk_domain::{OrderId, ProductId, Quantity, ReservationId, order::Refusal};
use souk_event_sourcing::{RequestId, UnixMillis};
use souk_proto::{
    orders::v1::{
        ExpirePaymentRequest, OrderState, RecordReservationRequest, process_service_client::ProcessServiceClient as OrderProcess,
    },
    stock::v1::{
        CommitReservationRequest, ExpireReservationRequest, ReleaseReservationRequest, ReserveStockRequest,
        command_service_client::CommandServiceClient as StockCommands, process_service_client::ProcessServiceClient as StockProcess,
    },
};
use souk_runtime::{Peer, call::CALLER, telemetry};
use tonic::{Code, Request, Response, Status, metadata::MetadataValue};
use tonic_types::StatusExt;

/// One command of a step.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Command {
    Reserve { product: ProductId, order: OrderId, quantity: Quantity, valid_until: UnixMillis, expires: UnixMillis },
    Release { product: ProductId, order: OrderId, valid_until: UnixMillis },
    Commit { product: ProductId, order: OrderId },
    RecordReservation { order: OrderId, refusals: Vec<Refusal> },
    ExpirePayment { order: OrderId },
    ExpireReservation { product: ProductId, reservation: ReservationId },
}

/// A definite answer: repeated under the same id, the command is answered the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    /// It came too early or is still needed: the order still awaits payment, the hold was kept.
    StillOpen,
    /// A rule refused.
    Refused {
        reason: String,
        available: i64,
    },
}

/// Why there is no definite answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The same command under the same id may succeed later.
    Passing { why: String, retry_after: Option<Duration> },
    /// The request id can not be used any more: too old, or used for another body.
    IdSpent,
    /// The command service does not understand the command. Nothing but another build helps; it is tried on all the same.
    Broken { why: String },
}

/// Sending commands. Each is sent once; repeating is for whoever keeps the outbox.
#[async_trait]
pub(crate) trait Commands: Send + Sync {
    async fn send(&self, request_id: RequestId, command: Command) -> Result<Answer, Trouble>;
}

/// [`Commands`] over gRPC.
#[derive(Debug, Clone)]
pub(crate) struct GrpcCommands {
    stock: StockCommands<Peer>,
    stock_process: StockProcess<Peer>,
    order_process: OrderProcess<Peer>,
    deadline: Duration,
}

/// Who these commands say they come from.
const ACTOR: &str = "souk-saga";

impl GrpcCommands {
    /// `public` and `internal` are the doors of the command service; `deadline` is that of one command.
    pub fn new(public: Peer, internal: Peer, deadline: Duration) -> Self {
        let (stock_process, order_process) = (StockProcess::new(internal.clone()), OrderProcess::new(internal));
        Self { stock: StockCommands::new(public), stock_process, order_process, deadline }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.deadline);
        request.metadata_mut().insert(CALLER, MetadataValue::from_static(ACTOR));
        telemetry::inject(request.metadata_mut());
        request
    }

    async fn dispatch(&self, request_id: String, command: Command) -> Result<Answer, Status> {
        let mut stock = self.stock.clone();
        match command {
            Command::Reserve { product, order, quantity, valid_until, expires } => {
                let (product_id, order_id, quantity) = (product.to_string(), order.to_string(), quantity.get());
                let (valid_until, expire_time) = (Some(timestamp(valid_until)), Some(timestamp(expires)));
                let request = ReserveStockRequest { request_id, product_id, order_id, quantity, valid_until, expire_time };
                stock.reserve_stock(self.request(request)).await.map(done)
            }
            Command::Release { product, order, valid_until } => {
                let (product_id, order_id, valid_until) = (product.to_string(), order.to_string(), Some(timestamp(valid_until)));
                let request = ReleaseReservationRequest { request_id, product_id, order_id, valid_until };
                stock.release_reservation(self.request(request)).await.map(done)
            }
            Command::Commit { product, order } => {
                let request = CommitReservationRequest { request_id, product_id: product.to_string(), order_id: order.to_string() };
                stock.commit_reservation(self.request(request)).await.map(done)
            }
            Command::RecordReservation { order, refusals } => {
                let refusals = refusals.iter().map(souk_codec::convert::refusal).collect();
                let request = RecordReservationRequest { request_id, order_id: order.to_string(), refusals };
                self.order_process.clone().record_reservation(self.request(request)).await.map(done)
            }
            Command::ExpirePayment { order } => {
                let request = ExpirePaymentRequest { request_id, order_id: order.to_string() };
                let response = self.order_process.clone().expire_payment(self.request(request)).await?;
                Ok(open_if(response.into_inner().state() == OrderState::AwaitingPayment))
            }
            Command::ExpireReservation { product, reservation } => {
                let (product_id, order_id) = (product.to_string(), reservation.to_string());
                let request = ExpireReservationRequest { request_id, product_id, order_id };
                let response = self.stock_process.clone().expire_reservation(self.request(request)).await?;
                Ok(open_if(response.into_inner().kept))
            }
        }
    }
}

#[async_trait]
impl Commands for GrpcCommands {
    async fn send(&self, request_id: RequestId, command: Command) -> Result<Answer, Trouble> {
        let is_reserve = matches!(command, Command::Reserve { .. });
        // The timeout in the metadata binds the server; a half-open connection needs one of our own.
        match tokio::time::timeout(self.deadline, self.dispatch(request_id.to_string(), command)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(status)) => judge(&status, is_reserve),
            Err(_) => Err(Trouble::Passing { why: "no answer within the deadline".into(), retry_after: None }),
        }
    }
}

fn done<T>(_: Response<T>) -> Answer {
    Answer::Done
}

fn open_if(still: bool) -> Answer {
    if still { Answer::StillOpen } else { Answer::Done }
}

fn timestamp(time: UnixMillis) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.0.div_euclid(1000), nanos: (time.0.rem_euclid(1000) * 1_000_000) as i32 }
}

/// What an error status says of the command: an outcome, or trouble that passes, or not.
fn judge(status: &Status, is_reserve: bool) -> Result<Answer, Trouble> {
    let details = status.get_error_details();
    let info = details.error_info();
    let reason = info.map_or_else(String::new, |info| info.reason.clone());
    let why = || format!("{:?} {reason}: {}", status.code(), status.message());
    let refused = || {
        let available = info.and_then(|info| info.metadata.get("available")).and_then(|units| units.parse().ok()).unwrap_or(0);
        let reason = if reason.is_empty() { souk_runtime::code_name(status.code()).to_owned() } else { reason.clone() };
        Ok(Answer::Refused { reason, available })
    };
    match status.code() {
        Code::FailedPrecondition | Code::NotFound | Code::AlreadyExists => refused(),
        Code::InvalidArgument if matches!(reason.as_str(), "REQUEST_ID_TOO_OLD" | "REQUEST_ID_TOO_NEW" | "REQUEST_ID_REUSED") => {
            Err(Trouble::IdSpent)
        }
        // A line that cannot be reserved at all is refused: the order must end.
        Code::InvalidArgument | Code::OutOfRange if is_reserve => refused(),
        Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented | Code::DataLoss => Err(Trouble::Broken { why: why() }),
        Code::PermissionDenied | Code::Unauthenticated => Err(Trouble::Broken { why: why() }),
        // All others may pass, also what transport makes of a lost connection and an error inside the command service.
        _ => Err(Trouble::Passing { why: why(), retry_after: details.retry_info().and_then(|retry| retry.retry_delay) }),
    }
}

#[cfg(test)]
mod tests {
    use souk_runtime::Failure;

    use super::*;

    fn verdict(failure: Failure, is_reserve: bool) -> Result<Answer, Trouble> {
        judge(&failure.into(), is_reserve)
    }

    #[test]
    fn a_refusal_is_an_outcome_with_its_figure() {
        let refused = |reason: &str, available| Ok(Answer::Refused { reason: reason.to_owned(), available });
        assert_eq!(verdict(Failure::refused("INSUFFICIENT_STOCK", "").with("available", 3), true), refused("INSUFFICIENT_STOCK", 3));
        assert_eq!(verdict(Failure::not_found("PRODUCT_NOT_FOUND", ""), true), refused("PRODUCT_NOT_FOUND", 0));
        assert_eq!(verdict(Failure::invalid("INVALID_FIELDS", ""), true), refused("INVALID_FIELDS", 0));
        assert_eq!(judge(&Status::failed_precondition("no details"), false), refused("FAILED_PRECONDITION", 0));
    }

    #[test]
    fn passing_trouble_is_tried_again() {
        let later = Duration::from_millis(70);
        let exhausted = verdict(Failure::exhausted("OVERLOADED", "", later), true);
        assert!(matches!(exhausted, Err(Trouble::Passing { retry_after: Some(pause), .. }) if pause == later));
        let codes = [Code::Unavailable, Code::Aborted, Code::DeadlineExceeded, Code::Unknown, Code::Internal, Code::Cancelled];
        for code in codes {
            assert!(matches!(judge(&Status::new(code, ""), true), Err(Trouble::Passing { .. })), "{code:?}");
        }
    }

    #[test]
    fn a_spent_request_id_and_a_misunderstanding_are_told_apart() {
        for reason in ["REQUEST_ID_TOO_OLD", "REQUEST_ID_TOO_NEW", "REQUEST_ID_REUSED"] {
            assert_eq!(verdict(Failure::invalid(reason, ""), true), Err(Trouble::IdSpent));
        }
        assert!(matches!(verdict(Failure::invalid("INVALID_FIELDS", ""), false), Err(Trouble::Broken { .. })));
        assert!(matches!(judge(&Status::unimplemented(""), true), Err(Trouble::Broken { .. })));
    }

    #[test]
    fn times_before_1970_and_after_are_timestamps() {
        assert_eq!(timestamp(UnixMillis(1_500)), prost_types::Timestamp { seconds: 1, nanos: 500_000_000 });
        assert_eq!(timestamp(UnixMillis(-500)), prost_types::Timestamp { seconds: -1, nanos: 500_000_000 });
    }
}
