use souk_proto::{
    cart::v1::{Cart, GetCartRequest, GetCartResponse, WatchCartRequest, WatchCartResponse, query_service_server::QueryService},
    common::v1::AsOf,
};
use souk_runtime::Failure;
use tonic::{Request, Response, Status};

use super::{
    Queries,
    bytes::ByteRpc,
    entity::{Asked, stored},
    watch::{self, Watched, Watching},
};
use crate::{
    cache::View,
    reply::{EncodedReply, EntityReply},
};

#[derive(Clone)]
pub(crate) struct GetCart;

impl ByteRpc for GetCart {
    const PATH: &'static str = "/souk.cart.v1.QueryService/GetCart";
    type Request = GetCartRequest;
    type Reply = EntityReply;

    async fn reply(queries: &Queries, message: &GetCartRequest, asked: Asked<'_>) -> Result<EntityReply, Failure> {
        queries.0.core()?.entity(View::Cart, &message.customer_id, &message.token, asked).await
    }
}

struct WatchedCart;

impl Watched for WatchedCart {
    const VIEW: View = View::Cart;
    type Row = Cart;
    type Reply = WatchCartResponse;

    fn reply(cart: Option<Cart>, as_of: AsOf) -> WatchCartResponse {
        WatchCartResponse { cart, as_of: Some(as_of) }
    }

    fn has_ended(_: &Cart) -> bool {
        false
    }
}

#[tonic::async_trait]
impl QueryService for Queries {
    type WatchCartStream = Watching<WatchCartResponse>;

    async fn get_cart(&self, request: Request<GetCartRequest>) -> Result<Response<GetCartResponse>, Status> {
        Ok(Response::new(stored(GetCart::reply(self, request.get_ref(), Asked::from(&request)).await?.bytes())?))
    }

    async fn watch_cart(&self, request: Request<WatchCartRequest>) -> Result<Response<Self::WatchCartStream>, Status> {
        let WatchCartRequest { customer_id, token } = request.get_ref();
        Ok(watch::begin::<WatchedCart, _>(&self.0.core()?, customer_id, token, &request).await?)
    }
}
