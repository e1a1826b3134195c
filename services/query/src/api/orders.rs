use prost::Message;
use souk_event_sourcing::{LogId, UnixMillis};
use souk_proto::{
    common::v1::AsOf,
    orders::v1::{
        GetOrderRequest, GetOrderResponse, GetOrderTimelineRequest, GetOrderTimelineResponse, GetSalesSummaryRequest,
        GetSalesSummaryResponse, ListOrdersRequest, ListOrdersResponse, Order, OrderState, TimelineEntry, WatchOrderRequest,
        WatchOrderResponse, query_service_server::QueryService,
    },
};
use souk_runtime::{Deadline, Failure};
use souk_views::read::{OrderCursor, OrderFilter, Scope, TimelineRow, list_orders, order_timeline};
use tonic::{Request, Response, Status};

use super::{
    Queries,
    bytes::ByteRpc,
    entity::{Asked, freshness, stored},
    sales,
    watch::{self, Watched, Watching},
};
use crate::{
    cache::{ReadError, RowRef, View},
    check::Check,
    page::{Binding, CursorWriter},
    reply::{EncodedReply, EntityReply, timestamp},
};

#[derive(Clone)]
pub(crate) struct GetOrder;

impl ByteRpc for GetOrder {
    const PATH: &'static str = "/souk.orders.v1.QueryService/GetOrder";
    type Request = GetOrderRequest;
    type Reply = EntityReply;

    async fn reply(queries: &Queries, message: &GetOrderRequest, asked: Asked<'_>) -> Result<EntityReply, Failure> {
        queries.0.core()?.entity(View::Order, &message.order_id, &message.token, asked).await
    }
}

struct WatchedOrder;

impl Watched for WatchedOrder {
    const VIEW: View = View::Order;
    type Row = Order;
    type Reply = WatchOrderResponse;

    fn reply(order: Option<Order>, as_of: AsOf) -> WatchOrderResponse {
        WatchOrderResponse { order, as_of: Some(as_of) }
    }

    fn has_ended(order: &Order) -> bool {
        matches!(order.state(), OrderState::Delivered | OrderState::Rejected | OrderState::Cancelled)
    }
}

#[tonic::async_trait]
impl QueryService for Queries {
    type WatchOrderStream = Watching<WatchOrderResponse>;

    async fn get_order(&self, request: Request<GetOrderRequest>) -> Result<Response<GetOrderResponse>, Status> {
        Ok(Response::new(stored(GetOrder::reply(self, request.get_ref(), Asked::from(&request)).await?.bytes())?))
    }

    async fn list_orders(&self, request: Request<ListOrdersRequest>) -> Result<Response<ListOrdersResponse>, Status> {
        let core = self.0.core()?;
        let message = request.get_ref();
        let bound = ListOrdersRequest { page_size: 0, page_token: String::new(), token: String::new(), ..message.clone() }.encode_to_vec();
        let binding = Binding { list: "orders.orders", filter: &bound };
        let mut check = Check::default();
        let customer = (!message.customer_id.is_empty()).then_some(message.customer_id.as_str());
        let log: Option<LogId> = customer.and_then(|id| check.field("customer_id", core.routing.customer(id)));
        let filter = OrderFilter {
            customer_id: customer.map(str::to_owned),
            state: check.choice("state", message.state),
            from: check.time("from_time", message.from_time),
            to: check.time("to_time", message.to_time),
        };
        let limit = check.page_size(message.page_size);
        let after = check.page_token(&core.token_key, binding, &message.page_token, |cursor| {
            Ok(OrderCursor { placed: UnixMillis(cursor.number()?), order_id: cursor.text()? })
        });
        let token = check.token(&core.token_key, &message.token, request.metadata().as_ref());
        check.finish()?;
        // Wherever a customer's orders were written, it was in the customer's partition.
        let scope = log.map_or(Scope::All, |log| Scope::Partition(log.partition));
        let until = core.patience(Deadline::of(&request));
        let query = |demand| list_orders(&core.store, scope, &filter, after.as_ref(), limit, demand);
        let page = core.listed(scope, &token, until, query).await.map_err(Failure::from)?;
        let listing = core.listing(page, binding, |cursor: &OrderCursor| {
            CursorWriter::default().number(cursor.placed.0).text(&cursor.order_id).finish()
        })?;
        let reply = ListOrdersResponse { orders: listing.rows, next_page_token: listing.next_page_token, as_of: Some(listing.as_of) };
        Ok(Response::new(reply))
    }

    async fn get_order_timeline(&self, request: Request<GetOrderTimelineRequest>) -> Result<Response<GetOrderTimelineResponse>, Status> {
        let core = self.0.core()?;
        let message = request.get_ref();
        let mut check = Check::default();
        let log = check.field("order_id", core.routing.order(&message.order_id));
        let token = check.token(&core.token_key, &message.token, request.metadata().as_ref());
        check.finish()?;
        let log = log.expect("checked");
        let until = core.patience(Deadline::of(&request));
        let query = |demand| order_timeline(&core.store, log, &message.order_id, demand);
        // The order's own row says whether the timeline stands still.
        let order = match core.reader.read(RowRef { view: View::Order, log, key: &message.order_id }, &token, until).await {
            Err(ReadError::UnknownLog(_)) => return Err(View::Order.not_found(&message.order_id).into()),
            order => order.map_err(Failure::from)?,
        };
        // A replica may not have the events yet that the row says there are.
        let mut token = token;
        token.extend(freshness(log, &order).positions);
        let page = core.listed(Scope::Log(log), &token, until, query).await.map_err(Failure::from)?;
        if page.rows.is_empty() {
            return Err(View::Order.not_found(&message.order_id).into());
        }
        Ok(Response::new(GetOrderTimelineResponse {
            order_id: message.order_id.clone(),
            entries: page.rows.iter().map(entry).collect::<Result<_, _>>()?,
            as_of: Some(core.as_of(core.freshness_of(&page.as_of, order.entry.parked.map(|parked| parked.since)))),
        }))
    }

    async fn watch_order(&self, request: Request<WatchOrderRequest>) -> Result<Response<Self::WatchOrderStream>, Status> {
        let WatchOrderRequest { order_id, token } = request.get_ref();
        Ok(watch::begin::<WatchedOrder, _>(&self.0.core()?, order_id, token, &request).await?)
    }

    async fn get_sales_summary(&self, request: Request<GetSalesSummaryRequest>) -> Result<Response<GetSalesSummaryResponse>, Status> {
        let core = self.0.core()?;
        Ok(Response::new(sales::summarize(&core, request).await?))
    }
}

fn entry(row: &TimelineRow) -> Result<TimelineEntry, Failure> {
    Ok(TimelineEntry { projected_time: Some(timestamp(row.projected)), ..stored(row.body.clone())? })
}
