use prost::Message;
use souk_proto::catalog::v1::{
    BatchGetProductsRequest, BatchGetProductsResponse, GetProductRequest, GetProductResponse, ListProductsRequest, ListProductsResponse,
    query_service_server::QueryService,
};
use souk_runtime::{Deadline, Failure};
use souk_views::read::{ProductFilter, Scope, list_products};
use tonic::{Request, Response, Status};

use super::{
    Queries,
    bytes::ByteRpc,
    entity::{Asked, stored},
};
use crate::{
    cache::View,
    check::Check,
    page::{Binding, CursorWriter},
    reply::{BatchReply, EncodedReply, EntityReply},
};

#[derive(Clone)]
pub(crate) struct GetProduct;

impl ByteRpc for GetProduct {
    const PATH: &'static str = "/souk.catalog.v1.QueryService/GetProduct";
    type Request = GetProductRequest;
    type Reply = EntityReply;

    async fn reply(queries: &Queries, message: &GetProductRequest, asked: Asked<'_>) -> Result<EntityReply, Failure> {
        queries.0.core()?.entity(View::Product, &message.product_id, &message.token, asked).await
    }
}

#[derive(Clone)]
pub(crate) struct BatchGetProducts;

impl ByteRpc for BatchGetProducts {
    const PATH: &'static str = "/souk.catalog.v1.QueryService/BatchGetProducts";
    type Request = BatchGetProductsRequest;
    type Reply = BatchReply;

    async fn reply(queries: &Queries, message: &BatchGetProductsRequest, asked: Asked<'_>) -> Result<BatchReply, Failure> {
        queries.0.core()?.entities(View::Product, &message.product_ids, &message.token, asked).await
    }
}

#[tonic::async_trait]
impl QueryService for Queries {
    async fn get_product(&self, request: Request<GetProductRequest>) -> Result<Response<GetProductResponse>, Status> {
        Ok(Response::new(stored(GetProduct::reply(self, request.get_ref(), Asked::from(&request)).await?.bytes())?))
    }

    async fn batch_get_products(&self, request: Request<BatchGetProductsRequest>) -> Result<Response<BatchGetProductsResponse>, Status> {
        Ok(Response::new(stored(BatchGetProducts::reply(self, request.get_ref(), Asked::from(&request)).await?.bytes())?))
    }

    async fn list_products(&self, request: Request<ListProductsRequest>) -> Result<Response<ListProductsResponse>, Status> {
        let core = self.0.core()?;
        let message = request.get_ref();
        let bound =
            ListProductsRequest { page_size: 0, page_token: String::new(), token: String::new(), ..message.clone() }.encode_to_vec();
        let binding = Binding { list: "catalog.products", filter: &bound };
        let mut check = Check::default();
        let filter = ProductFilter {
            state: check.choice("state", message.state),
            tag: check.filter("tag", &message.tag),
            category: check.filter("category", &message.category),
        };
        let limit = check.page_size(message.page_size);
        let after = check.page_token(&core.token_key, binding, &message.page_token, |cursor| cursor.text());
        let token = check.token(&core.token_key, &message.token, request.metadata().as_ref());
        check.finish()?;
        let until = core.patience(Deadline::of(&request));
        let query = |demand| list_products(&core.store, &filter, after.as_deref(), limit, demand);
        let page = core.listed(Scope::All, &token, until, query).await.map_err(Failure::from)?;
        let listing = core.listing(page, binding, |id| CursorWriter::default().text(id).finish())?;
        let reply = ListProductsResponse { products: listing.rows, next_page_token: listing.next_page_token, as_of: Some(listing.as_of) };
        Ok(Response::new(reply))
    }
}
