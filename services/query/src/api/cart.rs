use bytes::Bytes;
use souk_proto::cart::v1::{GetCartRequest, GetCartResponse, query_service_server::QueryService};
use souk_runtime::Failure;
use tonic::{Request, Response, Status};

use super::{Queries, bytes::ByteRpc, entity::stored};
use crate::cache::View;

#[derive(Clone)]
pub(crate) struct GetCart;

#[tonic::async_trait]
impl ByteRpc for GetCart {
    const PATH: &'static str = "/souk.cart.v1.QueryService/GetCart";
    type Request = GetCartRequest;

    async fn reply(queries: &Queries, request: Request<GetCartRequest>) -> Result<Bytes, Failure> {
        let message = request.get_ref();
        queries.0.core()?.entity(View::Cart, &message.customer_id, &message.token, &request).await
    }
}

#[tonic::async_trait]
impl QueryService for Queries {
    async fn get_cart(&self, request: Request<GetCartRequest>) -> Result<Response<GetCartResponse>, Status> {
        Ok(Response::new(stored(&GetCart::reply(self, request).await?)?))
    }
}
