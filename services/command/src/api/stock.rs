use souk_domain::{Command, Correction, Note, OrderId, ProductId, Quantity, Receipt, ReservationId, stock};
use souk_proto::stock::v1::{
    AdjustStockRequest, AdjustStockResponse, CommitReservationRequest, CommitReservationResponse, ExpireReservationRequest,
    ExpireReservationResponse, ReceiveStockRequest, ReceiveStockResponse, ReleaseReservationRequest, ReleaseReservationResponse,
    ReserveStockRequest, ReserveStockResponse, command_service_server::CommandService, process_service_server::ProcessService,
};
use souk_runtime::Violations;
use tonic::{Request, Response, Status};

use super::{
    convert,
    rpc::{self, CommandRpc, Context, Draft, Needs, replies},
};
use crate::gateway::Gateway;

replies! {
    ReceiveStockResponse { product_id }
    AdjustStockResponse { product_id }
    ReserveStockResponse { product_id }
    ReleaseReservationResponse { product_id }
    CommitReservationResponse { product_id }
    ExpireReservationResponse { product_id, kept }
}

impl CommandRpc for ReceiveStockRequest {
    const METHOD: &'static str = "souk.stock.v1.CommandService/ReceiveStock";
    type Response = ReceiveStockResponse;

    fn request_id(&self) -> &str {
        &self.request_id
    }

    fn draft(&self, _: &Context<'_>, bad: &mut Violations) -> Option<Draft> {
        let product = bad.check("product_id", ProductId::new(&self.product_id));
        let quantity = bad.check("quantity", Receipt::new(self.quantity));
        let (product, quantity) = (product?, quantity?);
        Some(Draft::ready(product.clone(), Command::ReceiveStock { product, quantity }))
    }
}

impl CommandRpc for AdjustStockRequest {
    const METHOD: &'static str = "souk.stock.v1.CommandService/AdjustStock";
    type Response = AdjustStockResponse;

    fn request_id(&self) -> &str {
        &self.request_id
    }

    fn etag(&self) -> &str {
        &self.etag
    }

    fn draft(&self, _: &Context<'_>, bad: &mut Violations) -> Option<Draft> {
        let product = bad.check("product_id", ProductId::new(&self.product_id));
        let delta = bad.check("delta", Correction::new(self.delta));
        let note = bad.check("note", Note::new(&self.note));
        let (product, delta, note) = (product?, delta?, note?);
        Some(Draft::ready(product.clone(), Command::AdjustStock { product, delta, note }))
    }
}

impl CommandRpc for ReserveStockRequest {
    const METHOD: &'static str = "souk.stock.v1.CommandService/ReserveStock";
    type Response = ReserveStockResponse;

    fn request_id(&self) -> &str {
        &self.request_id
    }

    fn draft(&self, context: &Context<'_>, bad: &mut Violations) -> Option<Draft> {
        let product = bad.check("product_id", ProductId::new(&self.product_id));
        let reservation = bad.check("order_id", ReservationId::new(&self.order_id));
        let quantity = bad.check("quantity", Quantity::new(self.quantity));
        let asked = convert::time("valid_until", self.valid_until.as_ref(), bad);
        let valid_until = bad.check("valid_until", stock::valid_until(asked, context.now));
        let asked = convert::time("expire_time", self.expire_time.as_ref(), bad);
        let expires = bad.check("expire_time", stock::expires(asked, valid_until?));
        let (product, reservation) = (product?, reservation?);
        let hold = stock::Hold { quantity: quantity?, valid_until: valid_until?, expires: expires? };
        Some(Draft::ready(product.clone(), Command::ReserveStock { product, reservation, hold, now: context.now }))
    }
}

impl CommandRpc for ReleaseReservationRequest {
    const METHOD: &'static str = "souk.stock.v1.CommandService/ReleaseReservation";
    type Response = ReleaseReservationResponse;

