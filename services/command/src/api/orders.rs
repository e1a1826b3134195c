use souk_domain::{
    CancelReason, Carrier, Command, CustomerId, OrderId, PaymentReference, ProductId, Quantity, TrackingNumber, cart,
    order::{OrderLines, Refusal, Shipment, Terms},
};
use souk_event_sourcing::Etag;
use souk_proto::orders::v1::{
    CancelOrderRequest, CancelOrderResponse, ExpirePaymentRequest, ExpirePaymentResponse, LineRefusal, PlaceOrderLine, PlaceOrderRequest,
    PlaceOrderResponse, RecordDeliveryRequest, RecordDeliveryResponse, RecordPaymentRequest, RecordPaymentResponse,
    RecordReservationRequest, RecordReservationResponse, RecordShipmentRequest, RecordShipmentResponse,
    command_service_server::CommandService, process_service_server::ProcessService,
};
use souk_runtime::Violations;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::{
    convert,
    failure::failure,
    route::was_elsewhere,
    rpc::{self, CommandRpc, Context, Draft, Needs, replies},
};
use crate::{committer::CommandError, gateway::Gateway};

replies! {
    PlaceOrderResponse { order_id, state, total }
    RecordPaymentResponse { order_id, state }
    CancelOrderResponse { order_id, state }
    RecordShipmentResponse { order_id, state }
    RecordDeliveryResponse { order_id, state }
    RecordReservationResponse { order_id, state }
    ExpirePaymentResponse { order_id, state }
}

impl CommandRpc for PlaceOrderRequest {
    const METHOD: &'static str = "souk.orders.v1.CommandService/PlaceOrder";
    type Response = PlaceOrderResponse;

    fn request_id(&self) -> &str {
        &self.request_id
    }

    fn meaning(&self) -> Vec<u8> {
        // Whether the caller waits is no part of what is asked: a repeat may wait or not.
        prost::Message::encode_to_vec(&Self { wait_for_outcome: false, ..self.clone() })
    }

    fn draft(&self, context: &Context<'_>, bad: &mut Violations) -> Option<Draft> {
        let customer = bad.check("customer_id", CustomerId::new(&self.customer_id));
        let lines = lines(&self.lines, bad);
        let expected = convert::optional(self.expected_total.as_ref(), |sent| convert::money("expected_total", Some(sent), bad));
        let (customer, lines, expected_total) = (customer?, lines?, expected?);
        let region = context.home(&customer, bad)?;
        let order = OrderId::mint(context.request_id, context.caller, &customer, Self::METHOD, region);
        let products = lines.as_slice().iter().map(|line| line.product.clone()).collect();
        let payment_deadline = context.payment_deadline();
        let build = move |catalog| Command::PlaceOrder {
            order,
            lines: lines.clone(),
            terms: Terms { customer: customer.clone(), catalog, expected_total, payment_deadline },
        };
        Some(Draft { order: Some(order), ..Draft::new(order, Needs::Products(products, Box::new(build))) })
    }
}

impl CommandRpc for RecordPaymentRequest {
    const METHOD: &'static str = "souk.orders.v1.CommandService/RecordPayment";
    type Response = RecordPaymentResponse;

    fn request_id(&self) -> &str {
        &self.request_id
    }

    fn draft(&self, _: &Context<'_>, bad: &mut Violations) -> Option<Draft> {
        let order = bad.check("order_id", self.order_id.parse::<OrderId>());
        let reference = bad.check("payment_reference", PaymentReference::new(&self.payment_reference));
        let amount = convert::money("amount", self.amount.as_ref(), bad);
        let (order, reference, amount) = (order?, reference?, amount?);
        Some(Draft::ready(order, Command::RecordPayment { order, reference, amount }))
    }
}

impl CommandRpc for CancelOrderRequest {
    const METHOD: &'static str = "souk.orders.v1.CommandService/CancelOrder";
    type Response = CancelOrderResponse;

    fn request_id(&self) -> &str {
        &self.request_id
    }

    fn etag(&self) -> &str {
        &self.etag
    }

    fn draft(&self, _: &Context<'_>, bad: &mut Violations) -> Option<Draft> {
        let order = bad.check("order_id", self.order_id.parse::<OrderId>());
        let reason = bad.check("reason", CancelReason::new(&self.reason));
        let (order, reason) = (order?, reason?);
        Some(Draft::ready(order, Command::CancelOrder { order, reason }))
    }
}

impl CommandRpc for RecordShipmentRequest {
    const METHOD: &'static str = "souk.orders.v1.CommandService/RecordShipment";
    type Response = RecordShipmentResponse;

    fn request_id(&self) -> &str {
        &self.request_id
    }

    fn etag(&self) -> &str {
        &self.etag
    }

    fn draft(&self, _: &Context<'_>, bad: &mut Violations) -> Option<Draft> {
        let order = bad.check("order_id", self.order_id.parse::<OrderId>());
        let carrier = bad.check("carrier", Carrier::new(&self.carrier));
        let tracking_number = bad.check("tracking_number", TrackingNumber::new(&self.tracking_number));
        let (order, shipment) = (order?, Shipment { carrier: carrier?, tracking_number: tracking_number? });
        Some(Draft::ready(order, Command::RecordShipment { order, shipment }))
    }
}

impl CommandRpc for RecordDeliveryRequest {
    const METHOD: &'static str = "souk.orders.v1.CommandService/RecordDelivery";
    type Response = RecordDeliveryResponse;

    fn request_id(&self) -> &str {
        &self.request_id
    }