    fn request_id(&self) -> &str {
        &self.request_id
    }

    fn draft(&self, context: &Context<'_>, bad: &mut Violations) -> Option<Draft> {
        let product = bad.check("product_id", ProductId::new(&self.product_id));
        let reservation = bad.check("order_id", ReservationId::new(&self.order_id));
        let asked = convert::time("valid_until", self.valid_until.as_ref(), bad);
        let valid_until = bad.check("valid_until", stock::valid_until(asked, context.now));
        let (product, reservation, valid_until) = (product?, reservation?, valid_until?);
        Some(Draft::ready(product.clone(), Command::ReleaseReservation { product, reservation, valid_until, now: context.now }))
    }
}

impl CommandRpc for CommitReservationRequest {
    const METHOD: &'static str = "souk.stock.v1.CommandService/CommitReservation";
    type Response = CommitReservationResponse;

    fn request_id(&self) -> &str {
        &self.request_id
    }

    fn draft(&self, context: &Context<'_>, bad: &mut Violations) -> Option<Draft> {
        let product = bad.check("product_id", ProductId::new(&self.product_id));
        let reservation = bad.check("order_id", ReservationId::new(&self.order_id));
        let (product, reservation) = (product?, reservation?);
        Some(Draft::ready(product.clone(), Command::CommitReservation { product, reservation, now: context.now }))
    }
}

impl CommandRpc for ExpireReservationRequest {
    const METHOD: &'static str = "souk.stock.v1.ProcessService/ExpireReservation";
    type Response = ExpireReservationResponse;

    fn request_id(&self) -> &str {
        &self.request_id
    }

    fn draft(&self, context: &Context<'_>, bad: &mut Violations) -> Option<Draft> {
        let product = bad.check("product_id", ProductId::new(&self.product_id));
        let reservation = bad.check("order_id", ReservationId::new(&self.order_id));
        let (product, reservation, now) = (product?, reservation?, context.now);
        let (about, held) = (product.clone(), reservation.clone());
        let build = move |needed| Command::ExpireReservation { product: product.clone(), reservation: reservation.clone(), needed, now };
        // Only an order of ours can tell that it still needs the units; any other hold just expires.
        let needs = match self.order_id.parse::<OrderId>() {
            Ok(order) => Needs::Order(order, Box::new(build)),
            Err(_) => Needs::Nothing(build(false)),
        };
        Some(Draft { reservation: Some(held), ..Draft::new(about, needs) })
    }
}

/// The commands on stock.
pub struct StockCommands(pub Gateway);

#[tonic::async_trait]
impl CommandService for StockCommands {
    async fn receive_stock(&self, request: Request<ReceiveStockRequest>) -> Result<Response<ReceiveStockResponse>, Status> {
        rpc::run(&self.0, request).await
    }

    async fn adjust_stock(&self, request: Request<AdjustStockRequest>) -> Result<Response<AdjustStockResponse>, Status> {
        rpc::run(&self.0, request).await
    }

    async fn reserve_stock(&self, request: Request<ReserveStockRequest>) -> Result<Response<ReserveStockResponse>, Status> {
        rpc::run(&self.0, request).await
    }

    async fn release_reservation(
        &self,
        request: Request<ReleaseReservationRequest>,
    ) -> Result<Response<ReleaseReservationResponse>, Status> {
        rpc::run(&self.0, request).await
    }

    async fn commit_reservation(&self, request: Request<CommitReservationRequest>) -> Result<Response<CommitReservationResponse>, Status> {
        rpc::run(&self.0, request).await
    }
}

/// The process manager's commands on stock.
pub struct StockProcess(pub Gateway);

#[tonic::async_trait]
impl ProcessService for StockProcess {
    async fn expire_reservation(&self, request: Request<ExpireReservationRequest>) -> Result<Response<ExpireReservationResponse>, Status> {
        rpc::run(&self.0, request).await
    }
}