    fn etag(&self) -> &str {
        &self.etag
    }

    fn draft(&self, _: &Context<'_>, bad: &mut Violations) -> Option<Draft> {
        let order = bad.check("order_id", self.order_id.parse::<OrderId>())?;
        Some(Draft::ready(order, Command::RecordDelivery { order }))
    }
}

impl CommandRpc for RecordReservationRequest {
    const METHOD: &'static str = "souk.orders.v1.ProcessService/RecordReservation";
    type Response = RecordReservationResponse;

    fn request_id(&self) -> &str {
        &self.request_id
    }

    fn draft(&self, _: &Context<'_>, bad: &mut Violations) -> Option<Draft> {
        let order = bad.check("order_id", self.order_id.parse::<OrderId>());
        bad.require(self.refusals.len() <= cart::MAX_LINES, "refusals", "want at most one per line");
        let sent = self.refusals.iter().enumerate().take(cart::MAX_LINES);
        let refusals = convert::all(sent.map(|(index, sent)| refusal(index, sent, bad)));
        let (order, refusals) = (order?, refusals?);
        Some(Draft::ready(order, Command::RecordReservation { order, refusals }))
    }
}

impl CommandRpc for ExpirePaymentRequest {
    const METHOD: &'static str = "souk.orders.v1.ProcessService/ExpirePayment";
    type Response = ExpirePaymentResponse;

    fn request_id(&self) -> &str {
        &self.request_id
    }

    fn draft(&self, context: &Context<'_>, bad: &mut Violations) -> Option<Draft> {
        let order = bad.check("order_id", self.order_id.parse::<OrderId>())?;
        Some(Draft::ready(order, Command::ExpirePayment { order, now: context.now }))
    }
}

fn lines(sent: &[PlaceOrderLine], bad: &mut Violations) -> Option<OrderLines> {
    let lines = convert::all((sent.iter().enumerate().take(cart::MAX_LINES + 1)).map(|(index, line)| {
        let product = bad.check(format!("lines[{index}].product_id"), ProductId::new(&line.product_id));
        let quantity = bad.check(format!("lines[{index}].quantity"), Quantity::new(line.quantity));
        Some(cart::Line { product: product?, quantity: quantity? })
    }));
    bad.check("lines", OrderLines::new(lines?))
}

fn refusal(index: usize, sent: &LineRefusal, bad: &mut Violations) -> Option<Refusal> {
    let product = bad.check(format!("refusals[{index}].product_id"), ProductId::new(&sent.product_id));
    bad.require(
        !sent.reason.is_empty() && sent.reason.len() <= 64 && !sent.reason.contains('\0'),
        format!("refusals[{index}].reason"),
        "want 1–64 characters",
    );
    Some(Refusal { product: product?, reason: sent.reason.clone(), available: sent.available })
}

/// The commands on orders.
pub struct OrderCommands(pub Gateway);

#[tonic::async_trait]
impl CommandService for OrderCommands {
    async fn place_order(&self, request: Request<PlaceOrderRequest>) -> Result<Response<PlaceOrderResponse>, Status> {
        if !request.get_ref().wait_for_outcome {
            return rpc::run(&self.0, request).await;
        }
        let patience = Instant::now() + rpc::patience(&request);
        let (metadata, extensions, message) = request.into_parts();
        loop {
            let attempt = Request::from_parts(metadata.clone(), extensions.clone(), message.clone());
            let mut response = rpc::run(&self.0, attempt).await?;
            let order = response.get_ref().order_id.parse::<OrderId>();
            let (false, Ok(order)) = (was_elsewhere(response.extensions()), order) else { return Ok(response) };
            let seen = match self.0.outcome(order, patience).await {
                // Whoever owns the log now answers the same request id, and waits there.
                Err(CommandError::NotOwner(_)) => continue,
                outcome => outcome.map_err(failure)?,
            };
            let reply = response.get_mut();
            reply.token = rpc::token(&self.0, seen.head);
            if let [(entity, version)] = seen.entities.as_slice()
                && let Some(state) = entity.as_order()
            {
                reply.state = convert::order_state(state.status).into();
                reply.version = version.0;
                reply.etag = Etag { region: self.0.region(), version: *version }.to_string();
            }
            return Ok(response);
        }
    }

    async fn record_payment(&self, request: Request<RecordPaymentRequest>) -> Result<Response<RecordPaymentResponse>, Status> {
        rpc::run(&self.0, request).await
    }

    async fn cancel_order(&self, request: Request<CancelOrderRequest>) -> Result<Response<CancelOrderResponse>, Status> {
        rpc::run(&self.0, request).await
    }

    async fn record_shipment(&self, request: Request<RecordShipmentRequest>) -> Result<Response<RecordShipmentResponse>, Status> {
        rpc::run(&self.0, request).await
    }

    async fn record_delivery(&self, request: Request<RecordDeliveryRequest>) -> Result<Response<RecordDeliveryResponse>, Status> {
        rpc::run(&self.0, request).await
    }
}

/// The process manager's commands on orders.
pub struct OrderProcess(pub Gateway);

#[tonic::async_trait]
impl ProcessService for OrderProcess {
    async fn record_reservation(&self, request: Request<RecordReservationRequest>) -> Result<Response<RecordReservationResponse>, Status> {
        rpc::run(&self.0, request).await
    }

    async fn expire_payment(&self, request: Request<ExpirePaymentRequest>) -> Result<Response<ExpirePaymentResponse>, Status> {
        rpc::run(&self.0, request).await
    }
}
